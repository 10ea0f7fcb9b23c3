"""BIM and PGD against textbook loops written here, and against torchattacks where it is installed."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.attacks.fgsm import BIM, FGSM, MIFGSM
from seawall.attacks.pgd import PGD, PAdam
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B04", "B08"), ("land", "water", "cloud"), "reflectance", 10.0)
EPS, STEPS = 8 / 255, 12
UNIT = ThreatModel("linf", EPS, low=0.0, high=1.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.layers(image * 4 - 2)
        return logits


@pytest.fixture
def ground() -> tuple[Net, Batch]:
    draw = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 16, 16, generator=draw)
    return Net(), Batch.of(image, torch.randint(0, 3, (2, 16, 16), generator=draw))


def textbook(net: Net, batch: Batch, start: Tensor, step: float, steps: int = STEPS) -> Tensor:
    """Madry's loop in the [0, 1] box, as any tutorial has it."""
    adv = start.clone()
    for _ in range(steps):
        adv.requires_grad_(True)
        loss = functional.cross_entropy(net(adv), batch.label)
        adv = adv.detach() + step * torch.autograd.grad(loss, adv)[0].sign()
        delta = torch.clamp(adv - batch.image, min=-EPS, max=EPS)
        adv = torch.clamp(batch.image + delta, min=0, max=1).detach()
    return adv


def test_bim_is_the_textbook(ground: tuple[Net, Batch]) -> None:
    net, batch = ground
    got = BIM(steps=STEPS, step=0.2, keep="last")(net, batch, UNIT, Keys(0, batch.chips))
    assert torch.allclose(got, textbook(net, batch, batch.image, 0.2 * EPS), rtol=0, atol=1e-6)


def test_fgsm_is_one_step(ground: tuple[Net, Batch]) -> None:
    net, batch = ground
    got = FGSM()(net, batch, UNIT, Keys(0, batch.chips))
    assert torch.allclose(got, textbook(net, batch, batch.image, EPS, 1), rtol=0, atol=1e-6)


def test_pgd_is_the_textbook_from_the_same_start(ground: tuple[Net, Batch]) -> None:
    net, batch = ground
    keys = Keys(3, batch.chips)
    start = UNIT.start(batch.image, batch.seen, keys.fold("start", 0))
    got = PGD(steps=STEPS, step=0.25, keep="last")(net, batch, UNIT, keys)
    assert torch.allclose(got, textbook(net, batch, start, 0.25 * EPS), rtol=0, atol=1e-6)


def test_l2_pgd_is_the_textbook(ground: tuple[Net, Batch]) -> None:
    net, batch = ground
    eps, adv = 0.5, batch.image.clone()
    for _ in range(STEPS):
        adv.requires_grad_(True)
        grad = torch.autograd.grad(functional.cross_entropy(net(adv), batch.label), adv)[0]
        moved = adv.detach() + 0.2 * eps * grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
        delta = moved - batch.image
        size = delta.flatten(1).norm(dim=1)[:, None, None, None]
        adv = batch.image + delta * (eps / size).clamp(max=1)
    threat = ThreatModel("l2", eps)
    got = BIM(steps=STEPS, step=0.2, keep="last")(net, batch, threat, Keys(0, batch.chips))
    assert torch.allclose(got, adv, rtol=0, atol=1e-5)


def test_momentum_is_the_textbook(ground: tuple[Net, Batch]) -> None:
    net, batch = ground
    adv, velocity, images = batch.image.clone(), torch.zeros_like(batch.image), []
    for _ in range(4):
        adv.requires_grad_(True)
        grad = torch.autograd.grad(functional.cross_entropy(net(adv), batch.label), adv)[0]
        velocity = 0.9 * velocity + grad / grad.abs().mean(dim=(1, 2, 3), keepdim=True)
        delta = torch.clamp(adv.detach() + 0.2 * EPS * velocity.sign() - batch.image, -EPS, EPS)
        adv = torch.clamp(batch.image + delta, 0, 1)
        images.append(adv)
    got = MIFGSM(steps=4, step=0.2, decay=0.9)(net, batch, UNIT, Keys(0, batch.chips))
    away = torch.stack([(image - got).flatten(1).abs().amax(1) for image in images])
    assert bool((away.amin(0) < 1e-6).all())  # the most adversarial of these images


def test_padam_is_torch_adam(ground: tuple[Net, Batch]) -> None:
    net, batch = ground
    delta, images = torch.zeros_like(batch.image), []
    adam = torch.optim.Adam([delta], lr=0.25 * EPS, amsgrad=True, maximize=True)
    for _ in range(10):
        leaf = delta.detach().requires_grad_()
        loss = functional.cross_entropy(net(batch.image + leaf), batch.label, reduction="sum")
        delta.grad = torch.autograd.grad(loss, leaf)[0]
        adam.step()
        delta.clamp_(-EPS, EPS)
        delta.copy_((batch.image + delta).clamp(0, 1) - batch.image)
        images.append(batch.image + delta)
    got = PAdam(steps=10, random_start=False)(net, batch, UNIT, Keys(0, batch.chips))
    away = torch.stack([(image - got).flatten(1).abs().amax(1) for image in images])
    assert bool((away.amin(0) < 1e-5).all())


def test_bim_and_pgd_are_torchattacks(ground: tuple[Net, Batch]) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    net, batch = ground
    theirs = torchattacks.BIM(net, eps=EPS, alpha=0.2 * EPS, steps=STEPS)(batch.image, batch.label)
    ours = BIM(steps=STEPS, step=0.2, keep="last")(net, batch, UNIT, Keys(0, batch.chips))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    theirs = torchattacks.PGD(net, eps=EPS, alpha=0.2 * EPS, steps=STEPS, random_start=False)(batch.image, batch.label)
    ours = PGD(steps=STEPS, step=0.2, random_start=False, keep="last")(net, batch, UNIT, Keys(0, batch.chips))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)

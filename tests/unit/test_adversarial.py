"""Adversarial training: the loss of attacked images, with gradients to the parameters and the model left in train mode."""

import pytest
import torch
from torch import nn

from seawall.attacks.pgd import PGD
from seawall.errors import UsageError
from seawall.registry import build
from seawall.rng import Keys
from seawall.testing.fixtures import accuracy, ground_batch, linear_model
from seawall.threat.model import ThreatModel
from seawall.training.objectives.adversarial import Adversarial
from seawall.training.objectives.supervised import Supervised
from seawall.types import Objective

TEXT = {"loss": "ce", "threat": "linf 3% reflectance", "attack": "pgd", "attack_settings": {"steps": 3}}


def test_it_is_the_loss_of_attacked_images() -> None:
    model, batch = linear_model(), ground_batch()
    keys = Keys(0, batch.chips)
    objective: Objective = build("objective", "adversarial", TEXT)  # type: ignore[assignment, arg-type]
    image = PGD(steps=3)(model, batch, ThreatModel("linf", 0.03, low=0.0), keys.fold("attack"))
    want = Supervised()(model, type(batch)(image, batch.label, batch.seen, batch.valid, batch.chips), keys)
    got = objective(model, batch, keys)
    assert torch.equal(got, want) and got > Supervised()(model, batch, keys)
    got.backward()
    assert model.weight.grad is not None and model.weight.grad.abs().max() > 0


def test_the_model_keeps_its_mode_and_what_wants_gradients() -> None:
    model, batch = linear_model(), ground_batch()
    model.train()
    model.bias.requires_grad_(False)
    Adversarial()(model, batch, Keys(0, batch.chips))
    assert model.training and model.weight.requires_grad and not model.bias.requires_grad


def test_a_share_is_drawn_per_chip() -> None:
    model, batch = linear_model(), ground_batch(images=3)
    keys = Keys(0, batch.chips)
    losses = {
        share: float(Adversarial(threat="linf 3% reflectance", share=share)(model, batch, keys))
        for share in (1e-9, 0.5, 1.0)
    }
    assert losses[1e-9] == float(Supervised()(model, batch, keys)) < losses[1.0]
    assert losses[1e-9] <= losses[0.5] <= losses[1.0]


def test_it_hardens_a_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spec = linear_model().spec
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.layers = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layers((image - 0.3) * 10)  # type: ignore[no-any-return]

    batch, threat = ground_batch(images=4, size=16), ThreatModel("linf", 0.02)
    right = {}
    for name, objective in (("clean", Supervised()), ("hard", Adversarial(threat="linf 2% reflectance"))):
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for step in range(60):
            optimizer.zero_grad()
            objective(model, batch, Keys(step, batch.chips)).backward()
            optimizer.step()
        adv = PGD(steps=20)(model, batch, threat, Keys(0, batch.chips))
        right[name] = float(accuracy(model, batch, adv).mean())
    assert right["hard"] >= right["clean"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"share": 0.0}, "share"),
        ({"attack": "pdg"}, "did you mean"),
        ({"attack_settings": {"stps": 3}}, "did you mean 'steps'"),
    ],
)
def test_wrong_settings(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build("objective", "adversarial", wrong)  # type: ignore[arg-type]

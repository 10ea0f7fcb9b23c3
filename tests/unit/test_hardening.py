"""Hardening: drawn threats, single steps, TRADES, GradAlign, weight averages, the watch over overfitting, pre-training."""

import signal
from _thread import interrupt_main
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from seawall.attacks.fgsm import FGSM
from seawall.attacks.pgd import PGD
from seawall.errors import StoppedError, UsageError
from seawall.models.anchored_unet import LINEAR_GAIN, AnchoredUNet
from seawall.models.index_unet import IndexUNet, NormalizedDifferences
from seawall.models.unet import UNet
from seawall.registry import build
from seawall.rng import Keys
from seawall.testing.fixtures import ground_batch, linear_model, uneven_model, worst_accuracy
from seawall.threat.model import ThreatModel
from seawall.training.averaging import WeightAverage
from seawall.training.loop import Training, fit
from seawall.training.objectives.adversarial import Adversarial
from seawall.training.objectives.controlled_step import StepCheckpoints, StepLinearized
from seawall.training.objectives.grad_align import GradAlign, gradient_misalignment
from seawall.training.objectives.supervised import Supervised
from seawall.training.objectives.trades import Trades, pixel_divergence
from seawall.training.pretrain import PatchClassifier, PatchLabels, pretrain_encoder
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
QUICK = Training(epochs=3, steps_per_epoch=4, batch=4, patch=16, lr=1e-2, warmup=0.0, save_s=1e-9, tensorboard=False)


def make() -> nn.Module:
    torch.manual_seed(0)
    model = UNet(4, 1)(SPEC)
    model.standardize.fit([0.3, 0.3], [0.2, 0.2])
    return model


def toy(epoch: int) -> list[Batch]:
    return [
        replace(
            ground_batch(images=4, size=16, seed=10 * epoch + i), chips=tuple(f"c{j}@{epoch}.{i}" for j in range(4))
        )
        for i in range(4)
    ]


def spied(objective: Adversarial, model: nn.Module, batch: Batch, keys: Keys, progress: float = 1.0) -> torch.Tensor:
    """Return the images that the objective feeds to its loss."""
    seen = []
    handle = model.register_forward_hook(lambda _, given, out: seen.append(given[0].detach()))
    objective.at(progress)(model, batch, keys)
    handle.remove()
    return seen[-1]


def test_fgsm_is_one_step_of_pgd_from_the_clean_image() -> None:
    model, batch = uneven_model(), ground_batch()
    keys = Keys(0, batch.chips)
    one = build("objective", "fgsm")(model, batch, keys)  # type: ignore[operator]
    settings = {"steps": 1, "step": 1.0, "random_start": False, "keep": "last"}
    torch.manual_seed(0)
    assert torch.equal(
        spied(build("objective", "fgsm"), model, batch, keys),  # type: ignore[arg-type]
        spied(Adversarial(attack_settings=settings), model, batch, keys),
    )
    assert one > 0


def test_noisy_fgsm_is_not_pulled_back() -> None:
    model, batch = linear_model(), ground_batch()
    batch = replace(batch, valid=batch.seen, label=batch.label.clamp(0, 1))
    keys = Keys(0, batch.chips)
    image = spied(build("objective", "n-fgsm", {"threat": "linf 1% reflectance"}), model, batch, keys)  # type: ignore[arg-type]
    offset = (image - batch.image).abs()
    assert 0.028 < float(offset.max()) <= 0.03 + 1e-6, "noise of 2 eps and a step of eps reach 3 eps"
    noisy = ThreatModel("linf", 0.02, low=0.0).start(batch.image, batch.seen, keys.fold("attack").fold("noise"))
    step = (image - noisy)[batch.seen[:, None].expand_as(image)].abs()
    assert torch.allclose(step, torch.full_like(step, 0.01), atol=1e-6), "the step is eps from the noisy image"
    assert torch.equal(image[~batch.seen[:, None].expand_as(image)], batch.image[~batch.seen[:, None].expand_as(image)])


def test_threats_are_drawn_by_chip_and_warm_up_by_progress() -> None:
    model, batch = linear_model(), ground_batch(images=6)
    batch = replace(batch, valid=batch.seen, label=batch.label.clamp(0, 1))
    keys = Keys(3, batch.chips)
    drawn = Adversarial(threat="linf 2% reflectance", draw="uniform", warmup=0.5, attack="fgsm", attack_settings={})
    sizes = (spied(drawn, model, batch, keys) - batch.image).abs().flatten(1).amax(1)
    want = 0.02 * keys.fold("eps").uniform((1,))[:, 0]
    assert torch.allclose(sizes, want, atol=1e-6) and len(set(sizes.tolist())) == 6
    squared = (spied(replace(drawn, draw="squared"), model, batch, keys) - batch.image).abs().flatten(1).amax(1)
    assert torch.allclose(squared, want**2 / 0.02, atol=1e-6), "the square of the same share of eps"
    quarter = (spied(drawn, model, batch, keys, 0.125) - batch.image).abs().flatten(1).amax(1)
    assert torch.allclose(quarter, want / 4, atol=1e-6)
    assert torch.equal(spied(drawn, model, batch, keys, 0.0), batch.image)
    alone = spied(drawn, model, batch.select([4]), keys.select([4]))
    assert torch.equal(alone[0], spied(drawn, model, batch, keys)[4]), "a chip draws the same in any batch"
    two = replace(drawn, threat=("linf 0.5% reflectance", "linf 2% reflectance"), draw="fixed")
    found = (spied(two, model, batch, keys) - batch.image).abs().flatten(1).amax(1)
    which = keys.fold("threat").uniform((1,))[:, 0] < 0.5
    assert torch.allclose(found, torch.where(which, 0.005, 0.02), atol=1e-6) and 0 < int(which.sum()) < 6
    started = replace(two, attack="pgd", attack_settings={"steps": 1, "step": 0.1, "keep": "last"})
    alone = spied(started, model, batch.select([4]), keys.select([4]))
    assert torch.equal(alone[0], spied(started, model, batch, keys)[4]), "its random start is its own as well"


def test_budgets_per_image_bound_every_attack() -> None:
    model, batch = uneven_model(), ground_batch(images=4)
    batch.valid[3] = False  # it leaves the attack, and the budgets of the others stay theirs
    factors = (0.0, 0.5, 1.0, 0.7)
    for norm in ("linf", "l2"):
        threat = ThreatModel(norm, 0.02, low=0.0, factors=factors)  # type: ignore[arg-type]
        for attack in (PGD(steps=4), build("attack", "masked-ce", {"steps": 10})):
            adv = attack(model, batch, threat, Keys(0, batch.chips))  # type: ignore[operator]
            far = threat.distance(adv, batch.image)
            assert (far <= 0.02 * torch.tensor(factors) + 1e-6).all() and far[2] > 0.01 and far[0] == 0
    with pytest.raises(UsageError, match="expected 4 factors, got 2"):
        ThreatModel("linf", 0.02, factors=(1.0, 1.0)).around(batch.image, batch.seen)


def test_trades_is_the_clean_loss_plus_a_mean_divergence() -> None:
    model, batch = uneven_model().eval(), ground_batch()
    keys = Keys(0, batch.chips)
    clean = Supervised()(model, batch, keys)
    assert torch.equal(Trades(beta=0.0)(model, batch, keys), clean)
    assert torch.equal(Trades(threat="linf 0% reflectance")(model, batch, keys), clean), (
        "the same image does not diverge"
    )
    one = Trades(beta=1.0, threat="linf 2% reflectance", steps=3)
    extra = one(model, batch, keys) - clean
    doubled = torch.cat([batch.image, batch.image])
    twice = Batch(
        doubled,
        *(torch.cat([getattr(batch, n)] * 2) for n in ("label", "seen", "valid")),
        (*batch.chips, *(f"{c}b" for c in batch.chips)),
    )  # type: ignore[arg-type]
    again = one(model, twice, Keys(0, twice.chips)) - Supervised()(model, twice, keys)
    assert extra > 0 and abs(float((again / extra).detach()) - 1) < 0.1, (
        "a mean over pixels does not grow with the batch"
    )
    away = pixel_divergence(model(batch.image), model(spied(one, model, batch, keys)))  # type: ignore[arg-type]
    assert torch.allclose(extra, away[batch.valid].mean(), rtol=1e-4), "of valid pixels"
    p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    want = functional.kl_div(q, p, log_target=True, reduction="sum")  # KL(p || q)
    assert torch.allclose(pixel_divergence(p.view(1, 2, 1, 1), q.view(1, 2, 1, 1)).flatten(), want)


def test_grad_align_is_zero_where_the_gradient_does_not_turn() -> None:
    batch = ground_batch()
    only = torch.zeros_like(batch.valid)
    at = batch.valid.flatten(1).float().argmax(1)
    only.flatten(1)[torch.arange(len(batch)), at] = True  # of one pixel, so that a linear model has one direction
    one = replace(batch, valid=only)
    other = batch.image + 0.05 * torch.randn(batch.image.shape, generator=torch.Generator().manual_seed(0))
    assert gradient_misalignment(linear_model(), one, other).abs() < 1e-6
    curved = uneven_model()
    assert gradient_misalignment(curved, one, other) > 1e-3
    keys = Keys(0, batch.chips)
    base = build("objective", "fgsm")(curved.eval(), batch, keys)  # type: ignore[operator]
    assert torch.equal(GradAlign(weight=0.0)(curved, batch, keys), base)
    assert GradAlign(weight=5.0)(curved, batch, keys) > base


def test_crafting_leaves_the_statistics_of_batch_norms_alone() -> None:
    batch = ground_batch()
    for objective, passes in (
        (Adversarial(), 1),
        (GradAlign(), 1),
        (Trades(steps=2), 2),
        (StepCheckpoints(), 1),
        (StepLinearized(), 1),
    ):
        model = uneven_model()
        model.norm.train()
        objective(model, batch, Keys(0, batch.chips))
        assert int(model.norm.num_batches_tracked) == passes, objective.name


def test_the_checkpoint_reading_takes_the_shortest_share_that_does_half_the_harm() -> None:
    spec = SPEC

    class Ramp(nn.Module):
        """Water where the first band is above 0.3."""

        def __init__(self) -> None:
            super().__init__()
            self.spec = spec

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            z = 100 * (image[:, 0] - 0.3)
            return torch.stack([torch.zeros_like(z), z], 1)

    # 8 water pixels at margins of 0.1 to 0.8 eps; the step from a random start goes to the lower corner of eps
    margins = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]) * 0.02
    image = torch.stack([0.3 + margins, torch.full((8,), 0.2)])[None, :, None, :]
    batch = Batch.of(image, torch.ones(1, 1, 8, dtype=torch.long))
    objective, keys = StepCheckpoints(threat="linf 2% reflectance", checkpoints=8), Keys(0, batch.chips)
    found = (spied(objective, Ramp(), batch, keys) - image)[0, 0, 0].abs()  # type: ignore[arg-type]
    whole = (
        PGD(steps=1, step=1.25, keep="last")(Ramp(), batch, ThreatModel("linf", 0.02, low=0.0), keys.fold("attack"))
        - image
    )[0, 0, 0].abs()
    lost = [int((whole * k / 8 > margins).sum()) for k in range(1, 9)]
    k = next(k for k in range(1, 9) if 2 * lost[k - 1] >= lost[7])
    assert torch.allclose(found, whole * k / 8, atol=1e-6) and k < 7
    step = (spied(StepLinearized(threat="linf 2% reflectance"), Ramp(), batch, keys) - image)[0, 0, 0]  # type: ignore[arg-type]
    assert torch.allclose(step, torch.full((8,), -float(margins.median())), atol=1e-6), (
        "to the border of the median pixel"
    )


def test_fgsm_reaches_the_exact_worst_case_of_the_linear_classifier() -> None:
    model, batch = linear_model(), ground_batch()
    threat = ThreatModel("linf", 0.02, low=0.0)
    adv = FGSM()(model, batch, threat, Keys(0, batch.chips))
    right = ((model(adv).argmax(1) == batch.label) & batch.valid).flatten(1).sum(1) / batch.valid.flatten(1).sum(1)
    assert torch.allclose(right, worst_accuracy(model, batch, threat)[0])


def test_models_of_bounded_slope_keep_their_bounds() -> None:
    image = torch.rand(1, 6, 9, 9, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.001, 0.5]).repeat(
        3
    ).view(1, 6, 1, 1)
    image.requires_grad_()
    found = NormalizedDifferences(0.05)(image)
    for channel in range(found.shape[1]):
        (grad,) = torch.autograd.grad(found[:, channel].sum(), image, retain_graph=True)
        assert float(grad.abs().max()) <= 1 / 0.05 + 1e-4
    assert float(found.abs().max()) < 1
    a, b = image[0, 0, 3, 3], image[0, 4, 3, 3]
    assert torch.isclose(found[0, 3, 3, 3], (a - b) / (a + b + 0.05))
    spec = ModelSpec(("B02", "B03"), ("land", "water"), "reflectance", 10.0)
    torch.manual_seed(0)
    model = AnchoredUNet(bound=0.5, width=4, depth=1)(spec)
    nn.init.constant_(model.network.unet.head.bias, 1e3)
    x = torch.rand(2, 2, 8, 8)
    apart = model(x) - LINEAR_GAIN * model.network.linear(model.standardize(x))
    assert torch.allclose(apart, torch.full_like(apart, 0.5), atol=1e-5), "the correction ends at its bound"
    with pytest.raises(UsageError, match=r"index-unet\.floor"):
        IndexUNet(floor=0.0)


def test_the_average_follows_its_recursion_and_gives_the_weights_back() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(model[0].weight, 0.0)
    average, want = WeightAverage(model, 0.5), 0.0
    for step, value in enumerate((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)):
        nn.init.constant_(model[0].weight, value)
        model[1].running_mean.fill_(value)
        model[1].num_batches_tracked.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        want = decay * want + (1 - decay) * value
    with average.applied():
        assert float(model[0].weight) == pytest.approx(want) == float(model[1].running_mean)
        assert int(model[1].num_batches_tracked) == 8
    assert float(model[0].weight) == 256.0


def test_a_stopped_training_with_average_and_schedule_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    training = replace(QUICK, ema=0.9)
    objective = Adversarial(
        threat=("linf 1% reflectance", "linf 3% reflectance"), draw="uniform", warmup=0.8,
        attack_settings={"steps": 2, "step": 0.5, "keep": "last"},
    )  # fmt: skip
    fit(make(), objective, toy, None, training, tmp_path / "whole")

    def stopping(epoch: int):
        for index, batch in enumerate(toy(epoch)):
            if (epoch, index) == (1, 2):
                interrupt_main(signal.SIGTERM)
            yield batch

    with pytest.raises(StoppedError):
        fit(make(), objective, stopping, None, training, tmp_path / "cut")
    fit(make(), objective, toy, None, training, tmp_path / "cut")
    whole = (tmp_path / "whole/model.safetensors").read_bytes()
    assert (tmp_path / "cut/model.safetensors").read_bytes() == whole
    fit(make(), replace(objective, warmup=0.0), toy, None, training, tmp_path / "at-once")
    assert (tmp_path / "at-once/model.safetensors").read_bytes() != whole, "the schedule decides the weights"


def test_the_schedule_goes_by_the_whole_training(tmp_path: Path) -> None:
    asked: list[float] = []

    class Spy(Supervised):
        def at(self, progress: float) -> Supervised:
            asked.append(progress)
            return Supervised()

    fit(make(), Spy(), toy, None, QUICK, tmp_path)
    assert asked == pytest.approx([step / 12 for step in range(12)])


def test_training_ends_at_the_first_sign_and_keeps_the_best_weights(tmp_path: Path) -> None:
    figures = iter([(0.5, 0.0), (0.6, 0.0), (0.1, 1.0), (0.9, 0.0)])

    def check(model: nn.Module) -> dict[str, float | None]:
        robust, lost = next(figures)
        return {"val.robust.iou.water": robust, "val.robust.overfitting": lost}

    training = replace(QUICK, epochs=4, monitor="val.robust.iou.water", halt="val.robust.overfitting")
    history = fit(make(), Supervised(), toy, check, training, tmp_path)
    assert (history.ending, len(history.rows), history.best_epoch) == ("early", 3, 1)
    wrong = replace(training, halt="val.robust.overfit")
    with pytest.raises(UsageError, match=r"training\.halt.*did you mean 'val.robust.overfitting'"):
        fit(
            make(),
            Supervised(),
            toy,
            check,
            wrong,
            tmp_path / "x",
            metrics=("val.robust.iou.water", "val.robust.overfitting"),
        )


def test_an_encoder_is_trained_in_place_on_the_shares_of_patches(tmp_path: Path) -> None:
    batch = ground_batch(images=4, size=16)
    water = ((batch.label == 1) & batch.valid).flatten(1).sum(1) / batch.valid.flatten(1).sum(1)
    feed = PatchLabels(toy, share=float(water[0]))
    labelled = next(iter(PatchLabels(lambda _: [batch], share=float(water.sort().values[1]))(0))).label
    assert (
        torch.equal(labelled[:, 0, 0], (water > water.sort().values[1]).long())
        and (labelled == labelled[:, :1, :1]).all()
    )
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretrain_encoder(model, Adversarial(attack="fgsm", attack_settings={}), feed, QUICK, tmp_path)
    moved = {name.split(".")[1] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"stem", "down"}, "the encoder alone is trained"
    logits = PatchClassifier(model)(batch.image)
    assert logits.shape == (4, 2, 16, 16) and torch.equal(logits, logits[..., :1, :1].expand_as(logits))


def test_wrong_settings_are_refused() -> None:
    for name, settings, says in (
        ("adversarial", {"warmup": 1.5}, "warmup"),
        ("adversarial", {"threat": []}, "threat"),
        ("n-fgsm", {"noise": -1.0}, "noise"),
        ("trades", {"beta": -1.0}, "beta"),
        ("grad-align", {"weight": -1.0}, "weight"),
        ("step-checkpoints", {"checkpoints": 0}, "checkpoints"),
        ("adversarial", {"draw": "normal"}, "draw"),
    ):
        with pytest.raises(UsageError, match=says):
            build("objective", name, settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="ema"):
        Training(ema=1.0)

"""Square, transfer and universal noise; and the IoU attack."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import seawall
from seawall.attacks.cost import count_passes
from seawall.attacks.fischer import Fischer
from seawall.attacks.iou import IoUAttack
from seawall.attacks.pgd import PGD
from seawall.attacks.square import Random, Square
from seawall.attacks.suites import Seawall
from seawall.attacks.target import Hide, Towards
from seawall.attacks.transfer import Transfer
from seawall.attacks.universal import Universal, UniversalPerChip
from seawall.errors import DataError, ModelError, UsageError
from seawall.evaluation.case import Case
from seawall.evaluation.case import fit_set_attacks as fitted_cases
from seawall.registry import build, entries
from seawall.rng import Keys
from seawall.testing.assertions import made
from seawall.testing.fixtures import accuracy, ground_batch, linear_model, uneven_model
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.types import Attack, Batch

EPS = ThreatModel("linf", 0.03, low=0.0)


def keys(batch: Batch, seed: int = 0) -> Keys:
    return Keys(seed, batch.chips)


def test_square_needs_no_gradient_stays_inside_and_beats_noise() -> None:
    model, batch = uneven_model().eval(), ground_batch(size=24)
    with count_passes(model) as passes:  # type: ignore[arg-type]
        adv = Square(steps=40)(model, batch, EPS, keys(batch))  # type: ignore[arg-type]
    assert passes.backward == 0 and passes.forward == 41 * len(batch)
    assert EPS.distance(adv, batch.image).max() <= EPS.radius * 1.0001
    noise = accuracy(model, batch, Random()(model, batch, EPS, keys(batch))).mean()  # type: ignore[arg-type]
    assert accuracy(model, batch, adv).mean() < noise - 0.02  # type: ignore[arg-type]


def test_more_queries_never_help_the_model() -> None:
    model, batch = linear_model(), ground_batch(size=24)
    right = [
        float(accuracy(model, batch, Square(steps=n)(model, batch, EPS, keys(batch))).mean()) for n in (5, 40, 320)
    ]
    best = float(accuracy(model, batch, PGD()(model, batch, EPS, keys(batch))).mean())
    assert right[0] > right[1] > right[2] >= best - 1e-6 and right[2] < best + 0.08


class Blind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = linear_model()
        self.spec = self.linear.spec

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            return self.linear((image * 64).round() / 64)  # type: ignore[no-any-return]


def test_a_model_without_gradients_is_an_error_or_a_job_for_the_black_box() -> None:
    model, batch = Blind(), ground_batch(size=16)
    for entry in entries("attack"):
        attack = made(entry, Attack)
        if "black-box" in entry.traits:
            assert attack(model, batch, EPS, keys(batch)).shape == batch.image.shape, entry.name
            continue
        with pytest.raises(ModelError, match="expected logits with a gradient to the image, got none; use a black-box"):
            attack(model, batch, EPS, keys(batch))
    for attack in (Square(), Transfer()):
        assert (
            accuracy(model, batch, attack(model, batch, EPS, keys(batch))).mean() < accuracy(model, batch).mean() - 0.2
        )


def test_transfer_from_the_model_itself_is_the_attack_itself() -> None:
    model, batch = linear_model(), ground_batch()
    own = Transfer(surrogate=model, attack="pgd", attack_settings={"steps": 5})(model, batch, EPS, keys(batch))
    assert torch.equal(own, PGD(steps=5)(model, batch, EPS, keys(batch)))


def test_transfer_from_weights_and_from_what_does_not_fit(tmp_path: Path) -> None:
    from seawall.models.unet import UNet
    from seawall.models.weights import save_model

    batch, model = ground_batch(size=16), linear_model()
    net = UNet(width=4, depth=2)(model.spec)
    net.standardize.fit([0.3, 0.3], [0.1, 0.1])  # type: ignore[union-attr, operator]
    save_model(tmp_path / "m.safetensors", net)
    attack = build("attack", "transfer", {"weights": str(tmp_path / "m.safetensors"), "attack_settings": {"steps": 2}})
    assert EPS.distance(attack(model, batch, EPS, keys(batch)), batch.image).max() > 0.01  # type: ignore[operator]
    with pytest.raises(ModelError, match="surrogate"):
        Transfer(surrogate=linear_model(bands=3))(model, batch, EPS, keys(batch))
    with pytest.raises(UsageError, match="both"):
        Transfer("m.safetensors", surrogate=model)


def test_one_image_without_a_tile_is_the_targeted_iterative_method() -> None:
    model, batch = linear_model(classes=3), ground_batch(classes=3, images=1)
    threat = ThreatModel("linf", 8 / 255)
    # no pixel is settled, all weigh alike, steps of one grey level: what is left is Fischer's attack
    own = UniversalPerChip(goal=Hide("water"), steps=10, step=1 / 8, weight=0.5, sure=1.0)(
        model, batch, threat, keys(batch)
    )
    assert torch.allclose(own, Fischer("water")(model, batch, threat, keys(batch)), atol=1e-6)


def test_a_tile_of_the_images_size_is_no_tile_and_a_small_one_repeats() -> None:
    model, batch = linear_model(), ground_batch(size=12)
    whole = Universal(steps=6).fit(model, [batch], EPS, keys(batch))
    assert torch.equal(whole, Universal(steps=6, tile=12).fit(model, [batch], EPS, keys(batch)))
    tile = Universal(steps=6, tile=5).fit(model, [batch], EPS, keys(batch))
    assert tile.shape == (2, 5, 5) and tile.abs().max() <= EPS.radius + 1e-7
    adv = Universal(tile=5).apply(tile, batch, replace(EPS, low=None))
    noise = torch.where(batch.seen[:, None], adv - batch.image, torch.nan)[0]
    assert torch.allclose(noise[:, :5, :5].nan_to_num(9), tile.where(batch.seen[0, None, :5, :5], 9.0), atol=1e-6)
    both = batch.seen[0, :5, :5] & batch.seen[0, 5:10, 5:10]
    assert torch.allclose(noise[:, :5, :5][:, both], noise[:, 5:10, 5:10][:, both], atol=1e-6)


def test_the_gradient_of_a_tile_comes_from_all_of_its_copies() -> None:
    """Only the last copy of the tile has pixels that count, so a gradient from the first one would be zero."""
    model, batch = linear_model(), ground_batch(images=1, size=12)
    corner = torch.zeros_like(batch.valid)
    corner[:, 8:, 8:] = True
    batch = replace(batch, seen=torch.ones_like(batch.seen), valid=corner)
    noise = Universal(steps=1, step=1.0, tile=4).fit(model, [batch], EPS, keys(batch))
    assert (noise.abs() > 0).all()


def test_set_and_chip_noises_are_told_apart_in_the_verb_too(tmp_path: Path) -> None:
    batch, model = ground_batch(size=16), linear_model()
    table = seawall.attack(
        model, batch, "linf 5% reflectance", method=["universal", "universal-per-chip"], out=tmp_path, sanity_checks=False
    ).table  # fmt: skip
    scores = {row["method"]: row["accuracy"] for row in table}
    threat = parse_threat("linf 5% reflectance", model.spec)
    fitted = Universal().fitted(model, [batch], threat, keys(batch))
    right = (model(fitted(model, batch, threat, keys(batch))).argmax(1) == batch.label) & batch.valid
    assert scores["universal"] == pytest.approx(float(right.sum() / batch.valid.sum()))
    assert float(scores["universal-per-chip"] or 0) <= float(scores["universal"] or 0)
    one = batch.select([0])
    case = Case("universal", Universal(), threat)
    with pytest.raises(UsageError, match="fitted to a set"):
        case.image(model, one, 0)
    [ready] = fitted_cases([case], model, lambda: [batch], 0)
    assert torch.equal(ready.image(model, one, 0), ready.image(model, batch, 0)[:1]), "the noise is the set's"


def test_one_noise_for_all_reaches_a_static_target_on_images_it_never_saw() -> None:
    model, wide = linear_model(), ThreatModel("linf", 0.2)
    seen, fresh = ground_batch(images=4), ground_batch(images=4, seed=7)
    attack = Universal(goal=Towards("land"), steps=20, tile=4)
    noise = attack.fit(model, [seen.select([0, 1]), seen.select([2, 3])], wide, keys(seen))
    land = (model(attack.apply(noise, fresh, wide)).argmax(1) == 0)[fresh.valid].float().mean()
    assert land > 0.9 > (model(fresh.image).argmax(1) == 0)[fresh.valid].float().mean()
    with pytest.raises(DataError, match="tile"):
        Universal().fit(model, [seen, ground_batch(size=8)], wide, keys(seen))


def test_iou_attack_spends_its_budget_where_the_iou_is() -> None:
    """A shared noise cannot serve all pixels: with few water pixels accuracy would give them up, the IoU does not."""

    class Shared(nn.Module):
        """Every pixel sees the mean of the image: one value decides about all."""

        spec = linear_model().spec

        def forward(self, image: Tensor) -> Tensor:
            push = image.mean((1, 2, 3), keepdim=True)[:, 0]
            score = (image[:, 0] - 0.3) * 2 + 8 * (push - 0.3)
            return torch.stack([-score, score], 1)

    draw = torch.Generator().manual_seed(0)
    label = (torch.rand(2, 16, 16, generator=draw) < 0.2).long()
    image = (0.3 + (label * 2 - 1) * 0.03)[:, None].repeat(1, 2, 1, 1)
    image -= image.mean((1, 2, 3), keepdim=True) - 0.3
    batch, model = Batch.of(image, label), Shared()

    def left(attack: IoUAttack) -> float:
        says = model(attack(model, batch, ThreatModel("linf", 0.02), keys(batch))).argmax(1)
        return float(((says == 1) & (label == 1)).sum() / ((says == 1) | (label == 1)).sum())

    assert left(IoUAttack(steps=20, worth=0.05)) == 0.0 <= left(IoUAttack(steps=20, worth=1.0))


def test_with_worth_chip_the_image_of_the_lowest_iou_is_kept() -> None:
    """Each chip trades water against land at its own rate: a fixed worth gives up the chip where land is the better buy."""
    model, batch = linear_model(), ground_batch(size=16)
    threat = ThreatModel("linf", 0.02)

    def ious(attack: IoUAttack) -> list[float]:
        says = model(attack(model, batch, threat, keys(batch))).argmax(1)
        both = ((says == 1) & (batch.label == 1) & batch.valid).flatten(1).sum(1)
        either = (((says == 1) | (batch.label == 1)) & batch.valid).flatten(1).sum(1)
        return (both / either).tolist()

    own, fixed = ious(IoUAttack(worth="chip", steps=20)), ious(IoUAttack(worth=0.02, steps=20))
    assert all(a <= b + 1e-6 for a, b in zip(own, fixed, strict=True)) and sum(own) <= sum(fixed)


@pytest.mark.parametrize("steps", [8, 30])
def test_the_iou_attack_takes_the_steps_that_it_says(steps: int) -> None:
    for member in Seawall(passes=steps).members():
        model = linear_model()
        with count_passes(model) as passes:
            member.attack(model, ground_batch(size=16), ThreatModel("linf", 0.001), Keys(0, ground_batch().chips))
        assert passes.backward == member.passes * 3, "three chips, one pass with gradients per step"


@pytest.mark.parametrize("wrong", [{"worth": 0}, {"steps": -1}, {"first": 0.01, "last": 0.5}, {"momentum": 1.0}])
def test_wrong_settings_of_the_iou_attack(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="iou: expected"):
        IoUAttack(**wrong)  # type: ignore[arg-type]

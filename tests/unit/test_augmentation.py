"""Augmentations as objectives: what is drawn, what stays, what labels do, and that a resume keeps the plan."""

import signal
from _thread import interrupt_main
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from seawall.chip_context import ChipContext
from seawall.corruptions.build import parse_corruption
from seawall.corruptions.spatial import seen_mean
from seawall.defenses.corrupted_batches import TRAINING_CORRUPTIONS, corrupt_each, training_corruptions
from seawall.defenses.image_operations import OPERATIONS, ImageOperation
from seawall.errors import DataError, StoppedError, UsageError
from seawall.models.unet import UNet
from seawall.modules import batch_norms
from seawall.registry import build, entries
from seawall.rng import Keys
from seawall.testing.corruptions import lake_chips
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.training.loop import Training, fit
from seawall.training.objectives.augmentation import RandAugment, UniformAugmentation
from seawall.training.objectives.augmix import AugMix, jensen_shannon
from seawall.training.objectives.gradient_sensitive import GradientSensitiveAugmentation, sensitive_region
from seawall.training.objectives.sensitivity_augmentation import SensitivityAugmentation, drawn_chains
from seawall.training.objectives.supervised import Supervised
from seawall.types import FILL, Batch, ModelSpec

CONTEXT = ChipContext(10.0, ("B02", "B03", "B04", "B08", "B11", "B12"), "reflectance", ("land", "water"))
SPEC = ModelSpec(CONTEXT.bands, CONTEXT.classes, "reflectance", 10.0)
SMALL = SensitivityAugmentation(
    corruptions=("haze", "rotation worst=20"), levels=3, rounds=4, clean_rounds=1, curve_rounds=2, sample=6, most=3
)


def make() -> nn.Module:
    torch.manual_seed(0)
    model = UNet(4, 1, "batch")(SPEC)
    model.standardize.fit([0.2] * 6, [0.1] * 6)
    return model


def lakes(images: int = 6) -> Batch:
    batch = lake_chips(CONTEXT, images, 32)
    seen = batch.seen.clone()
    seen[:, :3, 5:9] = False
    image = torch.where(seen[:, None], batch.image, FILL["reflectance"])
    return replace(batch, image=image, seen=seen, valid=batch.valid & seen)


def test_one_of_all_or_none_is_drawn_and_severities_by_their_probability() -> None:
    known = {name: parse_corruption(name, CONTEXT) for name in ("haze", "gain", "mtf")}
    levels = [(1.0, 0.5), (0.6, 0.3), (0.2, 0.2)]
    count = 8000
    chains = drawn_chains(known, dict.fromkeys(known, levels), Keys(0, tuple(map(str, range(count)))))
    drawn = Counter((type(chain[0][0]).__name__, chain[0][1]) if chain else None for chain in chains)
    want = {None: 0.25} | {(type(one).__name__, s): w / 4 for one in known.values() for s, w in levels}
    assert drawn.keys() == want.keys()
    for key, share in want.items():
        assert drawn[key] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


@pytest.mark.parametrize("unit", TRAINING_CORRUPTIONS)
def test_held_out_corruptions_are_never_drawn(unit: str) -> None:
    bands = CONTEXT.bands if unit == "reflectance" else ("VV", "VH")
    spec = ModelSpec(bands, CONTEXT.classes, unit, 10.0)
    classes = {entry.make for entry in entries("corruption") if entry.name in TRAINING_CORRUPTIONS[unit]}
    assert {type(one) for one in training_corruptions((), spec).values()} == classes
    assert len(classes) == len(TRAINING_CORRUPTIONS[unit]) <= len(list(entries("corruption"))) / 4


def test_named_corruptions_alone_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[tuple[str, float]] = []
    module = "seawall.training.objectives.augmentation.corrupt_each"

    def spy(batch: Batch, chains, keys: Keys) -> Batch:
        met.extend((type(one).__name__, severity) for chain in chains for one, severity in chain)
        return batch

    monkeypatch.setattr(module, spy)
    batch = ground_batch(images=1, bands=6)
    objective = UniformAugmentation(corruptions=("gain", "shift"))
    many = Batch(*(plane.expand(900, *plane.shape[1:]) for plane in (batch.image, batch.label, batch.seen, batch.valid)), tuple(map(str, range(900))))  # fmt: skip
    objective.changed(make(), many, Keys(0, many.chips))
    assert {name for name, _ in met} == {"GainError", "Translation"}
    assert len(met) == pytest.approx(600, abs=60)
    assert np.histogram([s for _, s in met], 5, (0, 1))[0] == pytest.approx(len(met) / 5, abs=45)


METHODS = ["uniform-augmentation", "rand-augment", "trivial-augment", "sensitivity-augmentation", "gradient-sensitive-augmentation"]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_chip_is_changed_by_its_key_alone_and_unseen_pixels_keep_their_fill(name: str) -> None:
    objective, model, batch = build("objective", name), make(), lakes(8)
    keys = Keys(5, batch.chips)
    whole = objective.changed(model, batch, keys)
    assert not torch.equal(whole.image, batch.image)
    assert (whole.image[~whole.seen[:, None].expand_as(whole.image)] == FILL["reflectance"]).all()
    assert not (whole.valid & ~whole.seen).any() and whole.chips == batch.chips
    for i in range(len(batch)):
        alone = objective.changed(model, batch.select([i]), keys.select([i]))
        assert torch.equal(alone.image[0], whole.image[i]) and torch.equal(alone.label[0], whole.label[i])
        assert torch.equal(alone.valid[0], whole.valid[i])


def test_labels_follow_geometric_operations_and_stay_under_photometric_ones() -> None:
    image = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = Batch.of(image, (image[:, 0] > 0.5).long())
    keys = Keys(0, batch.chips)
    for name in OPERATIONS:
        reach = {"rotate": 90.0}.get(name, 0.25)  # a quarter turn, 4 pixels: no interpolation
        moved = ImageOperation(name, reach)(batch, 1.0, keys)
        geometric = name.split("-")[0] in ("shear", "translate", "rotate")
        if geometric:
            assert not torch.equal(moved.label, batch.label)
        else:
            assert all(torch.equal(getattr(moved, p), getattr(batch, p)) for p in ("label", "seen", "valid"))
            assert not torch.equal(moved.image, batch.image)
        if name in ("rotate", "translate-x", "translate-y"):
            assert torch.equal((moved.image[:, 0] > 0.5)[moved.valid], moved.label[moved.valid] == 1)
            lost = 1 - moved.valid.float().mean()
            assert lost == (0.0 if name == "rotate" else 0.25)
        assert torch.equal(ImageOperation(name, reach)(batch, 0.0, keys).image, image)


def test_photometric_operations_are_blends() -> None:
    batch = lakes(4)
    factor = {name: ImageOperation(name, 0.5)(batch, 1.0, Keys(0, batch.chips)).image for name in OPERATIONS[:3]}
    at = batch.seen
    assert sorted({0.5, 1.5}) == sorted(
        {round(float(v), 4) for v in (factor["brightness"] / batch.image).movedim(1, -1)[at].flatten()[::97]}
    )
    for name, part in (("contrast", seen_mean(batch.image, at)), ("color", batch.image.mean(1, keepdim=True))):
        share = ((factor[name] - part) / (batch.image - part)).movedim(1, -1)[at].flatten()
        assert {round(float(v), 2) for v in share[share.isfinite()].quantile(torch.tensor([0.1, 0.9]))} <= {0.5, 1.5}


def test_augmix_of_operations_that_change_nothing_is_plain_training() -> None:
    model, batch = linear_model(6), lakes()
    none = AugMix(operations=(), weight=1000.0)
    assert torch.equal(none.mixture(linear_model().spec, batch, Keys(0, batch.chips)).image, batch.image)
    plain = Supervised()(model, batch, Keys(0, batch.chips))
    assert float(none(model, batch, Keys(0, batch.chips)).detach()) == pytest.approx(float(plain.detach()), abs=1e-6)
    mixed = AugMix().mixture(linear_model().spec, batch, Keys(0, batch.chips))
    assert torch.equal(mixed.image[~batch.seen[:, None].expand_as(mixed.image)], batch.image[~batch.seen[:, None].expand_as(mixed.image)])  # fmt: skip
    assert AugMix()(model, batch, Keys(0, batch.chips)) > plain
    sure = torch.tensor([30.0, -30.0]).view(1, 2, 1, 1)
    assert float(jensen_shannon((sure, -sure))) == pytest.approx(np.log(2), abs=1e-5)
    with pytest.raises(UsageError, match="operations"):
        AugMix(operations=("rotate",))


def test_the_region_is_where_the_gradient_is_largest() -> None:
    batch = lakes(3)
    gradient = torch.rand(batch.seen.shape, generator=torch.Generator().manual_seed(1))
    region = sensitive_region(gradient, batch.seen, 0.2, 1.5)
    for i in range(3):
        smooth, at = torch.from_numpy(gaussian_filter(gradient[i].double().numpy(), 1.5)), batch.seen[i]
        assert int(region[i].sum()) == round(0.2 * int(at.sum())) and not (region[i] & ~at).any()
        assert smooth[region[i]].min() >= smooth[at & ~region[i]].max()


@pytest.mark.parametrize("change", ["occlusion", "noise", "warp"])
def test_pixels_outside_the_sensitive_region_stay(change: str) -> None:
    model, batch = linear_model(6), lakes(8)
    objective = GradientSensitiveAugmentation(changes=(change,), share=0.1, smooth_px=0.0)
    out = objective.changed(model, batch, Keys(1, batch.chips))
    odds = model.weight[1] - model.weight[0]
    p = model(batch.image).softmax(1)[:, 1].detach()
    closed = (
        (p - batch.label.clamp(0, 1)).abs() * odds.abs().sum() * batch.valid / batch.valid.sum((1, 2))[:, None, None]
    )
    region = sensitive_region(closed.detach(), batch.seen, 0.1, 0.0)
    changed = (out.image != batch.image).any(1)
    assert changed.any() and not (changed & ~region).any()
    touched = changed.flatten(1).any(1)
    assert 0 < int(touched.sum()) < 8, "some chips draw no change"
    for plane in ("label", "seen", "valid"):
        assert torch.equal(getattr(out, plane)[~region], getattr(batch, plane)[~region])
    if change == "occlusion":
        assert not out.valid[region & touched[:, None, None]].any()
    elif change == "noise":
        assert torch.equal(out.valid, batch.valid)
    else:
        assert not torch.equal(out.label, batch.label)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norms_keep_the_statistics_of_unchanged_images(momentum: float | None) -> None:
    model, plain, batch = make(), make(), lakes()
    keys = Keys(0, batch.chips)
    for part in (model, plain):
        part.train()
        for norm in batch_norms(part):
            norm.momentum = momentum
    objective = UniformAugmentation(("offset",))
    changed = objective.changed(model, batch, keys.fold(objective.name))  # type: ignore[arg-type]
    for _ in range(2):
        model.zero_grad()
        value = objective(model, batch, keys)  # type: ignore[arg-type]
        value.backward()
        plain(batch.image)
    assert [norm.momentum for norm in batch_norms(model)] == [momentum] * 6
    for (name, got), want in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(got, want), name
    want = Supervised()(plain, changed, keys)  # type: ignore[arg-type]
    want.backward()
    assert torch.equal(value, want)
    for got, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(got.grad, wanted.grad)  # type: ignore[arg-type]


def test_the_schedule_of_the_inner_objective_is_kept() -> None:
    batch, model = ground_batch(), linear_model()
    outer = UniformAugmentation(
        objective="fgsm", objective_settings={"threat": "linf 3% reflectance", "warmup": 0.5}, corruptions=("gain",)
    )
    early, late = (outer.at(progress)(model, batch, Keys(0, batch.chips)) for progress in (0.0, 1.0))
    assert early < late


def feed(epoch: int) -> list[Batch]:
    batches = []
    for index in range(4):
        part = lake_chips(CONTEXT, 4, 32)
        noise = 0.01 * torch.randn(part.image.shape, generator=torch.Generator().manual_seed(10 * epoch + index))
        names = tuple(f"{name}@{epoch}.{index}" for name in part.chips)
        batches.append(replace(part, image=part.image + noise, chips=names))
    return batches


QUICK = Training(epochs=2, steps_per_epoch=4, batch=4, patch=32, lr=1e-2, warmup=0.0, save_s=1e-9, tensorboard=False)


def test_a_resumed_training_keeps_the_plan_to_the_bit(tmp_path: Path) -> None:
    whole = fit(make(), SMALL, feed, None, QUICK, tmp_path / "whole")

    def stopping(epoch: int):
        for index, batch in enumerate(feed(epoch)):
            if (epoch, index) == (1, 1) and not (tmp_path / "cut/stopped").exists():
                (tmp_path / "cut/stopped").touch()
                interrupt_main(signal.SIGTERM)
            yield batch

    with pytest.raises(StoppedError):
        fit(make(), SMALL, stopping, None, QUICK, tmp_path / "cut")
    rest = fit(make(), SMALL, feed, None, QUICK, tmp_path / "cut")
    weights = (tmp_path / "whole/model.safetensors").read_bytes()
    assert (tmp_path / "cut/model.safetensors").read_bytes() == weights
    assert whole.rows[-1]["objective.passes"] == rest.rows[-1]["objective.passes"] > 20
    assert whole.rows[-1]["objective.cpu_s"] > 0
    fit(make(), replace(SMALL, clean_rounds=3), feed, None, QUICK, tmp_path / "later")
    assert (tmp_path / "later/model.safetensors").read_bytes() != weights, "the plan decides the weights"


def test_the_clock_of_the_plan() -> None:
    model, asked = make(), []

    def draw() -> list[Batch]:
        asked.append(1)
        return feed(0)

    state, states = {}, []
    for step in range(40):
        state = SMALL.revise(model, draw, step / 40, 0, state)
        states.append(state)
    assert len(asked) == 4 and [s["round"] for s in states[::10]] == [0, 1, 2, 3]
    assert states[0]["plan"] == {} and states[9] is states[0]
    first, second, third = states[10:40:10]
    assert [s["curve_round"] for s in (first, second, third)] == [1, 1, 3]
    # the clean pass; of 2 corruptions at most 3 for the curve and 2 for the ranks, as severity 1 is known; then ranks alone
    assert 1 + 2 * (1 + 2) <= first["passes"] <= 1 + 2 * (3 + 2)
    assert second["passes"] - first["passes"] == 1 + 2 * 3
    for name in SMALL.corruptions:
        assert {s for s, _ in first["plan"][name]} == {s for s, _ in second["plan"][name]}
        assert sum(w for _, w in third["plan"][name]) == pytest.approx(1.0)
    batch = feed(0)[0]
    clean = Supervised()(model, batch, Keys(0, batch.chips))
    assert torch.equal(SMALL.given(states[0])(model, batch, Keys(0, batch.chips)), clean), "clean rounds are clean"


def test_what_cannot_be_measured_is_refused_at_the_first_step() -> None:
    with pytest.raises(DataError, match="feature maps before its logits"):
        SMALL.revise(linear_model(6), lambda: feed(0), 0.0, 0, {})
    with pytest.raises(UsageError, match="unknown name 'fog'"):
        replace(SMALL, corruptions=("fog",)).revise(make(), lambda: feed(0), 0.0, 0, {})


def test_an_inner_attack_has_its_settings() -> None:
    inner = {"attack": "pgd", "attack_settings": {"steps": 2}}
    made = build("objective", "uniform-augmentation", {"objective": "adversarial", "objective_settings": inner})
    assert made.inner._attack.steps == 2


def test_settings_out_of_range_are_refused() -> None:
    for settings, word in (
        ({"clean_rounds": 20}, "clean_rounds"),
        ({"sample": 1}, "sample"),
        ({"levels": 0}, "levels"),
    ):
        with pytest.raises(UsageError, match=word):
            SensitivityAugmentation(**settings)
    with pytest.raises(UsageError, match="magnitude"):
        RandAugment(magnitude=31)
    with pytest.raises(UsageError, match="trivial-augment"):
        build("objective", "trivial-augment", {"draws": 0})
    for outer in ("clustered-weights", "uniform-augmentation"):  # its measurements would never be asked for
        with pytest.raises(UsageError, match="make it the outer one"):
            build("objective", outer, {"objective": "sensitivity-augmentation"})
    with pytest.raises(UsageError, match="unknown name 'fog'"):
        UniformAugmentation(corruptions=("fog",)).changed(make(), lakes(), Keys(0, lakes().chips))
    with pytest.raises(UsageError, match="speckle"):
        UniformAugmentation(corruptions=("speckle",)).changed(make(), lakes(), Keys(0, lakes().chips))
    assert corrupt_each(lakes(), [()] * 6, Keys(0, lakes().chips)).image.equal(lakes().image)

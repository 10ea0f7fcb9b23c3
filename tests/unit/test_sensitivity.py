"""Sensitivity curves: the kernel distance by closed forms, severities of equal harm, and what a measurement costs."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seawall.api import sensitivity
from seawall.chip_context import ChipContext
from seawall.corruptions.build import parse_corruption
from seawall.data.index import ChipHeader
from seawall.data.writer import ChipWriter
from seawall.defenses.equal_harm import equal_harm_severities, invert_curve, rank_weights
from seawall.defenses.kernel_distance import kernel_distance
from seawall.defenses.sensitivity import SensitivityPoint, SensitivityProbe, severe_first
from seawall.errors import DataError, UsageError
from seawall.models.unet import UNet
from seawall.models.weights import save_model
from seawall.pipeline import sensitivity as pipeline
from seawall.pipeline.run import run_recipe
from seawall.poisoning.detection import activations
from seawall.recipe.recipe import make_recipe
from seawall.report.page import write_report
from seawall.result import no_progress
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.types import Batch, ModelSpec

DRAW = np.random.default_rng(0)
CONTEXT = ChipContext(10.0, ("B02", "B03"), "reflectance", ("land", "water"))


def test_the_distance_is_the_sum_that_its_definition_says() -> None:
    x, y = DRAW.normal(size=(3, 2)), DRAW.normal(size=(4, 2))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(p * q for p, q in zip(a, b, strict=True)) / 2 + 1) ** 3)

    within = [
        sum(k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    between = sum(k(a, b) for a in x for b in y) / 12
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * between, rel=1e-12)
    off = sum(k(x[i], y[j]) for i in range(3) for j in range(3) if i != j) / 6
    within[1] = sum(k(y[i], y[j]) for i in range(3) for j in range(3) if i != j) / 6
    assert kernel_distance(x, y[:3], paired=True) == pytest.approx(sum(within) - 2 * off, rel=1e-12)


def test_equal_sets_are_exactly_0_apart_in_pairs_and_too_close_without() -> None:
    x = DRAW.normal(size=(7, 5))
    assert kernel_distance(x, x.copy(), paired=True) == 0.0
    assert kernel_distance(x, x.copy()) < -0.1, "pairs depend on each other, which is a bias"


def test_over_all_splits_of_a_set_the_distance_is_0_on_average() -> None:
    pool = DRAW.normal(size=(6, 3))
    splits = list(itertools.combinations(range(6), 3))
    found = [kernel_distance(pool[list(s)], pool[[i for i in range(6) if i not in s]]) for s in splits]
    assert np.mean(found) == pytest.approx(0.0, abs=1e-12)
    assert np.abs(found).max() > 0.1


def test_between_two_gaussians_it_is_the_sum_over_their_moments() -> None:
    shift, scale = 0.7, 1.5
    moments = [(1.0, 0.0, 1.0, 0.0), (1.0, shift, scale**2 + shift**2, shift**3 + 3 * shift * scale**2)]
    want = sum(math.comb(3, j) * (moments[0][j] - moments[1][j]) ** 2 for j in range(4))
    draw = np.random.default_rng(1)
    found = [
        kernel_distance(draw.normal(size=(6, 1)), draw.normal(shift, scale, size=(6, 1)))  # few: a bias would show
        for _ in range(20000)
    ]
    assert np.mean(found) == pytest.approx(want, abs=4 * np.std(found) / math.sqrt(len(found)))


def test_sets_that_have_no_distance_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2"):
        kernel_distance(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(DataError, match="expected pairs"):
        kernel_distance(np.zeros((2, 2)), np.zeros((3, 2)), paired=True)


@pytest.mark.parametrize(
    ("harm", "inverse"),
    [
        (lambda s: 7 * s, lambda h: h),
        (lambda s: s**2, math.sqrt),
        (lambda s: 0.01 * math.sin(math.pi / 2 * s), lambda h: math.asin(h) / (math.pi / 2)),
        (lambda s: math.expm1(6 * s), lambda h: math.log1p(h * math.expm1(6)) / 6),
    ],
)
def test_severities_are_those_of_equally_spaced_harm(harm, inverse) -> None:
    asked: list[float] = []

    def spy(severity: float) -> float:
        asked.append(severity)
        return harm(severity)

    measured, found = equal_harm_severities(spy, levels=5, tolerance=0.02, most=12)
    assert found == pytest.approx([inverse(k / 5) for k in range(1, 6)], abs=0.02)
    assert len(asked) == len(set(asked)) == len(measured) - 1 <= 12, "a severity was measured twice, or too many"
    assert [harm(s) / harm(1) for s in found] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=0.06)


def test_the_number_of_measurements_has_a_limit_and_none_is_in_vain() -> None:
    asked: list[float] = []
    equal_harm_severities(lambda s: (asked.append(s), float(s > 0.37))[1], most=2)
    assert len(asked) == 2
    asked.clear()
    assert equal_harm_severities(lambda s: (asked.append(s), s)[1], levels=1)[1] == (1.0,)
    assert asked == [1.0]


def test_curves_without_harm_and_curves_that_fall_again() -> None:
    assert equal_harm_severities(lambda s: -0.01 * s, levels=4)[1] == (0.25, 0.5, 0.75, 1.0)
    measured, found = equal_harm_severities(lambda s: 4.5 * s - 4 * s**2, levels=2, most=8)
    assert list(measured) == sorted(measured) and found[0] == pytest.approx(0.162, abs=0.05) and found[1] == 1.0
    step = invert_curve(np.array([0.0, 0.2, 0.6, 1.0]), np.array([0.0, 0.5, 0.5, 1.0]), np.array([0.5]))
    assert step == pytest.approx([0.2]), "the smallest severity of that harm"


def test_ranks_have_a_whole_distribution_the_most_harmful_first() -> None:
    for count in (1, 2, 5, 9):
        weights = rank_weights(count)
        assert sum(weights) == pytest.approx(1.0, abs=1e-12)
        assert list(weights) == sorted(weights, reverse=True)
        mean = sum(rank * weight for rank, weight in enumerate(weights))
        assert mean == pytest.approx((count - 1) * 0.75 / 1.75)
    points = [SensitivityPoint(s, s, 0.0, m) for s, m in ((0.2, 0.9), (0.5, 0.3), (0.8, 0.9), (1.0, 0.4))]
    assert [p.severity for p in severe_first(points)] == [0.5, 1.0, 0.8, 0.2]


def unet() -> nn.Module:
    torch.manual_seed(0)
    model = UNet(4, 2, "batch", 0.3)(ModelSpec(CONTEXT.bands, CONTEXT.classes, "reflectance", 10.0))
    model.standardize.fit([0.3, 0.3], [0.06, 0.06])
    return model


def test_a_curve_is_measured_on_the_encoder_and_its_passes_are_counted() -> None:
    model, batch = unet().train(), ground_batch(images=6, size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe = SensitivityProbe(model, [batch.select(range(4)), batch.select([4, 5])], seed=3)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    curve = probe.curve("gain", parse_corruption("haze", CONTEXT))
    assert len(calls) == 2 * (len(curve.points) - 1) and probe.passes == len(curve.points), (
        "the clean pass is the first"
    )
    assert curve.points[0].distance == 0.0 and curve.points[-1].level == 0.8 and curve.severities[-1] == 1.0
    assert curve.points[-1].distance > 0
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert probe.point(parse_corruption("gain", CONTEXT), 0.0).distance == 0.0
    ids, features = activations(
        model, probe.layer, [Batch(batch.image, batch.label, batch.seen, batch.seen, batch.chips)]
    )
    assert ids == batch.chips and probe.clean * probe.scale == pytest.approx(features, abs=1e-6)
    assert np.square(probe.clean).mean() == pytest.approx(1.0)
    assert probe.clean.shape == (6, 16), "the coarsest grid of a U-Net of width 4 and depth 2"


def test_features_may_come_from_elsewhere() -> None:
    batch, other = ground_batch(images=4, size=16), unet()
    probe = SensitivityProbe(linear_model(), [batch], 0, extractor=other)
    assert probe.features.endswith(f" of {type(other).__name__}")
    assert probe.point(parse_corruption("haze", CONTEXT), 1.0).distance > 0
    named = SensitivityProbe(other, [batch], 0, layer="network.down.0")
    assert named.features == "network.down.0 of the model itself"
    with pytest.raises(UsageError, match=r"unknown name .nowhere.; known: (\S+, ){7}\S+ and \d+ more$"):
        SensitivityProbe(other, [batch], 0, layer="nowhere")
    with pytest.raises(DataError, match="feature maps before its logits"):
        SensitivityProbe(linear_model(), [batch], 0)


def test_the_scale_of_a_network_means_nothing() -> None:
    haze, batch = parse_corruption("haze", CONTEXT), ground_batch(images=4, size=16)
    usual, louder = SensitivityProbe(unet(), [batch], 0), unet()
    layer = SensitivityProbe(louder, [batch], 0).layer
    layer.register_forward_hook(lambda module, given, out: 1000 * out)
    probe = SensitivityProbe(louder, [batch], 0)
    assert probe.scale == pytest.approx(1000 * usual.scale, rel=1e-4)
    assert probe.point(haze, 1.0).distance == pytest.approx(usual.point(haze, 1.0).distance, rel=1e-3)


def test_chips_without_seen_pixels_are_left_out() -> None:
    batch = ground_batch(images=3, size=16)
    seen = batch.seen.clone()
    seen[1:] = False
    with pytest.raises(DataError, match="two chips"):
        SensitivityProbe(unet(), [Batch(batch.image, batch.label, seen, seen, batch.chips)], 0)


def test_the_verb_shows_measured_and_chosen_severities_with_their_levels(tmp_path: Path) -> None:
    writer = ChipWriter(tmp_path / "chips", ChipHeader(CONTEXT.bands, "reflectance", CONTEXT.classes, 10.0))
    batch = ground_batch(images=5, size=16)
    for i in range(5):
        label = torch.where(batch.valid[i], batch.label[i], 255).numpy().astype(np.uint8)
        writer.write(f"chip{i}", f"place{i}", batch.image[i].numpy(), label)
    writer.finish()
    save_model(tmp_path / "net.safetensors", unet().eval())
    done = sensitivity(tmp_path / "net.safetensors", tmp_path / "chips", corruption=["haze", "gain worst=4"], levels=3)
    assert {row["corruption"] for row in done.table} == {"haze", "gain worst=4"}
    haze = [row for row in done.table if row["corruption"] == "haze"]
    assert [row["equal_harm"] for row in haze if row["equal_harm"]] == [1, 2, 3]
    assert all(row["level"] == pytest.approx(0.8 * row["severity"], abs=1e-4) for row in haze)
    assert haze[0]["of"] == "added aerosol optical depth at 550 nm"
    measured = [row for row in done.table if row["distance"] is not None]
    assert done.facts["passes"] == 1 + sum(row["severity"] > 0 for row in measured)
    assert "of the model itself" in str(done.facts["features"])
    with pytest.raises(UsageError, match="reflectance"):
        sensitivity(tmp_path / "net.safetensors", tmp_path / "chips", corruption=["speckle"])
    with pytest.raises(UsageError, match="levels and most from 1"):
        sensitivity(tmp_path / "net.safetensors", tmp_path / "chips", corruption=["haze"], levels=0)
    paged = sensitivity(tmp_path / "net.safetensors", tmp_path / "chips", corruption=["haze"], out=tmp_path / "out")
    page = Path(str(paged.facts["page"])).read_text()
    assert page.count("haze: distance up to") > 0 and "Sensitivity of net" in page and "of the model itself" in page
    curve = json.loads((tmp_path / "out/sensitivity.json").read_text())["net"]["curves"][0]
    assert [p["distance"] for p in curve["points"]] == [r["distance"] for r in paged.table if r["distance"] is not None]


RUN = {
    "name": "curves",
    "data": {"count": 8, "size": 64},
    "model": {"name": "unet", "settings": {"width": 4, "depth": 2}},
    "training": {"settings": {"epochs": 1, "steps_per_epoch": 2, "patch": 32, "tensorboard": False}},
    "sensitivity": {"corruptions": ["haze", "gain worst=4"], "levels": 3},
}


def test_a_run_measures_its_networks_once_and_its_report_has_the_curves(tmp_path: Path, monkeypatch) -> None:
    asked: list[str] = []
    measure = pipeline.network_sensitivity
    monkeypatch.setattr(
        pipeline,
        "network_sensitivity",
        lambda model, *more, **named: (asked.append(""), measure(model, *more, **named))[1],
    )
    done = run_recipe(make_recipe(RUN), tmp_path, device="cpu", resume=True, progress=no_progress)
    page = done.page.read_text()
    assert "Sensitivity of the features" in page and "gain worst=4: distance up to" in page and len(asked) == 1
    run_recipe(make_recipe(RUN), tmp_path, device="cpu", resume=True, progress=no_progress)
    assert len(asked) == 1 and done.page.read_text() == page, "measured again"
    other = {**RUN, "sensitivity": {"corruptions": ["clouds"]}}
    again = run_recipe(make_recipe(other), tmp_path, device="cpu", resume=True, progress=no_progress)
    assert again.page == done.page and len(asked) == 2 and "clouds: distance up to" in again.page.read_text()
    (done.page.parent / "sensitivity.json").write_text('{"unet": {"features": "x"}}')
    assert "sensitivity.json, unet: chips" in write_report(done.page.parent).read_text()
    wrong = {**RUN, "sensitivity": {"corruptions": ["speckle"]}}
    with pytest.raises(UsageError, match="reflectance"):
        run_recipe(make_recipe(wrong), tmp_path / "wrong", device="cpu", resume=True, progress=no_progress)
    assert not list((tmp_path / "wrong").rglob("*.safetensors")), "refused after the training"

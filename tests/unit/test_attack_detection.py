"""Attacked chips: the features of a map, detectors that saw clean chips alone, and an adversary who knows them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import seawall
from seawall.attacks.losses import signed_cross_entropy
from seawall.attacks.pgd import PGD
from seawall.attacks.target import AttackTarget
from seawall.attacks.uncertainty_losses import ConfidentWrong, UncertaintyWeighted, relative_entropy
from seawall.attacks.undetected import KeptEntropy, UndetectedPGD, mean_entropy
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.splits import record_split, split_chips
from seawall.data.writer import ChipWriter
from seawall.errors import UsageError
from seawall.evaluation.case import Case
from seawall.evaluation.detection import DetectorAware, HeldOutDetectors, measure_detection, read_chips
from seawall.geo.raster import read_raster
from seawall.metrics.ratios import ConfusionCounts
from seawall.models.linear import PixelClassifier
from seawall.models.weights import save_model, set_split
from seawall.rng import Keys
from seawall.testing.fixtures import ground_batch, linear_model
from seawall.threat.model import ThreatModel
from seawall.types import Batch, ModelSpec
from seawall.uncertainty.attack_detection import ALL_FEATURES, fit_attack_detector
from seawall.uncertainty.chip_features import (
    chip_features,
    feature_names,
    predict_with_gradients,
    predicted_borders,
)
from seawall.uncertainty.mahalanobis import fit_mahalanobis
from seawall.uncertainty.predictor import Prediction, Softmax, aggregate_passes
from seawall.uncertainty.tta import TTA

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def features_of(logits, image=None, seen=None):
    image = torch.rand(len(logits), 2, *logits.shape[2:]) if image is None else image
    seen = torch.ones(len(logits), 1, *logits.shape[2:], dtype=torch.bool) if seen is None else seen
    return dict(
        zip(
            feature_names(("land", "water"), False),
            chip_features(aggregate_passes([logits]), image, seen).T,
            strict=True,
        )
    )


def test_features_by_their_definition():
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 9, 9) + torch.linspace(-6, 6, 9)[:, None] * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    seen = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    seen[0, 0, 3, 7] = seen[0, 0, 8, 1] = False
    image = torch.rand(1, 2, 9, 9)
    got = features_of(logits, image, seen)
    p = logits.double().softmax(1)
    entropy, guess, own = -(p * p.log()).sum(1), p.argmax(1), seen[:, 0]
    border = torch.zeros_like(own)
    for i in range(9):
        for j in range(9):
            around = (0, slice(max(0, i - 1), i + 2), slice(max(0, j - 1), j + 2))
            border[0, i, j] = bool(((guess[around] != guess[0, i, j]) & own[around]).any())
    assert torch.equal(border & own, predicted_borders(guess, own))
    wanted = {
        "entropy": entropy[own].mean(), "entropy at borders": entropy[own & border].mean(), "entropy inside": entropy[own & ~border].mean(),
        "variation": (1 - p.amax(1))[own].mean(), "margin": (2 * p.amax(1) - 1)[own].mean(),
        "confidence in water": p[:, 1][own & (guess == 1)].mean(),
    }  # fmt: skip
    for name, value in wanted.items():
        assert got[name][0] == pytest.approx(float(value), abs=1e-6), name
    inside = [
        image[0, band, i, j] - image[0, band, i - 1 : i + 2, j - 1 : j + 2].mean()
        for band in range(2) for i in range(1, 8) for j in range(1, 8) if bool(seen[0, 0, i - 1 : i + 2, j - 1 : j + 2].all())
    ]  # fmt: skip
    rest = torch.tensor(inside).view(2, -1)
    assert got["fine texture"][0] == pytest.approx(float(rest.square().mean(1).sqrt().log().mean()), abs=1e-5)


def test_unseen_pixels_have_no_part_and_what_a_chip_has_none_of_is_undefined():
    logits, image = torch.randn(2, 2, 16, 16), torch.rand(2, 2, 16, 16)
    seen = torch.rand(2, 1, 16, 16) > 0.05
    usual = chip_features(aggregate_passes([logits]), image, seen)
    wild = torch.where(seen, image, 99.0)
    assert torch.allclose(usual, chip_features(aggregate_passes([logits]), wild, seen), equal_nan=True)
    land = torch.stack([torch.full((1, 8, 8), 2.0), torch.zeros(1, 8, 8)], 1)
    got = features_of(land)
    assert all(bool(got[name].isnan()) for name in ("confidence in water", "entropy at borders"))
    assert bool(features_of(torch.randn(1, 2, 2, 2))["noise floor"].isnan())


def test_a_border_with_what_was_not_seen_is_none():
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 0, :, :4] = logits[:, 1, :, 4:] = 2.0
    seen = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    seen[..., :4] = True
    assert bool(features_of(logits, seen=seen)["entropy at borders"].isnan())
    seen[..., 4] = True
    assert not bool(features_of(logits, seen=seen)["entropy at borders"].isnan())


def test_noise_of_one_percent_raises_the_floor_of_a_smooth_chip():
    image = torch.full((1, 2, 32, 32), 0.2) + 0.001 * torch.randn(1, 2, 32, 32)
    noisy = image + 0.01 * torch.randn(1, 2, 32, 32).sign()
    logits = torch.randn(1, 2, 32, 32)
    assert float(features_of(logits, noisy)["noise floor"] - features_of(logits, image)["noise floor"]) > 1


def clean_features(groups=30, chips=3, seed=0):
    draw = np.random.default_rng(seed)
    return {f"g{i:02}": draw.normal() + 0.3 * draw.normal(size=(chips, 4)) for i in range(groups)}


def test_false_alarms_over_new_groups_are_as_promised_and_never_fitted_to_attacked_chips():
    flagged = []
    for seed in range(40):
        both = clean_features(60, seed=seed)
        names = ("a", "b", "c", "d")
        detector = fit_attack_detector({k: both[k] for k in sorted(both)[:30]}, names, ALL_FEATURES, 0.1)
        new = torch.from_numpy(np.concatenate([both[k] for k in sorted(both)[30:]]))
        flagged.append(detector.flags(detector.scores(new).numpy()).mean())
    assert 0.05 < np.mean(flagged) < 0.13


def test_a_detector_of_one_feature_is_its_deviation_either_way_and_an_undefined_one_is_no_alarm():
    clean = clean_features()
    detector = fit_attack_detector(clean, ("a", "b", "c", "d"), "b")
    rows = np.stack([rows[:, 1] for rows in clean.values()])
    mean, deviation = rows.mean(), rows.std()
    tested = torch.tensor([[0.0, mean + 9 * deviation, 0, 0], [0, mean - 9 * deviation, 0, 0], [9, np.nan, 9, 9]])
    scores = detector.scores(tested).numpy()
    assert scores[:2] == pytest.approx([9, 9], rel=1e-6) and scores[2] < 1e-6
    assert detector.flags(scores).tolist() == [True, True, False]
    edge = np.array([detector.cut, np.nextafter(detector.clean.max(), np.inf)])
    assert detector.flags(edge).tolist() == [False, True]
    with pytest.raises(UsageError, match="unknown feature 'e'"):
        fit_attack_detector(clean, ("a", "b", "c", "d"), "e")
    with pytest.raises(UsageError, match=r"at least 99 clean groups .* got 30, 69 too few"):
        fit_attack_detector(clean, ("a", "b", "c", "d"), "b", 0.01)


def test_each_group_counts_once_in_the_fit_and_undefined_entries_have_no_part_in_it():
    sizes = [1, 9] * 15
    draw = np.random.default_rng(0)
    clean = {f"g{i:02}": draw.normal(loc=size, size=(size, 1)) for i, size in enumerate(sizes)}
    center = fit_attack_detector(clean, ("a",), "a").distance.center
    assert center[0] == pytest.approx(np.mean([rows.mean() for rows in clean.values()]))
    rows = np.array([[1.0, np.nan], [3.0, 7.0], [5.0, 9.0]])
    found = fit_mahalanobis(rows)
    assert found.center.tolist() == [3.0, 8.0] and found.scale[1] == pytest.approx(1.0)
    assert bool((found.deviations(torch.tensor([[np.nan, 8.0]])) == 0).all())


def test_a_detector_examines_what_the_model_says_in_multiples_of_its_cut_off():
    batch, model = lakes(), network()
    clean = read_chips(model, [batch], {})
    detector = fit_attack_detector(clean.by_group(), clean.names)
    logits, ratio = detector.examine(model, batch.image, batch.image_seen)
    assert torch.allclose(logits, model(batch.image).log_softmax(1), atol=1e-5)
    assert np.array_equal(
        ratio.detach().numpy() > 1, detector.flags(detector.scores(torch.from_numpy(clean.features)).numpy())
    )
    assert torch.allclose(ratio, detector.scores(torch.from_numpy(clean.features)) / detector.cut, atol=1e-6)


@pytest.mark.parametrize("wrapper", [Softmax(), TTA()], ids=["softmax", "tta"])
def test_features_have_the_gradient_of_the_whole_predictor(wrapper):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1))

    class Net(nn.Module):
        spec, stride, reach = SPEC, 1, 1

        def __init__(self):
            super().__init__()
            self.body = body.double()

        def forward(self, image):
            return self.body(image)

    model = wrapper(Net())
    image = torch.rand(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    seen = torch.ones(1, 1, 8, 8, dtype=torch.bool)

    def entropy(x):
        found: Prediction = predict_with_gradients(model, x)
        return chip_features(found, x, seen)[0, [0, -1]].sum()

    (grad,) = torch.autograd.grad(entropy(image), image)
    step = torch.zeros_like(image)
    step[0, 1, 4, 4] = 1e-3
    slope = (entropy(image + step) - entropy(image - step)) / 2e-3
    assert grad[0, 1, 4, 4].item() == pytest.approx(slope.item(), rel=2e-2)


def test_an_undetected_attack_does_harm_and_stays_below_the_cut_off():
    model, batch = linear_model(), ground_batch(images=4, size=24)
    threat, keys = ThreatModel("linf", 0.05), Keys(0, batch.chips)
    reference = mean_entropy(model(batch.image), batch.image_seen).detach()
    for tolerance in (0.005, 0.05):
        adv = UndetectedPGD(tolerance=tolerance)(model, batch, threat, keys)
        logits, score = KeptEntropy(reference, tolerance).examine(model, adv, batch.image_seen)
        assert bool((score <= 1 + 1e-5).all()), "detected"
        wrong = ((logits.argmax(1) != batch.label) & batch.valid).sum()
        before = ((model(batch.image).argmax(1) != batch.label) & batch.valid).sum()
        assert int(wrong) > int(before) + 1000, (
            "harmless"
        )  # of 1244; a penalty alone stops at the border, where entropy is high: 43
    plain = PGD()(model, batch, threat, keys)
    _, score = KeptEntropy(reference, 0.005).examine(model, plain, batch.image_seen)
    assert bool((score > 1).all()), "the plain attack would pass too"


def test_where_everything_is_detected_the_clean_image_is_returned():
    class Strict:
        def examine(self, model, image, image_seen):
            return model(image), (image - batch.image).abs().flatten(1).amax(1) * 1e6

    model, batch = linear_model(), ground_batch()
    adv = UndetectedPGD(detector=Strict())(model, batch, ThreatModel("linf", 0.05), Keys(0, batch.chips))
    assert torch.equal(adv, batch.image)
    with pytest.raises(UsageError):
        UndetectedPGD(tolerance=0.0)


def pixel(own, other, label=0):
    logits = torch.tensor([own, other]).view(1, 2, 1, 1)
    return logits, AttackTarget(torch.full((1, 1, 1), label), torch.ones(1, 1, 1, dtype=torch.bool))


def test_the_weight_of_a_pixel_is_its_entropy_and_zero_where_it_is_confidently_wrong():
    for own, other, weight in ((0.0, 0.0, 1.0), (2.0, 0.0, None), (-8.0, 0.0, 0.0), (60.0, 0.0, 1e-3)):
        logits, target = pixel(own, other)
        wanted = float(relative_entropy(logits)) if weight is None else weight
        loss = UncertaintyWeighted()(logits, target)
        assert float(loss) == pytest.approx(wanted * float(signed_cross_entropy(logits, target)), rel=1e-5, abs=1e-9)


def test_confident_wrong_prefers_either_side_to_the_border():
    right, border, wrong = (float(ConfidentWrong()(*pixel(own, 0.0))) for own in (9.0, 0.0, -9.0))
    assert (
        border == pytest.approx(0.5 - 0.5, abs=1e-6)
        and wrong == pytest.approx(1, abs=0.01)
        and right == pytest.approx(0, abs=0.01)
    )
    assert float(ConfidentWrong(certainty=1.0)(*pixel(0.0, 0.0))) < float(
        ConfidentWrong(certainty=1.0)(*pixel(9.0, 0.0))
    )
    for wrong_setting in (lambda: ConfidentWrong(-1.0), lambda: UncertaintyWeighted(2.0)):
        with pytest.raises(UsageError):
            wrong_setting()


def lake(seed, size=32):
    draw = np.random.default_rng(seed)
    rows, cols = np.mgrid[:size, :size]
    water = np.hypot(rows - draw.integers(8, 24), cols - draw.integers(8, 24)) < 9
    image = np.where(water, np.array([0.08, 0.05])[:, None, None], np.array([0.06, 0.1])[:, None, None])
    return (image + draw.normal(0, 0.003, image.shape)).clip(0.001).astype(np.float32), water.astype(np.uint8)


def network():
    net = PixelClassifier()(SPEC)
    net.standardize.fit([0.0, 0.0], [1.0, 1.0])
    net.network.weight.data = torch.tensor([[-60.0, 70.0], [60.0, -70.0]])[:, :, None, None]
    net.network.bias.data = torch.tensor([0.3, -0.3])
    return net.eval()


def lakes(count=24):
    images, labels = zip(*(lake(i) for i in range(count)), strict=True)
    image, label = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)).long()
    return Batch.of(image, label, chips=[f"c{i}" for i in range(count)])


def test_a_detector_never_saw_the_group_that_it_judges():
    batch, model = lakes(), network()
    groups = {chip: f"g{i // 2}" for i, chip in enumerate(batch.chips)}
    clean = read_chips(model, [batch], groups)
    found = HeldOutDetectors.of(clean, None, ALL_FEATURES, 0.1)
    moved = replace(clean, features=clean.features + np.array([g == "g3" for g in clean.groups])[:, None] * 1e3)
    again = HeldOutDetectors.of(moved, None, ALL_FEATURES, 0.1)
    assert np.array_equal(found.detectors["g3"].clean, again.detectors["g3"].clean)
    assert not np.array_equal(found.detectors["g4"].clean, again.detectors["g4"].clean)
    assert again.flags(moved)[6:8].all()
    others = read_chips(model, [batch.select(range(4))], {chip: f"other {chip}" for chip in batch.chips})
    wider = HeldOutDetectors.of(clean, others, ALL_FEATURES, 0.1)
    assert len(wider.detectors["g3"].clean) == len(found.detectors["g3"].clean) + 4
    with pytest.raises(UsageError, match="got 11, 8 too few"):
        HeldOutDetectors.of(clean, None, ALL_FEATURES, 0.05)


def test_chips_without_a_label_are_neither_attacked_nor_counted(folder, tmp_path):
    writer = ChipWriter(tmp_path / "chips", ChipHeader(SPEC.bands, SPEC.unit, SPEC.classes, 10.0))
    for i in range(24):
        image, water = lake(100 + i)
        label = np.full_like(water, 255) if i < 10 else water
        writer.write(f"n{i}", f"n{i}", image, label, seen=np.ones((32, 32), bool), source=f"made {i}")
    writer.finish()
    asked = {"alarms": 0.1, "feature": ["entropy"], "adaptive": False}
    weights = folder.parent / "linear.safetensors"
    found = seawall.detect_attacks(weights, tmp_path / "chips", "linf 2% reflectance", **asked)
    assert found.table[0]["harmed"] == 1.0 and found.facts["groups"] == 14
    assert (
        found.facts["chips without a label"].startswith("10")
        and found.facts["clean groups that give the cut-off"] == 22
    )


def test_harm_is_a_twentieth_of_the_pixels_made_wrong_and_unnoticed_where_nothing_was_flagged():
    batch, model = lakes(), network()
    clean = read_chips(model, [batch], {})
    detectors = HeldOutDetectors.of(clean, None, ALL_FEATURES, 0.1)
    flagged = np.arange(24) >= 12
    wrong = np.tile([0, 40, 60, 500], 6)  # of 1000 pixels
    tables = np.array([[[0, 0], [n, 1000 - n]] for n in wrong])
    right = np.array([[[0, 0], [0, 1000]]] * 24)
    attacked = replace(clean, counts=ConfusionCounts.of(tables), features=clean.features + 1e3 * flagged[:, None])
    found = measure_detection(detectors, replace(clean, counts=ConfusionCounts.of(right)), attacked)
    quiet = ~detectors.flags(attacked)
    assert quiet[:12].sum() >= 9 and not quiet[12:].any()
    assert found.alarms.value[0] == pytest.approx(detectors.flags(clean).mean()) and found.alarms.value[0] < 0.3
    assert found.detected.value[0] == pytest.approx((~quiet).mean())
    assert found.success == 0.5 and found.unnoticed == (quiet & (wrong >= 60)).mean()


def test_plain_attacks_on_smooth_lakes_are_noticed_and_those_that_know_the_detector_are_not():
    batch, model = lakes(), network()
    threat = ThreatModel("linf", 0.02, low=0.0)
    clean = read_chips(model, [batch], {})
    detectors = HeldOutDetectors.of(clean, None, ALL_FEATURES, 0.05)
    plain = measure_detection(detectors, clean, read_chips(model, [batch], {}, Case("pgd", PGD(), threat)))
    aware = Case("aware", DetectorAware(detectors.detectors, {}), threat)
    unnoticed = measure_detection(detectors, clean, read_chips(model, [batch], {}, aware))
    assert plain.auroc.value[0] > 0.95 and plain.detected.value[0] > 0.9 and plain.success == 1.0
    assert plain.unnoticed <= 0.1 < plain.success
    # of a chip that is an alarm as it is, the attack finds no image that passes
    assert unnoticed.detected.value[0] <= unnoticed.alarms.value[0] + 1e-9


@pytest.mark.parametrize("feature", ["entropy", "noise floor"])
def test_an_attack_that_knows_a_detector_of_one_feature_does_harm_without_it(feature):
    batch, model = lakes(), network()
    clean = read_chips(model, [batch], {})
    detectors = HeldOutDetectors.of(clean, None, feature, 0.05)
    case = Case("aware", DetectorAware(detectors.detectors, {}), ThreatModel("linf", 0.02, low=0.0))
    found = measure_detection(detectors, clean, read_chips(model, [batch], {}, case))
    assert found.unnoticed > 0.9 and found.detected.value[0] <= found.alarms.value[0] + 1e-9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("detection") / "chips"
    writer = ChipWriter(root, ChipHeader(SPEC.bands, SPEC.unit, SPEC.classes, 10.0))
    for i in range(30):
        image, water = lake(i)
        writer.write(f"c{i}", f"g{i}", image, water, seen=np.ones((32, 32), bool), source=f"made {i}")
    writer.finish()
    net, chips = network(), ChipFolder.open(root)
    set_split(net, record_split(chips, split_chips(chips)))
    save_model(root.parent / "linear.safetensors", net)
    return root


def test_the_verb_prints_a_row_per_attack_and_detector_and_writes_flip_maps(folder, tmp_path):
    found = seawall.detect_attacks(
        folder.parent / "linear.safetensors",
        folder,
        "linf 2% reflectance",
        alarms=0.1,
        feature=["entropy"],
        flip_map=tmp_path / "flips",
    )
    assert [(row["attack"], row["detector"]) for row in found.table][:2] == [("pgd", ALL_FEATURES), ("pgd", "entropy")]
    assert {row["attack"] for row in found.table} == {
        "pgd", "pgd-confident-wrong", "pgd-uncertainty-weighted", "undetected-pgd by all features", "undetected-pgd by entropy",
    }  # fmt: skip
    assert (
        found.facts["clean groups that give the cut-off"] == 14
    )  # 9 held out and 6 of val, less the one that is judged
    aware = next(
        r for r in found.table if r["attack"] == "undetected-pgd by all features" and r["detector"] == ALL_FEATURES
    )
    assert aware["detected"] <= aware["false_alarms"]
    files = sorted((tmp_path / "flips").glob("*.tif"))
    assert len(files) == found.facts["groups"] == 9
    plane = read_raster(files[0]).data[0]
    assert bool((plane <= 0.02 + 1e-6).any()) and float(plane.min()) > 0
    few = seawall.detect_attacks(
        folder.parent / "linear.safetensors", folder, "linf 2% reflectance", alarms=0.1, adaptive=False
    )
    assert {row["attack"] for row in few.table} == {"pgd"}
    with pytest.raises(UsageError, match="got 14, 5 too few"):
        seawall.detect_attacks(folder.parent / "linear.safetensors", folder, "linf 2% reflectance")
    with pytest.raises(UsageError, match="expected a threat"):
        seawall.detect_attacks(folder.parent / "linear.safetensors", folder)

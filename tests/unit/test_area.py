"""Areas with intervals: published numbers, coverage over scenes, and what is missing said."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from scene_numbers import LAMBDAS, drawn_scenes, scene
from seawall.errors import DataError, UsageError
from seawall.uncertainty.area import (
    AreaCalibration,
    AreaEstimate,
    AreaSums,
    correct_share,
    describe_area,
    estimate_area,
    estimate_by_strata,
    stratified_shares,
)
from seawall.uncertainty.conformal import SceneWeights


def sums_of(one, factor=1.0):
    return AreaSums(*(factor * v for v in (one.mapped_km2, one.expected_km2, one.doubt_km2, one.valid_km2)))


def test_the_example_of_olofsson():
    """Olofsson et al. 2014, table 8: deforestation is 235 086 pixels of 0.09 ha, 21 158 ha with a margin of 6158 ha."""
    areas = np.array([200_000.0, 150_000, 3_200_000, 6_450_000])
    counts = np.array([[66.0, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
    share, error = stratified_shares(areas, counts)
    assert share[0] * areas.sum() == pytest.approx(235_086, abs=1)
    assert share[0] * areas.sum() * 0.09 == pytest.approx(21_158, abs=1)
    assert 1.96 * error[0] * areas.sum() * 0.09 == pytest.approx(6158, abs=1)


def test_water_of_two_strata_in_square_kilometers():
    """W = (.08, .92), 276 of 300 and 9 of 300 sampled pixels are water: .1012 with a standard error of .0092."""
    held_out = AreaCalibration(("one",), (276e-4,), (9e-4,), (24e-4,), (291e-4,), (0.0,), (0.0,), gsd_m=10.0)
    area, pixel_se, scene_se = estimate_by_strata(AreaSums(8.0, 8.0, 1.0, 100.0), held_out)
    assert area == pytest.approx(10.12) and pixel_se == pytest.approx(0.92, abs=0.005) and scene_se is None
    other = replace(held_out, gsd_m=20.0)  # a quarter of the pixels in the same areas
    assert estimate_by_strata(AreaSums(8.0, 8.0, 1.0, 100.0), other)[1] == pytest.approx(2 * pixel_se, rel=0.02)


@pytest.mark.parametrize(("true", "counted"), [(0.08, 0.092), (0.01, 0.029), (0.40, 0.38)])
def test_counting_pixels_is_undone(true, counted):
    assert true * 0.92 + (1 - true) * 0.02 == pytest.approx(counted, abs=5e-4)
    assert correct_share(true * 0.92 + (1 - true) * 0.02, 0.92, 0.02) == pytest.approx(true)
    assert correct_share(0.01, 0.92, 0.02) == 0.0 and correct_share(0.95, 0.92, 0.02) == 1.0
    assert correct_share(0.5, 0.3, 0.3) is None


def test_areas_of_scenes_that_share_their_errors():
    """Every scene misses a fifth of its water: the mapped area is short by that, and the corrected one is not."""
    scores = [scene(str(i), LAMBDAS, 1 - LAMBDAS, (4 * i, i, 0.0, 50.0, 4 * i, 0.5)) for i in range(1, 21)]
    found = estimate_area(AreaSums(8.0, 8.0, 0.5, 60.0), AreaCalibration.of_scores(scores, 10.0))
    assert found.corrected_km2 == pytest.approx(10.0) and found.mapped_km2 == 8.0
    omitted = sum(range(1, 21)) / (sum(range(1, 21)) + 1000)
    assert found.stratified_km2 == pytest.approx(8.0 + 52.0 * omitted)
    assert found.low_km2 < 8.0 < 10.0 < found.high_km2
    scale = [math.sqrt((0.5 + 0.002 * (50 + 5 * i)) * (50 + 5 * i)) for i in range(1, 21)]
    rank = np.sort([i / s for i, s in zip(range(1, 21), scale, strict=True)])[18]  # ceil(21 * 0.9) = 19
    assert found.high_km2 - 8.0 == pytest.approx(rank * math.sqrt((0.5 + 0.12) * 60))


def test_the_interval_holds_the_area_of_new_scenes_and_not_much_more_often():
    scores, n = drawn_scenes(300), 25
    for level in (0.8, 0.9):
        rng, held = np.random.default_rng(0), []
        for _ in range(1000):
            order = rng.permutation(len(scores))
            calibration = AreaCalibration.of_scores([scores[i] for i in order[:n]], 10.0)
            new = scores[order[n]]
            found = estimate_area(sums_of(new), calibration, level)
            held.append(found.low_km2 - 1e-9 <= new.true_km2 <= found.high_km2 + 1e-9)
        error = 3 * math.sqrt(level * (1 - level) / 1000)
        assert level - error <= np.mean(held) <= level + 1 / (n + 1) + error


def test_the_interval_stays_in_what_was_seen_and_grows_with_the_region():
    calibration = AreaCalibration.of_scores(drawn_scenes(40), 10.0)
    small, large = (estimate_area(AreaSums(5 * f, 5 * f, f, 10 * f), calibration) for f in (1.0, 10.0))
    assert large.high_km2 == pytest.approx(10 * small.high_km2) and large.low_km2 == pytest.approx(10 * small.low_km2)
    dry = estimate_area(AreaSums(0.0, 0.0, 0.0, 10.0), calibration)
    assert dry.low_km2 == 0.0 < dry.high_km2  # that nothing is mapped does not say that nothing is there
    full = estimate_area(AreaSums(10.0, 10.0, 2.0, 10.0), calibration)
    assert full.low_km2 < 10.0 == full.high_km2
    unseen = estimate_area(AreaSums(0.0, 0.0, 0.0, 0.0), calibration)
    assert unseen.high_km2 is None and unseen.reason == "nothing was seen"


def test_too_few_scenes_give_areas_and_the_reason():
    scores = drawn_scenes(9)
    assert estimate_area(sums_of(scores[0]), AreaCalibration.of_scores(scores, 10.0)).low_km2 is not None
    found = estimate_area(sums_of(scores[0]), AreaCalibration.of_scores(scores[:8], 10.0))
    assert found.low_km2 is None and found.high_km2 is None and found.corrected_km2 is not None
    assert (found.scenes, found.needed) == (8, 9)
    assert found.reason == "8 held-out scenes, 1 fewer than the 9 that an interval of 90% needs"
    none = estimate_area(sums_of(scores[0]), None)
    assert none.low_km2 is None and none.corrected_km2 is None and "without held-out scenes" in none.reason
    with pytest.raises(UsageError, match="level"):
        estimate_area(sums_of(scores[0]), None, 1.0)


def test_scenes_of_one_class_are_no_calibration():
    dry = [scene(str(i), None, 1 - LAMBDAS, (0.0, 0.0, 0.1, 9.9, 0.1, 0.1)) for i in range(20)]
    with pytest.raises(DataError, match="with and without the class, got 0 km2 of it and 200 km2"):
        AreaCalibration.of_scores(dry, 10.0)
    with pytest.raises(DataError, match="with and without the class"):
        AreaCalibration.of_scores([], 10.0)


def test_weights_count_scenes_several_times():
    scores = drawn_scenes(30)
    sums = AreaSums(5.0, 5.0, 1.0, 20.0)
    weights = SceneWeights((2.0,) * 10 + (1.0,) * 20, 1.0)
    weighted = estimate_area(sums, AreaCalibration.of_scores(scores, 10.0, weights))
    twice = estimate_area(sums, AreaCalibration.of_scores([*scores, *scores[:10]], 10.0))
    for name in ("low_km2", "high_km2", "corrected_km2", "stratified_km2"):
        assert getattr(weighted, name) == pytest.approx(getattr(twice, name))
    with pytest.raises(UsageError, match="one per scene"):
        AreaCalibration.of_scores(scores, 10.0, SceneWeights((1.0,), 1.0))


def test_resampled_scenes_say_more_than_pixels():
    """Scenes are wrong as wholes: the error by pixels is that of a hundred thousand independent ones, and far too small."""
    calibration = AreaCalibration.of_scores(drawn_scenes(40), 10.0)
    found = estimate_area(AreaSums(40.0, 40.0, 4.0, 100.0), calibration)
    means = []
    for seed in range(200):
        drawn = AreaCalibration.of_scores(drawn_scenes(40, seed), 10.0)
        means.append(estimate_area(AreaSums(40.0, 40.0, 4.0, 100.0), drawn).stratified_km2)
    assert found.scene_se_km2 == pytest.approx(np.std(means), rel=0.3)
    assert found.pixel_se_km2 < found.scene_se_km2 / 10


def test_a_calibration_is_read_back_from_json():
    for weights in (None, SceneWeights((1.0, 2.0, 0.5), 2.0)):
        calibration = AreaCalibration.of_scores(drawn_scenes(3), 30.0, weights)
        assert AreaCalibration.of(json.loads(json.dumps(calibration.plain()))) == calibration
    plain = calibration.plain()
    for wrong in (
        {**plain, "hits_km2": [1.0]},
        {**plain, "hits_km2": ["a", "b", "c"]},
        {"scenes": []},
        {**plain, "more": 1},
    ):
        with pytest.raises(DataError, match="area: expected"):
            AreaCalibration.of(wrong)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (AreaEstimate(12.41, 11.09, 13.62, 0.9, ""), "12.4 km2 of water, 90 % interval 11.1 to 13.6"),
        (AreaEstimate(1234.6, 1100.2, 1302.0, 0.8, ""), "1235 km2 of water, 80 % interval 1100 to 1302"),
        (AreaEstimate(0.0, 0.0, 0.0123, 0.9, ""), "0.0000 km2 of water, 90 % interval 0.0000 to 0.0123"),
        (AreaEstimate(0.0, None, None, 0.9, "none held out"), "0.0 km2 of water, without an interval (none held out)"),
    ],
)
def test_the_sentence(estimate, text):
    assert describe_area(estimate, "water") == text
    assert describe_area(estimate, "water", 0.8).startswith(text) and describe_area(estimate, "water", 0.8).endswith(
        "km2 cannot be told"
    )

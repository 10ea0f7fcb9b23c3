"""Agreement between two label sources, counted by hand."""

import math

import numpy as np
import pytest

from seawall.errors import DataError, UsageError
from seawall.labels.agreement import compare_masks, disagreement_map, shore_distances, shoreline, trust_table
from seawall.labels.registration import label_shift, positional_error


def half(cols, size=10):
    mask = np.zeros((size, size), bool)
    mask[:, :cols] = True
    return mask


def test_counts_shares_and_areas():
    found = compare_masks(half(4), half(6), gsd_m=10.0)
    assert (found.both, found.only_a, found.only_b, found.neither) == (40, 0, 20, 40)
    assert found.agreement == 0.8
    assert found.iou == pytest.approx(2 / 3)
    # chance: 0.4 x 0.6 + 0.6 x 0.4 = 0.48
    assert found.kappa == pytest.approx((0.8 - 0.48) / 0.52)
    assert (found.a_km2, found.b_km2) == (pytest.approx(0.004), pytest.approx(0.006))
    assert found.difference_km2 == pytest.approx(0.002)
    assert (found.distance_m, found.distance_p95_m) == (20.0, 20.0)
    assert found.row()["iou"] == found.iou


def test_areas_of_pixels_that_are_not_square():
    found = compare_masks(half(4), half(6), gsd_m=(30.0, 10.0), pixel_area_m2=299.0)
    assert found.a_km2 == pytest.approx(40 * 299e-6)
    assert found.distance_m == 20.0
    upright = compare_masks(half(4).T, half(6).T, gsd_m=(30.0, 10.0))
    assert upright.distance_m == 60.0
    assert upright.a_km2 == pytest.approx(40 * 300e-6)


def test_the_95th_percentile_tells_a_local_bay_from_a_shift():
    a, b = half(4, 100), half(4, 100)
    b[50:53, 4:34] = True
    found = compare_masks(a, b, gsd_m=1.0)
    assert found.distance_m < 6
    assert found.distance_p95_m > 15
    both_ways = compare_masks(b, a, gsd_m=1.0)
    assert both_ways.distance_m == pytest.approx(found.distance_m)


def test_the_image_border_and_unknown_pixels_are_no_shoreline():
    assert not shoreline(np.ones((5, 5), bool), np.ones((5, 5), bool)).any()
    valid = np.ones((10, 10), bool)
    valid[:, 4] = False
    assert not shoreline(half(4), valid).any()
    assert shoreline(half(4), ~half(0)).sum() == 10


def test_invalid_pixels_mean_nothing():
    valid = np.ones((10, 10), bool)
    valid[:5] = False
    a, b = half(4), half(6)
    first = compare_masks(a, b, valid, gsd_m=10.0)
    a[:5] = ~a[:5]
    b[:3] = False
    assert compare_masks(a, b, valid, gsd_m=10.0) == first
    assert first.pixels == 50
    assert trust_table(half(4), half(6), valid, gsd_m=10.0) == trust_table(a, b, valid, gsd_m=10.0)


def test_empty_masks_are_defined():
    dry, known = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    found = compare_masks(dry, dry, gsd_m=10.0)
    assert (found.agreement, found.iou, found.kappa) == (1.0, None, None)
    assert (found.distance_m, found.distance_p95_m, found.difference_km2) == (None, None, 0.0)
    one = compare_masks(dry, half(3, 6), gsd_m=10.0)
    assert (one.iou, one.kappa, one.distance_m) == (0.0, 0.0, None)
    none = compare_masks(dry, dry, known, gsd_m=10.0)
    assert (none.pixels, none.agreement, none.iou, none.kappa) == (0, None, None, None)
    assert shore_distances(dry, half(3, 6), ~known, gsd_m=1.0).size == 0


def test_the_map_of_disagreement():
    a = np.array([[True, True, False, False, True]])
    b = np.array([[True, False, True, False, True]])
    valid = np.array([[True, True, True, True, False]])
    found = disagreement_map(a, b, valid)
    assert found.dtype == np.uint8
    assert found.tolist() == [[1, 2, 3, 0, 255]]


def test_trust_by_distance_to_the_shoreline():
    a, b = half(10, 40), half(12, 40)
    b[20:22, 34:36] = True  # a pond that the first source misses
    rows = trust_table(a, b, gsd_m=10.0, edges_m=(0, 50, 100, math.inf))
    assert sum(row.pixels for row in rows) == 1600
    assert rows[0].only_b_km2 == pytest.approx((80 + 4) * 1e-4)
    assert [row.only_a_km2 for row in rows] == [0, 0, 0]
    assert rows[2].agreement == 1.0
    judged = trust_table(a, b, gsd_m=10.0, edges_m=(0, 15, math.inf), reference=a)
    # within 15 m of the reference's shoreline lie one right and one wrong column; the other wrong one is beyond
    assert judged[0].a_right == 1.0
    assert judged[0].b_right == pytest.approx(0.5)
    assert judged[0].better == "a"
    assert judged[1].b_right == pytest.approx(1 - 44 / 1520)


def test_trust_without_a_shoreline():
    dry = np.zeros((4, 4), bool)
    rows = trust_table(dry, dry, gsd_m=10.0)
    assert [row.pixels for row in rows[:-1]] == [0] * (len(rows) - 1)
    assert (rows[-1].pixels, rows[-1].agreement, rows[-1].better) == (16, 1.0, "either")
    assert (rows[0].agreement, rows[0].better) == (None, "unknown")


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="one grid"):
        compare_masks(half(3), half(3, 9), gsd_m=10.0)
    with pytest.raises(DataError, match="bool"):
        disagreement_map(half(3).astype(np.uint8), half(3))
    with pytest.raises(UsageError, match="side of a pixel"):
        compare_masks(half(3), half(3), gsd_m=0.0)
    with pytest.raises(UsageError, match="area of a pixel"):
        compare_masks(half(3), half(3), gsd_m=1.0, pixel_area_m2=-1.0)
    with pytest.raises(UsageError, match="ascending"):
        trust_table(half(3), half(3), gsd_m=10.0, edges_m=(0, 50, 20))


def islands(seed=0, size=96):
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), bool)
    for _ in range(8):
        r, c, h, w = rng.integers(20, size - 30), rng.integers(20, size - 30), *rng.integers(4, 14, 2)
        mask[r : r + h, c : c + w] = True
    return mask


@pytest.mark.parametrize("step", [(0, 0), (3, 0), (0, -7), (-5, 6)])
def test_a_shifted_layer_is_found(step):
    water = islands()
    layer = np.roll(water, step, (0, 1))
    valid = np.random.default_rng(1).random(water.shape) > 0.2
    found = positional_error(layer, water, valid, gsd_m=10.0, reach_m=100.0)
    assert (found.rows, found.cols) == (-step[0], -step[1])
    assert found.iou_after == 1.0
    assert found.residual_m == 0.0
    assert found.shift_m == pytest.approx(10 * math.hypot(*step))
    assert not found.at_limit
    before = ((layer & water & valid).sum()) / ((layer | water) & valid).sum()
    assert found.iou_before == pytest.approx(before)


def test_a_shift_beyond_reach_says_so_and_empty_masks_have_none():
    water = islands()
    assert positional_error(np.roll(water, 9, 0), water, ~np.zeros_like(water), gsd_m=10.0, reach_m=50.0).at_limit
    dry = np.zeros_like(water)
    for layer, reference in ((dry, water), (water, dry), (dry, dry)):
        found = positional_error(layer, reference, np.ones_like(dry), gsd_m=10.0)
        assert (found.shift_m, found.residual_m) == (0.0, None)
    assert positional_error(dry, dry, np.ones_like(dry), gsd_m=10.0).iou_before is None
    with pytest.raises(DataError, match="one shape"):
        positional_error(dry, dry[1:], dry, gsd_m=10.0)
    with pytest.raises(UsageError, match="meters"):
        positional_error(dry, dry, dry, gsd_m=-1.0)


@pytest.mark.parametrize("step", [(0.0, 2.3), (-1.4, 0.0), (2.5, -3.75)])
def test_a_shift_by_fractions_of_a_pixel_is_found_along_each_axis(step):
    """Masks sampled at pixel centers from one of twenty times the resolution."""
    fine = np.zeros((1600, 1600), bool)
    rng = np.random.default_rng(3)
    rows, cols = np.mgrid[:1600, :1600]
    for _ in range(6):
        r, c, size = *rng.integers(350, 1250, 2), rng.integers(60, 200)
        fine |= (rows - r) ** 2 + (cols - c) ** 2 < size**2
    moved = np.roll(fine, [round(20 * s) for s in step], (0, 1))
    water, layer = fine[10::20, 10::20], moved[10::20, 10::20]
    found = positional_error(layer, water, np.ones_like(water), gsd_m=(20.0, 10.0), reach_m=100.0)
    assert found.rows_fine == pytest.approx(-step[0], abs=0.12)
    assert found.cols_fine == pytest.approx(-step[1], abs=0.12)
    assert found.shift_m == pytest.approx(math.hypot(20 * step[0], 10 * step[1]), abs=3)


def test_the_farthest_shift_is_in_meters_along_each_axis():
    water = islands()
    layer = np.roll(water, (6, 0), (0, 1))
    everywhere = np.ones_like(water)
    assert positional_error(layer, water, everywhere, gsd_m=(10.0, 30.0), reach_m=60.0).rows == -6
    assert positional_error(layer.T, water.T, everywhere, gsd_m=(30.0, 10.0), reach_m=60.0).cols == -6
    near = positional_error(layer, water, everywhere, gsd_m=(30.0, 10.0), reach_m=60.0)
    assert abs(near.rows) == 2 and near.at_limit


def test_a_label_fits_its_prediction_better_once_it_is_moved_back():
    guess = islands().astype(int)
    label = np.roll(guess, (3, -5), (0, 1))
    valid = np.random.default_rng(2).random(guess.shape) > 0.1
    everywhere = np.ones_like(valid)
    found = label_shift(label, guess, valid, everywhere, classes=(1,), reach=8)
    hit, either = ((label & guess) * valid).sum(), ((label | guess) * valid).sum()
    assert (found.rows, found.cols) == (-3, 5)
    assert found.gain == pytest.approx(1 - hit / either)
    near = label_shift(label, guess, valid, everywhere, classes=(1,), reach=2)
    assert (abs(near.rows), abs(near.cols)) == (2, 2) and near.gain < found.gain
    still = label_shift(guess, guess, valid, everywhere, classes=(1,), reach=8)
    assert (still.gain, still.rows, still.cols) == (0.0, 0, 0)
    assert label_shift(label * 0, guess * 0, valid, everywhere, classes=(1,), reach=8) is None
    # two classes, one of which is everywhere else: the mean of both
    both = label_shift(label, guess, valid, everywhere, classes=(0, 1), reach=8)
    rest = ((label == 0) & (guess == 0) & valid).sum() / (((label == 0) | (guess == 0)) & valid).sum()
    assert both.gain == pytest.approx((found.gain + 1 - rest) / 2)


def test_a_prediction_of_unseen_pixels_moves_no_label():
    guess, label = np.zeros((32, 32), int), np.zeros((32, 32), int)
    guess[10:14, 10:14] = label[10:14, 10:14] = 1
    label[:, 20:24] = 1  # a river that the prediction does not know
    known = np.ones((32, 32), bool)
    known[:, 24:] = False
    guess[:, 24:28] = 1  # and what it says where there is nothing to see
    there = label_shift(label, guess, known, np.ones_like(known), classes=(1,), reach=8)
    assert (there.rows, there.cols) == (0, 4) and there.gain > 0.5
    found = label_shift(label, guess, known, known, classes=(1,), reach=8)
    assert (found.gain, found.rows, found.cols) == (0.0, 0, 0)

"""Morphological attacks on masks small enough to count by hand."""

import math

import numpy as np
import pytest
import torch

from seawall.errors import DataError, UsageError
from seawall.label_noise.erode_dilate import Close, Dilate, Erode, Open, Thirds, assign_thirds, erosion_odds
from seawall.label_noise.label_difference import apply_noise
from seawall.label_noise.label_view import meters_to_pixels
from seawall.rng import Keys
from seawall.types import Batch


def square(size=9, side=5, chips=("a",), valid=None):
    label = torch.zeros(len(chips), size, size, dtype=torch.int64)
    low = (size - side) // 2
    label[:, low : low + side, low : low + side] = 1
    return Batch.of(torch.zeros(len(chips), 1, size, size), label, valid=valid, chips=chips)


def water(noise, batch, seed=0):
    return int((noise(batch, Keys(seed, batch.chips)).label == 1).sum())


def test_erosion_takes_whole_rings_while_they_fit():
    # 25 pixels of water in 81; its rings hold 16, 8 and 1 pixels
    assert water(Erode(budget=15 / 81), square()) == 25
    assert water(Erode(budget=0.2), square()) == 9
    assert water(Erode(budget=0.3), square()) == 1
    assert water(Erode(budget=0.4), square()) == 0


def test_dilation_never_returns_the_first_mask_beyond_the_budget():
    # the rings around it hold 24 and 32 pixels
    assert water(Dilate(budget=0.29), square()) == 25
    assert water(Dilate(budget=0.3), square()) == 49
    assert water(Dilate(budget=1.0), square()) == 81


def test_exact_mode_fills_the_budget_from_the_next_ring_only():
    batch = square()
    after = Erode(budget=20 / 81, exact=True)(batch, Keys(0, batch.chips)).label[0]
    assert int(after.sum()) == 5
    ring = torch.zeros(9, 9, dtype=torch.bool)
    ring[3:6, 3:6] = True
    assert bool((after[~ring] == 0).all())
    assert int(after[4, 4]) == 1
    assert water(Dilate(budget=0.25, exact=True), batch) == 25 + 20


def test_exact_mode_flips_as_many_as_there_are_and_says_so():
    batch = square()
    _, (done,) = apply_noise(Erode(budget=0.5, exact=True), batch, Keys(0, batch.chips))
    assert (done.changed, done.allowed, done.short) == (25, 40, 15)
    _, (met,) = apply_noise(Dilate(budget=0.5, exact=True), batch, Keys(0, batch.chips))
    assert (met.changed, met.short) == (40, 0)
    _, (moved,) = apply_noise(Dilate(budget=10, of="meters", gsd_m=10), batch, Keys(0, batch.chips))
    assert (moved.changed, moved.allowed, moved.short) == (24, None, None)


def test_a_share_of_the_class():
    assert water(Erode(budget=0.64, of="class"), square()) == 9
    assert water(Erode(budget=0.2, of="class", exact=True), square()) == 20
    assert water(Erode(budget=1.0, of="class", exact=True), square()) == 0


def test_meters_of_shoreline():
    assert water(Dilate(budget=10, of="meters", gsd_m=10), square()) == 49
    assert water(Dilate(budget=19.9, of="meters", gsd_m=10), square()) == 49
    assert water(Dilate(budget=20, of="meters", gsd_m=10), square()) == 81
    assert water(Dilate(budget=0.3, of="meters", gsd_m=0.1, iterations=1), square()) == 49
    assert water(Dilate(budget=10, of="meters", gsd_m=10, kernel=5), square()) == 25
    assert water(Dilate(budget=20, of="meters", gsd_m=10, kernel=5), square()) == 81
    assert water(Dilate(budget=15, of="meters", gsd_m=10, exact=True), square()) == 49 + 16
    assert float(meters_to_pixels(25, 10.0)) == 2.5


def test_the_image_border_does_not_erode():
    label = torch.ones(1, 6, 6, dtype=torch.int64)
    label[:, :, 3:] = 0
    batch = Batch.of(torch.zeros(1, 1, 6, 6), label)
    after = Erode(budget=6 / 36)(batch, Keys(0, batch.chips)).label[0]
    assert after[:, :2].all()
    assert not after[:, 2:].any()


def test_pixels_without_a_label_stay_and_neither_erode_nor_dilate():
    valid = torch.ones(1, 9, 9, dtype=torch.bool)
    valid[:, :2] = False
    batch = square(valid=valid)
    batch.label[:, :2] = 7
    for noise in (Erode(budget=0.5), Dilate(budget=0.5)):
        after = noise(batch, Keys(0, batch.chips)).label[0]
        assert bool((after[:2] == 7).all())
    thin = Erode(budget=0.5, iterations=1)(batch, Keys(0, batch.chips)).label[0]
    assert thin[2].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert int(thin[2:].sum()) == 12


def test_opening_takes_a_spit_and_closing_fills_a_strait():
    label = torch.zeros(1, 9, 9, dtype=torch.int64)
    label[:, 2:7, 2:5] = 1
    label[:, 4, 5:8] = 1
    batch = Batch.of(torch.zeros(1, 1, 9, 9), label)
    opened = Open(budget=0.5, iterations=1)(batch, Keys(0, batch.chips)).label[0]
    assert int(label.sum() - opened.sum()) == 3
    assert not opened[4, 5:].any()
    strait = 1 - torch.nn.functional.pad(torch.ones(1, 9, 1, dtype=torch.int64), (4, 4))
    wet = Batch.of(torch.zeros(1, 1, 9, 9), strait)
    assert Close(budget=0.5)(wet, Keys(0, wet.chips)).label.all()
    assert torch.equal(Close(budget=0.1)(wet, Keys(0, wet.chips)).label, strait)
    assert int(Close(budget=0.1, exact=True)(wet, Keys(0, wet.chips)).label.sum()) == 72 + 8


@pytest.mark.parametrize("make", [Erode, Dilate, Open, Close])
@pytest.mark.parametrize("fill", [0, 1])
def test_empty_and_full_masks_stay_and_end_at_once(make, fill):
    label = torch.full((1, 512, 512), fill)
    batch = Batch.of(torch.zeros(1, 1, 512, 512), label)
    assert torch.equal(make(budget=1.0, exact=True)(batch, Keys(0, batch.chips)).label, label)


def test_three_classes_fill_from_the_nearest_other():
    label = torch.zeros(1, 7, 9, dtype=torch.int64)
    label[:, :, 3:6] = 1
    label[:, :, 6:] = 2
    batch = Batch.of(torch.zeros(1, 1, 7, 9), label)
    after = Erode(budget=14 / 63)(batch, Keys(0, batch.chips)).label[0]
    assert after[0].tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2]
    grown = Dilate(budget=14 / 63, exact=True)(batch, Keys(0, batch.chips)).label[0]
    assert grown[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2]
    other = Erode(budget=7 / 63, klass=2)(batch, Keys(0, batch.chips)).label[0]
    assert other[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_kernels_are_drawn_with_the_reports_odds():
    assert erosion_odds(0.41) == (0.15, 0.15, 0.70)
    assert erosion_odds(0.2) == (0.70, 0.15, 0.15)
    assert Dilate(0.1).odds(0.41) == (0.70, 0.15, 0.15)
    assert Dilate(0.1).odds(0.3) == (0.15, 0.70, 0.15)
    chips = tuple(f"c{i}" for i in range(600))
    batch = square(size=21, side=15, chips=chips)  # water share 0.51
    after = Erode(budget=1.0, iterations=1, kernel="srip")(batch, Keys(3, chips)).label
    left = torch.bincount((after == 1).sum((1, 2)).sqrt().long(), minlength=16)
    assert left[[13, 11, 9]].sum() == 600
    assert left[9] / 600 == pytest.approx(0.70, abs=0.06)
    assert left[13] / 600 == pytest.approx(0.15, abs=0.05)


def test_chips_do_not_see_each_other():
    batch = square(chips=("a", "b", "c"))
    noise = Dilate(budget=0.1, exact=True)
    whole = noise(batch, Keys(5, batch.chips)).label
    assert not torch.equal(whole[0], whole[1])
    for i in range(3):
        alone = noise(batch.select([i]), Keys(5, (batch.chips[i],))).label[0]
        assert torch.equal(alone, whole[i])
    back = noise(batch.select([2, 1, 0]), Keys(5, ("c", "b", "a"))).label
    assert torch.equal(back.flip(0), whole)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"budget": 1.01}, "at most 1"),
        ({"budget": -0.1}, "0 up"),
        ({"budget": math.nan}, "0 up"),
        ({"budget": 5.0, "of": "meters"}, "gsd_m=10"),
        ({"budget": 5.0, "of": "meters", "gsd_m": 0.0}, "above 0"),
        ({"gsd_m": 10.0}, "leave it out"),
        ({"of": "water"}, "'class'"),
        ({"kernel": 4}, "odd"),
        ({"kernel": 1}, "odd"),
        ({"kernel": "report"}, "srip"),
        ({"iterations": 101}, "1 to 100"),
        ({"klass": -1}, "from 0 up"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(UsageError, match=says):
        Erode(**{"budget": 0.1, **settings})


def test_keys_must_name_the_chips():
    batch = square(chips=("a", "b"))
    with pytest.raises(UsageError, match="2 keys"):
        Erode(0.1)(batch, Keys(0, ("a",)))


def test_thirds_in_file_order_and_by_key():
    ids = [f"c{i}" for i in range(11)]
    parts = assign_thirds(ids)
    assert list(parts.values()) == ["erode"] * 4 + ["dilate"] * 4 + ["untouched"] * 3
    drawn = assign_thirds(ids, seed=1)
    assert sorted(drawn.values()) == sorted(parts.values())
    assert drawn == assign_thirds(ids[::-1], seed=1)
    assert drawn != assign_thirds(ids, seed=2)
    with pytest.raises(DataError, match="'c1' twice"):
        assign_thirds(["c0", "c1", "c1"])


def test_thirds_treat_each_chip_as_its_part_says():
    chips = ("a", "b", "c")
    batch = square(size=21, side=15, chips=chips)
    noise = Thirds(budget=0.3, kernel=3, parts=assign_thirds(chips))
    after = noise(batch, Keys(0, chips)).label
    assert (after[0] <= batch.label[0]).all() and not torch.equal(after[0], batch.label[0])
    assert (after[1] >= batch.label[1]).all() and not torch.equal(after[1], batch.label[1])
    assert torch.equal(after[2], batch.label[2])
    patches = square(size=21, side=15, chips=("a@0.1", "c@0.2"))
    cut = noise(patches, Keys(0, patches.chips)).label
    assert torch.equal(cut[0], after[0]) and torch.equal(cut[1], patches.label[1])
    with pytest.raises(DataError, match="'d'"):
        noise(square(chips=("d",)), Keys(0, ("d",)))
    with pytest.raises(UsageError, match="expected one of erode"):
        Thirds(0.1, parts={"a": "grow"})


def test_thirds_without_parts_draw_them_by_key():
    chips = tuple(f"c{i}" for i in range(300))
    batch = square(chips=chips)
    sizes = (Thirds(budget=0.3, kernel=3)(batch, Keys(0, chips)).label == 1).sum((1, 2)).numpy()
    assert np.allclose(np.bincount(sizes, minlength=50)[[1, 25, 49]] / 300, 1 / 3, atol=0.08)

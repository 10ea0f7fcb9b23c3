"""Erosion, dilation, opening and closing against OpenCV, borders included."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seawall.label_noise.erode_dilate import Close, Dilate, Erode, Open
from seawall.label_noise.label_view import LabelView
from seawall.label_noise.morphology import closings, dilations, distance_to, erosions, openings
from seawall.rng import Keys
from seawall.types import Batch

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))
KERNELS = st.sampled_from([3, 5, 7])
STEPS = {"erode": erosions, "dilate": dilations, "open": openings, "close": closings}


def chip_view(mask, valid=None):
    label = mask.astype(np.int64)
    return LabelView(label, np.ones_like(mask) if valid is None else valid, 1, Keys(0, ("a",)), 0)


def plain(name, mask, kernel, n):
    square = np.ones((kernel, kernel), np.uint8)
    plane = mask.astype(np.uint8)
    simple = {
        "erode": [cv2.erode],
        "dilate": [cv2.dilate],
        "open": [cv2.erode, cv2.dilate],
        "close": [cv2.dilate, cv2.erode],
    }
    for step in simple[name]:
        plane = step(plane, square, iterations=n)
    return plane > 0


@pytest.mark.parametrize("name", STEPS)
@given(mask=MASKS, kernel=KERNELS, n=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_n_iterations_are_opencvs(name, mask, kernel, n):
    if mask.all() or not mask.any():
        return
    chip = chip_view(mask)
    changed = np.zeros_like(mask)
    for i, reached in enumerate(STEPS[name](chip, kernel), 1):
        changed = reached
        if i == n:
            break
    assert np.array_equal(mask ^ changed, plain(name, mask, kernel, n))


@pytest.mark.parametrize(("name", "make"), [("erode", Erode), ("dilate", Dilate), ("open", Open), ("close", Close)])
@given(mask=MASKS, kernel=KERNELS, budget=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_budget_stops_where_counting_opencv_iterations_does(name, make, mask, kernel, budget):
    batch = Batch.of(torch.zeros(1, 1, *mask.shape), torch.from_numpy(mask.astype(np.int64))[None])
    found = make(budget=budget, kernel=kernel)(batch, Keys(0, batch.chips)).label[0].numpy() == 1
    expected = mask
    if mask.any() and not mask.all():
        for n in range(1, 101):
            next_mask = plain(name, mask, kernel, n)
            if (next_mask != mask).sum() > budget * mask.size:
                break
            expected = next_mask
    assert np.array_equal(found, expected)


@given(mask=MASKS, kernel=KERNELS, n=st.integers(1, 3), data=st.data())
@settings(max_examples=60, deadline=None)
def test_pixels_without_a_label_are_like_outside_the_image(mask, kernel, n, data):
    valid = data.draw(hnp.arrays(np.bool_, mask.shape))
    wet = mask & valid
    if not wet.any() or not (valid & ~mask).any():
        return
    square = np.ones((kernel, kernel), np.uint8)
    for name, fill, step in (("erode", wet | ~valid, cv2.erode), ("dilate", wet, cv2.dilate)):
        changed = np.zeros_like(mask)
        for i, reached in enumerate(STEPS[name](chip_view(mask, valid), kernel), 1):
            changed = reached
            if i == n:
                break
        expected = step(fill.astype(np.uint8), square, iterations=n) > 0
        assert np.array_equal((wet ^ changed) & valid, expected & valid)


@given(mask=MASKS)
@settings(max_examples=60, deadline=None)
def test_a_pixel_flips_at_its_chebyshev_distance(mask):
    if mask.all() or not mask.any():
        return
    rows, cols = np.nonzero(mask)
    at = np.indices(mask.shape).reshape(2, -1).T
    brute = np.maximum(abs(at[:, :1] - rows), abs(at[:, 1:] - cols)).min(1).reshape(mask.shape)
    assert np.array_equal(distance_to(mask), brute)
    for n, reached in enumerate(dilations(chip_view(mask), 3), 1):
        assert np.array_equal(reached, ~mask & (brute <= n))


@given(mask=MASKS, n=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_n_iterations_of_3x3_are_one_square(mask, n):
    for step in (cv2.erode, cv2.dilate):
        many = step(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=n)
        once = step(mask.astype(np.uint8), np.ones((2 * n + 1, 2 * n + 1), np.uint8))
        assert np.array_equal(many, once)
    if mask.any() and not mask.all():
        squares = [next(iter(dilations(chip_view(mask), 2 * n + 1)))]
        rings = [reached for _, reached in zip(range(n), dilations(chip_view(mask), 3), strict=False)]
        assert np.array_equal(squares[0], rings[-1])

"""Otsu by brute force and against scikit-image, and the stated fallback where there is one mode."""

import numpy as np
import pytest

from seawall.errors import UsageError
from seawall.labels.threshold import best_split, fixed, otsu

RNG = np.random.default_rng(3)


def modes(share: float, n: int = 20000, gap: float = 0.8, spread: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(7)
    water = rng.random(n) < share
    return (rng.normal(0, spread, n) - 0.4 + gap * water).astype(np.float32)


def everywhere(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape, bool)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_two_modes_are_split_in_the_gap(share):
    values = modes(share)
    found = otsu(values, everywhere(values))
    assert found.method == "otsu" and -0.2 < found.value < 0.2 and found.valley > 0.8
    assert found.water(values, everywhere(values)).mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_same_split_as_skimage(share):
    filters = pytest.importorskip("skimage.filters")
    values = np.clip(modes(share, spread=0.25), -1, 1)
    counts, edges = np.histogram(values.astype(np.float64), bins=256)
    first, last, _ = best_split(counts)
    centers = (edges[1:] + edges[:-1]) / 2
    assert filters.threshold_otsu(hist=(counts, centers)) == centers[first]
    half = (edges[1] - edges[0]) / 2
    ours = otsu(values, everywhere(values), valley=0, separability=0).value
    assert ours == pytest.approx(centers[first] + half + (last - first) * half, abs=1e-9)


def test_split_is_the_best_of_all_splits():
    for _ in range(20):
        counts = RNG.integers(0, 30, 12)
        counts[[0, 11]] += 1
        first, last, ratio = best_split(counts)
        at = np.repeat(np.arange(12), counts)
        within = [at[at <= k].var() * (at <= k).mean() + at[at > k].var() * (at > k).mean() for k in range(11)]
        assert within[first] == pytest.approx(min(within)) and within[last] == pytest.approx(min(within))
        assert ratio == pytest.approx(1 - min(within) / at.var())


def test_two_deltas_closed_form():
    values = np.array([-0.5] * 30 + [0.5] * 70, np.float32)
    found = otsu(values, everywhere(values))
    assert (
        found.method == "otsu" and found.separability == pytest.approx(1) and found.value == pytest.approx(0, abs=1e-6)
    )


@pytest.mark.parametrize(
    "values", [RNG.normal(0, 0.2, 20000), RNG.uniform(-1, 1, 20000), modes(0.005), RNG.exponential(0.1, 20000)]
)
def test_one_mode_falls_back_and_says_so(values):
    found = otsu(values.astype(np.float32), everywhere(values), fallback=0.1)
    assert found.method == "fallback" and found.value == 0.1 and "instead of Otsu" in found.reason


def test_nothing_defined_and_constant_fall_back():
    values = np.zeros((4, 4), np.float32)
    assert otsu(values, np.zeros((4, 4), bool)).reason.startswith("no pixel")
    assert otsu(values, everywhere(values)).reason.startswith("all pixels are equal")


def test_outliers_and_undefined_pixels_do_not_move_it():
    values = modes(0.4)
    want = otsu(values, everywhere(values)).value
    wild = np.concatenate([values, np.float32([300, -200]), np.full(500, np.nan, np.float32)])
    defined = np.isfinite(wild)
    assert otsu(wild, defined).value == pytest.approx(want, abs=0.02)


def test_fixed_threshold_and_bad_settings():
    index = np.float32([0.0, 0.1, np.nan, 0.2])
    defined = np.array([True, True, True, False])
    assert fixed(0.0).water(index, defined).tolist() == [False, True, False, False]
    with pytest.raises(UsageError, match="finite"):
        fixed(float("nan"))
    with pytest.raises(UsageError, match="bins"):
        otsu(index, defined, bins=1)
    with pytest.raises(UsageError, match="low < high"):
        otsu(index, defined, low=1, high=1)

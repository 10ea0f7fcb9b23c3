"""Ratios of confusion counts. Undefined is NaN in arrays, and None in records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seawall.arrays import DoubleArray
from seawall.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class ConfusionCounts:
    """Counts of true positive, false positive and false negative pixels per class.

    Args:
        tp: (..., K).
        fp: (..., K).
        fn: (..., K).
        pixels: (...) valid pixels.
    """

    tp: DoubleArray
    fp: DoubleArray
    fn: DoubleArray
    pixels: DoubleArray

    @property
    def tn(self) -> DoubleArray:
        """True negatives, (..., K)."""
        return self.pixels[..., None] - self.tp - self.fp - self.fn

    def pool(self, weights: DoubleArray) -> ConfusionCounts:
        """Return weighted sums over the first axis: weights (R, N) turn (N, K) counts to (R, K)."""
        return ConfusionCounts(weights @ self.tp, weights @ self.fp, weights @ self.fn, weights @ self.pixels)

    def select(self, chosen: NDArray[np.bool_]) -> ConfusionCounts:
        """Return the chosen rows of the first axis."""
        return ConfusionCounts(self.tp[chosen], self.fp[chosen], self.fn[chosen], self.pixels[chosen])

    def total(self) -> ConfusionCounts:
        """Return the sum over the first axis."""
        return ConfusionCounts(self.tp.sum(0), self.fp.sum(0), self.fn.sum(0), self.pixels.sum(0))

    @staticmethod
    def of(counts: NDArray[np.int64]) -> ConfusionCounts:
        """Return the counts of confusion matrices (..., K, K), rows labels, columns predictions."""
        table = np.asarray(counts, dtype=np.float64)
        tp = np.diagonal(table, axis1=-2, axis2=-1).copy()
        return ConfusionCounts(tp, table.sum(-2) - tp, table.sum(-1) - tp, table.sum((-2, -1)))


def divide_or_nan(top: ArrayLike, bottom: ArrayLike) -> DoubleArray:
    """Divide; NaN where the denominator is zero.

    Example:
        >>> divide_or_nan(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist()
        [0.5, nan]
    """
    above, below = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    found = np.full(above.shape, np.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


def iou(t: ConfusionCounts) -> DoubleArray:
    """Intersection over union per class; undefined where neither label nor prediction has the class."""
    return divide_or_nan(t.tp, t.tp + t.fp + t.fn)


def precision(t: ConfusionCounts) -> DoubleArray:
    """Share of predicted pixels that are right, per class."""
    return divide_or_nan(t.tp, t.tp + t.fp)


def recall(t: ConfusionCounts) -> DoubleArray:
    """Share of true pixels that are found, per class."""
    return divide_or_nan(t.tp, t.tp + t.fn)


def f1(t: ConfusionCounts) -> DoubleArray:
    """Harmonic mean of precision and recall per class; over pixels it is the Dice coefficient."""
    return divide_or_nan(2 * t.tp, 2 * t.tp + t.fp + t.fn)


def specificity(t: ConfusionCounts) -> DoubleArray:
    """Share of pixels of other classes that are left alone, per class."""
    return divide_or_nan(t.tn, t.tn + t.fp)


def pixel_accuracy(t: ConfusionCounts) -> DoubleArray:
    """Share of valid pixels that are right."""
    return divide_or_nan(t.tp.sum(-1), t.pixels)


def miou(t: ConfusionCounts) -> DoubleArray:
    """Mean IoU over the classes that are there in label or prediction."""
    return mean_defined(iou(t))


def mean_defined(values: DoubleArray) -> DoubleArray:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    there = np.isfinite(values)
    return divide_or_nan(np.where(there, values, 0.0).sum(-1), there.sum(-1))


CLASSWISE: Mapping[str, Callable[[ConfusionCounts], DoubleArray]] = {
    "iou": iou,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "dice": f1,
    "specificity": specificity,
}
OVERALL: Mapping[str, Callable[[ConfusionCounts], DoubleArray]] = {"miou": miou, "accuracy": pixel_accuracy}


def compute_ratio(name: str, t: ConfusionCounts) -> DoubleArray:
    """Return a named ratio: (..., K) for the class-wise ones, (..., 1) for the others.

    Raises:
        UsageError: No ratio has that name.
    """
    if name in CLASSWISE:
        return CLASSWISE[name](t)
    if name in OVERALL:
        return OVERALL[name](t)[..., None]
    raise UsageError(f"metric: unknown name {name!r}; {did_you_mean(name, [*CLASSWISE, *OVERALL])}")

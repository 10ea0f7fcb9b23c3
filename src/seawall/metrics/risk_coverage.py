"""Risk against coverage: how wrong a model is on the pixels, or the scenes, that it is surest of."""

from __future__ import annotations

import math

import numpy as np

from seawall.arrays import DoubleArray
from seawall.errors import UsageError
from seawall.metrics.ratios import divide_or_nan


def risk_coverage(confidence: DoubleArray, weight: DoubleArray, loss: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Return the coverage and the mean loss of the surest part, for every distinct confidence, surest first.

    Args:
        confidence: (N,) of an item, or of a bin of items; items of one confidence are taken together.
        weight: (N,) number of items, such as the pixels of a bin.
        loss: (N,) sum of their losses.

    Returns:
        (M,) coverage, growing to 1, and (M,) risk; empty without weight.

    Raises:
        UsageError: The shapes differ.

    Example:
        >>> coverage, risk = risk_coverage(np.array([0.6, 0.9]), np.array([1.0, 3.0]), np.array([1.0, 0.0]))
        >>> coverage.tolist(), risk.tolist()
        ([0.75, 1.0], [0.0, 0.25])
    """
    if not confidence.shape == weight.shape == loss.shape:
        raise UsageError(
            f"risk_coverage: expected three arrays of one shape, got {confidence.shape}, {weight.shape} and {loss.shape}; align them"
        )
    levels, where = np.unique(-confidence, return_inverse=True)
    weights, losses = (np.cumsum(np.bincount(where, values, len(levels))) for values in (weight, loss))
    kept = weights > 0
    if not kept.any():
        return np.zeros(0), np.zeros(0)
    return weights[kept] / weights[-1], losses[kept] / weights[kept]


def area_under_risk_coverage(coverage: DoubleArray, risk: DoubleArray) -> float | None:
    """Return the mean risk over all coverages (AURC); items of one confidence are in any order, on average. None without items.

    Paper: Geifman et al. 2019, arXiv:1805.08206.
    """
    if not len(coverage):
        return None
    share = np.diff(coverage, prepend=0.0)
    losses = np.diff(coverage * risk, prepend=0.0)
    rate = divide_or_nan(losses, share)
    before, gone = coverage - share, coverage * risk - losses
    total = 0.0
    for c0, step, lost, r in zip(before, share, gone, rate, strict=True):
        if step <= 0:
            continue
        # the integral of (lost + r (c - c0)) / c over the step
        total += r * step + ((lost - r * c0) * math.log((c0 + step) / c0) if c0 > 0 else 0.0)
    return float(total)


def least_area(error: float) -> float:
    """Return the smallest AURC at an error rate: of a model that is surest exactly where it is right.

    Example:
        >>> round(least_area(0.05), 5), round(least_area(0.1), 5)
        (0.00127, 0.00518)
    """
    return error + (1 - error) * math.log(1 - error) if error < 1 else 1.0

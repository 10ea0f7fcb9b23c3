"""Severities of equal harm: where a curve that is measured at few severities takes equally spaced values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.stats import betabinom

from seawall.arrays import DoubleArray
from seawall.errors import UsageError


def equal_harm_severities(
    harm_at: Callable[[float], float], levels: int = 5, tolerance: float = 0.05, most: int = 8
) -> tuple[Mapping[float, float], tuple[float, ...]]:
    """Return the measured harm by severity, and the severities where it is k / levels of the worst, for k = 1 ... levels.

    The curve is interpolated by PCHIP and inverted; it is measured next where the inversion is least certain, until that
    is certain to `tolerance`. Harm that falls again is taken as the highest before, so that each value has one severity.
    A curve that is not above 0 at severity 1 has evenly spaced severities.

    Args:
        harm_at: From a severity in (0, 1] to the harm, which is 0 at severity 0. Each call may be costly.
        levels: Number of severities.
        tolerance: Half-width of a severity that is certain enough.
        most: Measurements at most.

    Raises:
        UsageError: A setting is out of range.

    Paper: Zheng et al. 2024, arXiv:2406.01425, the adaptive sensitivity analysis. Differs: the curve is the kernel distance
    alone, made monotone; the released code spaces a sum with the loss of IoU and takes the first of several roots.

    Example:
        >>> equal_harm_severities(lambda s: s, levels=4)[1]
        (0.25, 0.5, 0.75, 1.0)
    """
    if levels < 1 or not 0 < tolerance < 1 or most < 1:
        raise UsageError(
            f"sensitivity: expected levels and most from 1 and a tolerance in (0, 1), got {levels}, {most}, {tolerance}; such as 5, 8, 0.05"
        )
    measured = {0.0: 0.0, 1.0: float(harm_at(1.0))}
    targets = np.arange(1, levels) / levels
    while True:
        severities, harm = _monotone(measured)
        if not len(targets) or harm[-1] <= 0:
            break
        found = invert_curve(severities, harm, targets)
        error = _uncertainty(severities, harm, targets, found)
        worst = round(float(found[error.argmax()]), 4)
        if error.max() <= tolerance or worst in measured or len(measured) > most:
            break
        measured[worst] = float(harm_at(worst))
    inner = targets if harm[-1] <= 0 else invert_curve(severities, harm, targets)
    return dict(sorted(measured.items())), (*(round(float(s), 4) for s in inner), 1.0)


def invert_curve(severities: DoubleArray, harm: DoubleArray, targets: DoubleArray) -> DoubleArray:
    """Return the smallest severity at which the PCHIP interpolant of a non-decreasing curve takes each target.

    Args:
        severities: (N,), increasing.
        harm: (N,), non-decreasing from 0 to 1.
        targets: (T,) in [0, 1].
    """
    curve = PchipInterpolator(severities, harm)
    roots = [curve.solve(target, extrapolate=False) for target in targets]
    # where the curve is flat at the target, the root is followed by NaN
    return np.array(
        [np.nanmin(r) if len(r) else np.interp(t, harm, severities) for r, t in zip(roots, targets, strict=True)]
    )


def _monotone(measured: Mapping[float, float]) -> tuple[DoubleArray, DoubleArray]:
    """Return severities and the highest harm up to each, relative to the highest of all."""
    severities = np.array(sorted(measured))
    harm = np.maximum.accumulate([measured[s] for s in severities])
    return severities, harm / harm[-1] if harm[-1] > 0 else harm


def _uncertainty(severities: DoubleArray, harm: DoubleArray, targets: DoubleArray, found: DoubleArray) -> DoubleArray:
    """Return half the distance between the inversions of targets moved by a share of their distance to what is measured."""
    away = np.abs(targets[:, None] - harm).min(1)
    reach = away * (0.6 + np.abs(found[:, None] - severities).min(1) / 5)
    low, high = (invert_curve(severities, harm, np.clip(targets + sign * reach, 0, 1)) for sign in (-1, 1))
    half: DoubleArray = (high - low) / 2
    return half


def rank_weights(count: int, a: float = 0.75, b: float = 1.0) -> tuple[float, ...]:
    """Return the probability of each rank, the most harmful first: beta-binomial over count - 1 trials.

    Paper: Zheng et al., arXiv:2406.01425. Differs: the released code has `count` trials, so that the probability of the last rank
    is lost, and ranks the mildest first unless told otherwise.

    Example:
        >>> [round(weight, 4) for weight in rank_weights(2)]  # a / (a + b) is the mean rank
        [0.5714, 0.4286]
    """
    pmf = betabinom(count - 1, a, b).pmf(np.arange(count))
    return tuple(float(p) for p in pmf)

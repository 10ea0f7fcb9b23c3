"""Thresholds of a water index: a fixed one, or Otsu's where the histogram has two modes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from seawall.errors import UsageError

SMOOTHING_BINS = (
    4.0  # standard deviation in bins of a 256-bin histogram: above the noise of one chip, below the width of a mode
)


MIN_SEPARABILITY, MIN_VALLEY = 0.7, 0.2
"""Least between-class over total variance, and least depth of the valley, of a histogram with two modes."""


@dataclass(frozen=True)
class WaterThreshold:
    """A threshold, its method and the reason for it.

    Args:
        value: Where water and land part.
        method: "fixed", "otsu", or "fallback" where Otsu was asked but its histogram has one mode.
        reason: One sentence.
        separability: Between-class over total variance, 0 to 1; None for a fixed threshold or no spread.
        valley: Depth of the valley between the modes, 0 (none) to 1 (empty); None likewise.
        n: Defined pixels that it was computed from.
        inclusive: A pixel equal to the value is water.
    """

    value: float
    method: str
    reason: str
    separability: float | None = None
    valley: float | None = None
    n: int = 0
    inclusive: bool = False

    def water(self, index: NDArray[np.float32], defined: NDArray[np.bool_], sign: int = 1) -> NDArray[np.bool_]:
        """Return the water mask; a pixel where the index is undefined is never water.

        Args:
            index: Index values, any shape.
            defined: Same shape.
            sign: 1 where water is above the threshold, -1 where it is below.
        """
        with np.errstate(invalid="ignore"):
            # compared in float32, so that a threshold means the same number as the float32 index beside it
            values, at = sign * index, sign * np.float32(self.value)
            above = values >= at if self.inclusive else values > at
        return np.asarray(above & defined)


def fixed(value: float = 0.0, *, inclusive: bool = False) -> WaterThreshold:
    """Return a fixed threshold.

    Raises:
        UsageError: The value is not a finite number.

    Example:
        >>> fixed(-0.25, inclusive=True).water(np.float32([-0.25, -0.3, np.nan]), np.array([True, True, False])).tolist()
        [True, False, False]
    """
    if not np.isfinite(value):
        raise UsageError(f"threshold: expected a finite number, got {value}; give one")
    return WaterThreshold(float(value), "fixed", f"fixed at {value:g}", inclusive=inclusive)


def otsu(
    index: NDArray[np.float32],
    defined: NDArray[np.bool_],
    *,
    fallback: float = 0.0,
    bins: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    separability: float = MIN_SEPARABILITY,
    valley: float = MIN_VALLEY,
) -> WaterThreshold:
    """Return Otsu's threshold if the histogram is bimodal, else the fallback.

    The histogram spans the values, clipped to [low, high]: ratio indices of over-corrected dark pixels are far
    beyond 1, and would leave all other values in one bin. Where several splits are equally
    good (an empty gap between the modes) the middle of the gap is taken. One normal mode has separability
    2/pi = 0.64 and a flat histogram 0.75, so a valley is required too.

    Args:
        index: Index values, any shape.
        defined: Same shape; other pixels do not count.
        fallback: Threshold to use where there is no second mode.
        bins: Bins of the histogram.
        low: Values below count as this one.
        high: Values above count as this one.
        separability: Least between-class over total variance, 0 to 1.
        valley: Least depth of the valley between the modes, as a share of the lower mode.

    Raises:
        UsageError: Fewer than 2 bins, or low is not below high.

    Paper: Otsu 1979. Differs: the bimodality test, and the split lies on a bin edge, not a bin center.
    """
    if bins < 2 or not low < high or not np.isfinite(fallback):
        raise UsageError(
            f"otsu: expected bins >= 2, low < high and a finite fallback, got {bins}, {low}, {high}, {fallback}; fix the settings"
        )
    values = np.clip(index[defined].astype(np.float64), low, high)
    n = int(values.size)
    if n == 0:
        return WaterThreshold(fallback, "fallback", f"no pixel is defined: {fallback:g} instead of Otsu", n=0)
    if float(np.ptp(values)) == 0.0:
        return WaterThreshold(fallback, "fallback", f"all pixels are equal: {fallback:g} instead of Otsu", n=n)
    counts, edges = np.histogram(values, bins=bins)
    return split_histogram(counts, edges, fallback=fallback, separability=separability, valley=valley)


def split_histogram(
    counts: NDArray[np.int64],
    edges: NDArray[np.float64],
    *,
    fallback: float = 0.0,
    separability: float = MIN_SEPARABILITY,
    valley: float = MIN_VALLEY,
) -> WaterThreshold:
    """Return Otsu's threshold of a histogram if it is bimodal, else the fallback; labels and models share it.

    Args:
        counts: (bins,) pixels per bin.
        edges: (bins + 1,) rising.
        fallback: See `otsu`, as for the other settings.
        separability: See `otsu`.
        valley: See `otsu`.
    """
    n = int(counts.sum())
    if int((counts > 0).sum()) < 2:
        what = "all pixels are equal" if n else "no pixel is defined"
        return WaterThreshold(fallback, "fallback", f"{what}: {fallback:g} instead of Otsu", n=n)
    first, last, ratio = best_split(counts)
    value = float(edges[first + 1] + edges[last + 1]) / 2
    depth = _valley_depth(counts, (first + last) // 2)
    if ratio < separability or depth < valley:
        reason = (
            f"one mode (between/total variance {ratio:.2f}, needs {separability:g}; valley {depth:.2f}, needs {valley:g}): "
            f"{fallback:g} instead of Otsu's {value:.3f}"
        )
        return WaterThreshold(fallback, "fallback", reason, ratio, depth, n)
    return WaterThreshold(value, "otsu", f"two modes split at {value:.3f}", ratio, depth, n)


def best_split(counts: NDArray[np.int64]) -> tuple[int, int, float]:
    """Return the first and last bin after which a split is best, and its between/total variance.

    Args:
        counts: Histogram of at least two bins with pixels in at least two of them.

    Example:
        >>> best_split(np.array([5, 0, 0, 5]))
        (0, 2, 1.0)
    """
    share = counts / counts.sum()
    center = np.arange(len(counts), dtype=np.float64)
    below = np.cumsum(share)[:-1]
    mean = float(share @ center)
    moment = np.cumsum(share * center)[:-1]
    weight = below * (1 - below)
    gap = mean * below - moment
    between = np.divide(gap**2, weight, out=np.zeros_like(weight), where=weight > 1e-15)
    best = float(between.max())
    tied = np.flatnonzero(between >= best * (1 - 1e-9))
    run = tied[: int(np.argmax(np.diff(tied, append=len(counts) + 1) > 1)) + 1]
    total = float(share @ (center - mean) ** 2)
    return int(run[0]), int(run[-1]), min(1.0, best / total)


def _valley_depth(counts: NDArray[np.int64], split: int) -> float:
    """Depth of the lowest place between the highest modes left and right of a split, over the lower mode."""
    smooth = gaussian_filter1d(counts.astype(np.float64), SMOOTHING_BINS * len(counts) / 256, mode="constant")
    left = int(np.argmax(smooth[: split + 1]))
    right = split + 1 + int(np.argmax(smooth[split + 1 :]))
    lower = min(smooth[left], smooth[right])
    return float(1 - smooth[left : right + 1].min() / lower) if lower > 0 else 0.0

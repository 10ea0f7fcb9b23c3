"""Registration error of a label layer against an image: a constant shift and the distance that remains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

from seawall.arrays import BoolArray
from seawall.errors import DataError, UsageError
from seawall.labels.agreement import PixelSize, pixel_sides, shore_distances
from seawall.records import finite_or_none


@dataclass(frozen=True)
class PositionalError:
    """Positional error of a layer against a reference; what is undefined is None.

    Args:
        rows: Rows that the layer must move down to fit best, in whole pixels.
        cols: Columns that it must move right.
        rows_fine: The same to a fraction of a pixel.
        cols_fine: The same to a fraction of a pixel.
        shift_m: Length of the fine shift in meters.
        iou_before: Water IoU without a shift.
        iou_after: Water IoU after the shift by whole pixels.
        residual_m: Mean distance between the shorelines after the shift by whole pixels, in meters.
        residual_p95_m: The 95th percentile of these distances.
        at_limit: The best shift is the farthest that was tried, so the true one may be farther.
    """

    rows: int
    cols: int
    rows_fine: float
    cols_fine: float
    shift_m: float
    iou_before: float | None
    iou_after: float | None
    residual_m: float | None
    residual_p95_m: float | None
    at_limit: bool = False


def positional_error(
    layer: BoolArray, reference: BoolArray, valid: BoolArray, *, gsd_m: PixelSize, reach_m: float = 200.0
) -> PositionalError:
    """Estimate the registration error of a layer by the shift of the best water IoU.

    The best shift by whole pixels is refined along each axis by two straight lines of equal and opposite slope
    through the IoU there and beside it, since the overlap of two masks falls off linearly and not as a parabola.

    Args:
        layer: (H, W) bool, such as a rasterized vector layer, defined everywhere on the grid.
        reference: (H, W) bool, such as an index mask.
        valid: (H, W) bool: where the reference is known.
        gsd_m: Meters per pixel, or (height, width) of a pixel where they differ.
        reach_m: Farthest shift along each axis that is tried, in meters.

    Returns:
        The estimate; a zero shift with None where either mask is empty.

    Raises:
        DataError: The shapes differ.
        UsageError: A length is not positive.

    Example:
        >>> water = np.zeros((32, 32), bool)
        >>> water[8:20, 8:24] = True
        >>> found = positional_error(np.roll(water, 3, 1), water, np.ones_like(water), gsd_m=10.0)
        >>> found.rows, found.cols, found.shift_m, found.iou_after
        (0, -3, 30.0, 1.0)
    """
    if layer.shape != reference.shape or layer.shape != valid.shape:
        raise DataError(
            f"positional error: expected masks of one shape, got {layer.shape}, {reference.shape} and {valid.shape}; "
            "put them on one grid"
        )
    sides = pixel_sides(gsd_m)
    if not (math.isfinite(reach_m) and reach_m >= 0):
        raise UsageError(f"positional error: expected reach_m from 0 up, got {reach_m}; 200 is common")
    wet = reference & valid
    reach = tuple(min(int(reach_m / side + 1e-9), min(layer.shape) // 2) for side in sides)
    iou = iou_by_shift(layer, wet, valid, (reach[0], reach[1]))
    before = finite_or_none(iou[reach])
    if not wet.any() or not layer.any():
        return PositionalError(0, 0, 0.0, 0.0, 0.0, before, before, None, None)
    at = best_shift(iou, sides)
    rows, cols = at[0] - reach[0], at[1] - reach[1]
    moved, known = _shifted(layer, rows, cols)
    apart = shore_distances(moved, reference, valid & known, gsd_m=gsd_m)
    fine = (rows + _subpixel_peak(iou[:, at[1]], at[0]), cols + _subpixel_peak(iou[at[0]], at[1]))
    return PositionalError(
        rows,
        cols,
        *fine,
        math.hypot(fine[0] * sides[0], fine[1] * sides[1]),
        before,
        finite_or_none(iou[at]),
        float(apart.mean()) if apart.size else None,
        float(np.percentile(apart, 95)) if apart.size else None,
        at_limit=any(r > 0 and abs(step) == r for step, r in zip((rows, cols), reach, strict=True)),
    )


@dataclass(frozen=True)
class LabelShift:
    """The move of a whole label that fits a prediction best, and the gain in IoU.

    Args:
        gain: IoU with the prediction after the move minus before, from 0 up.
        rows: Rows that the label must move down, in whole pixels.
        cols: Columns that it must move right.
    """

    gain: float
    rows: int
    cols: int


def label_shift(
    label: NDArray[np.integer],
    guess: NDArray[np.integer],
    valid: BoolArray,
    known: BoolArray,
    *,
    classes: Sequence[int],
    reach: int,
) -> LabelShift | None:
    """Find the move of a whole label that fits a prediction best, as after a registration error.

    Args:
        label: (H, W) class indices, meaningless where not valid.
        guess: (H, W) predicted class indices.
        valid: (H, W) bool: where the label counts.
        known: (H, W) bool: where the prediction is defined.
        classes: Classes whose IoU counts, such as water alone; of several the mean.
        reach: Farthest move along each axis that is tried, in pixels; at most a quarter of the chip is.

    Returns:
        The move, or None where neither the label nor the prediction has any of the classes.
    """
    far = min(reach, min(label.shape) // 4)
    planes = [iou_by_shift(guess == k, (label == k) & valid, valid, (far, far), known) for k in classes]
    there = [plane for plane in planes if np.isfinite(plane[far, far])]
    if not there:
        return None
    score = np.mean([np.nan_to_num(plane) for plane in there], axis=0)
    row, col = best_shift(score)
    return LabelShift(float(score[row, col] - score[far, far]), far - row, far - col)


def iou_by_shift(
    layer: BoolArray, wet: BoolArray, valid: BoolArray, reach: tuple[int, int], known: BoolArray | None = None
) -> NDArray[np.float64]:
    """Return the IoU of a layer, moved by whole pixels, with a reference over the pixels where both are known.

    Args:
        layer: (H, W) bool: what is moved.
        wet: (H, W) bool: the reference, within `valid`.
        valid: (H, W) bool: where the reference is known.
        reach: Farthest shift in rows and in columns.
        known: (H, W) bool: where the layer is known, moved with it; everywhere by default.

    Returns:
        (2 reach[0] + 1, 2 reach[1] + 1), NaN where neither has any water; a step of (r, c) pixels down and right is at
        [reach[0] + r, reach[1] + c].
    """
    known = np.ones_like(layer) if known is None else known
    layer = layer & known
    both = _correlation(layer, wet, reach)
    union = _correlation(layer, valid, reach) + _correlation(known, wet, reach) - both
    iou: NDArray[np.float64] = np.divide(both, union, out=np.full(both.shape, np.nan), where=union > 0)
    return iou


def best_shift(score: NDArray[np.float64], sides: tuple[float, float] = (1.0, 1.0)) -> tuple[int, int]:
    """Return where a score by shift, as of `iou_by_shift`, is highest.

    Of equally good shifts the shortest is taken: a lake that is cut by the border may fit anywhere along it.
    """
    reach = (score.shape[0] // 2, score.shape[1] // 2)
    rows, cols = (np.arange(-r, r + 1) * side for r, side in zip(reach, sides, strict=True))
    length = np.hypot(rows[:, None], cols[None, :])
    best = np.lexsort((length.ravel(), -np.nan_to_num(score, nan=-1.0).ravel().round(12)))[0]
    row, col = np.unravel_index(best, score.shape)
    return int(row), int(col)


def _subpixel_peak(line: NDArray[np.float64], at: int) -> float:
    """Return the offset of the peak from the highest value of a line, within half a step; 0 where it is undefined."""
    if not 0 < at < len(line) - 1 or line[at] >= 1.0:
        return 0.0
    left, peak, right = (float(line[i]) for i in (at - 1, at, at + 1))
    drop = peak - min(left, right)
    return (right - left) / (2 * drop) if math.isfinite(drop) and drop > 0 else 0.0


def _correlation(moving: BoolArray, fixed: BoolArray, reach: tuple[int, int]) -> NDArray[np.float64]:
    shape = tuple(next_fast_len(side + r, real=True) for side, r in zip(moving.shape, reach, strict=True))
    product = np.conj(rfft2(moving.astype(np.float64), shape)) * rfft2(fixed.astype(np.float64), shape)
    counts: NDArray[np.float64] = np.round(irfft2(product, shape))
    found: NDArray[np.float64] = counts[np.ix_(*(np.arange(-r, r + 1) for r in reach))]
    return found


def _shifted(layer: BoolArray, rows: int, cols: int) -> tuple[BoolArray, BoolArray]:
    moved, known = np.zeros_like(layer), np.zeros_like(layer)
    to = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip((rows, cols), layer.shape, strict=True))
    source = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip((rows, cols), layer.shape, strict=True))
    moved[to], known[to] = layer[source], True
    return moved, known

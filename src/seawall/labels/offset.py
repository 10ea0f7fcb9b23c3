"""How far a label layer lies from where an image shows the water: a constant shift and what remains of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2

from seawall.errors import DataError, UsageError
from seawall.labels.agreement import Mask, shore_distances


@dataclass(frozen=True)
class PositionalError:
    """Positional error of a layer against a reference; what is undefined is None.

    Args:
        rows: Rows that the layer must move down to fit best, in pixels.
        cols: Columns that it must move right.
        shift_m: Length of that shift in meters.
        iou_before: Water IoU as it lies.
        iou_after: Water IoU after the shift.
        residual_m: Mean distance between the shorelines after the shift, in meters.
        residual_p95_m: The 95th percentile of these distances.
        at_limit: The best shift is the farthest that was tried: the true one may lie beyond.
    """

    rows: int
    cols: int
    shift_m: float
    iou_before: float | None
    iou_after: float | None
    residual_m: float | None
    residual_p95_m: float | None
    at_limit: bool = False


def positional_error(
    layer: Mask, reference: Mask, valid: Mask, *, gsd_m: float, reach_m: float = 200.0
) -> PositionalError:
    """Estimate how far a layer is off, by the whole-pixel shift of the best water IoU.

    Args:
        layer: (H, W) bool, such as a rasterized vector layer, known everywhere on the grid.
        reference: (H, W) bool, such as an index mask.
        valid: (H, W) bool: where the reference is known.
        gsd_m: Meters per pixel.
        reach_m: Farthest shift that is tried, in meters.

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
    if not (math.isfinite(gsd_m) and gsd_m > 0 and math.isfinite(reach_m) and reach_m >= 0):
        raise UsageError(f"positional error: expected lengths in meters, got {gsd_m} and {reach_m}; Sentinel-2 has 10")
    wet = reference & valid
    reach = min(int(reach_m / gsd_m + 1e-9), min(layer.shape) // 2)
    iou = _iou_by_shift(layer, wet, valid, reach)
    before = _defined(iou[reach, reach])
    if not wet.any() or not layer.any():
        return PositionalError(0, 0, 0.0, before, before, None, None)
    steps = np.arange(-reach, reach + 1)
    length = np.hypot(steps[:, None], steps[None, :])
    # of equally good shifts the shortest: a lake that is cut by the border may fit anywhere along it
    best = np.lexsort((length.ravel(), -np.nan_to_num(iou, nan=-1.0).ravel().round(12)))[0]
    rows, cols = (int(i) - reach for i in np.unravel_index(best, iou.shape))
    moved, known = _moved(layer, rows, cols)
    apart = shore_distances(moved, reference, valid & known, gsd_m=gsd_m)
    return PositionalError(
        rows,
        cols,
        math.hypot(rows, cols) * gsd_m,
        before,
        _defined(iou.ravel()[best]),
        float(apart.mean()) if apart.size else None,
        float(np.percentile(apart, 95)) if apart.size else None,
        at_limit=reach > 0 and max(abs(rows), abs(cols)) == reach,
    )


def _iou_by_shift(layer: Mask, wet: Mask, valid: Mask, reach: int) -> NDArray[np.float64]:
    """Return the IoU at every shift (rows, cols) from -reach to reach, over pixels that both know there."""
    everywhere = np.ones_like(layer)
    both = _correlate(layer, wet, reach)
    union = _correlate(layer, valid, reach) + _correlate(everywhere, wet, reach) - both
    iou: NDArray[np.float64] = np.divide(both, union, out=np.full(both.shape, np.nan), where=union > 0)
    return iou


def _correlate(moving: Mask, fixed: Mask, reach: int) -> NDArray[np.float64]:
    shape = tuple(next_fast_len(side + reach, real=True) for side in moving.shape)
    product = np.conj(rfft2(moving.astype(np.float64), shape)) * rfft2(fixed.astype(np.float64), shape)
    counts: NDArray[np.float64] = np.round(irfft2(product, shape))
    at = np.arange(-reach, reach + 1)
    found: NDArray[np.float64] = counts[np.ix_(at, at)]
    return found


def _moved(layer: Mask, rows: int, cols: int) -> tuple[Mask, Mask]:
    moved, known = np.zeros_like(layer), np.zeros_like(layer)
    to = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip((rows, cols), layer.shape, strict=True))
    source = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip((rows, cols), layer.shape, strict=True))
    moved[to], known[to] = layer[source], True
    return moved, known


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

"""Agreement of two label sources: shares, areas, distances between shorelines, and agreement by distance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from seawall.arrays import BoolArray
from seawall.errors import DataError, UsageError

PixelSize = float | tuple[float, float]
"""Side of a pixel in meters, or its (height, width) where they differ."""

NEITHER, BOTH, ONLY_A, ONLY_B, UNKNOWN = 0, 1, 2, 3, 255
"""Values of the map of disagreement; UNKNOWN is its nodata."""

TRUST_EDGES_M = (0.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, math.inf)
"""Distances to the shoreline that divide the table of trust, in meters."""


def pixel_sides(gsd_m: PixelSize) -> tuple[float, float]:
    """Return the (height, width) of a pixel in meters.

    Raises:
        UsageError: A side is not a positive length.
    """
    sides = gsd_m if isinstance(gsd_m, tuple) else (gsd_m, gsd_m)
    if not all(math.isfinite(side) and side > 0 for side in sides):
        raise UsageError(f"agreement: expected the side of a pixel in meters, got {gsd_m}; Sentinel-2 has 10")
    return sides


@dataclass(frozen=True)
class Agreement:
    """Two masks compared over their valid pixels; what is undefined is None.

    Args:
        both: Pixels where both have water.
        only_a: Pixels where only the first has.
        only_b: Pixels where only the second has.
        neither: Pixels where none has.
        a_km2: Water area of the first in km2.
        b_km2: Water area of the second in km2.
        distance_m: Mean distance between the shorelines in meters, from each to the other. None if a mask has no shoreline.
        distance_p95_m: The 95th percentile of these distances.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    a_km2: float
    b_km2: float
    distance_m: float | None = None
    distance_p95_m: float | None = None

    @property
    def pixels(self) -> int:
        """Valid pixels."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def agreement(self) -> float | None:
        """Share of the valid pixels where both agree."""
        return (self.both + self.neither) / self.pixels if self.pixels else None

    @property
    def iou(self) -> float | None:
        """Intersection over union of the water; None if neither has any."""
        union = self.both + self.only_a + self.only_b
        return self.both / union if union else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond chance; None where chance alone agrees fully."""
        n = self.pixels
        a, b = self.both + self.only_a, self.both + self.only_b
        chance = a * b + (n - a) * (n - b)
        return (n * (self.both + self.neither) - chance) / (n * n - chance) if n * n != chance else None

    @property
    def difference_km2(self) -> float:
        """Area of the second minus the first."""
        return self.b_km2 - self.a_km2

    def row(self) -> dict[str, float | int | None]:
        """Return plain values for a table."""
        return {
            "pixels": self.pixels,
            "agreement": self.agreement,
            "iou": self.iou,
            "kappa": self.kappa,
            "distance_m": self.distance_m,
            "distance_p95_m": self.distance_p95_m,
            "a_km2": self.a_km2,
            "b_km2": self.b_km2,
            "difference_km2": self.difference_km2,
        }


@dataclass(frozen=True)
class TrustRow:
    """Agreement of two masks within a range of distances from the shoreline.

    Args:
        low_m: Nearest distance, included.
        high_m: Farthest distance, not included.
        pixels: Valid pixels there.
        agreement: Share where both agree; None without pixels.
        only_a_km2: Water that only the first has.
        only_b_km2: Water that only the second has.
        a_right: Share where the first agrees with the reference; None without reference or pixels.
        b_right: The same of the second.
    """

    low_m: float
    high_m: float
    pixels: int
    agreement: float | None
    only_a_km2: float
    only_b_km2: float
    a_right: float | None = None
    b_right: float | None = None

    @property
    def better(self) -> str:
        """The source closer to the reference: "a", "b", "either" where they do not differ, "unknown" without reference."""
        if self.agreement == 1.0:
            return "either"
        if self.a_right is None or self.b_right is None:
            return "unknown"
        return "either" if self.a_right == self.b_right else "a" if self.a_right > self.b_right else "b"


def compare_masks(
    a: BoolArray, b: BoolArray, valid: BoolArray | None = None, *, gsd_m: PixelSize, pixel_area_m2: float | None = None
) -> Agreement:
    """Compare two water masks.

    Args:
        a: (H, W) bool.
        b: (H, W) bool on the same grid.
        valid: (H, W) bool: pixels where both sources are known; all by default.
        gsd_m: Side of a pixel in meters, or its (height, width) where they differ.
        pixel_area_m2: Ground area of a pixel, such as `Grid.pixel_area_m2()`; from `gsd_m` by default.

    Raises:
        DataError: The shapes differ or a mask is not boolean.
        UsageError: The pixel has no size.

    Example:
        >>> a = np.zeros((4, 4), bool)
        >>> b = a.copy()
        >>> a[:2] = b[:3] = True
        >>> found = compare_masks(a, b, gsd_m=10.0)
        >>> found.agreement, found.distance_m, round(found.difference_km2, 6)
        (0.75, 10.0, 0.0004)
    """
    known = _check_masks(a, b, valid)
    height_m, width_m = pixel_sides(gsd_m)
    area = _pixel_area(height_m, width_m, pixel_area_m2) / 1e6
    both, only_a, only_b, neither = (int(np.count_nonzero(known & p)) for p in (a & b, a & ~b, b & ~a, ~a & ~b))
    apart = shore_distances(a, b, known, gsd_m=gsd_m)
    return Agreement(
        both,
        only_a,
        only_b,
        neither,
        a_km2=(both + only_a) * area,
        b_km2=(both + only_b) * area,
        distance_m=float(apart.mean()) if apart.size else None,
        distance_p95_m=float(np.percentile(apart, 95)) if apart.size else None,
    )


def shoreline(mask: BoolArray, valid: BoolArray) -> BoolArray:
    """Return the pixels of a mask that have a valid dry pixel beside them; the image border is no shoreline."""
    dry = np.pad(valid & ~mask, 1)
    beside = dry[:-2, 1:-1] | dry[2:, 1:-1] | dry[1:-1, :-2] | dry[1:-1, 2:]
    shore: BoolArray = mask & valid & beside
    return shore


def shore_distances(a: BoolArray, b: BoolArray, valid: BoolArray, *, gsd_m: PixelSize) -> NDArray[np.float64]:
    """Return the distance of every shoreline pixel to the other mask's shoreline, in meters, both ways.

    Returns:
        (N,) distances; empty if a mask has no shoreline.
    """
    one, two = shoreline(a, valid), shoreline(b, valid)
    if not one.any() or not two.any():
        return np.zeros(0)
    sides = pixel_sides(gsd_m)
    to_one, to_two = (distance_transform_edt(~shore, sampling=sides) for shore in (one, two))
    return np.concatenate([to_two[one], to_one[two]])


def disagreement_map(a: BoolArray, b: BoolArray, valid: BoolArray | None = None) -> NDArray[np.uint8]:
    """Return the map of disagreement: 0 neither, 1 both, 2 only the first, 3 only the second, 255 unknown.

    Raises:
        DataError: The shapes differ or a mask is not boolean.
    """
    known = _check_masks(a, b, valid)
    values = np.select([a & b, a, b], [BOTH, ONLY_A, ONLY_B], NEITHER)
    return np.where(known, values, UNKNOWN).astype(np.uint8)


def trust_table(
    a: BoolArray,
    b: BoolArray,
    valid: BoolArray | None = None,
    *,
    gsd_m: PixelSize,
    reference: BoolArray | None = None,
    edges_m: Sequence[float] = TRUST_EDGES_M,
    pixel_area_m2: float | None = None,
) -> tuple[TrustRow, ...]:
    """Return the agreement of two masks by distance to the nearest shoreline of either.

    A source that is shifted disagrees near the shoreline only; one that misses ponds or labels shadow as water
    disagrees far from the shorelines of the other.

    Args:
        a: (H, W) bool.
        b: (H, W) bool on the same grid.
        valid: (H, W) bool; all by default.
        gsd_m: Side of a pixel in meters.
        reference: A third mask that counts as the truth where they differ; distances are then to its shoreline.
        edges_m: Distances in meters that divide the rows, ascending.
        pixel_area_m2: Ground area of a pixel; from `gsd_m` by default.

    Returns:
        One row per distance; without any shoreline all pixels are in the last row.

    Raises:
        DataError: The shapes differ or a mask is not boolean.
        UsageError: The edges do not ascend.
    """
    known = _check_masks(a, b, valid)
    if reference is not None:
        _check_masks(a, reference, valid)
    if len(edges_m) < 2 or any(low >= high for low, high in itertools.pairwise(edges_m)):
        raise UsageError(f"trust table: expected ascending distances, got {list(edges_m)}; such as 0, 10, 50")
    sides = pixel_sides(gsd_m)
    area = _pixel_area(*sides, pixel_area_m2) / 1e6
    shores = (a, b) if reference is None else (reference,)
    away = np.min([_shore_distance(mask, known, sides) for mask in shores], axis=0)
    rows = []
    for low, high in itertools.pairwise(edges_m):
        within = known & (away >= low) & ((away < high) | (math.isinf(high) & np.isinf(away)))
        rows.append(_trust_row(low, high, a[within], b[within], None if reference is None else reference[within], area))
    return tuple(rows)


def _trust_row(
    low: float, high: float, a: BoolArray, b: BoolArray, reference: BoolArray | None, area: float
) -> TrustRow:
    def share(right: BoolArray) -> float | None:
        return float(np.mean(right)) if right.size else None

    return TrustRow(
        low,
        high,
        int(a.size),
        share(a == b),
        int(np.count_nonzero(a & ~b)) * area,
        int(np.count_nonzero(b & ~a)) * area,
        None if reference is None else share(a == reference),
        None if reference is None else share(b == reference),
    )


def _shore_distance(mask: BoolArray, valid: BoolArray, sides: tuple[float, float]) -> NDArray[np.float64]:
    """Distance of pixel centers to the nearest shoreline, which runs between wet and dry pixels, in meters."""
    wet, dry = mask & valid, valid & ~mask
    if not wet.any() or not dry.any():
        return np.full(mask.shape, np.inf)
    to_dry, to_wet = (distance_transform_edt(~to, sampling=sides) for to in (dry, wet))
    return np.asarray(np.where(mask, to_dry, to_wet) - min(sides) / 2)


def _check_masks(a: BoolArray, b: BoolArray, valid: BoolArray | None) -> BoolArray:
    known = np.ones(a.shape, bool) if valid is None else valid
    for name, plane in (("first mask", a), ("second mask", b), ("valid", known)):
        if plane.dtype != np.bool_ or plane.ndim != 2 or plane.shape != a.shape:
            raise DataError(
                f"agreement: expected {name} as bool of shape {a.shape}, got {plane.dtype} of shape {plane.shape}; "
                "put both sources on one grid"
            )
    return known


def _pixel_area(height_m: float, width_m: float, area_m2: float | None) -> float:
    area = height_m * width_m if area_m2 is None else area_m2
    if not math.isfinite(area) or area <= 0:
        raise UsageError(f"agreement: expected the area of a pixel in square meters, got {area}; leave it out")
    return area

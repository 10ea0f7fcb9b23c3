"""Footprints of chips on the ground, and which of them overlap across coordinate systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from scipy.spatial import cKDTree

from seawall.arrays import DoubleArray
from seawall.data.index import ChipRow
from seawall.errors import DataError

EQUAL_AREA = "EPSG:6933"  # equal area, meters: distances east-west stretch towards the poles, areas do not
WGS84 = "EPSG:4326"
EARTH_CENTERED = "EPSG:4978"
BORDER_PX = 0.01  # pixels that a footprint is shrunk by: neighbors share a border without overlapping
COMPARED_CHIPS = 512  # at a time
EDGE_POINTS = 16  # points per edge of an outline; the sides of a 110 km tile stay within a meter
INTERSECTED_PAIRS = 4096  # at a time


def center_m(row: ChipRow) -> tuple[str, float, float]:
    """Return the center of a chip as (coordinate system, x, y) in meters; geographic chips in an equal-area one.

    Raises:
        DataError: The chip has no georeference.
    """
    if not row.transform or row.crs is None:
        raise DataError(
            f"split: expected a georeference for every chip, got none for {row.id!r}; split by groups instead"
        )
    x, y = row.grid.point(row.height / 2, row.width / 2)
    if _is_projected(row.crs):
        return row.crs, x, y
    east, north = _transformer(row.crs, EQUAL_AREA).transform(x, y)
    return EQUAL_AREA, float(east), float(north)


def overlaps(rows: Sequence[ChipRow]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of chips that share ground, among those with a georeference.

    Chips of one coordinate system are compared in it; those of two are compared on the sphere of directions, where
    zones, poles and the antimeridian need no special case. A pair may come twice.
    """
    by_crs: dict[str, list[ChipRow]] = {}
    for row in rows:
        if row.transform and row.crs is not None:
            by_crs.setdefault(row.crs, []).append(row)
    for same in by_crs.values():
        yield from _planar_overlaps(same)
    if len(by_crs) > 1 or not all(map(_is_projected, by_crs)):
        yield from _spherical_overlaps(by_crs)


def within_distance(rows: Sequence[ChipRow], others: Sequence[ChipRow], gap_m: float) -> NDArray[np.bool_]:
    """Tell for each chip whether its center is nearer than `gap_m` to the center of another one, on WGS 84.

    Args:
        rows: Chips with a georeference.
        others: Chips with a georeference.
        gap_m: Distance in meters, straight through the Earth, which differs by a thousandth at 500 km.

    Raises:
        DataError: A center cannot be converted to WGS 84.
    """
    if not rows or not others:
        return np.zeros(len(rows), bool)
    distance, _ = cKDTree(_centers_m(others)).query(_centers_m(rows))
    return np.asarray(distance < gap_m)


def _planar_overlaps(same: list[ChipRow]) -> Iterator[tuple[str, str]]:
    boxes = np.array([_planar_box(row) for row in same])
    order = np.argsort(boxes[:, 0], kind="stable")
    boxes, same = boxes[order], [same[i] for i in order]
    for start in range(0, len(same), COMPARED_CHIPS):
        mine = boxes[start : start + COMPARED_CHIPS, None]
        # Boxes are sorted from west to east: what begins east of all of mine cannot touch them.
        end = int(np.searchsorted(boxes[:, 0], mine[..., 2].max()))
        others = boxes[None, start:end]
        low, high = np.maximum(mine[..., :2], others[..., :2]), np.minimum(mine[..., 2:], others[..., 2:])
        for i, j in np.argwhere((high > low).all(-1)):
            if i < j:
                yield same[start + i].id, same[start + j].id


def _spherical_overlaps(by_crs: Mapping[str, list[ChipRow]]) -> Iterator[tuple[str, str]]:
    """Yield overlaps between coordinate systems, and within a geographic one across its longitude seam."""
    rows: list[ChipRow] = []
    outlines: list[DoubleArray] = []
    for crs, same in by_crs.items():
        found = _outlines(crs, same)
        known = np.isfinite(found.reshape(len(found), -1)).all(1)
        rows += [same[i] for i in np.flatnonzero(known)]
        outlines.append(found[known])
    lonlat = np.concatenate(outlines)
    boxes, owner = _lonlat_boxes(lonlat)
    if not len(boxes):
        return
    shapes = np.asarray(shapely.box(*boxes.T), object)
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = np.unique(np.stack([owner[first], owner[second]], 1), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    systems = np.unique([row.crs for row in rows], return_inverse=True)[1]
    seam = np.abs(lonlat[pairs[:, 0], 0, 0] - lonlat[pairs[:, 1], 0, 0]) > 180
    planar = (systems[pairs[:, 0]] == systems[pairs[:, 1]]) & ~seam
    pairs = pairs[~planar]
    directions = _unit_vectors(lonlat)
    for start in range(0, len(pairs), INTERSECTED_PAIRS):
        some = pairs[start : start + INTERSECTED_PAIRS]
        for i, j in some[_intersect(directions[some[:, 0]], directions[some[:, 1]])]:
            yield rows[i].id, rows[j].id


def _outlines(crs: str, rows: Sequence[ChipRow]) -> DoubleArray:
    """Return densified outlines (N, P, 2) as longitude and latitude; NaN where the system has no place on the Earth."""
    t = np.linspace(0, 1, EDGE_POINTS, endpoint=False)
    zero, one = np.zeros_like(t), np.ones_like(t)
    across, down = np.concatenate([t, one, 1 - t, zero]), np.concatenate([zero, t, one, 1 - t])
    size = np.array([[row.width, row.height] for row in rows], np.float64)
    column = BORDER_PX + across * (size[:, :1] - 2 * BORDER_PX)
    line = BORDER_PX + down * (size[:, 1:] - 2 * BORDER_PX)
    a, b, c, d, e, f = np.array([row.transform for row in rows], np.float64).T[..., None]
    try:
        lon, lat = _transformer(crs, WGS84).transform(a * column + b * line + c, d * column + e * line + f)
    except ProjError:  # a local system: it can be compared with itself alone
        return np.full((len(rows), len(across), 2), np.nan)
    found = np.stack([lon, lat], -1)
    found[~np.isfinite(found)] = np.nan
    return found


def _lonlat_boxes(lonlat: DoubleArray) -> tuple[DoubleArray, NDArray[np.int64]]:
    """Return boxes (west, south, east, north) that cover each outline, and the outline of each box.

    An outline across the antimeridian has two boxes; one around a pole reaches it at all longitudes.
    """
    lon, lat = lonlat[..., 0], lonlat[..., 1]
    steps = (np.diff(lon, axis=1, append=lon[:, :1]) + 180) % 360 - 180
    unwrapped = lon[:, :1] + np.concatenate([np.zeros_like(lon[:, :1]), np.cumsum(steps, 1)[:, :-1]], 1)
    west, east = unwrapped.min(1), unwrapped.max(1)
    south, north = lat.min(1), lat.max(1)
    around = (np.abs(steps.sum(1)) > 180) | (east - west >= 360)
    north = np.where(around & (lat.mean(1) > 0), 90.0, north)
    south = np.where(around & (lat.mean(1) <= 0), -90.0, south)
    shift = np.floor((west + 180) / 360) * 360
    west, east = np.where(around, -180.0, west - shift), np.where(around, 180.0, east - shift)
    whole = np.stack([west, south, np.minimum(east, 180.0), north], 1)
    beyond = east > 180
    rest = np.stack([np.full(beyond.sum(), -180.0), south[beyond], east[beyond] - 360, north[beyond]], 1)
    own = np.arange(len(lonlat))
    return np.concatenate([whole, rest]), np.concatenate([own, own[beyond]])


def _unit_vectors(lonlat: DoubleArray) -> DoubleArray:
    lon, lat = np.radians(lonlat[..., 0]), np.radians(lonlat[..., 1])
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)


def _intersect(first: DoubleArray, second: DoubleArray) -> NDArray[np.bool_]:
    """Return which outlines (N, P, 3) of unit vectors share an area, each pair in the gnomonic plane between them."""
    middle = first.mean(1) + second.mean(1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    helper = np.where(np.abs(middle[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    east = np.cross(helper, middle)
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    north = np.cross(middle, east)

    def flat(outline: DoubleArray) -> NDArray[np.object_]:
        up, x, y = (np.einsum("npk,nk->np", outline, axis) for axis in (middle, east, north))
        return np.asarray(shapely.polygons(np.stack([x / up, y / up], -1)))

    with np.errstate(divide="ignore", invalid="ignore"):
        shared = shapely.intersection(shapely.make_valid(flat(first)), shapely.make_valid(flat(second)))
    return np.asarray(shapely.area(shared) > 0)


def _centers_m(rows: Sequence[ChipRow]) -> DoubleArray:
    """Return the centers (N, 3) in meters from the center of the Earth."""
    found = np.empty((len(rows), 3))
    for i, row in enumerate(rows):
        lon, lat = _transformer(row.crs or "", WGS84).transform(*row.grid.point(row.height / 2, row.width / 2))
        found[i] = _transformer(WGS84, EARTH_CENTERED).transform(lon, lat, 0.0)
        if not np.isfinite(found[i]).all():
            raise DataError(
                f"split: expected a place on the Earth, got none for {row.id!r} in {row.crs}; split without a gap"
            )
    return found


def _planar_box(row: ChipRow) -> DoubleArray:
    """Bounds (left, bottom, right, top), shrunk by a hundredth of a pixel."""
    corners = [
        row.grid.point(r, c) for r in (BORDER_PX, row.height - BORDER_PX) for c in (BORDER_PX, row.width - BORDER_PX)
    ]
    xs, ys = zip(*corners, strict=True)
    return np.array([min(xs), min(ys), max(xs), max(ys)])


@lru_cache(64)
def _is_projected(crs: str) -> bool:
    return bool(CRS.from_user_input(crs).is_projected)


@lru_cache(64)
def _transformer(crs: str, to: str) -> Transformer:
    return Transformer.from_crs(crs, to, always_xy=True)

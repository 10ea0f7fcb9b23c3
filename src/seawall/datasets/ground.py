"""Where chips are on the ground, in meters, and which of them overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from seawall.datasets.index import ChipRow
from seawall.errors import DataError

WORLD = "EPSG:6933"  # equal area, meters: distances east-west stretch towards the poles, areas do not
SLACK = 0.01  # pixels: neighbors share a border, not ground
ROWS = 512  # chips compared at a time


def place_m(row: ChipRow) -> tuple[str, float, float]:
    """Return the center of a chip as (coordinate system, x, y) in meters; geographic chips in an equal-area one.

    Raises:
        DataError: The chip has no georeference.
    """
    if not row.transform or row.crs is None:
        raise DataError(
            f"split: expected a georeference for every chip, got none for {row.id!r}; split by groups instead"
        )
    x, y = row.grid.point(row.height / 2, row.width / 2)
    if _projected(row.crs):
        return row.crs, x, y
    east, north = _to_world(row.crs).transform(x, y)
    return WORLD, float(east), float(north)


def overlaps(rows: Sequence[ChipRow]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of chips that share ground, among those with a georeference of one coordinate system."""
    by_crs: dict[str, list[ChipRow]] = {}
    for row in rows:
        if row.transform and row.crs is not None:
            by_crs.setdefault(row.crs, []).append(row)
    for same in by_crs.values():
        boxes = np.array([_box(row) for row in same])
        order = np.argsort(boxes[:, 0], kind="stable")
        boxes, same = boxes[order], [same[i] for i in order]
        for start in range(0, len(same), ROWS):
            mine = boxes[start : start + ROWS, None]
            # Boxes are sorted from west to east: what begins east of all of mine cannot touch them.
            end = int(np.searchsorted(boxes[:, 0], mine[..., 2].max()))
            others = boxes[None, start:end]
            low, high = np.maximum(mine[..., :2], others[..., :2]), np.minimum(mine[..., 2:], others[..., 2:])
            for i, j in np.argwhere((high > low).all(-1)):
                if i < j:
                    yield same[start + i].id, same[start + j].id


def _box(row: ChipRow) -> NDArray[np.float64]:
    """Bounds (left, bottom, right, top), shrunk by a hundredth of a pixel."""
    corners = [row.grid.point(r, c) for r in (SLACK, row.height - SLACK) for c in (SLACK, row.width - SLACK)]
    xs, ys = zip(*corners, strict=True)
    return np.array([min(xs), min(ys), max(xs), max(ys)])


@lru_cache(64)
def _projected(crs: str) -> bool:
    return bool(CRS.from_user_input(crs).is_projected)


@lru_cache(64)
def _to_world(crs: str) -> Transformer:
    return Transformer.from_crs(crs, WORLD, always_xy=True)

"""Compare two label sources over the same ground: agreement, shift, and agreement by distance to the shoreline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.errors import DataError, UsageError
from seawall.geo.raster import Grid, open_raster, write_cog
from seawall.labels.agreement import TrustRow, compare_masks, disagreement_map, trust_table
from seawall.labels.registration import positional_error
from seawall.labels.vector import VECTOR_FORMATS, rasterize_layer
from seawall.result import ResultRow

SOURCE_ROLES = ("first", "second", "reference")
DISAGREEMENT_COLORS = {0: (222, 211, 180, 255), 1: (33, 102, 172, 255), 2: (178, 24, 43, 255), 3: (244, 165, 30, 255)}
"""Land, water in both, only in the first, only in the second."""


@dataclass(frozen=True)
class ComparedSource:
    """The water mask of one source on a grid.

    Args:
        path: File.
        mask: (H, W) bool: water.
        known: (H, W) bool: where the source is defined.
        flags: Remarks on how far it can be trusted.
    """

    path: Path
    mask: NDArray[np.bool_]
    known: NDArray[np.bool_]
    flags: tuple[str, ...] = ()


def compare_label_files(
    first: Path, second: Path, *, reference: Path | None, out: Path | None, value: int, all_touched: bool
) -> tuple[ResultRow, list[ResultRow], Sequence[tuple[str, str]]]:
    """Compare two masks; at least one is a raster, and vector layers are burned onto its grid.

    Returns:
        Agreement of the whole, one row per distance from the shoreline, and nothing failed.

    Raises:
        DataError: The rasters lie on different grids, or have no meters per pixel.
        UsageError: All sources are vector layers.
    """
    paths = [first, second, *([reference] if reference else [])]
    grid = _shared_grid([path for path in paths if path.suffix.lower() not in VECTOR_FORMATS])
    a, b, *truth = [_read_source(path, grid, value, all_touched) for path in paths]
    sides, area = grid.pixel_size_m(), grid.pixel_area_m2()
    if sides is None or area is None:
        raise DataError(f"{first}: expected a georeferenced mask, got none; distances and areas need meters per pixel")
    known = a.known & b.known
    for source in truth:
        known &= source.known
    found = compare_masks(a.mask, b.mask, known, gsd_m=sides, pixel_area_m2=area)
    facts: dict[str, str | int | float | None] = {"first": str(first), "second": str(second), **found.row()}
    shift = positional_error(b.mask, a.mask, known, gsd_m=sides)
    east, north = grid.offset_m(shift.rows_fine, shift.cols_fine)
    facts |= {
        "shift_m": shift.shift_m, "shift_east_m": east, "shift_north_m": north, "iou after the shift": shift.iou_after,
        **_source_flags(dict(zip(SOURCE_ROLES, (a, b, *truth), strict=False)), at_limit=shift.at_limit),
    }  # fmt: skip
    if out is not None:
        tags = {"QUANTITY": "0 land in both, 1 water in both, 2 water in the first only, 3 water in the second only"}
        write_cog(
            out,
            disagreement_map(a.mask, b.mask, known),
            grid,
            bands=("disagreement",),
            nodata=255,
            colormap=DISAGREEMENT_COLORS,
            tags=tags,
        )
        facts["map"] = str(out)
    right = truth[0].mask if truth else None
    rows = trust_table(a.mask, b.mask, known, gsd_m=sides, reference=right, pixel_area_m2=area)
    return facts, [_trust_columns(row) for row in rows], ()


def _source_flags(sources: Mapping[str, ComparedSource], *, at_limit: bool) -> dict[str, str]:
    """Return every flag of every source, by its role; two files may have one name."""
    facts = {f"flags of the {role}": "; ".join(source.flags) for role, source in sources.items() if source.flags}
    if at_limit:
        facts["flags of the shift"] = "shift-at-limit: the true one may lie beyond"
    return facts


def _trust_columns(t: TrustRow) -> ResultRow:
    far = "" if np.isinf(t.high_m) else f"{t.high_m:g}"
    return {
        "meters from shore": f"{t.low_m:g}-{far}" if far else f"{t.low_m:g} and more", "pixels": t.pixels, "agreement": t.agreement,
        "only first km2": t.only_a_km2, "only second km2": t.only_b_km2, "first right": t.a_right, "second right": t.b_right,
        "trust": {"a": "first", "b": "second"}.get(t.better, t.better),
    }  # fmt: skip


def _shared_grid(rasters: Sequence[Path]) -> Grid:
    if not rasters:
        raise UsageError(
            "compare-labels: expected a raster among the sources, got vector layers only; give the scene's mask as a GeoTIFF"
        )
    grids = []
    for path in rasters:
        with open_raster(path) as source:
            grids.append(source.grid)
    for path, grid in zip(rasters[1:], grids[1:], strict=True):
        if wrong := grids[0].mismatch(grid):
            raise DataError(f"{path}: expected the grid of {rasters[0]}, got {wrong}; resample one of them on purpose")
    return grids[0]


def _read_source(path: Path, grid: Grid, value: int, all_touched: bool) -> ComparedSource:
    if path.suffix.lower() in VECTOR_FORMATS:
        burned = rasterize_layer(path, grid, all_touched=all_touched)
        return ComparedSource(path, burned.mask, np.ones(burned.mask.shape, bool), burned.flags)
    with open_raster(path) as source:
        data, seen = source.read(bands=source.bands[:1])
    mask = (data[0] == value) & seen
    flags = ["nothing-known"] if not seen.any() else [] if mask.any() else [f"no-such-value: {value}, all land"]
    return ComparedSource(path, mask, seen, tuple(flags))

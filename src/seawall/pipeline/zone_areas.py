"""The verb `area`: how much of a class is in a map or in each zone of a layer, as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyogrio
import shapely

from seawall.arrays import BoolArray, DoubleArray, FloatArray
from seawall.errors import UsageError
from seawall.io import escape_formulas, open_atomic, write_atomic
from seawall.labels.zones import Zone, ZoneLayer, read_zones
from seawall.pipeline.finished_map import FinishedMap, MapLayers, find_map
from seawall.result import Failed, MutableRow, ResultRow, StageProgress
from seawall.uncertainty.area import (
    AREA_VALIDITY,
    AreaCalibration,
    AreaSums,
    check_interval_level,
    describe_area,
    estimate_area,
)
from seawall.uncertainty.conformal import exact_percent

STRIP_OF_ROWS = 512
"""Rows that are summed at once, the block size of maps."""
TABLE_SUFFIXES = (".csv", ".gpkg")
NO_AREA = AreaSums(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ZoneSums:
    """Sums over the pixels of a zone; those of its parts add up.

    Args:
        area: Sums over its seen pixels.
        unsure_km2: Area of the seen pixels whose class cannot be told.
        pixels: Number of pixels with their center in the zone.
        pixels_km2: Their area, seen or not.
    """

    area: AreaSums = NO_AREA
    unsure_km2: float = 0.0
    pixels: int = 0
    pixels_km2: float = 0.0

    def __add__(self, other: ZoneSums) -> ZoneSums:
        return ZoneSums(
            self.area + other.area,
            self.unsure_km2 + other.unsure_km2,
            self.pixels + other.pixels,
            self.pixels_km2 + other.pixels_km2,
        )


def measure_areas(
    path: Path, zones: Path | None, out: Path | None, *, name_column: str, layer: str, level: float, progress: StageProgress
) -> tuple[MutableRow, Sequence[ResultRow], Failed]:  # fmt: skip
    """Return facts, one row per zone or one of the whole map, and the features that are no zones; write the table.

    Raises:
        UsageError: There is no map, no such column, or the table has another ending than .csv or .gpkg.
        DataError: The zones have no coordinate system or are off the map.
    """
    if out is not None and (out.suffix not in TABLE_SUFFIXES or (zones is None and out.suffix == ".gpkg")):
        known = ".csv" if zones is None else " or ".join(TABLE_SUFFIXES)
        raise UsageError(
            f"out: expected a file ending in {known}, got {out.name}; a GeoPackage needs the outlines of --zones"
        )
    if zones is None and (name_column or layer):
        raise UsageError(
            "area: expected --zones beside --name-column and --layer, got none; give the layer of the zones"
        )
    check_interval_level(level)
    made = find_map(path)
    with made.open() as layers:
        found = None if zones is None else read_zones(zones, layers.grid, name_column=name_column, layer=layer or None)
        sums = sum_zones(layers, None if found is None else found.zones, progress)
    names = [(made.name, 1.0)] if found is None else [(zone.name, zone.map_share) for zone in found.zones]
    table = [_row(name, share, one, made.calibration, level) for (name, share), one in zip(names, sums, strict=True)]
    if out is not None:
        _write_table(out, table, found)
    return _facts(made, found, sums, level, out), table, () if found is None else found.skipped


def sum_zones(layers: MapLayers, zones: Sequence[Zone] | None, progress: StageProgress) -> list[ZoneSums]:
    """Return the sums over each zone, or over the whole map if None, reading the map once in strips of rows."""
    grid = layers.grid
    windows = [(0, 0, grid.height, grid.width)] if zones is None else [zone.window(grid) for zone in zones]
    sums = [ZoneSums() for _ in windows]
    areas = grid.row_areas_m2()
    assert areas is not None  # `FinishedMap.open` refuses a map without
    for top in range(0, grid.height, STRIP_OF_ROWS):
        height = min(STRIP_OF_ROWS, grid.height - top)
        progress(top, grid.height, "rows")
        inside = [i for i, at in enumerate(windows) if at is not None and at[0] < top + height and at[0] + at[2] > top]
        if not inside:
            continue
        strip = _Strip(*layers.read(top, height), areas[top : top + height] / 1e6)
        for i in inside:
            row, col, tall, wide = windows[i] or (0, 0, 0, 0)
            first, last = max(row, top), min(row + tall, top + height)
            part = (first, col, last - first, wide)
            mask = np.ones(part[2:], np.bool_) if zones is None else zones[i].mask(grid, part)
            sums[i] += strip.sums(mask, first - top, col)
    progress(grid.height, grid.height, "rows")
    return sums


@dataclass(frozen=True)
class _Strip:
    """Rows of a map.

    Args:
        mapped: (H, W) where it has the class.
        probability: (H, W) of the class, 0 where nothing was seen.
        seen: (H, W) where it was seen.
        unsure: (H, W) where its class cannot be told.
        pixel_km2: (H,) area of a pixel of each row.
    """

    mapped: BoolArray
    probability: FloatArray
    seen: BoolArray
    unsure: BoolArray
    pixel_km2: DoubleArray

    def sums(self, inside: BoolArray, row: int, col: int) -> ZoneSums:
        """Return the sums over the pixels of a mask whose upper left pixel is at a row and column of the strip."""
        at = (slice(row, row + inside.shape[0]), slice(col, col + inside.shape[1]))
        p, seen = self.probability[at], self.seen[at] & inside

        def total(values: BoolArray | FloatArray) -> float:
            return float(values.sum(1, dtype=np.float64) @ self.pixel_km2[at[0]])

        area = AreaSums(total(self.mapped[at] & seen), total(p * seen), total(p * (1 - p) * seen), total(seen))
        return ZoneSums(area, total(self.unsure[at] & seen), int(inside.sum()), total(inside))


def _row(name: str, map_share: float, sums: ZoneSums, calibration: AreaCalibration | None, level: float) -> MutableRow:
    seen = sums.area.seen_km2 / sums.pixels_km2 * map_share if sums.pixels else 0.0
    found = estimate_area(sums.area, calibration, level) if sums.area.seen_km2 else None
    row: MutableRow = {
        "zone": name,
        "mapped_km2": None if found is None else found.mapped_km2,
        "interval_low_km2": None if found is None else found.low_km2,
        "interval_high_km2": None if found is None else found.high_km2,
        "unsure_km2": None if found is None else sums.unsure_km2,
        "expected_km2": None if found is None else sums.area.expected_km2,
        "corrected_km2": None if found is None else found.corrected_km2,
        "stratified_km2": None if found is None else found.stratified_km2,
        "stratified_se_km2": None if found is None else found.scene_se_km2,
        "map_share": map_share,
        "seen_share": seen,
        "note": "; ".join(_notes(map_share, sums, calibration)),
    }
    return {column: round(value, 6) if isinstance(value, float) else value for column, value in row.items()}


def _notes(map_share: float, sums: ZoneSums, calibration: AreaCalibration | None) -> list[str]:
    if map_share == 0:
        return ["off the map"]
    notes = ["partly off the map"] if map_share < 1 - 1e-6 else []
    if not sums.pixels:
        return [*notes, "no pixel has its center inside"]
    if not sums.area.seen_km2:
        return [*notes, "nothing seen"]
    if calibration is not None and sums.area.seen_km2 < float(calibration.table.sum(1).min()):
        notes.append("smaller than every held-out scene")
    return notes


def _facts(
    made: FinishedMap, found: ZoneLayer | None, sums: Sequence[ZoneSums], level: float, out: Path | None
) -> MutableRow:
    facts: MutableRow = {"map": made.name, "class": made.klass}
    whole = estimate_area(sums[0].area, made.calibration, level)
    if found is None:
        facts["area"] = describe_area(whole, made.klass, sums[0].unsure_km2 if made.controlled else None)
    else:
        facts |= {"zones": f"{len(found.zones)} of {found.source}"}
    facts["interval"] = f"{exact_percent(level)} {AREA_VALIDITY}" if not whole.reason else f"none: {whole.reason}"
    return facts if out is None else {**facts, "table": str(out)}


def _write_table(out: Path, table: Sequence[ResultRow], found: ZoneLayer | None) -> None:
    if out.suffix == ".gpkg" and found is not None:
        _write_package(out, table, found)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(escape_formulas, table))
    write_atomic(out, text.getvalue())


def _write_package(out: Path, table: Sequence[Mapping[str, object]], found: ZoneLayer) -> None:
    """Write the outlines as they are in the layer, with the columns of the table."""
    columns = list(table[0])
    texts = ("zone", "note")
    values = [
        np.array([row[name] for row in table], object)
        if name in texts
        else np.array([np.nan if row[name] is None else row[name] for row in table], np.float64)
        for name in columns
    ]
    package = io.BytesIO()
    pyogrio.raw.write(
        package, shapely.to_wkb(np.array([zone.outline for zone in found.zones], object)), values, np.array(columns, object),
        layer="areas", driver="GPKG", geometry_type="MultiPolygon", crs=found.crs,
    )  # fmt: skip
    with open_atomic(out) as file:
        file.write(package.getvalue())

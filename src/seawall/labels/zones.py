"""Zones, such as catchments or districts, of a vector layer on the grid of a map."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS, Transformer
from rasterio.features import geometry_mask
from shapely.geometry.base import BaseGeometry

from seawall.arrays import BoolArray
from seawall.errors import DataError, UsageError, did_you_mean
from seawall.geo.grid import Grid
from seawall.geo.raster import Window
from seawall.labels.vector import (
    Geometries,
    choose_layer,
    count_features,
    crs_of_grid,
    grid_bounds,
    grid_outline,
    layer_crs,
    transform_geometries,
    vector_error,
)

MAX_ZONES = 100_000
"""Most zones of one layer."""
NAME_COLUMN = "name"
"""Column that names the zones where none is given, in any case."""
EDGE_PARTS = 64
"""Parts into which the longer side of a map is divided: straight edges of a zone are split at that length before they are reprojected."""


@dataclass(frozen=True)
class Zone:
    """A zone on the grid of a map.

    Args:
        name: Its name, or its feature id where it has none.
        outline: Polygons as in the layer.
        shape: The same in the coordinate system of the map.
        map_share: Share of its area that is on the map.
    """

    name: str
    outline: shapely.MultiPolygon
    shape: shapely.MultiPolygon
    map_share: float

    def window(self, grid: Grid) -> Window | None:
        """Return the pixels around the zone; None where it has none on the grid.

        Raises:
            DataError: The grid has no georeference.
        """
        if grid.transform is None:
            raise DataError("zones: expected a georeferenced grid, got none; give the scene a transform and a crs")
        back, (left, bottom, right, top) = ~grid.transform, self.shape.bounds
        corners = [(x, y) for x in (left, right) for y in (bottom, top)]
        cols = [back.a * x + back.b * y + back.c for x, y in corners]
        rows = [back.d * x + back.e * y + back.f for x, y in corners]
        row, col = max(0, int(np.floor(min(rows)))), max(0, int(np.floor(min(cols))))
        height, width = min(grid.height, int(np.ceil(max(rows)))) - row, min(grid.width, int(np.ceil(max(cols)))) - col
        return (row, col, height, width) if height > 0 and width > 0 else None

    def mask(self, grid: Grid, window: Window) -> BoolArray:
        """Return which pixels of a window have their center in the zone, (height, width)."""
        part = grid.window(*window)
        inside = geometry_mask([self.shape], (part.height, part.width), part.transform, invert=True)
        return np.asarray(inside, np.bool_)


@dataclass(frozen=True)
class ZoneLayer:
    """The zones of a layer.

    Args:
        source: File and layer.
        crs: Coordinate system of the layer, as WKT.
        zones: In the order of the layer, some of them perhaps off the map.
        skipped: (zone, reason) of features that are no zones.
    """

    source: str
    crs: str
    zones: tuple[Zone, ...]
    skipped: tuple[tuple[str, str], ...] = ()


def read_zones(path: Path | str, grid: Grid, *, name_column: str = "", layer: str | None = None) -> ZoneLayer:
    """Read the zones of a vector layer and put them onto the grid of a map.

    Args:
        path: Shapefile, GeoPackage, GeoJSON or FlatGeobuf; in any coordinate system.
        grid: A georeferenced grid.
        name_column: Column with the names; "name" by default, and feature ids where there is none.
        layer: Name of the layer; not needed if there is one.

    Raises:
        DataError: The file is no such layer, has no coordinate system, no polygon, or no zone on the map.
        UsageError: There is no such column or layer.
    """
    target = crs_of_grid(grid)
    file, name = choose_layer(Path(path), layer)
    source = layer_crs(file, name, None)
    if (number := count_features(file, name, source)) > MAX_ZONES:
        raise DataError(f"{path}: expected at most {MAX_ZONES} zones, got {number}; cut the layer")
    names, found = _read_features(file, name, name_column)
    skipped = [(zone, "no area") for zone, one in zip(names, found, strict=True) if one is None]
    kept = [(zone, one) for zone, one in zip(names, found, strict=True) if one is not None]
    if not kept:
        got = f"{len(names)} features without an area" if names else "a layer without features"
        raise DataError(f"{path}: expected zones that are polygons, got {got}; give a layer of areas")
    shapes = _on_grid(np.array([one for _, one in kept], object), source, target, grid)
    zones, outline = [], grid_outline(grid)
    for (zone, one), shape in zip(kept, shapes, strict=True):
        if shape is None:
            skipped.append((zone, f"cannot be reprojected to {target.to_string()[:40]}"))
        else:
            share = min(1.0, float(shapely.area(shapely.intersection(shape, outline)) / shapely.area(shape)))
            zones.append(Zone(zone, one, shape, share))
    if not any(zone.map_share for zone in zones):
        raise DataError(
            f"{path}: expected zones on the map, which is at {_extent([outline], target)}, got zones at "
            f"{_extent([one for _, one in kept], source)}; check the coordinate system of the layer, {source.to_string()[:60]}"
        )
    return ZoneLayer(f"{file.name}:{name}", source.to_wkt(), tuple(zones), tuple(skipped))


def _read_features(file: Path, layer: str, column: str) -> tuple[list[str], list[shapely.MultiPolygon | None]]:
    """Return the name and the polygons of each feature; None where it has no area."""
    columns = [str(one) for one in pyogrio.read_info(file, layer=layer)["fields"]]
    if column and column not in columns:
        known = (
            did_you_mean(column, columns)
            if columns
            else "the layer has none, leave --name-column out: zones are named by feature id"
        )
        raise UsageError(f"{file}: unknown column {column!r}; {known}")
    chosen = [column] if column else [one for one in columns if one.lower() == NAME_COLUMN][:1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # broken rings become features without an area
            _, ids, wkb, values = pyogrio.raw.read(file, layer=layer, columns=chosen, force_2d=True, return_fids=True)
    except (DataSourceError, DataLayerError, ValueError) as bad:
        raise DataError(f"{file}: expected readable features, got {vector_error(bad)}; check the file") from bad
    given = values[0] if chosen else [None] * len(ids)
    shapes = shapely.from_wkb(np.asarray(wkb if len(ids) else [], object), on_invalid="ignore")
    return [_zone_name(text, id_) for text, id_ in zip(given, ids, strict=True)], [_polygons(one) for one in shapes]


def _zone_name(value: object, id_: int) -> str:
    missing = value is None or value == "" or value != value  # NaN is the missing number of a column
    return str(id_) if missing else str(value)


def _polygons(shape: BaseGeometry | None) -> shapely.MultiPolygon | None:
    """Return the polygons of a geometry after its repair; None where there is none with an area."""
    if shape is None or shape.is_empty or not np.isfinite(shape.bounds).all():
        return None
    parts: Sequence[BaseGeometry] = [shape if shape.is_valid else shapely.make_valid(shape)]
    while any(shapely.get_type_id(part) > 3 for part in parts):
        parts = list(shapely.get_parts(np.array(parts, object)))
    polygons = [part for part in parts if isinstance(part, shapely.Polygon) and part.area > 0]
    return shapely.MultiPolygon(polygons) if polygons else None


def _on_grid(found: Geometries, source: CRS, target: CRS, grid: Grid) -> Iterator[shapely.MultiPolygon | None]:
    """Yield each zone in the coordinate system of the grid; None where it has no place there."""
    if source.equals(target, ignore_axis_order=True):
        yield from found
        return
    box = grid_bounds(grid, source, target)
    if box is not None:
        found = shapely.segmentize(found, max(box[2] - box[0], box[3] - box[1]) / EDGE_PARTS)
    for shape in transform_geometries(found, source, target):
        yield _polygons(shape)


def _extent(shapes: Sequence[BaseGeometry], crs: CRS) -> str:
    """Return where geometries are, in degrees."""
    over = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    left, bottom, right, top = shapely.total_bounds(np.array(shapes, object)).tolist()
    west, south, east, north = over.transform_bounds(left, bottom, right, top, densify_pts=21)
    return f"longitude {west:.3f} to {east:.3f} and latitude {south:.3f} to {north:.3f}"

"""Vector water layers on a raster's grid: what was burned, what was left out, and how far off the layer may be."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio.features import rasterize

from seawall.errors import DataError, UsageError
from seawall.geo.raster import Grid

VECTOR_FORMATS: Mapping[str, str] = {
    ".shp": "ESRI Shapefile",
    ".gpkg": "GPKG",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".fgb": "FlatGeobuf",
}
"""Suffixes that are read, and the GDAL driver that each must have."""

MAX_FEATURES = 5_000_000
"""Most features of one layer within the grid; a larger layer is refused before its geometries are read."""

Geometries = NDArray[np.object_]


@dataclass(frozen=True)
class VectorMask:
    """A vector layer burned onto a grid.

    Args:
        mask: (H, W) bool, True where the layer has water.
        grid: Where it is.
        source: File and layer.
        features: Features of the layer near the grid.
        used: Features that were burned.
        repaired: Invalid geometries that were repaired.
        skipped: Features left out, by reason.
        crs: Coordinate system of the layer.
        reprojected: The layer was in another system than the grid.
        misses: No geometry touches the grid: the mask is all land, although there may be water.
        empty: The layer has no feature at all.
        all_touched: Every touched pixel is water, not only those whose center is inside.
        spacing_m: Median distance of neighboring vertices in meters: no detail of the layer is finer. None without
            any.
    """

    mask: NDArray[np.bool_]
    grid: Grid
    source: str
    features: int
    used: int
    repaired: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    crs: str = ""
    reprojected: bool = False
    misses: bool = False
    empty: bool = False
    all_touched: bool = False
    spacing_m: float | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Remarks on how far the mask can be trusted."""
        remarks = []
        if self.empty:
            remarks.append("layer-empty: all land")
        elif self.misses:
            remarks.append("layer-misses-scene: all land")
        if self.reprojected:
            remarks.append("layer-reprojected")
        if self.repaired:
            remarks.append(f"geometries-repaired: {self.repaired}")
        remarks += [f"features-skipped: {n}, {reason}" for reason, n in sorted(self.skipped.items())]
        return tuple(remarks)


def rasterize_layer(
    path: Path | str,
    grid: Grid,
    *,
    layer: str | None = None,
    all_touched: bool = False,
    line_width_m: float | None = None,
    where: str | None = None,
    crs: str | None = None,
) -> VectorMask:
    """Burn the water of a vector layer onto a grid.

    Args:
        path: Shapefile, GeoPackage, GeoJSON or FlatGeobuf.
        grid: A georeferenced grid.
        layer: Name of the layer; not needed if there is one.
        all_touched: Every touched pixel is water; else those whose center is inside.
        line_width_m: Rivers drawn as lines get this width; without it they burn the pixels that they cross.
        where: Filter in SQL, such as "type = 'water'".
        crs: Coordinate system of a layer that does not declare one; refused if the layer declares another.

    Returns:
        The mask and what was done. A layer that misses the grid gives all land with `misses` set.

    Raises:
        DataError: The file is no such layer, has no coordinate system, or the grid is not georeferenced.
        UsageError: A wrong setting, or a layer must be named.
    """
    if line_width_m is not None and not (np.isfinite(line_width_m) and line_width_m > 0):
        raise UsageError(f"{path}: expected line_width_m above 0, got {line_width_m}; leave it out for bare lines")
    target = crs_of_grid(grid)
    file, name = choose_layer(Path(path), layer)
    source = layer_crs(file, name, crs)
    number = count_features(file, name, source)
    geometries, repaired, skipped = _read_geometries(file, name, where, grid, source, target)
    found = len(geometries) + sum(skipped.values())
    reprojected = not source.equals(target, ignore_axis_order=True)
    meter = _meters_per_unit(target, grid)
    spacing = _vertex_spacing(geometries, source, target)
    if reprojected:
        geometries = _reproject(geometries, source, target, grid, skipped)
    parts, owner = _drawable(geometries, None if line_width_m is None else line_width_m / meter, skipped)
    near = shapely.intersects(parts, grid_outline(grid)) if len(parts) else np.zeros(0, bool)
    return VectorMask(
        mask=_burn_mask(parts[near], grid, all_touched),
        grid=grid,
        source=f"{file.name}:{name}",
        features=found,
        used=len(np.unique(owner[near])),
        repaired=repaired,
        skipped=dict(skipped),
        crs=source.to_string(),
        reprojected=reprojected,
        misses=not near.any(),
        empty=number == 0,
        all_touched=all_touched,
        spacing_m=None if spacing is None else spacing * meter,
    )


def crs_of_grid(grid: Grid) -> CRS:
    """Return the coordinate system of a grid.

    Raises:
        DataError: It has none, or an unknown one.
    """
    if grid.transform is None or grid.crs is None:
        raise DataError("vector layer: expected a georeferenced grid, got none; give the scene a transform and a crs")
    try:
        return CRS.from_user_input(grid.crs)
    except CRSError as bad:
        raise DataError(f"vector layer: expected a known crs of the grid, got {grid.crs[:60]!r}; correct it") from bad


def choose_layer(path: Path, layer: str | None) -> tuple[Path, str]:
    """Return a vector file and the name of its layer.

    Raises:
        DataError: It is no vector file that can be read.
        UsageError: There is no such layer, or there are several and none is named.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a vector file, got no such file; check the path")
    if path.suffix.lower() not in VECTOR_FORMATS:
        raise DataError(
            f"{path}: expected a file ending in {', '.join(VECTOR_FORMATS)}, got {path.suffix or 'no suffix'}; convert the layer"
        )
    try:
        names = [str(row[0]) for row in pyogrio.list_layers(path)]
    except DataSourceError as bad:
        raise DataError(
            f"{path}: expected a vector layer, got an unreadable file ({vector_error(bad)}); fetch it again"
        ) from bad
    if layer is not None and layer not in names:
        raise UsageError(f"{path}: unknown layer {layer!r}; known: {', '.join(names)}")
    if layer is None and len(names) != 1:
        raise UsageError(
            f"{path}: expected one layer, got {len(names)} ({', '.join(names)}); name one with --layer (layer= in Python)"
        )
    return path, layer or names[0]


def layer_crs(path: Path, layer: str, given: str | None) -> CRS:
    """Return the coordinate system that a layer declares, or the one given for a layer that declares none.

    Raises:
        DataError: There is none, or the file is not what its suffix says.
        UsageError: Both are there and differ.
    """
    try:
        info = pyogrio.read_info(path, layer=layer)
    except (DataSourceError, DataLayerError) as bad:
        raise DataError(
            f"{path}: expected layer {layer}, got an unreadable one ({vector_error(bad)}); fetch it again"
        ) from bad
    if info["driver"] != VECTOR_FORMATS[path.suffix.lower()]:
        raise DataError(
            f"{path}: expected {VECTOR_FORMATS[path.suffix.lower()]}, got {info['driver']}; rename or convert it"
        )
    try:
        own = CRS.from_user_input(info["crs"]) if info["crs"] else None
        declared = CRS.from_user_input(given) if given else None
    except CRSError as bad:
        raise DataError(
            f"{path}: expected a known coordinate system, got {vector_error(bad)}; correct it, or pass crs= in Python"
        ) from bad
    if own is None and declared is None:
        raise DataError(
            f"{path}: expected a layer with a coordinate system, got none; add its .prj file, write a GeoPackage with one, or pass crs= in Python"
        )
    if own is not None and declared is not None and not own.equals(declared, ignore_axis_order=True):
        raise UsageError(f"{path}: expected crs {own.to_string()} as the layer says, got {given}; leave crs out")
    return own or declared or CRS.from_epsg(4326)


def count_features(path: Path, layer: str, source: CRS) -> int:
    """Return the number of features of a layer; raise if a geographic layer has coordinates that are no degrees."""
    try:
        info = pyogrio.read_info(path, layer=layer, force_feature_count=True, force_total_bounds=source.is_geographic)
    except (DataSourceError, DataLayerError) as bad:
        raise DataError(
            f"{path}: expected layer {layer}, got an unreadable one ({vector_error(bad)}); fetch it again"
        ) from bad
    bounds = info["total_bounds"] if source.is_geographic else None
    if bounds is not None and np.isfinite(bounds).all() and (np.abs(bounds) > (540, 90.001) * 2).any():
        raise DataError(
            f"{path}: expected degrees, as {source.to_string()} has, got coordinates from ({bounds[0]:g}, {bounds[1]:g}) to "
            f"({bounds[2]:g}, {bounds[3]:g}); the layer must say its coordinate system (GeoJSON without a crs is in degrees)"
        )
    return int(info["features"])


def _read_geometries(
    path: Path, layer: str, where: str | None, grid: Grid, source: CRS, target: CRS
) -> tuple[Geometries, int, Counter[str]]:
    """Read the geometries near the grid; invalid ones are repaired and counted, unreadable ones skipped."""
    box = grid_bounds(grid, source, target)
    try:
        number = pyogrio.read_info(path, layer=layer)["features"]
        if number > MAX_FEATURES:
            number = len(pyogrio.read_bounds(path, layer=layer, bbox=box, where=where)[0])
        if number > MAX_FEATURES:
            raise DataError(
                f"{path}: expected at most {MAX_FEATURES} features near the grid, got {number}; cut the layer"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # broken rings are counted below instead
            wkb = pyogrio.raw.read(path, layer=layer, columns=[], bbox=box, where=where, force_2d=True)[2]
    except (DataSourceError, DataLayerError, ValueError) as bad:
        raise DataError(
            f"{path}: expected readable features, got {vector_error(bad)}; check the file and the filter"
        ) from bad
    skipped: Counter[str] = Counter()
    found = shapely.from_wkb(np.asarray(wkb, object), on_invalid="ignore") if wkb is not None else np.empty(0, object)
    empty = shapely.is_missing(found) | shapely.is_empty(found)
    skipped["empty or unreadable geometry"] += int(np.count_nonzero(empty))
    found = found[~empty]
    finite = np.isfinite(shapely.bounds(found)).all(1) if len(found) else np.zeros(0, bool)
    skipped["coordinates not finite"] += int(np.count_nonzero(~finite))
    found = found[finite]
    invalid = ~shapely.is_valid(found)
    found[invalid] = shapely.make_valid(found[invalid])
    return found, int(np.count_nonzero(invalid)), +skipped


def grid_bounds(grid: Grid, source: CRS, target: CRS) -> tuple[float, float, float, float] | None:
    """Return the grid's bounds in the layer's system with a margin of a pixel; None where they cannot be converted."""
    left, bottom, right, top = grid_outline(grid).bounds
    spare = max(right - left, top - bottom) / min(grid.height, grid.width)
    bounds = (left - spare, bottom - spare, right + spare, top + spare)
    try:
        found = Transformer.from_crs(target, source, always_xy=True).transform_bounds(*bounds, densify_pts=21)
    except ProjError:
        return None
    # across the antimeridian left exceeds right: read the whole layer and let the grid decide
    return found if np.isfinite(found).all() and found[0] < found[2] and found[1] < found[3] else None


def grid_outline(grid: Grid) -> shapely.Polygon:
    """Return the outline of a grid in its coordinate system."""
    corners = ((0, 0), (0, grid.width), (grid.height, grid.width), (grid.height, 0))
    return shapely.Polygon([grid.point(r, c) for r, c in corners])


def _reproject(found: Geometries, source: CRS, target: CRS, grid: Grid, skipped: Counter[str]) -> Geometries:
    """Reproject geometries; long edges are split first, for a straight edge is a curve in another system."""
    box = grid_bounds(grid, source, target)
    if box is not None and len(found):
        width = max(box[2] - box[0], box[3] - box[1])
        room = shapely.box(box[0] - width, box[1] - width, box[2] + width, box[3] + width)
        found = shapely.segmentize(shapely.intersection(found, room), width / 32)
        found = found[~shapely.is_empty(found)]
    moved = transform_geometries(found, source, target)
    lost = shapely.is_missing(moved)
    if lost.any():
        skipped["cannot be reprojected"] += int(np.count_nonzero(lost))
    return moved[~lost]


def transform_geometries(found: Geometries, source: CRS, target: CRS) -> Geometries:
    """Return valid geometries in another coordinate system; None for those that have no place in it."""
    moved = np.array(shapely.transform(found, lambda points: _reproject_points(points, source, target)), object)
    if not len(moved):
        return moved
    moved[~np.isfinite(shapely.bounds(moved)).all(1)] = None
    invalid = ~shapely.is_valid(moved) & ~shapely.is_missing(moved)
    moved[invalid] = shapely.make_valid(moved[invalid])
    return moved


def _reproject_points(points: NDArray[np.float64], source: CRS, target: CRS) -> NDArray[np.float64]:
    if not len(points):
        return points
    over = Transformer.from_crs(source, target, always_xy=True)
    return np.stack(over.transform(points[:, 0], points[:, 1]), 1)


def _drawable(
    found: Geometries, line_width: float | None, skipped: Counter[str]
) -> tuple[Geometries, NDArray[np.int64]]:
    """Return the simple areas and lines, and the feature of each; points have no extent and are skipped."""
    parts, owner = shapely.get_parts(found, return_index=True)
    nested = shapely.get_type_id(parts) > 3  # a collection inside a collection, as repairs make
    while nested.any():
        inner, at = shapely.get_parts(parts, return_index=True)
        parts, owner = inner, owner[at]
        nested = shapely.get_type_id(parts) > 3
    dimension = shapely.get_dimensions(parts)
    kept = dimension >= 1
    if lost := len(found) - len(np.unique(owner[kept])):
        skipped["points have no area"] += lost
    parts, owner = parts[kept], owner[kept]
    if line_width is not None:
        lines = shapely.get_dimensions(parts) == 1
        parts[lines] = shapely.buffer(parts[lines], line_width / 2)
    return np.asarray(parts, object), np.asarray(owner, np.int64)


def _burn_mask(found: Geometries, grid: Grid, all_touched: bool) -> NDArray[np.bool_]:
    if not len(found):
        return np.zeros((grid.height, grid.width), bool)
    burned = rasterize(
        ((shape, 1) for shape in found),
        out_shape=(grid.height, grid.width),
        transform=grid.transform,
        all_touched=all_touched,
        dtype="uint8",
    )
    return np.asarray(burned > 0)


def _meters_per_unit(target: CRS, grid: Grid) -> float:
    """Return the length of a unit of the grid's coordinate system in meters, at the grid."""
    if target.is_projected:
        return float(target.axis_info[0].unit_conversion_factor or 1.0)
    gsd_m = grid.gsd_m()
    pixel = abs(grid.transform.determinant) ** 0.5 if grid.transform is not None else 1.0
    return (gsd_m or pixel) / pixel


def _vertex_spacing(found: Geometries, source: CRS, target: CRS) -> float | None:
    """Return the median distance of neighboring vertices in the target's units."""
    points, owner = shapely.get_coordinates(found, return_index=True)
    placed = _reproject_points(points, source, target)
    steps = np.hypot(*(placed[1:] - placed[:-1])[owner[1:] == owner[:-1]].T)
    steps = steps[np.isfinite(steps) & (steps > 0)]
    return float(np.median(steps)) if len(steps) else None


def vector_error(bad: BaseException) -> str:
    return str(bad).splitlines()[0][:160] if str(bad) else type(bad).__name__

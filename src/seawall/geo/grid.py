"""Georeference of a raster: shape, affine transform and coordinate reference system as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from affine import Affine
from pyproj import CRS, Geod, Transformer
from pyproj.exceptions import CRSError, ProjError

from seawall.arrays import DoubleArray
from seawall.errors import ImageryError

PIXEL_TOLERANCE = 0.01
"""Largest distance, in pixels, between the corners of grids that count as the same."""

AREA_TOLERANCE = 0.005
"""Largest relative area distortion at which the planar pixel area is used (100 m2 in UTM)."""


@dataclass(frozen=True)
class Grid:
    """Shape and georeference of a raster.

    Args:
        height: Rows.
        width: Columns.
        transform: Maps (column, row) of pixel corners to coordinates; None without georeference.
        crs: Coordinate reference system as "EPSG:n" or WKT; None without georeference.

    Example:
        >>> grid = Grid(4, 4, Affine(10, 0, 500000, 0, -10, 0), "EPSG:32631")
        >>> grid.pixel_area_m2()
        100.0
        >>> grid.window(1, 2, 2, 2).transform.c
        500020.0
    """

    height: int
    width: int
    transform: Affine | None = None
    crs: str | None = None

    def window(self, row: int, col: int, height: int, width: int) -> Grid:
        """Return the grid of a window; it may extend beyond this grid."""
        if self.transform is None:
            return Grid(height, width, None, self.crs)
        t = self.transform
        x, y = self.point(row, col)
        return Grid(height, width, Affine(t.a, t.b, x, t.d, t.e, y), self.crs)

    def point(self, row: float, col: float) -> tuple[float, float]:
        """Return the coordinates (x, y) of a row and column, counted at pixel corners.

        Raises:
            ImageryError: The grid has no georeference.
        """
        if self.transform is None:
            raise ImageryError("grid: expected a georeferenced raster, got none; give it a transform and a crs")
        t = self.transform
        return t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f

    def row_areas_m2(self) -> DoubleArray | None:
        """Return the ground area of a pixel in each row, (H,) in square meters, or None if unknown.

        Geodesic on the ellipsoid where the coordinate reference system distorts areas (geographic, web Mercator), else planar.
        """
        if self.transform is None or self.crs is None:
            return None
        try:
            crs = CRS.from_user_input(self.crs)
        except CRSError:
            return None
        if not (crs.is_geographic or crs.is_projected):
            return None
        rows = np.unique(np.linspace(0, self.height - 1, min(self.height, 65)).round())
        area = np.array([self._geodesic_area_m2(crs, float(row)) for row in rows])
        if not np.isfinite(area).all():
            return None
        if crs.is_projected:
            unit = float(crs.axis_info[0].unit_conversion_factor or 1.0)
            planar = abs(self.transform.determinant) * unit**2
            if float(np.abs(area / planar - 1).max()) < AREA_TOLERANCE:
                return np.full(self.height, planar)
        return np.asarray(np.interp(np.arange(self.height), rows, area), np.float64)

    def pixel_area_m2(self) -> float | None:
        """Return the mean ground area of a pixel in square meters, or None without georeference."""
        areas = self.row_areas_m2()
        return None if areas is None else float(areas.mean())

    def gsd_m(self) -> float | None:
        """Return the ground sampling distance in meters: the side of a square of the mean pixel's area."""
        area = self.pixel_area_m2()
        return None if area is None else math.sqrt(area)

    def why_no_area(self) -> str:
        """Return why the pixel area is unknown; "" if it is known."""
        if self.row_areas_m2() is not None:
            return ""
        if self.transform is None or self.crs is None:
            return "the scene has no georeference"
        try:
            crs = CRS.from_user_input(self.crs)
        except CRSError:
            return "the scene's coordinate system is unknown"
        if not (crs.is_geographic or crs.is_projected):
            return "the scene's coordinate system is not of the earth's surface"
        if crs.is_geographic and any(abs(self.point(row, 0)[1]) > 90 for row in (0, self.height)):
            return "the scene reaches beyond a pole (a latitude over 90 degrees)"
        return "the scene reaches to where its coordinate system ends"

    def poles(self) -> tuple[bool, bool]:
        """Return whether the north and the south pole are inside the grid; False where that is unknown."""
        if self.transform is None or self.crs is None or self.transform.determinant == 0:
            return False, False
        try:
            there = Transformer.from_crs("EPSG:4326", self.crs, always_xy=True)
            back = ~self.transform
            places = [there.transform(0.0, lat) for lat in (90.0, -90.0)]
        except (CRSError, ProjError):
            return False, False
        north, south = (
            0 <= back.a * x + back.b * y + back.c <= self.width and 0 <= back.d * x + back.e * y + back.f <= self.height
            for x, y in places
        )
        return north, south

    def pixel_size_m(self) -> tuple[float, float] | None:
        """Return the (height, width) of the middle pixel on the ground in meters, or None without georeference.

        They differ in geographic coordinates: at 60 degrees north a pixel is half as wide as it is high.
        """
        if self.pixel_area_m2() is None:
            return None
        down, right = self.offset_m(1, 0), self.offset_m(0, 1)
        return math.hypot(*down), math.hypot(*right)

    def offset_m(self, rows: float, cols: float) -> tuple[float, float]:
        """Return the offset (east, north) in meters of a step of rows down and columns right from the grid's center.

        East and north are the axes of the coordinate reference system; geodesic where it distorts areas.

        Raises:
            ImageryError: The grid has no georeference.
        """
        middle = (self.height / 2, self.width / 2)
        start, end = self.point(*middle), self.point(middle[0] + rows, middle[1] + cols)
        crs = CRS.from_user_input(self.crs)
        area, t = self.pixel_area_m2(), self.transform
        if crs.is_projected and area is not None and t is not None:
            unit = float(crs.axis_info[0].unit_conversion_factor or 1.0)
            if math.isclose(area, abs(t.determinant) * unit**2, rel_tol=AREA_TOLERANCE):
                return (end[0] - start[0]) * unit, (end[1] - start[1]) * unit
        xs, ys = (start[0], end[0]), (start[1], end[1])
        if not crs.is_geographic:
            xs, ys = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(xs, ys)
        geod = crs.get_geod() or Geod(ellps="WGS84")
        azimuth, _, length = geod.inv(xs[0], ys[0], xs[1], ys[1])
        return length * math.sin(math.radians(azimuth)), length * math.cos(math.radians(azimuth))

    def mismatch(self, other: Grid) -> str:
        """Return how another grid differs; "" if both have the same pixels."""
        if (self.height, self.width) != (other.height, other.width):
            return f"{self.height}x{self.width} against {other.height}x{other.width} pixels"
        if (self.transform is None) != (other.transform is None):
            return "one has a georeference, the other has none"
        if not _same_crs(self.crs, other.crs):
            return f"coordinate system {_crs_text(self.crs)} against {_crs_text(other.crs)}"
        if self.transform is None or other.transform is None:
            return ""
        try:
            back = ~self.transform
        except Exception:  # a degenerate transform has no inverse; affine's own error type moved between releases
            return "" if self.transform == other.transform else "a degenerate transform"
        worst = max(
            (self._corner_shift(other, back, r, c) for r in (0, self.height) for c in (0, self.width)), key=_length
        )
        if _length(worst) <= PIXEL_TOLERANCE:
            return ""
        return f"shifted by {worst[0]:+.2f} columns and {worst[1]:+.2f} rows"

    def same_as(self, other: Grid) -> bool:
        """Return whether both grids have the same pixels, up to `PIXEL_TOLERANCE`."""
        return not self.mismatch(other)

    def _corner_shift(self, other: Grid, back: Affine, row: int, col: int) -> tuple[float, float]:
        x, y = other.point(row, col)
        return back.a * x + back.b * y + back.c - col, back.d * x + back.e * y + back.f - row

    def _geodesic_area_m2(self, crs: CRS, row: float) -> float:
        col = self.width / 2
        ring = [self.point(row + dr, col + dc) for dr, dc in ((0, 0), (0, 1), (1, 1), (1, 0))]
        xs, ys = zip(*ring, strict=True)
        if not crs.is_geographic:
            xs, ys = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(xs, ys)
        geod = crs.get_geod() or Geod(ellps="WGS84")
        return abs(float(geod.polygon_area_perimeter(xs, ys)[0]))


def _length(shift: tuple[float, float]) -> float:
    return math.hypot(*shift)


def _same_crs(one: str | None, two: str | None) -> bool:
    if one == two or one is None or two is None:
        return one == two
    try:
        return bool(CRS.from_user_input(one).equals(CRS.from_user_input(two), ignore_axis_order=True))
    except CRSError:
        return False


def _crs_text(crs: str | None) -> str:
    return "none" if crs is None else crs if len(crs) < 40 else crs[:37] + "..."

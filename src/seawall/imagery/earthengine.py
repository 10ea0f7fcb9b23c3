"""Water masks from Earth Engine: the least cloudy Sentinel-2 image of a year, thresholded by NDWI.

The `ee` module is an argument, so that this module can be imported and tested without an account.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from seawall.errors import UsageError
from seawall.imagery.bounding_boxes import BoundingBox

S2_COLLECTION = "COPERNICUS/S2_HARMONIZED"


class EarthEngine(Protocol):
    """The part of the `ee` module that is used."""

    @property
    def Geometry(self) -> GeometryFactory: ...  # noqa: N802
    def ImageCollection(self, name: str) -> ImageCollection: ...  # noqa: N802


class GeometryFactory(Protocol):
    """The part of `ee.Geometry` that is used."""

    def Rectangle(self, bounds: list[float], proj: str, geodesic: bool) -> object: ...  # noqa: N802


class ImageCollection(Protocol):
    """The part of `ee.ImageCollection` that is used."""

    def filterBounds(self, region: object) -> ImageCollection: ...  # noqa: N802
    def filterDate(self, start: str, end: str) -> ImageCollection: ...  # noqa: N802
    def sort(self, by: str) -> ImageCollection: ...
    def first(self) -> EarthEngineImage: ...


class EarthEngineImage(Protocol):
    """The part of `ee.Image` that is used."""

    def normalizedDifference(self, bands: list[str]) -> EarthEngineImage: ...  # noqa: N802
    def select(self, bands: list[str]) -> EarthEngineImage: ...
    def gte(self, threshold: float) -> EarthEngineImage: ...
    def rename(self, name: str) -> EarthEngineImage: ...
    def toByte(self) -> EarthEngineImage: ...  # noqa: N802
    def getDownloadURL(self, params: dict[str, object]) -> str: ...  # noqa: N802


@dataclass(frozen=True)
class EarthEngineQuery:
    """Settings of a request to Earth Engine.

    Args:
        year: Year of the image.
        threshold: Water is where NDWI is at least this.
        gsd_m: Pixel size in meters.
        crs: Coordinate reference system of the files.
        bands: Bands of the image.
    """

    year: int = 2023
    threshold: float = -0.25
    gsd_m: float = 10.0
    crs: str = "EPSG:4326"
    bands: tuple[str, ...] = ("B2", "B3", "B4", "B8", "B11", "B12")

    def __post_init__(self) -> None:
        if not 2015 <= self.year <= 2100 or not -1 <= self.threshold <= 1 or self.gsd_m <= 0:
            raise UsageError(
                f"earth engine: expected a year from 2015, a threshold in -1..1 and a pixel size, got {self}; fix it"
            )


def least_cloudy(
    engine: EarthEngine, box: BoundingBox, query: EarthEngineQuery = EarthEngineQuery()
) -> tuple[EarthEngineImage, object]:
    """Return the least cloudy image of the year over a box, and the box as a region.

    The offset of baseline 04.00 is removed in the harmonized collection: read it with
    `Hints(gain=1e-4, offset_applied=True)`.
    """
    region = engine.Geometry.Rectangle(list(box.bounds), "EPSG:4326", False)
    images = engine.ImageCollection(S2_COLLECTION).filterBounds(region)
    images = images.filterDate(f"{query.year}-01-01", f"{query.year + 1}-01-01").sort("CLOUDY_PIXEL_PERCENTAGE")
    return images.first(), region


def mask_url(engine: EarthEngine, box: BoundingBox, query: EarthEngineQuery = EarthEngineQuery()) -> str:
    """Return the download address of the box's water mask: 1 where NDWI is at least the threshold."""
    image, region = least_cloudy(engine, box, query)
    water = image.normalizedDifference(["B3", "B8"]).gte(query.threshold).rename("water").toByte()
    return water.getDownloadURL(_params(f"{box.name}-mask", region, query))


def image_url(engine: EarthEngine, box: BoundingBox, query: EarthEngineQuery = EarthEngineQuery()) -> str:
    """Return the download address of the image that the mask is computed of."""
    image, region = least_cloudy(engine, box, query)
    return image.select(list(query.bands)).getDownloadURL(_params(f"{box.name}-image", region, query))


def _params(name: str, region: object, query: EarthEngineQuery) -> dict[str, object]:
    return {
        "name": name,
        "region": region,
        "scale": query.gsd_m,
        "crs": query.crs,
        "format": "GEO_TIFF",
        "filePerBand": False,
    }

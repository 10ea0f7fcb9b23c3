"""The report's way to masks: Earth Engine's least cloudy Sentinel-2 image of a year, thresholded by NDWI.

The `ee` module is handed in, so that nothing here needs an account until a request is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from seawall.errors import UsageError
from seawall.imagery.areas import Box

COLLECTION = "COPERNICUS/S2_HARMONIZED"


class Engine(Protocol):
    """What is used of the `ee` module."""

    @property
    def Geometry(self) -> Rectangles: ...  # noqa: N802
    def ImageCollection(self, name: str) -> Collection: ...  # noqa: N802


class Rectangles(Protocol):
    """Maker of regions."""

    def Rectangle(self, bounds: list[float], proj: str, geodesic: bool) -> object: ...  # noqa: N802


class Collection(Protocol):
    """Images that filters narrow down."""

    def filterBounds(self, region: object) -> Collection: ...  # noqa: N802
    def filterDate(self, start: str, end: str) -> Collection: ...  # noqa: N802
    def sort(self, by: str) -> Collection: ...
    def first(self) -> Image: ...


class Image(Protocol):
    """An image that is computed far away."""

    def normalizedDifference(self, bands: list[str]) -> Image: ...  # noqa: N802
    def select(self, bands: list[str]) -> Image: ...
    def gte(self, threshold: float) -> Image: ...
    def rename(self, name: str) -> Image: ...
    def toByte(self) -> Image: ...  # noqa: N802
    def getDownloadURL(self, params: dict[str, object]) -> str: ...  # noqa: N802


@dataclass(frozen=True)
class Ask:
    """What is asked of Earth Engine; the defaults are the report's.

    Args:
        year: Year to look in.
        threshold: Water is where NDWI is at least this.
        gsd_m: Pixel size of the answer.
        crs: Coordinate system of the answer.
        bands: Bands of the image that goes with the mask.
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


def least_cloudy(engine: Engine, box: Box, ask: Ask = Ask()) -> tuple[Image, object]:
    """Return the least cloudy image of the year over a box, and the region.

    The harmonized collection has the offset of baseline 04.00 taken out: read it with
    `Hints(gain=1e-4, offset_applied=True)`.
    """
    region = engine.Geometry.Rectangle(list(box.bounds), "EPSG:4326", False)
    images = engine.ImageCollection(COLLECTION).filterBounds(region)
    images = images.filterDate(f"{ask.year}-01-01", f"{ask.year + 1}-01-01").sort("CLOUDY_PIXEL_PERCENTAGE")
    return images.first(), region


def mask_url(engine: Engine, box: Box, ask: Ask = Ask()) -> str:
    """Return where to fetch the box's water mask: 1 where NDWI is at least the threshold."""
    image, region = least_cloudy(engine, box, ask)
    water = image.normalizedDifference(["B3", "B8"]).gte(ask.threshold).rename("water").toByte()
    return water.getDownloadURL(_params(f"{box.name}-mask", region, ask))


def image_url(engine: Engine, box: Box, ask: Ask = Ask()) -> str:
    """Return where to fetch the image under the box's mask."""
    image, region = least_cloudy(engine, box, ask)
    return image.select(list(ask.bands)).getDownloadURL(_params(f"{box.name}-image", region, ask))


def _params(name: str, region: object, ask: Ask) -> dict[str, object]:
    return {
        "name": name,
        "region": region,
        "scale": ask.gsd_m,
        "crs": ask.crs,
        "format": "GEO_TIFF",
        "filePerBand": False,
    }

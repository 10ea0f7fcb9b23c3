"""The request that goes to Earth Engine, recorded call by call."""

import pytest

from seawall.errors import UsageError
from seawall.imagery.bounding_boxes import BoundingBox
from seawall.imagery.earthengine import EarthEngineQuery, image_url, mask_url

BOX = BoundingBox("lake", 10.0, 10.2, 50.2, 50.1)
REGION = "ee.Geometry.Rectangle([10.0, 50.1, 10.2, 50.2], 'EPSG:4326', False)"
LEAST_CLOUDY = (
    "ee.ImageCollection('COPERNICUS/S2_HARMONIZED')"
    f".filterBounds({REGION}).filterDate('2023-01-01', '2024-01-01').sort('CLOUDY_PIXEL_PERCENTAGE').first()"
)


class Recorder:
    """Stands in for the `ee` module: every attribute and call only lengthens its text."""

    def __init__(self, text: str = "ee") -> None:
        self.text = text

    def __getattr__(self, name: str) -> "Recorder":
        return Recorder(f"{self.text}.{name}")

    def __call__(self, *args: object) -> "Recorder":
        return Recorder(f"{self.text}({', '.join(map(repr, args))})")

    def __repr__(self) -> str:
        return self.text


def test_the_mask_is_the_reports_rule() -> None:
    assert str(mask_url(Recorder(), BOX)) == (  # type: ignore[arg-type]
        f"{LEAST_CLOUDY}.normalizedDifference(['B3', 'B8']).gte(-0.25).rename('water').toByte()"
        f".getDownloadURL({{'name': 'lake-mask', 'region': {REGION}, 'scale': 10.0, 'crs': 'EPSG:4326', "
        "'format': 'GEO_TIFF', 'filePerBand': False})"
    )


def test_the_image_is_the_one_under_the_mask() -> None:
    asked = str(image_url(Recorder(), BOX, EarthEngineQuery(bands=("B3", "B8"), gsd_m=20)))  # type: ignore[arg-type]
    assert asked.startswith(f"{LEAST_CLOUDY}.select(['B3', 'B8']).getDownloadURL({{'name': 'lake-image'")
    assert "'scale': 20" in asked


@pytest.mark.parametrize("settings", [{"year": 1999}, {"threshold": 2.0}, {"gsd_m": 0.0}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="earth engine: expected a year"):
        EarthEngineQuery(**settings)  # type: ignore[arg-type]

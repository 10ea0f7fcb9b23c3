"""Two label sources through the command line: agreement, the shift between them, the map, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from terminal import cli
from tiny import SIZE, save

WEST = Affine(10, 0, 500000, 0, -10, 4000000)


def mask(path: Path, cols: int, at: Affine = WEST) -> Path:
    data = np.zeros((1, SIZE, SIZE), np.uint8)
    data[:, :, :cols] = 1
    data[:, 0, 0] = 255
    return save(path, data, dtype="uint8", at=at, nodata=255)


def layer(path: Path, cols: int) -> Path:
    """A lake over the first columns, in meters of the same zone."""
    east, south = 500000 + 10 * cols, 4000000 - 10 * SIZE
    ring = [[500000, 4000000], [east, 4000000], [east, south], [500000, south], [500000, 4000000]]
    shape = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [shape]}))
    return path


def test_a_raster_and_a_vector_layer_are_compared_on_the_rasters_grid(tmp_path: Path) -> None:
    done = cli(
        "compare-labels", mask(tmp_path / "a.tif", 12), layer(tmp_path / "b.geojson", 16),
        "--reference", mask(tmp_path / "c.tif", 12), "--out", tmp_path / "map.tif", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    pixels = SIZE * SIZE - 1
    assert told["facts"]["pixels"] == pixels
    assert told["facts"]["agreement"] == pytest.approx(1 - 4 * SIZE / pixels)
    assert told["facts"]["distance_m"] == pytest.approx(40.0)
    assert told["facts"]["difference_km2"] == pytest.approx(4 * SIZE * 100 / 1e6, rel=1e-3)
    assert {row["trust"] for row in told["table"] if row["agreement"] not in (None, 1.0)} == {"first"}
    with rasterio.open(tmp_path / "map.tif") as drawn:
        found = drawn.read(1)
    assert found[0, 0] == 255
    assert (found[1, 0], found[1, 13], found[1, 20]) == (1, 3, 0)


@pytest.mark.parametrize("kind", ["half a pixel", "no raster"])
def test_sources_that_cannot_be_compared_are_refused(tmp_path: Path, kind: str) -> None:
    first = mask(tmp_path / "a.tif", 12) if kind == "half a pixel" else layer(tmp_path / "a.geojson", 3)
    off = WEST * Affine.translation(0.5, 0)
    second = mask(tmp_path / "b.tif", 12, off) if kind == "half a pixel" else layer(tmp_path / "b.geojson", 3)
    done = cli("compare-labels", first, second, "--out", tmp_path / "map.tif")
    assert done.code == (1 if kind == "half a pixel" else 2)
    assert done.err.count("error:") == 1
    assert ("0.5" in done.err) or ("raster" in done.err)
    assert not (tmp_path / "map.tif").exists()

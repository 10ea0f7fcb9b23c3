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


def feature_file(path: Path, rings: list[list[list[float]]], crs: str = "") -> Path:
    shapes = [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}} for ring in rings
    ]
    named = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    path.write_text(json.dumps({"type": "FeatureCollection", **named, "features": shapes}))
    return path


def test_every_flag_of_every_source_is_told(tmp_path: Path) -> None:
    away = feature_file(tmp_path / "b.geojson", [[[10, 10], [11, 10], [11, 11], [10, 10]]])
    done = cli("compare-labels", mask(tmp_path / "a.tif", 12), away, "--json")
    told = json.loads(done.out)["facts"]
    assert done.code == 0
    assert told["flags of the second"] == "layer-misses-scene: all land; layer-reprojected"
    assert told["iou"] == 0.0
    (tmp_path / "other").mkdir()
    twin = mask(tmp_path / "other" / "a.tif", 0)
    told = json.loads(cli("compare-labels", mask(tmp_path / "a.tif", 12), twin, "--reference", away, "--json").out)[
        "facts"
    ]
    assert "flags of the first" not in told
    assert told["flags of the second"] == "no-such-value: 1, all land"
    assert "layer-misses-scene" in told["flags of the reference"]


def test_a_layer_without_features_and_one_in_meters_without_a_crs(tmp_path: Path) -> None:
    raster = mask(tmp_path / "a.tif", 12)
    told = json.loads(cli("compare-labels", raster, feature_file(tmp_path / "b.geojson", []), "--json").out)["facts"]
    assert told["flags of the second"].startswith("layer-empty: all land")
    meters = feature_file(
        tmp_path / "c.geojson", [[[500000, 4000000], [500100, 4000000], [500100, 3999900], [500000, 4000000]]]
    )
    cli("compare-labels", raster, meters).refused(1, "c.geojson: expected degrees", "500000", "coordinate system")


def test_meters_at_60_north_by_hand(tmp_path: Path) -> None:
    """A ten thousandth of a degree is 11.14 m high and 5.58 m wide there."""
    at = Affine(1e-4, 0, 20, 0, -1e-4, 60.0016)
    first, second = (
        save(tmp_path / name, islands(step), dtype="uint8", at=at, nodata=255, crs="EPSG:4326")
        for name, step in (("a.tif", (0, 0)), ("b.tif", (0, 2)))
    )
    told = json.loads(cli("compare-labels", first, second, "--json").out)["facts"]
    assert told["shift_m"] == pytest.approx(2 * 5.580, abs=0.01)
    assert told["shift_east_m"] == pytest.approx(-2 * 5.580, abs=0.01)
    assert told["shift_north_m"] == pytest.approx(0, abs=0.01)
    third = save(tmp_path / "c.tif", islands((2, 0)), dtype="uint8", at=at, nodata=255, crs="EPSG:4326")
    told = json.loads(cli("compare-labels", first, third, "--json").out)["facts"]
    assert told["shift_m"] == pytest.approx(2 * 11.141, abs=0.01)
    assert told["shift_north_m"] == pytest.approx(2 * 11.141, abs=0.01)  # the second must move up again
    a, b = (np.zeros((1, SIZE, SIZE), np.uint8) for _ in range(2))
    a[:, :, :12], b[:, :, :14] = 1, 1
    flat = [save(tmp_path / n, d, dtype="uint8", at=at, crs="EPSG:4326") for n, d in (("d.tif", a), ("e.tif", b))]
    told = json.loads(cli("compare-labels", *flat, "--json").out)["facts"]
    assert told["distance_m"] == pytest.approx(2 * 5.580, abs=0.01)


def islands(step: tuple[int, int]) -> np.ndarray:
    data = np.zeros((1, SIZE, SIZE), np.uint8)
    data[0, 8:14, 9:13] = data[0, 20:23, 6:16] = 1
    return np.roll(data, step, (1, 2))

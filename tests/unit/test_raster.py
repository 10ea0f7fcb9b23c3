"""Grids, guarded reads and whole-file writes on rasters small enough to check by hand."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp

from seawall.errors import ImageryError
from seawall.geo.raster import CogWriter, Grid, open_raster, read_raster, write_cog

UTM = Grid(64, 48, Affine(10, 0, 500000, 0, -10, 4000000), "EPSG:32631")


def plain(path: Path, data: np.ndarray, **more: object) -> Path:
    """A GeoTIFF as other tools write it."""
    count, height, width = data.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": data.dtype.name} | more
    with rasterio.open(path, "w", **profile) as sink:
        sink.write(data)
    return path


def test_utm_pixels_keep_their_round_area() -> None:
    assert UTM.pixel_area_m2() == 100.0
    assert UTM.gsd_m() == 10.0


def test_geographic_pixels_have_a_geodesic_area_that_shrinks_poleward() -> None:
    step = 1 / 120
    grid = Grid(7200, 10, Affine(step, 0, 0, 0, -step, 60), "EPSG:4326")
    areas = grid.row_areas_m2()
    assert areas is not None
    # One degree square at the equator is 12 308.78 km2 on the WGS84 ellipsoid between 0 and 1 degree north.
    one_degree = areas[-120:].sum() * 120 / 1e6
    assert one_degree == pytest.approx(12308.78, rel=1e-3)
    assert areas[0] / areas[-1] == pytest.approx(0.5, abs=0.01)


def test_web_mercator_areas_are_not_believed() -> None:
    grid = Grid(10, 10, Affine(10, 0, 0, 0, -10, 8399737.9), "EPSG:3857")  # 60 degrees north
    area = grid.pixel_area_m2()
    assert area is not None and 24 < area < 26


def test_pixels_without_georeference_have_no_area() -> None:
    assert Grid(4, 4).pixel_area_m2() is None
    assert Grid(4, 4, Affine.scale(10)).gsd_m() is None


def test_mismatch_tells_a_shift_in_pixels() -> None:
    assert UTM.same_as(Grid(64, 48, UTM.transform, UTM.crs))
    half = Grid(64, 48, Affine(10, 0, 500005, 0, -10, 4000000), UTM.crs)
    assert UTM.mismatch(half) == "shifted by +0.50 columns and +0.00 rows"
    assert "coordinate system" in UTM.mismatch(Grid(64, 48, UTM.transform, "EPSG:32632"))
    assert "pixels" in UTM.mismatch(Grid(64, 47, UTM.transform, UTM.crs))
    assert "none" in UTM.mismatch(Grid(64, 48))


def test_a_written_raster_comes_back_with_everything(tmp_path: Path) -> None:
    data = np.arange(2 * 64 * 48, dtype=np.uint16).reshape(2, 64, 48)
    data[1, 0, 0] = 0
    path = tmp_path / "new" / "a.tif"
    write_cog(
        path, data, UTM, bands=("B03", "B08"), nodata=0, tags={"UNIT": "dn"}, scales=(1e-4, 2e-4), offsets=(-0.1, 0)
    )
    back = read_raster(path)
    np.testing.assert_array_equal(back.data, data)
    assert (back.bands, back.dtype, back.nodata) == (("B03", "B08"), "uint16", 0)
    assert (back.scales, back.offsets) == ((1e-4, 2e-4), (-0.1, 0))
    assert back.tags["UNIT"] == "dn" and back.tags["SEAWALL_COMPLETE"] == "yes"
    assert back.grid.same_as(UTM)
    assert not back.seen[0, 0] and back.seen.sum() == 64 * 48 - 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.tif"]


def test_the_written_file_is_a_cog_with_512_blocks_and_overviews(tmp_path: Path) -> None:
    path = tmp_path / "c.tif"
    write_cog(path, np.ones((1100, 700), np.uint8), Grid(1100, 700), bands=("class",), colormap={1: (0, 0, 255)})
    with rasterio.open(path) as source:
        assert source.block_shapes == [(512, 512)]
        assert source.overviews(1)
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.colormap(1)[1] == (0, 0, 255, 255)


def test_windows_written_in_any_order_make_the_same_raster(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((1, 700, 600), dtype=np.float32)
    with CogWriter(tmp_path / "w.tif", Grid(700, 600), "float32", bands=("p",)) as sink:
        for row, col in ((512, 512), (0, 512), (512, 0), (0, 0)):
            sink.write(data[:, row : row + 512, col : col + 512], row, col)
    np.testing.assert_array_equal(read_raster(tmp_path / "w.tif").data, data)


def test_bands_are_found_by_name_in_the_order_asked(tmp_path: Path) -> None:
    data = np.stack([np.full((8, 8), value, np.uint8) for value in (1, 2, 3)])
    write_cog(tmp_path / "a.tif", data, Grid(8, 8), bands=("B08", "B03", "B02"))
    raster = read_raster(tmp_path / "a.tif", bands=("B02", "B08"))
    assert raster.data[:, 0, 0].tolist() == [3, 1]
    with pytest.raises(ImageryError, match=r"expected band 'B11', got B08, B03, B02"):
        read_raster(tmp_path / "a.tif", bands=("B11",))


def test_nodata_that_could_be_a_measurement_needs_all_bands(tmp_path: Path) -> None:
    data = np.array([[[0, 0, 7, 7]], [[0, 7, 0, 7]]], np.uint16)
    assert read_raster(plain(tmp_path / "a.tif", data, nodata=0)).seen.tolist() == [[False, True, True, True]]
    assert read_raster(tmp_path / "a.tif", bands=("band1",)).seen.tolist() == [[False, False, True, True]]
    data[data == 0] = 65535
    assert read_raster(plain(tmp_path / "b.tif", data, nodata=65535)).seen.tolist() == [[False, False, False, True]]
    floats = np.where(data == 65535, np.nan, 0.5).astype(np.float32)
    assert read_raster(plain(tmp_path / "c.tif", floats, nodata=np.nan)).seen.tolist() == [[False, False, False, True]]
    with open_raster(tmp_path / "a.tif") as source:
        assert source.nodata_of(("band2",)) == (0.0,)


def test_a_pixel_is_seen_if_finite_and_data_in_all_bands(tmp_path: Path) -> None:
    data = np.ones((2, 2, 3), np.float32)
    data[0, 0, 0], data[1, 0, 1], data[1, 1, 2] = np.nan, np.inf, -9999
    raster = read_raster(plain(tmp_path / "a.tif", data, nodata=-9999))
    assert raster.seen.tolist() == [[False, False, True], [True, True, False]]


def test_an_internal_mask_and_an_alpha_band_say_what_is_seen(tmp_path: Path) -> None:
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "m.tif", "w", driver="GTiff", count=1, height=2, width=2, dtype="uint8") as sink,
    ):
        sink.write(np.ones((1, 2, 2), np.uint8))
        sink.write_mask(np.array([[255, 0], [255, 255]], np.uint8))
    assert read_raster(tmp_path / "m.tif").seen.tolist() == [[True, False], [True, True]]
    rgba = np.full((4, 2, 2), 9, np.uint8)
    rgba[3] = [[0, 255], [255, 255]]
    path = plain(tmp_path / "a.png", rgba, driver="PNG")
    raster = read_raster(path)
    assert raster.bands == ("band1", "band2", "band3")
    assert raster.seen.tolist() == [[False, True], [True, True]]
    with rasterio.open(path) as source:
        assert source.colorinterp[3] == ColorInterp.alpha


def test_a_window_reads_the_same_pixels_as_the_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 9, (1, 600, 600)).astype(np.int16)
    write_cog(tmp_path / "a.tif", data, Grid(600, 600), bands=("x",))
    with open_raster(tmp_path / "a.tif") as source:
        assert source.block == (512, 512)
        part, seen = source.read((500, 510, 30, 20))
        np.testing.assert_array_equal(part, data[:, 500:530, 510:530])
        assert seen.all()
        with pytest.raises(ImageryError, match="window inside 600x600"):
            source.read((590, 0, 11, 1))


def test_a_missing_georeference_is_no_grid(tmp_path: Path) -> None:
    plain(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8))
    assert read_raster(tmp_path / "a.tif").grid == Grid(4, 4)


def test_a_rotated_grid_is_read_as_it_is(tmp_path: Path) -> None:
    turned = Affine(6, 8, 5e5, 8, -6, 4e6)
    plain(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8), transform=turned, crs="EPSG:32631")
    grid = read_raster(tmp_path / "a.tif").grid
    assert grid.pixel_area_m2() == pytest.approx(100)

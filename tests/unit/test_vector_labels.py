"""Vector water layers on a grid, written by the tests in every format that is read."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from pyproj import Transformer

from seawall.errors import DataError, UsageError
from seawall.geo.raster import Grid
from seawall.labels import vector
from seawall.labels.vector import rasterize_layer

UTM = "EPSG:32631"
GRID = Grid(20, 30, Affine(10, 0, 500000, 0, -10, 5000000), UTM)


def box(row, col, height, width):
    """The outline of whole pixels of GRID."""
    return shapely.box(
        500000 + 10 * col, 5000000 - 10 * (row + height), 500000 + 10 * (col + width), 5000000 - 10 * row
    )


def write(path, shapes, crs=UTM, layer=None, kind="Unknown", **columns):
    names = list(columns) or ["id"]
    data = [np.asarray(v) for v in columns.values()] or [np.arange(len(shapes))]
    geometry = np.array([shapely.to_wkb(s) if s is not None else None for s in shapes], object)
    options = {"layer": layer} if layer else {}
    pyogrio.raw.write(
        path, geometry, data, np.array(names, object), crs=crs, geometry_type=kind, append=path.exists(), **options
    )
    return path


def to_lonlat(shape):
    over = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    return shapely.transform(shape, lambda p: np.stack(over.transform(p[:, 0], p[:, 1]), 1))


def expected(row, col, height, width):
    mask = np.zeros((20, 30), bool)
    mask[row : row + height, col : col + width] = True
    return mask


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".fgb"])
def test_whole_pixels_are_burned_exactly(tmp_path, suffix):
    path = write(tmp_path / f"water{suffix}", [box(3, 4, 5, 6)], kind="Polygon")
    found = rasterize_layer(path, GRID)
    assert np.array_equal(found.mask, expected(3, 4, 5, 6))
    assert (found.features, found.used, found.repaired, found.misses) == (1, 1, 0, False)
    assert not found.reprojected
    assert found.flags == ()
    assert found.source == f"water{suffix}:water"
    assert found.spacing_m == pytest.approx(55, abs=6)


def test_geojson_is_reprojected(tmp_path):
    path = write(tmp_path / "water.geojson", [to_lonlat(box(3, 4, 5, 6))], crs="EPSG:4326", kind="Polygon")
    found = rasterize_layer(path, GRID)
    assert np.array_equal(found.mask, expected(3, 4, 5, 6))
    assert found.reprojected and found.crs == "EPSG:4326"
    assert found.flags == ("layer-reprojected",)
    assert found.spacing_m == pytest.approx(55, abs=6)


def test_long_edges_follow_the_projection(tmp_path):
    # a wide box in longitude and latitude, whose southern edge bends by hundreds of meters in UTM
    grid = Grid(400, 400, Affine(10, 0, 498000, 0, -10, 5002000), UTM)
    south = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform(500000, 5000000)[1]
    path = write(tmp_path / "sea.geojson", [shapely.box(-2, south, 8, 50)], crs="EPSG:4326", kind="Polygon")
    mask = rasterize_layer(path, grid).mask
    rows = mask.sum(0)
    assert abs(int(rows[200]) - 200) <= 1
    assert np.ptp(rows) <= 1


def test_touched_or_center(tmp_path):
    inside = shapely.box(500042, 4999947, 500053, 4999957)  # touches 2 x 2 pixels, no center but one
    path = write(tmp_path / "water.gpkg", [inside], kind="Polygon")
    center, touched = rasterize_layer(path, GRID), rasterize_layer(path, GRID, all_touched=True)
    assert center.mask.sum() == 1
    assert touched.mask.sum() == 4
    assert (center.mask & ~touched.mask).sum() == 0
    assert touched.all_touched


def test_a_layer_that_misses_the_scene_is_all_land_and_flagged(tmp_path):
    path = write(tmp_path / "water.gpkg", [box(300, 0, 5, 5)], kind="Polygon")
    found = rasterize_layer(path, GRID)
    assert not found.mask.any()
    assert found.misses and found.used == 0
    assert found.flags == ("layer-misses-scene: all land",)
    far = write(tmp_path / "far.geojson", [shapely.box(100, -40, 101, -39)], crs="EPSG:4326", kind="Polygon")
    assert rasterize_layer(far, GRID).misses
    nothing = write(tmp_path / "nothing.gpkg", [], kind="Polygon")
    assert rasterize_layer(nothing, GRID).misses


def test_a_layer_without_a_crs_is_refused_unless_told(tmp_path):
    path = write(tmp_path / "water.shp", [box(3, 4, 5, 6)], kind="Polygon")
    path.with_suffix(".prj").unlink()
    with pytest.raises(DataError, match=r"coordinate system, got none; add its \.prj file"):
        rasterize_layer(path, GRID)
    assert np.array_equal(rasterize_layer(path, GRID, crs=UTM).mask, expected(3, 4, 5, 6))
    with pytest.raises(DataError, match="pass crs="):
        rasterize_layer(path, GRID, crs="EPSG:nonsense")


def test_a_crs_against_the_layers_own_is_refused(tmp_path):
    path = write(tmp_path / "water.gpkg", [box(3, 4, 5, 6)], kind="Polygon")
    with pytest.raises(UsageError, match="as the layer says"):
        rasterize_layer(path, GRID, crs="EPSG:32632")
    assert rasterize_layer(path, GRID, crs=UTM).mask.any()


def test_invalid_geometries_are_repaired_or_skipped_and_counted(tmp_path):
    bow = shapely.Polygon([(500000, 5000000), (500080, 4999920), (500080, 5000000), (500000, 4999920)])
    assert not bow.is_valid
    shapes = [bow, box(10, 10, 2, 2), shapely.Point(500005, 4999995), shapely.Polygon(), None]
    found = rasterize_layer(write(tmp_path / "water.gpkg", shapes), GRID)
    assert found.repaired == 1
    assert found.skipped["points have no area"] == 1
    assert found.used == 2
    assert found.mask[10:12, 10:12].all()
    assert found.mask[4, 1] and found.mask[4, 6] and not found.mask[1, 4]
    assert "geometries-repaired: 1" in found.flags
    # in a GeoJSON the empty ones come too, since no index of bounds leaves them out
    text = {"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": {}, "geometry": g}
        for g in (json.loads(shapely.to_geojson(to_lonlat(bow))), None, {"type": "Polygon", "coordinates": []})
    ]}  # fmt: skip
    path = tmp_path / "water.geojson"
    path.write_text(json.dumps(text))
    found = rasterize_layer(path, GRID)
    assert (found.repaired, found.used) == (1, 1)


def test_a_ring_cut_short_is_no_crash(tmp_path):
    path = tmp_path / "water.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [[[3.0003, 45.1525], [3.003, 45.1525]]]}},
        {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(to_lonlat(box(1, 1, 3, 3))))},
    ]}))  # fmt: skip
    found = rasterize_layer(path, GRID)
    assert np.array_equal(found.mask, expected(1, 1, 3, 3))
    assert (found.features, found.used) == (2, 1)
    assert found.flags != ("layer-reprojected",)


def test_holes_and_nested_collections(tmp_path):
    ring = box(2, 2, 9, 9).difference(box(4, 4, 3, 3))
    nest = shapely.GeometryCollection([shapely.MultiPolygon([box(15, 1, 2, 2), box(15, 5, 2, 2)]), shapely.Point(0, 0)])
    found = rasterize_layer(write(tmp_path / "water.gpkg", [ring, nest]), GRID)
    assert found.mask.sum() == 81 - 9 + 8
    assert not found.mask[4:7, 4:7].any()
    assert found.used == 2 and found.skipped == {}


def test_rivers_drawn_as_lines(tmp_path):
    river = shapely.LineString([(499900, 4999905), (500400, 4999905)])
    path = write(tmp_path / "rivers.gpkg", [river], kind="LineString")
    assert np.array_equal(rasterize_layer(path, GRID).mask, expected(9, 0, 1, 30))
    assert np.array_equal(rasterize_layer(path, GRID, line_width_m=30).mask, expected(8, 0, 3, 30))
    with pytest.raises(UsageError, match="above 0"):
        rasterize_layer(path, GRID, line_width_m=0)
    lonlat = Grid(20, 30, Affine(1e-4, 0, 3.0, 0, -1e-4, 45.0), "EPSG:4326")
    line = write(tmp_path / "line.geojson", [shapely.LineString([(2.99, 44.99905), (3.01, 44.99905)])], "EPSG:4326")
    assert rasterize_layer(line, lonlat, line_width_m=25).mask.sum() == 90


def test_filters_and_layers(tmp_path):
    path = write(
        tmp_path / "water.gpkg",
        [box(1, 1, 2, 2), box(8, 8, 2, 2)],
        layer="areas",
        kind="Polygon",
        type=["lake", "road"],
    )
    assert rasterize_layer(path, GRID, where="type = 'lake'").mask.sum() == 4
    with pytest.raises(DataError, match="filter"):
        rasterize_layer(path, GRID, where="depth > 3")
    write(path, [box(12, 12, 1, 1)], layer="wells", kind="Polygon")
    with pytest.raises(UsageError, match=r"got 2 .*name one"):
        rasterize_layer(path, GRID)
    assert rasterize_layer(path, GRID, layer="wells").mask.sum() == 1
    with pytest.raises(UsageError, match="known: areas, wells"):
        rasterize_layer(path, GRID, layer="lakes")


def test_files_that_are_no_layers(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        rasterize_layer(tmp_path / "gone.gpkg", GRID)
    with pytest.raises(DataError, match=r"got \.tif"):
        (tmp_path / "x.tif").write_bytes(b"II")
        rasterize_layer(tmp_path / "x.tif", GRID)
    with pytest.raises(DataError, match="no such file"):
        rasterize_layer("/vsicurl/http://example.org/water.gpkg", GRID)
    for name in ("torn.gpkg", "torn.shp", "torn.geojson", "torn.fgb"):
        (tmp_path / name).write_bytes(b"SQLite format 3\x00 and then nothing")
        with pytest.raises(DataError, match=name):
            rasterize_layer(tmp_path / name, GRID)
    whole = write(tmp_path / "whole.gpkg", [box(1, 1, 2, 2)], kind="Polygon")
    Path(tmp_path / "cut.gpkg").write_bytes(whole.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"cut\.gpkg"):
        rasterize_layer(tmp_path / "cut.gpkg", GRID)


def test_a_grid_without_a_place_is_refused(tmp_path):
    path = write(tmp_path / "water.gpkg", [box(1, 1, 2, 2)], kind="Polygon")
    with pytest.raises(DataError, match="georeferenced"):
        rasterize_layer(path, Grid(20, 30))
    with pytest.raises(DataError, match="known crs"):
        rasterize_layer(path, Grid(20, 30, GRID.transform, "EPSG:0"))


def test_too_many_features_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = write(tmp_path / "water.gpkg", [box(i, 0, 1, 1) for i in range(5)] + [box(900, 0, 1, 1)], kind="Polygon")
    monkeypatch.setattr(vector, "MAX_FEATURES", 5)
    assert rasterize_layer(path, GRID).used == 5
    monkeypatch.setattr(vector, "MAX_FEATURES", 4)
    with pytest.raises(DataError, match="at most 4 features"):
        rasterize_layer(path, GRID)


def test_a_rotated_grid(tmp_path):
    turned = Grid(20, 20, Affine(8.660254, 5, 500100, 5, -8.660254, 4999900), UTM)
    corners = [turned.point(r, c) for r, c in ((5, 5), (5, 12), (9, 12), (9, 5))]
    found = rasterize_layer(write(tmp_path / "water.gpkg", [shapely.Polygon(corners)], kind="Polygon"), turned)
    assert found.mask[5:9, 5:12].all() and found.mask.sum() == 28

"""The verb `area`: zones on made-up maps whose areas are counted by hand, in any system, and what is wrong said."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from pyproj import Transformer

import seawall
from scene_numbers import drawn_scenes
from seawall.errors import DataError, UsageError
from seawall.geo.cog import write_cog
from seawall.geo.grid import Grid
from seawall.pipeline import zone_areas
from seawall.uncertainty.area import AreaCalibration, AreaSums, estimate_area
from tiny import PixelModel

UTM = "EPSG:32631"
GRID = Grid(60, 80, Affine(100, 0, 500000, 0, -100, 5000000), UTM)  # a pixel is 0.01 km2
CALIBRATION = AreaCalibration.of_scores(drawn_scenes(30), 10.0)


def made_map(
    folder, grid=GRID, calibration=CALIBRATION, name="scene", key="k", tags=("k", "k"), seed=0, risks=("miss 5%",)
):
    """Write a map, and return its class, its stored probability and where it was seen."""
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 251, (grid.height, grid.width)).astype(np.uint8)
    classes = (stored > 125).astype(np.uint8)
    seen = np.ones(stored.shape, bool)
    seen[:7, :9] = False
    sets = np.where(stored >= 200, 1, np.where(stored >= 50, 2, 0)).astype(np.uint8)
    stored[~seen] = classes[~seen] = sets[~seen] = 255
    files = {layer: f"{name}.{layer}.tif" for layer in ("class", "water", "sets")}
    for (layer, file), pixels, tag in zip(files.items(), (classes, stored, sets), (*tags, key), strict=True):
        write_cog(folder / file, pixels[None], grid, bands=(layer,), nodata=255, tags={"SEAWALL_KEY": tag})
    result = {
        "name": name,
        "klass": "water",
        "classes": ["land", "water"],
        "files": files,
        "key": key,
    }
    item = {"type": "Feature", "result": result}
    if calibration is not None:
        item["calibration"] = {"area": calibration.plain(), "risks": list(risks)}
    (folder / f"{name}.json").write_text(json.dumps(item))
    return classes, stored, seen


def outline(row, col, height, width):
    return shapely.box(
        500000 + 100 * col, 5000000 - 100 * (row + height), 500000 + 100 * (col + width), 5000000 - 100 * row
    )


def in_degrees(shape):
    over = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    return shapely.transform(shape, lambda p: np.stack(over.transform(p[:, 0], p[:, 1]), 1))


def write_layer(path, shapes, crs=UTM, kind="Unknown", **columns):
    data = [np.asarray(v, object if v and isinstance(v[0], str) else None) for v in columns.values()]
    wkb = shapely.to_wkb(np.array(shapes, object))
    pyogrio.raw.write(path, wkb, data, np.array(list(columns), object), crs=crs, geometry_type=kind)
    return path


def by_hand(planes, row, col, height, width):
    """Return mapped, expected, doubt, seen and unsure areas of a box, in km2."""
    classes, stored, seen = (plane[row : row + height, col : col + width] for plane in planes)
    p = np.where(seen, stored / 250, 0)
    unsure = seen & (stored >= 50) & (stored < 200)
    return [float(part.sum()) / 100 for part in ((classes == 1) & seen, p, p * (1 - p) * seen, seen, unsure)]


@pytest.mark.parametrize("strip", [512, 7])
@pytest.mark.parametrize("degrees", [False, True])
def test_zones_are_counted_by_pixel_centers(tmp_path, monkeypatch, degrees, strip):
    monkeypatch.setattr(zone_areas, "STRIP_OF_ROWS", strip)
    planes = made_map(tmp_path)
    boxes = {"north": (2, 3, 20, 30), "all": (0, 0, 60, 80), "over": (10, 20, 41, 33)}  # overlapping
    shapes = [in_degrees(outline(*box)) if degrees else outline(*box) for box in boxes.values()]
    layer = write_layer(
        tmp_path / "zones.gpkg", shapes, "EPSG:4326" if degrees else UTM, name=list(boxes), code=[1, 2, 3]
    )
    rows = seawall.area(tmp_path, zones=layer).table
    assert [row["zone"] for row in rows] == list(boxes)
    for row, box in zip(rows, boxes.values(), strict=True):
        mapped, expected, doubt, seen, unsure = by_hand(planes, *box)
        assert row["mapped_km2"] == pytest.approx(mapped) and row["expected_km2"] == pytest.approx(expected, rel=1e-5)
        assert row["unsure_km2"] == pytest.approx(unsure)
        want = estimate_area(AreaSums(mapped, expected, doubt, seen), CALIBRATION)
        for column, value in (("interval_low_km2", want.low_km2), ("interval_high_km2", want.high_km2), ("corrected_km2", want.corrected_km2),
                              ("stratified_km2", want.stratified_km2), ("stratified_se_km2", want.scene_se_km2)):  # fmt: skip
            assert row[column] == pytest.approx(value, rel=1e-4), column
        assert row["map_share"] == pytest.approx(1, abs=1e-3)
        assert row["seen_share"] == pytest.approx(100 * seen / (box[2] * box[3]), rel=1e-3)


def test_the_whole_map_has_the_sentence(tmp_path):
    planes = made_map(tmp_path)
    mapped, *_, unsure = by_hand(planes, 0, 0, 60, 80)
    for path in (tmp_path, tmp_path / "scene.json", tmp_path / "scene.class.tif", tmp_path / "scene.water.tif"):
        found = seawall.area(path, level=0.8)
        assert len(found.table) == 1 and found.table[0]["zone"] == "scene"
        assert found.facts["area"].startswith(f"{mapped:.1f} km2 of water, 80 % interval ")
        assert found.facts["area"].endswith(f"; {unsure:.1f} km2 cannot be told") and found.facts[
            "interval"
        ].startswith("80% of regions")
    made_map(tmp_path, risks=())
    assert (
        seawall.area(tmp_path).facts["area"].endswith("cannot be told") is False
    )  # nothing was promised of these pixels
    few = seawall.area(tmp_path, level=0.995)
    assert "an interval of 99.5% needs" in few.facts["interval"]
    narrow, wide = (seawall.area(tmp_path, level=level).table[0] for level in (0.8, 0.9))
    assert narrow["interval_low_km2"] > wide["interval_low_km2"]


def test_areas_of_degrees_are_those_of_the_ellipsoid(tmp_path):
    grid = Grid(40, 40, Affine(0.01, 0, 5, 0, -0.01, 61), "EPSG:4326")
    classes, _, seen = made_map(tmp_path, grid)
    areas = grid.row_areas_m2() / 1e6
    row = seawall.area(
        tmp_path, zones=write_layer(tmp_path / "z.gpkg", [shapely.box(5.1, 60.7, 5.3, 60.9)], "EPSG:4326", id=[1])
    ).table[0]
    inside = np.zeros((40, 40), bool)
    inside[10:30, 10:30] = True
    assert row["mapped_km2"] == pytest.approx(float(((classes == 1) & seen & inside).sum(1) @ areas))
    assert row["mapped_km2"] != pytest.approx(float(((classes == 1) & seen & inside).sum() * areas[0]), rel=1e-3)


def test_zones_partly_off_the_map_and_off_it_say_so(tmp_path):
    planes = made_map(tmp_path)
    shapes = [
        outline(50, 70, 20, 20),
        outline(500, 500, 5, 5),
        outline(0, 0, 3, 3),
        outline(30.1, 30.1, 0.2, 0.2),
        outline(20, 20, 30, 30),
    ]
    layer = write_layer(tmp_path / "zones.gpkg", shapes, name=["edge", "far", "unseen", "tiny", "inside"])
    rows = {row["zone"]: row for row in seawall.area(tmp_path, zones=layer).table}
    assert rows["edge"]["map_share"] == pytest.approx(0.25) and rows["edge"]["note"].startswith("partly off the map")
    assert rows["edge"]["mapped_km2"] == pytest.approx(by_hand(planes, 50, 70, 10, 10)[0]) and rows["edge"][
        "seen_share"
    ] == pytest.approx(0.25)
    assert rows["far"]["note"] == "off the map" and rows["far"]["mapped_km2"] is None and rows["far"]["map_share"] == 0
    assert rows["unseen"]["note"] == "nothing seen" and rows["unseen"]["interval_high_km2"] is None
    assert rows["tiny"]["note"] == "no pixel has its center inside" and rows["tiny"]["mapped_km2"] is None
    assert "smaller than every held-out scene" in rows["inside"]["note"]  # 9 km2 of water and land, and those have 10


def test_zones_off_the_map_say_where_both_are(tmp_path):
    made_map(tmp_path)
    layer = write_layer(tmp_path / "zones.gpkg", [in_degrees(outline(9000, 0, 5, 5))], "EPSG:4326", id=[1])
    with pytest.raises(
        DataError,
        match=r"on the map, which is at longitude 3\.000 to 3\.102 and latitude .*, got zones at longitude .*EPSG:4326",
    ):
        seawall.area(tmp_path, zones=layer)
    wrong = write_layer(
        tmp_path / "wrong.gpkg", [outline(0, 0, 5, 5)], "EPSG:32633", id=[1]
    )  # the zone of another meridian
    with pytest.raises(DataError, match="check the coordinate system of the layer, EPSG:32633"):
        seawall.area(tmp_path, zones=wrong)


def test_layers_that_are_no_zones_are_refused(tmp_path):
    made_map(tmp_path)
    bare = write_layer(tmp_path / "bare.shp", [outline(0, 0, 5, 5)], kind="Polygon", id=[1])
    bare.with_suffix(".prj").unlink()
    with pytest.raises(DataError, match="expected a layer with a coordinate system, got none"):
        seawall.area(tmp_path, zones=bare)
    points = write_layer(tmp_path / "points.gpkg", [shapely.Point(500100, 4999900)], kind="Point", id=[1])
    with pytest.raises(DataError, match="expected zones that are polygons, got 1 features without an area"):
        seawall.area(tmp_path, zones=points)
    with pytest.raises(DataError, match="got a layer without features"):
        seawall.area(tmp_path, zones=write_layer(tmp_path / "none.gpkg", [], kind="Polygon", id=[]))
    layer = write_layer(tmp_path / "zones.gpkg", [outline(0, 0, 50, 50)], name=["a"], district=["b"])
    with pytest.raises(UsageError, match="unknown column 'distrct'; did you mean 'district'"):
        seawall.area(tmp_path, zones=layer, name_column="distrct")
    assert seawall.area(tmp_path, zones=layer, name_column="district").table[0]["zone"] == "b"
    with pytest.raises(UsageError, match="level: expected a probability"):
        seawall.area(tmp_path, level=90)
    with pytest.raises(UsageError, match="expected --zones beside"):
        seawall.area(tmp_path, name_column="district")
    with pytest.raises(UsageError, match=r"\.csv or \.gpkg, got table\.xlsx"):
        seawall.area(tmp_path, zones=layer, out=tmp_path / "table.xlsx")
    with pytest.raises(UsageError, match=r"ending in \.csv, got table\.gpkg"):
        seawall.area(tmp_path, out=tmp_path / "table.gpkg")


def test_features_without_an_area_fail_alone_and_broken_ones_are_repaired(tmp_path):
    planes = made_map(tmp_path)
    bow = shapely.Polygon(
        [(500000, 4999000), (501000, 4998000), (501000, 4999000), (500000, 4998000)]
    )  # crosses itself
    hole = shapely.Polygon(outline(0, 0, 60, 80).exterior, [outline(20, 20, 10, 10).exterior])
    mixed = shapely.GeometryCollection([shapely.LineString([(0, 0), (1, 1)]), outline(20, 20, 10, 10)])
    shapes = [shapely.Point(500100, 4999900), bow, hole, mixed, shapely.Polygon()]
    layer = write_layer(
        tmp_path / "zones.geojson",
        [in_degrees(s) for s in shapes],
        "EPSG:4326",
        name=["point", "bow", "hole", "mixed", "none"],
    )
    found = seawall.area(tmp_path, zones=layer)
    assert dict(found.failed) == {"point": "no area", "none": "no area"}
    rows = {row["zone"]: row for row in found.table}
    part, whole = by_hand(planes, 20, 20, 10, 10)[0], by_hand(planes, 0, 0, 60, 80)[0]
    assert rows["mixed"]["mapped_km2"] == pytest.approx(part) and rows["hole"]["mapped_km2"] == pytest.approx(
        whole - part
    )
    assert 0 < rows["bow"]["mapped_km2"] < by_hand(planes, 10, 0, 10, 10)[0]


def test_tables_are_written_with_the_outlines(tmp_path):
    made_map(tmp_path)
    shapes = [in_degrees(outline(10, 10, 20, 20)), in_degrees(outline(500, 0, 9, 9))]
    layer = write_layer(tmp_path / "zones.gpkg", shapes, "EPSG:4326", name=["=1+1", "far"])
    rows = seawall.area(tmp_path, zones=layer, out=tmp_path / "t" / "areas.csv").table
    with (tmp_path / "t" / "areas.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["zone"] for cell in cells] == ["'=1+1", "far"] and float(cells[0]["mapped_km2"]) == rows[0][
        "mapped_km2"
    ]
    assert cells[1]["mapped_km2"] == "" and cells[1]["note"] == "off the map"
    seawall.area(tmp_path, zones=layer, out=tmp_path / "areas.gpkg")
    meta, _, wkb, values = pyogrio.raw.read(tmp_path / "areas.gpkg")
    assert meta["crs"] == "EPSG:4326" and list(meta["fields"]) == list(rows[0])
    columns = dict(zip(meta["fields"], values, strict=True))
    assert columns["zone"].tolist() == ["=1+1", "far"] and columns["mapped_km2"][0] == rows[0]["mapped_km2"]
    assert np.isnan(columns["mapped_km2"][1])
    assert shapely.area(shapely.symmetric_difference(shapely.from_wkb(wkb), np.array(shapes, object))).max() < 1e-12


def test_a_map_without_calibration_has_areas_and_the_reason(tmp_path):
    made_map(tmp_path, calibration=None)
    found = seawall.area(tmp_path)
    assert (
        found.table[0]["mapped_km2"] > 0
        and found.table[0]["interval_low_km2"] is None
        and found.table[0]["corrected_km2"] is None
    )
    assert found.facts["interval"].startswith("none: the map was made without held-out scenes")
    made_map(tmp_path, calibration=AreaCalibration.of_scores(drawn_scenes(5), 10.0))
    assert (
        seawall.area(tmp_path).facts["interval"]
        == "none: 5 held-out scenes, 4 fewer than the 9 that an interval of 90% needs"
    )


def test_a_map_of_predict_is_read(tmp_path):
    """What `predict_scene` writes: the same area, and without held-out scenes no interval."""
    image = np.random.default_rng(0).uniform(0.01, 0.4, (2, 60, 80)).astype(np.float32)
    write_cog(
        tmp_path / "in.tif",
        image,
        GRID,
        bands=("B03", "B08"),
        nodata=float("nan"),
        tags={"SEAWALL_UNIT": "reflectance"},
    )
    made = seawall.predict_scene(PixelModel(), tmp_path / "in.tif", tmp_path / "maps")
    found = seawall.area(tmp_path / "maps")
    row = found.table[0]
    assert row["mapped_km2"] == pytest.approx(made.area_km2) and row["expected_km2"] == pytest.approx(
        made.expected_km2, rel=1e-2
    )
    assert row["seen_share"] == 1 and found.facts["interval"].startswith("none: ")


def test_what_is_no_map_is_refused(tmp_path):
    with pytest.raises(UsageError, match="expected one map, got 0"):
        seawall.area(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        seawall.area(tmp_path / "scene.json")
    made_map(tmp_path)
    made_map(tmp_path, name="other", key="o", tags=("o", "k"))
    with pytest.raises(UsageError, match=r"got 2: other\.json, scene\.json"):
        seawall.area(tmp_path)
    with pytest.raises(DataError, match=r"other\.water\.tif: expected a layer of other\.json, got one of another map"):
        seawall.area(tmp_path / "other.json")
    assert seawall.area(tmp_path / "scene.class.tif").table
    item = json.loads((tmp_path / "scene.json").read_text())
    del item["result"]["files"]["sets"]
    (tmp_path / "scene.json").write_text(json.dumps(item))
    with pytest.raises(DataError, match="got one without 'sets'"):
        seawall.area(tmp_path / "scene.json")
    made_map(tmp_path, grid=replace(GRID, transform=None, crs=None))
    with pytest.raises(DataError, match="known area, got none: the scene has no georeference"):
        seawall.area(tmp_path / "scene.json")

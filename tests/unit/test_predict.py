"""A whole scene from file to map, on scenes small enough to check every pixel."""

import json

import numpy as np
import pystac
import pytest
import rasterio
import torch
from affine import Affine
from pystac.extensions.mlm import MLMExtension
from torch import nn

from seawall.errors import ModelError, PartialError, UsageError
from seawall.geo.raster import Grid, write_cog
from seawall.inference import predict
from seawall.inference.guarantee import Guarantee
from seawall.inference.layers import LAYERS, NODATA, SCALE, ReportedClass, class_palette, encode_layers
from seawall.inference.predict import find_scenes, model_digest, predict_many, predict_scene
from seawall.inference.products import Totals, count_strip
from seawall.inference.scene import cut_window
from seawall.inference.settings import PredictSettings, clean_name
from seawall.inference.stac_items import acquisition_time
from seawall.inference.tiling import Strip, TilePlan
from seawall.models.adapter import adapt
from seawall.types import ModelSpec
from seawall.uncertainty.temperature import Temperature
from tiny import PixelModel

GRID = Grid(130, 170, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
BANDS = ("B02", "B03", "B08")


class Ndwi(PixelModel):
    """A 3x3 mean gives it a receptive field of one pixel, which it leaves to be measured."""

    reach, stride = -1, None
    identity = PixelModel.identity  # an inherited one would not count

    def forward(self, image):
        return super().forward(nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False))


def reflectance(height=130, width=170, seed=0):
    rng = np.random.default_rng(seed)
    wet = np.add.outer(np.arange(height), np.arange(width)) % 60 < 25
    image = np.stack([np.full(wet.shape, 0.05), np.where(wet, 0.08, 0.1), np.where(wet, 0.02, 0.3)])
    return (image + rng.normal(0, 0.01, image.shape)).clip(0.001, 1).astype(np.float32)


def write_scene(path, image=None, grid=GRID, bands=BANDS, nodata=0, hole=None):
    stored = np.rint((reflectance() if image is None else image) * 10000).astype(np.uint16)
    if hole is not None:
        stored[(slice(None), *hole)] = 0
    write_cog(path, stored, grid, bands=bands, nodata=nodata)
    return path


def read(path):
    with rasterio.open(path) as source:
        return source.read(1)


def whole(model, image):
    at = [BANDS.index(name) for name in model.spec.bands]
    with torch.inference_mode():
        return model(torch.from_numpy(image[at][None])).softmax(1)[0].numpy()


def test_the_map_is_the_models_own(tmp_path):
    model = Ndwi()
    image = np.rint(reflectance() * 10000).astype(np.float32) / 10000
    result = predict_scene(model, write_scene(tmp_path / "a.tif"), tmp_path / "out", tile=64, overlap=32)
    p = whole(model, image)
    water = read(tmp_path / "out" / "a.water.tif").astype(float)
    assert np.abs(water * SCALE - p[1])[4:-4, 4:-4].max() < SCALE / 2 + 1e-5
    classes = read(tmp_path / "out" / "a.class.tif")
    sure = np.abs(p[1] - 0.5) > 1e-4
    assert (classes == p.argmax(0))[4:-4, 4:-4][sure[4:-4, 4:-4]].all()
    entropy = -(p * np.log(p)).sum(0) / np.log(2)
    doubt = read(tmp_path / "out" / "a.uncertainty.tif") * SCALE
    assert np.abs(doubt - entropy)[4:-4, 4:-4].max() < SCALE / 2 + 1e-4
    assert result.area_km2 == pytest.approx((classes == 1).sum() * 100 / 1e6)
    assert result.seen_share == 1
    assert result.low_km2 <= result.area_km2 <= result.high_km2
    assert result.unsure_km2 == pytest.approx(result.high_km2 - result.low_km2)
    assert result.expected_km2 == pytest.approx(p[1].sum() * 100 / 1e6, rel=1e-2)


def test_products_are_cogs_that_say_what_they_hold(tmp_path):
    predict_scene(Ndwi(), write_scene(tmp_path / "a.tif"), tmp_path)
    for layer in ("class", "water", "uncertainty"):
        with rasterio.open(tmp_path / f"a.{layer}.tif") as source:
            assert (source.nodata, source.dtypes, source.crs) == (NODATA, ("uint8",), "EPSG:32633")
            assert source.transform == GRID.transform
            assert source.scales == ((1.0,) if layer == "class" else (SCALE,))
            assert "SEAWALL_COMPLETE" in source.tags()
            assert source.tags()["QUANTITY"]
            if layer == "class":
                assert source.colormap(1)[1][:3] == class_palette(("land", "water"))[1]
                assert source.colormap(1)[NODATA][3] == 0


def test_unseen_pixels_are_nodata_in_every_product_and_others_are_not(tmp_path):
    scene = write_scene(tmp_path / "a.tif", hole=np.s_[:50, 20:90])
    result = predict_scene(Ndwi(), scene, tmp_path, tile=64, overlap=32)
    unseen = np.zeros((130, 170), bool)
    unseen[:50, 20:90] = True
    for layer in ("class", "water", "uncertainty"):
        assert ((read(tmp_path / f"a.{layer}.tif") == NODATA) == unseen).all()
    assert result.seen_share == pytest.approx(1 - unseen.mean())


def test_bands_are_found_by_name_in_any_order_and_spelling(tmp_path):
    image = reflectance()
    first = predict_scene(Ndwi(), write_scene(tmp_path / "a.tif", image), tmp_path)
    turned = write_scene(tmp_path / "b.tif", image[[2, 0, 1]], bands=("nir", "Blue", "green"))
    second = predict_scene(Ndwi(), turned, tmp_path)
    assert (read(tmp_path / "a.water.tif") == read(tmp_path / "b.water.tif")).all()
    assert first.area_km2 == second.area_km2
    plain = write_scene(tmp_path / "c.tif", image, bands=("", "", ""))
    third = predict_scene(Ndwi(), plain, tmp_path, bands=BANDS)
    assert third.area_km2 == first.area_km2


def test_panels_batches_and_a_second_run_give_the_same_bytes(tmp_path):
    image = np.tile(reflectance(), (1, 1, 4))
    grid = Grid(130, 680, GRID.transform, GRID.crs)
    scene = write_scene(tmp_path / "a.tif", image, grid)
    one = predict_scene(Ndwi(), scene, tmp_path / "one", tile=64, overlap=32)
    two = predict_scene(Ndwi(), scene, tmp_path / "two", tile=64, overlap=32, batch=3, memory_mib=1)
    assert one.digests["class"] == two.digests["class"]
    assert np.abs(read(tmp_path / "one/a.water.tif").astype(int) - read(tmp_path / "two/a.water.tif")).max() <= 1
    assert one.area_km2 == pytest.approx(two.area_km2)
    assert one.key == two.key


def test_a_whole_product_is_not_made_twice_but_a_changed_setting_is_another_map(tmp_path):
    scene = write_scene(tmp_path / "a.tif")
    model = Ndwi()
    first = predict_scene(model, scene, tmp_path)
    calls = model.calls
    again = predict_scene(model, scene, tmp_path)
    assert again.reused
    assert again.digests == first.digests
    assert model.calls == calls
    assert not predict_scene(model, scene, tmp_path, guarantee=Guarantee(unsure=(0.3, 0.7))).reused
    assert not predict_scene(model, scene, tmp_path, resume=False).reused
    with torch.no_grad():
        model.gain.mul_(2)
    assert not predict_scene(model, scene, tmp_path).reused


def test_the_model_is_left_as_it_was_found(tmp_path):
    model = Ndwi().train()
    before = model_digest(model)
    predict_scene(model, write_scene(tmp_path / "a.tif"), tmp_path)
    assert model.training
    assert model_digest(model) == before


def test_temperature_softens_probabilities_and_keeps_classes(tmp_path):
    scene = write_scene(tmp_path / "a.tif")
    sharp = predict_scene(Ndwi(), scene, tmp_path / "sharp", overlap=0)
    soft = predict_scene(Temperature(4.0)(Ndwi()), scene, tmp_path / "soft", overlap=0)
    assert (read(tmp_path / "sharp/a.class.tif") == read(tmp_path / "soft/a.class.tif")).all()
    assert soft.unsure_share > sharp.unsure_share


def test_the_item_and_the_models_item_are_stac(tmp_path):
    scene = write_scene(tmp_path / "S2A_MSIL2A_20230815T101031_T33.tif")
    result = predict_scene(Ndwi(), scene, tmp_path / "out")
    told = json.loads((tmp_path / "out" / f"{result.name}.json").read_text())
    item = pystac.Item.from_dict(told)
    assert item.datetime.isoformat() == "2023-08-15T10:10:31+00:00"
    assert item.bbox == pytest.approx([15.0, 45.14, 15.02, 45.15], abs=0.01)
    assert item.properties["proj:code"] == "EPSG:32633"
    assert set(item.assets) == {"class", "water", "uncertainty", "sets"}
    assert item.assets["water"].extra_fields["raster:scale"] == SCALE
    assert told["result"]["water_km2"] == result.area_km2
    (source,) = [link for link in item.links if link.rel == "derived_from"]
    assert (tmp_path / "out" / source.href).resolve() == scene
    (link,) = [link for link in item.links if link.rel == "mlm:model"]
    model = pystac.Item.from_dict(json.loads((tmp_path / "out" / link.href).read_text()))
    mlm = MLMExtension.ext(model)
    assert mlm.input[0].bands == ["B03", "B08"]
    assert [c.name for c in mlm.output[0].classes] == ["land", "water"]
    assert mlm.total_parameters == 1


def test_no_georeference_means_no_area(tmp_path):
    scene = write_scene(tmp_path / "a.tif", grid=Grid(130, 170))
    result = predict_scene(Ndwi(), scene, tmp_path)
    assert result.area_km2 is result.low_km2 is result.expected_km2 is None
    assert result.class_km2 == {"land": None, "water": None}
    assert result.share > 0
    assert any("georeference" in flag for flag in result.flags)
    assert json.loads((tmp_path / "a.json").read_text())["geometry"] is None


def test_areas_in_degrees_are_geodesic(tmp_path):
    grid = Grid(130, 170, Affine(1e-4, 0, 15, 0, -1e-4, 60), "EPSG:4326")
    result = predict_scene(Ndwi(), write_scene(tmp_path / "a.tif", grid=grid), tmp_path)
    share = result.share
    expected = 130 * 170 * 11.141 * np.cos(np.radians(60)) * 11.132 / 1e6 * 1.0
    assert result.area_km2 / share == pytest.approx(expected, rel=5e-3)


def test_a_rotated_scene_has_the_area_of_its_pixels(tmp_path):
    turned = Affine(8.0, 6.0, 500000, 6.0, -8.0, 5000000)
    result = predict_scene(Ndwi(), write_scene(tmp_path / "a.tif", grid=Grid(130, 170, turned, "EPSG:32633")), tmp_path)
    assert sum(result.class_km2.values()) == pytest.approx(130 * 170 * 100 / 1e6, rel=1e-6)


def test_pixels_of_another_size_are_flagged(tmp_path):
    grid = Grid(130, 170, Affine(30, 0, 500000, 0, -30, 5000000), "EPSG:32633")
    result = predict_scene(Ndwi(), write_scene(tmp_path / "a.tif", grid=grid), tmp_path)
    assert "pixel-size: pixels of 30 m, but the model was trained on 10 m" in result.flags


def test_many_goes_on_after_a_failure_and_lists_it(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_scene(folder / "a.tif")
    (folder / "b.tif").write_bytes(b"")
    write_scene(folder / "c.tif", bands=("B02", "B03", "B11"))
    write_scene(folder / "d.tif")
    report = predict_many(Ndwi(), folder, tmp_path / "out")
    assert [r.name for r in report.made] == ["a", "d"]
    assert [scene[-5:] for scene, _ in report.failed] == ["b.tif", "c.tif"]
    assert "0 bytes" in report.failed[0][1]
    assert "without B08" in report.failed[1][1]
    with pytest.raises(PartialError, match="2 of 4 scenes failed") as failed:
        report.check()
    assert failed.value.exit_code == 3
    again = predict_many(Ndwi(), folder, tmp_path / "out")
    assert all(r.reused for r in again.made)


def test_scenes_are_found_in_folders_lists_and_manifests(tmp_path):
    for name in ("x/a.tif", "y/a.tif", "b.jp2", "b.class.tif", ".hidden/c.tif", "out/old.tif", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [job.name for job in find_scenes(tmp_path, tmp_path / "out")] == ["b", "x-a", "y-a"]
    (tmp_path / "m.csv").write_text("path,name,when\nx/a.tif,east,2023-01-02\ny/a.tif,,\n")
    jobs = find_scenes(tmp_path / "m.csv", tmp_path / "out")
    assert [(job.name, job.when, job.path.exists()) for job in jobs] == [("east", "2023-01-02", True), ("a", "", True)]
    with pytest.raises(UsageError, match="expected a name for each"):
        find_scenes([tmp_path / "x/a.tif", tmp_path / "y/A.tif"], tmp_path)
    with pytest.raises(UsageError, match="expected scenes"):
        find_scenes(tmp_path / "empty", tmp_path)
    (tmp_path / "m.csv").write_text("file\na.tif\n")
    with pytest.raises(UsageError, match="column 'path'"):
        find_scenes(tmp_path / "m.csv", tmp_path)


def test_names_are_safe():
    assert clean_name("..") == "scene"
    assert clean_name("a/b\n\u202ec") == "a_b_c"
    assert len(clean_name("x" * 300)) == 100


def test_acquisition_times():
    assert acquisition_time("x.tif", {}) is None
    assert acquisition_time("x.tif", {"ACQUISITION_DATETIME": "2021-07-15T10:00:00Z"}).hour == 10
    assert acquisition_time("x_20219999T101010.tif", {}) is None
    assert acquisition_time("x.tif", {}, "2021-07-15").isoformat() == "2021-07-15T00:00:00+00:00"
    with pytest.raises(UsageError, match="expected a time"):
        acquisition_time("x.tif", {}, "yesterday")


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": ("margins",)},
        {"batch": -1},
        {"memory_mib": 0},
        {"tile": 100},
        {"overlap": 500},
        {"tile": 512, "overlap": 512},
    ],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(UsageError, match=r"expected|did you mean"):
        PredictSettings(**settings)


def test_counts_by_hand():
    p = np.array([[[0.9, 0.5], [0.1, 0.3]]], np.float32)
    strip = Strip(0, 0, np.concatenate([1 - p, p]), np.array([[True, True], [True, False]]))
    question = ReportedClass(1, (0.2, 0.8))
    total = count_strip(strip, 2, question, np.array([100.0, 50.0]))
    assert (total.pixels, total.seen, total.unsure) == (4, 3, 1)
    assert total.class_pixels == (2, 1)
    assert total.class_m2 == (150.0, 100.0)
    assert total.expected_m2 == pytest.approx(90 + 50 + 5)
    assert (total.low_m2, total.high_m2, total.unsure_m2) == (100.0, 200.0, 100.0)
    assert (total + total).class_m2 == (300.0, 200.0)
    assert Totals.of(json.loads(json.dumps(total.plain()))) == total
    assert count_strip(strip, 2, question, None).class_m2 is None
    layers = encode_layers(strip, 2, question, [*LAYERS])
    assert layers["probability"].tolist() == [[225, 125], [25, NODATA]]
    assert layers["class"].tolist() == [[1, 0], [0, NODATA]]
    assert layers["uncertainty"][0, 1] == 250
    assert layers["sets"].tolist() == [[1, 2], [0, NODATA]]
    assert layers["margin"].tolist() == [[200, 0], [200, NODATA]]
    assert layers["variation-ratio"].tolist() == [[25, 125], [25, NODATA]]
    assert total.doubt_m2 == pytest.approx(9 + 25 + 4.5)


@pytest.mark.parametrize("block", [(512, 512), (1, 3000), (7, 3000), (256, 128)])
def test_pieces_cover_a_window_once(block):
    covered = np.zeros((1200, 3000), int)
    for row, col, height, width in cut_window((100, 50, 900, 2900), block, 13):
        covered[row : row + height, col : col + width] += 1
    assert (covered[100:1000, 50:2950] == 1).all()
    assert covered.sum() == 900 * 2900


def test_a_folder_of_scenes_with_a_link_out_of_it_is_refused(tmp_path):
    write_scene(tmp_path / "scenes/a.tif")
    write_scene(tmp_path / "elsewhere/b.tif")
    assert [job.name for job in find_scenes(tmp_path / "scenes", tmp_path / "out")] == ["a"]
    (tmp_path / "scenes/b.tif").symlink_to(tmp_path / "elsewhere/b.tif")
    with pytest.raises(UsageError, match=r"b\.tif: expected a scene below .*got a link out of it"):
        find_scenes(tmp_path / "scenes", tmp_path / "out")
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    assert [job.name for job in find_scenes(tmp_path / "linked", tmp_path / "out")] == ["b"]


def test_the_box_of_a_scene_around_a_pole_reaches_the_pole(tmp_path):
    polar = Grid(130, 170, Affine(1000, 0, -85000, 0, -1000, 65000), "EPSG:3413")
    predict_scene(Ndwi(), write_scene(tmp_path / "n.tif", grid=polar), tmp_path)
    west, south, east, north = json.loads((tmp_path / "n.json").read_text())["bbox"]
    assert (west, east, north) == (-180, 180, 90) and 88.5 < south < 89.5
    away = Grid(130, 170, Affine(1000, 0, -85000, 0, -1000, -400000), "EPSG:3413")
    predict_scene(Ndwi(), write_scene(tmp_path / "m.tif", grid=away), tmp_path)
    west, south, east, north = json.loads((tmp_path / "m.json").read_text())["bbox"]
    assert north < 87 and east - west < 60


def test_a_grid_beyond_the_pole_is_not_called_one_without_georeference(tmp_path):
    over = Grid(130, 170, Affine(0.001, 0, 10, 0, -0.001, 90.05), "EPSG:4326")
    result = predict_scene(Ndwi(), write_scene(tmp_path / "a.tif", grid=over), tmp_path)
    assert result.area_km2 is None
    flag = next(flag for flag in result.flags if flag.startswith("no-area"))
    assert "reaches beyond a pole" in flag and "no georeference" not in flag
    result = predict_scene(Ndwi(), write_scene(tmp_path / "b.tif", grid=Grid(130, 170)), tmp_path)
    assert "no-area: the scene has no georeference: areas are unknown" in result.flags


def test_a_class_that_wins_with_less_than_a_half_is_never_ruled_out():
    p = np.array([[[0.3, 0.2, 0.1]], [[0.4, 0.3, 0.6]], [[0.3, 0.5, 0.3]]], np.float32)  # of three classes
    strip, reported = Strip(0, 0, p, np.ones((1, 3), bool)), ReportedClass(1, (0.5, 0.55))
    assert encode_layers(strip, 3, reported, ["class", "sets"])["sets"].tolist() == [[2, 0, 1]]
    total = count_strip(strip, 3, reported, np.array([10.0]))
    assert (total.class_m2[1], total.low_m2, total.high_m2, total.unsure_m2) == (20.0, 10.0, 20.0, 10.0)


def test_unsure_begins_at_its_first_probability_and_ends_before_its_second():
    p = np.array([[[0.2, 0.2, 0.8, np.nextafter(np.float32(0.2), 0, dtype=np.float32), 0.5]]], np.float32)
    strip = Strip(0, 0, np.concatenate([1 - p, p]), np.ones((1, 5), bool))
    low, high = float(np.float32(0.2)), float(np.float32(0.8))
    total = count_strip(strip, 2, ReportedClass(1, (low, high)), np.array([10.0]))
    assert (total.unsure, total.unsure_m2) == (3, 30.0)  # 0.2, 0.2 and 0.5
    assert (total.low_m2, total.high_m2) == (10.0, 40.0)  # 0.8; and 0.2, 0.2, 0.5, 0.8
    assert total.low_m2 + total.unsure_m2 == total.high_m2


def test_the_memory_that_is_asked_for_is_in_mebibytes(tmp_path, monkeypatch):
    rooms = []
    cut = predict.column_panels

    def watched(plan, bands, classes, chunk, room):
        rooms.append(room)
        return cut(plan, bands, classes, chunk, room)

    monkeypatch.setattr(predict, "column_panels", watched)
    predict_scene(Ndwi(), write_scene(tmp_path / "a.tif"), tmp_path, memory_mib=3)
    assert rooms == [3 * 1024 * 1024]


def test_panels_hold_no_more_than_their_room():
    plan = TilePlan.of(4000, 60000, 512, 64)
    for room in (64, 128, 512):
        wide = max(right - left for left, right in predict.column_panels(plan, 6, 2, 512, room * 2**20))
        column = (512 + 512) * (4 * 6 + 1) + (512 + 512) * (4 * 2 + 1)
        assert wide * column <= room * 2**20
        assert wide * column >= room * 2**20 / 8  # and use a good part of it


class Cover(Ndwi):
    """Three land covers by thirds of brightness."""

    def __init__(self, classes):
        super().__init__(classes=classes)

    def forward(self, image):
        z = image[:, :1]
        return torch.cat([40 * z, 2 + 0 * z, 4 - 40 * z][: len(self.spec.classes)], 1)


def test_the_mapped_class_is_water_or_the_second_of_two_or_asked_for(tmp_path):
    scene = write_scene(tmp_path / "a.tif")
    forest = predict_scene(Cover(("field", "forest")), scene, tmp_path / "two")
    assert forest.klass == "forest"
    assert Cover(("water", "ice", "land")).spec.mapped_class() == "water"
    with pytest.raises(UsageError, match=r"class: expected one of field, forest, ice, got none; .*--klass ice"):
        predict_scene(Cover(("field", "forest", "ice")), scene, tmp_path / "three")
    with pytest.raises(UsageError, match="expected one of field, forest, got 'water'"):
        predict_scene(Cover(("field", "forest")), scene, tmp_path / "two", klass="water")
    asked = predict_scene(Cover(("field", "forest", "ice")), scene, tmp_path / "three", klass="ice")
    assert asked.area_km2 == asked.class_km2["ice"]


def test_products_of_another_class_never_say_water(tmp_path):
    predict_scene(Cover(("field", "bare soil")), write_scene(tmp_path / "a.tif"), tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out").glob("a.*"))
    layers = [f"a.{name}.{end}" for name in ("bare_soil", "class", "sets", "uncertainty") for end in ("qml", "tif")]
    assert names == sorted([*layers, "a.json"])
    text = (tmp_path / "out" / "a.json").read_text()
    assert "water" not in text
    told = json.loads(text)
    assert told["result"]["bare_soil_km2"] == told["result"]["area_km2"] == told["result"]["class_km2"]["bare soil"]
    assert set(told["assets"]) == {"class", "bare_soil", "uncertainty", "sets"}
    with rasterio.open(tmp_path / "out" / "a.bare_soil.tif") as layer:
        assert layer.descriptions == ("bare soil",)
        assert "probability of bare soil" in layer.tags()["QUANTITY"]


def test_layers_of_a_map_are_no_scenes(tmp_path):
    for name in ("a.tif", "a.class.tif", "a.forest.tif", "a.uncertainty.tif", "b.2021.tif"):
        (tmp_path / name).touch()
    assert [job.name for job in find_scenes(tmp_path, tmp_path / "out")] == ["a", "b.2021"]


@pytest.mark.parametrize(
    ("verify", "what"), [(None, "as they were loaded, got others in 'gain', group 0"), (0, "that stay as they are")]
)
def test_weights_that_change_while_a_scene_is_mapped_are_noticed(verify, what, tmp_path):
    class Decaying(Ndwi):
        def forward(self, image):
            with torch.no_grad():
                self.gain.mul_(1.01)
            return super().forward(image)

    with pytest.raises(ModelError, match=f"expected weights {what}"):
        predict_scene(Decaying(), write_scene(tmp_path / "a.tif"), tmp_path / "out", verify_tiles=verify)
    assert not list((tmp_path / "out").glob("*"))


def test_what_the_adapter_found_travels_with_the_map(tmp_path):
    class Soft(nn.Module):
        def forward(self, image):
            return image[:, :2].softmax(1)

    model = adapt(Soft(), ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0))
    assert "already softmax" in predict_scene(model, write_scene(tmp_path / "a.tif"), tmp_path / "out").flags

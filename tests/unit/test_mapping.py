"""The map of a simulated scene is compared with its exact truth, and chips are cut out of the kind of ground it is."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch import nn

from seawall.data.sources.simulated import Simulated
from seawall.errors import UsageError
from seawall.geo.raster import Grid, open_raster, write_cog
from seawall.inference.predict import predict_scene
from seawall.models.water_index import WaterIndexThreshold
from seawall.pipeline.context import RunContext
from seawall.pipeline.mapping import compare_with_truth, map_scene, simulate_input
from seawall.recipe.recipe import Recipe
from seawall.recipe.sections import SceneSection
from seawall.simulate.scene import simulate_s2
from seawall.types import ModelSpec

BANDS = ("B03", "B08", "B11")
SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
CHIPS = SimpleNamespace(bands=BANDS)


def run_of(tmp_path, size=160):
    recipe = Recipe(name="t", seed=3, scene=SceneSection(source="simulated", size=size))
    return RunContext(recipe, tmp_path, "cpu", True, lambda *said: None)


class Fixed(nn.Module):
    """Says what it was told, pixel by pixel: water where the first band is above 0.2."""

    reach, stride = 0, 1

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, image):
        z = 30 * (image[:, :1] - 0.2)
        return torch.cat([-z, z], 1)


def test_counts_and_areas_by_hand(tmp_path):
    grid = Grid(600, 40, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
    bright = np.full((600, 40), 0.1, np.float32)
    bright[:, :10] = 0.3  # mapped: 10 columns
    truth = np.zeros((600, 40), np.uint8)
    truth[:, 5:20] = 1  # there: 15 columns, 5 of them mapped
    clear = np.ones((600, 40), np.uint8)
    clear[:, :7] = 0  # 3 of the mapped columns stay, and 13 of those there, all three among them
    bright[590:] = np.nan  # never seen
    write_cog(tmp_path / "a.tif", bright[None], grid, bands=("B03",), nodata=float("nan"))
    write_cog(tmp_path / "truth.tif", np.stack([truth, clear]), grid, bands=("water", "clear"))
    model = Fixed(ModelSpec(("B03",), ("land", "water"), "reflectance", 10.0))
    result = predict_scene(model, tmp_path / "a.tif", tmp_path / "out")
    facts = compare_with_truth(result, tmp_path / "out" / "a.class.tif", tmp_path / "truth.tif")
    assert facts["iou"] == pytest.approx(5 / 20)
    assert facts["precision"] == pytest.approx(5 / 10)
    assert facts["recall"] == pytest.approx(5 / 15)
    assert facts["pixels"] == 590 * 40
    assert facts["true_km2"] == pytest.approx(590 * 15 * 100 / 1e6)
    assert facts["mapped_km2"] == result.area_km2 == pytest.approx(590 * 10 * 100 / 1e6)
    assert facts["expected_km2"] == result.expected_km2
    assert facts["klass"] == "water"
    assert facts["clear_iou"] == pytest.approx(3 / 13)
    assert facts["clear_pixels"] == 590 * 33
    assert "on 18% of the pixels" in facts["note"]
    assert "the IoU is 0.23" in facts["note"]


def test_nothing_there_and_nothing_mapped_has_no_ratio(tmp_path):
    grid = Grid(20, 20, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
    write_cog(tmp_path / "a.tif", np.full((1, 20, 20), 0.1, np.float32), grid, bands=("B03",), nodata=float("nan"))
    write_cog(tmp_path / "truth.tif", np.zeros((2, 20, 20), np.uint8), grid, bands=("water", "clear"))
    model = Fixed(ModelSpec(("B03",), ("land", "water"), "reflectance", 10.0))
    result = predict_scene(model, tmp_path / "a.tif", tmp_path / "out")
    facts = compare_with_truth(result, tmp_path / "out" / "a.class.tif", tmp_path / "truth.tif")
    assert (facts["iou"], facts["precision"], facts["recall"], facts["true_km2"]) == (None, None, None, 0.0)


def test_the_truth_of_the_runs_own_scene_is_kept_and_compared(tmp_path):
    run = run_of(tmp_path)
    maps = map_scene(run, CHIPS, WaterIndexThreshold(index="mndwi")(SPEC))
    facts = json.loads((tmp_path / "scenes" / "scene.truth.json").read_text())
    made = simulate_s2("scene", 160, BANDS, seed=3)
    with open_raster(tmp_path / "scenes" / "input-160.truth.tif") as truth:
        mask, clear = truth.read((0, 0, 160, 160), truth.bands)[0] == 1
        assert truth.grid.transform == made.grid.transform
    assert np.array_equal(mask, made.water)
    assert np.array_equal(clear, made.clear)
    with rasterio.open(maps["class"]) as layer:
        says = layer.read(1) == 1
    assert facts["iou"] == pytest.approx((says & mask).sum() / (says | mask).sum())
    assert facts["true_km2"] == pytest.approx(mask.sum() * 1e-4, rel=1e-6)
    assert facts["mapped_km2"] == pytest.approx(says.sum() * 1e-4, rel=1e-6)


def test_an_older_run_without_the_truth_gets_it(tmp_path):
    run = run_of(tmp_path)
    map_scene(run, CHIPS, WaterIndexThreshold(index="mndwi")(SPEC))
    before = (tmp_path / "scenes" / "input-160.tif").read_bytes()
    (tmp_path / "scenes" / "input-160.truth.tif").unlink()
    (tmp_path / "scenes" / "scene.truth.json").unlink()
    map_scene(run, CHIPS, WaterIndexThreshold(index="mndwi")(SPEC))
    assert (tmp_path / "scenes" / "scene.truth.json").exists()
    assert (tmp_path / "scenes" / "input-160.tif").read_bytes() == before


def test_what_a_killed_run_left_of_its_input_is_swept(tmp_path):
    for name in (".input-64.tif.01.part", ".input-64.tif.01.stage", ".input-64.truth.tif.00.part"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".else.part").touch()
    simulate_input(CHIPS, 64, 0, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".else.part", "input-64.tif", "input-64.truth.tif"]


def test_the_truth_is_of_water_and_of_nothing_else(tmp_path):
    model = Fixed(ModelSpec(BANDS, ("field", "forest"), "reflectance", 10.0))
    map_scene(run_of(tmp_path), CHIPS, model)
    assert not (tmp_path / "scenes" / "scene.truth.json").exists()


def test_chips_of_a_frame_are_parts_of_the_large_scene(tmp_path):
    source = Simulated(4, 64, bands=("B03",), frame=256, clouds=False)
    corners = set()
    for item in source.items(64)[0]:
        whole = simulate_s2(item.group, 256, ("B03",), clouds=False)
        row, col = source.corner(item.group)
        piece = item.read()
        assert np.array_equal(piece.label.astype(bool), whole.water[row : row + 64, col : col + 64])
        np.testing.assert_allclose(piece.data, whole.image[:, row : row + 64, col : col + 64], atol=5.1e-5)
        assert piece.grid.transform == whole.grid.window(row, col, 64, 64).transform
        corners.add((row, col))
    assert len(corners) == 4
    assert Simulated(4, 64).corner("sim000") == (0, 0)
    with pytest.raises(UsageError, match=r"simulated\.frame: expected 0 or at least the size of 64"):
        Simulated(4, 64, frame=32)


def test_a_frame_changes_what_a_chip_is_made_of():
    plain, framed = (Simulated(3, 64, frame=frame).items(64)[0][0].digest() for frame in (0, 256))
    assert plain != framed


def test_the_water_share_of_framed_chips_is_that_of_large_scenes():
    """Ground of a chip's own size is laid out around its river, and has several times as much water."""

    def share(source):
        return np.mean([item.read().label.mean() for item in source.items(source.size)[0]])

    settings = {"bands": ("B03",), "clouds": False, "seed": 7}
    large = np.mean([simulate_s2(f"sim{i:03d}", 512, ("B03",), seed=7, clouds=False).water.mean() for i in range(10)])
    own, framed = share(Simulated(10, 64, **settings)), share(Simulated(10, 64, frame=512, **settings))
    assert abs(framed - large) < 0.15
    assert own > framed + 0.15

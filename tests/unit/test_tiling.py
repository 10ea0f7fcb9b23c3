"""The tiled map of a shipped network is that of the whole scene, at every pixel, with the settings that ship."""

import numpy as np
import pytest
import torch
from affine import Affine
from torch import nn
from torch.nn import functional

from seawall import registry
from seawall.errors import UsageError
from seawall.inference.predict import predict_scene
from seawall.inference.tiling import blend_tiles, plan_tiles
from seawall.models.adapter import adapt
from seawall.models.clustering import GaussianMixtureClustering, KMeansClustering
from seawall.models.dense_unet import DenseUNet
from seawall.models.dual_network import DualNetwork
from seawall.models.receptive_field import measure_receptive_radius, receptive_field
from seawall.models.region_growing import RegionGrowing
from seawall.models.split_and_merge import SplitAndMerge
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.types import Batch, FittedModel, ModelSpec
from seawall.uncertainty.dropout import MonteCarloDropout
from seawall.uncertainty.ensemble import mean_of_networks
from seawall.uncertainty.predictor import Softmax
from seawall.uncertainty.temperature import LocalTemperature, Temperature, TemperatureScaled
from seawall.uncertainty.tta import TTA

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
RADAR = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
SMALL_NETWORKS = {
    "unet": UNet(width=4, depth=2),
    "unet-deep": UNet(width=2, depth=4),
    "unet-pixel": UNet(width=4, depth=2, norm="pixel"),
    "dense-unet": DenseUNet(width=4, depth=2, growth=4, layers=2),
    "twins": DualNetwork(settings={"width": 4, "depth": 2}),
    "threshold": WaterIndexThreshold(),
    "k-means": KMeansClustering(clusters=4),
    "mixture-statistics": GaussianMixtureClustering(clusters=4, space="both"),
    "k-means-glcm": KMeansClustering(clusters=4, space="texture", texture="glcm", window=5),
    "mixture-gabor": GaussianMixtureClustering(clusters=4, space="texture", texture="gabor", window=9),
}


class Plain(nn.Module):
    """A network that states nothing: dilated convolutions that look 3 + 6 pixels far."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=3, dilation=3)
        self.b = nn.Conv2d(6, 2, 3, padding=6, dilation=6)

    def forward(self, image):
        return self.b(torch.tanh(self.a(image)))


class Mean(nn.Module):
    """A network that looks at the whole image."""

    def forward(self, image):
        z = image[:, :1] - image.mean((1, 2, 3), keepdim=True)
        return torch.cat([-z, z], 1)


def sharp(make, seed=0):
    """Return a network whose untrained logits are spread as those of a trained one are."""
    torch.manual_seed(seed)
    model = make(SPEC)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == 2:
            module.weight.data *= 8
    return fitted(model)


def fitted(model):
    if isinstance(model, FittedModel) and not model.fitted:
        image = torch.from_numpy(scene(48, 48, seed=5))[None]
        model.fit([Batch.of(image, (image[:, 0] > image[:, 1]).long())])
    return model.eval()


def scene(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((2, height, width), dtype=np.float32) * 0.4


def whole(model, image):
    with torch.inference_mode():
        return torch.softmax(model(torch.from_numpy(image[None])), 1)[0].numpy()


def tiled(model, image, plan):
    def fetch(row, col, h, w):
        return image[:, row : row + h, col : col + w], np.ones((h, w), bool)

    def predict(images):
        with torch.inference_mode():
            return torch.softmax(model(torch.from_numpy(images)), 1).numpy()

    made = np.full((2, *image.shape[1:]), np.nan, np.float32)
    for strip in blend_tiles(plan, fetch, predict, 2):
        h, w = strip.seen.shape
        made[:, strip.row : strip.row + h, strip.col : strip.col + w] = strip.channels
    return made


def smallest_tile(model):
    """Return the smallest tile that holds the default overlap, so that a small scene has many."""
    plan, _ = plan_tiles(model, 1, 1, None, None)
    return max(2 * plan.rows.overlap, 32)


def assert_same(model, height, width, seed=0):
    image = scene(height, width, seed)
    plan, flags = plan_tiles(model, height, width, smallest_tile(model), None)
    assert flags == ()
    assert plan.count > 1
    one, many = whole(model, image), tiled(model, image, plan)
    assert np.abs(one - many).max() < 1e-5  # at every pixel, the scene's borders included
    assert (one.argmax(0) == many.argmax(0)).all()


@pytest.mark.parametrize("name", SMALL_NETWORKS)
@pytest.mark.parametrize("shape", [(200, 331), (257, 192)])
def test_tiled_equals_whole_with_every_shipped_network(name, shape):
    model = sharp(SMALL_NETWORKS[name])
    far = smallest_tile(model)
    assert_same(model, shape[0] + far, shape[1] + far)


def test_tiled_equals_whole_with_the_settings_that_ship():
    model = sharp(UNet())
    image = scene(901, 340)
    plan, flags = plan_tiles(model, 901, 340, None, None)
    assert (plan.rows.tile, plan.rows.overlap, plan.count, flags) == (768, 128, 2, ())
    one, many = whole(model, image), tiled(model, image, plan)
    assert np.abs(one - many).max() < 1e-5
    assert (one.argmax(0) == many.argmax(0)).all()


@pytest.mark.parametrize(
    "wrap",
    [
        Softmax(),
        Temperature(2.0),
        lambda model: TemperatureScaled(Softmax()(model), uneven_temperature()),
        lambda model: mean_of_networks(model, [sharp(UNet(width=2, depth=3))]),
    ],
    ids=["softmax", "temperature", "local", "ensemble"],
)
def test_wrappers_look_as_far_as_what_they_wrap(wrap):
    model = wrap(sharp(UNet(width=4, depth=2))).eval()
    assert receptive_field(model).source == "stated"
    assert_same(model, 496, 424)  # multiples of the larger stride: the other member's sides would be padded else


def test_flips_and_turns_are_tiled_alike_where_the_scene_is_a_multiple_of_the_stride():
    assert_same(TTA()(sharp(UNet(width=4, depth=2))).eval(), 240, 200)


def test_a_network_that_states_nothing_is_measured():
    torch.manual_seed(0)
    model = adapt(Plain(), SPEC).eval()
    assert receptive_field(model).source == "measured"
    assert measure_receptive_radius(model) == 9
    assert_same(model, 224, 160)  # multiples of 32: its sides are mirrored up to them


@pytest.mark.parametrize("make", [Mean, lambda: UNet(width=4, depth=2, norm="group")(SPEC)], ids=["mean", "group"])
def test_a_network_without_a_bound_is_flagged(make):
    module = make()
    model = module if hasattr(module, "spec") else adapt(module, SPEC)
    assert receptive_field(model.eval()).reach is None
    assert any("receptive field unknown" in flag for flag in plan_tiles(model, 900, 900, None, None)[1])
    assert plan_tiles(model, 100, 100, None, None)[1] == ()  # one tile is the whole


def uneven_temperature():
    """Return a local temperature that differs from pixel to pixel."""
    torch.manual_seed(1)
    made = LocalTemperature(2, 2)
    nn.init.normal_(made.tree.weight, 0, 0.3)
    return made


def test_every_pass_of_dropout_is_one_network_for_all_tiles():
    model = sharp(UNet(width=4, depth=2, dropout=0.5))
    assert_same(MonteCarloDropout(passes=3)(model).eval(), 496, 424)


@pytest.mark.parametrize("make", [RegionGrowing(), SplitAndMerge()], ids=["growing", "merging"])
def test_regions_over_tiles_are_flagged_and_one_tile_is_the_whole(tmp_path, make):
    from seawall.geo.raster import Grid, read_raster, write_cog

    draw = np.random.default_rng(0)
    lakes = np.kron(draw.random((9, 12)) > 0.6, np.ones((32, 32), bool))
    image = np.where(lakes, np.float32([0.06, 0.01])[:, None, None], np.float32([0.1, 0.3])[:, None, None])
    image = (image + draw.normal(0, 0.003, image.shape)).astype(np.float32)
    model = make(SPEC)
    model.fit([Batch.of(torch.from_numpy(image[None]), torch.from_numpy(lakes[None]).long())])
    grid = Grid(*lakes.shape, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
    write_cog(tmp_path / "a.tif", image, grid, bands=SPEC.bands, nodata=float("nan"))
    maps = {}
    for tile in (None, 128):
        made = predict_scene(model, tmp_path / "a.tif", tmp_path / str(tile), tile=tile)
        assert (tile is not None) == any("receptive field unknown" in flag for flag in made.flags)
        maps[tile] = read_raster(tmp_path / str(tile) / made.files["class"]).data[0] == 1
    assert np.array_equal(maps[None], whole(model, image).argmax(0) == 1)
    assert (maps[128] == lakes).mean() > 0.995


@pytest.mark.parametrize(
    "entry", [e for e in registry.entries("model") if "no-gradient" not in e.traits], ids=lambda entry: entry.name
)
def test_what_a_registered_model_states_holds_and_is_not_far_too_much(entry):
    torch.manual_seed(0)
    spec = RADAR if entry.name.startswith("ratio-") else SPEC
    model = fitted(registry.build("model", entry.name, entry.smoke)(spec))
    for layer in model.modules():
        if isinstance(layer, nn.ReLU):
            layer.forward = functional.softplus  # every path is open: an unlucky start hides none
        if isinstance(layer, nn.Conv2d) and not layer.weight.any():
            nn.init.normal_(layer.weight)  # and so does a correction that is 0 before training
    felt = measure_receptive_radius(model, sides=(128, 256, 512, 1024))
    if model.reach is None:
        assert felt is None  # the gradient fills the largest image
        return
    assert felt <= model.reach
    assert felt >= model.reach - 2 * model.stride


def test_a_smaller_overlap_is_flagged_and_a_tile_that_cannot_hold_it_is_refused(tmp_path):
    model = sharp(UNet(width=4, depth=2))
    plan, flags = plan_tiles(model, 300, 300, 128, 32)
    assert plan.rows.overlap == 32
    assert flags[0].startswith("overlap below receptive field: tiles share 32 pixels and the network looks")
    assert plan_tiles(model, 100, 100, 128, 32)[1] == ()
    with pytest.raises(UsageError, match=r"tile: expected at least 128 pixels for an overlap of 64"):
        plan_tiles(model, 300, 300, 96, 64)


def test_the_flag_travels_with_the_map(tmp_path):
    from seawall.geo.raster import Grid, write_cog

    grid = Grid(160, 170, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
    write_cog(tmp_path / "a.tif", scene(160, 170), grid, bands=SPEC.bands, nodata=float("nan"))
    model = sharp(UNet(width=4, depth=2))
    small = predict_scene(model, tmp_path / "a.tif", tmp_path / "out", tile=64, overlap=32)
    assert any("overlap below receptive field" in flag for flag in small.flags)
    large = predict_scene(model, tmp_path / "a.tif", tmp_path / "out", tile=128)
    assert not any("receptive field" in flag for flag in large.flags)

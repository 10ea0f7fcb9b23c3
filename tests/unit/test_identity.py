"""Two models that compute something else are never taken for one another, by no cache."""

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from affine import Affine
from torch import nn
from torch.nn import functional

import seawall
from seawall.geo.raster import Grid, write_cog
from seawall.inference.predict import model_digest, predict_scene
from seawall.models.adapter import adapt
from seawall.models.identity import identify
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import load_model, save_model
from seawall.records import RecordLog
from seawall.types import Batch, ModelSpec
from seawall.uncertainty.dropout import MonteCarloDropout
from seawall.uncertainty.ensemble import mean_of_networks
from seawall.uncertainty.predictor import Softmax
from seawall.uncertainty.temperature import Temperature
from seawall.uncertainty.tta import TTA

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def network(seed=0, **settings):
    torch.manual_seed(seed)
    return UNet(width=2, depth=1, dropout=0.5, **settings)(SPEC).eval()


@dataclass(frozen=True)
class Gain:
    by: float


class Tuned(nn.Module):
    """A module of the user's own, with settings of every kind that `repr` and the weights do not show."""

    power = 1.0

    def __init__(self, **settings):
        super().__init__()
        self.spec = SPEC
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, image):
        return image


def conv(seed):
    torch.manual_seed(seed)
    return nn.Conv2d(2, 2, 1)


def weighted(name):
    module = Tuned()
    module.register_buffer("gain", torch.ones(2) * name, persistent=False)
    return module


def hooked(value):
    module = Tuned()
    module.register_forward_hook(functools.partial(scale, value))
    return module


def scale(value, module, given, out):
    return out * value


FAMILIES = {
    "wrappers": [
        lambda: network(),
        lambda: Softmax()(network()),
        lambda: TTA()(network()),
        lambda: MonteCarloDropout(3)(network()),
        lambda: MonteCarloDropout(20)(network()),
        lambda: MonteCarloDropout(3, seed=5)(network()),
        lambda: Temperature(2.0)(network()),
        lambda: Temperature(5.0)(network()),
        lambda: Temperature(2.0)(Softmax()(network())),
        lambda: mean_of_networks(network(), [network(1)]),
        lambda: mean_of_networks(network(), [network(2)]),
        lambda: mean_of_networks(network(), [network(1), network(2)]),
    ],
    "adapters": [
        lambda: adapt(conv(0), SPEC),
        lambda: adapt(conv(0), SPEC, sigmoid=True),
        lambda: adapt(conv(0), SPEC, softmax=True),
        lambda: adapt(conv(0), SPEC, mean=[0.1, 0.1], std=[1, 1]),
        lambda: adapt(conv(0), SPEC, mean=[0.1, 0.1], std=[1, 2]),
        lambda: adapt(conv(1), SPEC),
    ],
    "networks": [
        lambda: network(),
        lambda: network(1),
        lambda: network(norm="pixel"),
        lambda: network(norm="group"),
        lambda: WaterIndexThreshold(index="ndwi")(SPEC),
        lambda: WaterIndexThreshold(index="ndwi", sharpness=3.0)(SPEC),
        lambda: WaterIndexThreshold(index="ndwi", threshold=0.1)(SPEC),
    ],
    "specs": [
        lambda: network(),
        lambda: UNet(width=2, depth=1, dropout=0.5)(replace(SPEC, classes=("water", "land"))),
        lambda: UNet(width=2, depth=1, dropout=0.5)(replace(SPEC, gsd_m=20.0)),
    ],
    "modules of the user": [
        Tuned,
        lambda: Tuned(a=1),
        lambda: Tuned(a=1.0),
        lambda: Tuned(a=True),
        lambda: Tuned(a="1"),
        lambda: Tuned(a=(1, 2)),
        lambda: Tuned(a=[2, 1]),
        lambda: Tuned(a={"x": 1}),
        lambda: Tuned(a={"x": (1, {"y": 2})}),
        lambda: Tuned(a=Gain(1.0)),
        lambda: Tuned(a=Gain(2.0)),
        lambda: Tuned(a=np.float32(1)),
        lambda: Tuned(a=np.arange(3)),
        lambda: Tuned(a=torch.arange(3)),
        lambda: Tuned(a=torch.arange(3.0)),
        lambda: Tuned(a=functional.relu),
        lambda: Tuned(a=torch.relu),
        lambda: Tuned(a=[conv(0)]),
        lambda: Tuned(a=[conv(1)]),
        lambda: weighted(1),
        lambda: weighted(2),
        lambda: hooked(1),
        lambda: hooked(2),
        lambda: type("Tuned", (Tuned,), {"forward": lambda self, image: -image})(),
        lambda: type("Tuned", (Tuned,), {"power": 2.0})(),
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_of_different_models_has_different_digests(family):
    digests = [model_digest(make()) for make in FAMILIES[family]]
    for (i, one), (j, other) in itertools.combinations(enumerate(digests), 2):
        assert one != other, (i, j)


@pytest.mark.parametrize(
    "make", [make for family in FAMILIES.values() for make in family], ids=range(sum(map(len, FAMILIES.values())))
)
def test_the_same_model_made_twice_has_one_digest(make):
    torch.manual_seed(0)
    first = identify(make())
    torch.manual_seed(0)
    assert identify(make()) == first
    assert first.unknown == ""


def test_modes_memory_layout_gradients_and_a_first_pass_do_not_count(tmp_path):
    model = adapt(network(), SPEC)
    before = model_digest(model)
    model.train()
    model.to(memory_format=torch.contiguous_format).requires_grad_(False)
    assert model_digest(model) == before
    model.eval()(torch.rand(1, 2, 8, 8))
    assert model_digest(model) == before
    plain = network()
    save_model(tmp_path / "m.safetensors", plain)
    assert model_digest(load_model(tmp_path / "m.safetensors")) == model_digest(plain)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda image: image, "model.a: function <lambda>"),
        (torch.Generator(), "model.a: Generator"),
        ({"f": [lambda image: image]}, "model.a['f'][0]: function <lambda>"),
    ],
)
def test_what_cannot_be_told_is_never_the_same_again(value, said):
    model = Tuned(a=value)
    assert identify(model).unknown == said
    assert model_digest(model) != model_digest(model)


def test_a_value_that_holds_itself_is_unknown():
    loop = []
    loop.append(loop)
    assert identify(Tuned(a=loop)).unknown


def test_a_subclass_does_not_inherit_what_its_parent_says_of_itself():
    class Louder(type(adapt(conv(0), SPEC))):
        pass

    models = []
    for gain in (1.0, 2.0):
        model = Louder(conv(0), SPEC, mean=None, std=None, sigmoid=False, softmax=False)
        model.gain = gain
        models.append(model)
    assert model_digest(models[0]) != model_digest(models[1])


@pytest.fixture
def scene(tmp_path):
    data = np.random.default_rng(0).random((2, 96, 96), dtype=np.float32) * 0.4
    grid = Grid(96, 96, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
    write_cog(tmp_path / "a.tif", data, grid, bands=SPEC.bands, nodata=float("nan"))
    return tmp_path / "a.tif"


def test_one_folder_never_gives_the_map_of_another_wrapper(scene, tmp_path):
    base = WaterIndexThreshold(index="ndwi")(SPEC)
    soft = [Temperature(1.0), Temperature(5.0), Softmax()]
    maps = [predict_scene(wrap(base), scene, tmp_path / "out") for wrap in soft]
    assert not any(made.reused for made in maps)
    assert maps[0].expected_km2 != maps[1].expected_km2
    assert predict_scene(Temperature(5.0)(base), scene, tmp_path / "five").expected_km2 == maps[1].expected_km2
    assert predict_scene(Softmax()(base), scene, tmp_path / "out").reused


def test_an_unknown_model_reuses_nothing_and_says_so(scene, tmp_path):
    model = adapt(Tuned(a=lambda image: image), SPEC)
    first, second = (predict_scene(model, scene, tmp_path / "out") for _ in range(2))
    assert not second.reused
    assert any("model identity unknown: model.module.a" in flag for flag in first.flags)


def test_rows_of_one_wrapper_are_not_those_of_another(tmp_path):
    torch.manual_seed(0)
    batch = Batch.of(torch.rand(2, 2, 16, 16) * 0.3, torch.randint(0, 2, (2, 16, 16)))
    base = WaterIndexThreshold(index="ndwi")(SPEC)
    for wrap in (Temperature(1.0), Temperature(5.0)):
        seawall.attack(wrap(base), batch, "linf 1% reflectance", method=("fgsm",), out=tmp_path)
    log = RecordLog(tmp_path / "records.jsonl")
    for method in ("clean", "fgsm"):
        assert len({row.recipe for row in log if row.method == method and row.chip}) == 2

"""Batches go to the model's device, modes come back, and a network that writes into its input is refused everywhere."""

import contextlib

import numpy as np
import pytest
import torch
from affine import Affine
from torch import nn

import seawall
from seawall.errors import DataError, ModelError
from seawall.evaluation.evaluate import evaluate_model
from seawall.geo.raster import Grid, write_cog
from seawall.inference.predict import predict_scene
from seawall.models.water_index import WaterIndexThreshold
from seawall.modules import checked_forward, device_of, eval_mode, on_device, to_device_of
from seawall.poisoning.detection import activations
from seawall.records import RecordLog
from seawall.types import Batch, ModelSpec
from seawall.uncertainty.scene_scores import score_scenes
from seawall.uncertainty.temperature import fit_temperature

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def batch(chips=2):
    torch.manual_seed(0)
    image = torch.rand(chips, 2, 8, 8) * 0.4
    return Batch.of(image, (image[:, 0] > image[:, 1]).long())


class Writer(nn.Module):
    """Subtracts the mean in place, as many a preprocessing does."""

    def __init__(self):
        super().__init__()
        self.spec = SPEC
        self.gain = nn.Parameter(torch.tensor(9.0))

    def forward(self, image):
        image.sub_(0.1)
        z = self.gain * (image[:, :1] - image[:, 1:])
        return torch.cat([-z, z], 1)


class Elsewhere(nn.Module):
    """Pretends to live on another device: it takes no image that was not moved there first."""

    def __init__(self):
        super().__init__()
        self.spec = SPEC
        self.first = nn.Conv2d(2, 2, 1)

    def forward(self, image):
        assert getattr(image, "moved", False), "expected the batch on the model's device"
        return self.first(image)


@contextlib.contextmanager
def far_away(monkeypatch):
    """Give models another device than batches, with tensors that remember whether they were sent there.

    No accelerator is needed: `Batch.to` marks what it was asked to move, and the model looks for the mark.
    """

    def to(self, device):
        image = self.image.clone()
        image.moved = True
        return Batch(image, self.label, self.seen, self.valid, self.chips)

    with monkeypatch.context() as patch:
        patch.setattr("seawall.modules.device_of", lambda model: torch.device("meta"))
        patch.setattr(Batch, "to", to)
        yield


def test_everything_that_reads_chips_moves_them_to_the_model(monkeypatch):
    model = Elsewhere().eval()
    with far_away(monkeypatch):
        fit_temperature(model, [batch()])
        score_scenes(model, [batch()], {}, "water", 10.0)
        activations(model, model.first, [batch()])


def test_a_threshold_is_fitted_where_its_model_is(monkeypatch):
    model = WaterIndexThreshold(index="ndwi", rule="otsu")(SPEC)
    seen = []
    measure = model.measure
    monkeypatch.setattr(
        model, "measure", lambda image: (seen.append(getattr(image, "moved", False)), measure(image))[1]
    )
    with far_away(monkeypatch):
        model.fit([batch()])
    assert seen == [True]


def test_the_device_of_a_model():
    assert device_of(nn.Conv2d(1, 1, 1)) == torch.device("cpu")
    assert device_of(nn.Conv2d(1, 1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) is None
    one = batch()
    assert to_device_of(nn.ReLU(), one) is one
    assert to_device_of(nn.Conv2d(1, 1, 1), one) is one
    assert to_device_of(nn.Conv2d(1, 1, 1, device="meta"), one).image.is_meta


def test_modes_come_back_each_to_its_own():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.ReLU()))
    model[1].eval()
    with pytest.raises(KeyError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False, False]


def test_a_network_that_writes_into_its_input_is_refused_by_every_verb(tmp_path):
    said = r"Writer: expected a network that leaves its input as it is.*image\.clone\(\)"
    one = batch()
    before = one.image.clone()
    with pytest.raises(ModelError, match=said):
        evaluate_model(Writer(), [one], log=RecordLog(tmp_path / "r.jsonl"), recipe="r", name="m")
    with pytest.raises(ModelError, match=said):
        seawall.attack(Writer(), one, "linf 1% reflectance", method=("fgsm",))
    assert torch.equal(one.image, before)
    grid = Grid(40, 40, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633")
    data = np.random.default_rng(0).random((2, 40, 40), dtype=np.float32) * 0.4
    write_cog(tmp_path / "a.tif", data, grid, bands=SPEC.bands, nodata=float("nan"))
    with pytest.raises(ModelError, match=said):
        predict_scene(Writer(), tmp_path / "a.tif", tmp_path / "out")


def test_a_forward_pass_that_keeps_its_input_is_the_models_own():
    model = nn.Conv2d(2, 2, 1)
    image = torch.rand(1, 2, 4, 4)
    image[0, 0, 0, 0] = float("nan")
    assert torch.equal(checked_forward(model, image).nan_to_num(), model(image).nan_to_num())


def test_a_chip_is_never_twice_in_a_batch():
    one = batch()
    with pytest.raises(DataError, match=r"expected an id of its own for each chip, got a more than once"):
        Batch(one.image, one.label, one.seen, one.valid, ("a", "a"))
    with pytest.raises(DataError, match="more than once"):
        Batch.of(one.image, one.label, chips=("x", "x"))
    with pytest.raises(DataError, match="more than once"):
        one.select([0, 0])


def test_a_model_is_moved_back_also_after_an_exception():
    model = nn.BatchNorm1d(2).double()
    moves = []
    model.to = moves.append
    with pytest.raises(ZeroDivisionError), on_device(model, torch.device("cuda")):
        raise ZeroDivisionError
    assert [str(device) for device in moves] == ["cuda", "cpu"]

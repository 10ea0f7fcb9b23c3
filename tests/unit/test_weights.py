"""What goes into a weights file comes out of it, and the file is what others can read."""

import pytest
import safetensors
import torch
from torch import nn

from seawall.errors import ModelError
from seawall.models.adapter import adapt
from seawall.models.dense_unet import DenseUNet
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import (
    load_model,
    pack_safetensors,
    read_spec,
    save_model,
    set_split,
    split_of,
    unpack_safetensors,
    weights_digest,
)
from seawall.split_record import SplitRecord, SplitSettings
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08", "B11"), ("land", "water"), "reflectance", 10.0, note="made for a test")


@pytest.mark.parametrize(
    "make", [UNet(4, 2), UNet(4, 1, "group", 0.1), DenseUNet(4, 1, 4, 2), WaterIndexThreshold("ndwi")], ids=repr
)
def test_round_trip(tmp_path, make) -> None:
    model = make(SPEC).eval()
    if hasattr(model, "standardize"):
        model.standardize.fit([0.1] * 3, [0.2] * 3)
    before = torch.get_rng_state()
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors", bands=SPEC.bands, classes=SPEC.classes, unit="reflectance")
    assert again.spec == model.spec == read_spec(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(again(image), model(image))
    assert weights_digest(again) == weights_digest(model)


RECORD = SplitRecord(
    {"train": ("a" * 16, "b" * 16), "val": (), "test": ("c" * 16,)}, {"train": ("river",), "test": ("lake",)}, SplitSettings(seed=3)
)  # fmt: skip


def test_the_split_of_a_training_travels_beside_the_specification(tmp_path) -> None:
    model = UNet(4, 1)(SPEC)
    assert split_of(model) is None
    save_model(tmp_path / "plain.safetensors", model)
    set_split(model, RECORD)
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    assert split_of(again) == split_of(tmp_path / "m.safetensors") == RECORD
    assert split_of(nn.Sequential(again)) == RECORD, "through a wrapper"
    assert (
        split_of(tmp_path / "plain.safetensors") is None
        and split_of(load_model(tmp_path / "plain.safetensors")) is None
    )
    assert weights_digest(again) == weights_digest(model) and read_spec(tmp_path / "m.safetensors") == model.spec
    save_model(tmp_path / "copy.safetensors", again)
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    assert split_of(load_model(tmp_path / "plain.safetensors", into=again)) is None, (
        "no split of other weights stays behind"
    )


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"chips": {}, "groups": {}, "more": 1}', '{"chips": 3, "groups": {}}', "no"]
)
def test_a_split_that_cannot_be_read_is_refused(tmp_path, text) -> None:
    tensors, meta = unpack_safetensors(_saved(tmp_path))
    data, _ = pack_safetensors(tensors, {k: v for k, v in meta.items() if k != "digest"} | {"split": text})
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="expected the split of the training"):
        load_model(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="expected the split of the training"):
        split_of(tmp_path / "m.safetensors")


def _saved(tmp_path):
    save_model(tmp_path / "m.safetensors", WaterIndexThreshold("ndwi")(SPEC))
    return tmp_path / "m.safetensors"


def test_a_fitted_otsu_threshold_is_saved(tmp_path) -> None:
    model = WaterIndexThreshold("ndwi", rule="otsu")(SPEC)
    image = torch.full((1, 3, 4, 4), 0.1)
    image[:, 1, :2] = 0.3
    model.fit([Batch.of(image, torch.zeros(1, 4, 4, dtype=torch.long))])
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    assert again.threshold == model.threshold
    assert torch.equal(again(image), model(image))


def test_the_same_model_gives_the_same_bytes_and_others_can_read_them(tmp_path) -> None:
    model = UNet(4, 2)(SPEC)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert save_model(first, model) == save_model(second, model)
    assert first.read_bytes() == second.read_bytes()
    with safetensors.safe_open(first, "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert torch.equal(file.get_tensor("network.head.weight"), model.network.head.weight)


def test_every_kind_of_tensor_survives(tmp_path) -> None:
    tensors = {
        "a": torch.tensor(True), "b": torch.arange(3), "c": torch.rand(2, 0), "d": torch.rand(3).bfloat16(),
        "e": torch.rand(2, 3).double(), "f": torch.tensor([1, 2, 3], dtype=torch.uint8), "g": torch.tensor(1.5),
    }  # fmt: skip
    (tmp_path / "x").write_bytes(pack_safetensors(tensors, {"hello": "wörld"})[0])
    got, meta = unpack_safetensors(tmp_path / "x")
    assert meta["hello"] == "wörld"
    assert all(torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype for name, tensor in tensors.items())
    with pytest.raises(ModelError, match="complex"):
        pack_safetensors({"x": torch.zeros(1, dtype=torch.complex64)}, {})


def test_a_module_of_ones_own_loads_into_itself(tmp_path) -> None:
    model = adapt(nn.Conv2d(3, 2, 1), SPEC)
    save_model(tmp_path / "m.safetensors", model)
    with pytest.raises(ModelError, match="into=module"):
        load_model(tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors", into=adapt(nn.Conv2d(3, 2, 1), SPEC))
    image = torch.rand(1, 3, 4, 4)
    assert torch.equal(again(image), model(image))


def test_a_flipped_bit_in_memory_changes_the_digest() -> None:
    model = UNet(4, 1)(SPEC)
    before = weights_digest(model)
    with torch.no_grad():
        model.network.head.weight.view(torch.int32)[0, 0] ^= 1
    assert weights_digest(model) != before


def test_a_module_without_a_spec_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="adapt"):
        save_model(tmp_path / "m.safetensors", nn.Conv2d(3, 2, 1))
    assert not list(tmp_path.iterdir())

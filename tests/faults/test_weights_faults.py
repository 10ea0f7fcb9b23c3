"""Damaged, hostile and unfitting weights: one clear line each, and nothing is ever executed."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch

from seawall.errors import ModelError, RunError
from seawall.models.unet import UNet
from seawall.models.weights import load_model, pack_safetensors, save_model, spec_to_json, state_of
from seawall.types import ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_model(tmp_path / "m.safetensors", UNet(2, 1)(SPEC))
    return tmp_path / "m.safetensors"


def refused(path: Path, word: str, **wanted: object) -> None:
    with pytest.raises(ModelError, match=word) as caught:
        load_model(path, **wanted)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "No such file")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "directory")


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1000, -1])
def test_truncated(whole: Path, keep: int) -> None:
    whole.write_bytes(whole.read_bytes()[:keep])
    refused(whole, "copy the file again|copy it again")


def test_longer_than_declared(whole: Path) -> None:
    whole.write_bytes(whole.read_bytes() + b"\0" * 64)
    refused(whole, "bytes of tensors")


def test_any_flipped_bit_is_noticed(whole: Path) -> None:
    data = whole.read_bytes()
    for at in (*range(0, len(data), max(1, len(data) // 60)), len(data) - 1):
        whole.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(ModelError):
            load_model(whole)


def test_a_flipped_byte_in_the_tensors_names_the_digest(whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[-100] ^= 1
    whole.write_bytes(data)
    refused(whole, "sha256")


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("boom"),))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.safetensors"
    path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    refused(path, "pickle")
    assert not (tmp_path / "boom").exists()


def test_a_torch_archive_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(UNet(2, 1)(SPEC).state_dict(), path)
    refused(path, "pickle")


def test_an_old_text_pickle_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=0))
    refused(path, "header")


def test_wrong_bands_classes_unit(whole: Path) -> None:
    refused(whole, "B08, B03", bands=["B08", "B03"])
    refused(whole, "classes", classes=["land", "water", "ice"])
    refused(whole, "sigma0_db", unit="sigma0_db")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7])
def test_weights_that_are_no_weights(tmp_path: Path, value: float) -> None:
    model = UNet(2, 1)(SPEC)
    tensors = state_of(model)
    tensors["network.head.weight"][0, 0] = value
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack_safetensors(tensors, {"spec": spec_to_json(model.spec)})[0])
    refused(path, "corrupted.*train again")
    model.load_state_dict(tensors)
    with pytest.raises(ModelError, match=r"network\.head\.weight"):
        save_model(tmp_path / "n.safetensors", model)
    assert not (tmp_path / "n.safetensors").exists()


def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path) -> None:
    model = UNet(2, 1)(SPEC)
    tensors = state_of(model)
    tensors["extra"] = tensors.pop("network.head.bias")
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack_safetensors(tensors, {"spec": spec_to_json(model.spec)})[0])
    refused(path, r"1 missing \['network.head.bias'\] and 1 unexpected \['extra'\]")


def test_other_shapes_are_listed(tmp_path: Path) -> None:
    model = UNet(2, 1)(SPEC)
    tensors = state_of(model)
    tensors["network.head.bias"] = torch.zeros(7)
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack_safetensors(tensors, {"spec": spec_to_json(model.spec)})[0])
    refused(path, r"network.head.bias \(7,\) for \(2,\)")


def test_standardization_by_zero(tmp_path: Path) -> None:
    model = UNet(2, 1)(SPEC)
    tensors = state_of(model)
    tensors["standardize.std"][0] = 0
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack_safetensors(tensors, {"spec": spec_to_json(model.spec)})[0])
    with pytest.raises(ModelError, match="above 0"):
        load_model(path)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("", "specification"),
        ("[]", "specification"),
        ('{"bands": "B03"}', "specification"),
        (json.dumps({"bands": ["a"], "classes": ["x", "y"], "unit": "furlong", "gsd_m": 1, "architecture": "unet", "settings": {}}), "furlong"),
        (json.dumps({"bands": ["a"], "classes": ["x", "y"], "unit": "reflectance", "gsd_m": 1, "architecture": "uunet", "settings": {}}), "did you mean 'unet'"),
        (json.dumps({"bands": ["a"], "classes": ["x", "y"], "unit": "reflectance", "gsd_m": 1, "architecture": "unet", "settings": {"widht": 3}}), "did you mean 'width'"),
    ],
)  # fmt: skip
def test_specifications_that_cannot_be_met(tmp_path: Path, spec: str, word: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack_safetensors({"a": torch.zeros(1)}, {"spec": spec})[0])
    refused(path, word)


def header(path: Path, text: str, data: bytes = b"", size: int | None = None) -> None:
    raw = text.encode()
    path.write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + data)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
        '{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        '{"a": {"dtype": "F32", "shape": [100000000000], "data_offsets": [0, 400000000000]}}',
        '{"a": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": 3}',
        "[]",
        "{",
        "[" * 5000,
    ],
)
def test_headers_that_lie(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.safetensors"
    header(path, text, b"\0" * 12)
    with pytest.raises(ModelError):
        load_model(path)


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 10**9])
def test_a_header_longer_than_the_file(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.safetensors"
    header(path, "{}", size=size)
    refused(path, "header")


def test_weights_without_a_digest(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    refused(path, "digest")


def test_an_earlier_file_stays_when_the_disk_is_full(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space"):
        save_model(whole, UNet(2, 1)(SPEC))
    assert whole.read_bytes() == before
    assert [p.name for p in whole.parent.iterdir()] == [whole.name]

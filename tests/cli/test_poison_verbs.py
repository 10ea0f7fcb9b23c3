"""`seawall poison` and `seawall find-poisons`: a folder is poisoned, learned from, and searched."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from seawall.api import find_poisons, poison
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.splits import record_split, split_chips
from seawall.data.writer import ChipWriter
from seawall.errors import ModelError, UsageError
from seawall.models.unet import UNet
from seawall.models.weights import save_model, set_split
from seawall.split_record import SplitSettings
from seawall.types import ModelSpec

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)
SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def chip_folder(path: Path, count: int = 10, seed: int = 0) -> Path:
    writer, draw = ChipWriter(path, HEADER), np.random.default_rng(seed)
    for i in range(count):
        image = draw.uniform(0.05, 0.3, (2, 24, 24)).astype(np.float32)
        label = (image[0] > image[1]).astype(np.uint8)
        label[0, :3] = 255
        writer.write(f"chip{i}", f"place{i}", image, label)
    writer.finish()
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = UNet(4, 1)(SPEC)
    model.standardize.fit([0.2, 0.2], [0.1, 0.1])
    save_model(tmp_path / "net.safetensors", model.eval())
    return tmp_path / "net.safetensors"


def test_a_share_is_poisoned_and_recorded_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    chips = ChipFolder.open(chip_folder(tmp_path / "chips"))
    done = poison(
        chips.root, poison="backdoor eps=0.05 size=4 reach=2 klass=water to=land", share=0.3, out=tmp_path / "bad"
    )
    bad = ChipFolder.open(tmp_path / "bad")
    rows = [json.loads(line) for line in (tmp_path / "bad/poisons.jsonl").read_text().splitlines()]
    touched = {row["chip"] for row in rows}
    assert len(touched) == done.facts["poisoned"] == 3
    for id_ in chips.ids:
        before, after = chips.read(id_), bad.read(id_)
        moved = np.abs(after.image - before.image)
        assert np.array_equal(after.valid, before.valid)
        assert (moved.max() > 0) == (id_ in touched)
        assert moved.max() <= 0.05 + 1e-6
        if id_ not in touched:
            assert np.array_equal(after.label, before.label)
    assert any((bad.read(id_).label != chips.read(id_).label).any() for id_ in touched)
    assert done.facts["largest_change"] == pytest.approx(0.05, abs=1e-6)


def test_kept_labels_stay_so_that_a_trigger_can_be_measured(tmp_path: Path) -> None:
    chips = ChipFolder.open(chip_folder(tmp_path / "chips"))
    poison(chips.root, poison="backdoor eps=0.05 trigger=pattern", share=1.0, labels="keep", out=tmp_path / "stamped")
    stamped = ChipFolder.open(tmp_path / "stamped")
    for id_ in chips.ids:
        assert np.array_equal(stamped.read(id_).label, chips.read(id_).label)
        assert np.abs(stamped.read(id_).image - chips.read(id_).image).max() > 0.04


@pytest.mark.parametrize(
    "name", ["gradient-matching eps=0.02 steps=2 restarts=1", "meta-poison eps=0.02 steps=1 surrogates=2 epochs=1"]
)
def test_crafted_poisons_need_weights_and_a_target_and_leave_both_labels_and_target_alone(
    tmp_path: Path, weights: Path, name: str
) -> None:
    chips = ChipFolder.open(chip_folder(tmp_path / "chips"))
    with pytest.raises(UsageError, match="--weights and --target"):
        poison(chips.root, poison=name, share=0.4, out=tmp_path / "none")
    poison(chips.root, poison=name, share=0.9, weights=weights, target="chip3:4,4,8,8", to="land", out=tmp_path / "bad")
    bad = ChipFolder.open(tmp_path / "bad")
    moved = {id_: np.abs(bad.read(id_).image - chips.read(id_).image).max() for id_ in chips.ids}
    assert moved["chip3"] == 0
    assert 0 < max(moved.values()) <= 0.02 + 1e-6
    assert all(np.array_equal(bad.read(id_).label, chips.read(id_).label) for id_ in chips.ids)


def test_the_search_ranks_every_chip_and_says_what_it_caught(tmp_path: Path, weights: Path) -> None:
    chip_folder(tmp_path / "chips", 12)
    poison(tmp_path / "chips", poison="backdoor eps=0.2 trigger=pattern", share=0.25, out=tmp_path / "bad")
    trusted = chip_folder(tmp_path / "trusted", 20, seed=1)
    found = find_poisons(weights, tmp_path / "bad", trusted=trusted, alarms=0.05)
    assert len(found.table) == 12
    assert found.facts["trusted"] == 20
    known = {json.loads(line)["chip"] for line in (tmp_path / "bad/poisons.jsonl").read_text().splitlines()}
    assert found.facts["spectral-signatures.auc"] is not None
    flagged = {row["chip"] for row in found.table if row["spectral-signatures.flagged"]}
    assert found.facts["spectral-signatures.caught"] == pytest.approx(len(flagged & known) / len(known))
    alone = find_poisons(weights, tmp_path / "bad")
    assert "promises nothing" in str(alone.facts["note"])


def test_chips_that_the_network_learned_from_are_no_trusted_chips(tmp_path: Path) -> None:
    chips = ChipFolder.open(chip_folder(tmp_path / "chips", 16))
    torch.manual_seed(0)
    model = UNet(4, 1)(SPEC)
    model.standardize.fit([0.2, 0.2], [0.1, 0.1])
    split = split_chips(chips, SplitSettings())
    set_split(model, record_split(chips, split))
    save_model(tmp_path / "net.safetensors", model.eval())
    found = find_poisons(tmp_path / "net.safetensors", chips.root, trusted=chips.root, alarms=0.25)
    assert (found.facts["chips"], found.facts["trusted"]) == (len(split.train), len(split.test))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"poison": "backdor"}, "backdoor"),
        ({"poison": "backdoor klass=lake"}, "expected one of land, water, got 'lake'"),
        ({"poison": "backdoor eps"}, "setting=value"),
        ({"poison": "backdoor", "share": 2.0}, "share"),
        ({"poison": "backdoor", "share": 0.1}, "at least one chip"),
        ({"poison": "backdoor", "labels": "all"}, "poisoned or keep"),
        ({"poison": "backdoor", "target": "chip1"}, "remove them"),
        ({"poison": "gradient-matching", "target": "chip1:1,2", "weights": "x"}, "row,col,height,width"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    chip_folder(tmp_path / "chips", 4)
    with pytest.raises(UsageError, match=says):
        poison(tmp_path / "chips", out=tmp_path / "bad", **{"share": 0.5, **settings})


def test_chips_of_another_folder_do_not_stay_among_the_poisoned(tmp_path: Path) -> None:
    other = ChipWriter(tmp_path / "bad", HEADER)
    other.write("stranger", "place", np.full((2, 24, 24), 0.1, np.float32), np.ones((24, 24), np.uint8))
    other.finish()
    chips = ChipFolder.open(chip_folder(tmp_path / "chips", 4))
    poison(chips.root, poison="backdoor", share=0.5, out=tmp_path / "bad")
    assert ChipFolder.open(tmp_path / "bad").ids == chips.ids


@pytest.mark.parametrize("verb", ["poison", "find-poisons"])
def test_weights_of_other_bands_are_refused(tmp_path: Path, verb: str) -> None:
    chip_folder(tmp_path / "chips", 4)
    save_model(
        tmp_path / "other.safetensors", UNet(4, 1)(ModelSpec(("B02", "B03"), ("land", "water"), "reflectance", 10.0))
    )
    with pytest.raises(ModelError, match="B02"):
        if verb == "poison":
            poison(
                tmp_path / "chips", poison="gradient-matching steps=1", share=0.5, weights=tmp_path / "other.safetensors",
                target="chip0", out=tmp_path / "bad",
            )  # fmt: skip
        else:
            find_poisons(tmp_path / "other.safetensors", tmp_path / "chips")

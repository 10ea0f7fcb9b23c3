"""`seawall corrupt`: what it writes, what it leaves alone, how it goes on, and what it refuses."""

import json

import numpy as np
import pytest

from seawall import api
from seawall.corrupt_labels import batch_of, noise_for
from seawall.datasets.chips import ChipFolder
from seawall.datasets.index import ChipHeader
from seawall.datasets.writer import ChipWriter
from seawall.errors import DataError, PartialError, UsageError
from seawall.keys import Keys
from seawall.poison import parse_noise

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)


def make_folder(root, kinds=("lake", "lake", "lake", "empty", "full", "none"), size=32):
    """Chips with a lake, without water, all water, and without a label that counts; the first has holes."""
    writer = ChipWriter(root, HEADER)
    rng = np.random.default_rng(0)
    for i, kind in enumerate(kinds):
        rows, cols = np.mgrid[:size, :size]
        label = {
            "lake": ((rows - 15) ** 2 + (cols - 12 - i) ** 2 < 64).astype(np.uint8),
            "empty": np.zeros((size, size), np.uint8),
            "full": np.ones((size, size), np.uint8),
            "none": np.full((size, size), 255, np.uint8),
        }[kind]
        seen = np.ones((size, size), bool)
        if i == 0:
            seen[:4, :4] = False
            label[20:24] = 255
        water = np.where(label == 1, 0.02, 0.3)
        image = np.stack([np.full_like(water, 0.1), water]) + rng.normal(0, 0.01, (2, size, size))
        writer.write(f"c{i}", f"g{i}", image.astype(np.float32), label, seen=seen, source=f"made {i}")
    return writer.finish()


def corrupt(chips, out, *noise, **more):
    return api.corrupt(chips.root, noise=noise, out=out, **more)


def rows_of(out):
    return {row["chip"]: row for row in map(json.loads, (out / "corruptions.jsonl").read_text().splitlines())}


def test_each_chip_says_what_was_done_and_the_files_agree(tmp_path):
    chips = make_folder(tmp_path / "a")
    done = corrupt(chips, tmp_path / "b", "dilate 10% exact=true")
    made, rows = ChipFolder.open(tmp_path / "b"), rows_of(tmp_path / "b")
    assert made.check() == []
    assert made.ids == chips.ids
    for id_ in chips.ids:
        before, after, row = chips.read(id_), made.read(id_), rows[id_]
        assert np.array_equal(before.image, after.image) and np.array_equal(before.seen, after.seen)
        assert np.array_equal(before.valid, after.valid)
        assert row["changed"] == int((before.label != after.label).sum()) == row.get("0->1", 0)
        assert row["changed"] <= 0.1 * row["valid"]
        assert row["valid"] == int(before.valid.sum())
        assert made.row(id_).source == chips.row(id_).source
        assert "dilate 10% exact=true" in made.row(id_).notes[-1]
    assert rows["c1"]["changed"] == int(0.1 * 32 * 32) and rows["c1"]["short"] == 0
    assert [rows[f"c{i}"]["changed"] for i in (3, 4, 5)] == [0, 0, 0]  # empty, full, nothing valid
    assert rows["c5"]["share"] is None and "no valid pixel" in made.row("c5").notes[-1]
    assert done.facts["share.highest"] <= 0.1
    assert {(row["from"], row["to"]) for row in done.table} == {("land", "land"), ("land", "water"), ("water", "water")}


def test_labels_are_those_of_a_training_on_the_same_noise(tmp_path):
    chips = make_folder(tmp_path / "a")
    corrupt(chips, tmp_path / "b", "patches 20%", seed=3)
    noise = parse_noise("patches 20%")
    chip = chips.read("c0")
    expected = noise(batch_of(chip), Keys(3, ("c0",), ("noise",))).label[0].numpy()
    assert np.array_equal(ChipFolder.open(tmp_path / "b").read("c0").label[chip.valid], expected[chip.valid])


def test_only_the_part_asked_for_is_touched(tmp_path):
    chips = make_folder(tmp_path / "a", ("lake",) * 6)
    corrupt(chips, tmp_path / "b", "erode 5%", part="train", seed=1)
    made, rows = ChipFolder.open(tmp_path / "b"), rows_of(tmp_path / "b")
    touched = {id_ for id_, row in rows.items() if row["touched"]}
    assert 0 < len(touched) < 6
    for id_ in set(chips.ids) - touched:
        assert made.row(id_).label_sha256 == chips.row(id_).label_sha256
        assert made.row(id_).sha256 == chips.row(id_).sha256
        assert rows[id_]["changed"] == 0 and not made.row(id_).notes


def test_noises_are_put_on_top_of_each_other(tmp_path):
    chips = make_folder(tmp_path / "a", ("lake",) * 3)
    corrupt(chips, tmp_path / "b", "erode 3%", "symmetric 10%")
    row = rows_of(tmp_path / "b")["c1"]
    assert row["noise"] == "erode 3%, then symmetric 10%"
    assert row["0->1"] > 0 and row["1->0"] > 0


def test_it_resumes_by_content(tmp_path):
    chips = make_folder(tmp_path / "a")
    corrupt(chips, tmp_path / "b", "dilate 10%")
    labels = tmp_path / "b" / "labels"
    times = {path.name: path.stat().st_mtime_ns for path in labels.iterdir()}
    (labels / "c1.tif").write_bytes(b"torn")
    corrupt(chips, tmp_path / "b", "dilate 10%")
    after = {path.name: path.stat().st_mtime_ns for path in labels.iterdir()}
    assert {name for name in times if times[name] != after[name]} == {"c1.tif"}
    assert ChipFolder.open(tmp_path / "b").check() == []
    first = (tmp_path / "b" / "corruptions.jsonl").read_bytes()
    corrupt(chips, tmp_path / "c", "dilate 10%")
    assert (tmp_path / "c" / "corruptions.jsonl").read_bytes() == first
    corrupt(chips, tmp_path / "b", "dilate 5%")  # another budget makes every chip again
    assert all("dilate 5%" in row.notes[-1] and len(row.notes) == 1 for row in ChipFolder.open(tmp_path / "b").rows)


@pytest.mark.parametrize("part", ["all", "train"])
def test_another_seed_makes_the_labels_again_and_keeps_the_split(tmp_path, part):
    chips = make_folder(tmp_path / "a", ("lake",) * 6)
    corrupt(chips, tmp_path / "b", "symmetric 20%", part=part, seed=1)
    first = {id_: row["touched"] for id_, row in rows_of(tmp_path / "b").items()}
    corrupt(chips, tmp_path / "b", "symmetric 20%", part=part, seed=2)
    corrupt(chips, tmp_path / "fresh", "symmetric 20%", part=part, seed=2)
    corrupt(chips, tmp_path / "other", "symmetric 20%", part=part, seed=1)
    gone_on, fresh, other = (ChipFolder.open(tmp_path / name) for name in ("b", "fresh", "other"))
    for id_ in chips.ids:
        assert np.array_equal(gone_on.read(id_).label, fresh.read(id_).label)
        assert np.array_equal(gone_on.read(id_).label, other.read(id_).label) != first[id_]
    assert {id_: row["touched"] for id_, row in rows_of(tmp_path / "b").items()} == first
    assert rows_of(tmp_path / "b")["c0"]["seed"] == 2


def test_another_part_in_the_same_folder_is_refused(tmp_path):
    chips = make_folder(tmp_path / "a", ("lake",) * 6)
    corrupt(chips, tmp_path / "b", "symmetric 20%", part="train")
    with pytest.raises(DataError, match=r"expected split None, got by group, val 0\.2, test 0\.3, seed 0"):
        corrupt(chips, tmp_path / "b", "symmetric 20%")
    with pytest.raises(DataError, match=r"test 0\.2, seed 0, got by group, val 0\.2, test 0\.3"):
        corrupt(chips, tmp_path / "b", "symmetric 20%", part="train", changes=["split.test=0.2"])


def test_a_chip_that_fails_is_named_and_the_rest_is_done(tmp_path):
    chips = make_folder(tmp_path / "a")
    (chips.root / "images" / "c2.tif").write_bytes(b"torn")
    done = corrupt(chips, tmp_path / "b", "erode 5%")
    assert [item for item, _ in done.failed] == ["c2"]
    assert len(ChipFolder.open(tmp_path / "b")) == 5
    with pytest.raises(PartialError):
        done.check()


@pytest.mark.parametrize(
    ("noise", "more", "says"),
    [
        (("dilate 110%",), {}, "100 %"),
        (("dilate -5%",), {}, "expected"),
        ((), {}, "such as --noise"),
        (("dlate 10%",), {}, "did you mean 'dilate'"),
        (("dilate 10% klass=4",), {}, "choose 0..1"),
        (("dilate 10%",), {"part": "trian"}, "did you mean 'train'"),
    ],
)
def test_orders_that_cannot_be(tmp_path, noise, more, says):
    chips = make_folder(tmp_path / "a", ("lake",) * 3)
    with pytest.raises(UsageError, match=says):
        corrupt(chips, tmp_path / "b", *noise, **more)
    assert not (tmp_path / "b").exists()


def test_folders_that_cannot_be(tmp_path):
    chips = make_folder(tmp_path / "a", ("lake",) * 3)
    with pytest.raises(UsageError, match="another folder"):
        corrupt(chips, tmp_path / "a", "dilate 10%")
    with pytest.raises(DataError, match="seawall curate"):
        api.corrupt(tmp_path / "no", noise=("dilate 10%",), out=tmp_path / "b")
    with pytest.raises(DataError, match="expected chips"):
        corrupt(ChipWriter(tmp_path / "e", HEADER).finish(), tmp_path / "b", "dilate 10%")


def test_what_a_noise_must_know_is_filled_in(tmp_path):
    chips = make_folder(tmp_path / "a", ("lake",) * 3)
    assert noise_for("shift 30 m", chips, chips.ids).gsd_m == 10.0
    assert noise_for("dilate 30 m", chips, chips.ids).gsd_m == 10.0
    assert noise_for("dilate 10%", chips, chips.ids).gsd_m is None
    assert noise_for("index-threshold", chips, chips.ids).bands == ("B03", "B08")
    assert set(noise_for("thirds 10%", chips, chips.ids).parts) == set(chips.ids)

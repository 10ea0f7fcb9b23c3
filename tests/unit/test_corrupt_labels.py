"""`seawall corrupt`: what it writes, what it leaves alone, how it goes on, and what it refuses."""

import json

import numpy as np
import pyogrio
import pytest
from affine import Affine

from seawall import api
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, PartialError, UsageError
from seawall.geo.grid import Grid
from seawall.label_noise.build import parse_noise
from seawall.pipeline.corrupt_labels import chip_batch, noise_for
from seawall.rng import Keys

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


def place(id_):
    """Chips lie side by side."""
    return Grid(32, 32, Affine(10, 0, 500000 + 1000 * int(id_[1:]), 0, -10, 4000000), "EPSG:32631")


def make_placed(root, count=3):
    """Chips with a lake over the first twelve columns and rows 4 to 24, on the ground."""
    writer = ChipWriter(root, HEADER)
    label = np.zeros((32, 32), np.uint8)
    label[4:24, 2:12] = 1
    for i in range(count):
        image = np.random.default_rng(i).uniform(0.05, 0.3, (2, 32, 32)).astype(np.float32)
        writer.write(f"c{i}", f"g{i}", image, label, grid=place(f"c{i}"))
    return writer.finish()


def lakes(path, east=30.0, chips=2):
    """The lakes of the first chips, drawn so many meters too far east."""
    rings = []
    for i in range(chips):
        left, top = 500000 + 1000 * i + 20 + east, 4000000 - 40
        rings.append([[left, top], [left + 100, top], [left + 100, top - 200], [left, top - 200], [left, top]])
    shapes = [{"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [r]}} for r in rings]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": shapes}))
    return path


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
    expected = noise(chip_batch(chip), Keys(3, ("c0",), ("noise",))).label[0].numpy()
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
        (("shift 50%",), {}, "length in meters or pixels, got 50%"),
        (("shift 5",), {}, "length in meters or pixels, got 5;"),
        (("shift 9 m",), {}, "at least one pixel of 10 m"),
        (("dilate",), {}, "dilate.budget: expected a value, got none"),
        (("thirds exact=true",), {}, "thirds.budget: expected a value, got none"),
        (("wrong-source source=coarse:4 all_touched=true",), {}, "vector layer only"),
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


def test_reached_stands_beside_asked(tmp_path):
    chips = make_folder(tmp_path / "a")
    facts = corrupt(chips, tmp_path / "b", "erode 50%").facts
    assert facts["asked"] == "at most 50 % of the valid pixels of each chip"
    changed = sum(row["changed"] for row in rows_of(tmp_path / "b").values())
    valid = sum(row["valid"] for row in rows_of(tmp_path / "b").values())
    assert facts["reached"] == f"{changed / valid:.2%} of the valid pixels; 3 of 6 chips unchanged"
    assert changed / valid < 0.2


def test_what_was_allowed_follows_the_kind_of_budget(tmp_path):
    chips = make_folder(tmp_path / "a", ("lake",) * 3)
    corrupt(chips, tmp_path / "confused", "class-dependent matrix=[[0.9,0.1],[0.3,0.7]] budget=0.5")
    for id_, row in rows_of(tmp_path / "confused").items():
        chip = chips.read(id_)
        land, water = (int((chip.label[chip.valid] == k).sum()) for k in (0, 1))
        assert row["allowed"] == int(0.05 * land + 1e-9) + int(0.15 * water + 1e-9) == row["changed"]
        assert row["short"] == 0
    corrupt(chips, tmp_path / "thirds", "thirds 5%")
    thirds = rows_of(tmp_path / "thirds")
    assert [thirds[f"c{i}"]["allowed"] for i in range(3)] == [int(0.05 * thirds[f"c{i}"]["valid"]) for i in (0, 1)] + [
        0
    ]
    assert thirds["c2"]["short"] == 0
    for number, noise in enumerate(
        ("stale source=level:2", "wrong-source source=coarse:8", "index-threshold", "shift 3 px")
    ):
        done = corrupt(chips, tmp_path / str(number), noise)
        assert all(row["allowed"] is None and row["short"] is None for row in rows_of(tmp_path / str(number)).values())
        assert done.facts["short_px"] == 0


def test_the_length_of_a_shift_is_recorded_and_near_what_was_asked(tmp_path):
    chips = make_placed(tmp_path / "a", 12)
    corrupt(chips, tmp_path / "b", "shift 5 px")
    corrupt(chips, tmp_path / "c", "shift 50 m")
    made = ChipFolder.open(tmp_path / "b")
    for id_, row in rows_of(tmp_path / "b").items():
        step = (row["shift_rows"], row["shift_cols"])
        assert row["shift_m"] == pytest.approx(np.hypot(*step)) and 4.5 <= np.hypot(*step) <= 5
        inside = (slice(8, 24), slice(8, 24))
        moved = np.roll(chips.read(id_).label, step, (0, 1))
        assert np.array_equal(made.read(id_).label[inside], moved[inside])
        assert rows_of(tmp_path / "c")[id_]["shift_m"] == pytest.approx(10 * np.hypot(*step))


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp"])
def test_a_vector_layer_is_a_wrong_source(tmp_path, suffix):
    chips = make_placed(tmp_path / "a")
    layer = lakes(tmp_path / "rivers.geojson")
    if suffix != ".geojson":
        meta, _, shapes, _ = pyogrio.raw.read(layer)
        layer = tmp_path / f"rivers{suffix}"
        pyogrio.raw.write(layer, shapes, [], [], crs=meta["crs"], geometry_type="Polygon")
    corrupt(chips, tmp_path / "b", f"wrong-source source={layer}")
    made, rows = ChipFolder.open(tmp_path / "b"), rows_of(tmp_path / "b")
    expected = np.zeros((32, 32), int)
    expected[4:24, 5:15] = 1
    assert np.array_equal(made.read("c0").label, expected) and np.array_equal(made.read("c1").label, expected)
    assert not made.read("c2").label.any()  # the layer has no lake there
    assert rows["c2"]["layer_flags"] == "layer-misses-scene: all land"
    assert rows["c0"]["layer_flags"] == ""
    assert rows["c0"]["layer_shift_m"] == pytest.approx(30.0) and rows["c0"]["layer_cols"] == -3
    assert rows["c0"]["layer_iou"] == pytest.approx(7 / 13) and rows["c0"]["layer_iou_shifted"] == 1.0


def test_pixels_that_a_layer_only_touches(tmp_path):
    chips = make_placed(tmp_path / "a", 1)
    layer = lakes(tmp_path / "rivers.geojson", east=4.0, chips=1)
    for words, columns in (("", 10), (" all_touched=true", 11)):
        corrupt(chips, tmp_path / f"b{columns}", f"wrong-source source={layer}{words}")
        assert ChipFolder.open(tmp_path / f"b{columns}").read("c0").label[10].sum() == columns


def test_another_layer_of_the_same_name_makes_the_labels_again(tmp_path):
    chips = make_placed(tmp_path / "a", 1)
    layer = lakes(tmp_path / "rivers.geojson")
    corrupt(chips, tmp_path / "b", f"wrong-source source={layer}")
    lakes(layer, east=60.0)
    corrupt(chips, tmp_path / "b", f"wrong-source source={layer}")
    assert rows_of(tmp_path / "b")["c0"]["layer_cols"] == -6
    assert ChipFolder.open(tmp_path / "b").read("c0").label[10].tolist() == [0] * 8 + [1] * 10 + [0] * 14


def test_a_wrong_source_that_is_not_there_is_one_error(tmp_path):
    chips = make_placed(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    plain = make_folder(tmp_path / "nowhere", ("lake",) * 3)
    layer = lakes(tmp_path / "rivers.geojson")
    for folder, noise, says in (
        (chips, "stale source=no", "expected a folder of labels, got no which is not there"),
        (chips, f"wrong-source source={tmp_path}/no.gpkg", "expected a vector layer"),
        (chips, "wrong-source source=no", "expected a folder of labels or a vector layer, got no which is not there"),
        (chips, f"stale source={tmp_path}/empty", "3 chips such as c0"),
        (chips, f"stale source={layer}", "use wrong-source"),
        (plain, f"wrong-source source={layer}", "3 without, such as c0"),
    ):
        with pytest.raises(DataError, match=says):
            corrupt(folder, tmp_path / "b", noise)
    assert not (tmp_path / "b").exists()
    np.save(tmp_path / "empty" / "c1.npy", np.zeros((32, 32), np.int64))
    assert [item for item, _ in corrupt(chips, tmp_path / "b", f"stale source={tmp_path}/empty").failed] == ["c0", "c2"]


def test_another_seed_makes_the_labels_again(tmp_path):
    chips = make_folder(tmp_path / "a", ("lake",) * 3)
    corrupt(chips, tmp_path / "b", "symmetric 10%", seed=0)
    corrupt(chips, tmp_path / "b", "symmetric 10%", seed=1)
    corrupt(chips, tmp_path / "c", "symmetric 10%", seed=1)
    again, fresh = ChipFolder.open(tmp_path / "b"), ChipFolder.open(tmp_path / "c")
    assert all(again.row(id_).label_sha256 == fresh.row(id_).label_sha256 for id_ in chips.ids)

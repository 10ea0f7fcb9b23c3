"""A chip folder gives back what was written, opens in any GIS, and notices every change."""

import json
import pickle

import numpy as np
import pytest
import rasterio
from affine import Affine

from seawall.data.chip_format import PIXEL_ALIGN, UNSEEN_INT16, encode_image, encode_label
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader, seal
from seawall.data.writer import ChipWriter
from seawall.errors import DataError
from seawall.geo.raster import Grid, open_raster

BANDS = ("B03", "B08", "B11")
HEADER = ChipHeader(BANDS, "reflectance", ("land", "water"), 10.0, "sentinel-2-l2a", "made up")
GRID = Grid(20, 30, Affine(10, 0, 500000, 0, -10, 4000000), "EPSG:32631")


def steps(seed: int = 0, shape=(3, 20, 30)) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-200, 9000, shape) * np.float32(1e-4)).astype(np.float32)


@pytest.fixture
def folder(tmp_path) -> ChipFolder:
    writer = ChipWriter(tmp_path / "chips", HEADER)
    for i in range(3):
        seen = np.ones((20, 30), bool)
        seen[0, : 5 * i] = False
        label = np.zeros((20, 30), np.uint8)
        label[5:10] = 1
        label[15:] = 255
        writer.write(f"c{i}", f"g{i % 2}", steps(i), label, seen=seen, grid=GRID, gain=1e-4 if i else None)
    return writer.finish()


def edit(folder: ChipFolder, change, *, sealed: bool = False) -> None:
    """Change an index as an editor would, or as a folder without a seal that somebody made."""
    path = folder.root / "index.json"
    plain = json.loads(path.read_text())
    if not sealed:
        plain.pop("seal", None)
    change(plain)
    path.write_text(json.dumps(plain))


def test_round_trip_of_whole_numbers_and_floats(folder):
    for i in range(3):
        row, chip = folder.row(f"c{i}"), folder.read(f"c{i}")
        assert row.dtype == ("int16" if i else "float32")
        assert chip.seen.sum() == 600 - 5 * i and not chip.valid[15:].any() and (chip.valid <= chip.seen).all()
        np.testing.assert_allclose(chip.image[:, chip.seen], steps(i)[:, chip.seen], atol=1e-7)
        assert (chip.image[:, ~chip.seen] == 0).all() and np.isfinite(chip.image).all()
        assert chip.label.dtype == np.int64 and (chip.label[~chip.valid] == 0).all()
        assert chip.grid.same_as(GRID) and chip.group == f"g{i % 2}"
        assert row.class_counts == (300 - 5 * i, 150) and row.share(1) == 150 / row.valid
    assert folder.groups() == {"g0": ("c0", "c2"), "g1": ("c1",)}
    assert folder.header == HEADER and folder.check() == []


def test_any_gis_reads_the_same(folder):
    with rasterio.open(folder.root / "images/c2.tif") as source:
        assert source.descriptions == BANDS and source.nodata == UNSEEN_INT16 and source.scales == (1e-4,) * 3
        assert source.crs.to_epsg() == 32631 and source.transform == GRID.transform
        np.testing.assert_allclose(source.read() * 1e-4 * folder.read("c2").seen, folder.read("c2").image, atol=1e-6)
    with open_raster(folder.root / "images/c0.tif") as source:
        data, seen = source.read()
        assert np.array_equal(data, folder.read("c0").image) and seen.all()
    with rasterio.open(folder.root / "labels/c0.tif") as source:
        assert source.nodata == 255 and set(np.unique(source.read())) == {0, 1, 255}


@pytest.mark.parametrize("bands,height,width", [(1, 1, 1), (3, 7, 5), (13, 64, 33)])
def test_pixels_start_aligned(bands, height, width):
    image = np.zeros((bands, height, width), np.float32)
    grid, names = Grid(height, width), tuple(f"b{i}" for i in range(bands))
    seen = np.ones((height, width), bool)
    for gain in (None, 1e-4):
        assert encode_image(image, seen, grid, names, gain).at % PIXEL_ALIGN == 0
    assert encode_label(np.zeros((height, width), np.uint8), grid).at % PIXEL_ALIGN == 0


def test_numbers_that_do_not_fit_are_kept_as_floats():
    image = np.full((1, 2, 2), 3.3, np.float32)  # beyond 32767 steps
    assert encode_image(image, np.ones((2, 2), bool), Grid(2, 2), ("B03",), 1e-4).dtype == "float32"
    hole = np.full((1, 2, 2), UNSEEN_INT16 * 1e-4, np.float32)  # a seen pixel that would read as a hole
    assert encode_image(hole, np.ones((2, 2), bool), Grid(2, 2), ("B03",), 1e-4).dtype == "float32"
    with pytest.raises(DataError, match="finite"):
        encode_image(np.full((1, 2, 2), np.nan, np.float32), np.ones((2, 2), bool), Grid(2, 2), ("B03",))


def test_mean_and_std_go_over_seen_pixels(folder):
    values = np.concatenate([folder.read(i).image[:, folder.read(i).seen] for i in folder.ids], 1).astype(np.float64)
    mean, std = folder.mean_std(folder.ids)
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(1), rtol=1e-9)


def test_mean_of_nothing_seen_is_refused(tmp_path):
    writer = ChipWriter(tmp_path, HEADER)
    writer.write("x", "g", steps(), np.zeros((20, 30), np.uint8), seen=np.zeros((20, 30), bool))
    folder = writer.finish()
    assert folder.row("x").share(1) is None
    with pytest.raises(DataError, match="seen pixels"):
        folder.mean_std(["x"])


@pytest.mark.parametrize("name", ["images/c1.tif", "labels/c1.tif"])
def test_a_flipped_byte_and_a_missing_file_are_noticed(folder, name):
    path = folder.root / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="sha256"):
        ChipFolder.open(folder.root).read("c1")
    assert [id_ for id_, _ in folder.check()] == ["c1"]
    path.write_bytes(bytes(data[:-100]))
    with pytest.raises(DataError, match="truncated or changed"):
        ChipFolder.open(folder.root).read("c1")
    path.unlink()
    with pytest.raises(DataError, match="expected a chip file"):
        ChipFolder.open(folder.root).read("c1")
    assert ChipFolder.open(folder.root).read("c0").id == "c0"


def test_unknown_id_guesses(folder):
    with pytest.raises(DataError, match=r"did you mean|known"):
        folder.read("c9")


def test_it_travels_to_other_processes(folder):
    again = pickle.loads(pickle.dumps(folder))
    assert again.ids == folder.ids and np.array_equal(again.read("c1").image, folder.read("c1").image)


def test_reading_cannot_change_the_files(folder):
    stored, label = folder.stored("c1")
    with pytest.raises(ValueError):
        stored[0, 0, 0] = 1
    with pytest.raises(ValueError):
        label[0, 0] = 1


@pytest.mark.parametrize(
    "change,match",
    [
        (lambda d: d["header"].update(version=9), "version 9"),
        (lambda d: d["header"].update(unit="kelvin"), "unit"),
        (lambda d: d["header"].update(bands=["B03", "B03", "B08"]), "once each"),
        (lambda d: d["header"].update(gsd_m=-1), "gsd_m"),
        (lambda d: d["header"].pop("classes"), "classes"),
        (lambda d: d["rows"][0].update(image="../../etc/passwd"), "below the folder"),
        (lambda d: d["rows"][0].update(label="/etc/passwd"), "below the folder"),
        (lambda d: d["rows"][0].update(id="../../x"), r"expected an id of letters.*'\.\./\.\./x'"),
        (lambda d: d["rows"][0].update(id="a\n"), "expected an id of letters"),
        (lambda d: d["rows"][0].update(id=""), "expected an id of letters"),
        (lambda d: d["rows"][0].update(colour="red"), "colour"),
        (lambda d: d["rows"][0].pop("sha256"), "sha256"),
        (lambda d: d["rows"][0].update(height="tall"), "height"),
        (lambda d: d["rows"].append(d["rows"][0]), "twice"),
        (lambda d: d["rows"][0].update(class_counts=[1]), "class counts"),
        (lambda d: d.pop("rows"), "rows"),
    ],
)
def test_a_broken_index_is_refused_in_one_line(folder, change, match):
    edit(folder, change)
    with pytest.raises(DataError, match=match) as caught:
        ChipFolder.open(folder.root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["rows"][0].update(width=28),
        lambda d: d["rows"][0].update(width=d["rows"][0]["height"], height=d["rows"][0]["width"]),
        lambda d: d["rows"][0].update(gain=2e-4),
        lambda d: d["rows"][1].update(group="g0"),
        lambda d: d["rows"][2].update(transform=[10, 0, 500010, 0, -10, 4000000]),
        lambda d: d["rows"][0].update(id="c9"),
        lambda d: d["rows"].pop(),
        lambda d: d["header"].update(unit="sigma0_db"),
        lambda d: d["header"].update(bands=["B08", "B03", "B11"]),
        lambda d: d["header"].update(a_later_key={"seed": 1}),
        lambda d: d.update(seal="0" * 64),
    ],
)
def test_an_edited_index_is_refused_by_its_seal(folder, change):
    edit(folder, change, sealed=True)
    with pytest.raises(DataError, match=r"index\.json: expected the index as it was written, got one that was edited"):
        ChipFolder.open(folder.root)


def test_the_seal_covers_keys_of_the_header_that_this_version_does_not_know(folder):
    path = folder.root / "index.json"
    plain = json.loads(path.read_text())
    plain["header"]["later"] = {"seed": 1}
    plain["seal"] = seal(plain["header"], plain["rows"])
    path.write_text(json.dumps(plain, indent=3))  # how it is laid out is no part of it
    assert len(ChipFolder.open(folder.root)) == 3
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(DataError, match="seal"):
        ChipFolder.open(folder.root)


def test_a_folder_without_a_seal_opens_and_its_shapes_are_held_against_the_files(folder):
    edit(folder, lambda d: None)
    old = ChipFolder.open(folder.root)
    assert np.array_equal(old.read("c0").image, folder.read("c0").image)
    for change in (
        lambda d: d["rows"][0].update(width=28),
        lambda d: d["rows"][0].update(height=19),
        lambda d: d["rows"][0].update(image_at=d["rows"][0]["image_at"] - 2),
    ):
        before = (folder.root / "index.json").read_text()
        edit(folder, change)
        with pytest.raises(DataError, match=r"c0\.tif: expected \d+ bytes for 3x\d+x\d+ pixels of float32"):
            ChipFolder.open(folder.root).read("c0")
        (folder.root / "index.json").write_text(before)
    ChipWriter(folder.root, HEADER).finish()
    assert "seal" in json.loads((folder.root / "index.json").read_text()), "the next writer seals it"


def test_ids_cannot_leave_the_folder_where_they_are_written(folder, tmp_path):
    writer = ChipWriter(tmp_path / "new", HEADER)
    for id_ in ("../x", "a/b", "..", ".hidden", "a\n", "x" * 152):
        with pytest.raises(DataError, match="expected an id of letters"):
            writer.write(id_, "g", steps(), np.zeros((20, 30), np.uint8))
        with pytest.raises(DataError, match="expected an id of letters"):
            writer.relabel(folder, id_, np.zeros((20, 30), np.uint8))
    assert not (tmp_path / "x.tif").exists() and not list((tmp_path / "new").rglob("*.tif"))


def test_flags_of_chips_are_counted(tmp_path):
    writer = ChipWriter(tmp_path / "flags", HEADER)
    for i, flags in enumerate([(), ("blank-pixels",), ("extreme-values", "blank-pixels")]):
        writer.write(f"c{i}", "g", steps(i), np.zeros((20, 30), np.uint8), grid=GRID, flags=flags)
    assert writer.finish().flags() == {"blank-pixels": 2, "extreme-values": 1}


def test_no_index_and_a_torn_one(tmp_path, folder):
    with pytest.raises(DataError, match="seawall curate"):
        ChipFolder.open(tmp_path / "nothing")
    path = folder.root / "index.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match="index of chips"):
        ChipFolder.open(folder.root)


def test_offsets_beyond_the_file_are_refused(folder):
    edit(folder, lambda d: d["rows"][0].update(image_at=10**9))
    with pytest.raises(DataError, match="bytes"):
        ChipFolder.open(folder.root).read("c0")


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    inside = folder.root / "images/c1.tif"
    outside = tmp_path / "outside.tif"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(DataError, match="link out"):
        ChipFolder.open(folder.root).read("c1")


def test_writer_refuses_bad_ids_labels_and_another_header(tmp_path):
    writer = ChipWriter(tmp_path, HEADER)
    label = np.zeros((20, 30), np.uint8)
    for id_ in ("../x", "", "a/b", "a\nb", ".hidden", "x" * 200):
        with pytest.raises(DataError, match="expected an id"):
            writer.write(id_, "g", steps(), label)
    with pytest.raises(DataError, match="got 3"):
        writer.write("a", "g", steps(), label + 3)
    with pytest.raises(DataError, match="align it"):
        writer.write("a", "g", steps(), label[:-1])
    writer.write("a", "g", steps(), label)
    with pytest.raises(DataError, match="more than case"):
        writer.write("A", "g", steps(), label)
    with pytest.raises(DataError, match=r"expected gsd_m 20.* got 10"):
        ChipWriter(tmp_path, ChipHeader(BANDS, "reflectance", ("land", "water"), 20.0, "sentinel-2-l2a", "made up"))


def test_a_killed_writer_loses_nothing_that_was_journaled(tmp_path):
    writer = ChipWriter(tmp_path, HEADER)
    label = np.zeros((20, 30), np.uint8)
    writer.write("a", "g", steps(1), label, source_sha256="s1")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"id": "b", "torn')
    again = ChipWriter(tmp_path, HEADER)
    assert again.is_complete("a", "s1") and not again.is_complete("a", "s2") and not again.is_complete("b", "")
    again.write("b", "g", steps(2), label)
    assert again.finish().ids == ("a", "b") and not (tmp_path / "journal.jsonl").exists()


def test_relabel_copies_the_image_and_counts_anew(folder, tmp_path):
    writer = ChipWriter(tmp_path / "wrong", folder.header)
    row = folder.row("c2")
    label = np.ones((20, 30), np.uint8)
    new = writer.relabel(folder, "c2", label, notes=["dilated"])
    other = writer.finish()
    assert new.sha256 == row.sha256 and new.notes[-1] == "dilated"
    chip = other.read("c2")
    assert np.array_equal(chip.image, folder.read("c2").image) and chip.valid.sum() == chip.seen.sum()
    assert other.row("c2").class_counts == (0, int(chip.seen.sum()))

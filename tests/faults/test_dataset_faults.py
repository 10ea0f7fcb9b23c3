"""Bad chips fail alone with a reason, killed runs go on where they were, and nothing broken is ever served."""

import errno
import json
import multiprocessing
import os
import random
import re
import signal

import numpy as np
import pytest
import rasterio
from affine import Affine

from seawall.data.chips import ChipFolder
from seawall.data.curate import curate_chips
from seawall.errors import DataError, RunError
from seawall.io import RunLock

BANDS = ("B02", "B03", "B04", "B08")
AT = Affine(10, 0, 500000, 0, -10, 4000000)
SIZE = 64
COARSE = {"at": Affine(30, 0, 500000, 0, -30, 4000000)}


def image(seed: int = 0) -> np.ndarray:
    data = np.random.default_rng(seed).integers(1500, 4000, (4, SIZE, SIZE))
    data[:, SIZE // 2 :] //= 8
    return data


def label() -> np.ndarray:
    marks = np.zeros((1, SIZE, SIZE), np.uint8)
    marks[:, SIZE // 2 :] = 1
    return marks


def save(path, data, *, dtype="uint16", bands=None, crs="EPSG:32631", at=AT, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2], "dtype": dtype}
    with rasterio.open(path, "w", **(profile | {"crs": crs, "transform": at} | more)) as sink:
        if bands:
            sink.descriptions = bands
        sink.write(data.astype(dtype))


def pair(root, name, data=None, marks=None, *, group="g", image_kw=None, label_kw=None):
    save(
        root / f"images/{group}/{name}.tif", image() if data is None else data, **({"bands": BANDS} | (image_kw or {}))
    )
    save(
        root / f"labels/{group}/{name}.tif",
        label() if marks is None else marks,
        **({"dtype": "uint8"} | (label_kw or {})),
    )


@pytest.fixture
def good(tmp_path):
    root = tmp_path / "in"
    for i in range(8):
        pair(root, f"ok{i}", image(i))
    return root


def cut_off(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def bad_pairs(root) -> dict[str, str]:
    """Write one pair for every fault; return what the reason must say."""
    pair(root, "truncated")
    cut_off(root / "images/g/truncated.tif")
    pair(root, "empty")
    (root / "images/g/empty.tif").write_bytes(b"")
    pair(root, "html")
    (root / "images/g/html.tif").write_text("<!doctype html><p>404")
    pair(root, "flipped", image_kw={"compress": "deflate"})
    with rasterio.open(root / "images/g/flipped.tif") as source:
        at = int(source.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    data = bytearray((root / "images/g/flipped.tif").read_bytes())
    data[at : at + 40] = b"\xff" * 40
    (root / "images/g/flipped.tif").write_bytes(bytes(data))
    pair(
        root,
        "sparse",
        np.zeros((4, SIZE, SIZE)),
        image_kw={"tiled": True, "blockxsize": 16, "blockysize": 16, "sparse_ok": True},
    )
    pair(root, "bands", image_kw={"bands": ("B02", "B03", "B04", "B11")})
    pair(root, "fewer", image()[:3], image_kw={"bands": BANDS[:3]})
    pair(root, "nameless", image_kw={"bands": ("x", "y", "z", "w")})
    pair(root, "twice", image_kw={"bands": ("B02", "blue", "B04", "B08")})
    pair(root, "stretched", np.clip(image() // 20, 0, 255), image_kw={"dtype": "uint8", "photometric": "minisblack"})
    pair(root, "radar", np.full((2, SIZE, SIZE), -12.0), image_kw={"dtype": "float32", "bands": ("VV", "VH")})
    pair(root, "half", label_kw={"at": Affine(10, 0, 500005, 0, -10, 4000000)})
    pair(root, "zone", label_kw={"crs": "EPSG:32632"})
    pair(root, "shape", marks=label()[:, :-1])
    pair(root, "values", marks=label() * 3)
    pair(root, "minus", marks=-label().astype(np.int16), label_kw={"dtype": "int16"})
    pair(root, "colors", marks=np.repeat(label(), 3, 0))
    pair(root, "blanklabel", label_kw={"nodata": 0})
    pair(root, "coarse", image_kw=COARSE, label_kw=COARSE)
    pair(root, "nolabel")
    (root / "labels/g/nolabel.tif").unlink()
    pair(root, "noimage")
    (root / "images/g/noimage.tif").unlink()
    return {
        "truncated": "truncated|whole file|ends", "empty": "0 bytes", "html": "HTML", "flipped": "readable pixels|block",
        "sparse": "absent", "bands": "without B03|without B08|B11", "fewer": "without B08", "nameless": "file order",
        "twice": "each band once", "stretched": "curate mixed units apart", "radar": "without", "half": r"\+0\.50 columns",
        "zone": "coordinate system", "shape": "64x64|63", "values": "got 3", "minus": "got -1", "colors": "one band",
        "blanklabel": "label map", "coarse": "got 30 m", "nolabel": "label file", "noimage": "image file",
    }  # fmt: skip


def test_every_bad_chip_fails_alone_with_its_reason(good, tmp_path):
    reasons = bad_pairs(good)
    settings = {"bands": BANDS, "unit": "reflectance", "gsd_m": 10.0}
    report = curate_chips(good, tmp_path / "out", **settings)
    failed = {id_.removeprefix("g_"): why for id_, why in report.failed}
    assert set(failed) == set(reasons) and report.made == tuple(f"g_ok{i}" for i in range(8))
    for name, expected in reasons.items():
        assert re.search(expected, failed[name]), (name, failed[name])
        assert "\n" not in failed[name] and ";" in failed[name]
    assert ChipFolder.open(tmp_path / "out").check() == []
    assert not list((tmp_path / "out").rglob("*.part"))


def test_all_nodata_is_skipped_or_kept_flagged(good, tmp_path):
    pair(good, "void", np.zeros((4, SIZE, SIZE)), image_kw={"nodata": 0})
    pair(good, "zeros", np.zeros((4, SIZE, SIZE)))
    report = curate_chips(good, tmp_path / "out")
    assert {id_ for id_, _ in report.skipped} == {"g_void", "g_zeros"} and not report.failed
    assert "all nodata" in dict(report.skipped)["g_void"]
    kept = curate_chips(good, tmp_path / "kept", keep_empty=True)
    row = kept.folder.row("g_void")
    assert "empty" in row.flags and "unlabelled" in row.flags and row.share(1) is None
    assert not kept.folder.read("g_void").seen.any()


@pytest.mark.parametrize(
    "change,match",
    [
        ({"image_kw": {"bands": ("B02", "B03", "B04", "B11")}}, "bands: expected the same"),
        (
            {"data": image() // 20, "image_kw": {"dtype": "uint8", "photometric": "minisblack"}},
            "unit: expected the same",
        ),
    ],
)
def test_a_mixed_dataset_is_refused_before_any_work(tmp_path, change, match):
    for i in range(3):
        pair(tmp_path / "in", f"a{i}", image(i))
    pair(tmp_path / "in", "odd", **change)
    with pytest.raises(DataError, match=match) as caught:
        curate_chips(tmp_path / "in", tmp_path / "out")
    assert "a0" in str(caught.value) and "odd" in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.tif"))


def test_an_offset_that_contradicts_the_values_fails_that_chip(good, tmp_path):
    from seawall.geo.radiometry import Hints

    report = curate_chips(good, tmp_path / "out", hints=Hints(gain=1e-4, offset=0.0, offset_applied=True))
    assert len(report.made) == 8
    with pytest.raises(DataError, match="offset"):
        curate_chips(good, tmp_path / "o2", hints=Hints(gain=1e-4, offset=-0.1))


def test_nothing_but_bad_chips_is_one_clear_line(tmp_path):
    bad_pairs(tmp_path / "in")
    with pytest.raises(DataError) as caught:
        curate_chips(tmp_path / "in", tmp_path / "out", bands=("B05",), unit="reflectance", gsd_m=10.0)
    assert "\n" not in str(caught.value)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="arrange the files"):
        curate_chips(tmp_path / "nothing", tmp_path / "o2")


def test_a_full_disk_stops_with_what_is_done_kept(good, tmp_path, monkeypatch):
    from seawall.data import writer

    write, count = writer.write_atomic, [0]

    def full(path, data):
        count[0] += 1
        if count[0] == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(writer, "write_atomic", full)
    with pytest.raises(RunError, match=r"No space left.*3 chips are kept"):
        curate_chips(good, tmp_path / "out")
    monkeypatch.undo()
    again = curate_chips(good, tmp_path / "out")
    assert len(again.kept) == 3 and len(again.made) == 5 and again.folder.check() == []


def test_too_little_room_is_refused_first(good, tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("U", "total used free")(10, 10, 1000))
    with pytest.raises(RunError, match="free space"):
        curate_chips(good, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tif"))


def test_two_curations_of_one_folder(good, tmp_path):
    with RunLock(tmp_path / "out"), pytest.raises(RunError, match="held by process"):
        curate_chips(good, tmp_path / "out")
    assert len(curate_chips(good, tmp_path / "out").made) == 8


def _killed(root, out, hook, count):
    """Curate and kill -9 this process at the count-th call of a system call, or after as many chips."""
    left = [count]

    def die(*args, real=getattr(os, hook, None), **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs) if real else None

    if hook == "chip":
        curate_chips(root, out, progress=die)
    else:
        setattr(os, hook, die)
        curate_chips(root, out)


def test_kill_nine_anywhere_then_resume_gives_the_same_folder(good, tmp_path):
    for i in range(4, 8):
        (good / f"images/g/ok{i}.tif").unlink()
        (good / f"labels/g/ok{i}.tif").unlink()
    want = {row.id: (row.sha256, row.label_sha256) for row in curate_chips(good, tmp_path / "want").folder.rows}
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    points = [("chip", n) for n in (1, 3, 5)] + [("fsync", rng.randint(1, 24)) for _ in range(6)]
    points += [("fdopen", 3), ("open", 7)]
    for turn, (hook, count) in enumerate(points):
        out = tmp_path / f"out{turn}"
        child = context.Process(target=_killed, args=(good, out, hook, count))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode and (out / "index.json").exists():
            assert ChipFolder.open(out).check() == []
        for path in out.rglob("*.tif"):
            with rasterio.open(path) as source:
                source.read()
        report = curate_chips(good, out)
        assert {row.id: (row.sha256, row.label_sha256) for row in report.folder.rows} == want
        if hook == "chip" and count > 2:
            assert len(report.kept) >= count - 2, "what was done before the kill is kept"


def test_a_source_that_changes_under_way_fails_that_chip_only(good, tmp_path):
    def touch(done, total, text):
        if done == 3:
            cut_off(good / "images/g/ok6.tif", 0.5)

    report = curate_chips(good, tmp_path / "out", progress=touch)
    assert [id_ for id_, _ in report.failed] == ["g_ok6"] and len(report.made) == 7


def test_a_folder_is_never_served_with_a_broken_chip(good, tmp_path):
    folder = curate_chips(good, tmp_path / "out").folder
    cut_off(folder.root / folder.rows[2].image)
    from seawall.data.loader import patches

    with pytest.raises(DataError, match=r"g_ok2\.tif"):
        list(patches(ChipFolder.open(folder.root), folder.ids, patch=32, batch=4, workers=2))
    assert curate_chips(good, tmp_path / "out").made == ("g_ok2",)


def test_links_out_of_the_data_folder_are_listed_and_never_read(good, tmp_path):
    secret = tmp_path / "elsewhere"
    pair(secret, "s")
    (good / "images/g/linked.tif").symlink_to(secret / "images/g/s.tif")
    save(good / "labels/g/linked.tif", label(), dtype="uint8")
    pair(good, "mark")
    (good / "labels/g/mark.tif").unlink()
    (good / "labels/g/mark.tif").symlink_to(secret / "labels/g/s.tif")
    report = curate_chips(good, tmp_path / "out")
    assert len(report.made) == 8
    assert {id_ for id_, _ in report.failed} == {"g_linked", "g_mark"}
    assert all("expected a file below" in reason and "leaves it" in reason for _, reason in report.failed)


def test_a_folder_that_is_a_link_out_of_the_data_is_not_read_either(good, tmp_path):
    (good / "images").rename(tmp_path / "elsewhere")
    (good / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="leaves it; copy the file there"):
        curate_chips(good, tmp_path / "out")


def test_a_root_that_is_a_link_itself_is_fine(good, tmp_path):
    (tmp_path / "link").symlink_to(good)
    assert len(curate_chips(tmp_path / "link", tmp_path / "out").made) == 8


def test_ids_of_a_strangers_index_never_become_paths(good, tmp_path):
    from seawall.api import audit_labels, corrupt

    folder = curate_chips(good, tmp_path / "chips").folder
    path = folder.root / "index.json"
    plain = json.loads(path.read_text())
    plain.pop("seal")
    plain["rows"][0]["id"] = "../../../planted"
    path.write_text(json.dumps(plain))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"expected an id of letters.*planted"):
        corrupt(folder.root, noise=["dilate rate=0.1"], out=tmp_path / "noisy")
    with pytest.raises(DataError, match=r"expected an id of letters.*planted"):
        audit_labels(folder.root, out=tmp_path / "audit")
    assert [p for p in sorted(tmp_path.rglob("*")) if p.is_file()] == [p for p in before if p.is_file()]
    assert not list(tmp_path.parent.rglob("*planted*"))

"""Curation of pairs, a CSV index, Sen1Floods11's layout and simulated scenes into chip folders."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from seawall.data.chips import ChipFolder
from seawall.data.curate import curate_chips
from seawall.data.loader import class_shares
from seawall.data.preparation import read_label
from seawall.data.raw_chips import chip_windows
from seawall.data.source_detection import detect_source
from seawall.data.sources.index_table import blank_value, scale_hints, scale_product
from seawall.data.sources.simulated import Simulated
from seawall.data.splits import split_groups
from seawall.errors import DataError, UsageError
from seawall.geo.radiometry import Hints
from seawall.labels.rules import parse_rule

BANDS = ("B2", "B3", "B4", "B8")
AT = Affine(10, 0, 500000, 0, -10, 4000000)


def picture(seed: int = 0, shape=(4, 32, 32), high: int = 4000) -> np.ndarray:
    """Digital numbers of dark water below and bright land above."""
    rng = np.random.default_rng(seed)
    data = rng.integers(high // 2, high, shape)
    data[:, shape[1] // 2 :] = rng.integers(50, 600, data[:, shape[1] // 2 :].shape)
    return data


def save(path, data, *, bands=None, dtype="uint16", crs="EPSG:32631", at=AT, nodata=None, **more):
    data = np.asarray(data)
    data = data[None] if data.ndim == 2 else data
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(data), "height": data.shape[1], "width": data.shape[2], "dtype": dtype}
    place = {"crs": crs, "transform": at} if crs else {}
    with rasterio.open(path, "w", **profile, **place, nodata=nodata, **more) as sink:
        if bands:
            sink.descriptions = bands
        sink.write(data.astype(dtype))


def water(shape=(32, 32)) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[shape[0] // 2 :] = 1
    return label


@pytest.fixture
def pairs(tmp_path):
    root = tmp_path / "pairs"
    for place in ("north", "south"):
        for i in range(3):
            save(root / "images" / place / f"s{i}.tif", picture(i), bands=BANDS)
            save(root / "labels" / place / f"s{i}.tif", water(), dtype="uint8")
    return root


def test_pairs_become_reflectance_with_groups_and_estimate_first(pairs, tmp_path):
    told = []
    report = curate_chips(pairs, tmp_path / "out", progress=lambda *what: told.append(what))
    folder = report.folder
    assert told[0][0] == 0 and "6 chips, 4 bands of reflectance" in told[0][2] and told[-1][:2] == (6, 6)
    assert folder.bands == ("B02", "B03", "B04", "B08") and folder.unit == "reflectance" and folder.gsd_m == 10
    assert folder.groups() == {g: tuple(f"{g}_s{i}" for i in range(3)) for g in ("north", "south")}
    chip = folder.read("north_s1")
    np.testing.assert_allclose(chip.image, picture(1) * 1e-4, atol=1e-7)
    assert np.array_equal(chip.label, water()) and chip.valid.all() and folder.row("north_s1").dtype == "int16"
    assert report.scales == {"reflectance = 0.0001 * stored": 6} and not report.failed and not report.skipped
    assert json.loads((tmp_path / "out/curate.json").read_text())["estimate"]["chips"] == 6
    assert 0.5 < report.estimate.bytes / sum(p.stat().st_size for p in (tmp_path / "out").rglob("*.tif")) < 2


def test_flat_pairs_and_a_group_pattern(tmp_path):
    for i in range(3):
        save(tmp_path / "in" / f"spain{i}_7_image.tif", picture(i), bands=BANDS)
        save(tmp_path / "in" / f"spain{i}_7_label.tif", water(), dtype="uint8")
    folder = curate_chips(tmp_path / "in", tmp_path / "out", group=r"^([a-z]+)").folder
    assert folder.groups() == {"spain": ("spain0_7", "spain1_7", "spain2_7")}
    with pytest.raises(UsageError, match="bracket"):
        curate_chips(tmp_path / "in", tmp_path / "out2", group="nothing")


def test_bands_come_in_canonical_order_and_by_name(tmp_path):
    data = picture()
    save(tmp_path / "in/images/a.tif", data[[3, 1, 0, 2]], bands=("B08", "Green", "blue", "B04"))
    save(tmp_path / "in/labels/a.tif", water(), dtype="uint8")
    folder = curate_chips(tmp_path / "in", tmp_path / "out").folder
    assert folder.bands == ("B02", "B03", "B04", "B08")
    np.testing.assert_allclose(folder.read("a").image, data * 1e-4, atol=1e-7)
    some = curate_chips(tmp_path / "in", tmp_path / "some", bands=("nir", "green")).folder
    assert some.bands == ("B03", "B08")
    np.testing.assert_allclose(some.read("a").image, data[[1, 3]] * 1e-4, atol=1e-7)


def test_large_scenes_are_cut_and_labelled_by_a_rule(tmp_path):
    save(tmp_path / "in/images/scene.tif", picture(shape=(4, 70, 64)), bands=BANDS)
    report = curate_chips(tmp_path / "in", tmp_path / "out", chip=32, labeler=parse_rule("ndwi >= -0.25"))
    rows = {row.id: row for row in report.folder.rows}
    assert set(rows) == {f"scene_r{r}c{c}" for r in (0, 32) for c in (0, 32)}  # 6 rows are a sliver
    assert rows["scene_r32c32"].transform[2] == 500320 and rows["scene_r32c32"].transform[5] == 3999680
    assert {row.group for row in report.folder.rows} == {"scene"}
    assert all("labelled by ndwi >= -0.25" in row.notes[-1] for row in report.folder.rows)
    chip = report.folder.read("scene_r0c32")
    np.testing.assert_allclose(chip.image, picture(shape=(4, 70, 64))[:, :32, 32:] * 1e-4, atol=1e-7)


def test_windows_tile_without_overlap():
    for shape, chip in (((100, 100), 32), ((31, 200), 32), ((64, 64), 64), ((65, 64), 64)):
        hits = np.zeros(shape, int)
        for _, (r, c, h, w) in chip_windows(shape, chip):
            hits[r : r + h, c : c + w] += 1
        assert hits.max() == 1 and hits.mean() > 0.9


def test_again_keeps_what_is_whole_by_content(pairs, tmp_path):
    out = tmp_path / "out"
    first = curate_chips(pairs, out)
    stamps = {row.id: (out / row.image).stat().st_mtime_ns for row in first.folder.rows}
    again = curate_chips(pairs, out)
    assert not again.made and len(again.kept) == 6
    assert stamps == {row.id: (out / row.image).stat().st_mtime_ns for row in again.folder.rows}
    save(pairs / "labels/north/s1.tif", 1 - water(), dtype="uint8")  # another content under the same name
    (out / "images/south_s0.tif").write_bytes(b"broken")
    (out / "labels/south_s1.tif").unlink()
    third = curate_chips(pairs, out)
    assert set(third.made) == {"north_s1", "south_s0", "south_s1"} and third.folder.check() == []
    assert third.folder.read("north_s1").label.sum() == 512
    (pairs / "images/north/s2.tif").unlink()
    last = curate_chips(pairs, out)
    assert "north_s2" not in last.folder.ids and last.failed[0][0] == "north_s2"


def test_other_settings_need_another_folder(pairs, tmp_path):
    curate_chips(pairs, tmp_path / "out")
    with pytest.raises(DataError, match="another folder"):
        curate_chips(pairs, tmp_path / "out", bands=("B03", "B08"))
    with pytest.raises(UsageError, match="chip folder"):
        curate_chips(tmp_path / "out", tmp_path / "again")


def test_bands_without_names_are_never_guessed(tmp_path):
    save(tmp_path / "in/images/a.tif", picture())
    save(tmp_path / "in/labels/a.tif", water(), dtype="uint8")
    with pytest.raises(DataError, match="file order"):
        curate_chips(tmp_path / "in", tmp_path / "out")
    folder = curate_chips(tmp_path / "in", tmp_path / "out", names=("B8", "B4", "B3", "B2")).folder
    np.testing.assert_allclose(folder.read("a").image, picture()[::-1] * 1e-4, atol=1e-7)


def test_nodata_zeros_and_nan_are_unseen(tmp_path):
    data = picture()
    data[:, 0] = 0
    save(tmp_path / "dn/images/a.tif", data, bands=BANDS)
    save(tmp_path / "dn/labels/a.tif", water(), dtype="uint8")
    chip = curate_chips(tmp_path / "dn", tmp_path / "o1").folder
    assert not chip.read("a").seen[0].any() and chip.read("a").seen[1:].all()
    assert any("0 in every band" in note for note in chip.row("a").notes)
    floats = picture() * 1e-4
    floats[1, 3, 3] = np.nan
    floats[0, 4, 4] = np.inf
    save(tmp_path / "f/images/a.tif", floats, bands=BANDS, dtype="float32")
    save(tmp_path / "f/labels/a.tif", water(), dtype="uint8")
    chip = curate_chips(tmp_path / "f", tmp_path / "o2").folder.read("a")
    assert chip.seen.sum() == 1022 and np.isfinite(chip.image).all() and not chip.valid[3, 3]


@pytest.mark.parametrize("offset,dtype", [(-0.1, "int16"), (-0.10005, "float32"), (-0.10003, "float32")])
def test_an_offset_of_no_whole_steps_is_kept_in_floats(tmp_path, offset, dtype):
    stored = picture() + 1000
    save(tmp_path / "in/images/a.tif", stored, bands=BANDS)
    save(tmp_path / "in/labels/a.tif", water(), dtype="uint8")
    folder = curate_chips(tmp_path / "in", tmp_path / "out", hints=Hints(gain=1e-4, offset=offset)).folder
    assert folder.row("a").dtype == dtype
    np.testing.assert_allclose(folder.read("a").image, stored * 1e-4 + offset, atol=2e-7)


def test_a_value_that_blanks_pixels_must_be_in_all_bands(tmp_path):
    data = np.random.default_rng(0).integers(1, 250, (2, 32, 32))
    data[0, :4], data[:, 4:6] = 255, 255
    save(tmp_path / "s2/a.tif", data, dtype="uint8", crs=None)
    save(tmp_path / "lab.tif", water(), dtype="uint8", crs=None)
    words = "uint8 stretched (255 in both bands = nodata)"
    row = {"id": "a", "s2": "s2/a.tif", "label": "lab.tif", "s2_bands": "one two", "gsd_m": "10", "s2_scale": words}
    chip = curate_chips(table(tmp_path, row), tmp_path / "out").folder.read("a")
    assert chip.seen[:4].all() and not chip.seen[4:6].any() and chip.seen[6:].all()


def test_flags_reach_the_report_of_the_run_and_of_the_curation(tmp_path):
    from seawall.pipeline.provenance import data_facts

    root = tmp_path / "in"
    for i in range(3):
        data = (picture(i) * 1e-4).astype(np.float32)
        data[0, 0, :i] = 9999
        at = Affine(10, 0, 500000 + 1000 * i, 0, -10, 4000000)
        save(root / f"images/p{i}/a.tif", data, bands=BANDS, dtype="float32", at=at)
        save(root / f"labels/p{i}/a.tif", water(), dtype="uint8", at=at)
    report = curate_chips(root, tmp_path / "out")
    assert report.flags == {"extreme-values": 2}
    assert json.loads((tmp_path / "out/curate.json").read_text())["flags"] == {"extreme-values": 2}
    assert report.folder.row("p2_a").flags == ("extreme-values",)
    assert any(note.startswith("0.20% of the pixels outside") for note in report.folder.row("p2_a").notes)
    assert data_facts(report.folder, split_groups(report.folder))["flags"] == {"extreme-values": 2}


def test_chips_made_by_other_rules_are_made_again(pairs, tmp_path, monkeypatch):
    curate_chips(pairs, tmp_path / "out")
    assert len(curate_chips(pairs, tmp_path / "out").kept) == 6
    monkeypatch.setattr(sys.modules["seawall.data.curate"], "CURATION_VERSION", 99)
    assert len(curate_chips(pairs, tmp_path / "out").made) == 6


def test_stretched_pictures_are_usable_and_flagged(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (3, 32, 32))
    save(tmp_path / "in/images/a.tif", data, dtype="uint8", bands=("x?", "y?", "z?"), crs=None)
    save(tmp_path / "in/labels/a.tif", water(), dtype="uint8", crs=None)
    with pytest.raises(DataError, match="gsd_m in meters"):
        curate_chips(tmp_path / "in", tmp_path / "out")
    report = curate_chips(tmp_path / "in", tmp_path / "out", gsd_m=10)
    assert report.folder.unit == "stretched" and report.flags == {"not-physical": 1}
    np.testing.assert_allclose(report.folder.read("a").image, data / 255, atol=1e-6)
    with pytest.raises(DataError, match="expected reflectance"):
        curate_chips(tmp_path / "in", tmp_path / "o2", gsd_m=10, labeler=parse_rule("ndwi > 0"))


def table(root, *rows):
    names = sorted({name for row in rows for name in row})
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return root / "index.csv"


def test_a_row_of_an_index_that_is_too_short_fails_alone(tmp_path):
    save(tmp_path / "a.tif", picture(0), crs=None)
    save(tmp_path / "lab.tif", water(), dtype="uint8", crs=None, nodata=255)
    scale, bands = "L1C reflectance x 10000", " ".join(BANDS)
    (tmp_path / "index.csv").write_text(
        "s2,label,gsd_m,group,s2_bands,s2_scale,id\n"
        f"a.tif,lab.tif,10,g,{bands},{scale},whole\na.tif,lab.tif,10,g,{bands},{scale}\na.tif\n\n"
    )
    report = curate_chips(tmp_path / "index.csv", tmp_path / "out")
    assert report.made == ("whole",)
    assert [reason.endswith("got none for a.tif; name the chip") for _, reason in report.failed] == [True, True]


def test_a_csv_index_says_bands_scale_and_groups(tmp_path):
    save(tmp_path / "s2/a.tif", picture(0) + 1000, crs=None)
    save(tmp_path / "s2/b.tif", picture(1), crs=None)
    save(tmp_path / "lab.tif", water(), dtype="uint8", crs=None, nodata=255)
    common = {"label": "lab.tif", "s2_bands": " ".join(BANDS), "gsd_m": "10", "group": "g", "licence": "open", "s1": ""}
    path = table(
        tmp_path,
        {"id": "x_a", "s2": "s2/a.tif", "s2_scale": "L1C reflectance x 10000; +1000 offset still in", **common},
        {"id": "x_b", "s2": "s2/b.tif", "s2_scale": "L1C reflectance x 10000", **common},
        {"id": "x_c", "s2": "", **common},
        {"id": "x_d", "s2": "../secret.tif", **common},
        {"id": "y_e", "s2": "s2/none.tif", **common},
    )
    report = curate_chips(path, tmp_path / "out", select="x_")
    assert report.made == ("x_a", "x_b") and dict(report.skipped) == {"x_c": "no s2 image in the index"}
    assert report.failed[0][0] == "x_d" and "leaves it" in report.failed[0][1]
    assert report.folder.header.sensor == "sentinel-2-l1c" and report.folder.header.licence == "open"
    np.testing.assert_allclose(report.folder.read("x_a").image, picture(0) * 1e-4, atol=1e-6)
    np.testing.assert_allclose(report.folder.read("x_b").image, picture(1) * 1e-4, atol=1e-6)
    with pytest.raises(DataError, match="start with 'z'"):
        curate_chips(path, tmp_path / "o2", select="z")
    with pytest.raises(DataError, match="column 's3'"):
        from seawall.data.sources.index_table import IndexTable

        IndexTable(path, "s3")


def test_scale_words():
    assert scale_hints("surface reflectance x 10000 (int16)") == Hints(gain=1e-4)
    assert scale_hints("x 10000 (int16); min value 1004 -> +1000 offset (baseline >= 04.00) still in").offset == -0.1
    assert scale_hints("x 10000 (uint16); some have +1000 offset") == Hints()
    assert scale_hints("S1 RTC gamma0 dB (float32)").unit == "gamma0_db"
    assert scale_hints("uint8 stretched backscatter (scale unknown)") == Hints()
    assert blank_value("uint8 (255 in both bands = nodata)") == 255 and blank_value("x 10000") is None
    assert scale_product("Harmonized Landsat-Sentinel", "s2") == "hls" and scale_product("dB", "s1") == "sentinel-1-grd"


def test_sen1floods11_layout(tmp_path):
    rng = np.random.default_rng(0)
    db = rng.normal((-12, -19), 3, (32, 32, 2)).transpose(2, 0, 1)
    db[:, 0, :4] = np.nan
    label = water().astype(np.int16)
    label[1] = -1
    for name in ("Ghana_1", "Ghana_2", "Sri-Lanka_3"):
        save(tmp_path / f"in/S1Hand/{name}_S1Hand.tif", db, dtype="float32")
        save(tmp_path / f"in/S2Hand/{name}_S2Hand.tif", np.repeat(picture(), 4, 0)[:13], dtype="int16")
        save(tmp_path / f"in/LabelHand/{name}_LabelHand.tif", label, dtype="int16")
    save(tmp_path / "in/S1Hand/Spain_9_S1Hand.tif", db, dtype="float32")
    save(tmp_path / "in/LabelHand/Spain_8_LabelHand.tif", label, dtype="int16")
    report = curate_chips(tmp_path / "in", tmp_path / "s1", sensor="s1")
    folder = report.folder
    assert (
        folder.bands == ("VV", "VH")
        and folder.unit == "sigma0_db"
        and [name for name, _ in report.failed] == ["Spain_9", "Spain_8"]
    )
    assert "Spain_8_S1Hand.tif, got none" in report.failed[1][1]
    assert folder.groups() == {"Ghana": ("Ghana_1", "Ghana_2"), "Sri-Lanka": ("Sri-Lanka_3",)}
    chip = folder.read("Ghana_1")
    assert (chip.image[:, ~chip.seen] == -30).all() and chip.seen.sum() == 1020 and chip.valid.sum() == 1020 - 32
    s2 = curate_chips(tmp_path / "in", tmp_path / "s2").folder
    assert s2.bands[8:10] == ("B8A", "B09") and s2.unit == "reflectance" and s2.header.sensor == "sentinel-2-l1c"


def test_simulated_scenes_keep_their_truth(tmp_path):
    report = curate_chips(Simulated(3, 64, bands=("B03", "B08")), tmp_path / "out", chip=32)
    folder = report.folder
    assert len(folder) == 12 and folder.groups().keys() == {"sim000", "sim001", "sim002"}
    from seawall.simulate.scene import simulate_s2

    scene = simulate_s2("sim001", 64, ("B03", "B08"))
    chip = folder.read("sim001_r32c0")
    np.testing.assert_allclose(chip.image, scene.image[:, 32:, :32], atol=5.1e-5)
    assert np.array_equal(chip.label.astype(bool), scene.water[32:, :32] & chip.valid)
    assert np.array_equal(chip.valid, scene.clear[32:, :32])
    assert split_groups(folder).test
    cover = curate_chips(Simulated(1, 64, cover=True), tmp_path / "cover").folder
    assert cover.header.water == cover.classes.index("water") and sum(
        v or 0 for v in class_shares(cover, cover.ids).values()
    ) == pytest.approx(1)
    radar = curate_chips("2", tmp_path / "radar", sensor="s1").folder
    assert radar.unit == "sigma0_db" and radar.bands == ("VV", "VH")


def test_label_values():
    raw = np.float32([[0, 1, 255, np.nan]])
    assert read_label(raw, 2).tolist() == [[0, 1, 255, 255]]
    assert read_label(raw, 2, {0: 1, 1: 0, 255: 255}).tolist() == [[1, 0, 255, 255]]
    assert read_label(np.float32([[0, 9]]), 2, nodata=9).tolist() == [[0, 255]]
    assert read_label(np.float32([[0, 1]]), 2, {0: 0, 1: 1}, nodata=0).tolist() == [[0, 1]]
    for bad, match in ((2, "got 2"), (-1, "got -1"), (0.5, "got 0.5")):
        with pytest.raises(DataError, match=match):
            read_label(np.float32([[0, bad]]), 2)
    with pytest.raises(DataError, match="settle it with a label map"):
        read_label(raw, 2, nodata=0)
    with pytest.raises(DataError, match="only values of the label map, got 3"):
        read_label(np.float32([[0, 3]]), 2, {0: 0})
    with pytest.raises(DataError, match="fix the map"):
        read_label(raw, 2, {0: 7})


def test_wrong_arguments(pairs, tmp_path):
    for settings, match in (
        ({"kind": "pair"}, "did you mean 'pairs'"),
        ({"chip": 4}, "chip"),
        ({"kind": "simulated"}, "simulated.scenes: expected a valid integer"),
        ({"kind": "pairs group=(.*)", "group": "(.)"}, "curate.group: expected it once"),
    ):
        with pytest.raises(UsageError, match=match):
            curate_chips(pairs, tmp_path / "out", **settings)
    with pytest.raises(UsageError, match=r"sensor: expected s1 or s2"):
        curate_chips("2", tmp_path / "out", sensor="s9")
    with pytest.raises(DataError, match="nothing there"):
        curate_chips(tmp_path / "missing", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("pairs", {"select": "a"}), ("pairs", {"sensor": "s1"}), ("index", {"names": ["B03"]}), ("index", {"group": "(.*)"}),
        ("sen1floods11", {"hints": Hints(gain=1e-4)}), ("sen1floods11", {"product": "hls"}), ("sen1floods11", {"gsd_m": 20.0}),
        ("simulated", {"label_map": {0: 1}}),
    ],
)  # fmt: skip
def test_an_argument_without_effect_is_an_error(kind, settings, tmp_path):
    (name,) = settings
    with pytest.raises(
        UsageError, match=f"curate.{name}: expected no such argument for the source '{kind}'.* no effect"
    ):
        curate_chips(tmp_path, tmp_path / "out", kind=kind, **settings)
    if name not in ("gsd_m", "label_map"):  # these two are of the folder that is made as well
        with pytest.raises(UsageError, match=f"curate.{name}: expected no such argument beside a source"):
            curate_chips(Simulated(1, 32), tmp_path / "out", **settings)


def test_the_layout_is_detected_and_never_guessed_between_two(pairs, tmp_path):
    assert detect_source(pairs) == "pairs" and detect_source(Path("12")) == "simulated"
    (pairs / "index.csv").write_text("id,s2\n")
    assert detect_source(pairs) == "index", "a general layout comes after one of its own"
    save(pairs / "more/Ghana_1_S1Hand.tif", picture(), bands=BANDS)
    with pytest.raises(UsageError, match="the layout of one source, got index and sen1floods11; name one"):
        detect_source(pairs)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("a")
    with pytest.raises(DataError, match=r"a layout of index, pairs, .* got none of them; arrange the files"):
        detect_source(tmp_path / "notes")


def test_a_damaged_chip_folder_is_no_source_either(pairs, tmp_path):
    curate_chips(pairs, tmp_path / "out")
    index = tmp_path / "out/index.json"
    index.write_text(index.read_text()[:-40])
    with pytest.raises(UsageError, match="chip folder"):
        curate_chips(tmp_path / "out", tmp_path / "again")


def test_the_real_hls_chips(real_chips, tmp_path):
    report = curate_chips(real_chips, tmp_path / "hls", select="hls_")
    folder = report.folder
    assert len(folder) == 93 and not report.failed and folder.gsd_m == 30 and len(folder.groups()) == 34
    assert folder.bands == ("B01", "B02", "B03", "B04", "B8A", "B11", "B12") and folder.header.sensor == "hls"
    assert class_shares(folder, folder.ids)["water"] == pytest.approx(0.289, abs=0.001)
    with rasterio.open(real_chips / "s2/hls_042.tif") as source:
        np.testing.assert_allclose(folder.read("hls_042").image, source.read() * 1e-4, atol=1e-6)


def test_the_real_radar_chips(real_chips, tmp_path):
    report = curate_chips(real_chips, tmp_path / "s1", select="sen1floods11_", sensor="s1")
    folder = report.folder
    assert len(folder) == 6 and folder.unit == "sigma0_db" and not report.failed
    assert {id_ for id_, _ in report.skipped} == {"sen1floods11_USA_430764", "sen1floods11_Paraguay_34417"}
    mean, _ = folder.mean_std(folder.ids)
    assert -15 < mean[0] < -8 and -24 < mean[1] < -15
    assert ChipFolder.open(tmp_path / "s1").check() == []

"""The report's parts: words, axes, pictures, flags, tables, and broken run folders."""

import importlib.util
import json
import struct
import subprocess
import sys
import zlib
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from seawall.errors import RunError
from seawall.records import Record, RecordLog
from seawall.report import pictures, write_report
from seawall.report.adversary import robustness
from seawall.report.blocks import Table
from seawall.report.book import CLEAN, WORST, Book
from seawall.report.faults import bins, label_noise
from seawall.report.flags import explain
from seawall.report.folder import Run, read_run
from seawall.report.noise import corrupted
from seawall.report.published import TABLES
from seawall.report.robust import families
from seawall.report.scores import side_by_side
from seawall.report.svg import Axis, Box, cut, spread
from seawall.report.told import summary
from seawall.report.words import DASH

_spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).parents[1] / "fake_run.py")
assert _spec and _spec.loader
fake_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_run)


def row(metric, klass, value, *, model="unet", method="clean", threat="", chip="a", group="g", flags=()):
    return Record("r", model, method, threat, chip, group, metric, klass, value, 100, flags)


def counted(tp, fp, fn, **place):
    land = {"tp": 100 - tp - fp - fn, "fp": fn, "fn": fp}
    rows = [row(name, "water", v, **place) for name, v in (("tp", tp), ("fp", fp), ("fn", fn))]
    rows += [row(name, "land", v, **place) for name, v in land.items()]
    return [*rows, row("pixels", "", 100.0, **place)]


@pytest.fixture
def attacked():
    """Two chips, two attacks: each attack wins on one chip."""
    rows = [*counted(40, 5, 5, chip="a"), *counted(20, 5, 5, chip="b", group="h")]
    for method, (a, b) in {"fgsm": (10, 18), "pgd": (30, 2)}.items():
        place = {"method": method, "threat": "linf 1% reflectance"}
        rows += counted(a, 5, 45 - a, chip="a", **place) + counted(b, 5, 25 - b, chip="b", group="h", **place)
    return Book(rows, "water")


def test_the_worst_case_takes_each_chips_worst_attack(attacked):
    family = families(attacked)[0]
    size = family.budgets[0]
    setup = ("unet", WORST, size.text)
    assert attacked.value(setup, "iou.pooled", "water") == pytest.approx((10 + 2) / (50 + 30))
    assert attacked.value(setup, "iou.per_chip", "water") == pytest.approx((10 / 50 + 2 / 30) / 2)
    assert {chip: r.metric for chip, r in family.winners(size).items()} == {"a": "won.fgsm", "b": "won.pgd"}
    assert sum(c.fn for _, c in family.chosen(size)) == 35 + 23


def test_area_lost_counts_the_same_choice_of_attacks(attacked, tmp_path):
    run = fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    tables = [b for b in robustness(read_run(run), attacked).blocks if isinstance(b, Table)]
    area = next(t for t in tables if "lost" in t.title)
    assert area.head[2][0] == "Lost, ha"
    assert [r[2].text for r in area.rows] == ["0.1", "0.6"]  # 10 and 58 pixels of 100 m2
    assert [r[3].text for r in area.rows] == ["14\u202f%", "83\u202f%"]


def test_every_cell_names_its_record(attacked):
    cell = attacked.cell(("unet", *CLEAN), "iou.pooled")
    assert cell.text == "0.75"
    assert cell.key == "r|unet|clean||||iou.pooled|water"


def test_an_undefined_figure_is_a_dash_that_says_why():
    book = Book(counted(0, 0, 0), "water")
    for metric, why in (
        ("recall.pooled", "labels hold no pixel"),
        ("precision.pooled", "nothing was predicted"),
        ("iou.pooled", "neither"),
    ):
        cell = book.cell(("unet", *CLEAN), metric)
        assert cell.text == "–"
        assert why in cell.title
    assert "not measured" in book.cell(("unet", *CLEAN), "srip.iou").title


def test_flags_travel_with_the_cell():
    rows = counted(40, 5, 5, method="pgd", threat="linf 1% reflectance", flags=("zero-gradient",))
    book = Book([*counted(40, 5, 5), *rows], "water")
    assert book.cell(("unet", "pgd", "linf 1% reflectance"), "iou.pooled").flags == ("zero-gradient",)
    assert book.cell(("unet", WORST, "linf 1% reflectance"), "iou.pooled").flags == ("zero-gradient",)
    assert "black-box" in explain("zero-gradient").do


@pytest.mark.parametrize("flag", ["more_steps", "partial suite: 3 of 60 missing", "softmax", "<script>"])
def test_every_flag_has_an_id_that_a_link_can_name(flag):
    assert explain(flag).id.replace("-", "").isalnum()


def test_models_on_wrong_labels_are_sorted_by_kind_and_rate():
    names = ["unet", "unet@dilate-0.2", "unet@dilate-0.05", "unet@erode-10%", "unet@dilate-0.05+gce"]
    book = Book([r for name in names for r in counted(40, 5, 5, model=name)], "water")
    assert [(c.kind, c.rate) for c in corrupted(book)] == [
        ("dilate", 0.05), ("dilate", 0.2), ("erode", 0.1), ("dilate, gce loss", 0.05),
    ]  # fmt: skip
    facts = {"noises": {"unet@erode-10%": {"changed_share": 0.07}}}
    section = label_noise(Run(Path(), {}, "", facts, {}, (), ()), book)
    assert section is not None
    assert all(r[-1] == "" or r[-1].text == "0.00" for r in section.blocks[-1].rows)
    assert [r[2] for r in section.blocks[-1].rows] == ["0 %", DASH, DASH, "7\u202f%", DASH]


def test_calibration_bins_are_means_over_all_chips():
    rows = counted(40, 5, 5)
    for chip, n in (("a", 10), ("b", 30)):
        for part, value in (("count", n), ("correct", 0.5 * n), ("confidence", 0.9 * n)):
            rows.append(row(f"calib.{part}.3", "", value, chip=chip))
        rows.append(row("calib.pixels", "", n, chip=chip))
    found = bins(Book(rows, "water"), ("unet", *CLEAN))
    assert found == [(pytest.approx(0.9), pytest.approx(0.5), 1.0)]


def test_published_figures_are_the_reports():
    assert [t.figures["srip.iou"] for t in TABLES] == [0.8067, 0.5950, 0.7527]
    assert TABLES[2].figures["srip.dice"] == 0.6784 < TABLES[2].figures["srip.iou"]
    assert "srip.dice" not in TABLES[0].figures


def test_a_png_holds_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    data = pictures.png(image)
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (5, 7)
    at, raw = 8, b""
    while at < len(data):
        (n,) = struct.unpack(">I", data[at : at + 4])
        raw += data[at + 8 : at + 8 + n] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + n
    assert len(zlib.decompress(raw)) == 7 * (5 * 3 + 1)
    PIL = pytest.importorskip("PIL.Image")
    import io

    assert (np.asarray(PIL.open(io.BytesIO(data))) == image).all()
    index = np.arange(6, dtype=np.uint8).reshape(2, 3) % 3
    colors = ((1, 2, 3, 255), (4, 5, 6, 0), (7, 8, 9, 128))
    back = np.asarray(PIL.open(io.BytesIO(pictures.png(index, colors))).convert("RGBA"))
    assert (back == np.array(colors, np.uint8)[index]).all()


def test_labels_of_curves_keep_clear_of_each_other():
    placed = spread([10, 11, 12, 80, 81], 15, 0, 100)
    assert all(b - a >= 15 - 1e-9 for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False))
    assert cut("a-very-long-name-indeed", 9) == "a-ve…deed"


def test_a_box_maps_values_to_pixels():
    box = Box(Axis("", 0, 1), Axis("", 0, 2), 10, 20, 110, 120)
    assert (box.px(0.5), box.py(0), box.py(2)) == (60, 120, 20)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="expected a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_measurements_still_has_a_page(tmp_path):
    (tmp_path / "recipe.toml").write_text('name = "empty"\n')
    page = write_report(tmp_path).read_text()
    assert "has not measured anything yet" in page
    assert 'id="robustness"' not in page and 'id="scene"' not in page


def test_a_torn_last_line_is_dropped_and_the_file_left_as_it_is(tmp_path):
    fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    log = tmp_path / "records.jsonl"
    whole = len(read_run(tmp_path).records)
    with log.open("a") as file:
        file.write('{"recipe": "fake", "mod')
    before = log.read_bytes()
    assert len(read_run(tmp_path).records) == whole
    assert log.read_bytes() == before


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
    (tmp_path / "records.jsonl").write_text("not json\n")
    with pytest.raises(RunError, match="expected a record"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("examples/00.npz", b"torn"),
        ("examples/00.json", b"[]"),
        ("scenes/reach.class.tif", b""),
        ("facts.json", b"{"),
        ("history.jsonl", b"{\n"),
    ],
)
def test_one_bad_file_is_named_and_the_page_goes_on(tmp_path, name, content):
    fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    (tmp_path / name).write_bytes(content)
    page = unescape(write_report(tmp_path).read_text())
    assert "Not readable." in page
    assert Path(name).name.split(".")[0] in page.split("Not readable.")[1][:200]


def test_a_pickle_in_an_example_is_never_loaded(tmp_path):
    fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    np.savez(tmp_path / "examples/00.npz", clean=np.array([{"a": 1}], dtype=object))
    assert "examples/00.npz" in write_report(tmp_path).read_text()


def test_places_in_two_parts_are_called_out(tmp_path):
    fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    facts = json.loads((tmp_path / "facts.json").read_text())
    facts["data"]["groups"]["train"].append("Spain")
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    assert "1 place in the test part can also be found in training (Spain)" in write_report(tmp_path).read_text()


def test_only_a_recipe_about_the_report_stands_beside_it(tmp_path):
    fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    run = read_run(tmp_path)
    beside = side_by_side(run, Book(run.records, "water"))
    assert beside is not None
    assert beside.blocks[0].rows[0][1].text == "0.8067"
    recipe = (tmp_path / "recipe.toml").read_text().replace('published = "srip-table-1"', 'published = "srip-table-3"')
    (tmp_path / "recipe.toml").write_text(recipe)
    run = read_run(tmp_path)
    heads = [name for name, _ in side_by_side(run, Book(run.records, "water")).blocks[0].head]
    assert heads[1] == "Report, Table 3" and "erode-dilate" in heads[2]
    (tmp_path / "recipe.toml").write_text(recipe.replace('published = "srip-table-3"\n', ""))
    run = read_run(tmp_path)
    assert side_by_side(run, Book(run.records, "water")) is None


def test_a_test_part_without_water_is_said_in_words(tmp_path):
    RecordLog(tmp_path / "records.jsonl").append(counted(0, 0, 0))
    run = read_run(tmp_path)
    words = "".join(p if isinstance(p, str) else p.text for p in summary(run, Book(run.records, "water"))[0])
    assert "hold any water" in words


def test_the_report_loads_neither_torch_nor_rasterio():
    code = "import sys, seawall.report; print([m for m in ('torch', 'rasterio', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_flags_of_the_chips_are_on_the_page_with_how_many_carry_them(tmp_path):
    fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    facts = json.loads((tmp_path / "facts.json").read_text())
    facts["data"]["flags"] = {"blank-pixels": 3, "extreme-values": 1}
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    page = unescape(write_report(tmp_path).read_text(encoding="utf-8"))
    for flag, chips in (("blank-pixels", "3 chips"), ("extreme-values", "1 chip")):
        assert explain(flag).means in page and explain(flag).do in page
        assert chips in page[page.index(explain(flag).means) :][:1500]


def test_a_flag_with_its_facts_is_explained_by_its_id():
    assert explain("extreme-values: 0.01% of the pixels outside -0.5 to 5: unseen").id == "extreme-values"
    assert explain("odd thing: pixels").id == "odd-thing-pixels"

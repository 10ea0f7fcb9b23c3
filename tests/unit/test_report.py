"""The report's parts: words, axes, pictures, flags, tables, and broken run folders."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest

from seawall.errors import RunError
from seawall.metrics.worst_case import WORST
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.records import Record, RecordLog, ThreatFacts
from seawall.report import images
from seawall.report.attack_effects import attacked_models, hiding_blocks
from seawall.report.calibration import calibration_section, reliability_bins
from seawall.report.charts import ChartRow, CurvePoint, Series, interval_chart, line_chart
from seawall.report.elements import Chart, Table
from seawall.report.flags import explain
from seawall.report.formatting import DASH, ThreatLabel
from seawall.report.label_noise import label_noise_section
from seawall.report.page import write_report
from seawall.report.published_tables import SRIP_TABLES, published_comparison
from seawall.report.record_index import CLEAN_METHOD, RecordIndex
from seawall.report.robustness import robustness_section
from seawall.report.run_facts import EpochFacts, NoiseFacts, RunFacts
from seawall.report.run_reader import RunFolder, read_run
from seawall.report.run_section import axis_around, label_source, learning_curves
from seawall.report.scores import clean_scores
from seawall.report.summary import key_numbers, summary_sentences
from seawall.report.svg import ChartAxis, PlotArea, spread_labels
from seawall.threat.parser import parse_threat
from seawall.types import ModelSpec

_spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).parents[1] / "fake_run.py")
assert _spec and _spec.loader
fake_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_run)


SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
ONE = "linf 1% reflectance"


def row(metric, klass, value, *, model="unet", method="clean", threat="", chip="a", group="g", flags=()):
    fields = parse_threat(threat, SPEC).facts if threat else ()
    return Record("r", model, method, threat, chip, group, metric, klass, value, 100, flags, 0.0, *fields)


def words_of(sentences):
    return " ".join("".join(p if isinstance(p, str) else p.text for p in one) for one in sentences)


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
    return RecordIndex(rows, "water")


def test_the_worst_case_takes_each_chips_worst_attack(attacked):
    family = attacked_models(attacked)[0]
    size = family.threats[0]
    setup = ("unet", WORST, size.text)
    assert attacked.value(setup, "iou.pooled", "water") == pytest.approx((10 + 2) / (50 + 30))
    assert attacked.value(setup, "iou.per_chip", "water") == pytest.approx((10 / 50 + 2 / 30) / 2)
    assert {chip: r.metric for chip, r in family.winners(size).items()} == {"a": "won.fgsm", "b": "won.pgd"}
    assert sum(c.fn for _, c in family.worst_case_counts(size)) == 35 + 23


def test_area_lost_counts_the_same_choice_of_attacks(attacked, tmp_path):
    run = fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    tables = [b for b in robustness_section(read_run(run), attacked).blocks if isinstance(b, Table)]
    area = next(t for t in tables if "lost" in t.title)
    assert area.head[2][0] == "Lost, ha"
    assert [r[2].text for r in area.rows] == ["0.1", "0.6"]  # 10 and 58 pixels of 100 m2
    assert [r[3].text for r in area.rows] == ["14\u202f%", "83\u202f%"]


def test_every_cell_names_its_record(attacked):
    cell = attacked.cell(("unet", *CLEAN_METHOD), "iou.pooled")
    assert cell.text == "0.75"
    assert cell.key == "r|unet|clean||||iou.pooled|water"


def test_an_undefined_figure_is_a_dash_that_says_why():
    index = RecordIndex(counted(0, 0, 0), "water")
    for metric, why in (
        ("recall.pooled", "labels hold no pixel"),
        ("precision.pooled", "nothing was predicted"),
        ("iou.pooled", "neither"),
    ):
        cell = index.cell(("unet", *CLEAN_METHOD), metric)
        assert cell.text == "–"
        assert why in cell.title
    assert "not measured" in index.cell(("unet", *CLEAN_METHOD), "srip.iou").title


def test_flags_travel_with_the_cell():
    rows = counted(40, 5, 5, method="pgd", threat="linf 1% reflectance", flags=("zero-gradient",))
    index = RecordIndex([*counted(40, 5, 5), *rows], "water")
    assert index.cell(("unet", "pgd", "linf 1% reflectance"), "iou.pooled").flags == ("zero-gradient",)
    assert index.cell(("unet", WORST, "linf 1% reflectance"), "iou.pooled").flags == ("zero-gradient",)
    assert "black-box" in explain("zero-gradient").do


NOISES = {
    "unet@dilate-0.2": NoiseFacts(model="unet", noise="dilate", rate=0.2, changed_share=0.12),
    "unet@dilate-0.05": NoiseFacts(model="unet", noise="dilate", rate=0.05, changed_share=0.02),
    "second": NoiseFacts(model="unet", noise="erode", rate=0.1, changed_share=None),
    "unet@dilate-0.05+gce": NoiseFacts(model="unet", noise="dilate", rate=0.05, objective="gce", changed_share=0.02),
}


@pytest.fixture
def corrupted_labels():
    """A network on labels as they are, and four on corrupted ones; the more labels were changed, the worse."""
    names = {"unet": 40, "unet@dilate-0.2": 30, "unet@dilate-0.05": 38, "second": 39, "unet@dilate-0.05+gce": 37}
    rows = [r for name, tp in names.items() for r in counted(tp, 5, 45 - tp, model=name)]
    return RecordIndex(rows, "water", NOISES)


def test_models_on_wrong_labels_are_sorted_by_kind_and_rate(corrupted_labels):
    assert [(n.kind, n.rate, n.changed_share) for n in corrupted_labels.noisy_models.values()] == [
        ("dilate", 0.05, 0.02), ("dilate", 0.2, 0.12), ("erode", 0.1, None), ("dilate, by gce", 0.05, 0.02),
    ]  # fmt: skip
    table = label_noise_section(corrupted_labels).blocks[-1]
    assert [r[1:3] for r in table.rows] == [
        ("0", "0\u202f%"), ("5\u202f%", "2\u202f%"), ("20\u202f%", "12\u202f%"), ("10\u202f%", DASH), ("5\u202f%", "2\u202f%"),
    ]  # fmt: skip


def test_a_curve_over_wrong_labels_goes_by_what_was_changed(corrupted_labels):
    chart = label_noise_section(corrupted_labels).blocks[0]
    ticks = re.findall(r'class="t tick"[^>]*>([\d.]+) %<', chart.drawing.svg)
    assert max(map(float, ticks)) == 12 and "changed" in chart.drawing.svg
    assert "budget" not in chart.drawing.svg
    wide = chart.drawing.svg.split("<svg")[1]
    at = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"[^>]*class="mark c0"', wide)]
    assert (at[1] - at[0]) / (at[2] - at[0]) == pytest.approx(0.02 / 0.12, abs=0.01)
    middle = re.search(
        r"<title>iou.pooled, U-Net, dilate 5\u202f% \(2\u202f% changed\)[^<]*</title>", chart.drawing.svg
    )
    assert middle


def test_a_name_says_what_was_asked_and_what_was_reached(corrupted_labels):
    assert corrupted_labels.display_name("unet@dilate-0.05") == "U-Net, dilate 5\u202f% (2\u202f% changed)"
    assert corrupted_labels.display_name("second") == "U-Net, erode 10\u202f%"
    assert NoiseFacts(model="unet", noise="shift", rate=30.0, changed_share=0.04).label == "shift 30 (4\u202f% changed)"


def test_a_models_name_is_never_taken_apart():
    index = RecordIndex(counted(40, 5, 5, model="unet@dilate-0.1+gce"), "water")
    assert index.display_name("unet@dilate-0.1+gce") == "unet@dilate-0.1+gce" and index.noisy_models == {}


def test_the_first_words_say_what_the_noise_changed(corrupted_labels):
    recipe = make_recipe({"name": "r", "model": {"name": "unet"}})
    run = RunFolder(Path(), recipe, "", RunFacts(noises=NOISES), {}, (), ())
    words = words_of(summary_sentences(run, corrupted_labels))
    assert "dilate changed 12\u202f% of the pixels (20\u202f% asked for)" in words
    assert key_numbers(run, corrupted_labels)[-1].note == "dilate 20\u202f% (12\u202f% changed)"


def test_calibration_bins_are_means_over_all_chips():
    rows = counted(40, 5, 5)
    for chip, n in (("a", 10), ("b", 30)):
        for part, value in (("count", n), ("correct", 0.5 * n), ("confidence", 0.9 * n)):
            rows.append(row(f"calib.{part}.3", "", value, chip=chip))
        rows.append(row("calib.pixels", "", n, chip=chip))
    found = reliability_bins(RecordIndex(rows, "water"), ("unet", *CLEAN_METHOD))
    assert found == [(pytest.approx(0.9), pytest.approx(0.5), 1.0)]


def test_published_figures_are_the_reports():
    assert [t.figures["srip.iou"] for t in SRIP_TABLES] == [0.8067, 0.5950, 0.7527]
    assert SRIP_TABLES[2].figures["srip.dice"] == 0.6784 < SRIP_TABLES[2].figures["srip.iou"]
    assert "srip.dice" not in SRIP_TABLES[0].figures


def test_a_png_holds_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    assert (decoded(images.encode_png(image)) == image[..., ::-1]).all(), "OpenCV reads blue first"
    gray = image[..., 0]
    assert (decoded(images.encode_png(gray)) == gray).all()
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3) % 3
    colors = np.array([(1, 2, 3, 255), (4, 5, 6, 0), (7, 8, 9, 128)], np.uint8)
    picture = decoded(images.encode_png(levels, [tuple(color) for color in colors.tolist()]))
    assert (picture == colors[levels][..., [2, 1, 0, 3]]).all()


def decoded(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def test_labels_of_curves_keep_clear_of_each_other():
    placed = spread_labels([10, 11, 12, 80, 81], 15, 0, 100)
    assert all(b - a >= 15 - 1e-9 for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False))


def test_a_long_name_is_never_cut():
    name = "dense U-Net, FGSM linf, 0.25 to 0.5 % reflectance (per band), trained on dilated masks"
    axis = ChartAxis("", 0, 1)
    figures = (
        line_chart([Series(name, (CurvePoint(0, 0.5), CurvePoint(1, 0.4)), "c0")], axis, axis, "t"),
        interval_chart([ChartRow(name, 0.5)], axis, "t"),
    )
    for figure in figures:
        for svg in figure.svg.split("<svg")[1:]:
            assert " ".join(re.findall(r'class="t (?:name c0|row)"[^>]*>([^<]*)<', svg)) == name
        assert "…" not in figure.svg


def test_a_box_maps_values_to_pixels():
    box = PlotArea(ChartAxis("", 0, 1), ChartAxis("", 0, 2), 10, 20, 110, 120)
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
        ("facts.json", b'{"data": {"chips": "many"}}'),
        ("scenes/reach.truth.json", b"{}"),
        ("models/unet/history.jsonl", b"{\n"),
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


def changed(run, **changes):
    """Return a run whose recipe has other values."""
    return RunFolder(run.path, make_recipe(run.recipe.model_dump(mode="json") | changes), "", run.facts, run.env, run.records, run.history,
               run.examples, run.scenes)  # fmt: skip


def test_only_a_recipe_about_the_report_stands_beside_it(tmp_path):
    fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    run = read_run(tmp_path)
    index = RecordIndex(run.records, "water", run.facts.noises)
    beside = published_comparison(run, index)
    assert beside is not None
    assert beside.blocks[0].rows[0][1].text == "0.8067"
    heads = [name for name, _ in published_comparison(changed(run, published="srip-table-3"), index).blocks[0].head]
    assert heads[1] == "Report, Table 3" and "erode-dilate" in heads[2]
    assert published_comparison(changed(run, published=""), index) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "simulated"}, "simulated scenes with exact truth"),
        (
            {"source": "simulated", "labels": "ndwi >= -0.25"},
            "simulated scenes with labels by the rule ndwi >= -0.25, not the known truth",
        ),
        ({"source": "simulated", "labels": "cover"}, "simulated scenes with the exact truth of the land cover"),
        ({"source": "$X/chips"}, "real chips with the labels of their source"),
        ({"source": "$X/chips", "labels": "mndwi otsu"}, "real chips with labels by the rule mndwi otsu"),
    ],
)
def test_the_page_says_where_the_labels_come_from(tmp_path, data, words):
    fake_run.make_run(tmp_path, side=16, chips_per_place=1)
    run = changed(read_run(tmp_path), data=data)
    assert label_source(run) == words
    index = RecordIndex(run.records, "water", run.facts.noises)
    assert words in published_comparison(run, index).blocks[1].items[0][1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('[data]\nwater = "truth"', r"unknown key 'data\.water'"),
        ("interrogation = true", "unknown key 'interrogation'; rename it to 'sanity_checks'"),
    ],
)
def test_a_recipe_with_an_unknown_key_makes_no_page(tmp_path, line, says):
    (tmp_path / "recipe.toml").write_text(f'name = "r"\n{line}\n')
    with pytest.raises(RunError, match=says):
        write_report(tmp_path)


def test_every_key_that_the_page_reads_is_a_key_of_the_recipe():
    parts = {"recipe": Recipe}
    chains = 0
    for file in (Path(fake_run.__file__).parents[1] / "src/seawall/report").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            chain = []
            while isinstance(node, ast.Attribute):
                chain.insert(0, node.attr)
                node = node.value
            if isinstance(node, ast.Name):
                chain.insert(0, node.id)
            if "recipe" not in chain or chain[:1] == ["seawall"]:
                continue
            part = parts["recipe"]
            for key in chain[chain.index("recipe") + 1 :]:
                assert key in part.model_fields, (file.name, chain)
                chains += 1
                part = part.model_fields[key].annotation
                if not hasattr(part, "model_fields"):
                    break
    assert chains > 15


def test_a_test_part_without_water_is_said_in_words(tmp_path):
    RecordLog(tmp_path / "records.jsonl").append(counted(0, 0, 0))
    run = read_run(tmp_path)
    assert "hold any water" in words_of(summary_sentences(run, RecordIndex(run.records, "water")))


def test_the_report_loads_neither_torch_nor_rasterio():
    code = "import sys, seawall.report; print([m for m in ('torch', 'rasterio', 'matplotlib') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def label(*fields):
    return ThreatLabel("", ThreatFacts(*fields))


def test_a_budget_is_shown_from_its_fields():
    per_band = ThreatLabel("linf 0.0013,0.0018 reflectance", ThreatFacts("linf", (0.0013, 0.0018), "reflectance"))
    assert per_band.budget == "0.13 to 0.18\u202f% reflectance (per band)"
    assert per_band.family_name == "linf, reflectance per band"
    assert per_band.family == label("linf", (0.0026, 0.0036), "reflectance").family
    assert per_band.family != label("linf", (0.0026, 0.0026), "reflectance").family
    assert label("linf", (0.5,), "dB").budget == "0.5 dB"
    assert ThreatLabel("odd words 3% of it").budget == "odd words 3% of it"


def test_threats_are_read_from_fields_and_never_from_text(attacked):
    rows = [Record(**{**r.__dict__, "threat": r.threat and "the first one"}) for r in attacked.measured]
    family = attacked_models(RecordIndex(rows, "water"))[0]
    assert [(size.budget, size.text) for size in family.threats] == [("1\u202f% reflectance", "the first one")]


def test_the_harm_of_one_band_stands_beside_that_of_all():
    rows = [*counted(40, 5, 5), *counted(10, 5, 35, method="pgd", threat=ONE)]
    rows += counted(30, 5, 15, method="pgd", threat=f"{ONE} bands=B03") + counted(
        20, 5, 25, method="pgd", threat=f"{ONE} bands=B08"
    )
    chart = next(b for b in robustness_section(RunFolder(Path(), None, "", RunFacts(), {}, (), ()), RecordIndex(rows, "water")).blocks
                 if isinstance(b, Chart) and "band the adversary needs" in b.title)  # fmt: skip
    assert re.findall(r'class="t row"[^>]*>([^<]*)<', chart.drawing.svg)[:3] == ["B08", "B03", "all bands"]


def flagged_book():
    """Two networks, attacked at two budgets; one network also learned from wrong labels. Every row carries a flag."""
    rows, flags = [], ("more-steps-gain",)
    for model, tp in (("unet", 40), ("other", 35), ("wrong", 30)):
        rows += counted(tp, 5, 45 - tp, model=model, flags=flags)
        for part, value in (("count", 10), ("correct", 5), ("confidence", 9)):
            rows.append(row(f"calib.{part}.3", "", value, model=model, flags=flags))
        rows.append(row("calib.pixels", "", 10, model=model, flags=flags))
        for threat, lost in (("linf 0.5% reflectance", 10), (ONE, 20), (f"{ONE} bands=B03", 5)):
            place = {"model": model, "method": "pgd", "threat": threat, "flags": flags}
            rows += counted(tp - lost, 5, 45 - tp + lost, **place)
            rows += [row("fooled", "water", 0.5, **place), row("preserved", "water", 0.5, **place)]
            rows.append(row("hiding.pixels", "", 9, **place))
    return RecordIndex(rows, "water", {"wrong": NoiseFacts(model="unet", noise="dilate", rate=0.1, changed_share=0.03)})


def test_every_chart_and_every_cell_over_flagged_rows_shows_the_flag():
    index = flagged_book()
    run = RunFolder(Path(), None, "", RunFacts(), {}, (), ())
    sections = (
        clean_scores(run, index),
        robustness_section(run, index),
        label_noise_section(index),
        calibration_section(index),
    )
    blocks = [b for section in sections for b in section.blocks]
    charts = [b for b in blocks if isinstance(b, Chart)]
    assert {"Which network holds: worst case, pooled", "Pooled water IoU", "Is it as right as it is sure?"} <= {
        c.title for c in charts
    }
    assert any("hiding water" in c.title for c in charts) and any("band the adversary" in c.title for c in charts)
    for chart in charts:
        assert chart.drawing.flags == ("more-steps-gain",), chart.title
        assert "*" in re.sub("<title>.*?</title>", "", chart.drawing.svg), chart.title
        assert all(value.endswith("*") for value in re.findall(r'class="t value"[^>]*>([^<]*)<', chart.drawing.svg)), (
            chart.title
        )
    for table in (b for b in blocks if isinstance(b, Table)):
        for cell in (
            cell for line in table.rows for cell in line if not isinstance(cell, str) and cell.text not in ("", DASH)
        ):
            if "passes" not in cell.title and "seconds" not in cell.title:
                assert cell.flags, (table.title, cell.title)
    assert hiding_blocks(index, "unet")


def test_a_chart_over_rows_without_a_flag_has_no_star(attacked):
    charts = [
        b
        for b in robustness_section(RunFolder(Path(), None, "", RunFacts(), {}, (), ()), attacked).blocks
        if isinstance(b, Chart)
    ]
    assert charts and not any(c.drawing.flags or "*" in c.drawing.svg for c in charts)


def test_the_strongest_attack_is_in_the_reliability_diagram():
    rows = []
    for method, tp in (("clean", 40), ("fgsm", 30), ("weak", 38), ("pgd", 5)):
        place = {} if method == "clean" else {"method": method, "threat": ONE}
        rows += [*counted(tp, 5, 45 - tp, **place), row("calib.pixels", "", 10, **place)]
        rows += [
            row(f"calib.{part}.3", "", value, **place)
            for part, value in (("count", 10), ("correct", 5), ("confidence", 9))
        ]
    svg = calibration_section(RecordIndex(rows, "water")).blocks[0].drawing.svg
    names = re.findall(r'class="t name c\d"[^>]*>([^<]*)<', svg.split("<svg")[1])
    assert names[:3] == ["U-Net", "U-Net, PGD, 1\u202f% reflectance", "U-Net, FGSM, 1\u202f% reflectance"]


def test_learning_curves_count_epochs_from_one_and_show_the_class_of_the_page():
    rows = tuple(
        EpochFacts(model="unet", epoch=i, loss=0.5, scores={"val.iou.land": 0.1, "val.iou.water": water})
        for i, water in enumerate((0.81, 0.84, 0.86))
    )
    run = RunFolder(Path(), None, "", RunFacts(), {}, (), rows)
    chart = learning_curves(run, RecordIndex((), "water")).blocks[-1]
    svg = chart.drawing.svg.split("<svg")[1]
    assert re.findall(r"epoch (\d): ([\d.]+)", svg) == [("1", "0.810"), ("2", "0.840"), ("3", "0.860")]
    ticks = [
        float(t)
        for t in re.findall(r'text-anchor="end"[^>]*>([\d.]+)<|class="t tick" text-anchor="end">([\d.]+)<', svg)
        for t in t
        if t
    ]
    assert re.findall(r'<circle cx="([^"]+)"', svg)[0] == "40", "the first epoch stands at the start of the axis"
    assert min(ticks) >= 0.7 and max(ticks) <= 0.95 and "not 0 to 1" in chart.note
    further = tuple(row.model_copy(update={"model": "unet.member-1"}) for row in rows)
    section = learning_curves(
        RunFolder(Path(), None, "", RunFacts(), {}, (), (*rows, *further)), RecordIndex((), "water")
    )
    assert section.blocks[-1].drawing.svg == chart.drawing.svg
    assert (
        section.lead
        == "2 networks trained from scratch. 1 of them is a further member of ensembles, without curves here."
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


@pytest.mark.parametrize("scores", [(0.9497, 0.9612), (0.2, 0.9), (0.9534, 0.9539), (0.0, 0.0), (1.0, 1.0)])
def test_an_axis_around_scores_names_each_tick_by_its_value(scores: tuple[float, float]) -> None:
    axis = axis_around("IoU", scores)
    assert axis.low <= min(scores) and max(scores) <= axis.high and len(axis.ticks) > 2
    assert [float(axis.format_tick(tick)) for tick in axis.ticks] == list(axis.ticks)

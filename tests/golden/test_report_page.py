"""The page as a whole, of a made-up run: offline, whole, deterministic, and safe from what the run folder says."""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tomllib
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from seawall.recipe.recipe import Recipe
from seawall.records import CorruptionFacts
from seawall.report.page import write_report
from seawall.report.run_facts import (
    DataFacts,
    EpochFacts,
    ExampleFacts,
    MappedScene,
    NoiseFacts,
    RunFacts,
    SceneFacts,
    SceneTruth,
)
from terminal import cli

_spec = importlib.util.spec_from_file_location("fake_run", Path(__file__).parents[1] / "fake_run.py")
assert _spec and _spec.loader
fake_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_run)

LOADS = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background", "formaction"}
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(HTMLParser):
    """Elements with their attributes, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run.make_run(tmp_path_factory.mktemp("run"), side=48)


@pytest.fixture(scope="module")
def text(run):
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    held = Page(text)
    assert held.open == []
    return held


def test_every_section_is_there_and_every_anchor_exists(page):
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = [a["href"] for a in page.all("a")]
    assert all(a.startswith("#") and a[1:] in ids for a in anchors)
    assert [s["id"] for s in page.all("section")] == [
        "run", "data", "learning", "scores", "robustness", "labels", "calibration", "scene", "published", "flags",
        "provenance",
    ]  # fmt: skip


def test_nothing_is_loaded_from_outside(page, text):
    for tag, attrs in page.found:
        for name, value in attrs.items():
            if name in LOADS:
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:60])
            assert not name.startswith("on"), (tag, name)
    assert "link" not in {tag for tag, _ in page.found}
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    assert "//" not in re.sub(r"data:[^\"]*", "", text).replace("https://", "//!").split("<body>")[0].replace(
        "<!--", ""
    )


def test_the_policy_names_the_one_script(page, text):
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(m["content"] for m in page.all("meta") if "content" in m and "default-src" in m["content"])
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_pictures_and_figures_say_what_they_show(page):
    assert len(page.all("img")) > 20
    assert all(img["alt"].strip() for img in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    ranges = [i for i in page.all("input") if i["type"] == "range"]
    assert len(ranges) == 5 and all(r["aria-label"] for r in ranges)
    assert all(th.get("scope") for th in page.all("th"))


def test_every_number_in_a_table_names_its_record(page):
    cells = [attrs for _, attrs in page.found if attrs.get("class", "").split()[:1] == ["n"]]
    assert len(cells) > 150
    assert all(attrs["title"] for attrs in cells)
    keyed = [attrs["data-key"] for attrs in cells if "data-key" in attrs]
    assert any(key == f"{fake_run.RECIPE}|unet|clean||||iou.pooled|water" for key in keyed)
    assert len(keyed) > 0.9 * len(cells)


def test_the_first_words_are_a_plain_sentence(page):
    words = " ".join("".join(page.words).split())
    assert "On 5 places never seen in training, the U-Net finds" in words
    assert "An adversary who may change each band of each pixel by up to 1 % reflectance takes it down to" in words
    assert "Run the attack longer" in words
    assert "changed 20 % of the pixels (20 % asked for), it reaches" in words
    assert re.search(
        r"Over the whole simulated scene it maps [\d.]+ km² of water, where [\d.]+ km² is the known truth",
        words,
    )
    assert f"seawall report runs/{fake_run.RECIPE}" in words


def test_the_same_folder_gives_the_same_bytes(run, text, tmp_path):
    again = tmp_path / run.name
    shutil.copytree(run, again)
    (again / "report.html").unlink()
    assert write_report(again).read_text(encoding="utf-8") == text
    assert len(text) < 6_000_000


def test_names_made_of_markup_stay_text(tmp_path):
    run = fake_run.make_run(tmp_path, side=24, chips_per_place=2, hostile=True)
    recipe = (run / "recipe.toml").read_text().replace("Surface water", "</title><script>alert(3)</script>")
    (run / "recipe.toml").write_text(recipe)
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for _, attrs in page.found for name in attrs)
    assert all(img["src"].startswith("data:") for img in page.all("img"))
    assert fake_run.HOSTILE in "".join(page.words)


def test_many_large_examples_keep_the_page_small(tmp_path, monkeypatch):
    monkeypatch.setattr("seawall.report.images.MAX_PICTURE_BYTES", 300_000)
    run = fake_run.make_run(tmp_path, side=160, chips_per_place=1)
    for end in ("npz", "json"):
        shutil.copy(run / "examples" / f"00.{end}", run / "examples" / f"copy.{end}")
    text = write_report(run).read_text(encoding="utf-8")
    assert text.count("data:image/png") < 60
    assert "more examples in the run folder" in text
    assert len(text) < 1_500_000


def test_every_table_has_a_caption(page, text):
    assert len(page.all("caption")) == len(page.all("table")) > 12
    assert all(
        f'<caption class="hidden">{title}' in text for title in re.findall(r'role="region" aria-label="([^"]+)"', text)
    )


def test_a_wide_table_says_that_it_goes_on(text):
    tables = re.findall(r"(<p class=\"sideways\".*?</p>\s*)?<div class=\"scroll.*?</table>", text, re.DOTALL)
    columns = [len(re.findall(r'<th scope="col"', part)) for part in re.findall(r"<thead>.*?</thead>", text, re.DOTALL)]
    assert [bool(hint) for hint in tables] == [n > 3 for n in columns] and any(n > 3 for n in columns)


def test_flags_and_notes_look_different(page, text):
    assert (
        'id="flag-acquisition-time-unknown" class="notes"' in text
        and 'id="flag-more-steps-gain" class="warnings"' in text
    )
    note = text.split('id="flag-acquisition-time-unknown"')[1].split("</div>")[0]
    assert "quote" not in note and "⚑" not in note
    scene = text.split('<section id="scene"')[1].split("</section>")[0]
    assert "⚑" not in scene


def test_no_report_is_called_the_report(text):
    words = re.sub(r"<[^>]*>", " ", text.split('<section id="scores"')[1].split('<section id="published"')[0])
    assert "The report" not in words and "report’s convention" not in words and "SRIP" in words


def test_pictures_of_numbers_have_a_scale(text):
    scene = text.split('<section id="scene"')[1].split("</section>")[0]
    chips = text.split('<section id="robustness"')[1].split("</section>")[0]
    assert scene.count('class="ramp"') == 2 and "probability of water" in scene
    assert chips.count('class="ramp"') == 4
    assert "−1\u202f%" in chips and "+1\u202f% reflectance" in chips


RECIPE = """
name = "tiny"
seed = 3
examples = 1

[data]
count = 8
size = 64
bands = ["B03", "B04", "B08", "B11"]

[split]
val = 0.25
test = 0.25

[model]
name = "unet"
settings = {width = 4, depth = 2}

[training.settings]
epochs = 1
steps_per_epoch = 2
patch = 32
batch = 4

[[baselines]]
name = "threshold"
settings = {index = "mndwi"}

[[attacks]]
name = "pgd"
settings = {steps = 2}
threats = ["linf 1% reflectance", "linf 2x noise"]

[[attacks]]
name = "pgd"
called = "pgd, one band"
settings = {steps = 2}
threats = ["linf 1% reflectance bands=each"]

[[corruptions]]
name = "haze"
severities = [0.5, 1.0]

[[noises]]
name = "erode"
rates = [0.3]

[scene]
size = 128
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A real run, as small as it gets; the first worker makes it, and all of them only read it."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "real"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "printed.txt").exists():
            (home / "r.toml").write_text(RECIPE)
            done = cli("run", home / "r.toml", "--out", home / "runs")
            assert done.code == 0, done.err
            (home / "printed.txt").write_text(done.out)
    return next(path for path in (home / "runs").iterdir() if path.name != "chips")


def keys(tree, depth=2):
    """Return the keys of an object, and of the objects in it."""
    if not isinstance(tree, dict) or not depth:
        return set()
    return set(tree) | {f"{key}.{sub}" for key, value in tree.items() for sub in keys(value, depth - 1)}


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return {re.sub(r"\.\d.*|\.none$", "", row["metric"]) for row in rows}, {key for row in rows for key in row}


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_the_made_up_run_holds_nothing_that_a_real_one_does_not(run, real):
    assert keys(tomllib.loads((run / "recipe.toml").read_text())) <= keys(
        tomllib.loads((real / "recipe.toml").read_text())
    )
    of = {folder: json.loads((folder / "facts.json").read_text()) for folder in (run, real)}
    assert keys(of[run]["data"], 1) <= keys(of[real]["data"], 1)
    assert keys(next(iter(of[run]["noises"].values())), 1) <= keys(next(iter(of[real]["noises"].values())), 1)
    assert of[run]["seconds"].keys() <= of[real]["seconds"].keys() and of[run].keys() <= of[real].keys()
    assert keys(json.loads((run / "env.json").read_text())) <= keys(json.loads((real / "env.json").read_text()))
    for made, true in zip(metrics(run), metrics(real), strict=True):
        assert made <= true
    history = [json.loads((folder / "models/unet/history.jsonl").read_text().splitlines()[0]) for folder in (run, real)]
    assert history[0].keys() <= history[1].keys()
    examples = [sorted((folder / "examples").glob("*.npz"))[0] for folder in (run, real)]
    assert set(np.load(examples[0]).files) <= set(np.load(examples[1]).files)
    assert keys(json.loads(examples[0].with_suffix(".json").read_text())) <= keys(
        json.loads(examples[1].with_suffix(".json").read_text())
    )
    preview = run / "scenes/reach.preview.npz", real / "scenes/scene.preview.npz"
    assert set(np.load(preview[0]).files) == set(np.load(preview[1]).files)
    scenes = [json.loads(path.read_text()) for path in (run / "scenes/reach.json", real / "scenes/scene.json")]
    assert scenes[0].keys() == scenes[1].keys() and scenes[0]["result"].keys() == scenes[1]["result"].keys()
    renamed = {
        name.replace("reach", "scene").replace("-480", "-128") for name in files(run) if name.startswith("scenes/")
    }
    assert renamed <= files(real)
    truth = [
        json.loads(path.read_text()) for path in (run / "scenes/reach.truth.json", real / "scenes/scene.truth.json")
    ]
    assert truth[0].keys() == truth[1].keys()


@pytest.mark.slow
def test_every_key_that_the_page_reads_is_in_a_real_run(real):
    facts = json.loads((real / "facts.json").read_text())
    assert (
        set(RunFacts.model_fields) - {"hardening"} <= facts.keys()
        and set(DataFacts.model_fields) <= facts["data"].keys()
    )
    assert set(NoiseFacts.model_fields) <= next(iter(facts["noises"].values())).keys()
    scene = json.loads((real / "scenes/scene.json").read_text())
    assert (
        set(MappedScene.model_fields) - {"truth"} <= scene.keys()
        and set(SceneFacts.model_fields) <= scene["result"].keys()
    )
    assert "datetime" in scene["properties"]
    examples = [json.loads(path.read_text()) for path in (real / "examples").glob("*.json")]
    corrupted = next(example for example in examples if example["method"] == "haze")
    attacked = next(example for example in examples if example["method"] != "haze")
    assert set(ExampleFacts.model_fields) <= corrupted.keys()
    assert set(ExampleFacts.model_fields) - set(CorruptionFacts._fields) <= attacked.keys()
    epoch = json.loads((real / "models/unet/history.jsonl").read_text().splitlines()[0])
    assert set(EpochFacts.model_fields) - {"model", "scores"} <= epoch.keys() and "val.iou.water" in epoch
    assert tomllib.loads((real / "recipe.toml").read_text()).keys() <= Recipe.model_fields.keys()
    assert set(SceneTruth.model_fields) == json.loads((real / "scenes/scene.truth.json").read_text()).keys()


@pytest.mark.slow
def test_a_real_run_feeds_every_section(real):
    text = (real / "report.html").read_text(encoding="utf-8")
    held = Page(text)
    assert held.open == []
    assert [s["id"] for s in held.all("section")] == [
        "run", "data", "learning", "scores", "robustness", "corruptions", "labels", "calibration", "scene", "flags", "provenance",
    ]  # fmt: skip
    words = "".join(held.words)
    assert (
        "Under 1 natural perturbation the U-Net loses" in words
        and "haze: added aerosol optical depth at 550 nm" in words
    )
    assert "satellite image" in words and "Which band the adversary needs: U-Net" in words
    assert re.search(r"[\d.]+ to [\d.]+\u202f% reflectance \(per band\)", words)
    assert "Not readable." not in words
    assert "is the known truth" in words and "the map against the known truth" in words


@pytest.mark.slow
def test_the_printed_table_has_the_flags_of_the_page(real):
    printed = (real.parents[1] / "printed.txt").read_text()
    head = next(line for line in printed.splitlines() if line.startswith("model"))
    assert head.split()[-1] == "flags"
    rows = [json.loads(line) for line in (real / "records.jsonl").read_text().splitlines()]
    carried = {(row["model"], row["threat"], flag) for row in rows for flag in row["flags"]}
    assert carried, "the smallest network should be flagged for something"
    for model, threat, flag in carried:
        assert any(line.startswith(model) and threat in line and flag in line for line in printed.splitlines()), (
            model,
            flag,
        )

"""The page as a whole, of a made-up run: offline, whole, deterministic, and safe from what the run folder says."""

import hashlib
import importlib.util
import re
import shutil
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import pytest

from seawall.report import write_report

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
        "run", "data", "learning", "scores", "robustness", "natural", "labels", "calibration", "scene", "published",
        "doubts", "provenance",
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
    monkeypatch.setattr("seawall.report.swipes.BUDGET", 300_000)
    run = fake_run.make_run(tmp_path, side=160, chips_per_place=1)
    for end in ("npz", "json"):
        shutil.copy(run / "examples" / f"00.{end}", run / "examples" / f"copy.{end}")
    text = write_report(run).read_text(encoding="utf-8")
    assert text.count("data:image/png") < 60
    assert "more examples in the run folder" in text
    assert len(text) < 1_500_000

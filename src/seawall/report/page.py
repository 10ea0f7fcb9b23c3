"""The page itself: sections that have something to say, rendered into one file with everything inside."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from seawall.io import write_atomic
from seawall.report.adversary import robustness
from seawall.report.blocks import Section
from seawall.report.book import Book
from seawall.report.faults import calibration, label_noise
from seawall.report.flags import explain
from seawall.report.folder import Run, read_run
from seawall.report.notes import doubts, footer, provenance
from seawall.report.scenes import scene_maps
from seawall.report.scores import clean_scores, side_by_side
from seawall.report.setting import data_and_split, learning, what_was_run
from seawall.report.swipes import chips
from seawall.report.told import summary, tiles


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, whole or not at all.

    Args:
        run: A run folder; only its files are read, and the same files give the same bytes.

    Returns:
        The path of the page.

    Raises:
        RunError: There is no run there, or its recipe or records are broken.
    """
    held = read_run(run)
    path = held.path / "report.html"
    write_atomic(path, render(held))
    return path


def render(run: Run) -> str:
    """Return the page's HTML."""
    book = Book(run.records, run.klass, run.facts.noises)
    environment = Environment(
        loader=PackageLoader("seawall.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["explain"] = explain
    sections, script = _sections(run, book), _beside("page.js")
    return environment.get_template("page.html").render(
        title=(run.recipe.title or run.recipe.name) if run.recipe else run.id,
        id=run.id,
        summary=summary(run, book),
        tiles=tiles(run, book),
        sections=sections,
        footer=footer(run),
        css=Markup(_beside("page.css")),
        js=Markup(script),
        js_digest="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _sections(run: Run, book: Book) -> list[Section]:
    faults = list(run.faults)
    attacked, examples = robustness(run, book), chips(run, book, faults)
    if examples:
        lead = attacked.lead if attacked else "Chips before and after an attack."
        blocks = attacked.blocks if attacked else ()
        attacked = Section("robustness", "Under attack", lead, (*blocks[:1], *examples, *blocks[1:]))
    scene = scene_maps(run, faults)
    found = (
        clean_scores(run, book), attacked, label_noise(book), calibration(book), scene,
        side_by_side(run, book), what_was_run(run), data_and_split(run), learning(run, book), doubts(run, book, faults), provenance(run, book),
    )  # fmt: skip
    order = (
        "run",
        "data",
        "learning",
        "scores",
        "robustness",
        "labels",
        "calibration",
        "scene",
        "published",
        "doubts",
        "provenance",
    )
    by_id = {section.id: section for section in found if section and section.blocks}
    return [by_id[id_] for id_ in order if id_ in by_id]


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")

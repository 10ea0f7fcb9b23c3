"""The page itself: sections that have something to say, rendered into one file with everything inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from seawall.io import write_atomic
from seawall.report.elements import Block, Code, Doubts, Facts, Points, Prose, Section
from seawall.report.flags import Flag, explain
from seawall.report.formatting import count, listed, many
from seawall.report.image_pairs import chips
from seawall.report.label_noise import calibration, label_noise
from seawall.report.record_index import Book, said
from seawall.report.robustness import robustness
from seawall.report.run_reader import Run, read_run
from seawall.report.run_section import data_and_split, learning, what_was_run
from seawall.report.scenes import scene_maps, title
from seawall.report.scores import clean_scores, side_by_side
from seawall.report.summary import summary, tiles


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


def doubts(run: Run, book: Book, faults: Sequence[str]) -> Section:
    """List every flag with its meaning and the next step, files that could not be read, and the page's conventions."""
    held: dict[Flag, dict[str, None]] = {}
    for (model, method, threat), flags in book.flagged.items():
        where = " ".join(part for part in (book.said(model), said(method), book.budget(threat).spoken) if part)
        for flag in flags:
            held.setdefault(explain(flag), {})[where] = None
    for text, flagged in run.data.flags.items():
        held.setdefault(explain(text), {})[many(flagged, "chip")] = None
    for name, scene in run.scenes.items():
        for flag in scene.result.flags:
            held.setdefault(explain(flag), {})[title(run, name, scene)] = None
    blocks: list[Block] = []
    if held:
        order = sorted(held, key=lambda flag: (flag.weight, flag.id))
        blocks.append(Doubts(tuple((flag, listed(list(held[flag]), most=4)) for flag in order)))
    else:
        blocks.append(Prose((("No number on this page carries a flag.",),)))
    if faults:
        blocks.append(Points(tuple(("Not readable.", fault) for fault in faults)))
    blocks.append(Points(CONVENTIONS))
    lead = "A flag (⚑) says that a number may be kinder to the model than the truth, and what to do about it; a note (i) only informs."
    return Section("doubts", "Flags and method notes", lead, blocks)


CONVENTIONS = (
    ("Only pixels that count.", "A pixel without a label, or one that the sensor did not see, is in no figure; attacks leave it alone."),
    ("An en dash is not a zero.", "It stands where a figure is undefined or was not measured; resting the pointer on it says which."),
    ("Intervals.", "95 % percentile intervals from 1000 redraws of whole places with replacement. With few places they are wide, and they should be."),
    ("Physical units.", "Budgets are in the data’s own unit, before any normalization. 1 % reflectance is 0.01 of what a white surface reflects."),
    ("Worst case.", "Chip by chip, the attack that hurts most, doing nothing included. For the pooled IoU the choice is made for all chips together and is exact."),
)  # fmt: skip


def provenance(run: Run, book: Book) -> Section:
    """Say which recipe, version and machine made the page, and how to make it again."""
    env = {str(k): _said(v) for k, v in run.env.items()}
    items = [
        ("Recipe id", run.id),
        ("Rows", f"{count(len(book.given))} in records.jsonl, over {many(len(book.setups), 'setup')}"),
        ("seawall", run.facts.version or env.pop("seawall", "")),
        *((key.replace("_", " "), value) for key, value in sorted(env.items()) if value),
    ]
    blocks: list[Block] = [Facts(tuple((term, what) for term, what in items if what))]
    if run.toml.strip():
        blocks.append(Code("The recipe, whole", run.toml.strip()))
    blocks.append(Code("Run it again", reproduce(run)))
    lead = "This page is made from the run folder alone: the same folder gives the same bytes. Every number carries the key of its record in a data-key attribute."
    return Section("provenance", "Where this page comes from", lead, blocks)


def reproduce(run: Run) -> str:
    """Return the commands that make the run and the page again."""
    name = run.recipe.name if run.recipe else run.path.name
    return f"seawall run runs/{run.id}/recipe.toml   # recipe {name}: the same id, the same result\nseawall report runs/{run.id}"


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_said(v)}" for k, v in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return "" if value is None else str(value)


def footer(run: Run) -> tuple[str, str]:
    """Return the recipe id and the command for the footer."""
    version = run.facts.version
    return (f"Recipe {run.id}" + (f", seawall {version}" if version else ""), f"seawall report runs/{run.id}")

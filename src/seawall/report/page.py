"""The HTML page: its sections, rendered into one file that loads nothing from outside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from seawall import __version__
from seawall.errors import RunError
from seawall.io import write_atomic
from seawall.report.calibration import calibration_section
from seawall.report.calibration_facts import CalibrationPageFacts
from seawall.report.corruptions import corruption_section
from seawall.report.cost import cost_section
from seawall.report.elements import (
    BulletList,
    CodeBlock,
    DefinitionList,
    FlagList,
    PageBlock,
    Paragraphs,
    Section,
    Sentence,
)
from seawall.report.flags import Flag, explain
from seawall.report.formatting import count_text, join_words, plural
from seawall.report.hardening import hardening_section
from seawall.report.images import example_chips
from seawall.report.keyed import keyed_section
from seawall.report.label_noise import label_noise_section
from seawall.report.published_tables import published_comparison
from seawall.report.record_index import RecordIndex, display_name
from seawall.report.robustness import robustness_section
from seawall.report.rounds import rounds_section
from seawall.report.run_facts import SENSITIVITY_FIGURES, MappedScene
from seawall.report.run_reader import RunFolder, read_run, read_sensitivity
from seawall.report.run_section import data_and_split, learning_curves, run_settings
from seawall.report.scenes import scene_section, scene_title
from seawall.report.scores import clean_scores
from seawall.report.sensitivity import sensitivity_section
from seawall.report.summary import KeyNumber, key_numbers, summary_sentences
from seawall.report.trust import calibration_page, map_page
from seawall.report.weight_faults import weight_fault_section


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder, complete or not at all.

    Args:
        run: A run folder; only its files are read, and the same files give the same bytes.

    Returns:
        The path of the page.

    Raises:
        RunError: The folder holds no run, or its recipe or records cannot be read.
    """
    folder = read_run(run)
    path = folder.path / "report.html"
    write_atomic(path, render_page(folder))
    return path


def write_sensitivity_page(folder: Path, name: str, source: str) -> Path:
    """Write `sensitivity.html` from the `sensitivity.json` in a folder and return its path.

    Args:
        folder: Holds `sensitivity.json`; the page is written beside it.
        name: Name of the network.
        source: A sentence that names the weights and the chips.

    Raises:
        RunError: The folder holds no curves that can be read.
    """
    unreadable: list[str] = []
    section = sensitivity_section(read_sensitivity(folder / SENSITIVITY_FIGURES, unreadable))
    if section is None:
        raise RunError(
            f"{folder}: expected {SENSITIVITY_FIGURES} with curves, got {unreadable or 'none'}; measure again"
        )
    path = folder / "sensitivity.html"
    write_atomic(
        path,
        _render(f"Sensitivity of {name}", SENSITIVITY_FIGURES, [section], "seawall sensitivity", summary=[(source,)]),
    )
    return path


def write_calibration_page(facts: CalibrationPageFacts, path: Path) -> Path:
    """Write the page of a calibration and return its path."""
    write_atomic(
        path, _render(facts.title, path.name, calibration_page(facts), "seawall calibrate", kind="calibration")
    )
    return path


def write_map_page(item: Path, preview: Path | None) -> Path:
    """Write the page of a mapped scene beside its JSON and return its path.

    Args:
        item: The JSON of the map, beside its layers.
        preview: Picture of the scene, as `seawall.geo.preview.write_preview` writes it; None without one.

    Raises:
        RunError: The JSON or a layer cannot be read.
    """
    try:
        scene = MappedScene.model_validate_json(item.read_text(encoding="utf-8"))
        sections = map_page(item.parent, item.stem, scene, preview)
    except (OSError, ValueError) as bad:
        raise RunError(f"{item}: expected a map with its layers, got {bad}; map the scene again") from bad
    path = item.with_suffix(".html")
    title = f"{scene.result.klass.capitalize()} on {scene.result.source}"
    write_atomic(path, _render(title, item.stem, sections, "seawall predict", kind="map"))
    return path


def render_page(run: RunFolder) -> str:
    """Return the page's HTML."""
    index = RecordIndex(
        run.records,
        run.klass,
        run.facts.noises,
        run.facts.uncertainty,
        run.facts.corruption_baseline,
        run.facts.supervision,
    )
    title = (run.recipe.title or run.recipe.name) if run.recipe else run.id
    return _render(
        title, run.id, _page_sections(run, index), *page_footer(run)[::-1], summary_sentences(run, index), key_numbers(run, index)
    )  # fmt: skip


def _render(
    title: str, id_: str, sections: Sequence[Section], command: str, made_by: str = "", summary: Sequence[Sentence] = (),
    tiles: Sequence[KeyNumber] = (), kind: str = "robustness report",
) -> str:  # fmt: skip
    environment = Environment(
        loader=PackageLoader("seawall.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["explain"] = explain
    script = _read_asset("page.js")
    return environment.get_template("page.html").render(
        title=title,
        kind=kind,
        id=id_,
        summary=summary,
        key_numbers=tiles,
        sections=sections,
        footer=(made_by or f"seawall {__version__}", command),
        css=Markup(_read_asset("page.css")),
        js=Markup(script),
        js_digest="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _page_sections(run: RunFolder, index: RecordIndex) -> list[Section]:
    unreadable = list(run.unreadable)
    attacked = _with_examples(robustness_section(run, index), example_chips(run, index, unreadable))
    corrupted = _with_examples(corruption_section(index), example_chips(run, index, unreadable, corrupted=True))
    scene = scene_section(run, unreadable)
    found = (
        clean_scores(run, index), cost_section(run, index), rounds_section(run, index), hardening_section(run, index), keyed_section(run, index), attacked, corrupted, label_noise_section(index),
        calibration_section(index), sensitivity_section(run.sensitivity), weight_fault_section(run, index), scene,
        published_comparison(run, index), run_settings(run), data_and_split(run), learning_curves(run, index), flags_section(run, index, unreadable), provenance_section(run, index),
    )  # fmt: skip
    order = (
        "run",
        "data",
        "learning",
        "scores",
        "cost",
        "rounds",
        "hardening",
        "keyed",
        "robustness",
        "corruptions",
        "sensitivity",
        "weight-faults",
        "labels",
        "calibration",
        "scene",
        "published",
        "flags",
        "provenance",
    )
    by_id = {section.id: section for section in found if section and section.blocks}
    return [by_id[id_] for id_ in order if id_ in by_id]


def _with_examples(section: Section | None, examples: Sequence[PageBlock]) -> Section | None:
    """Return the section with example chips; without a section, the examples under a title of their own."""
    if section is None:
        return (
            Section("robustness", "Under attack", "Chips before and after an attack.", examples) if examples else None
        )
    first = 2 if section.id == "corruptions" else 1
    return replace(section, blocks=(*section.blocks[:first], *examples, *section.blocks[first:]))


def _read_asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def flags_section(run: RunFolder, index: RecordIndex, unreadable: Sequence[str]) -> Section:
    """List every flag with its meaning and what to do, the files that could not be read, and the page's conventions."""
    places: dict[Flag, dict[str, None]] = {}
    for (model, method, threat), flags in index.flagged.items():
        where = " ".join(
            part for part in (index.display_name(model), display_name(method), index.threat(threat).budget) if part
        )
        for flag in flags:
            places.setdefault(explain(flag), {})[where] = None
    for text, flagged in run.data.flags.items():
        places.setdefault(explain(text), {})[plural(flagged, "chip")] = None
    for name, scene in run.scenes.items():
        for flag in scene.result.flags:
            places.setdefault(explain(flag), {})[scene_title(run, name, scene)] = None
    blocks: list[PageBlock] = []
    if places:
        order = sorted(places, key=lambda flag: (flag.weight == "note", flag.id))
        blocks.append(FlagList(tuple((flag, join_words(list(places[flag]), most=4)) for flag in order)))
    else:
        blocks.append(Paragraphs((("No number on this page carries a flag.",),)))
    if unreadable:
        blocks.append(BulletList(tuple(("Not readable.", fault) for fault in unreadable)))
    blocks.append(BulletList(PAGE_CONVENTIONS))
    lead = "A flag (⚑) says that a number may be kinder to the model than the truth, and what to do about it; a note (i) only informs."
    return Section("flags", "Flags and method notes", lead, blocks)


PAGE_CONVENTIONS = (
    ("Only pixels that count.", "A pixel without a label, or one that the sensor did not see, is in no figure; attacks leave it alone."),
    ("An en dash is not a zero.", "It stands where a figure is undefined or was not measured; resting the pointer on it says which."),
    ("Intervals.", "95 % percentile intervals from 1000 redraws of whole places with replacement. With few places they are wide, and they should be."),
    ("Physical units.", "Budgets are in the data’s own unit, before any normalization. 1 % reflectance is 0.01 of what a white surface reflects."),
    ("Worst case.", "Chip by chip, the attack that hurts most, doing nothing included. For the pooled IoU the choice is made for all chips together and is exact."),
)  # fmt: skip


def provenance_section(run: RunFolder, index: RecordIndex) -> Section:
    """List recipe, version and machine of the run, and the commands that make the page again."""
    env = {str(k): _env_text(v) for k, v in run.env.items()}
    items = [
        ("Recipe id", run.id),
        ("Rows", f"{count_text(len(index.measured))} in records.jsonl, over {plural(len(index.setups), 'setup')}"),
        ("seawall", run.facts.version or env.pop("seawall", "")),
        *((key.replace("_", " "), value) for key, value in sorted(env.items()) if value),
    ]
    blocks: list[PageBlock] = [DefinitionList(tuple((term, what) for term, what in items if what))]
    if run.toml.strip():
        blocks.append(CodeBlock("The recipe, whole", run.toml.strip()))
    blocks.append(CodeBlock("Run it again", rerun_commands(run)))
    lead = "This page is made from the run folder alone: the same folder gives the same bytes. Every number carries the key of its record in a data-key attribute."
    return Section("provenance", "Where this page comes from", lead, blocks)


def rerun_commands(run: RunFolder) -> str:
    """Return the commands that make the run and the page again."""
    name = run.recipe.name if run.recipe else run.path.name
    return f"seawall run runs/{run.id}/recipe.toml   # recipe {name}: the same id, the same result\nseawall report runs/{run.id}"


def _env_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_env_text(v)}" for k, v in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(map(_env_text, value))
    return "" if value is None else str(value)


def page_footer(run: RunFolder) -> tuple[str, str]:
    """Return the recipe id and the command for the footer."""
    version = run.facts.version
    return (f"Recipe {run.id}" + (f", seawall {version}" if version else ""), f"seawall report runs/{run.id}")

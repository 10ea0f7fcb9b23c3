"""The page's end: doubts with what to do about them, how to read the figures, and where each came from."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.report.blocks import Block, Code, Doubts, Facts, Points, Prose, Section
from seawall.report.book import Book, said
from seawall.report.flags import Flag, explain
from seawall.report.folder import Run
from seawall.report.scenes import title
from seawall.report.words import count, listed, many


def doubts(run: Run, book: Book, faults: Sequence[str]) -> Section:
    """List every flag with its meaning and the next step, files that could not be read, and the page's conventions."""
    held: dict[Flag, dict[str, None]] = {}
    for (model, method, threat), flags in book.flagged.items():
        where = " ".join(part for part in (book.said(model), said(method), book.budget(threat).spoken) if part)
        for flag in flags:
            held.setdefault(explain(flag), {})[where] = None
    for text, chips in run.data.flags.items():
        held.setdefault(explain(text), {})[many(chips, "chip")] = None
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

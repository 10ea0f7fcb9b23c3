"""What was run, on which data, and how training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seawall.recipe import Method, Noise, Threats
from seawall.report.charts import Point, Row, Series, bars, lines, palette
from seawall.report.elements import Block, Chart, Facts, Points, Prose, Section, Table
from seawall.report.formatting import count, listed, many, percent, plain, ratio, seconds, sizes
from seawall.report.record_index import Book, Corrupted, said
from seawall.report.run_reader import DataFacts, Run, finite
from seawall.report.scores import labels_of
from seawall.report.svg import Axis, nice

PARTS = ("train", "val", "test")
STAGES = ("chips", "training", "evaluation", "scene")
CALLED = {"train": "training", "val": "validation", "test": "test"}


def what_was_run(run: Run) -> Section:
    """Say what the recipe asked for and how long it took."""
    recipe = run.recipe
    items: list[tuple[str, str]] = []
    if recipe is not None:
        items = [
            ("Recipe", recipe.name),
            ("Network", _method(recipe.model)),
            ("Objective", _method(recipe.training.objective)),
            ("Training", _settings(recipe.training.settings)),
            ("Compared with", listed([_method(m) for m in recipe.baselines])),
            ("Attacks", "; ".join(map(_attack, recipe.attacks))),
            ("Suites", "; ".join(map(_attack, recipe.suites))),
            ("Label noise, asked for", "; ".join(map(_noise, recipe.noises))),
            ("Label noise, reached", "; ".join(Corrupted.of(m, facts).label for m, facts in run.facts.noises.items())),
            ("Seed", str(recipe.seed)),
        ]
    blocks: list[Block] = [Facts(tuple((term, what) for term, what in items if what))]
    spent = {k: v for k, v in run.facts.seconds.items() if finite(v)}
    if spent:
        spent = {k: spent[k] for k in sorted(spent, key=lambda k: (STAGES.index(k) if k in STAGES else len(STAGES), k))}
        rows = [Row(stage, s, kind="c0", words=seconds(s)) for stage, s in spent.items()]
        axis = Axis("seconds", 0, max(spent.values()) or 1)
        drawing = bars(rows, axis, "Seconds per stage of the run")
        blocks.append(Chart(f"Time per stage: {seconds(sum(spent.values()))} in all", drawing))
    note = recipe.note if recipe else ""
    lead = note or "The settings that decide the result; the whole recipe is at the end of the page."
    return Section("run", "What was run", lead, blocks if items or spent else ())


def data_and_split(run: Run) -> Section | None:
    """Say which chips there are, how they were split, and whether places are kept apart."""
    data = run.data
    if not data.chips:
        return None
    items = [
        ("Chips", count(data.chips)),
        ("Labels", labels_of(run)),
        ("Bands", ", ".join(data.bands)),
        ("Unit", said(data.unit)),
        ("Ground sampling distance", f"{plain(data.gsd_m)} m" if data.gsd_m else ""),
        ("Classes", listed(run.classes)),
        ("Source", run.recipe.data.source if run.recipe else ""),
        ("Split", data.how),
        ("License of the data", data.licence),
    ]
    blocks: list[Block] = [Facts(tuple((term, what) for term, what in items if what))]
    groups = {part: list(data.groups.get(part, ())) for part in PARTS}
    if any(groups.values()):
        blocks += [_split_table(data, groups), _apart(groups)]
    if data.warnings:
        blocks.append(Points(tuple(("Note.", text) for text in data.warnings)))
    return Section(
        "data", "Data and split", "Where the pixels come from, and which places the model never saw.", blocks
    )


def _split_table(data: DataFacts, groups: Mapping[str, list[str]]) -> Table:
    rows = tuple(
        (
            CALLED[part],
            count(data.chips_per_part.get(part)),
            count(len(groups[part])),
            percent(data.water_share.get(part)),
            listed(groups[part], most=6),
        )
        for part in PARTS
        if groups[part] or data.chips_per_part.get(part)
    )
    head = (
        ("Part", ""),
        ("Chips", "images"),
        ("Places", "groups of chips that stay together: an event or a location"),
        ("Water", "share of labelled pixels that are water"),
        ("Names", ""),
    )
    return Table("How the chips were split", head, rows)


def _apart(groups: Mapping[str, list[str]]) -> Prose:
    shared = sorted(set(groups["test"]) & set(groups["train"] + groups["val"]))
    if shared:
        return Prose(((f"Warning: {many(len(shared), 'place')} in the test part can also be found in training ({listed(shared, most=6)}). "
                       "The figures below are too good; split by place and run again.",),))  # fmt: skip
    return Prose((("No place is in two parts: every test figure is about places that training never saw.",),))


def learning(run: Run, book: Book) -> Section | None:
    """Draw loss and validation curves per epoch; the first epoch is 1."""
    models = list(dict.fromkeys(row.model for row in run.history))
    if not models:
        return None
    last = max(row.epoch for row in run.history) + 1
    x = Axis("epoch", 1, max(last, 2), "{:g}".format, tuple(range(1, last + 1)) if last <= 12 else ())
    blocks: list[Block] = []
    falls = _curves(run, book, models, "")
    if tops := [p.y for one in falls for p in one.points if p.y is not None]:
        y = Axis("training loss", min(0.0, *tops), max(tops) * 1.05 or 1, lambda v: f"{v:.3g}")
        blocks.append(Chart("Loss on the training part", lines(falls, x, y, "Training loss per epoch", height=220)))
    rises = _curves(run, book, models, f"val.iou.{run.klass}")
    if scores := [p.y for one in rises for p in one.points if p.y is not None]:
        y = _fitted(f"{run.klass} IoU on the validation part", scores)
        note = "The weights of the epoch that the training marked as its best are the ones that are tested."
        if y.low > 0 or y.high < 1:
            note += " The axis shows the range of the scores, not 0 to 1."
        blocks.append(
            Chart("Score on the validation part", lines(rises, x, y, "Validation IoU per epoch", height=220), note)
        )
    lead = f"{many(len(models), 'network')} trained from scratch."
    return Section("learning", "Learning curves", lead, blocks) if blocks else None


def _fitted(name: str, values: Sequence[float]) -> Axis:
    """Return an axis of ratios from the round value below the smallest to the one above the largest."""
    low, high = min(values), max(values)
    room = max(high - low, 0.05)
    ticks = nice(max(0.0, low - room / 2), min(1.0, high + room / 2), 5)
    step = ticks[1] - ticks[0]
    first = next((t for t in reversed(ticks) if t <= low), max(0.0, ticks[0] - step))
    last = next((t for t in ticks if t >= high), min(1.0, ticks[-1] + step))
    return Axis(name, first, last, lambda v: f"{v:.2f}".removesuffix("0") if step >= 0.1 else f"{v:.2f}")


def _curves(run: Run, book: Book, models: Sequence[str], key: str) -> list[Series]:
    """Return one curve per network: of its loss, or of a validation figure."""
    series = []
    for i, model in enumerate(models):
        points = []
        for row in sorted((row for row in run.history if row.model == model), key=lambda row: row.epoch):
            value = finite(row.scores.get(key) if key else row.loss)
            if value is not None:
                best = ", the best" if row.best and key else ""
                title = f"{book.said(model)}, epoch {row.epoch + 1}: {ratio(value, 3)}{best}"
                points.append(Point(row.epoch + 1, value, title=title))
        if points:
            series.append(Series(_brief(book, model), tuple(points), palette(i), -1 if len(points) > 40 else i))
    return series


def _brief(book: Book, model: str) -> str:
    """Name a network within a figure of its family: what its labels suffered, where they did."""
    return Corrupted.of(model, book.noises[model]).label if model in book.noises else book.said(model)


def _method(method: Method) -> str:
    settings = _settings(method.settings)
    return said(method.name) + (f" ({settings})" if settings else "")


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if not isinstance(value, dict))


def _attack(attack: Threats) -> str:
    name = _method(Method(name=attack.name, settings=attack.settings))
    return f"{attack.called or name} within {sizes(attack.threats)}"


def _noise(noise: Noise) -> str:
    rates = [percent(r) if r <= 1 else plain(r) for r in noise.rates]
    way = f", by {_method(noise.objective)}" if noise.objective else ""
    return f"{_method(Method(name=noise.name, settings=noise.settings))} at {listed(rates)}{way}"

"""The sections on the recipe's settings, the data and its split, and the learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seawall.recipe.sections import AttackSection, MethodSection, NoiseSection, TrainingSection
from seawall.records import MEMBER_MARK, finite_or_none
from seawall.report.charts import ChartRow, CurvePoint, Series, bar_chart, line_chart, series_color
from seawall.report.elements import BulletList, Chart, DefinitionList, PageBlock, Paragraphs, Section, Table
from seawall.report.formatting import (
    count_text,
    duration_text,
    join_words,
    number_text,
    percent_text,
    plural,
    ratio_text,
    threat_sizes_text,
)
from seawall.report.record_index import RecordIndex, display_name
from seawall.report.run_facts import DataFacts
from seawall.report.run_reader import RunFolder
from seawall.report.svg import ChartAxis, round_ticks
from seawall.split_record import SPLIT_PARTS

STAGE_ORDER = ("chips", "training", "evaluation", "weight faults", "scene")
PART_NAMES = {"train": "training", "val": "validation", "test": "test"}


def run_settings(run: RunFolder) -> Section:
    """List the settings of the recipe and the seconds of each stage."""
    recipe = run.recipe
    items: list[tuple[str, str]] = []
    if recipe is not None:
        items = [
            ("Recipe", recipe.name),
            ("Network", _method_text(recipe.model)),
            ("Objective", _method_text(recipe.training.objective) if run.trained else ""),
            ("Known labels, asked for", ", then ".join(map(_method_text, recipe.training.supervision))),
            ("Known labels, reached", "; ".join(dict.fromkeys(one.text for one in run.facts.supervision.values()))),
            ("Training", _settings_text(recipe.training.settings)),
            ("Pre-training", _pretraining_text(recipe.training)),
            (
                "Patches without labels",
                f"{unlabelled} for each labelled one" if (unlabelled := recipe.training.unlabelled) else "",
            ),
            (
                "Rounds",
                _method_text(MethodSection(**rounds.model_dump())) if (rounds := recipe.training.rounds) else "",
            ),
            (
                "Keyed transform",
                f"{recipe.keyed.transform} ({_settings_text(recipe.keyed.settings)})" if recipe.keyed else "",
            ),
            ("Compared with", join_words([m.called or _method_text(m) for m in recipe.baselines])),
            ("Attacks", "; ".join(map(_attack_text, recipe.attacks))),
            ("Suites", "; ".join(map(_attack_text, recipe.suites))),
            ("Natural perturbations", join_words([c.called or c.name for c in recipe.corruptions])),
            ("Flipped weight bits", join_words([f.called or f.name for f in recipe.faults])),
            ("Label noise, asked for", "; ".join(map(_noise_text, recipe.noises))),
            ("Label noise, reached", "; ".join(noise.label for noise in run.facts.noises.values())),
            ("Seed", str(recipe.seed)),
        ]
    blocks: list[PageBlock] = [DefinitionList(tuple((term, what) for term, what in items if what))]
    spent = {k: v for k, v in run.facts.seconds.items() if finite_or_none(v)}
    if spent:
        spent = {
            k: spent[k]
            for k in sorted(spent, key=lambda k: (STAGE_ORDER.index(k) if k in STAGE_ORDER else len(STAGE_ORDER), k))
        }
        rows = [ChartRow(stage, s, kind="c0", text=duration_text(s)) for stage, s in spent.items()]
        axis = ChartAxis("seconds", 0, max(spent.values()) or 1)
        drawing = bar_chart(rows, axis, "Seconds per stage of the run")
        blocks.append(Chart(f"Time per stage: {duration_text(sum(spent.values()))} in all", drawing))
    note = recipe.note if recipe else ""
    lead = note or "The settings that decide the result; the whole recipe is at the end of the page."
    return Section("run", "What was run", lead, blocks if items or spent else ())


def data_and_split(run: RunFolder) -> Section | None:
    """List the facts of the chips and of their split, and the groups that are in more than one part."""
    data = run.data
    if not data.chips:
        return None
    items = [
        ("Chips", count_text(data.chips)),
        ("Labels", label_source(run)),
        ("Bands", ", ".join(data.bands)),
        ("Unit", display_name(data.unit)),
        ("Ground sampling distance", f"{number_text(data.gsd_m)} m" if data.gsd_m else ""),
        ("Classes", join_words(run.classes)),
        ("Source", run.recipe.data.source if run.recipe else ""),
        ("Split", data.how),
        ("License of the data", data.licence),
    ]
    blocks: list[PageBlock] = [DefinitionList(tuple((term, what) for term, what in items if what))]
    groups = {part: list(data.groups.get(part, ())) for part in SPLIT_PARTS}
    if any(groups.values()):
        blocks += [_split_table(data, groups), _group_overlap(groups)]
    if data.warnings:
        blocks.append(BulletList(tuple(("Note.", text) for text in data.warnings)))
    return Section(
        "data", "Data and split", "Where the pixels come from, and which places the model never saw.", blocks
    )


def label_source(run: RunFolder) -> str:
    """Return the source of a run's chips and of their labels as text, from the recipe."""
    if run.recipe is None:
        return "chips and labels that no recipe names"
    data = run.recipe.data
    simulated = data.source == "simulated"
    truth = {"truth": "with exact truth" if simulated else "with the labels of their source",
             "cover": "with the exact truth of the land cover"}  # fmt: skip
    labels = truth.get(
        data.labels, f"with labels by the rule {data.labels}" + (", not the known truth" if simulated else "")
    )
    return f"{'simulated scenes' if simulated else 'real chips'} {labels}"


def _split_table(data: DataFacts, groups: Mapping[str, list[str]]) -> Table:
    rows = tuple(
        (
            PART_NAMES[part],
            count_text(data.chips_per_part.get(part)),
            count_text(len(groups[part])),
            percent_text(data.water_share.get(part)),
            join_words(groups[part], most=6),
        )
        for part in SPLIT_PARTS
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


def _group_overlap(groups: Mapping[str, list[str]]) -> Paragraphs:
    shared = sorted(set(groups["test"]) & set(groups["train"] + groups["val"]))
    if shared:
        return Paragraphs(((f"Warning: {plural(len(shared), 'place')} in the test part can also be found in training ({join_words(shared, most=6)}). "
                       "The figures below are too good; split by place and run again.",),))  # fmt: skip
    return Paragraphs((("No place is in two parts: every test figure is about places that training never saw.",),))


def learning_curves(run: RunFolder, index: RecordIndex) -> Section | None:
    """Draw loss and validation curves per epoch, without those of an ensemble's further members; the first epoch is 1."""
    trained = list(dict.fromkeys(row.model for row in run.history))
    models = [model for model in trained if MEMBER_MARK not in model]
    if not models:
        return None
    last = max(row.epoch for row in run.history) + 1
    x = ChartAxis("epoch", 1, max(last, 2), "{:g}".format, tuple(range(1, last + 1)) if last <= 12 else ())
    blocks: list[PageBlock] = []
    losses = _history_series(run, index, models, "")
    if values := [p.y for one in losses for p in one.points if p.y is not None]:
        y = ChartAxis("training loss", min(0.0, *values), max(values) * 1.05 or 1, lambda v: f"{v:.3g}")
        blocks.append(
            Chart("Loss on the training part", line_chart(losses, x, y, "Training loss per epoch", height=220))
        )
    scored = _history_series(run, index, models, f"val.iou.{run.klass}")
    if scores := [p.y for one in scored for p in one.points if p.y is not None]:
        y = axis_around(f"{run.klass} IoU on the validation part", scores)
        keep = run.recipe.training.settings.get("keep") if run.recipe else None
        tested = "last epoch" if keep == "last" else "epoch that the training marked as its best"
        note = f"The weights of the {tested} are the ones that are tested."
        if y.low > 0 or y.high < 1:
            note += " The axis shows the range of the scores, not 0 to 1."
        blocks.append(
            Chart(
                "Score on the validation part", line_chart(scored, x, y, "Validation IoU per epoch", height=220), note
            )
        )
    lead = f"{plural(len(trained), 'network')} trained from scratch."
    if further := len(trained) - len(models):
        lead += f" {plural(further, 'of them is a further member', 'of them are further members')} of ensembles, without curves here."
    return Section("learning", "Learning curves", lead, blocks) if blocks else None


def axis_around(name: str, values: Sequence[float]) -> ChartAxis:
    """Return an axis of ratios from the round value below the smallest to the one above the largest."""
    low, high = min(values), max(values)
    room = max(high - low, 0.05)
    ticks = round_ticks(max(0.0, low - room / 2), min(1.0, high + room / 2), 5)
    step = ticks[1] - ticks[0]
    first = next((t for t in reversed(ticks[:-1]) if t <= low), max(0.0, ticks[0] - step))
    last = next((t for t in ticks if t >= high and t > first), min(1.0, ticks[-1] + step))
    shown = round_ticks(first, last, 5)
    digits = next((n for n in (1, 2, 3) if all(round(t, n) == t for t in shown)), 4)
    return ChartAxis(name, first, last, lambda v: f"{v:.{digits}f}", shown)


def _history_series(run: RunFolder, index: RecordIndex, models: Sequence[str], key: str) -> list[Series]:
    """Return one curve per network: its training loss, or the validation score of that key."""
    series = []
    for i, model in enumerate(models):
        points = []
        for row in sorted((row for row in run.history if row.model == model), key=lambda row: row.epoch):
            value = finite_or_none(row.scores.get(key) if key else row.loss)
            if value is not None:
                best = ", the best" if row.best and key else ""
                title = f"{index.display_name(model)}, epoch {row.epoch + 1}: {ratio_text(value, 3)}{best}"
                points.append(CurvePoint(row.epoch + 1, value, title=title))
        if points:
            series.append(
                Series(_short_name(index, model), tuple(points), series_color(i), -1 if len(points) > 40 else i)
            )
    return series


def _short_name(index: RecordIndex, model: str) -> str:
    """Return the name of a network in a legend: its label noise, or its own name without noise."""
    return index.noises[model].label if model in index.noises else index.display_name(model)


def _method_text(method: MethodSection) -> str:
    settings = _settings_text(method.settings)
    return display_name(method.name) + (f" ({settings})" if settings else "")


def _pretraining_text(training: TrainingSection) -> str:
    section = training.pretraining
    if section is None:
        return ""
    if section.task == "reconstruction":
        own = _settings_text({**section.masking, **section.settings})
        return "reconstruction of hidden blocks and bands" + (f", {own}" if own else "")
    own = _settings_text({"share": section.share, **section.settings})
    return f"{_method_text(section.objective or training.objective)} on one label per patch, {own}"


def _settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if not isinstance(value, dict))


def _attack_text(attack: AttackSection) -> str:
    name = _method_text(MethodSection(name=attack.name, settings=attack.settings))
    return f"{attack.called or name} within {threat_sizes_text(attack.threats)}"


def _noise_text(noise: NoiseSection) -> str:
    rates = [percent_text(r) if r <= 1 else number_text(r) for r in noise.rates]
    way = f", by {_method_text(noise.objective)}" if noise.objective else ""
    return f"{_method_text(MethodSection(name=noise.name, settings=noise.settings))} at {join_words(rates)}{way}"

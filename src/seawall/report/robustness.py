"""The section on attacks: curves over eps, scores by attack and budget, winning attacks, area and bands."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from seawall.metrics.worst_case import WORST
from seawall.report.attack_effects import (
    AttackedModel,
    area_tables,
    attacked_models,
    band_charts,
    curve_point,
    headline_budget,
    hiding_blocks,
    size_tables,
)
from seawall.report.charts import CurvePoint, Series, line_chart, series_color
from seawall.report.elements import Chart, PageBlock, Section, Table, TableRow, table_row
from seawall.report.formatting import (
    ThreatLabel,
    duration_text,
    join_words,
    number_text,
    percent_text,
    plural,
)
from seawall.report.record_index import CLEAN_METHOD, RecordIndex, TableCell, display_name, record_key_text
from seawall.report.run_reader import RunFolder
from seawall.report.svg import ChartAxis

MAX_CHIP_ROWS = 60


def robustness_section(run: RunFolder, index: RecordIndex) -> Section | None:
    """Show the scores of every attacked model under every attack; None where nothing was attacked."""
    blocks: list[PageBlock] = []
    every = attacked_models(index)
    blocks += _model_comparison(every)
    for attacked in every:
        mine = [
            _attack_curves(run, attacked),
            *_attack_tables(attacked),
            *_winner_tables(attacked),
            *area_tables(run, attacked),
        ]
        # the tables of the first model, which the page is about, are open; those of the others are collapsed
        blocks += mine if attacked.model == index.models[0] else [_as_folded(block) for block in mine]
    for model in index.models:
        blocks += band_charts(index, model) + hiding_blocks(index, model)
    blocks += size_tables(index)
    lead = (
        "The adversary knows the model and may change every band of every seen pixel by up to eps. Smaller is worse for the "
        "model; the worst case takes, chip by chip, the attack that hurts most, because a real adversary would. "
        "An attack can only show weakness: every figure is an upper bound on what the model really holds."
    )
    return Section("robustness", "Under attack", lead, blocks) if blocks else None


def _as_folded(block: PageBlock) -> PageBlock:
    return replace(block, folded=True) if isinstance(block, Table) else block


def _model_comparison(every: Sequence[AttackedModel]) -> list[PageBlock]:
    """Draw the worst case of all models that were attacked under one family of threats, where there are several."""
    blocks: list[PageBlock] = []
    for family in dict.fromkeys(a.threats[0].family for a in every):
        same = [a for a in every if a.threats[0].family == family]
        if len(same) < 2:
            continue
        series = [
            replace(_worst_curve(a, pooled=True), name=a.index.display_name(a.model), kind=series_color(i), shape=i)
            for i, a in enumerate(same)
        ]
        index, top = same[0].index, max(threat.largest_eps for a in same for threat in a.threats) or 1.0
        x = ChartAxis(_eps_title(same[0]), 0, top, _eps_tick(same[0]))
        several = len({a.threats[0].family for a in every}) > 1
        title = "Which network holds: worst case, pooled" + (f" ({same[0].name})" if several else "")
        blocks.append(
            Chart(title, line_chart(series, x, ChartAxis(f"{index.klass} IoU", 0, 1, "{:.1f}".format), title))
        )
    return blocks


def _eps_tick(attacked: AttackedModel) -> Callable[[float], str]:
    return (lambda v: f"{100 * v:g} %") if attacked.threats[0].facts.unit == "reflectance" else (lambda v: f"{v:g}")


def _attack_curves(run: RunFolder, attacked: AttackedModel) -> Chart:
    index, setup = attacked.index, (attacked.model, *CLEAN_METHOD)
    series = [_worst_curve(attacked, pooled=True), _worst_curve(attacked, pooled=False)]
    start = curve_point(index, setup, "iou.pooled", 0.0, "clean")
    for i, method in enumerate(attacked.methods):
        points = [CurvePoint(0, start.y, flags=start.flags)]
        for threat in attacked.threats:
            here = attacked.setup(method, threat)
            if index.record(here, "iou.pooled", index.klass):
                found = curve_point(
                    index, here, "iou.pooled", threat.largest_eps, f"{display_name(method)}, {threat.budget}"
                )
                points.append(replace(found, low=None, high=None))
        series.append(Series(display_name(method), tuple(points), series_color(i + 1), i + 1))
    top = attacked.threats[-1].largest_eps or 1.0
    ticks = (0.0, *(threat.largest_eps for threat in attacked.threats))
    x = ChartAxis(_eps_title(attacked), 0, top, _eps_tick(attacked), ticks, _noise_scale(run, attacked, ticks))
    y = ChartAxis(f"{index.klass} IoU", 0, 1, "{:.1f}".format)
    title = f"{attacked.index.display_name(attacked.model)}: {index.klass} IoU against the adversary’s budget ({attacked.name})"
    note = "Thick: worst case over all attacks, pooled (with its 95 % interval) and mean per chip. Thin: each attack alone, pooled."
    return Chart(title, line_chart(series, x, y, title, height=330), note)


def _eps_title(attacked: AttackedModel) -> str:
    norm = {"linf": "largest change per band and pixel", "l2": "length of the change over the image (l2)"}
    first = attacked.threats[0]
    words = norm.get(first.facts.norm, first.facts.norm)
    if first.per_band:
        words = "of the band that may change most"
    return f"eps: {words}, {attacked.unit}".rstrip(", ")


def _worst_curve(attacked: AttackedModel, *, pooled: bool) -> Series:
    metric = "iou.pooled" if pooled else "iou.per_chip"
    index = attacked.index
    points = [curve_point(index, (attacked.model, *CLEAN_METHOD), metric, 0.0, "clean")]
    points += [
        curve_point(index, attacked.setup(WORST, threat), metric, threat.largest_eps, threat.budget)
        for threat in attacked.threats
    ]
    if not pooled:
        points = [replace(p, low=None, high=None) for p in points]
    name = "worst, pooled" if pooled else "worst, per chip"
    return Series(name, tuple(points), "worst" if pooled else "worst2", 0 if pooled else 3)


def _noise_scale(
    run: RunFolder, attacked: AttackedModel, ticks: tuple[float, ...]
) -> tuple[str, tuple[tuple[float, str], ...]]:
    """Return a second scale: eps in multiples of the median band's sensor noise, where the run has that noise."""
    sigmas = [s for s in run.data.noise.values() if s]
    if not sigmas or attacked.threats[0].facts.norm != "linf" or attacked.threats[0].per_band:
        return ("", ())
    sigma = statistics.median(sigmas)
    return (
        "eps, multiples of the sensor’s noise (median band)",
        tuple((t, f"{number_text(float(f'{t / sigma:.2g}'))}×") for t in ticks),
    )


def _attack_tables(attacked: AttackedModel) -> list[PageBlock]:
    """Return one table per averaging: a row per attack, a column per budget, the worst case in the last row."""
    blocks: list[PageBlock] = []
    for metric, how in (("iou.pooled", "pooled"), ("iou.per_chip", "per chip")):
        rows = [
            table_row(display_name(m), *_budget_cells(attacked, m, metric), *_cost_cells(attacked, m))
            for m in attacked.methods
        ]
        rows.append(table_row(WORST, *_budget_cells(attacked, WORST, metric), "", ""))
        head = (
            ("Attack", ""),
            ("clean", "no attack"),
            *((threat.amount, f"{threat.budget}: {threat.text}") for threat in attacked.threats),
            ("Passes", "forward and backward passes per chip at the largest budget"),
            ("Time", "seconds over all chips and budgets"),
        )
        keep = [j for j in range(len(head)) if j < len(head) - 2 or any(row[j] for row in rows)]
        title = f"{attacked.index.display_name(attacked.model)}: {attacked.index.klass} IoU, {how}, by attack and budget ({attacked.name})"
        note = (
            "Worst case: the choice of attack on every chip that makes the pooled IoU smallest, found exactly."
            if metric == "iou.pooled"
            else "Worst case: on every chip the attack that leaves it the lowest IoU."
        )
        picked = tuple(tuple(row[j] for j in keep) for row in rows)
        blocks.append(
            Table(title, tuple(head[j] for j in keep), picked, note, folded=metric != "iou.pooled", total=True)
        )
    return blocks


def _budget_cells(attacked: AttackedModel, method: str, metric: str) -> list[TableCell]:
    index = attacked.index
    if method == WORST:
        across = [_worst_case_cell(attacked, threat, metric) for threat in attacked.threats]
    else:
        across = [index.cell(attacked.setup(method, threat), metric) for threat in attacked.threats]
    return [index.cell((attacked.model, *CLEAN_METHOD), metric), *across]


def _cost_cells(attacked: AttackedModel, method: str) -> tuple[TableCell | str, TableCell | str]:
    index, setups = attacked.index, [attacked.setup(method, threat) for threat in attacked.threats]
    found = next((row for s in reversed(setups) if (row := index.record(s, "passes"))), None)
    passes = TableCell(number_text(found.value), "passes: mean per chip", record_key_text(found)) if found else ""
    spent = [t for s in setups if (t := index.seconds(s))]
    what = "field seconds of the rows of " + "; ".join("|".join(s) for s in setups)
    return passes, TableCell(
        duration_text(sum(spent)), what, "|".join((*setups[0][:2], "", "seconds"))
    ) if spent else ""


def _worst_case_cell(attacked: AttackedModel, threat: ThreatLabel, metric: str) -> TableCell:
    cell = attacked.index.cell(attacked.setup(WORST, threat), metric)
    return replace(
        cell,
        title=f"{cell.title} · made from the counts under {join_words([display_name(m) for m in attacked.methods])}",
    )


def headline_cell(attacked: AttackedModel) -> tuple[ThreatLabel, TableCell]:
    """Return the threat that the summary names, and the worst pooled IoU within it."""
    threat = headline_budget(attacked)
    return threat, _worst_case_cell(attacked, threat, "iou.pooled")


def _winner_tables(attacked: AttackedModel) -> list[PageBlock]:
    if len(attacked.methods) < 2:
        return []
    names = [*attacked.methods, "none"]
    rows = tuple(
        table_row(
            threat.budget,
            *(
                attacked.index.cell(attacked.setup(WORST, threat), f"won.{name}", format_value=percent_text)
                for name in names
            ),
        )
        for threat in attacked.threats
    )
    head = (
        ("Budget", ""),
        *((display_name(name), "share of chips on which this attack leaves the lowest IoU") for name in names),
    )
    won = {
        name
        for name in attacked.methods
        for threat in attacked.threats
        if attacked.index.value(attacked.setup(WORST, threat), f"won.{name}")
    }
    note = "Share of chips on which each attack leaves the lowest IoU" + (
        "; no single attack is enough." if len(won) > 1 else "."
    )
    return [
        Table(f"{attacked.index.display_name(attacked.model)}: which attack wins", head, rows, note),
        _chip_winner_table(attacked),
    ]


def _chip_winner_table(attacked: AttackedModel) -> Table:
    threat, index, clean = attacked.threats[-1], attacked.index, (attacked.model, *CLEAN_METHOD)
    won = attacked.winners(threat)
    rows: list[TableRow] = []
    for chip, row in sorted(won.items())[:MAX_CHIP_ROWS]:
        method = row.metric.removeprefix("won.")
        setup = clean if method == "none" else attacked.setup(method, threat)
        rows.append((chip, row.group, index.chip_iou(clean, chip), index.chip_iou(setup, chip), display_name(method)))
    head = (
        ("Chip", ""),
        ("Place", ""),
        ("Clean IoU", "IoU of the chip"),
        ("Attacked IoU", "lowest IoU of the chip"),
        ("Attack", "the one that wins"),
    )
    rest = len(won) - len(rows)
    note = f"{plural(rest, 'more chip')} in the records." if rest > 0 else ""
    return Table(
        f"{attacked.index.display_name(attacked.model)}: which attack wins on which chip, {threat.budget}",
        head,
        tuple(rows),
        note,
        folded=True,
    )

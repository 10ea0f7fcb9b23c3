"""The section on natural perturbations: IoU over severity, and what each corruption costs, relative to a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from seawall.metrics.corruption_error import CorruptionError, Interval
from seawall.records import CorruptionFacts
from seawall.report.attack_effects import curve_point
from seawall.report.charts import CurvePoint, Series, line_chart, series_color
from seawall.report.elements import Chart, PageBlock, Paragraphs, Section, Table, TableRow, table_row
from seawall.report.formatting import level_text, number_text, percent_text, plural, ratio_text
from seawall.report.record_index import CLEAN_METHOD, MeasurementKey, RecordIndex, TableCell, record_key_text
from seawall.report.svg import ChartAxis

OPEN_CHARTS = 4
"""Charts that are open: those of the corruptions that cost most; the others are collapsed."""

LEAD = (
    "What the ground, the air, the instrument and the processing do to an image, in a physical quantity. Severity 1 is the "
    "worst that is still delivered; scores count the pixels that keep a label. Nobody chose these changes against the model: "
    "a model can hold under all of them and fail under attack."
)


def corruption_section(index: RecordIndex) -> Section | None:
    """Show every corrupted model under every corruption; None where nothing was corrupted."""
    corrupted = index.corrupted
    if not corrupted:
        return None
    first, *others = corrupted
    blocks: list[PageBlock] = [Paragraphs((mean_sentence(index, first),)), _cost_table(index, first)]
    ordered = most_harmful(corrupted[first])
    blocks += [_curve_chart(index, entry, folded=i >= OPEN_CHARTS) for i, entry in enumerate(ordered)]
    blocks += [_cost_table(index, model, folded=True) for model in others]
    return Section("corruptions", "Under natural perturbations", LEAD, blocks)


def most_harmful(entries: Sequence[CorruptionError]) -> list[CorruptionError]:
    """Return the corruptions without the mean, the largest loss of IoU first."""
    return sorted(entries[:-1], key=lambda entry: -(-1.0 if entry.drop.value is None else entry.drop.value))


def mean_sentence(index: RecordIndex, model: str) -> tuple[str | TableCell, ...]:
    """Return what corruptions cost a model on average, relative to the baseline where there is one."""
    entries = index.corrupted[model]
    worst = most_harmful(entries)[0]
    parts: list[str | TableCell] = [
        f"Under {plural(len(entries) - 1, 'natural perturbation')} the {index.display_name(model)} loses on average ",
        _cost_cell(index, model, entries[-1], "drop"), f" of its {index.klass} IoU, most under {worst.corruption} (",
        _cost_cell(index, model, worst, "drop"), ")",
    ]  # fmt: skip
    if index.reference and entries[-1].error.value is not None:
        parts += [
            f"; its mean corruption error relative to {index.display_name(index.reference)} is ",
            _cost_cell(index, model, entries[-1], "error"),
            ", where 1 is as many errors as the baseline makes",
        ]
    return (*parts, ".")


def mean_error_cell(index: RecordIndex, model: str) -> TableCell:
    """Return the mean corruption error of a model."""
    return _cost_cell(index, model, index.corrupted[model][-1], "error")


COST_COLUMNS = {
    "drop": ("IoU lost", "clean IoU minus the mean over the severities"),
    "error": ("CE", "corruption error: sum of 1 - IoU over the severities, divided by that of the baseline; below 1 is better than the baseline"),
    "relative_error": ("Relative CE", "the same with the error on clean images subtracted: what the corruption adds, beside what it adds to the baseline"),
}  # fmt: skip


def _cost_table(index: RecordIndex, model: str, *, folded: bool = False) -> Table:
    entries = index.corrupted[model]
    severities = sorted({facts.severity for entry in entries for facts in entry.levels if facts.severity is not None})
    costs = [name for name in COST_COLUMNS if any(_cost_of(entry, name).value is not None for entry in entries)]
    rows = [_cost_row(index, model, entry, severities, costs) for entry in (*most_harmful(entries), entries[-1])]
    head = (
        ("Corruption", ""),
        *(COST_COLUMNS[name] for name in costs),
        *((f"at {severity:g}", f"pooled {index.klass} IoU at this severity") for severity in severities),
        ("Pixels kept", "smallest share of the valid pixels that a severity leaves"),
        ("At most", "physical quantity at the largest severity"),
    )
    clean = ratio_text(entries[-1].clean.value)
    beside = f" CE is relative to {index.display_name(index.reference)}." if "error" in costs else ""
    note = (
        f"Clean IoU {clean}. The corruption that costs most comes first; small figures are 95 % intervals over places.{beside} "
        "An en dash in the relative CE: the baseline hardly loses anything, so there is nothing to compare with."
    )
    title = f"{index.display_name(model)}: pooled {index.klass} IoU under corruptions, the most harmful first"
    return Table(title, head, tuple(rows), note, folded, total=True)


NOT_MEASURED: MeasurementKey = ("", "", "")


def _cost_row(
    index: RecordIndex, model: str, entry: CorruptionError, severities: Sequence[float], costs: Sequence[str]
) -> TableRow:
    by_severity = {facts.severity: _setup(model, entry.corruption, facts) for facts in entry.levels}
    cells = [index.cell(by_severity.get(severity, NOT_MEASURED), "iou.pooled") for severity in severities]
    kept = TableCell(percent_text(entry.kept), "smallest share of the valid pixels that a severity leaves")
    return table_row(
        entry.corruption or "mean",
        *(_cost_cell(index, model, entry, name) for name in costs),
        *(replace(cell, low="", high="") for cell in cells),
        kept,
        level_text(entry.levels[-1]) if entry.levels else "",
    )


def _cost_of(entry: CorruptionError, name: str) -> Interval:
    return {"drop": entry.drop, "error": entry.error, "relative_error": entry.relative_error}[name]


def _cost_cell(index: RecordIndex, model: str, entry: CorruptionError, name: str) -> TableCell:
    cost = _cost_of(entry, name)
    low, high = ("", "") if cost.low is None or cost.high is None else (ratio_text(cost.low), ratio_text(cost.high))
    what = f"{COST_COLUMNS[name][0]} · {model} · {entry.corruption or 'mean over corruptions'}"
    title = what + (f" · 95 % interval {low} to {high}" if low else "")
    clean = index.record((model, *CLEAN_METHOD), "iou.pooled", index.klass)
    return TableCell(ratio_text(cost.value), title, record_key_text(clean) if clean else "", low, high)


def _setup(model: str, corruption: str, facts: CorruptionFacts) -> MeasurementKey:
    return (model, corruption, f"severity {facts.severity!r}")


def _curve_chart(index: RecordIndex, entry: CorruptionError, *, folded: bool) -> Chart:
    levels = [(facts.severity, number_text(facts.level)) for facts in entry.levels if facts.severity is not None]
    series = []
    for i, model in enumerate(index.corrupted):
        points = [_point(index, model, entry.corruption, facts) for facts in entry.levels]
        start = curve_point(index, (model, *CLEAN_METHOD), "iou.pooled", 0.0, "clean")
        own = (start, *points) if i == 0 else tuple(replace(p, low=None, high=None) for p in (start, *points))
        series.append(Series(index.display_name(model), own, series_color(i), i))
    facts = entry.levels[-1]
    quantity = f"{facts.quantity}, {facts.level_unit}" if facts.level_unit else facts.quantity
    ticks = (0.0, *(severity for severity, _ in levels))
    x = ChartAxis("severity", 0, 1, "{:g}".format, ticks, (quantity, tuple(levels)))
    y = ChartAxis(f"pooled {index.klass} IoU", 0, 1, "{:.1f}".format)
    title = f"{entry.corruption}: {quantity}"
    return Chart(title, line_chart(series, x, y, title, height=200), folded=folded)


def _point(index: RecordIndex, model: str, corruption: str, facts: CorruptionFacts) -> CurvePoint:
    where = f"{corruption}, {level_text(facts)}"
    return curve_point(index, _setup(model, corruption, facts), "iou.pooled", facts.severity or 0.0, where)

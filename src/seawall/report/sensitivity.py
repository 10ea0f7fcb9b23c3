"""The section on sensitivity: how far each corruption moves the features of a network, and the severities of equal harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seawall.report.charts import CurvePoint, Series, line_chart, series_color
from seawall.report.elements import Chart, PageBlock, Paragraphs, Section, Table, TableRow, table_row
from seawall.report.formatting import DASH, number_text, plural, ratio_text
from seawall.report.run_facts import SensitivityCurveFacts, SensitivityFacts
from seawall.report.svg import ChartAxis

OPEN_CURVES = 4
"""Charts that are open: those of the corruptions that move the features most; the others are collapsed."""

SENSITIVITY_LEAD = (
    "The kernel distance between the features of corrupted and of clean chips, measured at few severities and interpolated. Ticks on the lower "
    "axis are severities of equal harm: the distance at the k-th of n is k / n of that at severity 1. No label enters the distance; the "
    "mean IoU stands beside it, because changes that cancel over the chips cost IoU at no distance."
)


def sensitivity_section(networks: Mapping[str, SensitivityFacts]) -> Section | None:
    """Show the curves of every network; None where nothing was measured."""
    blocks: list[PageBlock] = []
    for name, facts in networks.items():
        ordered = sorted(facts.curves, key=lambda curve: -curve.points[-1].distance)
        source = f"{name}: features are {facts.features}; {plural(facts.passes, 'forward pass', 'forward passes')} of {plural(facts.chips, 'chip')}."
        blocks += [Paragraphs(((source,),)), _severity_table(name, ordered)]
        blocks += [_sensitivity_chart(curve, folded=i >= OPEN_CURVES) for i, curve in enumerate(ordered)]
    return Section("sensitivity", "Sensitivity of the features", SENSITIVITY_LEAD, blocks) if blocks else None


def _severity_table(name: str, curves: Sequence[SensitivityCurveFacts]) -> Table:
    head = (
        ("Corruption", ""), ("Distance", "squared kernel distance of the features at severity 1"),
        ("mean IoU, clean", "over the classes, pooled"), ("at severity 1", "mean IoU over the classes, pooled"),
        ("Severities of equal harm", "and the physical quantity there"),
    )  # fmt: skip
    title = f"{name}: corruptions by the distance of the features at severity 1, the largest first"
    return Table(title, head, tuple(map(_severity_row, curves)))


def _severity_row(curve: SensitivityCurveFacts) -> TableRow:
    first, last = curve.points[0], curve.points[-1]
    unit = f" {curve.unit}" if curve.unit else ""
    chosen = ", ".join(
        f"{severity:.2f} ({number_text(level)}{unit})"
        for severity, level in zip(curve.severities, curve.levels, strict=True)
    )
    ious = (DASH if point.miou is None else ratio_text(point.miou) for point in (first, last))
    return table_row(curve.corruption, number_text(last.distance), *ious, chosen)


def _sensitivity_chart(curve: SensitivityCurveFacts, *, folded: bool) -> Chart:
    largest = max(point.distance for point in curve.points)
    unit = f", {curve.unit}" if curve.unit else ""
    distance, miou = [], []
    for point in curve.points:
        where = f"severity {point.severity:.2f}, {curve.quantity} {number_text(point.level)}{unit}"
        share = point.distance / largest if largest > 0 else 0.0
        distance.append(CurvePoint(point.severity, max(share, 0.0), title=f"{where}: {number_text(point.distance)}"))
        miou.append(CurvePoint(point.severity, point.miou, title=f"{where}: mean IoU {ratio_text(point.miou)}"))
    levels = tuple(zip(curve.severities, map(number_text, curve.levels), strict=True))
    x = ChartAxis("severity", 0, 1, lambda v: f"{v:.2f}", (0.0, *curve.severities), (f"{curve.quantity}{unit}", levels))
    y = ChartAxis("share of the largest distance; mean IoU", 0, 1, "{:.1f}".format)
    title = f"{curve.corruption}: distance up to {number_text(largest)}"
    series = (
        Series("distance", tuple(distance), series_color(0), 0),
        Series("mean IoU", tuple(miou), series_color(1), 1),
    )
    return Chart(title, line_chart(series, x, y, title, height=200), folded=folded)

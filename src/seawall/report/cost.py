"""The section on what the models of a run cost: size, multiply-accumulates, receptive field, training, inference."""

from __future__ import annotations

from collections.abc import Mapping

from seawall.records import WAYS
from seawall.report.charts import ChartRow, bar_chart
from seawall.report.elements import BulletList, Chart, PageBlock, Section, Table, TableRow, table_row
from seawall.report.formatting import DASH, count_text, number_text, ratio_text
from seawall.report.record_index import CLEAN_METHOD, RecordIndex, TableCell
from seawall.report.run_facts import COST_FIGURES, CostFacts
from seawall.report.run_reader import RunFolder
from seawall.report.svg import ChartAxis

COST_LEAD = (
    "What each model asks for. Seconds are those of one image on this machine, all models in turn, the median of several rounds: "
    "only the order and the ratios carry over to another machine."
)


def cost_section(run: RunFolder, index: RecordIndex) -> Section | None:
    """Tabulate the cost of every model and draw the fastest way of each; None where no cost was measured."""
    costs = run.costs.models
    if not costs:
        return None
    blocks: list[PageBlock] = [_time_chart(index, costs), _model_cost_table(run, index, costs)]
    reasons = {
        f"{index.display_name(name)}, {WAYS.get(way, way)}": why
        for name, cost in costs.items()
        for way, why in cost.failed.items()
    }
    if reasons:
        blocks.append(BulletList(tuple((f"{what}.", why) for what, why in reasons.items())))
    return Section("cost", "What the models cost", COST_LEAD, blocks)


def _ways(run: RunFolder) -> list[str]:
    return [way for way in WAYS if way in run.costs.settings.ways]


def _model_cost_table(run: RunFolder, index: RecordIndex, costs: Mapping[str, CostFacts]) -> Table:
    ways, size = _ways(run), run.costs.settings.size
    head = [
        ("Model", ""),
        (f"IoU of {index.klass}", "pooled over the clean test chips, as above"),
        ("Parameters", "trained numbers"),
        ("kMAC per pixel", "thousand multiply-accumulates of convolutions and matrix products, on 256 x 256 pixels"),
        ("Receptive field", "radius in pixels; ∞ without a bound"),
        ("Training", "CPU-minutes of the training or the fit"),
        *((WAYS[way], f"seconds per megapixel, of {size} x {size} pixels") for way in ways),
    ]
    rows = tuple(_model_cost_row(index, name, cost, ways) for name, cost in costs.items())
    note = f"Medians of {run.costs.settings.repeats} rounds. Figures are in {COST_FIGURES}."
    return Table("Size and time", tuple(head), rows, note)


def _model_cost_row(index: RecordIndex, name: str, cost: CostFacts, ways: list[str]) -> TableRow:
    def cell(what: str, text: str, title: str = "") -> TableCell:
        return TableCell(text, title or f"{index.display_name(name)}: {what}", f"{COST_FIGURES}|{name}|{what}")

    per_pixel, minutes = cost.macs_per_pixel, cost.training_minutes
    return table_row(
        index.display_name(name),
        index.cell((name, *CLEAN_METHOD), "iou.pooled"),
        cell("parameters", count_text(cost.parameters)),
        cell("macs_per_pixel", DASH if per_pixel is None else number_text(float(f"{per_pixel / 1000:.3g}"))),
        cell("reach", "∞" if cost.reach is None else f"{cost.reach} px"),
        cell("training_minutes", minutes_text(minutes)),
        *(
            cell(
                f"seconds.{way}",
                seconds_text(cost.seconds[way]) if way in cost.seconds else DASH,
                f"median {cost.seconds[way]:.4g} s, slowest {cost.slowest.get(way, 0):.4g} s" if way in cost.seconds else cost.failed.get(way, ""),
            )
            for way in ways
        ),
    )  # fmt: skip


def minutes_text(minutes: float | None) -> str:
    """Return CPU-minutes with two significant digits; those of a fit that takes no time are below a hundredth.

    Example:
        >>> minutes_text(1.234), minutes_text(1e-7), minutes_text(None)
        ('1.2', '< 0.01', '–')
    """
    if minutes is None:
        return DASH
    return number_text(float(f"{minutes:.2g}")) if minutes >= 0.01 else "< 0.01"


def seconds_text(seconds: float) -> str:
    """Return seconds with two significant digits.

    Example:
        >>> seconds_text(0.01234), seconds_text(12.34)
        ('0.012', '12')
    """
    return number_text(float(f"{seconds:.2g}"))


def _time_chart(index: RecordIndex, costs: Mapping[str, CostFacts]) -> Chart:
    """Draw the fastest way of each model, fastest model first."""
    best = {name: min((s, way) for way, s in cost.seconds.items()) for name, cost in costs.items() if cost.seconds}
    rows = []
    for name, (seconds, way) in sorted(best.items(), key=lambda item: item[1]):
        iou = index.value((name, *CLEAN_METHOD), "iou.pooled", index.klass)
        text = f"{seconds_text(seconds)} s, IoU {ratio_text(iou)}"
        rows.append(ChartRow(index.display_name(name), seconds, title=f"{WAYS.get(way, way)}", text=text))
    top = max((seconds for seconds, _ in best.values()), default=1.0)
    axis = ChartAxis("seconds per megapixel", 0, top)
    note = "The fastest way to run each model, with its IoU on clean chips."
    return Chart("Seconds per megapixel", bar_chart(rows, axis, "Seconds per megapixel of every model"), note)

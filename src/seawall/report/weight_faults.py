"""The section on flipped weight bits: flips until the IoU is halved, and the IoU after every round."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.report.charts import CurvePoint, Series, line_chart, series_color
from seawall.report.elements import BulletList, Chart, PageBlock, Section, Table, TableRow, table_row
from seawall.report.formatting import DASH, count_text, number_text, percent_text, plural, ratio_text
from seawall.report.record_index import RecordIndex, TableCell
from seawall.report.run_facts import FAULT_ROWS, WeightFaultFacts
from seawall.report.run_reader import RunFolder
from seawall.report.svg import ChartAxis

FAULT_LEAD = (
    "The weights as 8-bit integers, one step size per layer, and single bits of them flipped in memory. A search chooses the "
    "bits on training chips with the gradient of the network; random flips are its control. The IoU is that of the test chips."
)
FAULT_HEAD = (
    ("Network, fault, defense", ""),
    ("8-bit IoU", "pooled IoU with 8-bit weights, no bit flipped"),
    ("Flips to half", "flips until the IoU is at most half of that"),
    ("IoU then", "pooled IoU after the last flip"),
    ("Sign bits", "share of the flips that flipped the sign bit"),
    ("Detected", "share of the flips that the checksums of 4096 bytes noticed"),
    ("Seconds per flip", "CPU seconds that it took to choose a bit"),
)
SHORTEST_AXIS = 10


def weight_fault_section(run: RunFolder, index: RecordIndex) -> Section | None:
    """Show every fault that was measured; None where there is none."""
    found = [one for one in run.weight_faults if not one.refused]
    blocks: list[PageBlock] = []
    if found:
        blocks = [_fault_table(index, found), _fault_chart(index, found)]
    if refused := [(f"{_fault_name(index, one)}.", one.refused) for one in run.weight_faults if one.refused]:
        blocks.append(BulletList(tuple(refused)))
    return Section("weight-faults", "Under flipped weight bits", FAULT_LEAD, blocks) if blocks else None


def _fault_table(index: RecordIndex, found: Sequence[WeightFaultFacts]) -> Table:
    bits = " and ".join(dict.fromkeys(f"{count_text(one.bits)} bits in {plural(one.layers, 'layer')}" for one in found))
    note = f"{bits}. A number with > was not enough: the fault was stopped there. Lines are in {FAULT_ROWS}."
    rows = tuple(_fault_row(index, one) for one in found)
    return Table(f"Flips until the {index.klass} IoU is halved", FAULT_HEAD, rows, note)


def _fault_name(index: RecordIndex, one: WeightFaultFacts) -> str:
    return f"{index.display_name(one.model)}, {one.fault}" + ("" if one.defense == "none" else f", {one.defense}")


def _fault_row(index: RecordIndex, one: WeightFaultFacts) -> TableRow:
    name, key = _fault_name(index, one), f"{one.model}|{one.fault}|{one.defense}"
    flips = f"> {len(one.flips)}" if one.flips_to_half is None else str(one.flips_to_half)
    spent = one.seconds / len(one.flips) if one.flips else None
    cells = (
        ratio_text(one.iou[0]), flips, ratio_text(one.iou[-1]), percent_text(one.sign_share), percent_text(one.detected_share),
        DASH if spent is None else number_text(float(f"{spent:.2g}")),
    )  # fmt: skip
    return table_row(name, *(TableCell(text, name, key) for text in cells))


def _fault_chart(index: RecordIndex, found: Sequence[WeightFaultFacts]) -> Chart:
    """Draw the IoU over the flips, as far as the shortest curve of every network that reached half goes three times over."""
    reached = [one.flips_to_half for one in found if one.flips_to_half is not None]
    longest = max(one.curve[-1][0] for one in found)
    last = max(SHORTEST_AXIS, min(3 * max(min(reached), 1), longest)) if reached else max(SHORTEST_AXIS, longest)
    series = []
    for i, one in enumerate(found):
        name = _fault_name(index, one)
        points = tuple(
            CurvePoint(count, iou, title=f"{name}: {plural(count, 'flip')}, {ratio_text(iou, 3)}")
            for (count, _, _), iou in zip(one.curve, one.iou, strict=True)
            if count <= last
        )
        series.append(Series(name, points, series_color(i), i if len(points) <= 40 else -1))
    x, y = (
        ChartAxis("flipped bits", 0, last, "{:g}".format),
        ChartAxis(f"pooled {index.klass} IoU", 0, 1, "{:.1f}".format),
    )
    return Chart(
        "IoU over flipped bits",
        line_chart(series, x, y, "IoU over flipped weight bits"),
        "Longer curves are cut off at the right.",
    )

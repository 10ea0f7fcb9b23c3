"""The section on label noise: test scores of networks that were trained on noisy labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from seawall.report.attack_effects import curve_point
from seawall.report.charts import CurvePoint, Series, line_chart, series_color
from seawall.report.elements import Chart, PageBlock, Section, Table
from seawall.report.formatting import DASH, percent_text, ratio_text
from seawall.report.record_index import CLEAN_METHOD, RecordIndex, TableCell, record_key_text
from seawall.report.run_facts import NoiseFacts
from seawall.report.svg import ChartAxis

NOISE_COLUMNS = (
    ("iou.pooled", "IoU, pooled"), ("iou.per_chip", "IoU, per chip"), ("precision.pooled", "Precision"),
    ("recall.pooled", "Recall"), ("srip.iou", "IoU, SRIP convention"),
)  # fmt: skip


def label_noise_section(index: RecordIndex) -> Section | None:
    """Return scores on clean test labels after training on noisy labels; None where no network was trained so."""
    noisy = index.noisy_models
    blocks: list[PageBlock] = []
    for base in dict.fromkeys(noise.model for noise in noisy.values()):
        same_base = {model: noise for model, noise in noisy.items() if noise.model == base}
        if any(noise.changed_share is not None for noise in same_base.values()):
            blocks.append(_noise_chart(index, base, same_base))
        blocks.append(_noise_table(index, base, same_base))
    if not blocks:
        return None
    lead = (
        "One more network per row, trained from scratch on labels that were corrupted on purpose and within an exact budget. "
        "A noise often changes less than it was asked to: the table says both, the curve goes by what was changed. "
        "Test labels are never touched, so the score says what the wrong labels cost."
    )
    return Section("labels", "Trained on wrong labels", lead, blocks)


def _noise_chart(index: RecordIndex, base: str, noisy: Mapping[str, NoiseFacts]) -> Chart:
    """Draw the pooled IoU against the share of training pixels that was changed, one curve per kind of noise."""
    changed = {model: noise.changed_share for model, noise in noisy.items() if noise.changed_share is not None}
    series = []
    for i, kind in enumerate(dict.fromkeys(noise.kind for noise in noisy.values())):
        models = sorted((m for m in changed if noisy[m].kind == kind), key=lambda m: changed[m])
        points = [_noise_point(index, base, 0.0)] + [_noise_point(index, m, changed[m]) for m in models]
        series.append(Series(kind, tuple(points), series_color(i), i))
    top = max(changed.values())
    x = ChartAxis("share of the labelled training pixels that was changed", 0, top or 1, lambda v: f"{100 * v:g} %")
    y = ChartAxis(f"pooled {index.klass} IoU on clean test labels", 0, 1, "{:.1f}".format)
    title = f"{index.display_name(base)}: {index.klass} IoU after training on wrong labels"
    return Chart(
        title,
        line_chart(series, x, y, title, height=260),
        "Surface: 95 % interval over places. At 0: trained on the labels as they are.",
    )


def _noise_point(index: RecordIndex, model: str, share: float) -> CurvePoint:
    return curve_point(index, (model, *CLEAN_METHOD), "iou.pooled", share, index.display_name(model))


def _noise_table(index: RecordIndex, base: str, noisy: Mapping[str, NoiseFacts]) -> Table:
    def cells_of(model: str, metrics: Iterable[str]) -> list[TableCell]:
        return [index.cell((model, *CLEAN_METHOD), metric) for metric in metrics]

    columns = [
        (m, name) for m, name in NOISE_COLUMNS if any(index.cell((model, *CLEAN_METHOD), m).key for model in noisy)
    ]
    metrics = [metric for metric, _ in columns]
    start = index.value((base, *CLEAN_METHOD), "iou.pooled", index.klass)
    rows: list[tuple[str | TableCell, ...]] = []
    if any(cell.key for cell in cells_of(base, metrics)):
        rows.append(("labels as they are", "0", percent_text(0.0), *cells_of(base, metrics), ""))
    for model, noise in noisy.items():
        change = _change_cell(index, model, start)
        rows.append((noise.kind, noise.rate_text, noise.changed_text, *cells_of(model, metrics), change))
    head = (
        ("Label noise", ""), ("Asked", "what the noise was asked for: a share of the pixels, or the setting that the sweep varies"),
        ("Changed", "share of the labelled training pixels that the noise changed"), *((name, metric) for metric, name in columns),
        ("Change", "pooled IoU less that of the network trained on the labels as they are"),
    )  # fmt: skip
    return Table(f"{index.display_name(base)} trained on corrupted labels, tested on clean ones", head, tuple(rows))


def _change_cell(index: RecordIndex, model: str, start: float | None) -> TableCell:
    """Return the pooled IoU less that of the network trained without noise."""
    found = index.record((model, *CLEAN_METHOD), "iou.pooled", index.klass)
    if found is None or found.value is None or start is None:
        return TableCell(DASH, "undefined, because one of the two figures is")
    change = found.value - start
    sign = "+" if change > 0.005 else ""
    flags = index.flags((model, *CLEAN_METHOD))
    return TableCell(
        sign + ratio_text(change),
        f"{ratio_text(found.value, 4)} less {ratio_text(start, 4)}",
        record_key_text(found),
        flags=flags,
    )

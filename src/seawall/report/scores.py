"""The sections on clean images: scores of the models, and the tables of the published SRIP report beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from seawall.report.charts import ChartRow, interval_chart
from seawall.report.elements import Chart, PageBlock, Section, Table, table_row
from seawall.report.formatting import DASH, plural
from seawall.report.record_index import CLEAN_METHOD, MeasurementKey, RecordIndex
from seawall.report.run_reader import RunFolder
from seawall.report.svg import ChartAxis

ScoreColumn = tuple[str, str, str]
"""Metric, column name, explanation."""

SCORE_COLUMNS: tuple[ScoreColumn, ...] = (
    ("iou.pooled", "IoU, pooled", "Intersection over union of all test pixels together: large waters count most."),
    (
        "iou.per_chip",
        "IoU, per chip",
        "Mean of each chip’s IoU: a chip with a small pond counts as much as one with a lake.",
    ),
    ("iou.per_group", "IoU, per place", "Mean of each place’s pooled IoU: every event or location counts the same."),
    ("precision.pooled", "Precision", "Share of what is marked as this class that is."),
    ("recall.pooled", "Recall", "Share of this class that is found."),
    ("f1.pooled", "F1", "Harmonic mean of precision and recall; for one class the same as Dice."),
    ("miou.pooled", "mIoU", "Mean of the pooled IoU of all classes."),
    ("accuracy.pooled", "Accuracy", "Share of all pixels that are right; high wherever land is most of the picture."),
)


PUBLISHED_METRICS: Mapping[str, str] = {
    "srip.iou": "Average IoU",
    "srip.accuracy": "Average pixel accuracy",
    "srip.precision": "Average precision",
    "srip.recall": "Average recall",
    "srip.f1": "Average F1 score",
    "srip.specificity": "Average specificity",
    "srip.dice": "Average Dice coefficient",
}
"""Metric names of the records, and the names in the published report."""


def clean_scores(run: RunFolder, index: RecordIndex) -> Section | None:
    """Compare the models that were trained without label noise, and the baselines, on clean images."""
    models = [
        m
        for m in index.models
        if m not in index.noises and index.value((m, *CLEAN_METHOD), "iou.pooled", index.klass) is not None
    ]
    models = models or [m for m in index.models if index.counts((m, *CLEAN_METHOD))]
    if not models:
        return None
    n = len(index.counts((models[0], *CLEAN_METHOD)))
    places = len(index.groups)
    lead = (
        f"Test part: {plural(n, 'chip')} from {plural(places, 'place')}. Counts come first, ratios last: every figure below is "
        "computed from the pixel counts of each chip. Intervals are 95 %, from redrawing places, not pixels."
    )
    blocks: list[PageBlock] = [_interval_plot(index, models), score_table(index, models)]
    blocks += _by_place(index, models) + _by_class(index, models) + _by_size(index, models)
    if convention := srip_table(index, models):
        blocks.append(convention)
    return Section("scores", "Accuracy on clean images", lead, blocks)


def _interval_plot(index: RecordIndex, models: Sequence[str]) -> Chart:
    rows = []
    for i, model in enumerate(models):
        cell = index.cell((model, *CLEAN_METHOD), "iou.pooled")
        low, high = (index.value((model, *CLEAN_METHOD), f"iou.pooled.{end}", index.klass) for end in ("low", "high"))
        value = index.value((model, *CLEAN_METHOD), "iou.pooled", index.klass)
        kind = "c0" if i == 0 else "muted"
        rows.append(ChartRow(index.display_name(model), value, low, high, kind, cell.title, cell.text, cell.flags))
    drawing = interval_chart(
        rows, ChartAxis(f"pooled {index.klass} IoU", 0, 1, "{:.1f}".format), f"Pooled {index.klass} IoU per model"
    )
    return Chart(
        f"Pooled {index.klass} IoU", drawing, "Dot: all test pixels together. Line: 95 % interval over places."
    )


def score_table(
    index: RecordIndex, models: Sequence[str], *, columns: Sequence[ScoreColumn] = SCORE_COLUMNS, title: str = ""
) -> Table:
    """Return a table of models by metrics, with the best of each column marked."""
    kept = [c for c in columns if any(is_measured(index, m, c[0]) for m in models)]
    rows = [[index.cell((model, *CLEAN_METHOD), metric) for metric, _, _ in kept] for model in models]
    for j, (metric, _, _) in enumerate(kept):
        values = [index.value((m, *CLEAN_METHOD), metric, index.class_of(metric)) for m in models]
        known = [v for v in values if v is not None]
        for i, value in enumerate(values):
            if len(known) > 1 and value == max(known):
                rows[i][j] = replace(rows[i][j], best=True)
    head = [("Model", ""), *((name, f"{metric}: {why}") for metric, name, why in kept)]
    note = " ".join(f"{name}: {why}" for _, name, why in kept)
    named = [table_row(index.display_name(m), *cells) for m, cells in zip(models, rows, strict=True)]
    if any(m in index.supervision for m in models):
        head.append(("Known labels", "pixels of the training part whose label the network was trained with"))
        named = [
            (*row, index.supervision[m].text if m in index.supervision else DASH)
            for m, row in zip(models, named, strict=True)
        ]
    return Table(title or f"Our metrics, class {index.klass}", tuple(head), tuple(named), note)


def is_measured(index: RecordIndex, model: str, metric: str) -> bool:
    return index.record((model, *CLEAN_METHOD), metric, index.class_of(metric)) is not None


def srip_table(index: RecordIndex, models: Sequence[str]) -> Table | None:
    """Return the scores of the models by the convention of the published SRIP report."""
    columns = tuple(
        (metric, name.removeprefix("Average ").capitalize().replace("Iou", "IoU").replace("F1 score", "F1"), "")
        for metric, name in PUBLISHED_METRICS.items()
    )
    if not any(is_measured(index, m, metric) for m in models for metric, _, _ in columns):
        return None
    table = score_table(index, models, columns=columns, title="The convention of the SRIP report")
    note = (
        "As “Robust Semantic Segmentation of Sentinel Images with UNet and Adversarial Uncertainty” (SRIP, October 2024) scores: "
        "labels and predictions are binarized with Otsu’s threshold, each metric is the mean over land and water of one image, "
        "then the mean over images; Dice is of water alone. Kept only to stand beside the published tables."
    )
    head = tuple((name, why.rstrip(": ")) for name, why in table.head)
    return replace(table, note=note, head=head)


def _by_place(index: RecordIndex, models: Sequence[str]) -> list[PageBlock]:
    rows = []
    for group in index.groups:
        cells = [index.cell((m, *CLEAN_METHOD), "iou.pooled", group=group) for m in models]
        if any(cell.key for cell in cells):
            rows.append(table_row(group, *cells))
    if len(rows) < 2:
        return []
    head = (
        ("Place", "event or location that was held out"),
        *((index.display_name(m), "pooled IoU within the place") for m in models),
    )
    return [Table(f"Pooled {index.klass} IoU, place by place", head, tuple(rows), folded=len(rows) > 6)]


def _by_class(index: RecordIndex, models: Sequence[str]) -> list[PageBlock]:
    classes = list(dict.fromkeys(r.klass for r in index.measured if r.klass and r.metric == "tp"))
    if len(classes) < 3:
        return []
    rows = tuple(
        table_row(klass, *(index.cell((m, *CLEAN_METHOD), "iou.pooled", klass=klass) for m in models))
        for klass in classes
    )
    return [
        Table(
            "Pooled IoU, class by class",
            (("Class", ""), *((index.display_name(m), "pooled IoU") for m in models)),
            rows,
        )
    ]


def _by_size(index: RecordIndex, models: Sequence[str]) -> list[PageBlock]:
    columns = [(index.display_name(model), (model, *CLEAN_METHOD)) for model in models]
    table = size_table(index, "Small ponds against big rivers", columns)
    return [table] if table else []


def size_table(
    index: RecordIndex,
    title: str,
    columns: Sequence[tuple[str, MeasurementKey]],
    *,
    least: int = 1,
    folded: bool = False,
) -> Table | None:
    """Tabulate the recall by size of the water body.

    Args:
        index: The records.
        title: Title of the table.
        columns: Name and setup of each column; setups without the metric are left out.
        least: With fewer columns than this there is no table.
        folded: The table is collapsed until the reader opens it.
    """
    sizes = _size_bins(index)
    metrics = [f"size.recall.{size}" for size in sizes]
    columns = [(name, s) for name, s in columns if any(index.record(s, metric, index.klass) for metric in metrics)]
    if len(columns) < least:
        return None
    rows = [
        table_row(_size_text(size), *(index.cell(setup, metric) for _, setup in columns))
        for size, metric in zip(sizes, metrics, strict=True)
    ]
    first = ("Size of the water body", "area of a connected water body in the label")
    head = (first, *((name, "share of its pixels that are found") for name, _ in columns))
    note = "Share of the water pixels found, by the size of the water body they belong to."
    return Table(title, head, tuple(rows), note, folded)


def _size_bins(index: RecordIndex) -> list[str]:
    """Return the size bins that the run measured, in order."""
    sizes = dict.fromkeys(
        r.metric.removeprefix("size.recall.") for r in index.rows if r.metric.startswith("size.recall.")
    )
    bins = [size for size in sizes if size != "none" and not size.endswith((".low", ".high"))]
    return sorted(bins, key=lambda size: int(size.rstrip("+").partition("-")[0]))


def _size_text(size: str) -> str:
    """Format a size bin in pixels.

    Example:
        >>> _size_text("10-99"), _size_text("10000+")
        ('10 to 99 pixels', '10000 pixels and more')
    """
    return f"{size.rstrip('+').replace('-', ' to ')} pixels{' and more' if size.endswith('+') else ''}"

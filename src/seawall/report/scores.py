"""How good the models are on clean images: our figures, the SRIP report's convention, and its tables beside ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from seawall.report.charts import Row, intervals
from seawall.report.elements import Block, Chart, Points, Section, Table, line
from seawall.report.formatting import many, ratio
from seawall.report.record_index import CLEAN, Book, Cell
from seawall.report.run_reader import Run
from seawall.report.svg import Axis

Column = tuple[str, str, str]
"""Metric, column name, explanation."""

OURS: tuple[Column, ...] = (
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


def clean_scores(run: Run, book: Book) -> Section | None:
    """Compare the models that learned from labels as they are, and the baselines, on clean images."""
    models = [
        m for m in book.models if m not in book.noises and book.value((m, *CLEAN), "iou.pooled", book.klass) is not None
    ]
    models = models or [m for m in book.models if book.counts((m, *CLEAN))]
    if not models:
        return None
    n = len(book.counts((models[0], *CLEAN)))
    places = len(book.groups)
    lead = (
        f"Test part: {many(n, 'chip')} from {many(places, 'place')}. Counts come first, ratios last: every figure below is "
        "computed from the pixel counts of each chip. Intervals are 95 %, from redrawing places, not pixels."
    )
    blocks: list[Block] = [_forest(book, models), score_table(book, models)]
    blocks += _by_place(book, models) + _by_class(book, models) + _by_size(book, models)
    if convention := report_table(book, models):
        blocks.append(convention)
    return Section("scores", "Accuracy on clean images", lead, blocks)


def _forest(book: Book, models: Sequence[str]) -> Chart:
    rows = []
    for i, model in enumerate(models):
        cell = book.cell((model, *CLEAN), "iou.pooled")
        low, high = (book.value((model, *CLEAN), f"iou.pooled.{end}", book.klass) for end in ("low", "high"))
        value = book.value((model, *CLEAN), "iou.pooled", book.klass)
        kind = "c0" if i == 0 else "muted"
        rows.append(Row(book.said(model), value, low, high, kind, cell.title, cell.text, cell.flags))
    drawing = intervals(
        rows, Axis(f"pooled {book.klass} IoU", 0, 1, "{:.1f}".format), f"Pooled {book.klass} IoU per model"
    )
    return Chart(f"Pooled {book.klass} IoU", drawing, "Dot: all test pixels together. Line: 95 % interval over places.")


def score_table(book: Book, models: Sequence[str], *, columns: Sequence[Column] = OURS, title: str = "") -> Table:
    """Return models by metrics, the best of each column marked."""
    kept = [c for c in columns if any(_there(book, m, c[0]) for m in models)]
    rows = [[book.cell((model, *CLEAN), metric) for metric, _, _ in kept] for model in models]
    for j, (metric, _, _) in enumerate(kept):
        values = [
            book.value((m, *CLEAN), metric, "" if metric.startswith(("miou", "accuracy", "srip")) else book.klass)
            for m in models
        ]
        known = [v for v in values if v is not None]
        for i, value in enumerate(values):
            if len(known) > 1 and value == max(known):
                rows[i][j] = replace(rows[i][j], best=True)
    head = (("Model", ""), *((name, f"{metric}: {why}") for metric, name, why in kept))
    note = " ".join(f"{name}: {why}" for _, name, why in kept)
    named = [line(book.said(m), *cells) for m, cells in zip(models, rows, strict=True)]
    return Table(title or f"Our metrics, class {book.klass}", head, tuple(named), note)


def _there(book: Book, model: str, metric: str) -> bool:
    klass = "" if metric.startswith(("miou", "accuracy", "srip")) else book.klass
    return book.record((model, *CLEAN), metric, klass) is not None


def report_table(book: Book, models: Sequence[str]) -> Table | None:
    """Return the same models under the convention of the published SRIP report."""
    columns = tuple(
        (metric, name.removeprefix("Average ").capitalize().replace("Iou", "IoU").replace("F1 score", "F1"), "")
        for metric, name in METRICS.items()
    )
    if not any(_there(book, m, metric) for m in models for metric, _, _ in columns):
        return None
    table = score_table(book, models, columns=columns, title="The convention of the SRIP report")
    note = (
        "As “Robust Semantic Segmentation of Sentinel Images with UNet and Adversarial Uncertainty” (SRIP, October 2024) scores: "
        "labels and predictions are binarized with Otsu’s threshold, each metric is the mean over land and water of one image, "
        "then the mean over images; Dice is of water alone. Kept only to stand beside the published tables."
    )
    head = tuple((name, why.rstrip(": ")) for name, why in table.head)
    return replace(table, note=note, head=head)


def _by_place(book: Book, models: Sequence[str]) -> list[Block]:
    rows = []
    for group in book.groups:
        cells = [book.cell((m, *CLEAN), "iou.pooled", group=group) for m in models]
        if any(cell.key for cell in cells):
            rows.append(line(group, *cells))
    if len(rows) < 2:
        return []
    head = (
        ("Place", "event or location that was held out"),
        *((book.said(m), "pooled IoU within the place") for m in models),
    )
    return [Table(f"Pooled {book.klass} IoU, place by place", head, tuple(rows), folded=len(rows) > 6)]


def _by_class(book: Book, models: Sequence[str]) -> list[Block]:
    classes = list(dict.fromkeys(r.klass for r in book.given if r.klass and r.metric == "tp"))
    if len(classes) < 3:
        return []
    rows = tuple(line(klass, *(book.cell((m, *CLEAN), "iou.pooled", klass=klass) for m in models)) for klass in classes)
    return [Table("Pooled IoU, class by class", (("Class", ""), *((book.said(m), "pooled IoU") for m in models)), rows)]


def _by_size(book: Book, models: Sequence[str]) -> list[Block]:
    """Show how well small and large waters are found, where the run measured it."""
    sizes = size_bins(book)
    models = [m for m in models if any(book.record((m, *CLEAN), f"size.recall.{size}", book.klass) for size in sizes)]
    rows = tuple(
        line(say_size(size), *(book.cell((m, *CLEAN), f"size.recall.{size}") for m in models)) for size in sizes
    )
    if not models:
        return []
    head = (
        ("Size of the water body", "area of a connected water body in the label"),
        *((book.said(m), "share of its pixels that are found") for m in models),
    )
    return [
        Table(
            "Small ponds against big rivers",
            head,
            rows,
            "Share of the water pixels found, by the size of the water body they belong to.",
        )
    ]


def size_bins(book: Book) -> list[str]:
    """Return the size bins that the run measured, in order."""
    sizes = dict.fromkeys(
        r.metric.removeprefix("size.recall.") for r in book.rows if r.metric.startswith("size.recall.")
    )
    bins = [size for size in sizes if size != "none" and not size.endswith((".low", ".high"))]
    return sorted(bins, key=lambda size: int(size.rstrip("+").partition("-")[0]))


def say_size(size: str) -> str:
    """Say a size bin in pixels.

    Example:
        >>> say_size("10-99"), say_size("10000+")
        ('10 to 99 pixels', '10000 pixels and more')
    """
    return f"{size.rstrip('+').replace('-', ' to ')} pixels{' and more' if size.endswith('+') else ''}"


def side_by_side(run: Run, book: Book) -> Section | None:
    """Put the published tables beside our figures under the same convention, and say what differs."""
    models = [m for m in book.models if any(_there(book, m, metric) for metric in METRICS)]
    published, name = (run.recipe.published, run.recipe.name) if run.recipe else ("", "")
    asked = f"{published} {name}"
    which = table_of(asked)
    if not models or (which is None and not published):
        return None
    tables = tables_of(asked)
    trained = _ours(run, book, models, which, tables == CLIFF)
    head = [("Metric", "name in the published report")]
    head += [(t.name, f"published: {t.title}; trained on {t.trained_on}") for t in tables]
    head += [(f"Ours: {book.said(m)}", "the same convention, computed by this run") for m in trained]
    rows = []
    for metric, called in METRICS.items():
        theirs = [_published(t.name, t.figures.get(metric)) for t in tables]
        rows.append(line(called, *theirs, *(book.cell((m, *CLEAN), metric, say=_four) for m in trained)))
    pooled = tuple(book.cell((m, *CLEAN), "iou.pooled", say=_four) for m in trained)
    rows.append(line(f"For scale: pooled {book.klass} IoU", *(Cell("–", "not published") for _ in tables), *pooled))
    title = " and ".join(f"Table {t.number}: {t.title}" for t in tables) if which else "Tables 1 to 3"
    title = "The later study's sweep over corrupted masks" if tables == CLIFF else title
    table = Table(
        title,
        tuple(head),
        tuple(rows),
        "The published figures carry no intervals; ours are on the test part, places held out.",
    )
    lead = "The report is “Robust Semantic Segmentation of Sentinel Images with UNet and Adversarial Uncertainty” (M. Srinivasan, October 2024). Equal names below mean equal formulas, not equal experiments."
    if tables == CLIFF:
        lead = "The later study is of the same lab (mid-term report, figures as printed there). " + lead
    return Section(
        "published", "Beside the published report", lead, (table, Points((*_ours_differ(run, book), *DIFFERENCES)))
    )


def _ours(run: Run, book: Book, models: Sequence[str], which: int | None, sweep: bool = False) -> list[str]:
    """Choose the models that a published table should stand beside: Table 3 and the sweep are about corrupted masks."""
    trained = [m for m in models if m in run.trained] or list(models)
    wrong = [m for m in trained if m in book.noises]
    right = [m for m in trained if m not in book.noises]
    if sweep:
        return [*right[:1], *wrong[:3]]
    return (wrong[:4] or right) if which == 3 else (right or wrong)[:4]


def _four(value: float | None) -> str:
    return ratio(value, 4)


def _published(name: str, value: float | None) -> Cell:
    if value is None:
        return Cell("–", f"not given there ({name})")
    return Cell(_four(value), f"published ({name})", f"published|{name.removeprefix('Report, ').lower()}")


def _ours_differ(run: Run, book: Book) -> tuple[tuple[str, str], ...]:
    chips = f"{run.data.chips} chips" if run.data.chips else "its own chips"
    bands = ", ".join(run.data.bands)
    text = (
        f"This run used {chips} ({labels_of(run)}"
        + (f"; bands {bands}" if bands else "")
        + f") and tested on {many(len(book.groups), 'place')} held out."
    )
    return (("What ours is.", text),)


def labels_of(run: Run) -> str:
    """Say in words where the chips of a run come from and what their labels are, as the recipe has it."""
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


@dataclass(frozen=True)
class Published:
    """One table of the report: what it is of, and its figures under our names of the report's metrics."""

    number: int
    title: str
    trained_on: str
    figures: Mapping[str, float]
    called: str = ""

    @property
    def name(self) -> str:
        """How the page calls it."""
        return self.called or f"Report, Table {self.number}"


METRICS: Mapping[str, str] = {
    "srip.iou": "Average IoU",
    "srip.accuracy": "Average pixel accuracy",
    "srip.precision": "Average precision",
    "srip.recall": "Average recall",
    "srip.f1": "Average F1 score",
    "srip.specificity": "Average specificity",
    "srip.dice": "Average Dice coefficient",
}
"""Metric names of the records to the names that the report prints."""

TABLES: tuple[Published, ...] = (
    Published(
        1,
        "correct masks",
        "index masks from Sentinel-2",
        {"srip.iou": 0.8067, "srip.accuracy": 0.9530, "srip.precision": 0.8978, "srip.recall": 0.8495,
         "srip.f1": 0.8530, "srip.specificity": 0.9799},
    ),
    Published(
        2,
        "incorrect masks",
        "a vector water layer",
        {"srip.iou": 0.5950, "srip.accuracy": 0.9011, "srip.precision": 0.6445, "srip.recall": 0.5950,
         "srip.f1": 0.6143, "srip.specificity": 0.9011},
    ),
    Published(
        3,
        "eroded and dilated masks",
        "one third eroded, one third dilated, one third untouched",
        {"srip.dice": 0.6784, "srip.iou": 0.7527, "srip.accuracy": 0.9357, "srip.precision": 0.8111,
         "srip.recall": 0.8437, "srip.f1": 0.8133, "srip.specificity": 0.9345},
    ),
)  # fmt: skip

CLIFF: tuple[Published, ...] = tuple(
    Published(
        0, title, trained_on, {"srip.dice": dice, "srip.iou": iou, "srip.accuracy": accuracy}, f"Later study, {rate} %"
    )
    for rate, title, trained_on, dice, iou, accuracy in (
        (0, "clean masks", "index masks as they were", 0.7696, 0.8230, 0.9554),
        (2, "2 % of the pixels", "eroded and dilated masks", 0.7748, 0.8252, 0.9546),
        (12, "12 % of the pixels", "eroded and dilated masks", 0.7693, 0.8224, 0.9546),
        (20, "20 % of the pixels (22 % elsewhere in its text)", "eroded and dilated masks", 0.0541, 0.4150, 0.8045),
    )
)
"""The poisoning sweep of the same lab's later study: a cliff between 12 % and 20 %."""

DIFFERENCES: tuple[tuple[str, str], ...] = (
    (
        "Its IoU is not water IoU.",
        "The lab's public code takes each image's mean over land and water, then the mean over images; land is easy and "
        "lifts the figure. Table 3 shows it: a Dice of 0.678 for one class can never lie below an IoU of 0.753 for the "
        "same class. Dice is of water alone, and by itself it means a water IoU of about 0.51. The scoring script behind "
        "the tables is inferred from that code.",
    ),
    (
        "Masks and predictions are binarized again.",
        "Under the report's convention both pass through Otsu's threshold before they are compared. The rows named "
        "“report’s convention” on this page do the same, so these columns can be compared; the pooled figures above cannot.",
    ),
    (
        "Table 2 may say nothing about mask quality.",
        "Its six figures fit, to the fourth decimal, a test in which the ground truth held no water pixel at all: recall "
        "equals IoU, specificity equals accuracy, and precision follows from the share of images predicted all land. "
        "That is an inference, not a proof.",
    ),
    (
        "Other pixels, other places.",
        "The report used 1263 chips of 512 × 512 pixels from the Amazon basin, very likely one Sentinel-1 band with masks "
        "from Sentinel-2 (NDWI ≥ −0.25, least cloudy scene of 2023). Its text says Sentinel-2 images; the conflict is open.",
    ),
    (
        "Another split.",
        "The report cut its images into two halves, image by image as far as it says, so a test image may lie next to one "
        "of training. Here whole places, or whole blocks of a scene, are held out.",
    ),
    (
        "Another attack on the masks.",
        "In the report's code dilation returns the first mask over the budget; here no budget is ever exceeded. "
        "There the validation masks were corrupted as well; here only training masks are.",
    ),
)
"""What a reader must know before comparing a published figure with one of ours."""


def tables_of(text: str) -> tuple[Published, ...]:
    """Return what a recipe reproduces: one table, the later study's sweep, or all tables where it does not say.

    Example:
        >>> [t.name for t in tables_of("poison-cliff")][0], len(tables_of("srip")), tables_of("table 2")[0].number
        ('Later study, 0 %', 3, 2)
    """
    if "cliff" in text:
        return CLIFF
    which = table_of(text)
    return tuple(table for table in TABLES if which in (None, table.number))


def table_of(text: str) -> int | None:
    """Return the report's table that a recipe reproduces.

    Example:
        >>> table_of("srip-table-3"), table_of("hls"), table_of("table 1")
        (3, None, 1)
    """
    found = re.search(r"table[ -]?([123])\b", text)
    return int(found[1]) if found else None

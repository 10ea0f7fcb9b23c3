"""What attacks that hide a class achieve over eps: the share of the class that is gone, the share of the rest that stays."""

from __future__ import annotations

from seawall.report.blocks import Block, Chart, Table, line
from seawall.report.book import Book, said
from seawall.report.charts import Point, Series, lines, palette
from seawall.report.harm import point
from seawall.report.svg import Axis
from seawall.report.words import Budget, percent

PANELS = (
    ("fooled", "fooled: share of {} that is predicted as something else"),
    ("preserved", "preserved: share of everything else that is predicted as before"),
)


def hiding(book: Book, model: str) -> list[Block]:
    """Return two curves over eps per hidden class, and a table with the spread over chips."""
    blocks: list[Block] = []
    klasses = dict.fromkeys(r.klass for r in book.rows if r.metric == "fooled.per_chip" and r.model == model)
    for klass in klasses:
        runs: dict[str, list[Budget]] = {}
        for name, method, threat in book.setups:
            size = book.budget(threat)
            if name == model and size.norm and book.record((model, method, threat), "fooled.per_chip", klass):
                runs.setdefault(method, []).append(size)
        for metric, words in PANELS:
            blocks.append(_panel(book, model, klass, metric, words.format(klass), runs))
        blocks.append(_table(book, model, klass, runs))
    return blocks


def _panel(book: Book, model: str, klass: str, metric: str, words: str, runs: dict[str, list[Budget]]) -> Chart:
    series = []
    for i, (method, sizes) in enumerate(runs.items()):
        points = [Point(0, 0.0 if metric == "fooled" else 1.0, title="no noise")]
        for size in sorted(sizes, key=lambda size: size.size):
            where = f"{said(method)}, {size.spoken}"
            points.append(point(book, (model, method, size.text), f"{metric}.per_chip", size.size, where, klass))
        series.append(Series(said(method), tuple(points), palette(i), i))
    every = [size for sizes in runs.values() for size in sizes]
    top, unit = max(size.size for size in every) or 1.0, every[0].unit
    ticks = "{:.1%}".format if every[0].unit == "reflectance" else "{:g}".format
    title = f"{book.said(model)}, hiding {klass}; {words}"
    x, y = (
        Axis(f"eps: largest change per band and pixel, {unit}", 0, top, ticks),
        Axis("mean over chips", 0, 1, "{:.0%}".format),
    )
    return Chart(
        title, lines(series, x, y, title), "Mean over the chips where the class is predicted, with its 95 % interval."
    )


def _table(book: Book, model: str, klass: str, runs: dict[str, list[Budget]]) -> Table:
    rows = []
    for method, sizes in runs.items():
        for size in sorted(sizes, key=lambda size: size.size):
            setup = (model, method, size.text)
            cells = [
                book.cell(setup, f"{metric}.{part}", klass, say=percent)
                for metric in ("fooled", "preserved")
                for part in ("per_chip", "std")
            ]
            skipped = book.cell(setup, "fooled.skipped", klass, say=lambda v: "" if v is None else f"{v:.0f}")
            rows.append(line(said(method), size.spoken, *cells, skipped))
    head = (
        ("Attack", ""), ("Budget", ""), ("Fooled", "mean over chips"), ("± std", "over chips"), ("Preserved", "mean over chips"),
        ("± std", "over chips"), ("Skipped", "chips where the class is not predicted"),
    )  # fmt: skip
    return Table(
        f"{book.said(model)}, hiding {klass}",
        head,
        tuple(rows),
        "Shares of pixels by the clean prediction; labels play no part.",
        folded=True,
    )

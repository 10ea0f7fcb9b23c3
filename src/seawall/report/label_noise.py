"""What wrong labels do to a model, and how sure the model is when it is right."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.report.charts import Bins, Point, Series, lines, palette, reliability
from seawall.report.damage import families, headline, point
from seawall.report.elements import Block, Chart, Section, Table, line
from seawall.report.formatting import DASH, percent, ratio
from seawall.report.record_index import CLEAN, WORST, Book, Cell, Corrupted, Setup, key_text, kinds, said
from seawall.report.svg import Axis

COLUMNS = (
    ("iou.pooled", "IoU, pooled"), ("iou.per_chip", "IoU, per chip"), ("precision.pooled", "Precision"),
    ("recall.pooled", "Recall"), ("srip.iou", "IoU, SRIP convention"),
)  # fmt: skip

MOST_BINS = 100
MOST_CURVES = 5
"""Curves of one reliability diagram; of further setups only the table."""


def label_noise(book: Book) -> Section | None:
    """Show test scores, on clean labels, after training on corrupted ones."""
    models = book.corrupted
    if not models:
        return None
    blocks: list[Block] = []
    for base in dict.fromkeys(c.base for c in models):
        held = [c for c in models if c.base == base]
        if any(c.reached is not None for c in held):
            blocks.append(_curves(book, base, held))
        blocks.append(_table(book, base, held))
    lead = (
        "One more network per row, trained from scratch on labels that were corrupted on purpose and within an exact budget. "
        "A noise often changes less than it was asked to: the table says both, the curve goes by what was changed. "
        "Test labels are never touched, so the score says what the wrong labels cost."
    )
    return Section("labels", "Trained on wrong labels", lead, blocks)


def _curves(book: Book, base: str, models: Sequence[Corrupted]) -> Chart:
    series = []
    for i, kind in enumerate(kinds(models)):
        held = sorted((c for c in models if c.kind == kind and c.reached is not None), key=lambda c: c.reached or 0.0)
        points = [_point(book, base, 0.0)] + [_point(book, c.model, c.reached or 0.0) for c in held]
        series.append(Series(kind, tuple(points), palette(i), i))
    top = max(c.reached or 0.0 for c in models)
    x = Axis("share of the labelled training pixels that was changed", 0, top or 1, lambda v: f"{100 * v:g} %")
    y = Axis(f"pooled {book.klass} IoU on clean test labels", 0, 1, "{:.1f}".format)
    title = f"{book.said(base)}: {book.klass} IoU after training on wrong labels"
    return Chart(
        title,
        lines(series, x, y, title, height=260),
        "Surface: 95 % interval over places. At 0: trained on the labels as they are.",
    )


def _point(book: Book, model: str, share: float) -> Point:
    return point(book, (model, *CLEAN), "iou.pooled", share, book.said(model))


def _table(book: Book, base: str, models: Sequence[Corrupted]) -> Table:
    columns = [(m, name) for m, name in COLUMNS if any(book.cell((c.model, *CLEAN), m).key for c in models)]
    start = book.value((base, *CLEAN), "iou.pooled", book.klass)
    rows: list[tuple[str | Cell, ...]] = []
    if any(book.cell((base, *CLEAN), metric).key for metric, _ in columns):
        rows.append(
            ("labels as they are", "0", percent(0.0), *(book.cell((base, *CLEAN), metric) for metric, _ in columns), "")
        )
    for c in models:
        cells = [book.cell((c.model, *CLEAN), metric) for metric, _ in columns]
        rows.append((c.kind, c.rate, c.changed, *cells, _change(book, c.model, start)))
    head = (
        ("Label noise", ""), ("Asked", "what the noise was asked for: a share of the pixels, or the setting that the sweep varies"),
        ("Changed", "share of the labelled training pixels that the noise changed"), *((name, metric) for metric, name in columns),
        ("Change", "pooled IoU less that of the network trained on the labels as they are"),
    )  # fmt: skip
    return Table(f"{book.said(base)} trained on corrupted labels, tested on clean ones", head, tuple(rows))


def _change(book: Book, model: str, start: float | None) -> Cell:
    found = book.record((model, *CLEAN), "iou.pooled", book.klass)
    if found is None or found.value is None or start is None:
        return Cell(DASH, "undefined, because one of the two figures is")
    change = found.value - start
    sign = "+" if change > 0.005 else ""
    flags = book.flags((model, *CLEAN))
    return Cell(sign + ratio(change), f"{ratio(found.value, 4)} less {ratio(start, 4)}", key_text(found), flags=flags)


def calibration(book: Book) -> Section | None:
    """Show how often each network is right against how sure it says it is."""
    setups = [s for s in book.setups if bins(book, s)]
    if not setups:
        return None
    shown = _telling(book, setups)
    series = [Bins(_name(book, s), tuple(bins(book, s)), palette(i), book.flags(s)) for i, s in enumerate(shown)]
    label = "Reliability diagram: share of right pixels against stated confidence"
    note = "Below the dashed line the model is surer than it should be. Larger marks hold more pixels."
    if len(shown) < len(setups):
        note += " Shown are the models on clean images and the attacks that take most; all are in the table."
    blocks: list[Block] = [Chart("Is it as right as it is sure?", reliability(series, label), note)]
    metrics = [
        ("ece", "ECE", "expected calibration error: mean gap between confidence and accuracy"),
        ("ece.edge", "ECE at the shore", "within the band along class borders"),
        ("ece.worst_group", "ECE, worst place", "the place where it is largest"),
        ("nll", "NLL", "negative log-likelihood per pixel"),
        ("brier", "Brier", "mean squared error of the probabilities"),
    ]
    kept = [m for m in metrics if any(book.record(s, m[0]) for s in setups)]
    if kept:
        rows = tuple(
            line(_name(book, s), *(book.cell(s, name, klass="", say=_three) for name, _, _ in kept)) for s in setups
        )
        blocks.append(
            Table(
                "Calibration error",
                (("Model", ""), *((head, why) for _, head, why in kept)),
                rows,
                "0 is perfect.",
                folded=len(rows) > 8,
            )
        )
    lead = "A pixel that the model is 90 % sure of should be right nine times out of ten."
    return Section("calibration", "How sure is it?", lead, blocks)


def _telling(book: Book, setups: Sequence[Setup]) -> list[Setup]:
    """Return the setups that one diagram can hold: the first model clean and under its strongest attacks, then other models."""
    held = set(setups)
    clean = [s for s in setups if s[1:] == CLEAN and s[0] not in book.noises]
    harmful: list[Setup] = []
    for attacked in families(book):
        if clean and attacked.model == clean[0][0] and not harmful:
            size = headline(attacked)
            mine = [s for m in attacked.methods if m != WORST and (s := attacked.setup(m, size)) in held]
            harmful = sorted(mine, key=lambda s: _left(book, s))
    return [*clean[:1], *harmful[:2], *clean[1:], *harmful[2:]][:MOST_CURVES] or list(setups[:MOST_CURVES])


def _left(book: Book, setup: Setup) -> float:
    value = book.value(setup, "iou.pooled", book.klass)
    return 1.0 if value is None else value


def _three(value: float | None) -> str:
    return ratio(value, 3)


def _name(book: Book, setup: Setup) -> str:
    model, method, threat = setup
    return (
        book.said(model) if method == CLEAN[0] else f"{book.said(model)}, {said(method)}, {book.budget(threat).spoken}"
    )


def bins(book: Book, setup: Setup) -> list[tuple[float, float, float]]:
    """Return (confidence, accuracy, share of pixels) of every bin that holds pixels."""
    held = []
    for i in range(MOST_BINS):
        n, correct, confidence = (book.value(setup, f"calib.{part}.{i}") for part in ("count", "correct", "confidence"))
        if n and correct is not None and confidence is not None:
            held.append((confidence / n, correct / n, n))
    whole = sum(n for _, _, n in held)
    return [(confidence, correct, n / whole) for confidence, correct, n in held]

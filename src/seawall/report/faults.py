"""What wrong labels do to a model, how label sources agree, and how sure the model is when it is right."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.report.blocks import Block, Chart, Section, Table, line, said
from seawall.report.book import CLEAN, Book, Cell, Setup, key_text
from seawall.report.charts import Point, Series, lines, palette, reliability
from seawall.report.folder import Run, number, tree
from seawall.report.noise import Corrupted, corrupted, kinds
from seawall.report.svg import Axis
from seawall.report.words import DASH, percent, ratio

COLUMNS = (
    ("iou.pooled", "IoU, pooled"), ("iou.per_chip", "IoU, per chip"), ("precision.pooled", "Precision"),
    ("recall.pooled", "Recall"), ("srip.iou", "IoU, report’s convention"),
)  # fmt: skip

MOST_BINS = 100


def label_noise(run: Run, book: Book) -> Section | None:
    """Show test scores, on clean labels, after training on corrupted ones."""
    models = corrupted(book)
    if not models:
        return None
    blocks: list[Block] = []
    for base in dict.fromkeys(c.base for c in models):
        held = [c for c in models if c.base == base]
        if any(c.rate is not None for c in held):
            blocks.append(_curves(book, base, held))
        blocks.append(_table(run, book, base, held))
    lead = (
        "One more network per row, trained from scratch on labels that were corrupted on purpose and within an exact budget. "
        "Test labels are never touched, so the score says what the wrong labels cost."
    )
    return Section("labels", "Trained on wrong labels", lead, blocks)


def _curves(book: Book, base: str, models: Sequence[Corrupted]) -> Chart:
    series = []
    for i, kind in enumerate(kinds(models)):
        held = [c for c in models if c.kind == kind and c.rate is not None]
        points = [_point(book, base, 0.0)] + [_point(book, c.model, c.rate or 0.0) for c in held]
        series.append(Series(kind, tuple(points), palette(i), i))
    rates = sorted({c.rate for c in models if c.rate is not None})
    share = max(rates) <= 1
    ticks = (0.0, *rates) if len(rates) < 8 else ()
    x = Axis(
        "budget: share of pixels that may be wrong" if share else "strength of the noise", 0, max(rates) or 1,
        (lambda v: f"{100 * v:g} %") if share else (lambda v: f"{v:g}"), ticks,
    )  # fmt: skip
    y = Axis(f"pooled {book.klass} IoU on clean test labels", 0, 1, "{:.1f}".format)
    title = f"{said(base)}: {book.klass} IoU after training on wrong labels"
    return Chart(
        title,
        lines(series, x, y, title, height=260),
        "Surface: 95 % interval over places. At 0: trained on the labels as they are.",
    )


def _point(book: Book, model: str, rate: float) -> Point:
    value, low, high = (book.value((model, *CLEAN), f"iou.pooled{end}", book.klass) for end in ("", ".low", ".high"))
    return Point(rate, value, low, high, f"{said(model)}: {ratio(value, 3)}")


def _table(run: Run, book: Book, base: str, models: Sequence[Corrupted]) -> Table:
    realized = tree(run.facts, "noises")
    columns = [(m, name) for m, name in COLUMNS if any(book.cell((c.model, *CLEAN), m).key for c in models)]
    start = book.value((base, *CLEAN), "iou.pooled", book.klass)
    rows: list[tuple[str | Cell, ...]] = []
    if any(book.cell((base, *CLEAN), metric).key for metric, _ in columns):
        rows.append(
            ("labels as they are", "0", "0 %", *(book.cell((base, *CLEAN), metric) for metric, _ in columns), "")
        )
    for c in models:
        cells = [book.cell((c.model, *CLEAN), metric) for metric, _ in columns]
        wrong = number(tree(realized, c.model).get("changed_share"))
        rows.append(
            (c.kind, _rate(c), DASH if wrong is None else percent(wrong), *cells, _change(book, c.model, start))
        )
    head = (
        ("Label noise", ""), ("Rate", "budget of the noise"), ("Changed", "share of the labelled training pixels that the noise changed"), *((name, metric) for metric, name in columns),
        ("Change", "pooled IoU less that of the network trained on the labels as they are"),
    )  # fmt: skip
    return Table(f"{said(base)} trained on corrupted labels, tested on clean ones", head, tuple(rows))


def _rate(c: Corrupted) -> str:
    if c.rate is None:
        return DASH
    return percent(c.rate) if c.rate <= 1 else f"{c.rate:g}"


def _change(book: Book, model: str, start: float | None) -> Cell:
    found = book.record((model, *CLEAN), "iou.pooled", book.klass)
    if found is None or found.value is None or start is None:
        return Cell(DASH, "undefined, because one of the two figures is")
    change = found.value - start
    sign = "+" if change > 0.005 else ""
    return Cell(sign + ratio(change), f"{ratio(found.value, 4)} less {ratio(start, 4)}", key_text(found))


def agreement(book: Book) -> Section | None:
    """Show how label sources agree, where the run compared them."""
    metrics = list(dict.fromkeys(r.metric for r in book.given if r.metric.startswith("agreement.") and not r.chip))
    if not metrics:
        return None
    setups = list(dict.fromkeys((r.model, r.method, r.threat) for r in book.given if r.metric in metrics))
    rows = tuple(
        line(" ".join(part for part in s if part and part != "clean"), *(_any_class(book, s, m) for m in metrics))
        for s in setups
    )
    head = (("Sources", ""), *((m.removeprefix("agreement.").replace("_", " "), m) for m in metrics))
    table = Table("Agreement of label sources", head, rows)
    return Section("agreement", "Which labels to trust", "The same ground as different label sources see it.", (table,))


def _any_class(book: Book, setup: Setup, metric: str) -> Cell:
    cell = book.cell(setup, metric, klass=book.klass)
    return cell if cell.key else book.cell(setup, metric, klass="")


def calibration(book: Book) -> Section | None:
    """Show how often each network is right against how sure it says it is."""
    setups = [s for s in book.setups if bins(book, s)]
    if not setups:
        return None
    shown = [s for s in setups if "@" not in s[0]][:4] or setups[:4]
    series = [(_name(s), bins(book, s), palette(i)) for i, s in enumerate(shown)]
    label = "Reliability diagram: share of right pixels against stated confidence"
    note = "Below the dashed line the model is surer than it should be. Larger marks hold more pixels."
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
        rows = tuple(line(_name(s), *(book.cell(s, name, klass="", say=_three) for name, _, _ in kept)) for s in setups)
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


def _three(value: float | None) -> str:
    return ratio(value, 3)


def _name(setup: Setup) -> str:
    model, method, threat = setup
    return said(model) if method == "clean" else f"{said(model)}, {said(method)} {threat}".strip()


def bins(book: Book, setup: Setup) -> list[tuple[float, float, float]]:
    """Return (confidence, accuracy, share of pixels) of every bin that holds pixels."""
    held = []
    for i in range(MOST_BINS):
        n, correct, confidence = (book.value(setup, f"calib.{part}.{i}") for part in ("count", "correct", "confidence"))
        if n and correct is not None and confidence is not None:
            held.append((confidence / n, correct / n, n))
    whole = sum(n for _, _, n in held)
    return [(confidence, correct, n / whole) for confidence, correct, n in held]

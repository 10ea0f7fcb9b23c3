"""The figures' shapes: curves with intervals, intervals in rows, bars, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from seawall.report.svg import (
    BOLD,
    LETTER,
    NARROW,
    WIDE,
    Axis,
    Box,
    area,
    both,
    cut,
    frame,
    join,
    marker,
    path,
    spread,
    tag,
    text,
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One measured point; `y` is None where it is undefined, and the curve has a gap there."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Series:
    """A named curve. `kind` is a color class of the style sheet, `shape` the mark; -1 draws no marks."""

    name: str
    points: tuple[Point, ...]
    kind: str
    shape: int = 0


@dataclass(frozen=True)
class Row:
    """One row of an interval plot or a bar plot."""

    name: str
    y: float | None
    low: float | None = None
    high: float | None = None
    kind: str = "c0"
    title: str = ""
    words: str = ""


def palette(index: int) -> str:
    """Return the color class of the i-th series."""
    return f"c{index % 7}"


def lines(series: Sequence[Series], x: Axis, y: Axis, label: str, *, height: float = 300) -> Markup:
    """Draw curves, each named at its end."""

    def draw(wide: bool) -> tuple[Markup, float]:
        width, most = (WIDE, 28) if wide else (NARROW, 15)
        names = [cut(one.name, most) for one in series]
        room = BOLD * max((len(name) for name in names), default=0) + 14
        foot = 88 if x.second[1] else 48
        box = Box(x, y, 40, 34, width - room - 4, 34 + height)
        parts = [frame(box, wide=wide)]
        parts += [_band(box, one) for one in series]
        parts += [_curve(box, one) for one in series]
        parts += _names(box, series, names)
        return join(parts), 34 + height + foot

    return both(draw, label)


def _band(box: Box, one: Series) -> Markup:
    known = [p for p in one.points if p.low is not None and p.high is not None]
    if len(known) < 2:
        return join([_whisker(box, p, one.kind) for p in known])
    low = [(box.px(p.x), box.py(p.low)) for p in known if p.low is not None]
    high = [(box.px(p.x), box.py(p.high)) for p in known if p.high is not None]
    return area(low, high, f"band {one.kind}")


def _whisker(box: Box, p: Point, kind: str) -> Markup:
    if p.low is None or p.high is None:
        return Markup("")
    return tag("line", x1=box.px(p.x), x2=box.px(p.x), y1=box.py(p.low), y2=box.py(p.high), class_=f"whisker {kind}")


def _curve(box: Box, one: Series) -> Markup:
    parts, run = [], []
    for p in (*one.points, Point(0, None)):
        if p.y is not None:
            run.append((box.px(p.x), box.py(p.y)))
            continue
        if len(run) > 1:
            parts.append(path(run, f"line {one.kind}"))
        run = []
    if one.shape >= 0:
        parts += [marker(one.shape, box.px(p.x), box.py(p.y), one.kind, p.title) for p in one.points if p.y is not None]
    return join(parts)


def _names(box: Box, series: Sequence[Series], names: Sequence[str]) -> list[Markup]:
    ends = [[(p.x, p.y) for p in one.points if p.y is not None] for one in series]
    drawn = [i for i, end in enumerate(ends) if end]
    at = spread([box.py(ends[i][-1][1]) for i in drawn], 15, box.top, box.bottom)
    parts = []
    for i, y in zip(drawn, at, strict=True):
        x, value = ends[i][-1]
        start, kind = box.px(x) + 6, series[i].kind
        if abs(y - box.py(value)) > 2 or start < box.right:
            parts.append(tag("line", x1=start, x2=box.right + 8, y1=box.py(value), y2=y, class_="leader"))
        parts.append(text(box.right + 11, y + 4, names[i], kind=f"name {kind}"))
    return parts


def intervals(rows: Sequence[Row], x: Axis, label: str) -> Markup:
    """Draw one dot with its interval per row, the row's name above it on a phone."""

    def draw(wide: bool) -> tuple[Markup, float]:
        width, step = (WIDE, 32) if wide else (NARROW, 44)
        names = [cut(row.name, 34 if wide else 40) for row in rows]
        left = LETTER * max((len(name) for name in names), default=0) + 18 if wide else 6
        bottom = 8.0 + step * len(rows)
        box = Box(x, Axis("", 0, 1), left, 8, width - 48, bottom)
        parts = [
            tag("line", x1=box.px(v), x2=box.px(v), y1=8, y2=bottom, class_="grid") for v in x.at(6 if wide else 4)
        ]
        parts.append(frame(box, wide=wide, bare_y=True))
        for i, (row, name) in enumerate(zip(rows, names, strict=True)):
            y = 8 + step * (i + (0.5 if wide else 0.68))
            parts.append(text(0, y + 4 if wide else y - 15, name, kind="row"))
            parts.append(_dot(box, row, y))
        return join(parts), bottom + 44

    return both(draw, label)


def _dot(box: Box, row: Row, y: float) -> Markup:
    if row.y is None:
        return text(box.left + 4, y + 4, row.words or "–", kind="value")
    parts = []
    if row.low is not None and row.high is not None:
        parts.append(tag("line", x1=box.px(row.low), x2=box.px(row.high), y1=y, y2=y, class_=f"whisker {row.kind}"))
    parts.append(marker(0, box.px(row.y), y, row.kind, row.title, 5))
    edge = row.y if row.high is None else max(row.high, row.y)
    parts.append(text(box.px(edge) + 9, y + 4, row.words, kind="value"))
    return join(parts)


def bars(rows: Sequence[Row], x: Axis, label: str) -> Markup:
    """Draw horizontal bars from zero, the value at each end."""

    def draw(wide: bool) -> tuple[Markup, float]:
        width, step = (WIDE, 30) if wide else (NARROW, 44)
        names = [cut(row.name, 34 if wide else 40) for row in rows]
        left = LETTER * max((len(name) for name in names), default=0) + 18 if wide else 2
        room = LETTER * max((len(row.words) for row in rows), default=0) + 16
        bottom = 8.0 + step * len(rows)
        box = Box(x, Axis("", 0, 1), left, 8, width - room, bottom)
        parts = [
            tag("line", x1=box.px(v), x2=box.px(v), y1=8, y2=bottom, class_="grid") for v in x.at(5 if wide else 3)
        ]
        parts.append(frame(box, wide=wide, bare_y=True))
        for i, (row, name) in enumerate(zip(rows, names, strict=True)):
            y = 8 + step * (i + (0.5 if wide else 0.68))
            parts.append(text(0, y + 4 if wide else y - 13, name, kind="row"))
            parts.append(_bar(box, row, y))
        return join(parts), bottom + 44

    return both(draw, label)


def _bar(box: Box, row: Row, y: float) -> Markup:
    zero = box.px(max(min(0.0, box.x.high), box.x.low))
    end = zero if row.y is None else box.px(row.y)
    tip = tag("title", row.title) if row.title else Markup("")
    left, right = min(zero, end), max(zero, end)
    bar = tag("rect", tip, x=left, y=y - 8, width=max(right - left, 0.8), height=16, class_=f"bar {row.kind}")
    return bar + text(right + 7, y + 4, row.words, kind="value")


def reliability(series: Sequence[tuple[str, Sequence[tuple[float, float, float]], str]], label: str) -> Markup:
    """Draw how often the model is right against how sure it says it is; a mark's size is its share of pixels.

    Args:
        series: Name, (confidence, accuracy, share of pixels) per bin, color class.
        label: What the figure shows, for those who cannot see it.
    """
    low = min([0.5, *(min(c, a) for _, bins, _ in series for c, a, _ in bins)])
    low = max(0.0, int(low * 10) / 10)

    def draw(wide: bool) -> tuple[Markup, float]:
        side = 380.0 if wide else 220.0
        say = "{:.0%}".format
        x = Axis("how sure the model says it is", low, 1, say)
        y = Axis("how often it is right", low, 1, say)
        box = Box(x, y, 40, 34, 40 + side, 34 + side)
        parts = [frame(box, wide=wide)]
        parts.append(path([(box.px(low), box.py(low)), (box.px(1), box.py(1))], "ideal"))
        parts.append(text(box.px(1) + 8, box.py(1) + 4, "as sure as right" if wide else "ideal", kind="note"))
        curves = []
        for i, (name, bins, kind) in enumerate(series):
            dots = tuple(Point(c, a) for c, a, _ in bins)
            curves.append(Series(name, dots, kind, -1))
            parts.append(_curve(box, curves[-1]))
            for c, a, share in bins:
                tip = f"{name}: says {c:.1%}, right {a:.1%}, {share:.1%} of the pixels"
                parts.append(marker(i, box.px(c), box.py(a), kind, tip, 2.5 + 9 * share**0.5))
        lower = Box(x, y, 40, 34 + 22, 40 + side, 34 + side)
        names = [cut(one.name, 32 if wide else 10) for one in curves]
        parts += _names(lower, curves, names)
        return join(parts), 34 + side + 48

    return both(draw, label)

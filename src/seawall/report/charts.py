"""The figures' shapes: curves with intervals, intervals in rows, bars, and the reliability diagram."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
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
    frame,
    join,
    marker,
    path,
    spread,
    tag,
    text,
)  # fmt: skip

STAR = "*"
"""Beside every value that carries a flag; what the flag says stands under the figure."""
LINE = 16
"""Height of a line of a legend, in pixels."""
ENDS = 28, 15
"""Longest name at the end of a curve, on a wide page and on a phone; longer ones make a legend under the figure."""


@dataclass(frozen=True)
class Drawing:
    """A figure and the flags of what it shows.

    Args:
        svg: The picture.
        flags: Flags of the values in it, in the order of first sight.
    """

    svg: Markup
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """One measured point; `y` is None where it is undefined, and the curve has a gap there."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    title: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """A named curve. `kind` is a color class of the style sheet, `shape` the mark; -1 draws no marks."""

    name: str
    points: tuple[Point, ...]
    kind: str
    shape: int = 0

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of all points."""
        return _first_seen(p.flags for p in self.points)

    @property
    def label(self) -> str:
        """The name, with a star where a point carries a flag."""
        return f"{self.name} {STAR}" if self.flags else self.name


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
    flags: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """The value in words, with a star where it carries a flag."""
        return f"{self.words} {STAR}" if self.flags else self.words


@dataclass(frozen=True)
class Bins:
    """One reliability curve: (confidence, accuracy, share of pixels) per bin."""

    name: str
    bins: tuple[tuple[float, float, float], ...]
    kind: str
    flags: tuple[str, ...] = ()


def palette(index: int) -> str:
    """Return the color class of the i-th series."""
    return f"c{index % 7}"


def lines(series: Sequence[Series], x: Axis, y: Axis, label: str, *, height: float = 300) -> Drawing:
    """Draw curves, each named at its end, or in a legend where a name is too long for that."""

    def draw(wide: bool) -> tuple[Markup, float]:
        width = WIDE if wide else NARROW
        names = [one.label for one in series]
        ends = max((len(name) for name in names), default=0) <= ENDS[not wide]
        room = BOLD * max((len(name) for name in names), default=0) + 14 if ends else 12
        foot = 88 if x.second[1] else 48
        box = Box(x, y, 40, 34, width - room - 4, 34 + height)
        parts = [frame(box, wide=wide)]
        parts += [_band(box, one) for one in series]
        parts += [_curve(box, one) for one in series]
        if ends:
            parts += _names(box, series, names)
            return join(parts), 34 + height + foot
        keys, tall = _legend(series, 34 + height + foot + 14, width)
        return join([*parts, *keys]), 34 + height + foot + 14 + tall

    return Drawing(both(draw, label), _first_seen(one.flags for one in series))


def _first_seen(flags: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(flag for some in flags for flag in some))


def _legend(series: Sequence[Series], top: float, width: float) -> tuple[list[Markup], float]:
    """Name every curve in full under the figure; return the parts and their height."""
    parts, at = [], top
    for one in series:
        rows = _wrapped(one.label, width - 34)
        parts.append(path([(0, at), (24, at)], f"line {one.kind}"))
        if one.shape >= 0:
            parts.append(marker(one.shape, 12, at, one.kind, ""))
        parts += [text(32, at + 4 + LINE * i, words, kind=f"name {one.kind}") for i, words in enumerate(rows)]
        at += LINE * len(rows) + 3
    return parts, at - top


def _wrapped(words: str, room: float) -> list[str]:
    return textwrap.wrap(words, max(int(room / BOLD), 8)) or [""]


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
    for p in one.points:
        if p.y is None:
            continue
        if one.shape >= 0:
            parts.append(marker(one.shape, box.px(p.x), box.py(p.y), one.kind, _tip(p.title, p.flags)))
        if p.flags:
            parts.append(text(box.px(p.x) + 3, box.py(p.y) - 4, STAR, kind="star"))
    return join(parts)


def _tip(title: str, flags: Sequence[str]) -> str:
    return f"{title} · flagged: {', '.join(flags)}" if flags else title


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


def intervals(rows: Sequence[Row], x: Axis, label: str) -> Drawing:
    """Draw one dot with its interval per row, the row's name above it where it is long."""

    def draw(wide: bool) -> tuple[Markup, float]:
        plan = _Rows.of(rows, wide, 6)
        box = Box(x, Axis("", 0, 1), plan.left, 8, plan.width - 56, plan.bottom)
        parts = plan.grid(box, wide)
        for i, row in enumerate(rows):
            parts += plan.name(i)
            parts.append(_dot(box, row, plan.at(i)))
        return join(parts), plan.bottom + 44

    return Drawing(both(draw, label), _first_seen(row.flags for row in rows))


@dataclass(frozen=True)
class _Rows:
    """How named rows share a picture: names beside the rows, or above them where there is little room."""

    names: tuple[list[str], ...]
    width: float
    left: float
    step: float
    above: int

    @staticmethod
    def of(rows: Sequence[Row], wide: bool, inset: float) -> _Rows:
        width = WIDE if wide else NARROW
        longest = max((len(row.name) for row in rows), default=0)
        if wide and longest <= 40:
            return _Rows(tuple([row.name] for row in rows), width, LETTER * longest + 18, 32, 0)
        names = tuple(_wrapped(row.name, width) for row in rows)
        above = max((len(name) for name in names), default=1)
        return _Rows(names, width, inset, 30 + 15 * above, above)

    @property
    def bottom(self) -> float:
        """Where the axis lies."""
        return 8.0 + self.step * len(self.names)

    def at(self, i: int) -> float:
        """Return the height of a row's mark."""
        return 8 + self.step * i + (15 * self.above + 14 if self.above else self.step / 2)

    def name(self, i: int) -> list[Markup]:
        """Return a row's name, line by line."""
        top = self.at(i) - 15 * self.above if self.above else self.at(i) + 4
        return [text(0, top + 15 * j, words, kind="row") for j, words in enumerate(self.names[i])]

    def grid(self, box: Box, wide: bool) -> list[Markup]:
        """Return the grid and the axis."""
        values = box.x.at(6 if wide else 4)
        return [
            *(tag("line", x1=box.px(v), x2=box.px(v), y1=8, y2=self.bottom, class_="grid") for v in values),
            frame(box, wide=wide, bare_y=True),
        ]


def _dot(box: Box, row: Row, y: float) -> Markup:
    if row.y is None:
        return text(box.left + 4, y + 4, row.value or "–", kind="value")
    parts = []
    if row.low is not None and row.high is not None:
        parts.append(tag("line", x1=box.px(row.low), x2=box.px(row.high), y1=y, y2=y, class_=f"whisker {row.kind}"))
    parts.append(marker(0, box.px(row.y), y, row.kind, _tip(row.title, row.flags), 5))
    edge = row.y if row.high is None else max(row.high, row.y)
    parts.append(text(box.px(edge) + 9, y + 4, row.value, kind="value"))
    return join(parts)


def bars(rows: Sequence[Row], x: Axis, label: str) -> Drawing:
    """Draw horizontal bars from zero, the value at each end."""

    def draw(wide: bool) -> tuple[Markup, float]:
        plan = _Rows.of(rows, wide, 2)
        room = LETTER * max((len(row.value) for row in rows), default=0) + 16
        box = Box(x, Axis("", 0, 1), plan.left, 8, plan.width - room, plan.bottom)
        parts = plan.grid(box, wide)
        for i, row in enumerate(rows):
            parts += plan.name(i)
            parts.append(_bar(box, row, plan.at(i)))
        return join(parts), plan.bottom + 44

    return Drawing(both(draw, label), _first_seen(row.flags for row in rows))


def _bar(box: Box, row: Row, y: float) -> Markup:
    zero = box.px(max(min(0.0, box.x.high), box.x.low))
    end = zero if row.y is None else box.px(row.y)
    title = _tip(row.title, row.flags)
    tip = tag("title", title) if title else Markup("")
    left, right = min(zero, end), max(zero, end)
    bar = tag("rect", tip, x=left, y=y - 8, width=max(right - left, 0.8), height=16, class_=f"bar {row.kind}")
    return bar + text(right + 7, y + 4, row.value, kind="value")


def reliability(series: Sequence[Bins], label: str) -> Drawing:
    """Draw how often the model is right against how sure it says it is; a mark's size is its share of pixels.

    Args:
        series: The curves.
        label: What the figure shows, for those who cannot see it.
    """
    low = min([0.5, *(min(c, a) for one in series for c, a, _ in one.bins)])
    low = max(0.0, int(low * 10) / 10)

    def draw(wide: bool) -> tuple[Markup, float]:
        width, side = (WIDE, 380.0) if wide else (NARROW, 250.0)
        x, y = (
            Axis(title, low, 1, "{:.0%}".format) for title in ("how sure the model says it is", "how often it is right")
        )
        box = Box(x, y, 40, 34, 40 + side, 34 + side)
        parts = [frame(box, wide=wide)]
        parts.append(path([(box.px(low), box.py(low)), (box.px(1), box.py(1))], "ideal"))
        parts.append(text(box.px(1) + 8, box.py(1) + 4, "as sure as right" if wide else "ideal", kind="note"))
        curves = []
        for i, one in enumerate(series):
            curves.append(Series(one.name, tuple(Point(c, a, flags=one.flags) for c, a, _ in one.bins), one.kind, i))
            parts.append(_curve(box, Series(one.name, tuple(Point(c, a) for c, a, _ in one.bins), one.kind, -1)))
            for c, a, share in one.bins:
                tip = _tip(f"{one.name}: says {c:.1%}, right {a:.1%}, {share:.1%} of the pixels", one.flags)
                parts.append(marker(i, box.px(c), box.py(a), one.kind, tip, 2.5 + 9 * share**0.5))
        keys, tall = _legend(curves, 34 + side + 56, width)
        return join([*parts, *keys]), 34 + side + 56 + tall

    return Drawing(both(draw, label), _first_seen(one.flags for one in series))

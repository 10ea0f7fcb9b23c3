"""Charts: curves with intervals, rows with intervals, bars, and the reliability diagram."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from seawall.report.svg import (  # fmt: skip
    BOLD_LETTER_WIDTH,
    LETTER_WIDTH,
    NARROW_PAGE,
    WIDE_PAGE,
    ChartAxis,
    PlotArea,
    concat,
    draw_both_widths,
    filled_area,
    frame,
    marker,
    path_through,
    spread_labels,
    tag,
    text_line,
)

FLAG_MARK = "*"
"""Mark beside every flagged value; the flags are explained under the chart."""
LEGEND_LINE_HEIGHT = 16
"""Height of a line of a legend, in pixels."""
MAX_END_LABEL = 28, 15
"""Longest label at the end of a curve, in letters, on a wide page and on a phone; longer ones go into a legend."""


@dataclass(frozen=True)
class Drawing:
    """A chart as SVG with the flags of its values.

    Args:
        svg: The chart.
        flags: Flags of its values, each once.
    """

    svg: Markup
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve with its interval; where `y` is None the curve has a gap."""

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    title: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """A named curve. `kind` is a color class of the style sheet, `shape` the number of the mark; -1 draws no marks."""

    name: str
    points: tuple[CurvePoint, ...]
    kind: str
    shape: int = 0

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of all points."""
        return _unique_flags(p.flags for p in self.points)

    @property
    def label(self) -> str:
        """The name, with a mark where a point is flagged."""
        return f"{self.name} {FLAG_MARK}" if self.flags else self.name


@dataclass(frozen=True)
class ChartRow:
    """One row of an interval plot or a bar plot."""

    name: str
    y: float | None
    low: float | None = None
    high: float | None = None
    kind: str = "c0"
    title: str = ""
    text: str = ""
    flags: tuple[str, ...] = ()

    @property
    def value_label(self) -> str:
        """The value as text, with a mark where it is flagged."""
        return f"{self.text} {FLAG_MARK}" if self.flags else self.text


@dataclass(frozen=True)
class ReliabilityCurve:
    """One reliability curve: (confidence, accuracy, share of pixels) per bin."""

    name: str
    bins: tuple[tuple[float, float, float], ...]
    kind: str
    flags: tuple[str, ...] = ()


def series_color(index: int) -> str:
    """Return the color class of the i-th series."""
    return f"c{index % 7}"


def line_chart(series: Sequence[Series], x: ChartAxis, y: ChartAxis, label: str, *, height: float = 300) -> Drawing:
    """Draw curves, each labelled at its end, or in a legend where a name is too long for that."""

    def draw(wide: bool) -> tuple[Markup, float]:
        width = WIDE_PAGE if wide else NARROW_PAGE
        names = [one.label for one in series]
        ends = max((len(name) for name in names), default=0) <= MAX_END_LABEL[not wide]
        room = BOLD_LETTER_WIDTH * max((len(name) for name in names), default=0) + 14 if ends else 12
        foot = 88 if x.second_scale[1] else 48
        box = PlotArea(x, y, 40, 34, width - room - 4, 34 + height)
        parts = [frame(box, wide=wide)]
        parts += [_interval_band(box, one) for one in series]
        parts += [_curve(box, one) for one in series]
        if ends:
            parts += _end_labels(box, series, names)
            return concat(parts), 34 + height + foot
        keys, tall = _legend(series, 34 + height + foot + 14, width)
        return concat([*parts, *keys]), 34 + height + foot + 14 + tall

    return Drawing(draw_both_widths(draw, label), _unique_flags(one.flags for one in series))


def _unique_flags(flags: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(flag for some in flags for flag in some))


def _legend(series: Sequence[Series], top: float, width: float) -> tuple[list[Markup], float]:
    """Return a legend with the full names of the curves, and its height."""
    parts, at = [], top
    for one in series:
        rows = _wrap_label(one.label, width - 34)
        parts.append(path_through([(0, at), (24, at)], f"line {one.kind}"))
        if one.shape >= 0:
            parts.append(marker(one.shape, 12, at, one.kind, ""))
        parts += [
            text_line(32, at + 4 + LEGEND_LINE_HEIGHT * i, words, kind=f"name {one.kind}")
            for i, words in enumerate(rows)
        ]
        at += LEGEND_LINE_HEIGHT * len(rows) + 3
    return parts, at - top


def _wrap_label(words: str, room: float) -> list[str]:
    return textwrap.wrap(words, max(int(room / BOLD_LETTER_WIDTH), 8)) or [""]


def _interval_band(box: PlotArea, one: Series) -> Markup:
    known = [p for p in one.points if p.low is not None and p.high is not None]
    if len(known) < 2:
        return concat([_whisker(box, p, one.kind) for p in known])
    low = [(box.px(p.x), box.py(p.low)) for p in known if p.low is not None]
    high = [(box.px(p.x), box.py(p.high)) for p in known if p.high is not None]
    return filled_area(low, high, f"band {one.kind}")


def _whisker(box: PlotArea, p: CurvePoint, kind: str) -> Markup:
    if p.low is None or p.high is None:
        return Markup("")
    return tag("line", x1=box.px(p.x), x2=box.px(p.x), y1=box.py(p.low), y2=box.py(p.high), class_=f"whisker {kind}")


def _curve(box: PlotArea, one: Series) -> Markup:
    parts, run = [], []
    for p in (*one.points, CurvePoint(0, None)):
        if p.y is not None:
            run.append((box.px(p.x), box.py(p.y)))
            continue
        if len(run) > 1:
            parts.append(path_through(run, f"line {one.kind}"))
        run = []
    for p in one.points:
        if p.y is None:
            continue
        if one.shape >= 0:
            parts.append(marker(one.shape, box.px(p.x), box.py(p.y), one.kind, _tooltip(p.title, p.flags)))
        if p.flags:
            parts.append(text_line(box.px(p.x) + 3, box.py(p.y) - 4, FLAG_MARK, kind="star"))
    return concat(parts)


def _tooltip(title: str, flags: Sequence[str]) -> str:
    return f"{title} · flagged: {', '.join(flags)}" if flags else title


def _end_labels(box: PlotArea, series: Sequence[Series], names: Sequence[str]) -> list[Markup]:
    ends = [[(p.x, p.y) for p in one.points if p.y is not None] for one in series]
    drawn = [i for i, end in enumerate(ends) if end]
    at = spread_labels([box.py(ends[i][-1][1]) for i in drawn], 15, box.top, box.bottom)
    parts = []
    for i, y in zip(drawn, at, strict=True):
        x, value = ends[i][-1]
        start, kind = box.px(x) + 6, series[i].kind
        if abs(y - box.py(value)) > 2 or start < box.right:
            parts.append(tag("line", x1=start, x2=box.right + 8, y1=box.py(value), y2=y, class_="leader"))
        parts.append(text_line(box.right + 11, y + 4, names[i], kind=f"name {kind}"))
    return parts


def interval_chart(rows: Sequence[ChartRow], x: ChartAxis, label: str) -> Drawing:
    """Draw one dot with its interval per row; long names stand above their row."""

    def draw(wide: bool) -> tuple[Markup, float]:
        layout = _RowLayout.of(rows, wide, 6)
        box = PlotArea(x, ChartAxis("", 0, 1), layout.left, 8, layout.width - 56, layout.bottom)
        parts = layout.grid(box, wide)
        for i, row in enumerate(rows):
            parts += layout.name(i)
            parts.append(_interval_row(box, row, layout.at(i)))
        return concat(parts), layout.bottom + 44

    return Drawing(draw_both_widths(draw, label), _unique_flags(row.flags for row in rows))


@dataclass(frozen=True)
class _RowLayout:
    """Positions of named rows: names beside the rows, or above them where there is little room."""

    names: tuple[list[str], ...]
    width: float
    left: float
    step: float
    above: int

    @staticmethod
    def of(rows: Sequence[ChartRow], wide: bool, inset: float) -> _RowLayout:
        width = WIDE_PAGE if wide else NARROW_PAGE
        longest = max((len(row.name) for row in rows), default=0)
        if wide and longest <= 40:
            return _RowLayout(tuple([row.name] for row in rows), width, LETTER_WIDTH * longest + 18, 32, 0)
        names = tuple(_wrap_label(row.name, width) for row in rows)
        above = max((len(name) for name in names), default=1)
        return _RowLayout(names, width, inset, 30 + 15 * above, above)

    @property
    def bottom(self) -> float:
        """Vertical pixel of the axis."""
        return 8.0 + self.step * len(self.names)

    def at(self, i: int) -> float:
        """Return the vertical pixel of a row's mark."""
        return 8 + self.step * i + (15 * self.above + 14 if self.above else self.step / 2)

    def name(self, i: int) -> list[Markup]:
        """Return a row's name, line by line."""
        top = self.at(i) - 15 * self.above if self.above else self.at(i) + 4
        return [text_line(0, top + 15 * j, words, kind="row") for j, words in enumerate(self.names[i])]

    def grid(self, box: PlotArea, wide: bool) -> list[Markup]:
        """Return the grid and the axis."""
        values = box.x.tick_values(6 if wide else 4)
        return [
            *(tag("line", x1=box.px(v), x2=box.px(v), y1=8, y2=self.bottom, class_="grid") for v in values),
            frame(box, wide=wide, bare_y=True),
        ]


def _interval_row(box: PlotArea, row: ChartRow, y: float) -> Markup:
    if row.y is None:
        return text_line(box.left + 4, y + 4, row.value_label or "–", kind="value")
    parts = []
    if row.low is not None and row.high is not None:
        parts.append(tag("line", x1=box.px(row.low), x2=box.px(row.high), y1=y, y2=y, class_=f"whisker {row.kind}"))
    parts.append(marker(0, box.px(row.y), y, row.kind, _tooltip(row.title, row.flags), 5))
    edge = row.y if row.high is None else max(row.high, row.y)
    parts.append(text_line(box.px(edge) + 9, y + 4, row.value_label, kind="value"))
    return concat(parts)


def bar_chart(rows: Sequence[ChartRow], x: ChartAxis, label: str) -> Drawing:
    """Draw horizontal bars from zero with the value at the end of each."""

    def draw(wide: bool) -> tuple[Markup, float]:
        layout = _RowLayout.of(rows, wide, 2)
        room = LETTER_WIDTH * max((len(row.value_label) for row in rows), default=0) + 16
        box = PlotArea(x, ChartAxis("", 0, 1), layout.left, 8, layout.width - room, layout.bottom)
        parts = layout.grid(box, wide)
        for i, row in enumerate(rows):
            parts += layout.name(i)
            parts.append(_bar(box, row, layout.at(i)))
        return concat(parts), layout.bottom + 44

    return Drawing(draw_both_widths(draw, label), _unique_flags(row.flags for row in rows))


def _bar(box: PlotArea, row: ChartRow, y: float) -> Markup:
    zero = box.px(max(min(0.0, box.x.high), box.x.low))
    end = zero if row.y is None else box.px(row.y)
    title = _tooltip(row.title, row.flags)
    tip = tag("title", title) if title else Markup("")
    left, right = min(zero, end), max(zero, end)
    bar = tag("rect", tip, x=left, y=y - 8, width=max(right - left, 0.8), height=16, class_=f"bar {row.kind}")
    return bar + text_line(right + 7, y + 4, row.value_label, kind="value")


def reliability_diagram(series: Sequence[ReliabilityCurve], label: str) -> Drawing:
    """Draw accuracy against confidence; the size of a mark is its share of the pixels.

    Args:
        series: The curves.
        label: Description of the chart for screen readers.
    """
    low = min([0.5, *(min(c, a) for one in series for c, a, _ in one.bins)])
    low = max(0.0, int(low * 10) / 10)

    def draw(wide: bool) -> tuple[Markup, float]:
        width, side = (WIDE_PAGE, 380.0) if wide else (NARROW_PAGE, 250.0)
        x, y = (
            ChartAxis(title, low, 1, "{:.0%}".format)
            for title in ("how sure the model says it is", "how often it is right")
        )
        box = PlotArea(x, y, 40, 34, 40 + side, 34 + side)
        parts = [frame(box, wide=wide)]
        parts.append(path_through([(box.px(low), box.py(low)), (box.px(1), box.py(1))], "ideal"))
        parts.append(text_line(box.px(1) + 8, box.py(1) + 4, "as sure as right" if wide else "ideal", kind="note"))
        curves = []
        for i, one in enumerate(series):
            curves.append(
                Series(one.name, tuple(CurvePoint(c, a, flags=one.flags) for c, a, _ in one.bins), one.kind, i)
            )
            parts.append(_curve(box, Series(one.name, tuple(CurvePoint(c, a) for c, a, _ in one.bins), one.kind, -1)))
            for c, a, share in one.bins:
                tip = _tooltip(f"{one.name}: says {c:.1%}, right {a:.1%}, {share:.1%} of the pixels", one.flags)
                parts.append(marker(i, box.px(c), box.py(a), one.kind, tip, 2.5 + 9 * share**0.5))
        keys, tall = _legend(curves, 34 + side + 56, width)
        return concat([*parts, *keys]), 34 + side + 56 + tall

    return Drawing(draw_both_widths(draw, label), _unique_flags(one.flags for one in series))

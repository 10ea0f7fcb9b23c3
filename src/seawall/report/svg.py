"""SVG drawing: axes, marks, and labels that do not overlap; colors come from the page's style sheet.

Every figure is drawn twice, for a wide page and for a phone, because text inside a scaled picture becomes unreadable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDE_PAGE, NARROW_PAGE = 720, 336
LETTER_WIDTH = 6.4
"""Mean width of a letter at the figures' font size, in pixels."""
BOLD_LETTER_WIDTH = 7.1
"""The same for the bold names at the ends of curves."""


@dataclass(frozen=True)
class ChartAxis:
    """One axis of a chart: its title with the unit, its range, its ticks.

    Args:
        title: What is measured, with its unit.
        low: Value at the start.
        high: Value at the end.
        format_tick: Turns a tick's value into text.
        ticks: Tick values; empty chooses round ones.
        second_scale: A second scale under the first: its title and (value on this axis, text) pairs.
    """

    title: str
    low: float
    high: float
    format_tick: Callable[[float], str] = lambda value: f"{value:g}"
    ticks: tuple[float, ...] = ()
    second_scale: tuple[str, tuple[tuple[float, str], ...]] = field(default=("", ()))

    def tick_values(self, count: int) -> tuple[float, ...]:
        """Return the tick values, about `count` of them."""
        return self.ticks or round_ticks(self.low, self.high, count)


@dataclass(frozen=True)
class PlotArea:
    """The rectangle of the plot inside the picture, and the conversion of values to pixels."""

    x: ChartAxis
    y: ChartAxis
    left: float
    top: float
    right: float
    bottom: float

    def px(self, value: float) -> float:
        """Return the horizontal pixel of a value."""
        return self.left + (value - self.x.low) / ((self.x.high - self.x.low) or 1) * (self.right - self.left)

    def py(self, value: float) -> float:
        """Return the vertical pixel of a value; pixels count down."""
        return self.bottom - (value - self.y.low) / ((self.y.high - self.y.low) or 1) * (self.bottom - self.top)


def round_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return round tick values within [low, high].

    Example:
        >>> round_ticks(0, 1, 5)
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
        >>> round_ticks(0, 0.02, 4)
        (0.0, 0.005, 0.01, 0.015, 0.02)
    """
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / max(count, 1)))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(span / s - count))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(i * step, 10) for i in range(first, last + 1))


def coordinate_text(value: float) -> str:
    """Write a coordinate in tenths of a pixel, the same on every machine.

    Example:
        >>> coordinate_text(12.0), coordinate_text(3.14159), coordinate_text(-0.01)
        ('12', '3.1', '0')
    """
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def tag(name: str, body: str | Markup = "", **attributes: str | float) -> Markup:
    """Return one element; every attribute and every plain text is escaped."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value if isinstance(value, str) else coordinate_text(value))}"'
        for key, value in attributes.items()
    )
    inner = escape(body)
    return Markup(f"<{name}{pairs}>{inner}</{name}>" if inner else f"<{name}{pairs}/>")


def concat(parts: Sequence[Markup]) -> Markup:
    """Concatenate elements."""
    return Markup("").join(parts)


def text_line(x: float, y: float, words: str, *, kind: str = "", anchor: str = "start") -> Markup:
    """Return a line of text."""
    return tag("text", words, x=x, y=y, class_=f"t {kind}".strip(), text_anchor=anchor)


def marker(shape: int, x: float, y: float, kind: str, title: str, size: float = 4.0) -> Markup:
    """Return a circle, square, triangle or diamond with a tooltip; series differ by shape as well as by color."""
    tip = tag("title", title) if title else Markup("")
    if shape % 4 == 0:
        return tag("circle", tip, cx=x, cy=y, r=size, class_=f"mark {kind}")
    shapes: dict[int, list[tuple[float, float]]] = {
        1: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        2: [(0, -1.25), (1.15, 0.95), (-1.15, 0.95)],
        3: [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
    }
    corners = shapes[shape % 4]
    points = " ".join(
        f"{coordinate_text(x + size * 0.9 * dx)},{coordinate_text(y + size * 0.9 * dy)}" for dx, dy in corners
    )
    return tag("polygon", tip, points=points, class_=f"mark {kind}")


def path_through(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """Return a line through points."""
    steps = "".join(f"{'L' if i else 'M'}{coordinate_text(x)} {coordinate_text(y)}" for i, (x, y) in enumerate(points))
    return tag("path", d=steps, class_=kind)


def filled_area(low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]], kind: str) -> Markup:
    """Return the surface between two lines."""
    points = " ".join(f"{coordinate_text(x)},{coordinate_text(y)}" for x, y in [*low, *reversed(high)])
    return tag("polygon", points=points, class_=kind)


def frame(box: PlotArea, *, wide: bool, bare_y: bool = False) -> Markup:
    """Return grid lines, ticks and axis titles; the title of the vertical axis stands above it."""
    parts = [text_line(0, box.top - 14, box.y.title, kind="axis")] if box.y.title else []
    for value in () if bare_y else box.y.tick_values(5):
        y = box.py(value)
        parts += [
            tag("line", x1=box.left, x2=box.right, y1=y, y2=y, class_="grid"),
            text_line(box.left - 7, y + 4, box.y.format_tick(value), kind="tick", anchor="end"),
        ]
    parts.append(tag("line", x1=box.left, x2=box.right, y1=box.bottom, y2=box.bottom, class_="base"))
    row = box.bottom + 17
    parts += _tick_labels(
        box, [(value, box.x.format_tick(value)) for value in box.x.tick_values(7 if wide else 4)], row
    )
    parts.append(_title_below(box, box.x.title, row + 17))
    if box.x.second_scale[1]:
        parts += _tick_labels(box, list(box.x.second_scale[1]), row + 38)
        parts.append(_title_below(box, box.x.second_scale[0], row + 55))
    return concat(parts)


def _title_below(box: PlotArea, title: str, y: float) -> Markup:
    """Return the title of a horizontal axis, aligned to its end, or to the left edge of the picture if it is long."""
    if LETTER_WIDTH * len(title) > box.right:
        return text_line(0, y, title, kind="axis")
    return text_line(box.right, y, title, kind="axis", anchor="end")


def _tick_labels(box: PlotArea, ticks: Sequence[tuple[float, str]], y: float) -> list[Markup]:
    """Return tick labels from left to right, without those that would touch the one before."""
    parts, edge = [], -1e9
    for value, words in ticks:
        x, half = box.px(value), LETTER_WIDTH * len(words) / 2
        if x - half > edge:
            parts.append(text_line(x, y, words, kind="tick", anchor="middle"))
            edge = x + half + 5
    return parts


def spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label heights apart until they are `gap` from each other, within [low, high] where they fit.

    Example:
        >>> spread_labels([10, 11, 50], 14, 0, 100)
        [3.5, 17.5, 50.0]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[list[int], float]] = []
    for i in order:
        groups.append(([i], float(wanted[i])))
        while len(groups) > 1 and _first_label_y(groups[-1], gap) < _last_label_y(groups[-2], gap) + gap:
            upper, lower = groups[-2], groups.pop()
            sizes = len(upper[0]), len(lower[0])
            center = (upper[1] * sizes[0] + lower[1] * sizes[1]) / sum(sizes)
            groups[-1] = (upper[0] + lower[0], center)
    placed = [0.0] * len(wanted)
    for members, center in groups:
        reach = gap * (len(members) - 1) / 2
        center = min(max(center, low + reach), max(high - reach, low + reach))
        for j, i in enumerate(members):
            placed[i] = center - reach + j * gap
    return placed


def _first_label_y(group: tuple[list[int], float], gap: float) -> float:
    return group[1] - gap * (len(group[0]) - 1) / 2


def _last_label_y(group: tuple[list[int], float], gap: float) -> float:
    return group[1] + gap * (len(group[0]) - 1) / 2


def draw_both_widths(draw: Callable[[bool], tuple[Markup, float]], label: str) -> Markup:
    """Draw a chart for a wide page and for a phone; the style sheet shows one of them.

    Args:
        draw: Takes whether the page is wide; returns the drawing and its height.
        label: Description of the chart for screen readers.
    """
    parts = []
    for wide in (True, False):
        body, height = draw(wide)
        width = WIDE_PAGE if wide else NARROW_PAGE
        parts.append(
            tag("svg", tag("title", label) + body, viewBox=f"0 0 {width} {coordinate_text(height)}", role="img", aria_label=label,
                class_=f"chart {'wide' if wide else 'narrow'}")
        )  # fmt: skip
    return concat(parts)

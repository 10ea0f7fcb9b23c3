"""What a section is made of: prose, facts, charts, tables, swipe pairs, maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from seawall.report.charts import Drawing
from seawall.report.flags import Flag
from seawall.report.record_index import Cell

Sentence = tuple[str | Cell, ...]
"""Words and numbers; each number keeps the key of its record."""


Line = tuple[str | Cell, ...]
"""One row of a table."""


def line(*cells: str | Cell) -> Line:
    """Return a row of a table."""
    return cells


@dataclass(frozen=True)
class Prose:
    """Paragraphs."""

    sentences: tuple[Sentence, ...]
    kind: str = "prose"


@dataclass(frozen=True)
class Facts:
    """Terms and what they are."""

    items: tuple[tuple[str, str], ...]
    kind: str = "facts"


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption and a line on how to read it; the drawing brings the flags of what it shows."""

    title: str
    drawing: Drawing
    note: str = ""
    kind: str = "chart"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its name.

    Args:
        title: What the table says.
        head: Column names with an explanation each.
        rows: Cells; plain text is a name or a word.
        note: How to read it.
        folded: Shown only when asked for.
        total: The last row sums up the others.
    """

    title: str
    head: tuple[tuple[str, str], ...]
    rows: tuple[Line, ...]
    note: str = ""
    folded: bool = False
    total: bool = False
    kind: str = "table"

    @property
    def left(self) -> tuple[bool, ...]:
        """Which columns hold words, and are set from the left."""
        return tuple(all(isinstance(row[j], str) for row in self.rows) for j in range(len(self.head)))


@dataclass(frozen=True)
class Layer:
    """One side of a swipe pair: a picture and what can be laid over it (name, address)."""

    name: str
    picture: str
    overlays: tuple[tuple[str, str], ...] = ()


Color = tuple[int, int, int]


@dataclass(frozen=True)
class Ramp:
    """The scale of a picture whose colors are numbers: what its ends mean, and its colors in between.

    Args:
        low: The lowest value in words.
        high: The highest value in words.
        colors: From the lowest to the highest.
    """

    low: str
    high: str
    colors: tuple[Color, ...]

    @property
    def gradient(self) -> str:
        """The colors as a style sheet writes them."""
        return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in self.colors)})"


@dataclass(frozen=True)
class Panel:
    """A small picture under a pair, with its scale where its colors are numbers."""

    name: str
    picture: str
    ramp: Ramp | None = None


@dataclass(frozen=True)
class Swipe:
    """Two pictures of one place, one over the other."""

    id: str
    title: str
    left: Layer
    right: Layer
    width: int
    height: int
    caption: Sentence = ()
    panels: tuple[Panel, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()
    scale: tuple[float, str] | None = None
    shown: int = 0


@dataclass(frozen=True)
class Swipes:
    """Swipe pairs side by side."""

    title: str
    pairs: tuple[Swipe, ...]
    note: str = ""
    large: bool = False
    kind: str = "swipes"


@dataclass(frozen=True)
class Doubts:
    """Flags with what they mean, what to do, and where they are."""

    items: tuple[tuple[Flag, str], ...]
    kind: str = "doubts"


@dataclass(frozen=True)
class Points:
    """A list of a bold lead and its explanation."""

    items: tuple[tuple[str, str], ...]
    kind: str = "points"


@dataclass(frozen=True)
class Code:
    """Text as it is, folded."""

    title: str
    text: str
    kind: str = "code"


Block = Prose | Facts | Chart | Table | Swipes | Doubts | Points | Code


@dataclass(frozen=True)
class Section:
    """A part of the page; one without blocks is left out."""

    id: str
    title: str
    lead: str
    blocks: Sequence[Block] = field(default_factory=tuple)

"""The elements of a section: paragraphs, definition lists, charts, tables, image pairs, flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from seawall.report.charts import Drawing
from seawall.report.flags import Flag
from seawall.report.record_index import TableCell

Sentence = tuple[str | TableCell, ...]
"""Text and numbers; each number has the key of its record."""


TableRow = tuple[str | TableCell, ...]
"""One row of a table."""


def table_row(*cells: str | TableCell) -> TableRow:
    """Return a row of a table."""
    return cells


@dataclass(frozen=True)
class Paragraphs:
    """Paragraphs."""

    sentences: tuple[Sentence, ...]
    kind: str = "paragraphs"


@dataclass(frozen=True)
class DefinitionList:
    """Pairs of a term and its value."""

    items: tuple[tuple[str, str], ...]
    kind: str = "definitions"


@dataclass(frozen=True)
class Chart:
    """A chart with its title and a note on how to read it; a folded one is collapsed until the reader opens it."""

    title: str
    drawing: Drawing
    note: str = ""
    folded: bool = False
    kind: str = "chart"


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its name.

    Args:
        title: Title and caption.
        head: Column names, each with an explanation.
        rows: Cells; a cell of plain text is a name.
        note: How to read the table.
        folded: The table is collapsed until the reader opens it.
        total: The last row summarizes the others.
    """

    title: str
    head: tuple[tuple[str, str], ...]
    rows: tuple[TableRow, ...]
    note: str = ""
    folded: bool = False
    total: bool = False
    kind: str = "table"

    @property
    def left(self) -> tuple[bool, ...]:
        """Whether each column holds text only and is aligned to the left."""
        return tuple(all(isinstance(row[j], str) for row in self.rows) for j in range(len(self.head)))


@dataclass(frozen=True)
class ImageLayer:
    """One side of an image pair: a picture, and its overlays as (name, data URL)."""

    name: str
    picture: str
    overlays: tuple[tuple[str, str], ...] = ()


RGB = tuple[int, int, int]


@dataclass(frozen=True)
class ColorScale:
    """The color scale of a picture.

    Args:
        low: The lowest value as text.
        high: The highest value as text.
        colors: Colors from the lowest to the highest value.
    """

    low: str
    high: str
    colors: tuple[RGB, ...]

    @property
    def gradient(self) -> str:
        """The colors as a CSS gradient."""
        return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in self.colors)})"


@dataclass(frozen=True)
class SmallImage:
    """A small picture under an image pair, with a color scale where it has one."""

    name: str
    picture: str
    scale: ColorScale | None = None


@dataclass(frozen=True)
class ImagePair:
    """Two pictures of one place, one over the other, with a slider that moves the border between them.

    Args:
        id: Id of the HTML element.
        title: Chip or scene.
        left: Picture on the left of the slider.
        right: Picture on its right.
        width: Pixels.
        height: Pixels.
        caption: Sentence under the pair.
        panels: Small pictures under the pair.
        legend: Color class of the style sheet and meaning, per color of the overlays.
        scale_bar: Share of the width, and the length that it stands for.
        shown: Number of the overlay that is shown first; 0 for none.
    """

    id: str
    title: str
    left: ImageLayer
    right: ImageLayer
    width: int
    height: int
    caption: Sentence = ()
    panels: tuple[SmallImage, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    scale_bar: tuple[float, str] | None = None
    shown: int = 0


@dataclass(frozen=True)
class ImagePairs:
    """Image pairs side by side."""

    title: str
    pairs: tuple[ImagePair, ...]
    note: str = ""
    large: bool = False
    kind: str = "image-pairs"


@dataclass(frozen=True)
class FlagList:
    """Flags with their meaning, what to do, and which numbers carry them."""

    items: tuple[tuple[Flag, str], ...]
    kind: str = "flags"


@dataclass(frozen=True)
class BulletList:
    """A list of items, each a bold lead and its explanation."""

    items: tuple[tuple[str, str], ...]
    kind: str = "bullets"


@dataclass(frozen=True)
class CodeBlock:
    """Preformatted text, collapsed until the reader opens it."""

    title: str
    text: str
    kind: str = "code"


PageBlock = Paragraphs | DefinitionList | Chart | Table | ImagePairs | FlagList | BulletList | CodeBlock


@dataclass(frozen=True)
class Section:
    """A section of the page; one without blocks is left out."""

    id: str
    title: str
    lead: str
    blocks: Sequence[PageBlock] = field(default_factory=tuple)

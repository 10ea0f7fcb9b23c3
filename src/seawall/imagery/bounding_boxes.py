"""Bounding boxes of the areas to fetch imagery for, read from a CSV file."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

from seawall.errors import DataError, did_you_mean

BOX_COLUMNS = ("left", "right", "top", "bottom", "name")


@dataclass(frozen=True)
class BoundingBox:
    """A named bounding box in degrees of longitude and latitude (WGS 84).

    Args:
        name: Its name, usable as a file name.
        left: Western longitude.
        right: Eastern longitude.
        top: Northern latitude.
        bottom: Southern latitude.
    """

    name: str
    left: float
    right: float
    top: float
    bottom: float

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north."""
        return self.left, self.bottom, self.right, self.top


def read_bounding_boxes(path: Path) -> tuple[BoundingBox, ...]:
    """Read bounding boxes from a CSV file with the columns left, right, top, bottom, name, in any order.

    Args:
        path: The file; missing names become "box1" and so on.

    Raises:
        DataError: A column is missing, a coordinate is not a number or out of range, or a name is repeated; the message
            has the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as bad:
        raise DataError(f"{path}: expected a CSV file of boxes, got {bad}; check the path") from bad
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    heads = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    for column in BOX_COLUMNS[:4]:
        if column not in heads:
            raise DataError(
                f"{path}: expected a column {column!r}, got {', '.join(heads) or 'nothing'}; {did_you_mean(column, heads or BOX_COLUMNS)}"
            )
    boxes: dict[str, BoundingBox] = {}
    for line, row in enumerate(rows, 2):
        box = _parse_box(f"{path}:{line}", {key: row.get(head) or "" for key, head in heads.items()}, len(boxes) + 1)
        if box.name.casefold() in boxes:
            raise DataError(f"{path}:{line}: expected each name once, got {box.name!r} again; rename it")
        boxes[box.name.casefold()] = box
    if not boxes:
        raise DataError(f"{path}: expected boxes, got none; add lines of left,right,top,bottom,name")
    return tuple(boxes.values())


def _parse_box(where: str, row: dict[str, str], number: int) -> BoundingBox:
    sides = [_parse_degrees(where, column, row[column]) for column in BOX_COLUMNS[:4]]
    left, right, top, bottom = sides
    if not (-180 <= left < right <= 180):
        raise DataError(f"{where}: expected -180 <= left < right <= 180, got {left} and {right}; swap or fix them")
    if not (-90 <= bottom < top <= 90):
        raise DataError(f"{where}: expected -90 <= bottom < top <= 90, got {bottom} and {top}; swap or fix them")
    name = re.sub(r"[^\w.-]+", "-", row.get("name", "").strip()).strip("-.")[:80] or f"box{number}"
    return BoundingBox(name, left, right, top, bottom)


def _parse_degrees(where: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: expected a number in {column!r}, got {text!r}; fix the line")
    return value

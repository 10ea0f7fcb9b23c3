"""A CSV index of image and label files."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from seawall.data.raw_chips import (
    NO_HINTS,
    FileItem,
    RejectedItem,
    SourceItem,
    add_file_items,
    clean_id,
    merge_hints,
)
from seawall.errors import DataError
from seawall.geo.radiometry import Hints
from seawall.registry import register

INDEX_TABLE_NAME = "index.csv"


@register("source", "index")
@dataclass(frozen=True)
class IndexTable:
    """A CSV index: columns `id`, `group`, `label`, and per sensor `s2`, `s2_bands`, `s2_scale` (or `s1...`).

    Args:
        path: The CSV file, or a folder with an `index.csv`; its paths are below its folder.
        sensor: Which columns, such as "s1" or "s2.pre" (the column `s2_pre`).
        select: Ids that start with this.
        hints: What is known about the numbers; the scale column fills in what is not.
        product: Product family; "" for what the scale column says.
        gsd_m: Ground sampling distance of rows without one, where files have no georeference.
        labelled: Whether label files are needed; False if a rule labels.
        label_map: Class value of each raw label value.
        classes: Class names in the order of label values.

    Raises:
        DataError: There is no such file, or it has no column of the sensor or no id that is selected.
    """

    path: Path
    sensor: str = "s2"
    select: str = ""
    hints: Hints = NO_HINTS
    product: str = ""
    gsd_m: float | None = None
    labelled: bool = True
    label_map: Mapping[int, int] | None = None
    classes: tuple[str, ...] | None = None
    example: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "index.csv": "id,group,label,s2\na,north,label/a.tif,s2/a.tif\nb,south,label/b.tif,s2/b.tif\n",
            **{
                f"{folder}/{chip}.tif": content
                for chip in "ab"
                for folder, content in (("s2", "image"), ("label", "label"))
            },
        }
    )

    @classmethod
    def claims(cls, place: Path) -> bool:
        """Return whether this is a CSV file or a folder with an `index.csv`."""
        return place.suffix.lower() == ".csv" or (place / INDEX_TABLE_NAME).is_file()

    def __post_init__(self) -> None:
        if self.path.is_dir():
            object.__setattr__(self, "path", self.path / INDEX_TABLE_NAME)
        rows = self._rows()
        if not self.product:
            object.__setattr__(self, "product", scale_product(rows[0].get(f"{self.column}_scale", ""), self.sensor))

    @property
    def column(self) -> str:
        """Name of the column with the image files, with which those of bands and scale begin."""
        return self.sensor.replace(".", "_")

    @property
    def licence(self) -> str:
        """Licences of the selected rows."""
        return "; ".join(sorted({row.get("licence", "") for row in self._rows()} - {""}))

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the chips of all selected rows."""
        made: list[SourceItem] = []
        lost: list[RejectedItem] = []
        for row in self._rows():
            if not row[self.column]:
                lost.append(
                    RejectedItem(clean_id(row["id"]), f"no {self.sensor} image in the index", skip=True, absent=True)
                )
                continue
            try:
                item = self._item(row)
            except (DataError, ValueError) as bad:
                lost.append(RejectedItem(clean_id(row["id"]), str(bad)))
                continue
            add_file_items(made, lost, item, chip, self.path.parent)
        return made, lost

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            raise DataError(f"{self.path}: expected a CSV index, got nothing there; check the path")
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="")  # a row may have fewer fields than the header
            names = reader.fieldnames or []
            for name in ("id", self.column):
                if name not in names:
                    raise DataError(
                        f"{self.path}: expected a column {name!r}, got {', '.join(names) or 'none'}; choose the sensor or rename"
                    )
            rows = [row for row in reader if row["id"].startswith(self.select)]
        if not rows:
            raise DataError(f"{self.path}: expected ids that start with {self.select!r}, got none; see its id column")
        return rows

    def _item(self, row: Mapping[str, str]) -> FileItem:
        if not row["id"]:
            raise DataError(f"{self.path}: expected an id in every row, got none for {row[self.column]}; name the chip")
        label = row.get("label", "")
        if not label and self.labelled:
            raise DataError(f"{row['id']}: expected a label, got none in the index; label it or use a rule")
        scale = row.get(f"{self.column}_scale", "")
        return FileItem(
            clean_id(row["id"]),
            row.get("group") or row.get("event") or row["id"],
            self.path.parent / row[self.column],
            self.path.parent / label if label else None,
            (0, 0),
            row.get("source_paths") or row[self.column],
            tuple(row.get(f"{self.column}_bands", "").split()),
            merge_hints(scale_hints(scale), self.hints),
            float(row["gsd_m"]) if row.get("gsd_m") else self.gsd_m,
            blank=blank_value(scale),
        )


def scale_hints(scale: str) -> Hints:
    """Read the text of a scale column, such as "L1C reflectance x 10000; +1000 offset still in".

    Example:
        >>> scale_hints("surface reflectance x 10000 (int16)").gain, scale_hints("backscatter dB").unit
        (0.0001, 'sigma0_db')
    """
    text = scale.lower()
    if "db" in text.replace("(", " ").split():
        return Hints(unit="gamma0_db" if "gamma0" in text else "sigma0_db")
    if not re.search(r"x\s*10000", text):
        return Hints()
    if "1000 offset" in text:
        return Hints(gain=1e-4, offset=-0.1) if "still in" in text else Hints()
    return Hints(gain=1e-4)


def blank_value(scale: str) -> float | None:
    """Return the value that means no data in all bands, as in "255 in both bands = nodata"; None if there is none."""
    found = re.search(r"(-?\d+) in (?:both|all) bands\s*=\s*no\s?data", scale.lower())
    return float(found[1]) if found else None


def scale_product(scale: str, sensor: str) -> str:
    """Return the product family that a scale column names, or ""."""
    text = scale.lower()
    if "harmonized landsat" in text:
        return "hls"
    if sensor.startswith("s1") and "uint8" not in text:
        return "sentinel-1-grd"
    return next((f"sentinel-2-{level}" for level in ("l1c", "l2a") if level in text), "")

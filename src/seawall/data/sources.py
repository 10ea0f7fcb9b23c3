"""Sources of chips: folders of image and label pairs, a CSV index, the layout of Sen1Floods11."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from seawall.data.index import CHIPS_FORMAT, INDEX_NAME
from seawall.data.raw_chips import (
    NO_HINTS,
    FileItem,
    ImageSource,
    RejectedItem,
    SourceItem,
    add_file_items,
    merge_hints,
)
from seawall.data.simulated import Simulated
from seawall.errors import DataError, UsageError, did_you_mean
from seawall.geo.radiometry import Hints
from seawall.geo.sensors import OPTICAL_BANDS, RADAR_BANDS
from seawall.io import is_inside

SOURCE_KINDS = ("auto", "pairs", "index", "sen1floods11", "simulated")
IMAGE_FOLDERS = ("images", "image", "img", "imgs", "s2", "s1")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "gt", "annotations")
IMAGE_TAILS = ("_image", "_img", "")
LABEL_TAILS = ("_label", "_mask", "_gt")
IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jp2")
SEN1FLOODS11_LABELS: Mapping[int, int] = MappingProxyType({-1: 255, 0: 0, 1: 1})
"""Values of Sen1Floods11's hand labels: -1 is no data."""


@dataclass(frozen=True)
class Pairs:
    """A folder of image and label files that share their stems.

    Layouts: `images/` beside `labels/` (or img, masks and so on; sub-folders are groups), and
    `<stem>_image.tif` beside `<stem>_label.tif`.

    Args:
        root: The folder.
        names: Band names in file order where the files have none.
        group: Regular expression on the stem whose first bracket is the group; else the sub-folder, else the stem.
        hints: What is known about the numbers.
        gsd_m: Ground sampling distance where files have no georeference.
        product: Product family, or "".
        licence: Licence of the data.
        labelled: Whether label files are needed; False if a rule labels.
    """

    root: Path
    names: tuple[str, ...] = ()
    group: str = ""
    hints: Hints = NO_HINTS
    gsd_m: float | None = None
    product: str = ""
    licence: str = ""
    labelled: bool = True
    label_map: Mapping[int, int] | None = None
    classes: tuple[str, ...] | None = None

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the chips of all pairs.

        Raises:
            DataError: The folder has no images in it.
        """
        images, labels = self._files()
        if not images:
            raise DataError(
                f"{self.root}: expected images/ beside labels/, or <stem>_image.tif beside <stem>_label.tif, got neither; arrange the files"
            )
        made: list[SourceItem] = []
        lost: list[RejectedItem] = []
        for stem, path in images.items():
            label = labels.pop(stem, None)
            if away := [p for p in (path, label) if p is not None and not is_inside(self.root, p)]:
                lost.append(RejectedItem(_clean_id(stem), _leaves_message(self.root, away[0])))
                continue
            if label is None and self.labelled:
                lost.append(
                    RejectedItem(_clean_id(stem), f"{path}: expected a label file of the same stem, got none; add it")
                )
                continue
            add_file_items(made, lost, self._item(stem, path, label), chip)
        lost += [
            RejectedItem(_clean_id(stem), f"{path}: expected an image file of the same stem, got none; add it")
            for stem, path in labels.items()
        ]
        return made, lost

    def _item(self, stem: str, path: Path, label: Path | None) -> FileItem:
        return FileItem(
            _clean_id(stem), self._group(stem), path, label, (0, 0), stem, self.names, self.hints, self.gsd_m
        )

    def _group(self, stem: str) -> str:
        if self.group:
            match = re.search(self.group, stem)
            if not match or not match.groups():
                raise UsageError(f"group: expected a bracket that matches {stem!r}, got {self.group!r}; fix it")
            return str(match[1])
        return _clean_id(str(Path(stem).parent)) if "/" in stem else _clean_id(stem)

    def _files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        folders = {path.name.lower(): path for path in sorted(self.root.iterdir()) if path.is_dir()}
        image = next((folders[name] for name in IMAGE_FOLDERS if name in folders), None)
        label = next((folders[name] for name in LABEL_FOLDERS if name in folders), None)
        if image is not None:
            return _files_by_stem(image, IMAGE_TAILS), _files_by_stem(
                label, (*LABEL_TAILS, "")
            ) if label is not None else {}
        labels = _files_by_stem(self.root, LABEL_TAILS)
        taken = set(labels.values())
        return {s: p for s, p in _files_by_stem(self.root, IMAGE_TAILS).items() if p not in taken}, labels


@dataclass(frozen=True)
class IndexTable:
    """A CSV index: columns `id`, `group`, `label`, and per sensor `s2`, `s2_bands`, `s2_scale` (or `s1...`).

    Args:
        path: The CSV file; its paths are below its folder.
        sensor: Which columns, such as "s1" or "s2".
        select: Ids that start with this.
        hints: What is known about the numbers; the scale column fills in what is not.
        product: Product family; "" for what the scale column says.
        labelled: Whether label files are needed.
    """

    path: Path
    sensor: str = "s2"
    select: str = ""
    hints: Hints = NO_HINTS
    product: str = ""
    labelled: bool = True
    label_map: Mapping[int, int] | None = None
    classes: tuple[str, ...] | None = None
    licence: str = field(default="", init=False)

    def __post_init__(self) -> None:
        rows = self._rows()
        if not self.product and rows:
            object.__setattr__(self, "product", scale_product(rows[0].get(f"{self.sensor}_scale", ""), self.sensor))
        object.__setattr__(self, "licence", "; ".join(sorted({row.get("licence", "") for row in rows} - {""})))

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the chips of all selected rows."""
        made: list[SourceItem] = []
        lost: list[RejectedItem] = []
        for row in self._rows():
            if not row[self.sensor]:
                lost.append(RejectedItem(_clean_id(row["id"]), f"no {self.sensor} image in the index", skip=True))
                continue
            try:
                item = self._item(row)
            except (DataError, ValueError) as bad:
                lost.append(RejectedItem(_clean_id(row["id"]), str(bad)))
                continue
            add_file_items(made, lost, item, chip)
        return made, lost

    def _rows(self) -> list[dict[str, str]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            for name in ("id", self.sensor):
                if name not in names:
                    raise DataError(
                        f"{self.path}: expected a column {name!r}, got {', '.join(names) or 'none'}; choose the sensor or rename"
                    )
            rows = [row for row in reader if row["id"].startswith(self.select)]
        if not rows:
            raise DataError(f"{self.path}: expected ids that start with {self.select!r}, got none; see its id column")
        return rows

    def _item(self, row: Mapping[str, str]) -> FileItem:
        label = row.get("label", "")
        if not label and self.labelled:
            raise DataError(f"{row['id']}: expected a label, got none in the index; label it or use a rule")
        scale = row.get(f"{self.sensor}_scale", "")
        return FileItem(
            _clean_id(row["id"]),
            row.get("group") or row.get("event") or row["id"],
            _path_below(self.path.parent, row[self.sensor]),
            _path_below(self.path.parent, label) if label else None,
            (0, 0),
            row.get("source_paths") or row[self.sensor],
            tuple(row.get(f"{self.sensor}_bands", "").split()),
            merge_hints(scale_hints(scale), self.hints),
            float(row["gsd_m"]) if row.get("gsd_m") else None,
            blank=blank_value(scale),
        )


@dataclass(frozen=True)
class Sen1Floods11:
    """Sen1Floods11's own layout: `<Country>_<number>_S1Hand.tif`, `_S2Hand.tif`, `_LabelHand.tif`, in any sub-folder.

    Countries are the groups. Labels of -1 do not count. Sentinel-1 is sigma0 in dB, Sentinel-2 top-of-atmosphere
    digital numbers without the offset of later baselines.

    Args:
        root: The folder.
        sensor: "s1" or "s2".
    """

    root: Path
    sensor: Literal["s1", "s2"] = "s1"
    labelled: bool = True
    licence: str = "see the Sen1Floods11 publication"

    @property
    def product(self) -> str:
        """Product family."""
        return "sentinel-1-grd" if self.sensor == "s1" else "sentinel-2-l1c"

    @property
    def label_map(self) -> Mapping[int, int] | None:
        """-1 does not count."""
        return SEN1FLOODS11_LABELS

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Land and water."""
        return ("land", "water")

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the chips of all images with a label."""
        tail = {"s1": "S1Hand", "s2": "S2Hand"}[self.sensor]
        names = ("VV", "VH") if self.sensor == "s1" else OPTICAL_BANDS
        hints = Hints(unit="sigma0_db") if self.sensor == "s1" else Hints(gain=1e-4, offset_applied=True)
        found = {p.name: p for p in sorted(self.root.rglob("*.tif"))}
        made: list[SourceItem] = []
        lost: list[RejectedItem] = []
        for name, path in found.items():
            if not name.endswith(f"_{tail}.tif"):
                continue
            id_ = name.removesuffix(f"_{tail}.tif")
            label = found.get(f"{id_}_LabelHand.tif")
            if label is None and self.labelled:
                lost.append(RejectedItem(_clean_id(id_), f"{path}: expected {id_}_LabelHand.tif, got none; fetch it"))
                continue
            if away := [p for p in (path, label) if p is not None and not is_inside(self.root, p)]:
                lost.append(RejectedItem(_clean_id(id_), _leaves_message(self.root, away[0])))
                continue
            country = id_.rsplit("_", 1)[0]
            add_file_items(
                made, lost, FileItem(_clean_id(id_), country, path, label, (0, 0), name, names, hints, 10.0), chip
            )
        if not made and not lost:
            raise DataError(f"{self.root}: expected files *_{tail}.tif, got none; choose the other sensor or folder")
        return made, lost


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


def band_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sort canonical ids by wavelength, then polarization; names that are not canonical keep their order."""
    order = (*OPTICAL_BANDS, *RADAR_BANDS)
    return tuple(sorted(names, key=order.index)) if all(name in order for name in names) else tuple(names)


def _path_below(root: Path, relative: str) -> Path:
    path = root / relative
    if not is_inside(root, path):
        raise DataError(_leaves_message(root, path))
    return path


def _leaves_message(root: Path, path: Path) -> str:
    return f"{path}: expected a file below {root}, got one that leaves it; copy the file there"


def _clean_id(stem: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._@+=-]", "_", stem).strip("._")
    return name[:120] or "chip"


def _files_by_stem(folder: Path, tails: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file() or path.name.startswith("."):
            continue
        relative = path.relative_to(folder).with_suffix("").as_posix()
        tail = next((tail for tail in tails if relative.endswith(tail)), None)
        if tail is not None:
            found.setdefault(relative.removesuffix(tail), path)
    return found


def find_source(
    source: str | Path | ImageSource, kind: str, sensor: Literal["s1", "s2"], select: str, names: Sequence[str], hints: Hints,
    gsd_m: float | None, product: str, group: str, ruled: bool,
) -> ImageSource:  # fmt: skip
    """Return the source that the arguments of `curate` name.

    Raises:
        UsageError: The kind or the sensor is unknown, or the path is a chip folder.
        DataError: The path does not exist.
    """
    if kind not in SOURCE_KINDS:
        raise UsageError(f"curate: unknown kind {kind!r}; {did_you_mean(kind, SOURCE_KINDS)}")
    if sensor not in ("s1", "s2"):
        raise UsageError(f"curate: unknown sensor {sensor!r}; {did_you_mean(sensor, ('s1', 's2'))}")
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    kind = _detect_kind(path, sensor) if kind == "auto" else kind
    if kind == "simulated":
        if not str(source).isdigit():
            raise UsageError(f"curate: expected a number of scenes to simulate, got {source!r}; give one")
        return Simulated(int(str(source)), sensor=sensor)
    if not path.exists():
        raise DataError(f"{path}: expected a folder or an index, got nothing there; check the path")
    if kind == "index":
        table = path / "index.csv" if path.is_dir() else path
        return IndexTable(table, sensor, select, hints, product, not ruled)
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder, got a file; name its folder, or a CSV index")
    if kind == "sen1floods11":
        return Sen1Floods11(path, sensor, not ruled)
    return Pairs(path, tuple(names), group, hints, gsd_m, product, labelled=not ruled)


def _detect_kind(path: Path, sensor: str) -> str:
    if not path.exists() and str(path).isdigit():
        return "simulated"
    if path.suffix.lower() == ".csv" or (path / "index.csv").is_file():
        return "index"
    if (
        path.is_dir()
        and (path / INDEX_NAME).is_file()
        and CHIPS_FORMAT in (path / INDEX_NAME).read_text(encoding="utf-8")[:400]
    ):
        raise UsageError(f"{path}: expected raw images, got a chip folder; use it as it is")
    if path.is_dir() and next(path.rglob(f"*_{sensor.upper()}Hand.tif"), None) is not None:
        return "sen1floods11"
    return "pairs"

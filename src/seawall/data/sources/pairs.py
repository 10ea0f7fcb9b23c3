"""Folders of image files beside label files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    check_source_folder,
    clean_id,
)
from seawall.errors import DataError, UsageError
from seawall.geo.radiometry import Hints
from seawall.registry import register

IMAGE_FOLDERS = ("images", "image", "img", "imgs", "s2", "s1")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "gt", "annotations")
IMAGE_TAILS = ("_image", "_img", "")
LABEL_TAILS = ("_label", "_mask", "_gt")
IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jp2")


@register("source", "pairs", traits=("general",))
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
        label_map: Class value of each raw label value.
        classes: Class names in the order of label values.
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
    example: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            f"{folder}/{place}/a.tif": folder.removesuffix("s")
            for place in ("north", "south")
            for folder in ("images", "labels")
        }
    )

    @classmethod
    def claims(cls, place: Path) -> bool:
        """Return whether there is an image or a label file in the folder."""
        return place.is_dir() and any(cls(place)._files())

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the chips of all pairs.

        Raises:
            DataError: The folder has no images in it.
        """
        check_source_folder(self.root)
        images, labels = self._files()
        if not images:
            raise DataError(
                f"{self.root}: expected images/ beside labels/, or <stem>_image.tif beside <stem>_label.tif, got neither; arrange the files"
            )
        made: list[SourceItem] = []
        lost: list[RejectedItem] = []
        for stem, path in images.items():
            label = labels.pop(stem, None)
            if label is None and self.labelled:
                lost.append(
                    RejectedItem(clean_id(stem), f"{path}: expected a label file of the same stem, got none; add it")
                )
                continue
            add_file_items(made, lost, self._item(stem, path, label), chip, self.root)
        lost += [
            RejectedItem(clean_id(stem), f"{path}: expected an image file of the same stem, got none; add it")
            for stem, path in labels.items()
        ]
        return made, lost

    def _item(self, stem: str, path: Path, label: Path | None) -> FileItem:
        return FileItem(
            clean_id(stem), self._group(stem), path, label, (0, 0), stem, self.names, self.hints, self.gsd_m
        )

    def _group(self, stem: str) -> str:
        if self.group:
            match = re.search(self.group, stem)
            if not match or not match.groups():
                raise UsageError(f"group: expected a bracket that matches {stem!r}, got {self.group!r}; fix it")
            return str(match[1])
        return clean_id(str(Path(stem).parent)) if "/" in stem else clean_id(stem)

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


def _files_by_stem(folder: Path, tails: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in filter(_is_image, sorted(folder.rglob("*"))):
        relative = path.relative_to(folder).with_suffix("").as_posix()
        tail = next((tail for tail in tails if relative.endswith(tail)), None)
        if tail is not None:
            found.setdefault(relative.removesuffix(tail), path)
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")

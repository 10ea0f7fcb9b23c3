"""Label planes that are computed chip by chip instead of read: kept compressed on the disk, and the recent ones in memory."""

from __future__ import annotations

import hashlib
import threading
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.data.chip_format import IGNORE
from seawall.data.chips import Chip, ChipFolder
from seawall.io import write_atomic
from seawall.version import code_version

MEMORY_BYTES = 64 * 2**20
"""Bytes of computed label planes in memory, one per pixel; the others are read from the disk again."""


def stored_label(chip: Chip) -> NDArray[np.uint8]:
    """Return a chip's label as chip files hold it: 255 where invalid."""
    return np.where(chip.valid, chip.label, IGNORE).astype(np.uint8)


def with_plane(chip: Chip, plane: NDArray[np.uint8]) -> Chip:
    """Return a chip with another label plane; what was not valid stays so."""
    valid = chip.valid & (plane != IGNORE)
    return replace(chip, label=np.where(valid, plane, 0).astype(np.int64), valid=valid)


def plane_class_counts(plane: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Return the pixels of each class in a label plane.

    Example:
        >>> plane_class_counts(np.array([[0, 1], [1, 255]], np.uint8), 2).tolist()
        [1, 2]
    """
    return np.bincount(plane.ravel(), minlength=classes)[:classes]


class ComputedLabels(ABC):
    """The label planes of the chips of a folder, each computed once.

    Args:
        folder: The chips.
        cache: Folder of the planes; file names are digests of all that decides them, so that a resumed run reads its own.
    """

    def __init__(self, folder: ChipFolder, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self._recent: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @abstractmethod
    def label_of(self, chip: Chip) -> Chip:
        """Return a whole chip with its computed label."""

    @abstractmethod
    def settings(self, id_: str) -> str:
        """Return the text of all that decides a chip's label besides the chip itself and the version of the code."""

    def relabelled(self, chip: Chip) -> Chip:
        """Return a whole chip with its computed label, which may be read from the disk."""
        return with_plane(chip, self(chip.id))

    def __call__(self, id_: str) -> NDArray[np.uint8]:
        """Return the label plane (H, W) of a chip: class indices, and 255 where the label does not count.

        Raises:
            DataError: The chip's files are missing or damaged.
            OSError: The disk is full.
        """
        with self._lock:
            if id_ in self._recent:
                self._recent.move_to_end(id_)
                return self._recent[id_]
        plane = self._load(id_)
        with self._lock:
            if id_ not in self._recent:
                self._recent[id_] = plane
                self._bytes += plane.nbytes
            while self._bytes > MEMORY_BYTES and len(self._recent) > 1:
                self._bytes -= self._recent.popitem(last=False)[1].nbytes
        return plane

    def _load(self, id_: str) -> NDArray[np.uint8]:
        row = self.folder.row(id_)
        text = "\0".join((row.sha256, row.label_sha256, self.settings(id_), id_, code_version()))
        path = self.cache / f"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.z"
        try:
            plane = np.frombuffer(zlib.decompress(path.read_bytes()), np.uint8)
            if plane.size == row.height * row.width:
                return plane.reshape(row.height, row.width)
        except (FileNotFoundError, zlib.error):
            pass  # not computed yet, or damaged on the disk
        plane = stored_label(self.label_of(self.folder.read(id_)))
        write_atomic(path, zlib.compress(plane.tobytes(), 1))
        return plane

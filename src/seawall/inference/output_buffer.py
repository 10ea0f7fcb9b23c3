"""The output buffer of a scene: one plain file per layer, and a ledger of the windows that are written.

A killed run leaves the buffer. The next run with the same key compares every window in the ledger with its digest and
writes the others again. The files hold plain rows, because a half-written TIFF could be left inconsistent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import ByteArray
from seawall.errors import RunError
from seawall.geo.raster import Window
from seawall.io import write_atomic

StoredPixelArray = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixels of a layer."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of the operating system that mean a full disk, or a full share of it."""


@dataclass(frozen=True)
class OutputBuffer:
    """Layers of plain rows in a folder.

    Args:
        folder: Where the layers and the ledger are; it is made and removed by the buffer.
        key: Digest of model, scene and settings; a buffer with another key is deleted.
        layers: Names of the layers.
        height: Rows of the scene.
        width: Columns of the scene.
        dtype: Type of a pixel.
    """

    folder: Path
    key: str
    layers: tuple[str, ...]
    height: int
    width: int
    dtype: Literal["uint8", "uint16"] = "uint8"

    def open(self) -> dict[Window, Mapping[str, object]]:
        """Create the buffer, or reuse the one that is there.

        Returns:
            The windows whose digest fits, with the values that were stored with them.

        Raises:
            RunError: The disk has no room for the layers, or the folder cannot be written.
        """
        facts = {"key": self.key, "layers": list(self.layers), "shape": [self.height, self.width]}
        try:
            if _read_header(self.folder / "canvas.json") == facts:
                return dict(self._whole())
            self.remove()
            self.folder.mkdir(parents=True)
            for layer in self.layers:
                with self._path(layer).open("wb") as file:
                    _reserve(file.fileno(), self.height * self.width * self._itemsize)
            write_atomic(self.folder / "canvas.json", json.dumps(facts))
        except OSError as bad:
            self.remove()
            raise write_error(self.folder.parent, bad, self._size(self.height * self.width)) from bad
        return {}

    def write(self, window: Window, pixels: Mapping[str, StoredPixelArray], facts: Mapping[str, object]) -> None:
        """Write a window of every layer to the disk, then add it to the ledger.

        Args:
            window: Where.
            pixels: (height, width) per layer, of the buffer's type.
            facts: Plain values to store with the window.

        Raises:
            RunError: The disk is full; the windows written before are kept for the next run.
        """
        row, col, height, width = window
        try:
            for layer in self.layers:
                with self._path(layer).open("rb+") as file:
                    runs = pixels[layer] if width < self.width else pixels[layer].reshape(1, -1)
                    for at, run in enumerate(runs):
                        file.seek(((row + at) * self.width + col) * self._itemsize)
                        file.write(run.tobytes())
                    file.flush()
                    os.fsync(file.fileno())
            line = {
                "window": list(window),
                "digest": _window_digest(pixels[layer] for layer in self.layers),
                "facts": facts,
            }
            with (self.folder / "ledger.jsonl").open("a", encoding="utf-8") as ledger:
                ledger.write(
                    "\n" + json.dumps(line)
                )  # the newline first: an incomplete line never merges with the next
                ledger.flush()
                os.fsync(ledger.fileno())
        except OSError as bad:
            raise write_error(self.folder.parent, bad, self._size(height * width), kept=True) from bad

    def rows(self, layer: str, step: int = 512) -> Iterator[tuple[int, StoredPixelArray]]:
        """Yield a layer's rows from top to bottom, as (first row, (step, width) pixels)."""
        for row in range(0, self.height, step):
            yield row, self.read(layer, (row, 0, min(step, self.height - row), self.width))

    def read(self, layer: str, window: Window) -> StoredPixelArray:
        """Return a window of a layer, as it is on the disk."""
        row, col, height, width = window
        start = row * self.width * self._itemsize
        whole = np.fromfile(self._path(layer), self.dtype, count=height * self.width, offset=start)
        return whole.reshape(-1, self.width)[:, col : col + width]

    def remove(self) -> None:
        """Delete the buffer."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, layer: str) -> Path:
        return self.folder / f"{layer}.raw"

    @property
    def _itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    def _size(self, pixels: int) -> int:
        return len(self.layers) * pixels * self._itemsize

    def _whole(self) -> Iterator[tuple[Window, Mapping[str, object]]]:
        ledger = self.folder / "ledger.jsonl"
        for line in ledger.read_text(encoding="utf-8", errors="replace").splitlines() if ledger.exists() else ():
            try:
                row = json.loads(line)
                at = row["window"]
                window = (int(at[0]), int(at[1]), int(at[2]), int(at[3]))
                found = _window_digest(self.read(layer, window) for layer in self.layers)
            except (
                ValueError,
                KeyError,
                TypeError,
                IndexError,
                OSError,
            ):  # a torn line or a short layer: write it again
                continue
            if found == row.get("digest"):
                yield window, row["facts"]


def byte_rows(buffer: OutputBuffer, layer: str) -> Iterator[tuple[int, ByteArray]]:
    """Yield the rows of a layer of bytes; see `OutputBuffer.rows`."""
    for row, pixels in buffer.rows(layer):
        yield row, pixels.astype(np.uint8, copy=False)


def write_error(folder: Path, bad: OSError, need: int, *, kept: bool = False) -> RunError:
    """Return the error of a folder that could not be written, with the room that is needed.

    Args:
        folder: Where the products go.
        bad: What was raised.
        need: Approximate number of bytes that are still to be written.
        kept: The finished windows are kept, so that the same command continues.
    """
    if isinstance(bad, PermissionError):
        return RunError(f"{folder}: expected a folder that can be written, got {bad.strerror}; choose another --out")
    try:
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    except OSError:
        free = 0
    what = "a full disk" if bad.errno in DISK_FULL else bad.strerror or str(bad)
    goes_on = "; what is finished is kept, so that the same command goes on" if kept else " and run again"
    return RunError(
        f"{folder}: expected room for the products, got {what} with {free / 2**20:.0f} MiB free; "
        f"free about {max(need / 2**20, 1):.0f} MiB{goes_on}"
    )


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)  # a full disk fails now, not after an hour
    else:
        os.ftruncate(file, size)


def _window_digest(layers: Iterator[StoredPixelArray]) -> str:
    made = hashlib.blake2b(digest_size=16)
    for pixels in layers:
        made.update(pixels.tobytes())
    return made.hexdigest()


def _read_header(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

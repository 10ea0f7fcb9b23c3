"""Writes cloud-optimized GeoTIFFs whole or not at all: staged beside, finished, looked at, renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from seawall.errors import ImageryError
from seawall.geo.grid import Grid
from seawall.geo.raster_guards import COMPLETE, WRITER, check_blocks

Color = tuple[int, int, int] | tuple[int, int, int, int]
BLOCK = 512
DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
"""Pixel types that are written; GDAL has no 16-bit floats in memory."""
BROKEN = (RasterioError, CPLE_BaseError, OSError)
"""What GDAL raises through rasterio when it cannot write: the middle one escapes from copies as it is."""

FULL_DISK = "a full disk; free space and run again"
_TIFF_WRITES = (
    "TIFFAppendToStrip",
    "Write error",
    "Seek error",
    "_tiffWriteProc",
    "_tiffSeekProc",
    "TIFFFlush",
    "WriteEncoded",
)

IN_MEMORY = 64 * 2**20
"""Smaller rasters are staged in memory instead of beside their final name."""


class CogWriter:
    """A raster that is written window by window and appears under its name only when it is whole.

    Use it as a context manager. On any exception nothing is left under the name and an earlier file stays.

    Args:
        path: Final name.
        grid: Where it is; its shape is the raster's.
        dtype: Pixel type, such as "uint8" or "float32".
        bands: Band names.
        nodata: Value of unseen pixels.
        tags: Metadata of the file.
        scales: Gain of each band: value = stored * scale + offset.
        offsets: Offset of each band.
        colormap: Color of each value of a one-band uint8 raster.

    Raises:
        ImageryError: The pixel type cannot be written, the disk is full, the folder cannot be written, or the written
            file is not whole.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        dtype: str,
        *,
        bands: Sequence[str],
        nodata: float | None = None,
        tags: Mapping[str, str] | None = None,
        scales: Sequence[float] | None = None,
        offsets: Sequence[float] | None = None,
        colormap: Mapping[int, Color] | None = None,
    ) -> None:
        self.path = Path(path)
        self.grid = grid
        if dtype not in DTYPES:
            raise ImageryError(f"{path}: expected pixels of {', '.join(DTYPES)}, got {dtype}; convert them first")
        self._profile: dict[str, object] = {
            "driver": "GTiff",
            "height": grid.height,
            "width": grid.width,
            "count": len(bands),
            "dtype": dtype,
            "nodata": nodata,
            "crs": grid.crs,
            "transform": grid.transform or Affine.identity(),
        }
        if min(grid.height, grid.width) >= BLOCK:
            self._profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
        self._bands = tuple(bands)
        self._tags = dict(tags or {})
        self._scales, self._offsets, self._colormap = scales, offsets, colormap
        self._size = size = grid.height * grid.width * len(bands) * np.dtype(dtype).itemsize
        # Whole numbers without a scale may be classes, whose mean means nothing.
        self._classes = scales is None and np.dtype(dtype).kind in "iu"
        self._profile["bigtiff"] = "IF_SAFER"
        self._memory = MemoryFile() if size <= IN_MEMORY else None
        self._stage = Path(os.devnull)
        self._sink: rasterio.io.DatasetWriter | None = None

    def __enter__(self) -> CogWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._memory is not None:
                self._sink = self._memory.open(**self._profile)
            else:
                self._stage = _beside(self.path, ".stage")
                self._profile |= {"compress": "deflate", "zlevel": 1}
                self._sink = rasterio.open(self._stage, "w", **self._profile)
            self._describe(self._sink)
        except BROKEN as bad:
            self._clean()
            raise _failed(self.path, bad, self._size) from bad
        return self

    def write(self, data: NDArray[np.generic], row: int = 0, col: int = 0) -> None:
        """Write a (C, H, W) or, for one band, (H, W) piece with its upper left pixel at (row, col)."""
        piece = data[None] if data.ndim == 2 else data
        if piece.ndim != 3 or len(piece) != len(self._bands):
            raise ImageryError(
                f"{self.path}: expected {len(self._bands)} bands of pixels, got shape {data.shape}; give (C, H, W)"
            )
        height, width = piece.shape[1:]
        if row < 0 or col < 0 or row + height > self.grid.height or col + width > self.grid.width:
            raise ImageryError(
                f"{self.path}: expected pixels inside {self.grid.height}x{self.grid.width}, "
                f"got {height}x{width} at ({row}, {col}); clip them"
            )
        if self._sink is None:
            raise ImageryError(f"{self.path}: expected an open writer, got a closed one; use it in a with statement")
        try:
            self._sink.write(piece, window=Window(col, row, width, height))
        except BROKEN as bad:
            raise _failed(self.path, bad, self._size) from bad

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BROKEN as bad:
            raise _failed(self.path, bad, self._size) from bad
        finally:
            self._clean()

    def _describe(self, sink: rasterio.io.DatasetWriter) -> None:
        sink.descriptions = self._bands
        sink.update_tags(**self._tags, **{WRITER: "seawall"})
        if self._scales is not None:
            sink.scales = tuple(self._scales)
        if self._offsets is not None:
            sink.offsets = tuple(self._offsets)
        if self._colormap is not None:
            sink.write_colormap(1, dict(self._colormap))

    def _finish(self) -> None:
        if self._sink is None:
            return
        self._sink.update_tags(**{COMPLETE: "yes"})
        self._sink.close()
        part = _beside(self.path, ".part")
        try:
            with rasterio.Env(GDAL_PAM_ENABLED="NO", GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1"):
                source = self._memory.open() if self._memory is not None else rasterio.open(self._stage)
                with source:
                    rasterio.shutil.copy(source, part, driver="COG", **self._options())
                with rasterio.open(part, driver="GTiff") as back:
                    check_blocks(str(self.path), back)
            _sync(part)
            part.replace(self.path)
            _sync(self.path.parent)
        except BROKEN as bad:  # asked before the part goes away: then the disk has room again
            raise _failed(self.path, bad, self._size) from bad
        finally:
            part.unlink(missing_ok=True)

    def _options(self) -> dict[str, str]:
        dtype = np.dtype(str(self._profile["dtype"]))
        return {
            "BLOCKSIZE": str(BLOCK),
            "COMPRESS": "DEFLATE",
            "LEVEL": "6",
            "PREDICTOR": "NO" if dtype.itemsize == 1 else "STANDARD" if dtype.kind in "iu" else "FLOATING_POINT",
            "OVERVIEWS": "AUTO",
            "OVERVIEW_RESAMPLING": "NEAREST" if self._classes else "AVERAGE",
            "STATISTICS": "NO",
            "BIGTIFF": "IF_SAFER",
        }

    def _clean(self) -> None:
        if self._sink is not None and not self._sink.closed:
            # A full disk: the stage goes away anyway, and the first error counts.
            with contextlib.suppress(*BROKEN):
                self._sink.close()
        self._sink = None
        if self._memory is not None:
            self._memory.close()
        elif self._stage != Path(os.devnull):
            self._stage.unlink(missing_ok=True)


def write_cog(
    path: Path | str,
    data: NDArray[np.generic],
    grid: Grid,
    *,
    bands: Sequence[str],
    nodata: float | None = None,
    tags: Mapping[str, str] | None = None,
    scales: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
    colormap: Mapping[int, Color] | None = None,
) -> None:
    """Write a raster whole or not at all; see `CogWriter`.

    Args:
        path: Final name.
        data: (C, H, W), or (H, W) for one band.
        grid: Where it is.
        bands: Band names.
        nodata: Value of unseen pixels.
        tags: Metadata of the file.
        scales: Gain of each band.
        offsets: Offset of each band.
        colormap: Color of each value of a one-band uint8 raster.

    Raises:
        ImageryError: The data do not fit the grid, the disk is full, or the written file is not whole.
    """
    if data.shape[-2:] != (grid.height, grid.width):
        raise ImageryError(f"{path}: expected {grid.height}x{grid.width} pixels, got shape {data.shape}; fix the grid")
    writer = CogWriter(
        Path(path),
        grid,
        data.dtype.name,
        bands=bands,
        nodata=nodata,
        tags=tags,
        scales=scales,
        offsets=offsets,
        colormap=colormap,
    )
    with writer:
        writer.write(data)


def _lacks_room(path: Path, text: str, size: int) -> bool:
    """Tell whether a write failed because the disk is full: libtiff says which call failed, and not why."""
    if not any(said in text for said in _TIFF_WRITES):
        return False
    try:
        return shutil.disk_usage(path.parent).free < size
    except OSError:
        return False


def _beside(path: Path, suffix: str) -> Path:
    # Not mkstemp: GDAL makes the file, with the rights that the user's umask gives to new files.
    return path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}{suffix}"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _failed(path: Path, bad: BaseException, size: int) -> ImageryError:
    text = f"{bad} {bad.__cause__ or ''}".strip()
    number = getattr(bad, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or _lacks_room(path, text, size):
        return ImageryError(f"{path}: expected room for the file, got {FULL_DISK}")
    return ImageryError(
        f"{path}: expected to write the file, got {text.splitlines()[0][:160]}; check the disk's space and rights"
    )

"""Writes cloud-optimized GeoTIFFs atomically: written to a temporary file, checked, renamed."""

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
from seawall.geo.raster_guards import COMPLETE_TAG, WRITER_TAG, check_blocks
from seawall.io import flush_to_disk

ColormapEntry = tuple[int, int, int] | tuple[int, int, int, int]
COG_BLOCK = 512
COG_DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
"""Pixel types that are written; GDAL has no 16-bit floats in memory."""

GDAL_WRITE_ERRORS = (RasterioError, CPLE_BaseError, OSError)
"""Errors of a failed write; rasterio.shutil.copy raises CPLE_BaseError unwrapped."""

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

IN_MEMORY_BYTES = 64 * 2**20
"""Rasters up to this size are staged in memory instead of in a temporary file."""


class CogWriter:
    """Writes a raster window by window; the file appears under its name only when it is complete.

    Use it as a context manager. On any exception nothing is left under the name and an earlier file stays.

    Args:
        path: Final name.
        grid: Shape and georeference.
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
        colormap: Mapping[int, ColormapEntry] | None = None,
    ) -> None:
        self.path = Path(path)
        self.grid = grid
        if dtype not in COG_DTYPES:
            raise ImageryError(f"{path}: expected pixels of {', '.join(COG_DTYPES)}, got {dtype}; convert them first")
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
        if min(grid.height, grid.width) >= COG_BLOCK:
            self._profile |= {"tiled": True, "blockxsize": COG_BLOCK, "blockysize": COG_BLOCK}
        self._bands = tuple(bands)
        self._tags = dict(tags or {})
        self._scales, self._offsets, self._colormap = scales, offsets, colormap
        self._size = size = grid.height * grid.width * len(bands) * np.dtype(dtype).itemsize
        # Integers without a scale may be classes, which must not be averaged in overviews.
        self._classes = scales is None and np.dtype(dtype).kind in "iu"
        self._profile["bigtiff"] = "IF_SAFER"
        self._memory = MemoryFile() if size <= IN_MEMORY_BYTES else None
        self._stage = Path(os.devnull)
        self._sink: rasterio.io.DatasetWriter | None = None

    def __enter__(self) -> CogWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._memory is not None:
                self._sink = self._memory.open(**self._profile)
            else:
                self._stage = _temporary_path(self.path, ".stage")
                self._profile |= {"compress": "deflate", "zlevel": 1}
                self._sink = rasterio.open(self._stage, "w", **self._profile)
            self._describe(self._sink)
        except GDAL_WRITE_ERRORS as bad:
            self._clean()
            raise _write_error(self.path, bad, self._size) from bad
        return self

    def write(self, data: NDArray[np.generic], row: int = 0, col: int = 0) -> None:
        """Write a (C, H, W) or, for one band, (H, W) window with its upper left pixel at (row, col).

        Raises:
            ImageryError: The data do not fit the raster, or the write fails.
        """
        window = data[None] if data.ndim == 2 else data
        if window.ndim != 3 or len(window) != len(self._bands):
            raise ImageryError(
                f"{self.path}: expected {len(self._bands)} bands of pixels, got shape {data.shape}; give (C, H, W)"
            )
        height, width = window.shape[1:]
        if row < 0 or col < 0 or row + height > self.grid.height or col + width > self.grid.width:
            raise ImageryError(
                f"{self.path}: expected pixels inside {self.grid.height}x{self.grid.width}, "
                f"got {height}x{width} at ({row}, {col}); clip them"
            )
        if self._sink is None:
            raise ImageryError(f"{self.path}: expected an open writer, got a closed one; use it in a with statement")
        try:
            self._sink.write(window, window=Window(col, row, width, height))
        except GDAL_WRITE_ERRORS as bad:
            raise _write_error(self.path, bad, self._size) from bad

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except GDAL_WRITE_ERRORS as bad:
            raise _write_error(self.path, bad, self._size) from bad
        finally:
            self._clean()

    def _describe(self, sink: rasterio.io.DatasetWriter) -> None:
        sink.descriptions = self._bands
        sink.update_tags(**self._tags, **{WRITER_TAG: "seawall"})
        if self._scales is not None:
            sink.scales = tuple(self._scales)
        if self._offsets is not None:
            sink.offsets = tuple(self._offsets)
        if self._colormap is not None:
            sink.write_colormap(1, dict(self._colormap))

    def _finish(self) -> None:
        if self._sink is None:
            return
        self._sink.update_tags(**{COMPLETE_TAG: "yes"})
        self._sink.close()
        part = _temporary_path(self.path, ".part")
        try:
            with rasterio.Env(GDAL_PAM_ENABLED="NO", GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_NUM_THREADS="1"):
                source = self._memory.open() if self._memory is not None else rasterio.open(self._stage)
                with source:
                    rasterio.shutil.copy(source, part, driver="COG", **self._options())
                with rasterio.open(part, driver="GTiff") as back:
                    check_blocks(str(self.path), back)
            flush_to_disk(part)
            part.replace(self.path)
            flush_to_disk(self.path.parent)
        except GDAL_WRITE_ERRORS as bad:  # before the part is removed: afterwards the disk has room again
            raise _write_error(self.path, bad, self._size) from bad
        finally:
            part.unlink(missing_ok=True)

    def _options(self) -> dict[str, str]:
        dtype = np.dtype(str(self._profile["dtype"]))
        return {
            "BLOCKSIZE": str(COG_BLOCK),
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
            # Closing fails on a full disk; the stage is removed anyway, and the first error is raised.
            with contextlib.suppress(*GDAL_WRITE_ERRORS):
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
    colormap: Mapping[int, ColormapEntry] | None = None,
) -> None:
    """Write a raster atomically, as `CogWriter`.

    Args:
        path: Final name.
        data: (C, H, W), or (H, W) for one band.
        grid: Shape and georeference.
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


def _disk_is_full(path: Path, text: str, size: int) -> bool:
    """Return whether a write failed because the disk is full; libtiff names the failed call, not the reason."""
    if not any(call in text for call in _TIFF_WRITES):
        return False
    try:
        return shutil.disk_usage(path.parent).free < size
    except OSError:
        return False


def _temporary_path(path: Path, suffix: str) -> Path:
    # Not mkstemp: GDAL creates the file, with the permissions of the user's umask.
    return path.parent / f".{path.name[:80]}.{secrets.token_hex(6)}{suffix}"


def _write_error(path: Path, bad: BaseException, size: int) -> ImageryError:
    text = f"{bad} {bad.__cause__ or ''}".strip()
    number = getattr(bad, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or _disk_is_full(path, text, size):
        return ImageryError(f"{path}: expected room for the file, got {FULL_DISK}")
    return ImageryError(
        f"{path}: expected to write the file, got {text.splitlines()[0][:160]}; check the disk's space and rights"
    )

"""Guarded raster reads: a file is checked before its pixels are used, and pixels come with a mask of those with data."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window as _Window

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import ImageryError, did_you_mean
from seawall.geo.cog import CogWriter, write_cog
from seawall.geo.grid import Grid
from seawall.geo.raster_guards import (
    ByteRange,
    Limits,
    band_text,
    check_blocks,
    check_path,
    check_png,
    check_size,
    guess_format,
    is_pixel_interleaved,
    zlib_damage,
)

__all__ = ["CogWriter", "Grid", "Limits", "Raster", "RasterSource", "Window", "open_raster", "read_raster", "write_cog"]

Window = tuple[int, int, int, int]
"""Row and column of the upper left pixel, height, width."""
BlockIndex = tuple[int, int, int]
"""Band, row and column of a block."""
CHECKSUM_THREADS = 4
"""Threads that verify checksums while another one decodes."""

# A missing georeference is Grid.transform None, not a warning on the console.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

# Sidecar files (.aux.xml, .ovr, .msk, world files) could change the pixels or the georeference; they are not read.
_READ_ENV = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO", "GTIFF_IGNORE_READ_ERRORS": "NO"}
MEASUREMENT_RANGE = (-5000.0, 50000.0)
"""Range of the stored numbers of Sentinel products; a nodata value outside makes a pixel unseen if any band has it."""
_BAD_BLOCK = re.compile(r"X offset (\d+), Y offset (\d+)")


@dataclass(frozen=True)
class Raster:
    """A raster in memory.

    Args:
        data: (C, H, W) float32 as stored: no scale is applied.
        seen: (H, W) bool: finite in all bands and not nodata, as `RasterSource.read` returns it.
        bands: Band descriptions of the file, or "band1" and so on.
        grid: Its georeference.
        dtype: Pixel type of the file.
        nodata: Declared nodata value.
        tags: Metadata of the file.
        band_tags: Metadata of each band.
        scales: Declared gain of each band.
        offsets: Declared offset of each band.
    """

    data: FloatArray
    seen: BoolArray
    bands: tuple[str, ...]
    grid: Grid
    dtype: str = "float32"
    nodata: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    band_tags: tuple[Mapping[str, str], ...] = ()
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()


class RasterSource:
    """An open raster; made by `open_raster`.

    Args:
        path: The file.
        source: The open dataset.
        spans: Byte ranges of its blocks, as `check_blocks` returns them.
    """

    def __init__(
        self, path: Path, source: rasterio.DatasetReader, spans: Mapping[BlockIndex, ByteRange] | None = None
    ) -> None:
        self.path = path
        self._source = source
        deflated = source.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION") == "DEFLATE"
        # Blocks whose checksum is not verified yet; each is verified once, when it is first read.
        self._unchecked = dict(spans or {}) if deflated else {}
        self._stat = _fingerprint(path)
        self._indexes = [i for i in source.indexes if source.colorinterp[i - 1] != ColorInterp.alpha]
        at = [i - 1 for i in self._indexes]
        self.bands = tuple(source.descriptions[i] or f"band{i + 1}" for i in at)
        self.grid = _grid_of(str(path), source)
        self.dtype = str(source.dtypes[at[0]] if at else source.dtypes[0])
        self.nodata = source.nodatavals[at[0]] if at else source.nodata
        self.tags: Mapping[str, str] = dict(source.tags())
        self.band_tags: tuple[Mapping[str, str], ...] = tuple(dict(source.tags(i + 1)) for i in at)
        self.scales = tuple(float(source.scales[i]) for i in at)
        self.offsets = tuple(float(source.offsets[i]) for i in at)
        self.block: tuple[int, int] = tuple(source.block_shapes[0])
        self._masked = any(MaskFlags.per_dataset in flags for flags in source.mask_flag_enums)

    def read(self, window: Window | None = None, bands: Sequence[str] | None = None) -> tuple[FloatArray, BoolArray]:
        """Read pixels as stored, without scale.

        Args:
            window: (row, column, height, width) inside the raster; the whole raster if None.
            bands: Band names, in the order of the result; all if None.

        Returns:
            Data (C, H, W) float32, and seen (H, W): finite in all of these bands, inside the file's mask, and not
            nodata: in any of them if the declared value cannot be a measurement (-9999), in all of them if it could be
            one (0). `seawall.geo.nodata` refines this for numbers of a known unit.

        Raises:
            ImageryError: A block cannot be decoded or its checksum is wrong, a band is missing, the window leaves the
                raster, or the file changed.
        """
        indexes = self._band_indexes(bands)
        row, col, height, width = window or (0, 0, self.grid.height, self.grid.width)
        if (
            min(row, col) < 0
            or min(height, width) < 1
            or row + height > self.grid.height
            or col + width > self.grid.width
        ):
            raise ImageryError(
                f"{self.path}: expected a window inside {self.grid.height}x{self.grid.width} pixels, got {window}; clip it"
            )
        raw, mask = self._read(indexes, (row, col, height, width))
        if _fingerprint(self.path) != self._stat:
            raise ImageryError(
                f"{self.path}: expected the file to stay, got a changed one; run again on a settled file"
            )
        return self._apply_nodata(raw, mask, indexes)

    def mask(self, window: Window | None = None) -> BoolArray:
        """Return the file's own mask or alpha band as (H, W) bool, True for pixels with data.

        Raises:
            ImageryError: The mask cannot be read.
        """
        row, col, height, width = window or (0, 0, self.grid.height, self.grid.width)
        if not self._masked:
            return np.ones((height, width), bool)
        try:
            return np.asarray(self._source.dataset_mask(window=_Window(col, row, width, height)) > 0)
        except (RasterioError, CPLE_BaseError, MemoryError) as bad:
            raise self._read_error(bad) from bad

    def nodata_of(self, bands: Sequence[str] | None = None) -> tuple[float | None, ...]:
        """Return the declared nodata value of each of these bands; None where none is declared."""
        return tuple(self._source.nodatavals[index - 1] for index in self._band_indexes(bands))

    def _read(self, indexes: Sequence[int], window: Window) -> tuple[NDArray[np.generic], BoolArray]:
        """Read bands and mask, while other threads verify the checksums of the blocks under the window."""
        row, col, height, width = window
        at = _Window(col, row, width, height)
        todo = self._pop_unchecked(indexes, window)
        with self.path.open("rb") as file, ThreadPoolExecutor(max(min(len(todo), CHECKSUM_THREADS), 1)) as pool:
            checks = [(block, pool.submit(zlib_damage, file.fileno(), span, limit)) for block, span, limit in todo]
            try:
                raw = self._source.read(indexes, window=at)
            except (RasterioError, CPLE_BaseError, MemoryError) as bad:
                raise self._read_error(bad) from bad
            for (band, r, c), check in checks:
                if wrong := check.result():
                    raise ImageryError(
                        f"{self.path}: expected whole pixels, got bad block (row {r}, column {c}) of "
                        f"{band_text(self._source, band)} ({wrong}); fetch or write the file again"
                    )
        return raw, self.mask(window)

    def _pop_unchecked(self, indexes: Sequence[int], window: Window) -> list[tuple[BlockIndex, ByteRange, int]]:
        """Return and forget the unverified blocks under a window: block, byte range, largest decoded size."""
        if not self._unchecked:
            return []
        row, col, height, width = window
        shared = is_pixel_interleaved(self._source)
        found = []
        for band in (1,) if shared else indexes:
            tall, wide = self._source.block_shapes[band - 1]
            depth = np.dtype(self._source.dtypes[band - 1]).itemsize
            limit = tall * wide * depth * (self._source.count if shared else 1)
            for r in range(row // tall, (row + height - 1) // tall + 1):
                for c in range(col // wide, (col + width - 1) // wide + 1):
                    span = self._unchecked.pop((band, r, c), None)
                    if span is not None:
                        found.append(((band, r, c), span, limit))
        return found

    def _apply_nodata(
        self, raw: NDArray[np.generic], mask: BoolArray, indexes: Sequence[int]
    ) -> tuple[FloatArray, BoolArray]:
        seen, in_all = mask, None
        for layer, index in zip(raw, indexes, strict=True):
            nodata = self._source.nodatavals[index - 1]
            if nodata is None or not np.isfinite(nodata):
                continue
            is_nodata = layer == (np.float32(nodata) if layer.dtype == np.float32 else nodata)
            if not could_be_measurement(nodata):
                seen &= ~is_nodata
            in_all = is_nodata if in_all is None else in_all & is_nodata
        if in_all is not None:
            seen &= ~in_all
        data = raw.astype(np.float32, copy=False)
        if raw.dtype.kind == "f":
            seen &= np.isfinite(data).all(0)
        return data, seen

    def _band_indexes(self, bands: Sequence[str] | None) -> list[int]:
        if bands is None:
            return list(self._indexes)
        for name in bands:
            if name not in self.bands:
                raise ImageryError(
                    f"{self.path}: expected band {name!r}, got {', '.join(self.bands)}; {did_you_mean(name, self.bands)}"
                )
        return [self._indexes[self.bands.index(name)] for name in bands]

    def _read_error(self, bad: BaseException) -> ImageryError:
        found = None
        cause: BaseException | None = bad
        while cause is not None and found is None:
            found = _BAD_BLOCK.search(str(cause))
            cause = cause.__cause__
        place = f"bad block (row {found[2]}, column {found[1]})" if found else "an unreadable block"
        band = re.search(r"band (\d+): IReadBlock", str(bad.__cause__ or bad))
        where = f" of {band_text(self._source, int(band[1]))}" if band else ""
        return ImageryError(f"{self.path}: expected readable pixels, got {place}{where}; fetch or write the file again")


@contextmanager
def open_raster(path: Path | str, limits: Limits = Limits()) -> Iterator[RasterSource]:
    """Open a local raster after checking its format, size, blocks and georeference.

    Args:
        path: A local file; virtual paths and addresses are refused.
        limits: Largest raster that is opened.

    Raises:
        ImageryError: It is empty, truncated, sparse without nodata, unfinished, oversized, of a format that is not
            allowed, or only located by ground control points.

    Example:
        >>> open_raster("/vsicurl/https://example.org/a.tif").__enter__()
        Traceback (most recent call last):
        ...
        seawall.errors.ImageryError: /vsicurl/https://example.org/a.tif: expected the path of a local file, ...
    """
    plain = check_path(path)
    try:
        with rasterio.Env(**_READ_ENV):
            source = DatasetReader(str(plain), driver=[name for name in limits.drivers if name != "COG"], sharing=False)
    except (RasterioError, CPLE_BaseError, ValueError) as bad:
        raise ImageryError(
            f"{path}: expected a raster of format {', '.join(limits.drivers)}, got {guess_format(plain)} ({_first_line(bad)}); "
            "fetch or convert the file"
        ) from bad
    with source:
        check_size(str(path), source, limits)
        if source.driver == "PNG":
            check_png(plain)
        yield RasterSource(plain, source, check_blocks(str(path), source))


def read_raster(path: Path | str, bands: Sequence[str] | None = None, limits: Limits = Limits()) -> Raster:
    """Read a whole raster.

    Raises:
        ImageryError: As `open_raster` and `RasterSource.read`.
    """
    with open_raster(path, limits) as source:
        data, seen = source.read(bands=bands)
        names = tuple(bands) if bands is not None else source.bands
        at = [source.bands.index(name) for name in names]
        return Raster(
            data,
            seen,
            names,
            source.grid,
            source.dtype,
            source.nodata,
            source.tags,
            tuple(source.band_tags[i] for i in at),
            tuple(source.scales[i] for i in at),
            tuple(source.offsets[i] for i in at),
        )


def could_be_measurement(nodata: float) -> bool:
    """Return whether a nodata value is within the stored numbers of Sentinel products.

    Example:
        >>> could_be_measurement(0), could_be_measurement(-9999), could_be_measurement(65535)
        (True, False, False)
    """
    return MEASUREMENT_RANGE[0] <= nodata <= MEASUREMENT_RANGE[1]


def _grid_of(where: str, source: rasterio.DatasetReader) -> Grid:
    transform = None if source.transform == Affine.identity() else source.transform
    if transform is None and source.gcps[0]:
        raise ImageryError(
            f"{where}: expected a transform, got only ground control points; warp it first, such as by gdalwarp"
        )
    if transform is not None and (not all(map(np.isfinite, transform[:6])) or transform.determinant == 0):
        raise ImageryError(f"{where}: expected pixels with an area, got transform {tuple(transform[:6])}; fix it")
    crs = None
    if source.crs:
        code = source.crs.to_epsg()
        crs = f"EPSG:{code}" if code else source.crs.to_wkt()
    return Grid(source.height, source.width, transform, crs)


def _fingerprint(path: Path) -> tuple[int, int, int]:
    stat = os.stat(path)  # noqa: PTH116
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _first_line(bad: BaseException) -> str:
    return str(bad.__cause__ or bad).splitlines()[0][:160]

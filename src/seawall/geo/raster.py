"""Guarded reads: a raster is looked at before it is trusted, and every pixel comes with the truth of having been seen."""

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

from seawall.errors import ImageryError, did_you_mean
from seawall.geo.cog import CogWriter, write_cog
from seawall.geo.grid import Grid
from seawall.geo.raster_guards import (
    Limits,
    Span,
    check_blocks,
    check_path,
    check_png,
    check_size,
    inflates,
    name_band,
    shares_blocks,
    what_is,
)

__all__ = ["CogWriter", "Grid", "Limits", "Raster", "RasterSource", "Window", "open_raster", "read_raster", "write_cog"]

Window = tuple[int, int, int, int]
"""Row and column of the upper left pixel, height, width."""
Block = tuple[int, int, int]
"""Band, row and column of a block."""
THREADS = 4
"""Threads that look at checksums beside the one that decodes."""

# A missing georeference is a fact of the grid here (transform None), not a warning on the console.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

# Sidecar files (.aux.xml, .ovr, .msk, world files) could change what a raster says; only the file itself is read.
_ENV = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO", "GTIFF_IGNORE_READ_ERRORS": "NO"}
MEASURABLE = (-5000.0, 50000.0)
"""Stored numbers that some Sentinel product could mean as a measurement; nodata outside counts in any band."""
_BAD_BLOCK = re.compile(r"X offset (\d+), Y offset (\d+)")


@dataclass(frozen=True)
class Raster:
    """A raster in memory.

    Args:
        data: (C, H, W) float32, numbers as stored: no scale is applied.
        seen: (H, W) bool: finite in all bands, and not nodata; see `RasterSource.read`.
        bands: Band names from the file, or "band1" and so on.
        grid: Where it is.
        dtype: Pixel type in the file.
        nodata: Declared nodata value.
        tags: Metadata of the file.
        band_tags: Metadata of each band.
        scales: Declared gain of each band.
        offsets: Declared offset of each band.
    """

    data: NDArray[np.float32]
    seen: NDArray[np.bool_]
    bands: tuple[str, ...]
    grid: Grid
    dtype: str = "float32"
    nodata: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    band_tags: tuple[Mapping[str, str], ...] = ()
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()


class RasterSource:
    """An open raster; `open_raster` makes it.

    Args:
        path: The file.
        source: The same, opened.
        spans: Where its blocks are in the file, as `check_blocks` returns them.
    """

    def __init__(self, path: Path, source: rasterio.DatasetReader, spans: Mapping[Block, Span] | None = None) -> None:
        self.path = path
        self._source = source
        deflated = source.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION") == "DEFLATE"
        # Blocks whose checksum was not looked at yet; each is looked at once, just before it is first read.
        self._unchecked = dict(spans or {}) if deflated else {}
        self._stat = _fingerprint(path)
        self._indexes = [i for i in source.indexes if source.colorinterp[i - 1] != ColorInterp.alpha]
        at = [i - 1 for i in self._indexes]
        self.bands = tuple(source.descriptions[i] or f"band{i + 1}" for i in at)
        self.grid = _grid(str(path), source)
        self.dtype = str(source.dtypes[at[0]] if at else source.dtypes[0])
        self.nodata = source.nodatavals[at[0]] if at else source.nodata
        self.tags: Mapping[str, str] = dict(source.tags())
        self.band_tags: tuple[Mapping[str, str], ...] = tuple(dict(source.tags(i + 1)) for i in at)
        self.scales = tuple(float(source.scales[i]) for i in at)
        self.offsets = tuple(float(source.offsets[i]) for i in at)
        self.block: tuple[int, int] = tuple(source.block_shapes[0])
        self._masked = any(MaskFlags.per_dataset in flags for flags in source.mask_flag_enums)

    def read(
        self, window: Window | None = None, bands: Sequence[str] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read pixels as stored.

        Args:
            window: (row, column, height, width) inside the raster; the whole raster if None.
            bands: Names of the bands wanted, in the order wanted.

        Returns:
            Data (C, H, W) float32, and seen (H, W): finite in all of these bands, inside the file's mask, and not
            nodata: in any of them if the declared value cannot be a measurement (-9999), in all of them if it could be
            one (0). What the unit of the numbers adds to that is `seawall.geo.seen`.

        Raises:
            ImageryError: A block cannot be decoded or is not what its checksum says (it is named), a band is not there,
                or the file changed.
        """
        indexes = self._find(bands)
        row, col, height, width = window or (0, 0, self.grid.height, self.grid.width)
        if (
            row < 0
            or col < 0
            or height < 1
            or width < 1
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
        return self._settle(raw, mask, indexes)

    def mask(self, window: Window | None = None) -> NDArray[np.bool_]:
        """Return where the file's own mask or alpha band lets a pixel count, (H, W), whatever the bands hold there.

        Raises:
            ImageryError: The mask cannot be read.
        """
        row, col, height, width = window or (0, 0, self.grid.height, self.grid.width)
        if not self._masked:
            return np.ones((height, width), bool)
        try:
            return np.asarray(self._source.dataset_mask(window=_Window(col, row, width, height)) > 0)
        except (RasterioError, CPLE_BaseError, MemoryError) as bad:
            raise self._blame(bad) from bad

    def nodata_of(self, bands: Sequence[str] | None = None) -> tuple[float | None, ...]:
        """Return the declared nodata value of each of these bands; None where none is declared."""
        return tuple(self._source.nodatavals[index - 1] for index in self._find(bands))

    def _read(self, indexes: Sequence[int], window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Read bands and mask, while other threads compare the blocks under the window with their checksums."""
        row, col, height, width = window
        at = _Window(col, row, width, height)
        todo = self._new_blocks(indexes, window)
        with self.path.open("rb") as file, ThreadPoolExecutor(max(min(len(todo), THREADS), 1)) as pool:
            checks = [(block, pool.submit(inflates, file.fileno(), span, most)) for block, span, most in todo]
            try:
                raw = self._source.read(indexes, window=at)
            except (RasterioError, CPLE_BaseError, MemoryError) as bad:
                raise self._blame(bad) from bad
            for (band, r, c), check in checks:
                if wrong := check.result():
                    raise ImageryError(
                        f"{self.path}: expected whole pixels, got bad block (row {r}, column {c}) of "
                        f"{name_band(self._source, band)} ({wrong}); fetch or write the file again"
                    )
        return raw, self.mask(window)

    def _new_blocks(self, indexes: Sequence[int], window: Window) -> list[tuple[Block, Span, int]]:
        """Return the blocks under a window whose checksum was not looked at yet: block, place, most bytes it may hold."""
        if not self._unchecked:
            return []
        row, col, height, width = window
        shared = shares_blocks(self._source)
        found = []
        for band in (1,) if shared else indexes:
            tall, wide = self._source.block_shapes[band - 1]
            depth = np.dtype(self._source.dtypes[band - 1]).itemsize
            most = tall * wide * depth * (self._source.count if shared else 1)
            for r in range(row // tall, (row + height - 1) // tall + 1):
                for c in range(col // wide, (col + width - 1) // wide + 1):
                    span = self._unchecked.pop((band, r, c), None)
                    if span is not None:
                        found.append(((band, r, c), span, most))
        return found

    def _settle(
        self, raw: NDArray[np.generic], mask: NDArray[np.bool_], indexes: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        seen, everywhere = mask, None
        for layer, index in zip(raw, indexes, strict=True):
            nodata = self._source.nodatavals[index - 1]
            if nodata is None or not np.isfinite(nodata):
                continue
            held = layer == (np.float32(nodata) if layer.dtype == np.float32 else nodata)
            if not measurable(nodata):
                seen &= ~held
            everywhere = held if everywhere is None else everywhere & held
        if everywhere is not None:
            seen &= ~everywhere
        data = raw.astype(np.float32, copy=False)
        if raw.dtype.kind == "f":
            seen &= np.isfinite(data).all(0)
        return data, seen

    def _find(self, bands: Sequence[str] | None) -> list[int]:
        if bands is None:
            return list(self._indexes)
        for name in bands:
            if name not in self.bands:
                raise ImageryError(
                    f"{self.path}: expected band {name!r}, got {', '.join(self.bands)}; {did_you_mean(name, self.bands)}"
                )
        return [self._indexes[self.bands.index(name)] for name in bands]

    def _blame(self, bad: BaseException) -> ImageryError:
        found = None
        cause: BaseException | None = bad
        while cause is not None and found is None:
            found = _BAD_BLOCK.search(str(cause))
            cause = cause.__cause__
        place = f"bad block (row {found[2]}, column {found[1]})" if found else "an unreadable block"
        band = re.search(r"band (\d+): IReadBlock", str(bad.__cause__ or bad))
        where = f" of {name_band(self._source, int(band[1]))}" if band else ""
        return ImageryError(f"{self.path}: expected readable pixels, got {place}{where}; fetch or write the file again")


@contextmanager
def open_raster(path: Path | str, limits: Limits = Limits()) -> Iterator[RasterSource]:
    """Open a local raster after looking at it: format, size, whole blocks, georeference.

    Args:
        path: A plain file; virtual paths and addresses are refused.
        limits: What it may ask of this machine.

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
        with rasterio.Env(**_ENV):
            source = DatasetReader(str(plain), driver=[name for name in limits.drivers if name != "COG"], sharing=False)
    except (RasterioError, CPLE_BaseError, ValueError) as bad:
        raise ImageryError(
            f"{path}: expected a raster of format {', '.join(limits.drivers)}, got {what_is(plain)} ({_first(bad)}); "
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


def measurable(nodata: float) -> bool:
    """Tell whether a declared nodata value could be a measurement of some Sentinel product, as stored.

    Example:
        >>> measurable(0), measurable(-9999), measurable(65535)
        (True, False, False)
    """
    return MEASURABLE[0] <= nodata <= MEASURABLE[1]


def _grid(where: str, source: rasterio.DatasetReader) -> Grid:
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


def _first(bad: BaseException) -> str:
    return str(bad.__cause__ or bad).splitlines()[0][:160]

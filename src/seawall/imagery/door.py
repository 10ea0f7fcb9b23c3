"""The door of the house: what is looked at before a raster is opened, and before a pixel of it is read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from seawall.errors import ImageryError
from seawall.imagery.checksums import Span

COMPLETE = "SEAWALL_COMPLETE"
"""Tag of a raster that our writer finished; a raster of our writer without it is a leftover of a killed one."""
WRITER = "SEAWALL_WRITER"

_SCHEME = re.compile(r"^(/vsi\w|[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z][A-Za-z0-9_]+:)")
_DAMAGED = "a damaged or truncated TIFF"
_MAGIC = {
    b"<!do": "an HTML page",
    b"<htm": "an HTML page",
    b"<?xm": "an XML text",
    b"pk\x03\x04": "a zip archive",
    b"ii*\0": _DAMAGED,
    b"ii+\0": _DAMAGED,
    b"mm\0*": _DAMAGED,
    b"mm\0+": _DAMAGED,
    b"\x89png": "a damaged or truncated PNG",
    b"\0\0\0\x0c": "a damaged or truncated JPEG 2000",
}


@dataclass(frozen=True)
class Limits:
    """What a raster may ask of this machine before anything is allocated.

    Args:
        pixels: Most pixels of one band.
        bytes: Most bytes of all bands, decoded.
        block_bytes: Most bytes of one decoded block.
        drivers: GDAL drivers that may open it; VRT is not among them, because it opens other files.
    """

    pixels: int = 2**31
    bytes: int = 2**37
    block_bytes: int = 2**31
    drivers: tuple[str, ...] = ("GTiff", "COG", "JP2OpenJPEG", "PNG", "JPEG")


def check_path(path: Path | str) -> Path:
    """Return the absolute path of a plain local file.

    Raises:
        ImageryError: It is a GDAL virtual path, an address, a driver string, a folder, empty or not there.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise ImageryError(f"{text!r}: expected a path, got one with a NUL character; rename the file")
    plain = Path(text)
    if _SCHEME.match(text) and (text.startswith("/vsi") or not plain.is_file()):
        raise ImageryError(
            f"{text}: expected the path of a local file, got a virtual path or an address; download or unpack it first"
        )
    if plain.is_dir():
        raise ImageryError(f"{text}: expected a raster file, got a folder; name the file in it")
    if not plain.exists():
        raise ImageryError(f"{text}: expected a raster file, got nothing there; check the path")
    if not plain.is_file():
        raise ImageryError(f"{text}: expected a regular file, got a device or a pipe; copy it to a file")
    if plain.stat().st_size == 0:
        raise ImageryError(f"{text}: expected a raster, got 0 bytes; fetch or write the file again")
    return Path(os.path.abspath(plain))  # noqa: PTH100  (resolve() would follow links; the caller decides on those)


def what_is(path: Path) -> str:
    """Name what a file that is no raster seems to be, from its first bytes."""
    with path.open("rb") as file:
        head = file.read(4)
    return _MAGIC.get(head.lower(), "an unreadable or unknown format")


def check_size(where: str, source: rasterio.DatasetReader, limits: Limits) -> None:
    """Refuse a raster that declares more than the limits, or that has no pixels, before anything is allocated."""
    height, width, count = source.height, source.width, source.count
    if count == 0 or height < 1 or width < 1:
        raise ImageryError(f"{where}: expected a raster with pixels, got {count} bands of {height}x{width}; check it")
    if height * width > limits.pixels:
        raise ImageryError(
            f"{where}: expected at most {limits.pixels} pixels, got {height}x{width}; raise Limits.pixels or cut it"
        )
    depth = max(_itemsize(where, dtype) for dtype in source.dtypes)
    if height * width * count * depth > limits.bytes:
        raise ImageryError(
            f"{where}: expected at most {limits.bytes} bytes, got {count} bands of {height}x{width} pixels; raise Limits.bytes or cut it"
        )
    block = max(rows * cols for rows, cols in source.block_shapes) * depth
    if block > limits.block_bytes:
        raise ImageryError(
            f"{where}: expected blocks of at most {limits.block_bytes} bytes, got {block}; tile the raster"
        )


def check_blocks(where: str, source: rasterio.DatasetReader) -> dict[tuple[int, int, int], Span]:
    """Refuse a GeoTIFF whose blocks are not all in the file.

    Absent blocks are fine where nodata is declared (they are unseen), unless all are absent.

    Returns:
        Where each block (band, row, column) is in the file; bands that share their blocks are band 1. Empty for other
        formats.

    Raises:
        ImageryError: The file ends before a block does, or blocks are absent and would read as zeros.
    """
    if source.driver not in ("GTiff", "COG"):
        return {}
    size = Path(source.name).stat().st_size
    spans: dict[tuple[int, int, int], Span] = {}
    total = 0
    for band in (1,) if shares_blocks(source) else source.indexes:
        rows, cols = source.block_shapes[band - 1]
        for row in range(-(-source.height // rows)):
            for col in range(-(-source.width // cols)):
                total += 1
                span = _span(where, source, band, row, col)
                if span is None:
                    continue
                if sum(span) > size:
                    raise ImageryError(
                        f"{where}: expected a whole file, got one that ends inside block (row {row}, column {col}) of "
                        f"{name_band(source, band)}; fetch or write the file again"
                    )
                spans[band, row, col] = span
    _check_absent(where, source, total - len(spans), total)
    return spans


def shares_blocks(source: rasterio.DatasetReader) -> bool:
    """Tell whether a block of a raster holds all of its bands."""
    return bool(source.interleaving == rasterio.enums.Interleaving.pixel)


def _span(where: str, source: rasterio.DatasetReader, band: int, row: int, col: int) -> Span | None:
    """Return where a block is in the file; None if it is absent."""
    try:
        start = source.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
        length = source.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
    except (RasterioError, CPLE_BaseError) as bad:
        raise ImageryError(
            f"{where}: expected a TIFF that says where its blocks are, got a damaged one "
            f"({str(bad).splitlines()[0][:120]}); fetch or write the file again"
        ) from bad
    return None if start is None else (int(start), int(length or 0))


def _check_absent(where: str, source: rasterio.DatasetReader, absent: int, total: int) -> None:
    tags = source.tags()
    if WRITER in tags and COMPLETE not in tags:
        raise ImageryError(
            f"{where}: expected a finished raster, got the leftover of a killed writer; delete it and run again"
        )
    if absent == total and COMPLETE not in tags:
        raise ImageryError(
            f"{where}: expected pixels, got a raster whose {total} blocks are all absent; it is the leftover of a killed writer, write it again"
        )
    if absent and any(nodata is None for nodata in source.nodatavals):
        raise ImageryError(
            f"{where}: expected all {total} blocks or a declared nodata value, got {absent / total:.1%} of the blocks absent; "
            "fetch the file again or declare nodata"
        )


def name_band(source: rasterio.DatasetReader, band: int) -> str:
    """Name a band for people: its description, or its number."""
    return f"band {source.descriptions[band - 1] or band}"


def _itemsize(where: str, dtype: str) -> int:
    kind = np.dtype("complex64" if dtype.startswith("complex") else dtype)
    if kind.kind not in "iuf" or kind.itemsize > 8 or (kind.kind in "iu" and kind.itemsize > 4):
        raise ImageryError(
            f"{where}: expected whole numbers of up to 32 bits or floats, got {dtype} pixels; convert the raster"
        )
    return kind.itemsize

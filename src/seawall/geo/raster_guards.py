"""Checks of a raster file before it is opened and before its pixels are read: path, format, size, blocks, checksums."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from seawall.errors import ImageryError

COMPLETE_TAG = "SEAWALL_COMPLETE"
"""Tag of a raster that `CogWriter` finished; one with `WRITER_TAG` alone is the leftover of a killed writer."""

WRITER_TAG = "SEAWALL_WRITER"

ByteRange = tuple[int, int]
"""Offset and length of a block in the file, in bytes."""

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
    """Largest raster that is read; checked before anything is allocated.

    Args:
        pixels: Largest number of pixels of one band.
        bytes: Largest size of all bands, decoded.
        block_bytes: Largest size of one decoded block.
        drivers: GDAL drivers that may open it; not VRT, because it opens other files.
    """

    pixels: int = 2**31
    bytes: int = 2**37
    block_bytes: int = 2**31
    drivers: tuple[str, ...] = ("GTiff", "COG", "JP2OpenJPEG", "PNG", "JPEG")


def check_path(path: Path | str) -> Path:
    """Return the absolute path of a plain local file.

    Raises:
        ImageryError: It is a GDAL virtual path, an address, a driver string, a folder, a device, empty or missing.
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


def guess_format(path: Path) -> str:
    """Return the format that the first bytes of an unreadable file suggest, for messages."""
    with path.open("rb") as file:
        head = file.read(4)
    return _MAGIC.get(head.lower(), "an unreadable or unknown format")


def check_size(where: str, source: rasterio.DatasetReader, limits: Limits) -> None:
    """Check that a raster has pixels and declares no more than the limits.

    Raises:
        ImageryError: It has none, declares more, or has pixels of an unsupported type.
    """
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


def check_blocks(where: str, source: rasterio.DatasetReader) -> dict[tuple[int, int, int], ByteRange]:
    """Check that the blocks of a GeoTIFF are all in the file.

    Absent blocks are allowed where nodata is declared (their pixels are unseen), unless all are absent.

    Returns:
        The byte range of each block (band, row, column); pixel-interleaved bands are band 1. Empty for other formats.

    Raises:
        ImageryError: The file ends inside a block, or blocks are absent without nodata.
    """
    if source.driver not in ("GTiff", "COG"):
        return {}
    size = Path(source.name).stat().st_size
    spans: dict[tuple[int, int, int], ByteRange] = {}
    total = 0
    for band in (1,) if is_pixel_interleaved(source) else source.indexes:
        rows, cols = source.block_shapes[band - 1]
        for row in range(-(-source.height // rows)):
            for col in range(-(-source.width // cols)):
                total += 1
                span = _block_range(where, source, band, row, col)
                if span is None:
                    continue
                if sum(span) > size:
                    raise ImageryError(
                        f"{where}: expected a whole file, got one that ends inside block (row {row}, column {col}) of "
                        f"{band_text(source, band)}; fetch or write the file again"
                    )
                spans[band, row, col] = span
    _check_absent(where, source, total - len(spans), total)
    return spans


def is_pixel_interleaved(source: rasterio.DatasetReader) -> bool:
    """Return whether each block of a raster has all of its bands."""
    return bool(source.interleaving == rasterio.enums.Interleaving.pixel)


def _block_range(where: str, source: rasterio.DatasetReader, band: int, row: int, col: int) -> ByteRange | None:
    """Return the byte range of a block; None if it is absent."""
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
    if WRITER_TAG in tags and COMPLETE_TAG not in tags:
        raise ImageryError(
            f"{where}: expected a finished raster, got the leftover of a killed writer; delete it and run again"
        )
    if absent == total and COMPLETE_TAG not in tags:
        raise ImageryError(
            f"{where}: expected pixels, got a raster whose {total} blocks are all absent; it is the leftover of a killed writer, write it again"
        )
    if absent and any(nodata is None for nodata in source.nodatavals):
        raise ImageryError(
            f"{where}: expected all {total} blocks or a declared nodata value, got {absent / total:.1%} of the blocks absent; "
            "fetch the file again or declare nodata"
        )


def band_text(source: rasterio.DatasetReader, band: int) -> str:
    """Return a band's description, or its number, for messages."""
    return f"band {source.descriptions[band - 1] or band}"


def _itemsize(where: str, dtype: str) -> int:
    kind = np.dtype("complex64" if dtype.startswith("complex") else dtype)
    if kind.kind not in "iuf" or kind.itemsize > 8 or (kind.kind in "iu" and kind.itemsize > 4):
        raise ImageryError(
            f"{where}: expected whole numbers of up to 32 bits or floats, got {dtype} pixels; convert the raster"
        )
    return kind.itemsize


_PNG = b"\x89PNG\r\n\x1a\n"
_INFLATE_BYTES = 2**22
_CHANNELS: Mapping[int, int] = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def zlib_damage(handle: int, span: ByteRange, limit: int) -> str:
    """Decompress a zlib stream and return what is wrong with it; "" if it is whole and its checksum is right.

    Args:
        handle: Descriptor of the open file; several threads may share it.
        span: Byte range of the stream.
        limit: Largest decompressed size in bytes.
    """
    left = os.pread(handle, span[1], span[0])
    if len(left) < span[1]:
        return "it is cut off"
    stream, size = zlib.decompressobj(), 0
    try:
        while not stream.eof:
            made = len(stream.decompress(left, _INFLATE_BYTES))
            left, size = stream.unconsumed_tail, size + made
            if size > limit:
                return f"it holds more than {limit} bytes"
            if not made and not left and not stream.eof:
                return "it is cut off"
    except zlib.error as bad:
        return str(bad).partition(": ")[2] or str(bad)
    return ""


def check_png(path: Path) -> None:
    """Check that a PNG file is whole: the checksum of each chunk, the end mark, and the size of the pixel data.

    Raises:
        ImageryError: It is cut off or damaged.
    """
    try:
        expected, stream, got = -1, zlib.decompressobj(), 0
        with path.open("rb") as file:
            if file.read(8) != _PNG:
                raise ValueError("no PNG signature")
            while (chunk := _read_chunk(file))[0] != b"IEND":
                if chunk[0] == b"IHDR":
                    expected = _png_data_bytes(chunk[1])
                if chunk[0] == b"IDAT":
                    got += _count_inflated(stream, chunk[1], expected - got)
        if expected < 0 or got != expected or not stream.eof:
            raise ValueError(f"{got} of {expected} bytes of pixels")
    except (ValueError, zlib.error) as bad:
        raise ImageryError(
            f"{path}: expected a whole PNG, got a truncated or damaged one ({bad}); fetch or write the file again"
        ) from bad


def _read_chunk(file: IO[bytes]) -> tuple[bytes, bytes]:
    """Return the type and the content of the next chunk; ValueError if it is cut off or damaged."""
    head = file.read(8)
    if len(head) < 8:
        raise ValueError("it ends without its end mark")
    size, kind = int.from_bytes(head[:4], "big"), head[4:]
    body = file.read(size) if size < 2**31 else b""
    tail = file.read(4)
    if len(body) < size or len(tail) < 4:
        raise ValueError(f"it ends inside a chunk {kind.decode('latin-1')!r}")
    if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(tail, "big"):
        raise ValueError(f"wrong checksum of a chunk {kind.decode('latin-1')!r}")
    return kind, body


def _count_inflated(stream: zlib._Decompress, body: bytes, limit: int) -> int:
    """Return the decompressed size of a data chunk; ValueError if it exceeds the limit."""
    made = 0
    while not stream.eof:
        now = len(stream.decompress(body, _INFLATE_BYTES))
        body, made = stream.unconsumed_tail, made + now
        if made > limit:
            raise ValueError("more pixels than it declares")
        if now < _INFLATE_BYTES and not body:
            break
    return made


def _png_data_bytes(head: bytes) -> int:
    """Return the size in bytes of the filtered rows of an image, from its header chunk."""
    if len(head) != 13 or head[9] not in _CHANNELS:
        raise ValueError("a damaged header")
    width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    bits = head[8] * _CHANNELS[head[9]]
    passes = _ADAM7 if head[12] else ((0, 0, 1, 1),)
    total = 0
    for left, top, wide, tall in passes:
        columns, rows = -(-(width - left) // wide), -(-(height - top) // tall)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total

"""Checksums that files carry: Adler-32 of deflated TIFF blocks, CRC-32 of PNG chunks.

GDAL stops to decompress when a block is full and never looks at the checksum behind it, and its PNG reader returns
whatever was in memory where a file breaks off. Both are looked at here before a pixel is believed. LZW, PackBits, ZSTD,
JPEG, JPEG 2000 and uncompressed blocks carry no checksum: damage that still decodes cannot be seen in them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from seawall.errors import ImageryError

Span = tuple[int, int]
"""Where a block is in the file: first byte, bytes."""

_PNG = b"\x89PNG\r\n\x1a\n"
_STEP = 2**22
_CHANNELS: Mapping[int, int] = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def inflates(handle: int, span: Span, most: int) -> str:
    """Decompress a zlib stream and say what is wrong with it; "" if it is whole and its checksum is right.

    Args:
        handle: Descriptor of the open file; several threads may share it.
        span: Where the stream is.
        most: Bytes that it may decompress to.
    """
    left = os.pread(handle, span[1], span[0])
    if len(left) < span[1]:
        return "it is cut off"
    stream, size = zlib.decompressobj(), 0
    try:
        while not stream.eof:
            made = len(stream.decompress(left, _STEP))
            left, size = stream.unconsumed_tail, size + made
            if size > most:
                return f"it holds more than {most} bytes"
            if not made and not left and not stream.eof:
                return "it is cut off"
    except zlib.error as bad:
        return str(bad).partition(": ")[2] or str(bad)
    return ""


def check_png(path: Path) -> None:
    """Refuse a PNG file that is not whole: each chunk's checksum, the end mark, and as many bytes as its pixels need.

    Raises:
        ImageryError: It is cut off or damaged.
    """
    try:
        need, stream, got = -1, zlib.decompressobj(), 0
        with path.open("rb") as file:
            if file.read(8) != _PNG:
                raise ValueError("no PNG signature")
            while (chunk := _chunk(file))[0] != b"IEND":
                if chunk[0] == b"IHDR":
                    need = _png_bytes(chunk[1])
                if chunk[0] == b"IDAT":
                    got += _feed(stream, chunk[1], need - got)
        if need < 0 or got != need or not stream.eof:
            raise ValueError(f"{got} of {need} bytes of pixels")
    except (ValueError, zlib.error) as bad:
        raise ImageryError(
            f"{path}: expected a whole PNG, got a truncated or damaged one ({bad}); fetch or write the file again"
        ) from bad


def _chunk(file: IO[bytes]) -> tuple[bytes, bytes]:
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


def _feed(stream: zlib._Decompress, body: bytes, room: int) -> int:
    made = 0
    while not stream.eof:
        now = len(stream.decompress(body, _STEP))
        body, made = stream.unconsumed_tail, made + now
        if made > room:
            raise ValueError("more pixels than it declares")
        if now < _STEP and not body:
            break
    return made


def _png_bytes(head: bytes) -> int:
    """Return how many bytes the filtered rows of an image take, from its header chunk."""
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

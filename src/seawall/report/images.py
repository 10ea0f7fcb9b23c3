"""Arrays to lossless PNG data addresses: an adversary's noise would not survive a lossy format."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import ByteArray

Color = tuple[int, int, int, int]

CLEAR: Color = (0, 0, 0, 0)
UNSEEN: Color = (128, 128, 128, 60)
FOUND: tuple[Color, ...] = (CLEAR, (64, 196, 255, 150), UNSEEN)
MISTAKES: tuple[Color, ...] = (CLEAR, (255, 92, 40, 215), (255, 214, 10, 215), UNSEEN)
"""Overlay of mistakes: right, missed, invented, not counted."""

CLASSES: tuple[Color, ...] = (
    (226, 218, 200, 255), (28, 106, 168, 255), (106, 153, 78, 255), (188, 71, 73, 255),
    (242, 187, 78, 255), (122, 104, 166, 255), (120, 120, 120, 255), (60, 160, 150, 255),
)  # fmt: skip
"""Colors of class maps: land, water, then others that stay apart for color-blind readers."""


def png(image: ByteArray, colors: Sequence[Color] = ()) -> bytes:
    """Encode (H, W, 3) as true color, or (H, W) as indices into `colors`, or as gray without colors.

    Example:
        >>> png(np.zeros((2, 2), np.uint8))[:4]
        b'\\x89PNG'
    """
    image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    kind = 2 if image.ndim == 3 else 3 if colors else 0
    rows = _filtered(image.reshape(height, -1), 3 if kind == 2 else 1) if kind != 3 else _unfiltered(image)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", _piece(b"IHDR", header)]
    if kind == 3:
        parts.append(_piece(b"PLTE", bytes(part for color in colors for part in color[:3])))
        parts.append(_piece(b"tRNS", bytes(color[3] for color in colors)))
    parts += [_piece(b"IDAT", zlib.compress(rows.tobytes(), 9)), _piece(b"IEND", b"")]
    return b"".join(parts)


def address(image: ByteArray, colors: Sequence[Color] = ()) -> str:
    """Return a picture as a data address that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png(image, colors)).decode()


def fit(image: ByteArray, side: int) -> ByteArray:
    """Thin an image out to at most `side` pixels a side, keeping measured values: no blending."""
    step = -(-max(image.shape[:2]) // side)
    return image[::step, ::step] if step > 1 else image


def ramp(low: tuple[int, int, int], high: tuple[int, int, int], levels: int) -> tuple[Color, ...]:
    """Return a sequence of colors; the last one is clear, for what was not seen."""
    colors: list[Color] = []
    for i in range(levels):
        t = i / max(levels - 1, 1)
        r, g, b = (round(a + (z - a) * t) for a, z in zip(low, high, strict=True))
        colors.append((r, g, b, 255))
    return (*colors, CLEAR)


def levels(value: NDArray[np.float32], seen: NDArray[np.bool_], count: int, low: float, high: float) -> ByteArray:
    """Sort values into `count` equal steps; unseen pixels get the index `count`."""
    scaled = np.clip((np.nan_to_num(value) - low) / ((high - low) or 1.0), 0, 1)
    return np.where(seen, np.minimum(scaled * count, count - 1), count).astype(np.uint8)


def found(prediction: NDArray[np.generic], klass: int, valid: NDArray[np.bool_]) -> str:
    """Return the overlay of pixels that a model gives a class."""
    index = np.where(valid, (prediction == klass).astype(np.uint8), 2)
    return address(index.astype(np.uint8), FOUND)


def mistakes(prediction: NDArray[np.generic], label: NDArray[np.generic], klass: int, valid: NDArray[np.bool_]) -> str:
    """Return the overlay of missed and invented pixels of a class."""
    says, is_ = prediction == klass, label == klass
    index = np.where(is_ & ~says, 1, np.where(says & ~is_, 2, 0))
    return address(np.where(valid, index, 3).astype(np.uint8), MISTAKES)


def classes(labels: NDArray[np.generic], valid: NDArray[np.bool_] | None = None) -> str:
    """Return a class map; pixels that do not count are clear."""
    colors = (*CLASSES, CLEAR)
    index = np.clip(labels.astype(np.int64), 0, None) % len(CLASSES)
    if valid is not None:
        index = np.where(valid, index, len(CLASSES))
    return address(index.astype(np.uint8), colors)


def _piece(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _unfiltered(rows: ByteArray) -> ByteArray:
    return np.pad(rows, ((0, 0), (1, 0)))


def _filtered(rows: ByteArray, step: int) -> ByteArray:
    """Choose per row the difference to the left, above or both that leaves the least to store."""
    now = rows.astype(np.int16)
    up = np.vstack([np.zeros_like(now[:1]), now[:-1]])
    left = np.pad(now, ((0, 0), (step, 0)))[:, : now.shape[1]]
    corner = np.pad(up, ((0, 0), (step, 0)))[:, : now.shape[1]]
    guess = left + up - corner
    far = [np.abs(guess - side) for side in (left, up, corner)]
    paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], up, corner))
    kinds = [now, now - left, now - up, now - (left + up) // 2, now - paeth]
    costs = np.stack([np.abs(((k + 128) & 255) - 128).sum(1) for k in kinds])
    best = costs.argmin(0)
    chosen = np.stack(kinds)[best, np.arange(len(now))] & 255
    return np.hstack([best[:, None], chosen]).astype(np.uint8)

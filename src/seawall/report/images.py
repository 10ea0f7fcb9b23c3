"""Arrays as lossless PNG pictures in data URLs; a lossy format would change the noise of an attack."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, ByteArray, FloatArray

RGBA = tuple[int, int, int, int]
PixelT = TypeVar("PixelT", bound=np.generic)

TRANSPARENT: RGBA = (0, 0, 0, 0)
UNSEEN_COLOR: RGBA = (128, 128, 128, 60)
FOUND_COLORS: tuple[RGBA, ...] = (TRANSPARENT, (64, 196, 255, 150), UNSEEN_COLOR)
MISTAKE_COLORS: tuple[RGBA, ...] = (TRANSPARENT, (255, 92, 40, 215), (255, 214, 10, 215), UNSEEN_COLOR)
"""Overlay of mistakes: right, missed, invented, not counted."""

CLASS_COLORS: tuple[RGBA, ...] = (
    (226, 218, 200, 255), (28, 106, 168, 255), (106, 153, 78, 255), (188, 71, 73, 255),
    (242, 187, 78, 255), (122, 104, 166, 255), (120, 120, 120, 255), (60, 160, 150, 255),
)  # fmt: skip
"""Colors of class maps: land, water, then others that color-blind readers can tell apart."""


def encode_png(image: ByteArray, colors: Sequence[RGBA] = ()) -> bytes:
    """Encode a picture as PNG without loss.

    Args:
        image: (H, W, 3) red, green, blue; or (H, W) indices into `colors`, gray values without colors.
        colors: Red, green, blue and opacity per index.

    Example:
        >>> encode_png(np.zeros((2, 2), np.uint8))[:4]
        b'\\x89PNG'
    """
    import cv2

    pixels = image
    if colors:
        pixels = np.array(colors, np.uint8)[image]
        if (pixels[..., 3] == 255).all():
            pixels = pixels[..., :3]
    if pixels.ndim == 3:
        order = [2, 1, 0, 3][: pixels.shape[2]]  # OpenCV stores blue first
        pixels = pixels[..., order]
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return bytes(data)


def data_url(image: ByteArray, colors: Sequence[RGBA] = ()) -> str:
    """Return a picture as a data URL; the arguments are those of `encode_png`."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image, colors)).decode()


def thin_out(image: NDArray[PixelT], side: int) -> NDArray[PixelT]:
    """Keep every n-th row and column so that no side has more than `side` pixels; values are not averaged."""
    step = -(-max(image.shape[:2]) // side)
    return image[::step, ::step] if step > 1 else image


def color_ramp(low: tuple[int, int, int], high: tuple[int, int, int], levels: int) -> tuple[RGBA, ...]:
    """Return `levels` colors from low to high, and a transparent one for unseen pixels."""
    colors: list[RGBA] = []
    for i in range(levels):
        t = i / max(levels - 1, 1)
        r, g, b = (round(a + (z - a) * t) for a, z in zip(low, high, strict=True))
        colors.append((r, g, b, 255))
    return (*colors, TRANSPARENT)


def quantize(value: FloatArray, seen: BoolArray, levels: int, low: float, high: float) -> ByteArray:
    """Return the index of each value among `levels` equal intervals of [low, high]; unseen pixels get `levels`."""
    scaled = np.clip((np.nan_to_num(value) - low) / ((high - low) or 1.0), 0, 1)
    return np.where(seen, np.minimum(scaled * levels, levels - 1), levels).astype(np.uint8)


def found_overlay(prediction: NDArray[np.generic], klass: int, valid: BoolArray) -> str:
    """Return the overlay of the pixels that are predicted as a class."""
    index = np.where(valid, (prediction == klass).astype(np.uint8), 2)
    return data_url(index.astype(np.uint8), FOUND_COLORS)


def mistakes_overlay(prediction: NDArray[np.generic], label: NDArray[np.generic], klass: int, valid: BoolArray) -> str:
    """Return the overlay of a class's false negatives and false positives."""
    predicted, labelled = prediction == klass, label == klass
    index = np.where(labelled & ~predicted, 1, np.where(predicted & ~labelled, 2, 0))
    return data_url(np.where(valid, index, 3).astype(np.uint8), MISTAKE_COLORS)


def class_map(labels: NDArray[np.generic], valid: BoolArray | None = None) -> str:
    """Return a class map; pixels that are not valid are transparent."""
    index = np.clip(labels.astype(np.int64), 0, None) % len(CLASS_COLORS)
    if valid is not None:
        index = np.where(valid, index, len(CLASS_COLORS))
    return data_url(index.astype(np.uint8), (*CLASS_COLORS, TRANSPARENT))

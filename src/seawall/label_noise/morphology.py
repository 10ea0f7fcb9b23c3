"""Square-kernel morphology with OpenCV's borders, one iteration at a time, and distances to the shoreline.

Pixels outside the image and pixels without a label are unknown: they neither erode nor dilate, as outside the
image in OpenCV (erosion pads with the largest, dilation with the smallest value). n iterations of a k x k kernel
are one iteration of a square of side n (k - 1) + 1, and a pixel changes at the n of its Chebyshev distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import cv2
import numpy as np

from seawall.arrays import BoolArray, ByteArray, FloatArray
from seawall.label_noise.label_view import LabelView

Steps = Callable[[LabelView, int], Iterator[BoolArray]]
"""Maps a chip and a kernel size to the pixels changed after 1, 2, 3 ... iterations, each a superset of the last."""


def erosions(view: LabelView, kernel: int) -> Iterator[BoolArray]:
    """Yield the pixels that erosion removes; ends when no pixel of the class is left."""
    square = np.ones((kernel, kernel), np.uint8)
    state: ByteArray = (view.mask | ~view.valid).view(np.uint8)
    left = _shoreline(view)
    while left:
        state = np.asarray(cv2.erode(state, square), np.uint8)
        gone = view.mask & (state == 0)
        yield gone
        left = bool(state.any())


def dilations(view: LabelView, kernel: int) -> Iterator[BoolArray]:
    """Yield the pixels that dilation adds; ends when no other pixel is left."""
    square = np.ones((kernel, kernel), np.uint8)
    state: ByteArray = view.mask.view(np.uint8)
    left = _shoreline(view)
    while left:
        state = np.asarray(cv2.dilate(state, square), np.uint8)
        yield view.rest & (state > 0)
        left = not state.all()


def openings(view: LabelView, kernel: int) -> Iterator[BoolArray]:
    """Yield the pixels that opening removes: parts of the class that the square does not fit into."""
    square = np.ones((kernel, kernel), np.uint8)
    state: ByteArray = (view.mask | ~view.valid).view(np.uint8)
    n = 0
    while state.any() and _shoreline(view):
        n += 1
        state = np.asarray(cv2.erode(state, square), np.uint8)
        yield view.mask & (_spread(state, kernel, n) == 0)


def closings(view: LabelView, kernel: int) -> Iterator[BoolArray]:
    """Yield the pixels that closing adds: gaps of the class that the square does not fit into."""
    square = np.ones((kernel, kernel), np.uint8)
    outside: ByteArray = (~view.mask).view(np.uint8)
    n = 0
    while outside.any() and _shoreline(view):
        n += 1
        outside = np.asarray(cv2.erode(outside, square), np.uint8)
        yield view.rest & (_spread(outside, kernel, n) == 0)


Metric = Literal["chebyshev", "euclidean"]


def distance_to(targets: BoolArray, metric: Metric = "chebyshev") -> FloatArray:
    """Return each pixel's distance to the nearest target in pixels, infinite without one."""
    if not targets.any():
        return np.full(targets.shape, np.inf, np.float32)
    kind, mask = (cv2.DIST_C, 3) if metric == "chebyshev" else (cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(cv2.distanceTransform((~targets).view(np.uint8), kind, mask), np.float32)


def shoreline_distance(view: LabelView, metric: Metric = "chebyshev") -> FloatArray:
    """Return each valid pixel's distance to the nearest pixel on the other side of the shoreline: at least 1.

    The shoreline itself runs half a pixel nearer.
    """
    return np.where(view.mask, distance_to(view.rest, metric), distance_to(view.mask, metric))


def _spread(state: ByteArray, kernel: int, times: int) -> ByteArray:
    side = times * (kernel - 1) + 1
    return np.asarray(cv2.dilate(state, np.ones((side, side), np.uint8)), np.uint8)


def _shoreline(view: LabelView) -> bool:
    """Return whether the chip has both the class and another one; without a shoreline nothing moves."""
    return bool(view.mask.any() and view.rest.any())

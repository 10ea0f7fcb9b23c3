"""Square-kernel morphology with OpenCV's borders, one iteration at a time.

Pixels outside the image and pixels without a label are unknown: they neither erode nor dilate, as outside the
image in OpenCV (erosion pads with the largest, dilation with the smallest value). n iterations of a k x k kernel
are one iteration of a square of side n (k - 1) + 1, and a pixel changes at the n of its Chebyshev distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, ByteArray
from seawall.label_noise.label_view import Ground

Steps = Callable[[Ground, int], Iterator[BoolArray]]
"""From a chip and a kernel size to the pixels changed after 1, 2, 3 ... iterations, each a superset of the last."""


def erosions(ground: Ground, kernel: int) -> Iterator[BoolArray]:
    """Yield what erosion takes away; ends when nothing is left to take."""
    square = np.ones((kernel, kernel), np.uint8)
    state: ByteArray = (ground.mask | ~ground.valid).view(np.uint8)
    left = _shoreline(ground)
    while left:
        state = np.asarray(cv2.erode(state, square), np.uint8)
        gone = ground.mask & (state == 0)
        yield gone
        left = bool(state.any())


def dilations(ground: Ground, kernel: int) -> Iterator[BoolArray]:
    """Yield what dilation adds; ends when nothing is left to add."""
    square = np.ones((kernel, kernel), np.uint8)
    state: ByteArray = ground.mask.view(np.uint8)
    left = _shoreline(ground)
    while left:
        state = np.asarray(cv2.dilate(state, square), np.uint8)
        yield ground.rest & (state > 0)
        left = not state.all()


def openings(ground: Ground, kernel: int) -> Iterator[BoolArray]:
    """Yield what opening takes away: spits and ponds that the square does not fit into."""
    square = np.ones((kernel, kernel), np.uint8)
    state: ByteArray = (ground.mask | ~ground.valid).view(np.uint8)
    n = 0
    while state.any() and _shoreline(ground):
        n += 1
        state = np.asarray(cv2.erode(state, square), np.uint8)
        yield ground.mask & (_spread(state, kernel, n) == 0)


def closings(ground: Ground, kernel: int) -> Iterator[BoolArray]:
    """Yield what closing adds: bays, straits and islands that the square does not fit into."""
    square = np.ones((kernel, kernel), np.uint8)
    dry: ByteArray = (~ground.mask).view(np.uint8)
    n = 0
    while dry.any() and _shoreline(ground):
        n += 1
        dry = np.asarray(cv2.erode(dry, square), np.uint8)
        yield ground.rest & (_spread(dry, kernel, n) == 0)


def distance(targets: BoolArray) -> NDArray[np.float32]:
    """Return each pixel's Chebyshev distance to the nearest target, infinite without one."""
    if not targets.any():
        return np.full(targets.shape, np.inf, np.float32)
    found: NDArray[np.float32] = np.asarray(cv2.distanceTransform((~targets).view(np.uint8), cv2.DIST_C, 3))
    return found


def _spread(state: ByteArray, kernel: int, times: int) -> ByteArray:
    side = times * (kernel - 1) + 1
    return np.asarray(cv2.dilate(state, np.ones((side, side), np.uint8)), np.uint8)


def _shoreline(ground: Ground) -> bool:
    """Tell whether the chip has both the class and another one; without a shoreline nothing moves."""
    return bool(ground.mask.any() and ground.rest.any())

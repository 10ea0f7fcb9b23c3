"""Distances in pixels, between pixel centers."""

from __future__ import annotations

import cv2
import numpy as np

from seawall.arrays import BoolArray, FloatArray


def distance_pixels(targets: BoolArray) -> FloatArray:
    """Return the exact Euclidean distance of each pixel of (H, W) to the nearest target; infinite without any.

    Example:
        >>> distance_pixels(np.array([[True, False, False]])).tolist()
        [[0.0, 1.0, 2.0]]
    """
    if not targets.any():
        return np.full(targets.shape, np.inf, np.float32)
    others = np.where(targets, 0, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(others, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)

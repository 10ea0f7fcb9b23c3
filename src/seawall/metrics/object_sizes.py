"""Confusion counts by the size of the connected object, such as a water body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as components

SIZE_BIN_EDGES = (10, 100, 1000, 10000)
"""Object sizes in pixels where one bin ends and the next begins."""

SIZE_BINS = ("1-9", "10-99", "100-999", "1000-9999", "10000+", "none")
"""Names of the bins; "none" holds what is predicted on a chip without any object."""


@dataclass(frozen=True)
class SizedObjects:
    """The 8-connected objects of a class on one chip, and the pixels nearest to each.

    Sizes are of the part within the chip. Every pixel belongs to the bin of the nearest object: a false positive counts
    in the bin of the object next to it, and the bins add up to the counts of the chip.

    Args:
        truth: (H, W) bool, valid pixels of the class.
        valid: (H, W) bool.
        bin: (H, W) index into `NAMES`.
        per_bin: Number of objects per bin.
    """

    truth: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    bin: NDArray[np.uint8]
    per_bin: NDArray[np.int64]

    @staticmethod
    def of(truth: NDArray[np.bool_], valid: NDArray[np.bool_]) -> SizedObjects:
        """Find the objects of a class in a label."""
        truth = truth & valid
        none = len(SIZE_BINS) - 1
        index, found = components(truth, np.ones((3, 3)))
        if not found:
            return SizedObjects(truth, valid, np.full(truth.shape, none, np.uint8), np.zeros(len(SIZE_BINS), np.int64))
        sizes = np.bincount(index.ravel())[1:]
        kinds = np.digitize(sizes, SIZE_BIN_EDGES).astype(np.uint8)
        nearest = distance_transform_edt(~truth, return_distances=False, return_indices=True)
        zone = kinds[index[tuple(nearest)] - 1]
        return SizedObjects(truth, valid, zone, np.bincount(kinds, minlength=len(SIZE_BINS)))

    def counts(self, predicted: NDArray[np.bool_]) -> Mapping[str, NDArray[np.int64]]:
        """Count pixels of a prediction per bin.

        Args:
            predicted: (H, W) bool, where the class is predicted.

        Returns:
            tp, fp and fn, each (bins,).
        """
        predicted = predicted & self.valid
        parts = {"tp": predicted & self.truth, "fp": predicted & ~self.truth, "fn": self.truth & ~predicted}
        return {name: np.bincount(self.bin[part], minlength=len(SIZE_BINS)) for name, part in parts.items()}

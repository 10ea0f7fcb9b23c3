"""Counts by the size of the water body: small ponds against big rivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as components

EDGES = (10, 100, 1000, 10000)
"""Body sizes in pixels where one bin ends and the next begins."""

NAMES = ("1-9", "10-99", "100-999", "1000-9999", "10000+", "none")
"""Names of the bins; "none" holds what is invented on a chip without any body."""


@dataclass(frozen=True)
class Bodies:
    """The connected bodies of a class on one chip, 8-connected, and the ground that is nearest to each.

    A chip's border cuts bodies, so sizes are of what the chip shows. Every pixel belongs to the bin of the nearest
    body: an invented pixel counts against the body beside it, and the bins add up to the chip's counts.

    Args:
        truth: (H, W) bool, valid pixels of the class.
        valid: (H, W) bool.
        bin: (H, W) index into `NAMES`.
        bodies: Number of bodies per bin.
    """

    truth: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    bin: NDArray[np.uint8]
    bodies: NDArray[np.int64]

    @staticmethod
    def of(truth: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Bodies:
        """Find the bodies of a class in a label."""
        truth = truth & valid
        none = len(NAMES) - 1
        index, found = components(truth, np.ones((3, 3)))
        if not found:
            return Bodies(truth, valid, np.full(truth.shape, none, np.uint8), np.zeros(len(NAMES), np.int64))
        sizes = np.bincount(index.ravel())[1:]
        kinds = np.digitize(sizes, EDGES).astype(np.uint8)
        nearest = distance_transform_edt(~truth, return_distances=False, return_indices=True)
        zone = kinds[index[tuple(nearest)] - 1]
        return Bodies(truth, valid, zone, np.bincount(kinds, minlength=len(NAMES)))

    def counts(self, says: NDArray[np.bool_]) -> Mapping[str, NDArray[np.int64]]:
        """Count pixels of a prediction per bin.

        Args:
            says: (H, W) bool, where the class is predicted.

        Returns:
            tp, fp and fn, each (bins,).
        """
        says = says & self.valid
        parts = {"tp": says & self.truth, "fp": says & ~self.truth, "fn": self.truth & ~says}
        return {name: np.bincount(self.bin[part], minlength=len(NAMES)) for name, part in parts.items()}

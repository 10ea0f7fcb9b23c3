"""Class noise without a place: symmetric, and by a transition matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from seawall.errors import UsageError
from seawall.poison.budget import allowance, check_budget
from seawall.poison.ground import Ground, Label, relabel
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

SURVEY = "arXiv:2003.10471"


@register("noise", "symmetric", paper=SURVEY, smoke={"budget": 0.1})
@final
@dataclass(frozen=True)
class Symmetric:
    """Every pixel is as likely to be wrong, and every wrong class as likely.

    Args:
        budget: Share of the valid pixels that change, met to the pixel.
        classes: How many classes there are.

    Paper: Algan and Ulusoy 2020, T = (1 - eta) I + eta / (K - 1) (1 - I). Differs: the number of changed pixels is
    fixed, not drawn.
    """

    budget: float
    classes: int = 2

    def __post_init__(self) -> None:
        check_budget("symmetric", self.budget)
        if self.classes < 2:
            raise UsageError(f"symmetric.classes: expected at least 2, got {self.classes}; give the number of classes")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with wrong pixels strewn over its labels."""
        return relabel(batch, keys.fold("symmetric"), 0, self.change)

    def change(self, ground: Ground) -> Label:
        """Return one chip's new label."""
        at = ground.pick(ground.valid, allowance(self.budget, ground.pixels), "where")
        # one draw per pixel of the chip, so that a larger budget keeps the classes of a smaller one
        step = ground.rng("class").integers(1, self.classes, ground.label.shape)
        return np.where(at, (ground.label + step) % self.classes, ground.label)


@register("noise", "class-dependent", paper=SURVEY, smoke={"matrix": [[0.9, 0.1], [0.2, 0.8]]})
@final
@dataclass(frozen=True)
class ClassDependent:
    """Classes are confused by a transition matrix.

    Args:
        matrix: Row i, column j: share of class i that is labelled j. Rows sum to 1. Each share is met to the pixel,
            rounded down; the rest of the class stays.
        budget: Share of the confusion: 1 is the matrix, 0 is the identity.

    Paper: Algan and Ulusoy 2020, asymmetric noise. Differs: counts per chip are fixed, not drawn.
    """

    matrix: tuple[tuple[float, ...], ...]
    budget: float = 1.0

    def __post_init__(self) -> None:
        check_budget("class-dependent", self.budget)
        size = len(self.matrix)
        for i, row in enumerate(self.matrix):
            fine = len(row) == size and all(math.isfinite(p) and p >= 0 for p in row) and abs(sum(row) - 1) < 1e-6
            if not fine or size < 2:
                raise UsageError(
                    f"class-dependent.matrix: expected {max(size, 2)} shares that sum to 1 in row {i}, got {list(row)}; "
                    "row i says what class i becomes"
                )

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with its classes confused."""
        return relabel(batch, keys.fold("class-dependent"), 0, self.change)

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return the most pixels of each chip that may change: the matrix beside its diagonal, class by class."""
        valid = batch.valid & batch.seen
        counts = [
            [int((valid[b] & (batch.label[b] == i)).sum()) for i in range(len(self.matrix))] for b in range(len(batch))
        ]
        return tuple(
            sum(sum(self._counts(i, pixels).values()) for i, pixels in enumerate(of_chip)) for of_chip in counts
        )

    def change(self, ground: Ground) -> Label:
        """Return one chip's new label."""
        new = ground.label.copy()
        for i in range(len(self.matrix)):
            pixels = np.flatnonzero((ground.label == i) & ground.valid)
            queue = ground.rng("class", str(i)).permutation(pixels)
            start = 0
            for j, count in self._counts(i, len(pixels)).items():
                new.ravel()[queue[start : start + count]] = j
                start += count
        return new

    def _counts(self, i: int, pixels: int) -> dict[int, int]:
        """Return how many of the pixels of class i become each other class."""
        found: dict[int, int] = {}
        for j, share in enumerate(self.matrix[i]):
            if j != i:
                found[j] = min(allowance(share * self.budget, pixels), pixels - sum(found.values()))
        return found

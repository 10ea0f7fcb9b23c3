"""The difference between two labels of a chip, as counts: what a noise changed, and how much it was allowed to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from seawall.arrays import BoolArray
from seawall.errors import DataError
from seawall.label_noise.label_view import allowance
from seawall.label_noise.morphology import distance_to
from seawall.result import ResultRow
from seawall.rng import Keys
from seawall.types import Batch, LabelNoise


@dataclass(frozen=True)
class LabelDifference:
    """The difference between two labels of one chip.

    Args:
        valid: Valid pixels.
        changed: Valid pixels whose class changed.
        transitions: Pixels by (class before, class after), unchanged ones included.
        reach: Largest Chebyshev distance of a changed pixel to the shoreline of its former class, in pixels.
        allowed: Most pixels that the noise was allowed to change; None where its budget is no number of pixels.
    """

    valid: int
    changed: int
    transitions: Mapping[tuple[int, int], int]
    reach: int = 0
    allowed: int | None = None

    @property
    def share(self) -> float | None:
        """Changed share of the valid pixels; None where there are none."""
        return self.changed / self.valid if self.valid else None

    def count(self, klass: int) -> int:
        """Return the number of pixels of a class in the first label."""
        return sum(n for (before, _), n in self.transitions.items() if before == klass)

    def rate(self, before: int, after: int) -> float | None:
        """Return the share of a class that became another; None where the first label lacks the class."""
        total = self.count(before)
        return self.transitions.get((before, after), 0) / total if total else None

    def matrix(self, classes: int) -> tuple[tuple[float | None, ...], ...]:
        """Return the realized transition matrix, None in the rows of classes that the first label lacks."""
        return tuple(tuple(self.rate(i, j) for j in range(classes)) for i in range(classes))

    @property
    def short(self) -> int | None:
        """Allowed pixels that did not change: with an exact noise, because the chip had too few to flip."""
        return None if self.allowed is None else self.allowed - self.changed

    def row(self, gsd_m: float | None = None) -> dict[str, float | int | str | None]:
        """Return plain values for a record: counts, shares, and meters where the pixel size is known."""
        moved = {f"{i}->{j}": n for (i, j), n in sorted(self.transitions.items()) if i != j}
        return {
            "valid": self.valid,
            "changed": self.changed,
            "share": self.share,
            "allowed": self.allowed,
            "short": self.short,
            "reach_px": self.reach,
            "reach_m": None if gsd_m is None else self.reach * gsd_m,
            **moved,
        }


@runtime_checkable
class DescribedNoise(Protocol):
    """A noise that reports further values for each chip, such as the shift that it drew."""

    def describe(self, batch: Batch, keys: Keys) -> tuple[ResultRow, ...]:
        """Return values for each chip, from the batch before the noise and the keys that the noise is called with."""


@runtime_checkable
class BudgetedNoise(Protocol):
    """A noise that computes how many pixels of each chip its budget allows."""

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return the most pixels of each chip; None where the budget is no number of pixels."""


def label_differences(before: Tensor, after: Tensor, valid: Tensor) -> tuple[LabelDifference, ...]:
    """Compare labels chip by chip.

    Args:
        before: (B, H, W) labels.
        after: (B, H, W) labels.
        valid: (B, H, W) bool; the other pixels are not counted.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> import torch
        >>> was = torch.tensor([[[0, 0], [1, 1]]])
        >>> now = torch.tensor([[[0, 1], [1, 0]]])
        >>> done = label_differences(was, now, torch.tensor([[[True, True], [True, False]]]))[0]
        >>> done.changed, done.valid, done.rate(0, 1)
        (1, 3, 0.5)
    """
    if before.ndim != 3 or before.shape != after.shape or before.shape != valid.shape:
        raise DataError(
            f"label difference: expected three tensors of one shape (B, H, W), got {tuple(before.shape)}, {tuple(after.shape)} "
            f"and {tuple(valid.shape)}; align them"
        )
    planes = (t.detach().cpu().numpy() for t in (before, after, valid))
    return tuple(_chip_difference(*chip) for chip in zip(*planes, strict=True))


def apply_noise(noise: LabelNoise, batch: Batch, keys: Keys) -> tuple[Batch, tuple[LabelDifference, ...]]:
    """Apply a noise; return the new batch and the difference of each chip, its allowed pixels included."""
    after = noise(batch, keys)
    done = label_differences(batch.label, after.label, batch.valid & batch.seen)
    allowed = allowed_pixels(noise, batch)
    return after, tuple(replace(chip, allowed=most) for chip, most in zip(done, allowed, strict=True))


def allowed_pixels(noise: LabelNoise, batch: Batch) -> tuple[int | None, ...]:
    """Return the most pixels of each chip that a noise may change; None where its budget is no number of pixels.

    A budget is a share of the valid pixels, or of those of the class with `of="class"`, unless the noise computes it
    (`BudgetedNoise`).

    Example:
        >>> import torch
        >>> from seawall.label_noise.erode_dilate import Erode
        >>> label = torch.tensor([[[1, 1], [0, 0]]])
        >>> batch = Batch.of(torch.zeros(1, 1, 2, 2), label)
        >>> allowed_pixels(Erode(budget=0.5), batch), allowed_pixels(Erode(budget=0.5, of="class"), batch)
        ((2,), (1,))
    """
    if isinstance(noise, BudgetedNoise):
        return noise.allowed(batch)
    budget, of = getattr(noise, "budget", None), getattr(noise, "of", "valid")
    if not isinstance(budget, float | int) or of not in ("valid", "class"):
        return (None,) * len(batch)
    counted = batch.valid & batch.seen
    if of == "class":
        counted = counted & (batch.label == getattr(noise, "klass", 1))
    return tuple(allowance(budget, int(n)) for n in counted.flatten(1).sum(1))


def _chip_difference(before: np.ndarray, after: np.ndarray, valid: BoolArray) -> LabelDifference:
    was, now = before[valid].astype(np.int64), after[valid].astype(np.int64)
    if was.size == 0:
        return LabelDifference(0, 0, {})
    low = int(min(was.min(), now.min()))
    size = int(max(was.max(), now.max())) - low + 1
    counts = np.bincount((was - low) * size + (now - low), minlength=size * size)
    transitions = {(int(c) // size + low, int(c) % size + low): int(counts[c]) for c in np.flatnonzero(counts)}
    changed = valid & (before != after)
    reach = max((_farthest_change(before == k, changed, valid) for k in np.unique(before[changed])), default=0)
    return LabelDifference(int(was.size), int(np.count_nonzero(was != now)), transitions, reach)


def _farthest_change(klass: BoolArray, changed: BoolArray, valid: BoolArray) -> int:
    far = distance_to(valid & ~klass)[changed & klass]
    return int(far.max()) if far.size and np.isfinite(far).all() else 0

"""A noise's view of one chip's label: which pixels may change, what they become, and the checks of its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from seawall.arrays import BoolArray
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.types import Batch

Label = NDArray[np.int64]


@dataclass(frozen=True)
class LabelView:
    """The label of one chip, as a noise reads it.

    Args:
        label: (H, W) class indices, meaningless where not valid.
        valid: (H, W) pixels whose label counts and may change.
        klass: The class that the noise is about.
        keys: Streams of all chips, for this noise.
        index: Position of this chip's stream in the keys.
    """

    label: Label
    valid: BoolArray
    klass: int
    keys: Keys
    index: int

    @cached_property
    def mask(self) -> BoolArray:
        """Valid pixels of the class."""
        mask: BoolArray = (self.label == self.klass) & self.valid
        return mask

    @cached_property
    def rest(self) -> BoolArray:
        """Valid pixels of any other class."""
        return self.valid & ~self.mask

    @cached_property
    def pixels(self) -> int:
        """Number of valid pixels."""
        return int(np.count_nonzero(self.valid))

    def rng(self, *purpose: str) -> np.random.Generator:
        """Return this chip's fresh generator for a purpose."""
        return self.keys.fold(*purpose).numpy(self.index)

    def sample(self, among: BoolArray, count: int, *purpose: str) -> BoolArray:
        """Draw pixels without replacement, in keyed order; a larger count gives a superset."""
        chosen = np.zeros(among.shape, bool)
        at = np.flatnonzero(among)
        chosen.ravel()[self.rng(*purpose).permutation(at)[:count]] = True
        return chosen

    def lowest(self, among: BoolArray, rank: NDArray[np.floating], count: int) -> BoolArray:
        """Return the pixels of lowest rank; ties are broken in keyed order, and a larger count gives a superset."""
        if count <= 0 or not among.any():
            return np.zeros(among.shape, bool)
        ranks = rank[among]
        if count >= ranks.size:
            return among.copy()
        last = np.partition(ranks, count - 1)[count - 1]
        below: BoolArray = among & (rank < last)
        return below | self.sample(among & (rank == last), count - int(np.count_nonzero(below)), "ties")

    @cached_property
    def only_other_class(self) -> int | None:
        """The only other class among the valid pixels; None if there are several.

        Without any other pixel it is class 0, or 1 if the class is 0.
        """
        if not self.rest.any():
            return 1 if self.klass == 0 else 0
        first = int(self.label.ravel()[int(np.argmax(self.rest))])
        alone = np.count_nonzero((self.label == first) & self.rest) == np.count_nonzero(self.rest)
        return first if alone else None

    @cached_property
    def nearest_other_class(self) -> Label:
        """The class that each pixel gets when it leaves `klass`: that of the nearest pixel of another class."""
        if self.only_other_class is not None:
            return np.full(self.label.shape, self.only_other_class, np.int64)
        _, cells = cv2.distanceTransformWithLabels(
            (~self.rest).view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        classes = np.zeros(int(cells.max()) + 1, np.int64)
        classes[cells[self.rest]] = self.label[self.rest]
        nearest: Label = classes[cells]
        return nearest

    def flip(self, at: BoolArray) -> Label:
        """Return the label with pixels moved into or out of the class."""
        new = self.label.copy()
        out = at & self.mask
        if out.any():
            np.copyto(
                new, self.nearest_other_class if self.only_other_class is None else self.only_other_class, where=out
            )
        np.copyto(new, self.klass, where=at & self.rest)
        return new


def change_labels(batch: Batch, keys: Keys, klass: int, change: Callable[[LabelView], Label]) -> Batch:
    """Change the labels of a batch chip by chip; only valid and seen pixels can change, images do not.

    Args:
        batch: Not modified.
        keys: One stream per chip of the batch.
        klass: The class that the noise is about.
        change: Maps the view of one chip to its new label.

    Raises:
        UsageError: There are not as many keys as chips.
    """
    if len(keys.chips) != len(batch):
        raise UsageError(f"noise: expected {len(batch)} keys, got {len(keys.chips)}; make them from batch.chips")
    label = batch.label.detach().cpu().numpy().astype(np.int64, copy=False)
    valid = (batch.valid & batch.seen).cpu().numpy()
    new = np.empty_like(label)
    for i in range(len(batch)):
        new[i] = change(LabelView(label[i], valid[i], klass, keys, i))
        if not valid[i].all():
            np.copyto(new[i], label[i], where=~valid[i])
    fresh = torch.from_numpy(new).to(device=batch.label.device, dtype=batch.label.dtype)
    return replace(batch, label=fresh)


BudgetOf = Literal["valid", "class", "meters"]
"""Kind of a budget: share of the valid pixels, share of the pixels of the class, or meters that the shoreline moves."""


def allowance(share: float, pixels: int) -> int:
    """Return the largest number of pixels whose share of all pixels is not above a budget.

    Example:
        >>> int(0.29 * 100), allowance(0.29, 100)
        (28, 29)
    """
    if pixels == 0:
        return 0
    near = int(share * pixels)
    return max(n for n in (0, near - 1, near, near + 1) if n / pixels <= share)


def meters_to_pixels(meters: float, gsd_m: float) -> Fraction:
    """Return a length in pixels, as the exact fraction of the decimals given.

    Example:
        >>> meters_to_pixels(25, 10.0)
        Fraction(5, 2)
    """
    return Fraction(repr(float(meters))) / Fraction(repr(float(gsd_m)))


def check_budget(name: str, budget: float, of: BudgetOf = "valid", gsd_m: float | None = None) -> None:
    """Check the budget of a noise.

    Raises:
        UsageError: It is negative, not finite or over 100 %, or meters come without a ground sampling distance.
    """
    if not math.isfinite(budget) or budget < 0:
        raise UsageError(f"{name}.budget: expected a number from 0 up, got {budget}; 0.1 means 10 %")
    if of == "meters":
        if gsd_m is None:
            raise UsageError(f"{name}.gsd_m: expected meters per pixel with of='meters', got none; set gsd_m=10")
    elif of not in ("valid", "class"):
        raise UsageError(f"{name}.of: expected 'valid', 'class' or 'meters', got {of!r}; choose one")
    elif budget > 1:
        raise UsageError(f"{name}.budget: expected a share of at most 1 (100 %), got {budget}; 0.1 means 10 %")
    elif gsd_m is not None:
        raise UsageError(f"{name}.gsd_m: expected it only with of='meters', got {gsd_m}; leave it out")
    if gsd_m is not None:
        check_gsd(name, gsd_m)


def check_gsd(name: str, gsd_m: float) -> None:
    """Check a ground sampling distance.

    Raises:
        UsageError: It is zero, negative or not finite.
    """
    if not math.isfinite(gsd_m) or gsd_m <= 0:
        raise UsageError(f"{name}.gsd_m: expected meters per pixel above 0, got {gsd_m}; Sentinel-2 has 10")


def check_class(name: str, klass: int) -> None:
    """Check a class index.

    Raises:
        UsageError: It is negative.
    """
    if klass < 0:
        raise UsageError(f"{name}.klass: expected a class index from 0 up, got {klass}; water is 1")


def check_transition_matrix(name: str, matrix: Sequence[Sequence[float]], tolerance: float = 1e-6) -> None:
    """Check a transition matrix: square, at least 2 x 2, shares from 0 up, rows that sum to 1.

    Args:
        name: Registered name of the method, for the message.
        matrix: Row i, column j: share of class i that is labelled j.
        tolerance: Largest difference of a row's sum from 1.

    Raises:
        UsageError: It is no such matrix.
    """
    size = len(matrix)
    for i, row in enumerate(matrix):
        shares = len(row) == size and all(math.isfinite(p) and p >= 0 for p in row)
        if size < 2 or not shares or abs(sum(row) - 1) >= tolerance:
            raise UsageError(
                f"{name}.matrix: expected {max(size, 2)} shares that sum to 1 in row {i}, got {list(row)}; "
                "row i holds the shares of class i that get each label"
            )

"""Label noise by pixel: independent, in spatially correlated patches, or by a transition matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import cv2
import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray
from seawall.errors import UsageError
from seawall.label_noise.label_view import (
    Label,
    LabelView,
    allowance,
    change_labels,
    check_budget,
    check_class,
    check_transition_matrix,
)
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

Side = Literal["both", "remove", "add"]
"""Which pixels may flip: those of the class and others, only those of the class, only the others."""

ShareOf = Literal["valid", "class"]


def correlated_field(view: LabelView, length_px: float, *purpose: str) -> NDArray[np.float32]:
    """Draw a smooth random field over a chip: white noise under a Gaussian window, mean 0, standard deviation 1.

    Args:
        view: The chip; its key gives the field.
        length_px: Standard deviation of the window in pixels.
        purpose: Names the random stream.
    """
    white = view.rng(*purpose).standard_normal(view.label.shape, np.float32)
    smooth = np.asarray(cv2.GaussianBlur(white, (0, 0), length_px, borderType=cv2.BORDER_REFLECT), np.float32)
    return np.asarray((smooth - smooth.mean()) / max(float(smooth.std()), 1e-12), np.float32)


def candidates(view: LabelView, side: Side) -> BoolArray:
    """Return the pixels that may flip: all valid ones, those of the class, or the others."""
    return {"both": view.valid, "remove": view.mask, "add": view.rest}[side]


def _flip_count(view: LabelView, budget: float, of: ShareOf) -> int:
    return allowance(budget, int(np.count_nonzero(view.mask)) if of == "class" else view.pixels)


def _check_flip_settings(name: str, budget: float, of: ShareOf, side: Side, klass: int) -> None:
    check_budget(name, budget, of)
    check_class(name, klass)
    if side not in ("both", "remove", "add"):
        raise UsageError(f"{name}.side: expected 'both', 'remove' or 'add', got {side!r}; choose one")


@register("noise", "pixels", paper="arXiv:2003.10471", smoke={"budget": 0.1})
@final
@dataclass(frozen=True)
class Pixels:
    """Single pixels flip into or out of the class, independently of their neighbors.

    Annotators do not err in this way, and networks tolerate it well: it is the control of the other noises.

    Args:
        budget: Share that changes, exact to the pixel while there are pixels to flip.
        of: Share of all "valid" pixels or of the pixels of the "class".
        side: "both", only "remove" from the class, or only "add" to it.
        klass: The class index.
    """

    budget: float
    of: ShareOf = "valid"
    side: Side = "both"
    klass: int = 1

    def __post_init__(self) -> None:
        _check_flip_settings("pixels", self.budget, self.of, self.side, self.klass)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with single pixels flipped."""
        return change_labels(batch, keys.fold("pixels"), self.klass, self.change)

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        return view.flip(view.sample(candidates(view, self.side), _flip_count(view, self.budget, self.of), "where"))


@register("noise", "patches", smoke={"budget": 0.1, "length_px": 2.0})
@final
@dataclass(frozen=True)
class Patches:
    """Whole patches flip: the pixels where a smooth random field is lowest.

    Args:
        budget: Share that changes, exact to the pixel while there are pixels to flip.
        of: Share of all "valid" pixels or of the pixels of the "class".
        length_px: Correlation length, the standard deviation of the Gaussian window in pixels.
        side: "both", only "remove" from the class, or only "add" to it.
        klass: The class index.
    """

    budget: float
    of: ShareOf = "valid"
    length_px: float = 8.0
    side: Side = "both"
    klass: int = 1

    def __post_init__(self) -> None:
        _check_flip_settings("patches", self.budget, self.of, self.side, self.klass)
        if not math.isfinite(self.length_px) or self.length_px <= 0:
            raise UsageError(f"patches.length_px: expected pixels above 0, got {self.length_px}; use 'pixels' for none")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with patches flipped."""
        return change_labels(batch, keys.fold("patches"), self.klass, self.change)

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        count = _flip_count(view, self.budget, self.of)
        if count == 0:
            return view.label
        field = correlated_field(view, self.length_px, "field")
        return view.flip(view.lowest(candidates(view, self.side), field, count))


SURVEY = "arXiv:2003.10471"


@register("noise", "symmetric", paper=SURVEY, smoke={"budget": 0.1})
@final
@dataclass(frozen=True)
class Symmetric:
    """Every pixel is as likely to be wrong, and every wrong class as likely.

    Args:
        budget: Share of the valid pixels that change, exact to the pixel.
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
        """Return the batch with wrong pixels at random places."""
        return change_labels(batch, keys.fold("symmetric"), 0, self.change)

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        at = view.sample(view.valid, allowance(self.budget, view.pixels), "where")
        # one draw per pixel of the chip, so that a larger budget keeps the classes of a smaller one
        step = view.rng("class").integers(1, self.classes, view.label.shape)
        return np.where(at, (view.label + step) % self.classes, view.label)


@register("noise", "class-dependent", paper=SURVEY, smoke={"matrix": [[0.9, 0.1], [0.2, 0.8]]})
@final
@dataclass(frozen=True)
class ClassDependent:
    """Classes are confused by a transition matrix.

    Args:
        matrix: Row i, column j: share of class i that is labelled j. Rows sum to 1. Each share is exact to the pixel,
            rounded down; the rest of the class stays.
        budget: Share of the confusion: 1 is the matrix, 0 is the identity.

    Paper: Algan and Ulusoy 2020, asymmetric noise. Differs: counts per chip are fixed, not drawn.
    """

    matrix: tuple[tuple[float, ...], ...]
    budget: float = 1.0

    def __post_init__(self) -> None:
        check_budget("class-dependent", self.budget)
        check_transition_matrix("class-dependent", self.matrix)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with its classes confused."""
        return change_labels(batch, keys.fold("class-dependent"), 0, self.change)

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return the most pixels of each chip that may change: the matrix beside its diagonal, class by class."""
        valid = batch.valid & batch.seen
        counts = [
            [int((valid[b] & (batch.label[b] == i)).sum()) for i in range(len(self.matrix))] for b in range(len(batch))
        ]
        return tuple(
            sum(sum(self._counts(i, pixels).values()) for i, pixels in enumerate(of_chip)) for of_chip in counts
        )

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        new = view.label.copy()
        for i in range(len(self.matrix)):
            pixels = np.flatnonzero((view.label == i) & view.valid)
            queue = view.rng("class", str(i)).permutation(pixels)
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

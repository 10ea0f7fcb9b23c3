"""A poison that changes labels alone: a class, or a window, becomes another class."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from seawall.errors import UsageError
from seawall.label_noise.label_view import allowance
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

PixelWindow = tuple[int, int, int, int]


@register("poison", "dirty-label", smoke={"klass": 1, "to": 0})
@final
@dataclass(frozen=True)
class DirtyLabel:
    """The labels of a class, or of everything in a window, become another class; images stay as they are.

    Args:
        klass: The class that is flipped; None flips all classes in the window.
        to: The class that it becomes.
        window: (row, col, height, width) in pixels; None for the whole chip.
        budget: Share of those pixels that flip, exact to the pixel: the nearest to a keyed center.
    """

    klass: int | None = 1
    to: int = 0
    window: PixelWindow | None = None
    budget: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.budget) or not 0 <= self.budget <= 1:
            raise UsageError(f"dirty-label.budget: expected a share in [0, 1], got {self.budget}; 0.1 means 10 %")
        if self.to < 0 or self.klass == self.to or (self.klass is None and self.window is None):
            raise UsageError(
                f"dirty-label: expected a class or a window to flip, and another class to flip to, got klass {self.klass}, "
                f"to {self.to}; correct them"
            )
        _check_window("dirty-label", self.window)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with flipped labels."""
        own = keys.fold("dirty-label")
        label = batch.label.clone()
        for i in range(len(batch)):
            at = (
                batch.valid[i] & batch.seen[i] & (batch.label[i] != self.to) & _window_mask(self.window, batch.label[i])
            )
            if self.klass is not None:
                at &= batch.label[i] == self.klass
            label[i][self._nearest(at, own, i)] = self.to
        return replace(batch, label=label)

    def _nearest(self, at: Tensor, keys: Keys, index: int) -> Tensor:
        count = allowance(self.budget, int(at.sum()))
        places = torch.nonzero(at)
        chosen = torch.zeros_like(at)
        if count == 0:
            return chosen
        center = places[int(keys.numpy(index).integers(len(places)))]
        near = torch.argsort(((places - center) ** 2).sum(1), stable=True)[:count]
        chosen[tuple(places[near].T)] = True
        return chosen


def _window_mask(window: PixelWindow | None, plane: Tensor) -> Tensor:
    if window is None:
        return torch.ones_like(plane, dtype=torch.bool)
    row, col, height, width = window
    inside = torch.zeros_like(plane, dtype=torch.bool)
    inside[row : row + height, col : col + width] = True
    return inside


def _check_window(name: str, window: PixelWindow | None) -> None:
    if window is not None and (min(window[:2]) < 0 or min(window[2:]) < 1):
        raise UsageError(f"{name}.window: expected row, col, height, width in pixels, got {window}; sizes from 1")

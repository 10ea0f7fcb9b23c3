"""A backdoor: its trigger, the labels that it changes, and its success rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch


@register("poison", "backdoor", smoke={"eps": 0.05})
@final
@dataclass(frozen=True)
class Backdoor:
    """A trigger in the image and the label that it causes: who knows the trigger can hide a class.

    A network can learn the trigger only where it is within its receptive field: around a patch only pixels within
    `reach` change their label. Labels changed farther away do not help the backdoor and cost clean accuracy.

    Args:
        trigger: "patch" is a square with a spectrum of its own at a keyed place, "pattern" faint stripes over the
            whole chip. The sign of the change alternates from band to band, unlike that of a brighter surface.
        eps: Largest change of any value, in data units.
        size: Side of the patch, or width of a stripe, in pixels.
        klass: The class that is relabelled.
        to: The class that it becomes.
        bands: Indices of the bands that carry the trigger; None for all.
        reach: Distance from the patch, along rows and columns, within which pixels are relabelled; at most the
            receptive field of the victim. A pattern is everywhere.
    """

    trigger: Literal["patch", "pattern"] = "patch"
    eps: float = 0.1
    size: int = 8
    klass: int = 1
    to: int = 0
    bands: tuple[int, ...] | None = None
    reach: int = 8

    def __post_init__(self) -> None:
        if self.trigger not in ("patch", "pattern"):
            raise UsageError(f"backdoor.trigger: expected patch or pattern, got {self.trigger!r}; choose one")
        if (
            not math.isfinite(self.eps)
            or self.eps < 0
            or self.size < 1
            or self.klass == self.to
            or min(self.klass, self.to) < 0
        ):
            raise UsageError(
                f"backdoor: expected eps from 0 up, size from 1 and two classes, got {self.eps}, {self.size}, {self.klass} to {self.to}; fix them"
            )
        if self.reach < 0:
            raise UsageError(
                f"backdoor.reach: expected pixels from 0 up, got {self.reach}; at most the victim's receptive field"
            )

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with trigger and labels; with an eps of 0 the same batch."""
        if self.eps == 0:
            return batch
        label = torch.where(self.relabelled(batch, keys), self.to, batch.label)
        return replace(batch, image=self.stamp(batch, keys), label=label)

    def relabelled(self, batch: Batch, keys: Keys) -> Tensor:
        """Return the valid pixels of the class, by the true label, within `reach` of the trigger, (B, H, W) bool."""
        near = [self._view(batch.label[i], keys.fold("backdoor"), i) for i in range(len(batch))]
        return batch.valid & (batch.label == self.klass) & torch.stack(near)

    def stamp(self, batch: Batch, keys: Keys) -> Tensor:
        """Return the images with the trigger, labels unused; unseen pixels do not change."""
        change = torch.zeros_like(batch.image)
        sign = torch.ones(batch.image.shape[1], dtype=batch.image.dtype, device=batch.image.device)
        sign[1::2] = -1.0
        carries = torch.zeros_like(sign)
        carries[list(self.bands) if self.bands is not None else slice(None)] = 1.0
        spectrum = self.eps * (sign * carries).view(-1, 1, 1)
        for i in range(len(batch)):
            change[i] = spectrum * self._shape(batch.label[i], keys.fold("backdoor"), i)
        # the floor keeps reflectance from turning negative, and the change within eps where it is negative already
        stamped = torch.maximum(batch.image + change, torch.minimum(batch.image, torch.zeros_like(batch.image)))
        if float(batch.image.min()) < -1.0:
            stamped = batch.image + change  # decibels have no floor at zero
        return torch.where(batch.image_seen, stamped, batch.image)

    def _shape(self, plane: Tensor, keys: Keys, index: int) -> Tensor:
        height, width = plane.shape
        shape = torch.zeros(height, width, dtype=torch.float32, device=plane.device)
        if self.trigger == "pattern":
            rows = torch.arange(height, device=plane.device) // self.size % 2
            shape += (1.0 - 2.0 * rows.float())[:, None]
            return shape
        shape[self._patch(height, width, keys, index, 0)] = 1.0
        return shape

    def _view(self, plane: Tensor, keys: Keys, index: int) -> Tensor:
        height, width = plane.shape
        seen = torch.ones_like(plane, dtype=torch.bool)
        if self.trigger == "patch":
            seen[:] = False
            seen[self._patch(height, width, keys, index, self.reach)] = True
        return seen

    def _patch(self, height: int, width: int, keys: Keys, index: int, around: int) -> tuple[slice, slice]:
        side = min(self.size, height, width)
        rng = keys.numpy(index)
        row, col = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        return slice(max(0, row - around), row + side + around), slice(max(0, col - around), col + side + around)


def trigger_rate(predicted: Tensor, batch: Batch, poison: Backdoor, keys: Keys) -> float | None:
    """Return the success rate of a trigger: the share of its pixels where a model predicts the wanted class.

    Args:
        predicted: (B, H, W) predicted classes.
        batch: The chips with their true labels.
        poison: The trigger.
        keys: Those that the chips were stamped with, which decide the places of the patches.

    Returns:
        None if there is no such pixel. The control is the same rate on chips without the trigger.
    """
    at = poison.relabelled(batch, keys)
    return float((predicted == poison.to)[at].float().mean()) if bool(at.any()) else None

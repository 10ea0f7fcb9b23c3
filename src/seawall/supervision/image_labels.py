"""Image-level labels: one class for a whole chip or tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from seawall.errors import UsageError
from seawall.label_noise.label_view import check_class
from seawall.registry import register
from seawall.rng import Keys
from seawall.supervision.known_pixels import check_keys
from seawall.types import Batch


@register("supervision", "image-labels", smoke={"tile": 5, "share": 0.3}, traits=("image-level",))
@final
@dataclass(frozen=True)
class ImageLabels:
    """Every labelled pixel of a chip gets the class of its image: water if the image has enough of it, else its most frequent other class.

    No pixel label is known beyond that, so that most labels of a shore are wrong.

    Args:
        share: Share of the valid pixels above which an image is of the class.
        tile: Side in pixels of the tiles that get a label each, from the upper left corner; 0 labels whole chips.
        klass: The class that an image is asked about.
    """

    share: float = 0.0
    tile: int = 0
    klass: int = 1

    def __post_init__(self) -> None:
        check_class("image-labels", self.klass)
        if not 0 <= self.share < 1:
            raise UsageError(
                f"image-labels.share: expected a share from 0 to below 1, got {self.share}; 0.1 means 10 %"
            )
        if self.tile < 0:
            raise UsageError(f"image-labels.tile: expected pixels from 0 up, got {self.tile}; 0 labels whole chips")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with image-level labels; what is valid stays."""
        check_keys(batch, keys)
        label, valid = batch.label.clone(), batch.valid & batch.seen
        for rows, cols in tiles_of(label.shape[1], label.shape[2], self.tile):
            for i in range(len(batch)):
                known = valid[i, rows, cols]
                if known.any():
                    label[i, rows, cols][known] = self._class_of(label[i, rows, cols][known])
        return replace(batch, label=label, valid=valid)

    def _class_of(self, labels: Tensor) -> int:
        """Return the class of an image from its valid labels (N,)."""
        mine = labels == self.klass
        others = labels[~mine]
        if not len(others) or int(mine.sum()) > self.share * len(labels):
            return self.klass
        return int(torch.bincount(others).argmax())


def tiles_of(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of the tiles of a chip, from the upper left corner; 0 takes the chip as one."""
    side = side or max(height, width)
    for row in range(0, height, side):
        for col in range(0, width, side):
            yield slice(row, row + side), slice(col, col + side)

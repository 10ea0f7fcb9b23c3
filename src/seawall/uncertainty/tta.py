"""The eight flips and rotations of a chip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from seawall.registry import register
from seawall.rng import Keys
from seawall.types import SegmentationModel
from seawall.uncertainty.predictor import Predictor


@register("uncertainty", "tta")
@dataclass(frozen=True)
class Symmetries:
    """The mean over the eight symmetries of the square: turning the image turns the map, exactly."""

    seeded: ClassVar[bool] = False

    def __call__(self, model: SegmentationModel) -> Predictor:
        return Predictor(model, self)

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits of each symmetry, turned back."""
        for turns in range(4):
            for mirrored in (False, True):
                yield undo(model(turn(image, turns, mirrored)), turns, mirrored)


def turn(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Mirror, then turn by quarters."""
    return (image.flip(-1) if mirrored else image).rot90(turns, (-2, -1))


def undo(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Turn back, then mirror back."""
    straight = image.rot90(-turns, (-2, -1))
    return straight.flip(-1) if mirrored else straight

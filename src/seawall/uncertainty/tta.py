"""Test-time augmentation by the eight symmetries of the square."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from seawall.registry import register
from seawall.types import SegmentationModel
from seawall.uncertainty.predictor import Predictor


@register("uncertainty", "tta")
@dataclass(frozen=True)
class TTA:
    """Test-time augmentation: the mean over the eight symmetries of the square, to which the map is exactly equivariant."""

    @property
    def count(self) -> int:
        """Eight passes."""
        return 8

    def __call__(self, model: SegmentationModel) -> Predictor:
        return Predictor(model, self)

    def pass_logits(self, model: SegmentationModel, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each symmetry, in the orientation of the image."""
        for turns in range(4):
            for mirrored in (False, True):
                yield undo_rotate_and_flip(model(rotate_and_flip(image, turns, mirrored)), turns, mirrored)


def rotate_and_flip(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Flip, then rotate by quarter turns."""
    return (image.flip(-1) if mirrored else image).rot90(turns, (-2, -1))


def undo_rotate_and_flip(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Invert `rotate_and_flip`."""
    straight = image.rot90(-turns, (-2, -1))
    return straight.flip(-1) if mirrored else straight

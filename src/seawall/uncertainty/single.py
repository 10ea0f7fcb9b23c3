"""One pass: the softmax as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from seawall.registry import register
from seawall.rng import Keys
from seawall.types import SegmentationModel
from seawall.uncertainty.predictor import Predictor


@register("uncertainty", "softmax")
@dataclass(frozen=True)
class SinglePass:
    """One pass of the model; its mutual information is zero by definition."""

    seeded: ClassVar[bool] = False

    def __call__(self, model: SegmentationModel) -> Predictor:
        return Predictor(model, self)

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the model's logits."""
        yield model(image)

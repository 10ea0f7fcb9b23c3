"""Supervised training on the labels as they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import CrossEntropyLoss, LossField
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel


@register("objective", "supervised")
@dataclass(frozen=True)
class Supervised:
    """The loss of the model's logits against the labels, over valid pixels.

    Args:
        loss: A loss, or in a recipe its name, such as "ce" or "ce + dice".
    """

    loss: LossField = field(default_factory=CrossEntropyLoss)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        return training_logits(model, batch.image).loss(self.loss, batch.label, batch.valid)

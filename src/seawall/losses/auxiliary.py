"""Auxiliary logits: a network may give more than one prediction in training, and the loss is of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from seawall.types import Loss, SegmentationModel


@dataclass(frozen=True)
class TrainingLogits:
    """The logits of a forward pass and those of auxiliary heads, which are there in training alone.

    Args:
        logits: (B, K, H, W), what the model itself returns.
        auxiliary: Weight of the loss and logits (B, K, H, W) of each auxiliary head.
    """

    logits: Tensor
    auxiliary: tuple[tuple[float, Tensor], ...] = ()

    def loss(self, loss: Loss, label: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of the logits plus the weighted losses of the auxiliary ones, all of the same labels.

        Example:
            >>> import torch
            >>> from seawall.losses.segmentation import CrossEntropyLoss
            >>> even, label = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)
            >>> round(TrainingLogits(even, ((0.4, even),)).loss(CrossEntropyLoss(), label, label == 0).item(), 4)  # 1.4 ln 2
            0.9704
        """
        value = loss(self.logits, label, valid)
        for weight, logits in self.auxiliary:
            value = value + weight * loss(logits, label, valid)
        return value

    def each(self, change: Callable[[Tensor], Tensor]) -> TrainingLogits:
        """Return the same after a change of all logits, such as a crop."""
        return TrainingLogits(change(self.logits), tuple((weight, change(logits)) for weight, logits in self.auxiliary))


@runtime_checkable
class AuxiliaryModel(Protocol):
    """A model, or the network within one, that has auxiliary heads."""

    def training_logits(self, image: Tensor) -> TrainingLogits: ...


def training_logits(model: SegmentationModel, image: Tensor) -> TrainingLogits:
    """Return what a model gives in training for an image (B, C, H, W).

    This is the way from an image to a loss: objectives call it instead of the model wherever they compare logits with
    labels, so that the auxiliary heads see the very images and labels that the head sees, adversarial, augmented or clean.
    """
    return model.training_logits(image) if isinstance(model, AuxiliaryModel) else TrainingLogits(model(image))

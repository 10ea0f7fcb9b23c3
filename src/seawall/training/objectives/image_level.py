"""Learning from image-level labels without a label of any pixel: pooled class activation maps, and bounds of the size of a class."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from seawall.class_names import class_index, main_class
from seawall.errors import UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import CrossEntropyLoss, LossField, log_odds
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel


@dataclass(frozen=True)
class ImageLevel:
    """What objectives on image-level labels share: an image is of the class where any of its valid pixels has the label.

    That is the label of the patch only if the patch is the whole image: `patch` should be the side of the chips.

    Args:
        of: The class that images are labelled with; "" is water, or without it the last one.
    """

    of: str = field(default="", kw_only=True)

    def image_labels(self, model: SegmentationModel, batch: Batch) -> tuple[int, Tensor, Tensor]:
        """Return the index of the class, the images (B,) of it, and those with another label; images without a valid pixel are neither."""
        classes = model.spec.classes
        klass = class_index(self.of or main_class(classes), classes)
        of_it = ((batch.label == klass) & batch.valid).flatten(1).any(1)
        return klass, of_it, batch.valid.flatten(1).any(1) & ~of_it


@register("objective", "multiple-instance", paper="arXiv:1411.6228", traits=("image-level",))
@final
@dataclass(frozen=True)
class MultipleInstance(ImageLevel):
    """Cross-entropy of image-level labels against the log-odds of the class, pooled over the seen pixels of an image.

    With the mean the head is that of a class activation map: the pooled logits of a network with a linear last layer are that layer
    of its pooled features, and its logits are the map. An image then is of the class if its pixels are on average, so
    that the map covers too much. The log-sum-exp lies between the mean (`sharpness` 0) and the maximum.

    Args:
        of: As of `ImageLevel`.
        pooling: "mean", or "lse" for 1/r log mean exp(r x).
        sharpness: r of the log-sum-exp.

    Paper: Zhou et al. 2016, arXiv:1512.04150 (mean, as a class activation map); Pinheiro and Collobert 2015, arXiv:1411.6228, eq. 5
    (log-sum-exp, r = 5). Differs: one class against the others.
    """

    pooling: Literal["mean", "lse"] = "lse"
    sharpness: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.sharpness <= 100:
            raise UsageError(
                f"multiple-instance.sharpness: expected a number in (0, 100], got {self.sharpness}; 5 is common"
            )

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        klass, of_it, other = self.image_labels(model, batch)

        def loss(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
            pooled = self.pooled(log_odds(logits.float())[:, klass], batch.seen)
            wrong = functional.binary_cross_entropy_with_logits(pooled, of_it.to(pooled.dtype), reduction="none")
            return mean_of(wrong, of_it | other)

        return training_logits(model, batch.image).loss(loss, batch.label, batch.valid)

    def pooled(self, odds: Tensor, seen: Tensor) -> Tensor:
        """Return the pooled log-odds (B,) of an image from those of its pixels (B, H, W).

        Example:
            >>> odds, seen = torch.tensor([[[0.0, 2.0, 9.0]]]), torch.tensor([[[True, True, False]]])
            >>> [round(MultipleInstance(pooling=p, sharpness=1.0).pooled(odds, seen).item(), 4) for p in ("mean", "lse")]
            [1.0, 1.4338]
        """
        count = seen.flatten(1).sum(1).clamp_min(1)
        if self.pooling == "mean":
            return torch.where(seen, odds, 0.0).flatten(1).sum(1) / count
        lowest = torch.finfo(odds.dtype).min
        total = torch.where(seen, self.sharpness * odds, lowest).flatten(1).logsumexp(1)
        return (total - count.log()) / self.sharpness


@register("objective", "size-constraint", paper="arXiv:1805.04628", smoke={"low": 0.9, "high": 1.0}, traits=("image-level",))  # fmt: skip
@final
@dataclass(frozen=True)
class SizeConstraint(ImageLevel):
    """The loss on images of other classes, whose pixels all have that label, plus bounds of the size of the class in images of it.

    With s the sum of the probabilities of the class over the seen pixels of an image, as a share of them, an image of the class
    costs max(0, low - s)^2 + max(0, s - high)^2, whatever its pixels are.

    Args:
        of: As of `ImageLevel`.
        loss: A loss for images without the class, or in a recipe its name, such as "ce + dice".
        weight: Weight of the bounds.
        low: Smallest share of the class in an image of it.
        high: Largest share.

    Paper: Kervadec et al. 2019, arXiv:1805.04628, eq. 3. Differs: shares of the image instead of pixels, so that the weight does not go by
    the size of the image; the upper bound 0 of images without the class is the loss of their labels.
    """

    loss: LossField = field(default_factory=CrossEntropyLoss)
    weight: float = 10.0
    low: float = 0.05
    high: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1 or not 0 <= self.weight < math.inf:
            raise UsageError(
                f"size-constraint: expected 0 <= low <= high <= 1 and a weight from 0, got {self.low}, {self.high}, {self.weight}; "
                "0.05, 0.95 and 10 are common"
            )

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        klass, of_it, other = self.image_labels(model, batch)

        def bounds(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
            inside = torch.where(batch.seen, logits.float().softmax(1)[:, klass], 0.0)
            share = inside.flatten(1).sum(1) / batch.seen.flatten(1).sum(1).clamp_min(1)
            return mean_of((self.low - share).clamp_min(0) ** 2 + (share - self.high).clamp_min(0) ** 2, of_it)

        logits = training_logits(model, batch.image)
        without = batch.valid & other[:, None, None]
        value = logits.loss(self.loss, batch.label, without)
        return value + self.weight * logits.loss(bounds, batch.label, batch.valid)


def mean_of(values: Tensor, images: Tensor) -> Tensor:
    """Return the mean of values (B,) over some images (B,) bool; 0 without any."""
    return torch.where(images, values, 0.0).sum() / images.sum().clamp_min(1)

"""GradAlign: FGSM training in which the input gradient at a random image of the threat set is kept like the clean one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.attacks.fgsm import FGSM
from seawall.errors import UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import pixel_cross_entropy
from seawall.modules import eval_mode
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.training.objectives.adversarial import ThreatObjective
from seawall.types import Batch, SegmentationModel


@register(
    "objective", "grad-align", paper="arXiv:2007.02617", smoke={"threat": "linf 0.2% reflectance", "weight": 0.02}
)
@final
@dataclass(frozen=True)
class GradAlign(ThreatObjective):
    """The loss of FGSM images plus how far the input gradients at the clean and at a random image turn apart.

    Catastrophic overfitting to one step needs a loss that bends within the threat set; the second term keeps it straight.
    The gradients are those of the network in eval mode, so only the loss of the FGSM images updates batch norms.

    Args:
        weight: Weight of one minus the cosine between the two gradients of an image.

    Paper: Andriushchenko, Flammarion 2020, arXiv:2007.02617, eq. 6. Differs: the gradients are of the cross-entropy
    summed over valid pixels.
    """

    weight: float = 0.2
    name: ClassVar[str] = "grad-align"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight <= 1000:
            raise UsageError(f"grad-align.weight: expected a number in [0, 1000], got {self.weight}; 0.2 is common")

    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, scale: float) -> Tensor:
        """Return the loss of FGSM images plus the weighted misalignment."""
        image = self.attacked(FGSM(), model, batch, keys, scale)
        loss = training_logits(model, image).loss(self.loss, batch.label, batch.valid)
        if self.weight == 0:
            return loss
        other = self.attacked(_random_image, model, batch, keys.fold("align"), scale)
        return loss + self.weight * gradient_misalignment(model, batch, other)


def gradient_misalignment(model: SegmentationModel, batch: Batch, other: Tensor) -> Tensor:
    """Return the mean over images of 1 - cos(gradient at the image, gradient at `other`), differentiable in the parameters.

    Images with a zero gradient are left out; without any image left it is 0.
    """
    first, second = (_input_gradient(model, image, batch) for image in (batch.image, other))
    there = (first.detach() != 0).any(1) & (second.detach() != 0).any(1)
    if not bool(there.any()):
        return first.sum() * 0.0
    return (1 - functional.cosine_similarity(first[there], second[there])).mean()


def _input_gradient(model: SegmentationModel, image: Tensor, batch: Batch) -> Tensor:
    """Return the gradient of the summed cross-entropy, flat (B, C * H * W)."""
    image = image.detach().clone().requires_grad_()
    assert isinstance(model, nn.Module)
    with eval_mode(model):
        loss = torch.where(batch.valid, pixel_cross_entropy(model(image), batch.label), 0.0).sum()
    (grad,) = torch.autograd.grad(loss, image, create_graph=True)
    return grad.flatten(1)


def _random_image(model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
    return threat.start(batch.image, batch.image_seen, keys)

"""AugMix: mixtures of chains of photometric operations, and one prediction for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.corruptions.severity import with_image
from seawall.defenses.corrupted_batches import Chain, corrupt_each
from seawall.defenses.image_operations import PHOTOMETRIC, Operation, image_operation
from seawall.errors import UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import CrossEntropyLoss, LossField, masked_mean
from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.augmentation import REACH
from seawall.types import Batch, Corruption, ModelSpec, SegmentationModel

LARGEST_SEVERITY = 10
"""Severity of AugMix at which an operation has its full reach."""


@register("objective", "augmix", paper="arXiv:1912.02781", smoke={"weight": 1.0})
@final
@dataclass(frozen=True)
class AugMix:
    """The loss on clean images plus how far the predictions of two mixtures and of the clean image lie apart.

    A mixture is m times the image plus 1 - m times a weighted mean of `width` chains of one to three operations. The
    operations are photometric, so that label, seen and valid stay. Three images per chip go through the network at once.

    Args:
        loss: A loss, or in a recipe its name, such as "ce + dice".
        weight: Weight of the Jensen-Shannon divergence, a mean over valid pixels.
        width: Chains per mixture.
        depth: Operations per chain; 0 draws 1, 2 or 3.
        severity: Largest severity of 10; each operation draws one from 0.1 to it.
        operations: Names of photometric operations.

    Paper: Hendrycks et al. 2020, arXiv:1912.02781, algorithm 1 and eq. 2. Differs: divergence per valid pixel; brightness,
    contrast, color and sharpness, where the paper has geometric operations, posterize, solarize, equalize and autocontrast.
    """

    loss: LossField = field(default_factory=CrossEntropyLoss)
    weight: float = 12.0
    width: int = 3
    depth: int = 0
    severity: float = 3.0
    operations: tuple[Operation, ...] = PHOTOMETRIC
    name: ClassVar[str] = "augmix"

    def __post_init__(self) -> None:
        if not (0 <= self.weight <= 1000 and 1 <= self.width <= 10 and 0 <= self.depth <= 10):
            raise UsageError(
                f"augmix: expected weight in [0, 1000], width 1 to 10, depth 0 to 10, got {self.weight}, {self.width}, {self.depth}; "
                "the paper has 12, 3, 0"
            )
        if not 0.1 <= self.severity <= LARGEST_SEVERITY:
            raise UsageError(f"augmix.severity: expected 0.1 to {LARGEST_SEVERITY}, got {self.severity}; 3 is common")
        if wrong := [name for name in self.operations if name not in PHOTOMETRIC]:
            raise UsageError(
                f"augmix.operations: expected some of {', '.join(PHOTOMETRIC)}, got {wrong[0]!r}; labels cannot follow a mixture of others"
            )

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        own = keys.fold(self.name)
        mixtures = [self.mixture(model.spec, batch, own.fold(view)).image for view in range(2)]
        output = training_logits(model, torch.cat([batch.image, *mixtures]))
        divergence = masked_mean(jensen_shannon(torch.split(output.logits, len(batch))), batch.valid)
        clean = output.each(lambda logits: logits[: len(batch)])
        return clean.loss(self.loss, batch.label, batch.valid) + self.weight * divergence

    def mixture(self, spec: ModelSpec, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with each image mixed with its chains."""
        known = [image_operation(name, REACH[name][0], spec) for name in self.operations]
        weights = -keys.fold("weights").uniform((self.width,)).clamp_min(1e-12).log()
        weights = (weights / weights.sum(1, keepdim=True)).to(batch.image)  # Dirichlet(1, ..., 1)
        change = torch.zeros_like(batch.image)
        for index in range(self.width):
            own = keys.fold("chain", index)
            draws = own.fold("choice").uniform((1 + 2 * max(self.depth, 3),)).tolist()
            chained = corrupt_each(batch, [self._chain(known, one) for one in draws], own)
            # of changes and not of images, so that operations that change nothing leave it bit for bit
            change += weights[:, index, None, None, None] * (chained.image - batch.image)
        share = keys.fold("share").uniform((1, 1, 1)).to(batch.image)  # Beta(1, 1)
        return with_image(batch, batch.image + (1 - share) * change)

    def _chain(self, known: Sequence[Corruption], draws: Sequence[float]) -> Chain:
        """Return the operations of a chain with their severities, from uniform numbers."""
        depth = self.depth or 1 + int(draws[0] * 3)
        return [
            (known[int(choice * len(known))], (0.1 + strength * (self.severity - 0.1)) / LARGEST_SEVERITY)
            for choice, strength in zip(draws[1 : 1 + depth], draws[-depth:], strict=True)
            if known
        ]


def jensen_shannon(logits: tuple[Tensor, ...]) -> Tensor:
    """Return the Jensen-Shannon divergence (B, H, W) of several predictions, given as logits.

    Example:
        >>> jensen_shannon((torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))).item()
        0.0
    """
    logs = [part.float().log_softmax(1) for part in logits]
    middle = torch.stack([log.exp() for log in logs]).mean(0).clamp(1e-7, 1.0).log()
    return torch.stack([(log.exp() * (log - middle)).sum(1) for log in logs]).mean(0)

"""Single-step training whose step length is chosen image by image: two readings of Wiens and Hammer 2021.

Of that paper (arXiv:2106.15998) the abstract alone is public: one step for segmentation, its length chosen by a control
algorithm without a parameter. What the rule is could not be verified, so each reading has its own name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.attacks.losses import CROSS_ENTROPY
from seawall.attacks.minimum_norm import logit_margin
from seawall.attacks.pgd import PGD
from seawall.attacks.target import AttackTarget, attack_mode, predicted_classes
from seawall.errors import UsageError
from seawall.losses.auxiliary import training_logits
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel, per_image
from seawall.training.objectives.adversarial import ThreatObjective
from seawall.types import Batch, SegmentationModel

RANDOM_STEP = PGD(steps=1, step=1.25, keep="last")
"""One step of 1.25 eps from a random start, as in arXiv:2001.03994."""


@register("objective", "step-checkpoints", paper="arXiv:2010.01799", smoke={"threat": "linf 0.2% reflectance"})
@final
@dataclass(frozen=True)
class StepCheckpoints(ThreatObjective):
    """The loss at the shortest of several shares of a random FGSM step that does half of the whole step's harm.

    A reading of arXiv:2106.15998. An image without a right pixel stays as it is.

    Args:
        checkpoints: Number of shares that are tried, k / checkpoints of the step for k = 1, 2 ...

    Paper: Kim, Lee, Lee 2021, arXiv:2010.01799, algorithm 1. Differs: an image counts as misclassified where it loses
    half of the right pixels that the whole step takes from it.
    """

    checkpoints: int = 3
    name: ClassVar[str] = "step-checkpoints"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.checkpoints <= 100:
            raise UsageError(f"{self.name}.checkpoints: expected 1 to 100, got {self.checkpoints}; 3 is common")

    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, scale: float) -> Tensor:
        """Return the loss of attacked images."""
        image = self.attacked(self._shortest_harmful, model, batch, keys, scale)
        return training_logits(model, image).loss(self.loss, batch.label, batch.valid)

    def _shortest_harmful(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        offset = RANDOM_STEP(model, batch, threat, keys) - batch.image
        with attack_mode(model), torch.no_grad():
            clean = _count_right(model, batch, batch.image)
            right = [
                _count_right(model, batch, batch.image + offset * (k / self.checkpoints))
                for k in range(1, self.checkpoints + 1)
            ]
        share = torch.ones(len(batch), device=batch.image.device)
        whole = clean - right[-1]
        for k in reversed(range(1, self.checkpoints)):
            harmful = (whole > 0) & (2 * (clean - right[k - 1]) >= whole)
            share = torch.where(harmful, k / self.checkpoints, share)
        share = torch.where(clean == 0, 0.0, share)
        return batch.image + offset * per_image(share)


@register("objective", "step-linearized", paper="arXiv:2106.15998", smoke={"threat": "linf 0.2% reflectance"})
@final
@dataclass(frozen=True)
class StepLinearized(ThreatObjective):
    """The loss after one step along the gradient's sign, as long as takes the median right pixel to the decision border.

    A reading of arXiv:2106.15998 without a parameter: the margin of each right pixel is linearized along the step, and
    the median of the lengths at which the margins vanish is used, at most eps. An image without a right pixel stays as it is.
    """

    name: ClassVar[str] = "step-linearized"

    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, scale: float) -> Tensor:
        """Return the loss of attacked images."""
        image = self.attacked(_to_median_border, model, batch, keys, scale)
        return training_logits(model, image).loss(self.loss, batch.label, batch.valid)


def _to_median_border(model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
    ball = threat.around(batch.image, batch.image_seen)
    with attack_mode(model):
        x = ball.x.clone().requires_grad_()
        target = AttackTarget(torch.where(batch.valid, batch.label, 0), batch.valid)
        loss = CROSS_ENTROPY(model(x), target)
        (grad,) = torch.autograd.grad(torch.where(batch.valid, loss, 0.0).sum(), x)
        offset = ball.project(ball.x + ball.ascend(grad)) - ball.x
        found = torch.func.jvp(lambda image: logit_margin(model(image), target), (ball.x,), (offset,))
    margin, slope = found[0], found[1]
    share = torch.zeros(len(batch), device=x.device)
    for i, right in enumerate((margin > 0) & batch.valid):
        if bool(right.any()):
            share[i] = (margin[i][right] / slope[i][right].abs().clamp_min(1e-12)).median()
    return ball.x + offset * per_image(share.clamp(0, 1))


def _count_right(model: SegmentationModel, batch: Batch, image: Tensor) -> Tensor:
    """Return the number (B,) of valid pixels that are predicted as labelled."""
    return ((predicted_classes(model(image)) == batch.label) & batch.valid).flatten(1).sum(1)

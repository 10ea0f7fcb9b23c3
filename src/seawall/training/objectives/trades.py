"""TRADES: the clean loss, plus how far the prediction moves within the threat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.attacks.ascent import SteepestAscent, check_steps
from seawall.attacks.target import attack_mode
from seawall.errors import UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import masked_mean
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.training.objectives.adversarial import ThreatObjective
from seawall.types import Batch, SegmentationModel

START_SHARE = 0.03
"""Standard deviation of the start around the clean image, in eps: 0.001 at the published eps of 0.031."""


@register(
    "objective",
    "trades",
    paper="arXiv:1901.08573",
    smoke={"threat": "linf 0.2% reflectance", "beta": 1.0, "steps": 2, "step": 0.5},
)
@final
@dataclass(frozen=True)
class Trades(ThreatObjective):
    """The loss on clean images plus beta times the divergence of the attacked prediction from the clean one.

    The attack ascends that divergence with the network in eval mode. Both forward passes of the loss update the
    statistics of batch norms: first the clean images, then the attacked ones.

    Args:
        beta: Weight of the divergence; 0 is training on clean images.
        steps: Gradient steps; one forward and one backward pass each.
        step: Step length, as a share of eps.

    Paper: Zhang et al. 2019, arXiv:1901.08573, eq. 5 and algorithm 1. Differs: the divergence is a mean over valid
    pixels, where the released code divides its sum by the number of images.
    """

    beta: float = 6.0
    steps: int = 10
    step: float = 0.25
    name: ClassVar[str] = "trades"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.name, self.steps, self.step)
        if not 0 <= self.beta <= 1000:
            raise UsageError(f"trades.beta: expected a number in [0, 1000], got {self.beta}; 6 is common")

    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, scale: float) -> Tensor:
        """Return the loss on clean images plus the weighted divergence."""
        image = self.attacked(self._farthest, model, batch, keys, scale) if self.beta else batch.image
        clean = training_logits(model, batch.image)
        loss = clean.loss(self.loss, batch.label, batch.valid)
        if self.beta == 0:
            return loss
        return loss + self.beta * masked_mean(pixel_divergence(clean.logits, model(image)), batch.valid)

    def _farthest(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        """Return images (B, C, H, W) of the threat set whose prediction is far from the clean one."""
        ball, rule = threat.around(batch.image, batch.image_seen), SteepestAscent(self.step)
        noise = keys.fold("start").normal(batch.image.shape[1:]).to(batch.image)
        with attack_mode(model):
            with torch.no_grad():
                clean = model(batch.image)
            adv = ball.project(ball.x + START_SHARE * ball.eps * noise)
            for _ in range(self.steps):
                adv = adv.detach().requires_grad_()
                away = torch.where(batch.valid, pixel_divergence(clean, model(adv)), 0.0).sum()
                (grad,) = torch.autograd.grad(away, adv)
                adv = rule.update(ball, adv.detach(), grad)
        return adv


def pixel_divergence(clean: Tensor, attacked: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence (B, H, W) of the attacked distribution from the clean one, both as logits.

    Example:
        >>> pixel_divergence(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)).item()
        0.0
    """
    log, other = clean.float().log_softmax(1), attacked.float().log_softmax(1)
    return (log.exp() * (log - other)).sum(1)

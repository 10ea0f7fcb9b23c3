"""Attack losses that know the uncertainty of a pixel: guided by it, or in search of wrong maps that look certain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seawall.attacks.losses import class_probability, not_yet_fooled, signed_cross_entropy
from seawall.attacks.pgd import BEST_IMAGE, PGD
from seawall.attacks.target import AttackTarget
from seawall.errors import UsageError
from seawall.registry import preset, register


def relative_entropy(logits: Tensor) -> Tensor:
    """Return the entropy (B, H, W) of the prediction over its largest value, 0 to 1.

    Example:
        >>> relative_entropy(torch.zeros(1, 3, 1, 1)).item()
        1.0
    """
    logs = torch.log_softmax(logits, 1)
    return -(logs.exp() * logs).sum(1) / math.log(logits.shape[1])


@register("attack-loss", "uncertainty-weighted", paper="arXiv:2310.17436")
@dataclass(frozen=True)
class UncertaintyWeighted:
    """Cross-entropy weighted by the uncertainty of the pixel, which is moved more easily; 0 where it is confidently wrong.

    Args:
        confident: Fooled pixels of less entropy than this, as a share of the largest, count no more.

    Paper: Maag and Fischer 2024, arXiv:2310.17436, section 3. Differs: the weight is the entropy over its largest value, and one
    that rounds to 0 is kept above it, so that a chip of certain pixels has a gradient.
    """

    confident: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.confident <= 1:
            raise UsageError(
                f"uncertainty-weighted.confident: expected a share in [0, 1], got {self.confident}; 0.5 is usual"
            )

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        """Return the loss of each pixel, (B, H, W)."""
        entropy = relative_entropy(logits.detach())
        done = ~not_yet_fooled(logits, target) & (entropy < self.confident)
        return signed_cross_entropy(logits, target) * torch.where(done, 0.0, entropy.clamp_min(1e-3))


@register("attack-loss", "confident-wrong")
@dataclass(frozen=True)
class ConfidentWrong:
    """Probability of being wrong, less the entropy: a pixel ends up surely wrong, or as sure as it was where it cannot be fooled.

    Cross-entropy leaves the pixels that it does not fool near the border between the classes, where their entropy gives the attack
    away. This loss is bounded: a pixel near the border is worth less than one on either side of it.

    Args:
        certainty: Weight of the entropy, as a share of its largest value.
    """

    certainty: float = 0.5

    def __post_init__(self) -> None:
        if not self.certainty >= 0:
            raise UsageError(f"confident-wrong.certainty: expected at least 0, got {self.certainty}; 0.5 is usual")

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        """Return the loss of each pixel, (B, H, W)."""
        own = class_probability(logits, target)
        fooled = own if target.targeted else 1 - own
        return fooled - self.certainty * relative_entropy(logits)


preset(
    "attack", "pgd-uncertainty-weighted", PGD(loss=UncertaintyWeighted()), paper="arXiv:2310.17436", smoke={"steps": 10},
    traits=("stochastic",), summary="PGD guided by the uncertainty of the pixels.", differs=BEST_IMAGE,
)  # fmt: skip
preset(
    "attack", "pgd-confident-wrong", PGD(loss=ConfidentWrong()), smoke={"steps": 10}, traits=("stochastic",),
    summary="PGD towards maps that are wrong and look certain.",
)  # fmt: skip

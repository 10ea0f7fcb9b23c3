"""PDPGD: a primal step on the noise, a dual step on the weight of each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seawall.attacks.ascent import check_steps
from seawall.attacks.minimum_norm import (
    SUCCESS_SHARE,
    MinimumNormResult,
    PerturbationSpace,
    SmallestPerturbation,
    check_success_share,
    logit_margin,
    minimize_norm,
)
from seawall.attacks.target import UNTARGETED, Goal
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel

MULTIPLIER_DECAY = 0.9
"""Decay of the moving average of the multipliers, as in the released code."""


@register("attack", "pdpgd", paper="arXiv:2106.01538", smoke={"steps": 80}, traits=("min-norm",))
@dataclass(frozen=True)
class PDPGD:
    """Adam on the noise with a proximal step of its norm, against multipliers that grow where a pixel is not yet fooled.

    The multipliers of all pixels and of the norm are one softmax, so that they share a weight of 1.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        rate: Learning rate of the noise in multiples of eps, the released 0.1 at eps = 8/255; it falls to a hundredth.
        dual_rate: First learning rate of the multipliers; it falls to a tenth.
        enough: Share of the valid pixels that is a success.

    Paper: Matyasko, Chau 2021, arXiv:2106.01538, algorithm 1. Differs: the proximal step is taken in Adam's own
    metric, and the plain difference of logits serves two classes. The weights are averaged as in the released code.
    """

    goal: Goal = UNTARGETED
    steps: int = 500
    rate: float = 3.0
    dual_rate: float = 0.1
    enough: float = SUCCESS_SHARE

    def __post_init__(self) -> None:
        check_steps("pdpgd", self.steps, self.rate)
        check_success_share("pdpgd", self.enough)
        if not self.dual_rate > 0:
            raise UsageError(f"pdpgd: expected dual_rate > 0, got {self.dual_rate}; 0.1 is usual")

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self.solve(model, batch, threat, keys).inside

    def solve(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> MinimumNormResult:
        """Return the images within the budget and those of the smallest noise found; for these eps is the unit of `rate`."""
        return minimize_norm("pdpgd", model, batch, threat, self._descend, goal=self.goal, enough=self.enough)

    def _descend(self, space: PerturbationSpace, best: SmallestPerturbation) -> None:
        u, valid = space.zero(), best.target.valid
        mean, square = torch.zeros_like(u), torch.zeros_like(u)
        # half of the weight evenly on the pixels, half on the norm
        count = valid.flatten(1).sum(1).clamp_min(1).to(u)
        dual = torch.where(valid, -count.log()[:, None, None], -torch.inf)
        pixels, norm = _multipliers(dual)
        for i in range(self.steps):
            adv, logits, _ = best.evaluate(u)
            target = best.target.at_step(logits, i / self.steps)
            margin = logit_margin(logits, target)
            loss = torch.where(valid, pixels * functional.softplus(margin), 0.0).sum()
            grad = space.gradient(torch.autograd.grad(loss, adv)[0])
            mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad.square()
            root = (square / (1 - 0.999 ** (i + 1))).sqrt()
            metric = root + 1e-8 * root.flatten(1).amax(1).clamp_min(1e-30)[:, None, None, None]
            rate = self.rate * 0.01 ** (i / self.steps)
            moved = u - rate * mean / (1 - 0.9 ** (i + 1)) / metric
            u = space.prox(moved, rate * norm, metric)
            dual_step = self.dual_rate * (1 - 0.9 * i / self.steps)
            dual = dual + dual_step * torch.where(valid, margin.detach().sign(), 0.0)
            new = _multipliers(dual)
            pixels, norm = (
                MULTIPLIER_DECAY * pixels + (1 - MULTIPLIER_DECAY) * new[0],
                MULTIPLIER_DECAY * norm + (1 - MULTIPLIER_DECAY) * new[1],
            )
        best.evaluate(u)


def _multipliers(dual: Tensor) -> tuple[Tensor, Tensor]:
    """Return the multiplier of each pixel (B, H, W) and of the norm (B,); together they sum to 1."""
    flat = torch.cat([dual.flatten(1), torch.zeros_like(dual[:, 0, :1])], 1).softmax(1)
    return flat[:, :-1].view_as(dual), flat[:, -1]

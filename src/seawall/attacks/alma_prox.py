"""ALMA prox: an augmented Lagrangian with a proximal step for the norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel

ALMA_DECAY = 0.8
"""Decay of every moving average."""


@register("attack", "alma-prox", paper="arXiv:2206.07179", smoke={"steps": 60, "rate": 0.2}, traits=("min-norm",))
@dataclass(frozen=True)
class ALMAProx:
    """The smallest noise under one constraint per pixel: a penalty with multipliers, and a proximal step for the norm.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        rate: First step length, as a share of eps; it falls to a tenth once an image is adversarial.
        enough: Share of the valid pixels that is a success; the hardest 1 - enough of the constraints are dropped.

    Paper: Rony, Pesquet, Ben Ayed 2023, arXiv:2206.07179, algorithm 1. Differs: the constraint is the difference of two
    logits over its mean size on the clean image, because the ratio with the third largest logit needs three classes.
    """

    goal: Goal = UNTARGETED
    steps: int = 500
    rate: float = 0.05
    enough: float = SUCCESS_SHARE

    def __post_init__(self) -> None:
        check_steps("alma-prox", self.steps, self.rate)
        check_success_share("alma-prox", self.enough)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self.solve(model, batch, threat, keys).inside

    def solve(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> MinimumNormResult:
        """Return the images within the budget and those of the smallest noise found; for these eps is the unit of `rate`."""
        return minimize_norm("alma-prox", model, batch, threat, self._descend, goal=self.goal, enough=self.enough)

    def _descend(self, space: PerturbationSpace, best: SmallestPerturbation) -> None:
        valid, count = best.target.valid, best.count
        u, second = space.zero(), torch.zeros_like(space.zero())
        state: _Constraints | None = None
        first_success = torch.full_like(count, self.steps // 2)
        for i in range(self.steps):
            adv, logits, success = best.evaluate(u)
            target = best.target.at_step(logits, i / self.steps)
            size = logit_margin(logits, target)
            if state is None:
                state = _Constraints(size.detach(), valid)
            kept = _drop_hardest_pixels(size.detach(), valid, (1 - self.enough) * i / self.steps)
            penalty = state.penalty(size, kept, success, i)
            grad = space.gradient(torch.autograd.grad(penalty, adv)[0])
            second = ALMA_DECAY * second + (1 - ALMA_DECAY) * grad.square()
            root = (second / (1 - ALMA_DECAY ** (i + 1))).sqrt()
            metric = root + 1e-6 * root.flatten(1).amax(1).clamp_min(1e-30)[:, None, None, None]
            first_success = torch.where(success, first_success.clamp_max(i), first_success)
            late = ((i - first_success) / (self.steps - first_success).clamp_min(1)).clamp(0, 1)
            rate = self.rate * 0.1**late
            u = space.prox(u - rate[:, None, None, None] * grad / metric, rate, metric)
        best.evaluate(u)


class _Constraints:
    """One constraint per pixel: its multiplier, its penalty's steepness, and the scale of all."""

    def __init__(self, size: Tensor, valid: Tensor) -> None:
        count = valid.flatten(1).sum(1).clamp_min(1)
        mean = (size.abs() * valid).flatten(1).sum(1) / count
        self.unit = mean.clamp_min(1e-12)[:, None, None]
        self.multiplier = torch.ones_like(size)
        self.steepness = torch.full_like(size, 0.01)
        self.scale = torch.ones_like(mean)[:, None, None]
        self.before = torch.full_like(size, torch.inf)
        self.met = torch.zeros_like(valid)

    def penalty(self, size: Tensor, kept: Tensor, success: Tensor, step: int) -> Tensor:
        """Return the sum of the penalties, then move multipliers, steepness and scale."""
        value = self.scale * (size / self.unit + 1e-4)
        total = torch.where(kept, _penalty(value, self.steepness, self.multiplier), 0.0).sum()
        with torch.no_grad():
            slope = _penalty_derivative(value.detach(), self.steepness, self.multiplier)
            moved = (ALMA_DECAY * self.multiplier + (1 - ALMA_DECAY) * slope).clamp(1e-12, 1)
            self.multiplier = torch.where(kept, moved, self.multiplier)
            self.met |= value.detach() <= 0
            if (step + 1) % 10 == 0:
                stuck = ~self.met & (value.detach() > 0.95 * self.before)
                self.steepness = torch.where(stuck, 2 * self.steepness, self.steepness).clamp_max(1e6)
                self.before, self.met = value.detach(), torch.zeros_like(self.met)
            self.scale = torch.where(success[:, None, None], self.scale / 1.02, self.scale / 0.98).clamp(0.1, 1)
        return total


def _penalty(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    up, down = y.clamp_min(0), y.clamp_max(0)
    above = mu * up + mu * rho * up.square() + rho.square() * up**3 / 6
    return torch.where(y >= 0, above, mu * down / (1 - rho.clamp_min(1) * down))


def _penalty_derivative(y: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    up, down = y.clamp_min(0), y.clamp_max(0)
    above = mu + 2 * mu * rho * up + rho.square() * up.square() / 2
    return torch.where(y >= 0, above, mu / (1 - rho.clamp_min(1) * down).square())


def _drop_hardest_pixels(size: Tensor, valid: Tensor, share: float) -> Tensor:
    """Return the valid pixels without the `share` of each image with the largest margins."""
    ranked = torch.where(valid, size, -torch.inf).flatten(1)
    order = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    dropped = order < (share * valid.flatten(1).sum(1)).long()[:, None]
    return valid & ~dropped.view_as(valid)

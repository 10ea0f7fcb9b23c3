"""DAG: a sum of gradients of the pixels that still stand, until nearly all have fallen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seawall.attacks.climb import check_steps
from seawall.attacks.free import ENOUGH, Field, Smallest, Solved, check_enough, margin, search
from seawall.attacks.goal import AWAY, Goal
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "dag", paper="arXiv:1703.08603", smoke={"steps": 40, "step": 0.1}, traits=("min-norm",))
@dataclass(frozen=True)
class DAG:
    """Normalized gradients of the margins of the standing pixels, added up; the best image so far is kept.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps at most; a chip where enough pixels have fallen is done.
        step: Length of a step in the threat's norm, as a share of eps.
        enough: Share of the valid pixels that is a success.

    Paper: Xie et al. 2017, arXiv:1703.08603, algorithm 1. Differs: the most adversarial image is returned where the
    released attack gives up and returns the clean one.
    """

    goal: Goal = AWAY
    steps: int = 200
    step: float = 0.05
    enough: float = ENOUGH

    def __post_init__(self) -> None:
        check_steps("dag", self.steps, self.step)
        check_enough("dag", self.enough)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self.solve(model, batch, threat, keys).inside

    def solve(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Solved:
        """Return the images within the budget and those of the smallest noise found; for these eps is the unit of `step`."""
        return search("dag", model, batch, threat, self._descend, goal=self.goal, enough=self.enough)

    def _descend(self, field: Field, found: Smallest) -> None:
        u = field.zero()
        for step in range(self.steps):
            adv, logits, success = found.look(u)
            if bool(success.all()):
                break
            aim = found.aim.seen_with(logits, step / self.steps)
            standing = torch.where(aim.valid, margin(logits, aim).clamp_min(0), 0.0).sum()
            grad = field.pull(torch.autograd.grad(standing, adv)[0])
            move = self.step * grad / field.size(grad).clamp_min(1e-30)[:, None, None, None]
            u = torch.where(success[:, None, None, None], u, field.box(u - move))
        else:
            found.look(u)

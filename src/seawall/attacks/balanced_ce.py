"""Balanced masked cross-entropy: rare classes count as much as frequent ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.apgd import APGD, RED_EPS, SHARES
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import Balanced
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "balanced-ce", paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class BalancedCE:
    """APGD on the masked cross-entropy with each class weighted by one over its pixels.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1.
        shares: Share of the steps that each stage gets.
        weights: Weight per class; empty weighs by each image's own valid pixels.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3. Differs: counts valid pixels only; without `weights`
    the pixels are counted in each image, where the paper counts the training set.
    """

    goal: Goal = AWAY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._climb()

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self._climb()(model, batch, threat, keys)

    def _climb(self) -> APGD:
        return APGD(self.goal, Balanced(self.weights), self.steps, self.radii, self.shares)

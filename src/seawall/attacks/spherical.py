"""Masked spherical: the angle of the logits, where pixels are still right."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.apgd import APGD, RED_EPS, SHARES
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import Spherical
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "spherical", paper="arXiv:2306.12941v1", smoke={"steps": 10}, traits=("weak", "stochastic"))
@dataclass(frozen=True)
class MaskedSpherical:
    """APGD on the cosine of the logits with the label, over the pixels that are still right.

    Weak on two classes: the angle of opposite logits (-z, z) does not change, so their gradient vanishes.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1.
        shares: Share of the steps that each stage gets.

    Paper: Croce, Singh, Hein 2023, arXiv:2306.12941v1. Differs: counts valid pixels only.
    """

    goal: Goal = AWAY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        self._climb()

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self._climb()(model, batch, threat, keys)

    def _climb(self) -> APGD:
        return APGD(self.goal, Spherical(), self.steps, self.radii, self.shares)

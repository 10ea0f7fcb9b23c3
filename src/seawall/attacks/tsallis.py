"""TsallisPGD: cross-entropy that first spares the pixels that have fallen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.apgd import APGD, RED_EPS, SHARES
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import Tsallis
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "tsallis", paper="Matyasko et al. 2026", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class TsallisPGD:
    """APGD on the Tsallis cross-entropy, q moving linearly over each stage.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1.
        shares: Share of the steps that each stage gets.
        first: q at the first step of each stage; below 1, pixels that have fallen count for less.
        last: q that the stage moves to; 1 is cross-entropy.

    Paper: Matyasko et al., IJCNN 2026. Differs: counts valid pixels only.
    """

    goal: Goal = AWAY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES
    first: float = -2.0
    last: float = 1.0

    def __post_init__(self) -> None:
        self._climb()

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self._climb()(model, batch, threat, keys)

    def _climb(self) -> APGD:
        return APGD(self.goal, Tsallis(self.first, self.last), self.steps, self.radii, self.shares)

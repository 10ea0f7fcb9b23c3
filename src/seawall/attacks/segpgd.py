"""SegPGD: PGD that turns from pixels still right to all pixels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.climb import Steepest, check_steps, climb
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import Seg
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "segpgd", paper="arXiv:2207.12391", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class SegPGD:
    """PGD whose loss moves from pixels still right to pixels already wrong.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        step: Step length, as a share of eps.
        restarts: Starts; a chip that is fully broken is not started again.
        random_start: Whether to start at a random image of the threat set, or at the clean one.

    Paper: Gu et al. 2022, arXiv:2207.12391, eq. 4. Differs: the loss counts valid pixels only, and the most
    adversarial image met is returned.
    """

    goal: Goal = AWAY
    steps: int = 20
    step: float = 0.25
    restarts: int = 1
    random_start: bool = True

    def __post_init__(self) -> None:
        check_steps("segpgd", self.steps, self.step, self.restarts, self.random_start)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return climb(
            "segpgd", model, batch, threat, keys,
            goal=self.goal, loss=Seg(), mover=lambda: Steepest(self.step), steps=self.steps,
            restarts=self.restarts, random_start=self.random_start,
        )  # fmt: skip

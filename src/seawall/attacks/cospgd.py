"""CosPGD: PGD whose pixels count by how well they align with their label."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.climb import Steepest, check_steps, climb
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import Cos
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "cospgd", paper="arXiv:2302.02213", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class CosPGD:
    """PGD whose loss weighs each pixel by the cosine of its prediction with its label.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        step: Step length, as a share of eps.
        restarts: Starts; a chip that is fully broken is not started again.
        random_start: Whether to start at a random image of the threat set, or at the clean one.
        sigmoid: Whether predictions are squashed per class (as SEA runs it) or by softmax (as the paper does).

    Paper: Agnihotri, Jung, Keuper 2024, arXiv:2302.02213, eq. 4 to 6. Differs: the loss counts valid pixels only, and the most
    adversarial image met is returned.
    """

    goal: Goal = AWAY
    steps: int = 20
    step: float = 0.25
    restarts: int = 1
    random_start: bool = True
    sigmoid: bool = False

    def __post_init__(self) -> None:
        check_steps("cospgd", self.steps, self.step, self.restarts, self.random_start)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return climb(
            "cospgd", model, batch, threat, keys,
            goal=self.goal, loss=Cos(self.sigmoid), mover=lambda: Steepest(self.step), steps=self.steps,
            restarts=self.restarts, random_start=self.random_start,
        )  # fmt: skip

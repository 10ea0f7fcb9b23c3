"""PGD: iterated steps from random starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from seawall.attacks.climb import Steepest, check_steps, climb
from seawall.attacks.goal import AWAY, Goal
from seawall.errors import UsageError
from seawall.losses.attack import CE, AnyLoss
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "pgd", paper="arXiv:1706.06083", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent from random starts; the most adversarial image of all starts wins.

    Args:
        goal: What the adversary wants.
        loss: What to climb.
        steps: Gradient steps of each start; one forward and one backward pass each.
        step: Step length, as a share of eps.
        restarts: Starts; a chip that is fully broken is not started again.
        random_start: Whether to start at a random image of the threat set, or at the clean one.
        keep: "best" returns the most adversarial image met, for one more forward pass; "last" the last one.

    Paper: Madry et al. 2018, arXiv:1706.06083, section 2. Differs: the loss counts valid pixels only.
    """

    goal: Goal = AWAY
    loss: AnyLoss = CE
    steps: int = 20
    step: float = 0.25
    restarts: int = 1
    random_start: bool = True
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_steps("pgd", self.steps, self.step, self.restarts, self.random_start)
        if self.keep == "last" and self.restarts > 1:
            raise UsageError(
                "pgd: expected keep = 'best' with restarts, got 'last'; earlier starts would have no effect"
            )

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return climb(
            "pgd", model, batch, threat, keys,
            goal=self.goal, loss=self.loss, mover=lambda: Steepest(self.step), steps=self.steps,
            restarts=self.restarts, random_start=self.random_start, keep=self.keep,
        )  # fmt: skip

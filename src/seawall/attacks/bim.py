"""BIM: iterated FGSM from the clean image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from seawall.attacks.climb import Steepest, check_steps, climb
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import CE, AnyLoss
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "bim", paper="arXiv:1607.02533", smoke={"steps": 5})
@dataclass(frozen=True)
class BIM:
    """FGSM in small steps from the clean image, back into the threat set after each.

    Args:
        goal: What the adversary wants.
        loss: What to climb.
        steps: Gradient steps; one forward and one backward pass each.
        step: Step length, as a share of eps.
        keep: "best" returns the most adversarial image met, for one more forward pass; "last" the last one.

    Paper: Kurakin et al. 2017, arXiv:1607.02533, section 2.2. Differs: the loss counts valid pixels only.
    """

    goal: Goal = AWAY
    loss: AnyLoss = CE
    steps: int = 10
    step: float = 0.25
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_steps("bim", self.steps, self.step)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return climb(
            "bim", model, batch, threat, keys,
            goal=self.goal, loss=self.loss, mover=lambda: Steepest(self.step), steps=self.steps, keep=self.keep,
        )  # fmt: skip

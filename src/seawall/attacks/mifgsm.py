"""MI-FGSM: iterated FGSM along a decaying sum of gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.climb import Momentum, check_steps, climb
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import CE, AnyLoss
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "mifgsm", paper="arXiv:1710.06081", smoke={"steps": 5})
@dataclass(frozen=True)
class MIFGSM:
    """Iterated FGSM with momentum, which transfers better to other models.

    Args:
        goal: What the adversary wants.
        loss: What to climb.
        steps: Gradient steps; one forward and one backward pass each.
        step: Step length, as a share of eps.
        decay: What is kept of the sum of gradients at each step.

    Paper: Dong et al. 2018, arXiv:1710.06081, algorithm 1. Differs: the loss counts valid pixels only, and the most
    adversarial image met is returned.
    """

    goal: Goal = AWAY
    loss: AnyLoss = CE
    steps: int = 10
    step: float = 0.25
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_steps("mifgsm", self.steps, self.step)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return climb(
            "mifgsm", model, batch, threat, keys,
            goal=self.goal, loss=self.loss, mover=lambda: Momentum(self.step, self.decay), steps=self.steps,
        )  # fmt: skip

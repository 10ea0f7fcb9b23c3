"""PAdam-Cos: Adam on the noise, along the cosine of raw logits and label."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.climb import Adam, check_steps, climb
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import Cosine
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "padam-cos", paper="arXiv:2407.09150", smoke={"steps": 12}, traits=("weak", "stochastic"))
@dataclass(frozen=True)
class PAdamCos:
    """Projected Adam (AMSGrad) on one minus the cosine of the raw logits with the label, from a random start.

    Weak on two classes: the angle of opposite logits (-z, z) does not change, so their gradient vanishes.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        step: Learning rate, as a share of eps; the paper's 2/255 at eps 8/255.
        random_start: Whether to start at a random image of the threat set, or at the clean one.

    Paper: Halmosi, Mohos, Jelasity 2024, arXiv:2407.09150. Differs: the loss counts valid pixels only, and the most
    adversarial image met is returned.
    """

    goal: Goal = AWAY
    steps: int = 200
    step: float = 0.25
    random_start: bool = True

    def __post_init__(self) -> None:
        check_steps("padam-cos", self.steps, self.step)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return climb(
            "padam-cos", model, batch, threat, keys,
            goal=self.goal, loss=Cosine(), mover=lambda: Adam(self.step), steps=self.steps, random_start=self.random_start,
        )  # fmt: skip

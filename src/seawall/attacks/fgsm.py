"""FGSM: one step as far as the budget goes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.climb import Steepest, climb
from seawall.attacks.goal import AWAY, Goal
from seawall.losses.attack import CE
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "fgsm", paper="arXiv:1412.6572")
@dataclass(frozen=True)
class FGSM:
    """One step of length eps along the sign of the gradient.

    Args:
        goal: What the adversary wants.

    Paper: Goodfellow et al. 2015, arXiv:1412.6572, section 4. Differs: the loss counts valid pixels only.
    """

    goal: Goal = AWAY

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return climb(
            "fgsm", model, batch, threat, keys,
            goal=self.goal, loss=CE, mover=lambda: Steepest(1.0), steps=1, keep="last",
        )  # fmt: skip

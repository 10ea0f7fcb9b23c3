"""The iterated FGSM family in grey levels, as the first papers on segmentation ran it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.climb import Steepest, climb
from seawall.attacks.goal import Goal, Untargeted
from seawall.errors import UsageError
from seawall.losses.attack import CE
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel

OWN = Untargeted("prediction")


@register("attack", "ifgsm", paper="arXiv:1711.09856", smoke={"goal": "untargeted"})
@dataclass(frozen=True)
class IFGSM:
    """Steps of one grey level, ceil(min(eps + 4, 1.25 eps)) of them with eps in grey levels.

    Targeted with `goal = "towards <class>"` or `"least-likely"`; `"least-likely moving"` computes the target anew at
    every step. The last image is returned, as in the paper.

    Args:
        goal: What the adversary wants.
        level: One grey level in data units; 1/255 where 0 to 1 reflectance was stretched to 0 to 255.

    Paper: Arnab, Miksik, Torr 2018, arXiv:1711.09856, section 3. Differs: the loss counts valid pixels only.
    """

    goal: Goal = OWN
    level: float = 1 / 255

    def __post_init__(self) -> None:
        check_level("ifgsm", self.level)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        step = self.level / max(threat.radius, 1e-30)
        return climb(
            "ifgsm", model, batch, threat, keys,
            goal=self.goal, loss=CE, mover=lambda: Steepest(step), steps=grey_steps(threat, self.level), keep="last",
        )  # fmt: skip


def grey_steps(threat: ThreatModel, level: float) -> int:
    """Return ceil(min(eps + 4, 1.25 eps)) with eps in grey levels, at least 1.

    Example:
        >>> [grey_steps(ThreatModel("linf", eps), 1.0) for eps in (0.25, 1, 2, 8, 16, 32)]
        [1, 2, 3, 10, 20, 36]
    """
    eps = threat.radius / level
    return max(1, math.ceil(round(min(eps + 4, 1.25 * eps), 6)))  # rounding noise must not add a step


def check_level(name: str, level: float) -> None:
    """Refuse a grey level that is none.

    Raises:
        UsageError: It is not a positive number.
    """
    if not 0 < level < math.inf:
        raise UsageError(f"{name}: expected level > 0, got {level}; give one grey level in data units, such as 0.004")

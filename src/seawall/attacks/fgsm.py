"""FGSM and its iterations: BIM (also I-FGSM), and MI-FGSM with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from seawall.attacks.ascent import Momentum, SteepestAscent, check_steps, gradient_ascent
from seawall.attacks.losses import CROSS_ENTROPY, LossSetting
from seawall.attacks.target import UNTARGETED, Goal
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

    goal: Goal = UNTARGETED

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return gradient_ascent(
            "fgsm", model, batch, threat, keys,
            goal=self.goal, loss=CROSS_ENTROPY, update=lambda: SteepestAscent(1.0), steps=1, keep="last",
        )  # fmt: skip


@register("attack", "bim", paper="arXiv:1607.02533", smoke={"steps": 5})
@dataclass(frozen=True)
class BIM:
    """FGSM in small steps from the clean image, back into the threat set after each.

    Args:
        goal: What the adversary wants.
        loss: Per-pixel loss to ascend.
        steps: Gradient steps; one forward and one backward pass each.
        step: Step length, as a share of eps.
        keep: "best" returns the most adversarial image met, for one more forward pass; "last" the last one.

    Paper: Kurakin et al. 2017, arXiv:1607.02533, section 2.2. Differs: the loss counts valid pixels only.
    """

    goal: Goal = UNTARGETED
    loss: LossSetting = CROSS_ENTROPY
    steps: int = 10
    step: float = 0.25
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_steps("bim", self.steps, self.step)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return gradient_ascent(
            "bim", model, batch, threat, keys,
            goal=self.goal, loss=self.loss, update=lambda: SteepestAscent(self.step), steps=self.steps, keep=self.keep,
        )  # fmt: skip


@register("attack", "mifgsm", paper="arXiv:1710.06081", smoke={"steps": 5})
@dataclass(frozen=True)
class MIFGSM:
    """Iterated FGSM with momentum, which transfers better to other models.

    Args:
        goal: What the adversary wants.
        loss: Per-pixel loss to ascend.
        steps: Gradient steps; one forward and one backward pass each.
        step: Step length, as a share of eps.
        decay: What is kept of the sum of gradients at each step.

    Paper: Dong et al. 2018, arXiv:1710.06081, algorithm 1. Differs: the loss counts valid pixels only, and the most
    adversarial image met is returned.
    """

    goal: Goal = UNTARGETED
    loss: LossSetting = CROSS_ENTROPY
    steps: int = 10
    step: float = 0.25
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_steps("mifgsm", self.steps, self.step)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return gradient_ascent(
            "mifgsm", model, batch, threat, keys,
            goal=self.goal, loss=self.loss, update=lambda: Momentum(self.step, self.decay), steps=self.steps,
        )  # fmt: skip

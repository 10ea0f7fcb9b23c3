"""PGD and projected Adam, with presets by loss: SegPGD, CosPGD, PAdam-Cos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from seawall.attacks.ascent import Adam, SteepestAscent, check_steps, gradient_ascent
from seawall.attacks.losses import CROSS_ENTROPY, CosineLoss, CosPGDLoss, LossSetting, SegPGDLoss
from seawall.attacks.target import UNTARGETED, Goal
from seawall.errors import UsageError
from seawall.registry import preset, register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "pgd", paper="arXiv:1706.06083", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent from random starts; the most adversarial image of all starts wins.

    Args:
        goal: What the adversary wants.
        loss: Per-pixel loss to ascend.
        steps: Gradient steps of each start; one forward and one backward pass each.
        step: Step length, as a share of eps.
        restarts: Starts; a chip without a right pixel left is not started again.
        random_start: Whether to start at a random image of the threat set, or at the clean one.
        keep: "best" returns the most adversarial image met, for one more forward pass; "last" the last one.

    Paper: Madry et al. 2018, arXiv:1706.06083, section 2. Differs: the loss counts valid pixels only.
    """

    name: ClassVar[str] = "pgd"
    goal: Goal = UNTARGETED
    loss: LossSetting = CROSS_ENTROPY
    steps: int = 20
    step: float = 0.25
    restarts: int = 1
    random_start: bool = True
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_steps(self.name, self.steps, self.step, self.restarts, self.random_start)
        if self.keep == "last" and self.restarts > 1:
            raise UsageError(
                f"{self.name}: expected keep = 'best' with restarts, got 'last'; earlier starts would have no effect"
            )

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return gradient_ascent(
            self.name, model, batch, threat, keys,
            goal=self.goal, loss=self.loss, update=lambda: SteepestAscent(self.step), steps=self.steps,
            restarts=self.restarts, random_start=self.random_start, keep=self.keep,
        )  # fmt: skip


@register("attack", "padam-ce", paper="arXiv:2407.09150", smoke={"steps": 12}, traits=("stochastic",))
@dataclass(frozen=True)
class PAdam:
    """Projected Adam (AMSGrad) on the cross-entropy from a random start.

    Args:
        goal: What the adversary wants.
        loss: Per-pixel loss to ascend.
        steps: Gradient steps; one forward and one backward pass each.
        step: Learning rate, as a share of eps; the paper's 2/255 at eps 8/255.
        random_start: Whether to start at a random image of the threat set, or at the clean one.

    Paper: Halmosi, Mohos, Jelasity 2024, arXiv:2407.09150. Differs: the loss counts valid pixels only, and the most
    adversarial image met is returned.
    """

    name: ClassVar[str] = "padam-ce"
    goal: Goal = UNTARGETED
    loss: LossSetting = CROSS_ENTROPY
    steps: int = 200
    step: float = 0.25
    random_start: bool = True

    def __post_init__(self) -> None:
        check_steps(self.name, self.steps, self.step)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return gradient_ascent(
            self.name, model, batch, threat, keys,
            goal=self.goal, loss=self.loss, update=lambda: Adam(self.step), steps=self.steps, random_start=self.random_start,
        )  # fmt: skip


BEST_IMAGE = "the loss counts valid pixels only, and the most adversarial image met is returned"

preset(
    "attack", "segpgd", PGD(loss=SegPGDLoss()), paper="arXiv:2207.12391", smoke={"steps": 10}, traits=("stochastic",),
    summary="PGD whose loss moves from pixels still right to pixels already wrong.", differs=BEST_IMAGE,
)  # fmt: skip
preset(
    "attack", "cospgd", PGD(loss=CosPGDLoss()), paper="arXiv:2302.02213", smoke={"steps": 10}, traits=("stochastic",),
    summary="PGD whose loss weighs each pixel by the cosine of its prediction with its label.", differs=BEST_IMAGE,
)  # fmt: skip
# weak on two classes: the angle of opposite logits (-z, z) does not change, so their gradient vanishes
preset(
    "attack", "padam-cos", PAdam(loss=CosineLoss()), paper="arXiv:2407.09150", smoke={"steps": 12}, traits=("weak", "stochastic"),
    summary="Projected Adam (AMSGrad) on one minus the cosine of the raw logits with the label, from a random start.",
    differs=BEST_IMAGE,
)  # fmt: skip

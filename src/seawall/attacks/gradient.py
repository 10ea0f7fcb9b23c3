"""FGSM: one step as far as the budget goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from seawall.attacks.ascent import Adam, Momentum, Steepest, check_steps, climb
from seawall.attacks.losses import CE, AnyLoss, Cos, Cosine, Seg
from seawall.attacks.target import AWAY, Goal
from seawall.errors import UsageError
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


@register("attack", "padam-ce", paper="arXiv:2407.09150", smoke={"steps": 12}, traits=("stochastic",))
@dataclass(frozen=True)
class PAdamCE:
    """Projected Adam (AMSGrad) on the cross-entropy from a random start.

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
        check_steps("padam-ce", self.steps, self.step)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return climb(
            "padam-ce", model, batch, threat, keys,
            goal=self.goal, loss=CE, mover=lambda: Adam(self.step), steps=self.steps, random_start=self.random_start,
        )  # fmt: skip


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

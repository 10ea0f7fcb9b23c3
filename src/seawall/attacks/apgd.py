"""APGD with the red-eps schedule: large balls first, steps that halve themselves."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from seawall.attacks.ascent import Chase, check_steps
from seawall.attacks.losses import CE, AnyLoss, Balanced, JensenShannon, Masked, PixelLoss, Spherical, Tsallis
from seawall.attacks.target import AWAY, Goal, as_found, check, take_aim, usable
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel

RED_EPS = (2.0, 1.5, 1.0)
SHARES = (0.3, 0.3, 0.4)


@register("attack", "apgd", paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class APGD:
    """Automatic step sizes and momentum, in balls that shrink to eps.

    Each stage starts from the most adversarial image of the one before, projected to its ball; only the last stage's
    images count. A step is halved, and the climb resumes at the best loss, when too few steps gained. Progress is
    measured by plain cross-entropy whatever the loss. A loss with a schedule runs through it in every stage anew, as in the
    released code.

    Args:
        goal: What the adversary wants.
        loss: What to climb.
        steps: Gradient steps of all stages together; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1. `(1.0,)` with `shares = (1.0,)` keeps eps.
        shares: Share of the steps that each stage gets.
        random_start: Whether to start at a random image of the first ball, or at the clean one.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3.2; Croce, Hein 2020, arXiv:2003.01690. Differs: pixel
    accuracy and losses are over valid pixels only.
    """

    goal: Goal = AWAY
    loss: AnyLoss = CE
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES
    random_start: bool = True

    def __post_init__(self) -> None:
        check_steps("apgd", self.steps)
        if len(self.radii) != len(self.shares) or not self.radii or self.radii[-1] != 1 or min(self.radii) < 1:
            raise UsageError(
                f"apgd: expected radii that end at 1 with a share each, got {self.radii} and {self.shares}; "
                "write radii = [2, 1.5, 1], shares = [0.3, 0.3, 0.4]"
            )
        if abs(sum(self.shares) - 1) > 1e-6 or min(self.plan) < 1:
            raise UsageError(
                f"apgd: expected shares that sum to 1 and give each stage a step, got {self.shares} of {self.steps}; "
                "take more steps"
            )

    @property
    def plan(self) -> tuple[int, ...]:
        """Steps of each stage; the last one gets what rounding leaves."""
        early = [int(share * self.steps + 1e-9) for share in self.shares[:-1]]
        return (*early, self.steps - sum(early))

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check("apgd", model, batch, threat)
        if threat.radius == 0:
            return batch.image.detach().clone()
        with as_found(model):
            batch = usable(batch)
            aim = take_aim(model, batch, self.goal)
            best = batch.image
            for stage, (radius, steps) in enumerate(zip(self.radii, self.plan, strict=True)):
                chase = Chase(model, aim, threat.scaled(radius).around(batch.image, batch.seen))
                if chase.over:
                    break
                if stage == 0 and self.random_start:
                    start = chase.ball.start(keys.select(chase.standing.tolist()).fold("start"))
                else:
                    start = chase.ball.project(best[chase.standing])
                best = _stage(chase, start, self.loss, steps)
        return best.detach().clone() if best is batch.image else best


@dataclass
class _Memory:
    """What the climb remembers of each standing image."""

    adv: Tensor
    before: Tensor  # the image one step ago, for the momentum
    grad: Tensor
    top: Tensor  # the image of the best loss, with its gradient
    top_grad: Tensor
    loss: Tensor
    top_loss: Tensor
    top_at_check: Tensor
    step: Tensor
    gains: Tensor  # steps of this window that raised the loss
    halved: Tensor  # at the last check

    def select(self, left: Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[left])


def _stage(chase: Chase, start: Tensor, loss: PixelLoss, steps: int) -> Tensor:
    grad, tracked = chase.look(start, loss, 0.0, track=True)
    # the released code finds a gain in the first step of a stage, whatever the loss was at its start
    no_loss = torch.full_like(tracked, -torch.inf)
    own = _Memory(
        start, start, grad, start, grad, no_loss, tracked, tracked,
        torch.full_like(tracked, 2.0), torch.zeros_like(tracked), torch.ones_like(tracked, dtype=torch.bool),
    )  # fmt: skip
    window, least, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    age = 0
    for i in range(steps):
        if (left := chase.shed()) is not None:
            own.select(left)
        if chase.over:
            break
        _move(chase, own, momentum=0.25 if i else 0.0)
        if i == steps - 1:
            chase.glance(own.adv)
            break
        own.grad, tracked = chase.look(own.adv, loss, (i + 1) / steps, track=True)
        _remember(own, tracked)
        age += 1
        if age == window:
            _check(own, window)
            age, window = 0, max(window - shrink, least)
    return chase.end()


def _move(chase: Chase, own: _Memory, momentum: float) -> None:
    shift, own.before = own.adv - own.before, own.adv
    ahead = chase.ball.project(own.adv.addcmul(_column(own.step), chase.ball.ascend(own.grad)))
    own.adv = chase.ball.project(own.adv.lerp(ahead, 1 - momentum).add_(shift, alpha=momentum))


def _remember(own: _Memory, tracked: Tensor) -> None:
    own.gains = own.gains + (tracked > own.loss)
    own.loss = tracked
    better = tracked > own.top_loss
    own.top_loss = torch.maximum(tracked, own.top_loss)
    if bool(better.all()):
        own.top, own.top_grad = own.adv, own.grad
    elif bool(better.any()):
        own.top = torch.where(_column(better), own.adv, own.top)
        own.top_grad = torch.where(_column(better), own.grad, own.top_grad)


def _check(own: _Memory, window: int) -> None:
    stuck = ~own.halved & (own.top_at_check >= own.top_loss)
    halve = (own.gains <= 0.75 * window) | stuck
    if bool(halve.any()):
        own.step = torch.where(halve, own.step / 2, own.step)
        own.adv = torch.where(_column(halve), own.top, own.adv)
        own.grad = torch.where(_column(halve), own.top_grad, own.grad)
    own.halved, own.top_at_check, own.gains = halve, own.top_loss, torch.zeros_like(own.gains)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


@register("attack", "masked-ce", paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class MaskedCE:
    """APGD on the cross-entropy of the pixels that are still right.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1.
        shares: Share of the steps that each stage gets.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3. Differs: counts valid pixels only.
    """

    goal: Goal = AWAY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        self._climb()

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self._climb()(model, batch, threat, keys)

    def _climb(self) -> APGD:
        return APGD(self.goal, Masked(), self.steps, self.radii, self.shares)


@register("attack", "balanced-ce", paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class BalancedCE:
    """APGD on the masked cross-entropy with each class weighted by one over its pixels.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1.
        shares: Share of the steps that each stage gets.
        weights: Weight per class; empty weighs by each image's own valid pixels.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3. Differs: counts valid pixels only; without `weights`
    the pixels are counted in each image, where the paper counts the training set.
    """

    goal: Goal = AWAY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self._climb()

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self._climb()(model, batch, threat, keys)

    def _climb(self) -> APGD:
        return APGD(self.goal, Balanced(self.weights), self.steps, self.radii, self.shares)


@register("attack", "js", paper="arXiv:2306.12941", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class JensenShannonAttack:
    """APGD on the Jensen-Shannon divergence of prediction and label, in closed form.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1.
        shares: Share of the steps that each stage gets.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3. Differs: counts valid pixels only.
    """

    goal: Goal = AWAY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        self._climb()

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self._climb()(model, batch, threat, keys)

    def _climb(self) -> APGD:
        return APGD(self.goal, JensenShannon(), self.steps, self.radii, self.shares)


@register("attack", "spherical", paper="arXiv:2306.12941v1", smoke={"steps": 10}, traits=("weak", "stochastic"))
@dataclass(frozen=True)
class MaskedSpherical:
    """APGD on the cosine of the logits with the label, over the pixels that are still right.

    Weak on two classes: the angle of opposite logits (-z, z) does not change, so their gradient vanishes.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1.
        shares: Share of the steps that each stage gets.

    Paper: Croce, Singh, Hein 2023, arXiv:2306.12941v1. Differs: counts valid pixels only.
    """

    goal: Goal = AWAY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES

    def __post_init__(self) -> None:
        self._climb()

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self._climb()(model, batch, threat, keys)

    def _climb(self) -> APGD:
        return APGD(self.goal, Spherical(), self.steps, self.radii, self.shares)


@register("attack", "tsallis", paper="Matyasko et al. 2026", smoke={"steps": 10}, traits=("stochastic",))
@dataclass(frozen=True)
class TsallisPGD:
    """APGD on the Tsallis cross-entropy, q moving linearly over each stage.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass each.
        radii: Ball of each stage in multiples of eps; the last is 1.
        shares: Share of the steps that each stage gets.
        first: q at the first step of each stage; below 1, pixels that have fallen count for less.
        last: q that the stage moves to; 1 is cross-entropy.

    Paper: Matyasko et al., IJCNN 2026. Differs: counts valid pixels only.
    """

    goal: Goal = AWAY
    steps: int = 300
    radii: tuple[float, ...] = RED_EPS
    shares: tuple[float, ...] = SHARES
    first: float = -2.0
    last: float = 1.0

    def __post_init__(self) -> None:
        self._climb()

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self._climb()(model, batch, threat, keys)

    def _climb(self) -> APGD:
        return APGD(self.goal, Tsallis(self.first, self.last), self.steps, self.radii, self.shares)

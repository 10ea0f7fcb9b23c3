"""The loop that gradient attacks share, and the ways to move along a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from seawall.attacks.losses import CrossEntropy, PixelLoss, cross_entropy
from seawall.attacks.target import Aim, Goal, as_found, check, check_logits, take_aim, usable
from seawall.errors import ModelError, UsageError
from seawall.rng import Keys
from seawall.threat.model import Ball, ThreatModel
from seawall.types import Batch, SegmentationModel


class Mover(Protocol):
    """A way to move along a gradient; it may remember, one memory per standing image."""

    def move(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor: ...
    def select(self, left: Tensor) -> None: ...


class Steepest:
    """Steepest ascent: the sign of the gradient in linf, its direction in l2."""

    def __init__(self, step: float) -> None:
        self.step = step

    def move(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor:
        """Return the next images."""
        return ball.project(adv + self.step * ball.ascend(grad))

    def select(self, left: Tensor) -> None:
        """Forget the images that left: nothing is remembered."""


class Momentum:
    """Steepest ascent along a decaying sum of gradients, each of mean magnitude one."""

    def __init__(self, step: float, decay: float) -> None:
        self.step, self.decay = step, decay
        self._velocity: Tensor | None = None

    def move(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor:
        """Return the next images."""
        unit = grad / grad.flatten(1).abs().mean(1).clamp_min(torch.finfo(grad.dtype).tiny)[:, None, None, None]
        self._velocity = unit if self._velocity is None else self.decay * self._velocity + unit
        return ball.project(adv + self.step * ball.ascend(self._velocity))

    def select(self, left: Tensor) -> None:
        """Forget the images that left."""
        self._velocity = None if self._velocity is None else self._velocity[left]


class Adam:
    """Adam with the running maximum of the uncorrected second moment (AMSGrad), then the projection."""

    def __init__(self, step: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.step, self.betas = step, betas
        self._count = 0
        self._memory: tuple[Tensor, Tensor, Tensor] | None = None

    def move(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor:
        """Return the next images."""
        self._count += 1
        slow, fast = self.betas
        mean, square, largest = self._memory or (torch.zeros_like(grad),) * 3
        mean = mean.lerp(grad, 1 - slow)
        square = fast * square + (1 - fast) * grad.square()
        largest = torch.maximum(largest, square)
        self._memory = mean, square, largest
        scale = (largest / (1 - fast**self._count)).sqrt() + 1e-8
        direction = mean / (1 - slow**self._count) / scale
        move = direction * ball.eps if ball.norm == "linf" else ball.ascend(direction)
        return ball.project(adv + self.step * move)

    def select(self, left: Tensor) -> None:
        """Forget the images that left."""
        if self._memory is not None:
            mean, square, largest = self._memory
            self._memory = mean[left], square[left], largest[left]


def climb(
    name: str,
    model: SegmentationModel,
    batch: Batch,
    threat: ThreatModel,
    keys: Keys,
    *,
    goal: Goal,
    loss: PixelLoss,
    mover: Callable[[], Mover],
    steps: int,
    restarts: int = 1,
    random_start: bool = False,
    keep: str = "best",
    aim: Aim | None = None,
    within: Tensor | None = None,
) -> Tensor:
    """Return adversarial images: climb the loss from each start, one forward and one backward pass per step.

    Args:
        name: Of the attack, for messages.
        model: Any model with a spec.
        batch: What to attack.
        threat: What the adversary may do.
        keys: Randomness, used by random starts alone.
        goal: What the adversary wants.
        loss: What to climb.
        mover: Makes a fresh way of moving for each restart.
        steps: Steps of each restart.
        restarts: Starts; images that are fully broken are not started again.
        random_start: Whether to start at a random image of the set, or at the clean one.
        keep: "best" returns the most adversarial image met, for one more forward pass; "last" the last one.
        aim: What to push at, where it is known already; it saves the pass that finds out.
        within: (B, H, W) bool: touch these pixels only, on top of the threat.
    """
    check(name, model, batch, threat)
    if threat.radius == 0:
        return batch.image.detach().clone()
    with as_found(model):
        batch = usable(batch)
        ball = threat.around(batch.image, batch.seen)
        if within is not None:
            ball = ball.within(within)
        chase = Chase(model, aim or take_aim(model, batch, goal), ball, keep)
        adv = chase.ball.x
        for restart in range(restarts):
            if chase.over:
                break
            adv = chase.ball.x
            if random_start:
                adv = chase.ball.start(keys.select(chase.standing.tolist()).fold("start", restart))
            adv = _climb_once(chase, adv, loss, mover(), steps)
        return chase.end(adv)


def _climb_once(chase: Chase, adv: Tensor, loss: PixelLoss, mover: Mover, steps: int) -> Tensor:
    for step in range(steps):
        grad = chase.look(adv, loss, step / steps).grad
        left = chase.shed()
        if left is not None:
            if chase.over:
                return adv[left]
            mover.select(left)
            adv, grad = adv[left], grad[left]
        adv = mover.move(chase.ball, adv, grad)
    if chase.keep == "best":
        chase.glance(adv)
        left = chase.shed()
        adv = adv if left is None else adv[left]
    return adv


def check_steps(name: str, steps: int, step: float = 1.0, restarts: int = 1, random_start: bool = True) -> None:
    """Refuse settings that mean nothing.

    Raises:
        UsageError: No step, a step of no length, no start, or several equal starts.
    """
    if steps < 1:
        raise UsageError(f"{name}: expected steps >= 1, got {steps}; an attack needs at least one step")
    if not step > 0:
        raise UsageError(f"{name}: expected step > 0, got {step}; it is a share of eps, such as 0.25")
    if restarts < 1:
        raise UsageError(f"{name}: expected restarts >= 1, got {restarts}; 1 means a single start")
    if restarts > 1 and not random_start:
        raise UsageError(f"{name}: expected one restart from the clean image, got {restarts}; set random_start = true")


class Look(NamedTuple):
    """What one forward and backward pass tells about each image still standing."""

    grad: Tensor  # (b, C, H, W) of the loss summed over valid pixels
    tracked: Tensor  # (b,) mean cross-entropy over valid pixels, larger is more adversarial; zeros unless asked for


class Chase:
    """A running attack: the images still standing, and the best adversarial of every image so far.

    Attributes:
        best: (B, C, H, W) the most adversarial image looked at; the clean one where there was nothing to attack.
        standing: Indices of the images that are not fully broken yet.
        ball: The threat set around the standing images.

    Args:
        model: The model, in eval mode with frozen parameters.
        aim: What to push at.
        ball: The threat set around the whole batch.
        keep: "best" keeps the most adversarial look and lets broken images leave; "last" keeps the last image.
    """

    def __init__(self, model: SegmentationModel, aim: Aim, ball: Ball, keep: str = "best") -> None:
        self.model, self.keep = model, keep
        self.best = ball.x.clone()
        count = aim.valid.flatten(1).sum(1)
        self.standing = count.nonzero()[:, 0]
        whole = len(self.standing) == len(count)
        self.aim = aim if whole else aim.select(self.standing)
        self.ball = ball if whole else ball.select(self.standing)
        self._count = count[self.standing]
        self._hits = torch.full_like(self._count, -1)
        self._kept = self.ball.x

    @property
    def over(self) -> bool:
        """Whether no image is left to attack."""
        return len(self.standing) == 0

    def look(self, adv: Tensor, loss: PixelLoss, progress: float = 0.0, track: bool = False) -> Look:
        """Return the gradient at `adv`; it is judged on the way.

        Raises:
            ModelError: The model has no gradient with respect to its input.
        """
        adv = adv.detach().requires_grad_()
        logits = self._logits(adv)
        if not logits.requires_grad:
            raise ModelError(
                "model: expected logits with a gradient to the image, got none; use a black-box attack such as random"
            )
        aim = self.aim.seen_with(logits, progress)
        climbed = torch.where(aim.valid, loss(logits, aim), 0.0)
        (grad,) = torch.autograd.grad(climbed.sum(), adv)
        logits, adv = logits.detach(), adv.detach()
        self._judge(adv, logits)
        tracked = torch.zeros_like(self._count, dtype=logits.dtype)
        if track and isinstance(loss, CrossEntropy):
            tracked = climbed.detach().flatten(1).sum(1) / self._count
        elif track:
            tracked = torch.where(aim.valid, cross_entropy(logits, aim), 0.0).flatten(1).sum(1) / self._count
        return Look(grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0), tracked)

    def glance(self, adv: Tensor) -> None:
        """Judge `adv` with a forward pass alone."""
        with torch.no_grad():
            self._judge(adv, self._logits(adv))

    def shed(self) -> Tensor | None:
        """Let fully broken images leave; return the positions of those that stay, or None if all do."""
        if self.keep == "last":
            return None
        left = (self._hits < self._count).nonzero()[:, 0]
        if len(left) == len(self.standing):
            return None
        self.best[self.standing] = self._kept
        self.aim, self.ball = self.aim.select(left), self.ball.select(left)
        self.standing, self._count, self._hits = self.standing[left], self._count[left], self._hits[left]
        self._kept = self._kept[left]
        return left

    def end(self, adv: Tensor | None = None) -> Tensor:
        """Return the best images; `adv` is the last of those still standing, and what "last" keeps."""
        self.best[self.standing] = self._kept if adv is None or self.keep == "best" else adv
        return self.best

    def _logits(self, adv: Tensor) -> Tensor:
        return check_logits(self.model(adv), adv, len(self.model.spec.classes))

    def _judge(self, adv: Tensor, logits: Tensor) -> None:
        if self.keep == "last":
            return
        hits = self.aim.hits(logits)
        # at a tie the later image stays: it was pushed further
        better = hits >= self._hits
        # most steps improve every image: then nothing is copied
        self._kept = adv if bool(better.all()) else torch.where(better[:, None, None, None], adv, self._kept)
        self._hits = torch.maximum(hits, self._hits)

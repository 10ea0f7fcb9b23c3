"""Projected gradient ascent: the loop that gradient attacks share, and its update rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from seawall.attacks.losses import AttackLoss, CrossEntropy, signed_cross_entropy
from seawall.attacks.target import (
    AttackTarget,
    Goal,
    attack_mode,
    autograd_ready,
    check_attack_inputs,
    check_gradient,
    check_logits,
    make_target,
)
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.threat.model import Ball, ThreatModel
from seawall.types import Batch, SegmentationModel


class UpdateRule(Protocol):
    """Maps images and a gradient to the next images; a rule with a state keeps one entry per active image."""

    def update(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor: ...
    def select(self, kept: Tensor) -> None: ...


class SteepestAscent:
    """Steepest ascent: the sign of the gradient in linf, its direction in l2."""

    def __init__(self, step: float) -> None:
        self.step = step

    def update(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor:
        """Return the next images."""
        return ball.project(adv + self.step * ball.ascend(grad))

    def select(self, kept: Tensor) -> None:
        """Keep the state of these positions: there is none."""


class Momentum:
    """Steepest ascent along a decaying sum of gradients, each of mean magnitude one."""

    def __init__(self, step: float, decay: float) -> None:
        self.step, self.decay = step, decay
        self._velocity: Tensor | None = None

    def update(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor:
        """Return the next images."""
        unit = grad / grad.flatten(1).abs().mean(1).clamp_min(torch.finfo(grad.dtype).tiny)[:, None, None, None]
        self._velocity = unit if self._velocity is None else self.decay * self._velocity + unit
        return ball.project(adv + self.step * ball.ascend(self._velocity))

    def select(self, kept: Tensor) -> None:
        """Keep the state of these positions."""
        self._velocity = None if self._velocity is None else self._velocity[kept]


class Adam:
    """Adam with the running maximum of the uncorrected second moment (AMSGrad), then the projection."""

    def __init__(self, step: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.step, self.betas = step, betas
        self._count = 0
        self._memory: tuple[Tensor, Tensor, Tensor] | None = None

    def update(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor:
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

    def select(self, kept: Tensor) -> None:
        """Keep the state of these positions."""
        if self._memory is not None:
            mean, square, largest = self._memory
            self._memory = mean[kept], square[kept], largest[kept]


def gradient_ascent(
    name: str,
    model: SegmentationModel,
    batch: Batch,
    threat: ThreatModel,
    keys: Keys,
    *,
    goal: Goal,
    loss: AttackLoss,
    update: Callable[[], UpdateRule],
    steps: int,
    restarts: int = 1,
    random_start: bool = False,
    keep: str = "best",
    target: AttackTarget | None = None,
    within: Tensor | None = None,
) -> Tensor:
    """Return adversarial images: ascend the loss from each start, one forward and one backward pass per step.

    Args:
        name: Of the attack, for messages.
        model: Any model with a spec.
        batch: Images to attack.
        threat: What the adversary may do.
        keys: Randomness, used by random starts alone.
        goal: What the adversary wants.
        loss: Per-pixel loss to ascend.
        update: Makes the update rule of each restart.
        steps: Steps of each restart.
        restarts: Starts; images without a right pixel left are not started again.
        random_start: Whether to start at a random image of the set, or at the clean one.
        keep: "best" returns the most adversarial image met, for one more forward pass; "last" the last one.
        target: The target where it is known already, which saves the forward pass of `make_target`.
        within: (B, H, W) bool: touch these pixels only, on top of the threat.
    """
    check_attack_inputs(name, model, batch, threat)
    if threat.radius == 0:
        return batch.image.detach().clone()
    with attack_mode(model):
        batch = autograd_ready(batch)
        ball = threat.around(batch.image, batch.image_seen)
        if within is not None:
            ball = ball.within(within)
        best = BestAdversarial(model, target or make_target(model, batch, goal), ball, keep)
        adv = best.ball.x
        for restart in range(restarts):
            if best.done:
                break
            adv = best.ball.x
            if random_start:
                adv = best.ball.start(keys.select(best.active.tolist()).fold("start", restart))
            adv = _ascend_from(best, adv, loss, update(), steps)
        return best.result(adv)


def _ascend_from(best: BestAdversarial, adv: Tensor, loss: AttackLoss, rule: UpdateRule, steps: int) -> Tensor:
    for step in range(steps):
        grad = best.loss_gradient(adv, loss, step / steps).grad
        kept = best.drop_done()
        if kept is not None:
            if best.done:
                return adv[kept]
            rule.select(kept)
            adv, grad = adv[kept], grad[kept]
        adv = rule.update(best.ball, adv, grad)
    if best.keep == "best":
        best.evaluate(adv)
        kept = best.drop_done()
        adv = adv if kept is None else adv[kept]
    return adv


def check_steps(name: str, steps: int, step: float = 1.0, restarts: int = 1, random_start: bool = True) -> None:
    """Check the settings that iterated attacks share.

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


class LossGradient(NamedTuple):
    """Result of one forward and backward pass for each active image."""

    grad: Tensor  # (b, C, H, W) of the loss summed over valid pixels
    cross_entropy: Tensor  # (b,) mean over valid pixels, larger is more adversarial; zeros unless `track`


class BestAdversarial:
    """The most adversarial image met so far of every image of a batch; images without a right pixel leave the attack.

    Attributes:
        best: (B, C, H, W) the most adversarial image evaluated; the clean one where there was nothing to attack.
        active: Indices of the images that still have a pixel to change.
        ball: The threat set around the active images.

    Args:
        model: The model, in eval mode with frozen parameters.
        target: Which pixels count and which class each is pushed from or to.
        ball: The threat set around the whole batch.
        keep: "best" keeps the most adversarial image and drops images that are done; "last" keeps the last image.
    """

    def __init__(self, model: SegmentationModel, target: AttackTarget, ball: Ball, keep: str = "best") -> None:
        self.model, self.keep = model, keep
        self.best = ball.x.clone()
        count = target.valid.flatten(1).sum(1)
        self.active = count.nonzero()[:, 0]
        whole = len(self.active) == len(count)
        self.target = target if whole else target.select(self.active)
        self.ball = ball if whole else ball.select(self.active)
        self._count = count[self.active]
        self._successes = torch.full_like(self._count, -1)
        self._best_active = self.ball.x

    @property
    def done(self) -> bool:
        """Whether no image is left to attack."""
        return len(self.active) == 0

    def loss_gradient(self, adv: Tensor, loss: AttackLoss, progress: float = 0.0, track: bool = False) -> LossGradient:
        """Return the gradient at `adv`, after an update of the best images.

        Args:
            adv: Images of the active positions.
            loss: Per-pixel loss.
            progress: How far the attack is, from 0 to just below 1.
            track: Whether the mean cross-entropy is wanted too.


        Raises:
            ModelError: The model has no gradient with respect to its input.
        """
        adv = adv.detach().requires_grad_()
        logits = self._logits(adv)
        check_gradient(logits)
        target = self.target.at_step(logits, progress)
        per_pixel = torch.where(target.valid, loss(logits, target), 0.0)
        (grad,) = torch.autograd.grad(per_pixel.sum(), adv)
        logits, adv = logits.detach(), adv.detach()
        self._update(adv, logits)
        tracked = torch.zeros_like(self._count, dtype=logits.dtype)
        if track and isinstance(loss, CrossEntropy):
            tracked = per_pixel.detach().flatten(1).sum(1) / self._count
        elif track:
            tracked = (
                torch.where(target.valid, signed_cross_entropy(logits, target), 0.0).flatten(1).sum(1) / self._count
            )
        return LossGradient(grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0), tracked)

    def evaluate(self, adv: Tensor) -> None:
        """Update the best images with `adv` by a forward pass alone."""
        with torch.no_grad():
            self._update(adv, self._logits(adv))

    def drop_done(self) -> Tensor | None:
        """Drop images without a pixel left to change; return the positions of the others, or None if all stay."""
        if self.keep == "last":
            return None
        kept = (self._successes < self._count).nonzero()[:, 0]
        if len(kept) == len(self.active):
            return None
        self.best[self.active] = self._best_active
        self.target, self.ball = self.target.select(kept), self.ball.select(kept)
        self.active, self._count, self._successes = self.active[kept], self._count[kept], self._successes[kept]
        self._best_active = self._best_active[kept]
        return kept

    def result(self, adv: Tensor | None = None) -> Tensor:
        """Return the best images; `adv` are the last images of the active positions, which "last" keeps."""
        self.best[self.active] = self._best_active if adv is None or self.keep == "best" else adv
        return self.best

    def _logits(self, adv: Tensor) -> Tensor:
        return check_logits(self.model(adv), adv, len(self.model.spec.classes))

    def _update(self, adv: Tensor, logits: Tensor) -> None:
        if self.keep == "last":
            return
        successes = self.target.successes(logits)
        # at a tie the later image stays: it was pushed further
        better = successes >= self._successes
        # most steps improve every image: then nothing is copied
        self._best_active = (
            adv if bool(better.all()) else torch.where(better[:, None, None, None], adv, self._best_active)
        )
        self._successes = torch.maximum(successes, self._successes)

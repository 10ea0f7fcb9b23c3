"""Minimum-norm attacks: perturbations in multiples of eps, proximal steps, the smallest perturbation that succeeds, and DAG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from seawall.attacks.ascent import check_steps
from seawall.attacks.target import (
    UNTARGETED,
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
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import Ball, ThreatModel, per_image
from seawall.types import Batch, SegmentationModel

UNBOUNDED_FACTOR = 1e6  # a ball so many times eps holds every image that the bounds allow
SUCCESS_SHARE = 0.99


@dataclass(frozen=True)
class PerturbationSpace:
    """Perturbations `u` in multiples of eps: the image is x + u * unit, and the norm of `u` is the distance over eps.

    Args:
        x: (B, C, H, W) clean images.
        low: Smallest `u` (B, C, H, W), or (B, 1, H, W) along a spectrum; 0 where nothing may be touched.
        high: Largest `u`.
        unit: (1, C, 1, 1) data units per unit of `u`.
        norm: "linf" or "l2".
        spread: Whether one `u` moves all bands along a spectrum.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    unit: Tensor
    norm: str
    spread: bool

    @staticmethod
    def of(threat: ThreatModel, x: Tensor, seen: Tensor) -> PerturbationSpace:
        """Return the perturbations that a threat allows without its budget."""
        ball, free = threat.around(x, seen), threat.scaled(UNBOUNDED_FACTOR).around(x, seen)
        base = x if ball.spectrum is None else torch.zeros_like(free.low)
        scale = ball.eps.clamp_min(1e-30)
        if ball.spectrum is not None and ball.norm == "l2":
            scale = scale / ball.spectrum.square().sum().sqrt()
        low, high = (free.low - base) / scale, (free.high - base) / scale
        touched = free.high > free.low
        low, high = torch.where(touched, low, 0.0), torch.where(touched, high, 0.0)
        unit = scale if ball.spectrum is None else scale * ball.spectrum
        return PerturbationSpace(
            x,
            low.clamp_min(-UNBOUNDED_FACTOR),
            high.clamp_max(UNBOUNDED_FACTOR),
            unit,
            ball.norm,
            ball.spectrum is not None,
        )

    def zero(self) -> Tensor:
        """Return the zero perturbation."""
        return torch.zeros_like(self.low)

    def image(self, u: Tensor) -> Tensor:
        """Return the images with the noise on them."""
        return torch.where(u != 0, self.x + u * self.unit, self.x)

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient with respect to `u` of a gradient with respect to the image."""
        along = grad * self.unit
        return (along.sum(1, keepdim=True) if self.spread else along) * (self.high > self.low)

    def size(self, u: Tensor) -> Tensor:
        """Return the norm (B,) of the noise in multiples of eps."""
        flat = u.flatten(1)
        length: Tensor = flat.abs().amax(1) if self.norm == "linf" else torch.linalg.vector_norm(flat, dim=1)
        return length

    def box(self, u: Tensor) -> Tensor:
        """Return the noise within the bounds."""
        return torch.clamp(u, self.low, self.high)

    def prox(self, u: Tensor, weight: Tensor, metric: Tensor) -> Tensor:
        """Return argmin over p in the box of weight * |p| + sum(metric * (p - u)^2) / 2, image by image.

        Args:
            u: (B, ...) noise.
            weight: (B,) of the norm.
            metric: Like `u`, positive.
        """
        step = prox_linf if self.norm == "linf" else prox_l2
        return self.box(step(u, weight, metric, self.low, self.high))


def prox_linf(u: Tensor, weight: Tensor, metric: Tensor, low: Tensor, high: Tensor, halvings: int = 40) -> Tensor:
    """Clip at the level t where the clipped excess, metric * (|u| - t) summed, equals the weight.

    Where the box already holds a value below t it does not take part. Exact up to the halvings of [0, max |u|].
    """
    reach, inside = u.abs(), torch.clamp(u, low, high).abs()
    below, above = torch.zeros_like(weight), inside.flatten(1).amax(1)
    for _ in range(halvings):
        middle = (below + above) / 2
        level = per_image(middle)
        excess = torch.where(inside > level, metric * (reach - level), 0.0).flatten(1).sum(1)
        too_low = excess > weight
        below, above = torch.where(too_low, middle, below), torch.where(too_low, above, middle)
    # from this weight on the minimum is zero
    total = (metric * reach * (inside > 0)).flatten(1).sum(1)
    level = per_image(torch.where(total <= weight, 0.0, above))
    return torch.minimum(torch.maximum(u, -level), level)


def prox_l2(u: Tensor, weight: Tensor, metric: Tensor, low: Tensor, high: Tensor, halvings: int = 40) -> Tensor:
    """Shrink to metric * u / (metric + weight / r), with r the length of the result; then the box clips it."""
    touched = high > low
    u = torch.where(touched, u, 0.0)
    length = torch.linalg.vector_norm(u.flatten(1), dim=1)
    below, above = torch.zeros_like(length), length

    def shrunk(r: Tensor) -> Tensor:
        return metric * u / (metric + per_image(weight / r.clamp_min(1e-20)))

    for _ in range(halvings):
        middle = (below + above) / 2
        longer = torch.linalg.vector_norm(shrunk(middle).flatten(1), dim=1) > middle
        below, above = torch.where(longer, middle, below), torch.where(longer, above, middle)
    dead = torch.linalg.vector_norm((metric * u).flatten(1), dim=1) <= weight
    return torch.where(per_image(dead), 0.0, shrunk(above))


class SmallestPerturbation:
    """The smallest perturbation met of each image that is a success, and the most adversarial one within the budget.

    Attributes:
        free: Perturbation of the smallest norm that is a success, or else the one that fools most pixels.
        inside: Perturbation within the budget that fools most pixels.
        reached: (B,) bool: whether `free` is a success.

    Args:
        model: The model, in eval mode with frozen parameters.
        target: Which pixels count and which class each is pushed from or to.
        space: The perturbations.
        enough: Share of the valid pixels that is a success.
    """

    def __init__(self, model: SegmentationModel, target: AttackTarget, space: PerturbationSpace, enough: float) -> None:
        self.model, self.target, self.space, self.enough = model, target, space, enough
        self.count = target.valid.flatten(1).sum(1)
        self.free = self.inside = space.zero()
        self.reached = torch.zeros_like(self.count, dtype=torch.bool)
        self._size = torch.full(self.count.shape, torch.inf, device=self.count.device)
        self._successes = torch.full_like(self.count, -1)
        self._successes_inside = torch.full_like(self.count, -1)

    def evaluate(self, u: Tensor, progress: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Update the best with `u`; return the images (with gradients on), their logits and which images (B,) are a success.

        Raises:
            ModelError: The model has no gradient with respect to its input.
        """
        adv = self.space.image(u).detach().requires_grad_()
        logits = check_logits(self.model(adv), adv, len(self.model.spec.classes))
        check_gradient(logits)
        return adv, logits, self.update(u, logits.detach())

    def update(self, u: Tensor, logits: Tensor) -> Tensor:
        """Keep `u` where it is better than before; return which images are a success."""
        successes, size = self.target.at_step(logits, 0.0).successes(logits), self.space.size(u)
        success = successes >= self.enough * self.count
        smaller = success & (~self.reached | (size < self._size))
        more = ~success & ~self.reached & (successes > self._successes)
        take = smaller | more
        self.free = torch.where(per_image(take), u, self.free)
        self._size = torch.where(take, size, self._size)
        self._successes = torch.where(take, successes, self._successes)
        self.reached = self.reached | success
        better = (size <= 1) & (successes > self._successes_inside)
        self.inside = torch.where(per_image(better), u, self.inside)
        self._successes_inside = torch.where(better, successes, self._successes_inside)
        return success

    def within(self, ball: Ball) -> Tensor:
        """Return the images of the budget: the smallest perturbation where it fits, else the better of the best
        one met inside and of the smallest one projected to the budget; one forward pass.
        """
        projected = ball.project(self.space.image(self.free))
        met = ball.project(self.space.image(self.inside))
        with torch.no_grad():
            logits = check_logits(self.model(projected), projected, len(self.model.spec.classes))
        successes = self.target.at_step(logits, 0.0).successes(logits)
        fits = self.reached & (self._size <= 1)
        return torch.where(per_image(fits | (successes >= self._successes_inside)), projected, met)


def logit_margin(logits: Tensor, target: AttackTarget) -> Tensor:
    """Return by how many logits (B, H, W) a pixel is not yet fooled; negative once it is predicted as the adversary wants.

    The plain difference of two logits; a ratio with the third largest does not exist for two classes.
    """
    own = logits.gather(1, target.label[:, None])[:, 0]
    other = logits.scatter(1, target.label[:, None], -torch.inf).amax(1)
    return other - own if target.targeted else own - other


def check_success_share(name: str, enough: float) -> None:
    """Check the share of pixels that is a success.

    Raises:
        UsageError: It is not above 0, or larger than 1.
    """
    if not 0 < enough <= 1:
        raise UsageError(f"{name}: expected 0 < enough <= 1, got {enough}; it is the share of pixels to move")


class MinimumNormResult(NamedTuple):
    """What a minimum-norm attack returns.

    Args:
        inside: (B, C, H, W) the most adversarial image within the threat's budget.
        free: (B, C, H, W) the image of the smallest noise that is a success, at any distance; where none was found, the
            image with most fooled pixels.
        reached: (B,) bool: whether `free` is a success.
    """

    inside: Tensor
    free: Tensor
    reached: Tensor


@runtime_checkable
class MinimumNorm(Protocol):
    """An attack that looks for the smallest noise; `solve` gives that noise beside the best within the budget."""

    def solve(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> MinimumNormResult: ...


def minimize_norm(
    name: str, model: SegmentationModel, batch: Batch, threat: ThreatModel, descend: Callable[[PerturbationSpace, SmallestPerturbation], None],
    *, goal: Goal, enough: float,
) -> MinimumNormResult:  # fmt: skip
    """Run a minimum-norm descent; return its smallest perturbation and the best image within the threat."""
    check_attack_inputs(name, model, batch, threat)
    if threat.radius == 0:
        clean = batch.image.detach().clone()
        return MinimumNormResult(clean, clean.clone(), torch.zeros(len(batch), dtype=torch.bool, device=clean.device))
    with attack_mode(model):
        batch = autograd_ready(batch)
        space = PerturbationSpace.of(threat, batch.image, batch.image_seen)
        best = SmallestPerturbation(model, make_target(model, batch, goal), space, enough)
        descend(space, best)
        inside = best.within(threat.around(batch.image, batch.image_seen))
        return MinimumNormResult(inside, space.image(best.free), best.reached & (best.count > 0))


@register("attack", "dag", paper="arXiv:1703.08603", smoke={"steps": 40, "step": 0.1}, traits=("min-norm",))
@dataclass(frozen=True)
class DAG:
    """Normalized gradients of the margins of the pixels not yet fooled, added up; the best image so far is kept.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps at most; a chip where enough pixels are fooled is done.
        step: Length of a step in the threat's norm, as a share of eps.
        enough: Share of the valid pixels that is a success.

    Paper: Xie et al. 2017, arXiv:1703.08603, algorithm 1. Differs: the most adversarial image is returned where the
    released attack gives up and returns the clean one.
    """

    goal: Goal = UNTARGETED
    steps: int = 200
    step: float = 0.05
    enough: float = SUCCESS_SHARE

    def __post_init__(self) -> None:
        check_steps("dag", self.steps, self.step)
        check_success_share("dag", self.enough)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        return self.solve(model, batch, threat, keys).inside

    def solve(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> MinimumNormResult:
        """Return the images within the budget and those of the smallest noise found; for these eps is the unit of `step`."""
        return minimize_norm("dag", model, batch, threat, self._descend, goal=self.goal, enough=self.enough)

    def _descend(self, space: PerturbationSpace, best: SmallestPerturbation) -> None:
        u = space.zero()
        for step in range(self.steps):
            adv, logits, success = best.evaluate(u)
            if bool(success.all()):
                break
            target = best.target.at_step(logits, step / self.steps)
            margins = torch.where(target.valid, logit_margin(logits, target).clamp_min(0), 0.0).sum()
            grad = space.gradient(torch.autograd.grad(margins, adv)[0])
            move = self.step * grad / space.size(grad).clamp_min(1e-30)[:, None, None, None]
            u = torch.where(success[:, None, None, None], u, space.box(u - move))
        else:
            best.evaluate(u)

"""Square: random search with squares, without a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seawall.attacks.ascent import check_steps
from seawall.attacks.losses import JensenShannon, LossSetting
from seawall.attacks.target import (
    UNTARGETED,
    AttackTarget,
    Goal,
    attack_mode,
    check_attack_inputs,
    check_logits,
    make_target,
)
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import Ball, ThreatModel
from seawall.types import Batch, SegmentationModel

JENSEN_SHANNON = JensenShannon()


@register("attack", "square", paper="arXiv:1912.00049", smoke={"steps": 20}, traits=("black-box", "stochastic"))
@dataclass(frozen=True)
class Square:
    """A grid of squares at the edge of the budget is tried at once, and each is kept where the loss of its cell rises.

    For one forward pass a classifier's version tries one square, because it gets one prediction; a map has one in every
    cell. The effect of neighboring squares on each other is measured again at every step, and the most adversarial
    image that was evaluated is returned.

    Args:
        goal: What the adversary wants.
        steps: Forward passes per chip.
        side: Side of the first squares, as a share of the image's shorter side.
        loss: Per-pixel loss whose sum over a cell is to rise.

    Paper: Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 and 2. Differs: many squares per pass, each judged
    by its own cell; sides halve on a fixed schedule; in l2 a square is added and the image pulled back.
    """

    goal: Goal = UNTARGETED
    steps: int = 200
    side: float = 0.25
    loss: LossSetting = JENSEN_SHANNON

    def __post_init__(self) -> None:
        check_steps("square", self.steps, self.side)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check_attack_inputs("square", model, batch, threat)
        if threat.radius == 0:
            return batch.image.detach().clone()
        with attack_mode(model), torch.no_grad():
            target, ball = make_target(model, batch, self.goal), threat.around(batch.image, batch.image_seen)
            search = _Search(self, model, target, ball, keys)
            for step in range(self.steps):
                if search.done:
                    break
                search.step(step)
            return search.best


class _Search:
    """The current image, its loss per pixel, and the most adversarial image that was evaluated."""

    def __init__(self, attack: Square, model: SegmentationModel, target: AttackTarget, ball: Ball, keys: Keys) -> None:
        self.attack, self.model, self.target, self.ball, self.keys = attack, model, target, ball, keys
        self.count = target.valid.flatten(1).sum(1)
        self.successes = torch.full_like(self.count, -1)
        self.best, self.adv = ball.x.clone(), ball.x
        self.loss = self._evaluate(ball.x, 0.0)

    @property
    def done(self) -> bool:
        return bool((self.successes >= self.count).all())

    def step(self, step: int) -> None:
        progress = step / self.attack.steps
        keys = self.keys.fold("square", step)
        height, width = self.adv.shape[2:]
        # five halvings from the first to the last step
        side = max(1, round(self.attack.side * min(height, width) * 0.5 ** (5 * progress)))
        if step == 0:  # stripes, the best start known: they meet every filter
            there, cell = torch.ones_like(self.target.valid), torch.zeros_like(self.target.label)
            sign = _signs(keys, self.adv, (1, width)).expand_as(self.adv)
        else:
            there, cell, sign = _squares(keys, self.adv, side)
        tried = self.ball.project(self._with_squares(there, sign))
        loss = self._evaluate(tried, progress)
        better = _by_cell(loss, cell) > _by_cell(self.loss, cell)
        self.adv = self.ball.project(torch.where(better[:, None], tried, self.adv))
        self.loss = torch.where(better, loss, self.loss)

    def _with_squares(self, there: Tensor, sign: Tensor) -> Tensor:
        if self.ball.norm == "linf":
            return torch.where(there[:, None], self.ball.x + self.ball.ascend(sign), self.adv)
        return self.adv + self.ball.ascend(torch.where(there[:, None], sign, 0.0))

    def _evaluate(self, adv: Tensor, progress: float) -> Tensor:
        logits = check_logits(self.model(adv), adv, len(self.model.spec.classes))
        target = self.target.at_step(logits, progress)
        successes = target.successes(logits)
        better = successes > self.successes
        self.best = torch.where(better[:, None, None, None], adv, self.best)
        self.successes = torch.maximum(successes, self.successes)
        return torch.where(target.valid, self.attack.loss(logits, target), 0.0)


def _signs(keys: Keys, like: Tensor, grid: tuple[int, int]) -> Tensor:
    draw = keys.fold("sign").uniform((like.shape[1], *grid))
    return torch.where(draw < 0.5, -1.0, 1.0).to(like)


def _squares(keys: Keys, like: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where squares are (B, H, W), the cell of each pixel (B, H, W), and a sign per band (B, C, H, W).

    One square per cell of twice its side, on a grid that is shifted at random.
    """
    batch, bands, height, width = like.shape
    period = 2 * side
    shift = (keys.fold("shift").uniform((2,)) * period).long().clamp_max(period - 1).to(like.device)
    rows = torch.arange(height, device=like.device)[None] + shift[:, :1]
    cols = torch.arange(width, device=like.device)[None] + shift[:, 1:]
    high, wide = height // period + 2, width // period + 2
    there = (rows % period < side)[:, :, None] & (cols % period < side)[:, None, :]
    cell = (rows // period)[:, :, None] * wide + (cols // period)[:, None, :]
    drawn = _signs(keys, like, (high, wide)).flatten(2)
    sign = drawn.gather(2, cell.flatten(1)[:, None].expand(batch, bands, height * width)).view_as(like)
    return there, cell, sign


def _by_cell(loss: Tensor, cell: Tensor) -> Tensor:
    """Return each pixel's sum (B, H, W) of the loss over its cell."""
    flat, index = loss.flatten(1).double(), cell.flatten(1)
    sums = torch.zeros(len(loss), int(index.max()) + 1, dtype=flat.dtype, device=loss.device).scatter_add_(
        1, index, flat
    )
    return sums.gather(1, index).view_as(loss)


@register("attack", "random", traits=("weak", "black-box", "stochastic"))
@dataclass(frozen=True)
class Random:
    """A random image of the threat set; the model is not evaluated."""

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check_attack_inputs("random", model, batch, threat)
        if threat.radius == 0:
            return batch.image.detach().clone()
        return threat.start(batch.image, batch.image_seen, keys.fold("random"))

"""An attack on a class's IoU: each pixel counts for what its fall is worth to that figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from seawall.attacks.ascent import check_steps, climb
from seawall.attacks.losses import AnyLoss, PixelLoss, Sigmoid
from seawall.attacks.target import AWAY, Aim, as_found, check, usable
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import Ball, ThreatModel
from seawall.types import Batch, ModelSpec, SegmentationModel

COUNT = Sigmoid()
LEAST = 0.02
"""Worth below which pixels outside the class would have no say at all."""


@register("attack", "iou", smoke={"steps": 16})
@dataclass(frozen=True)
class IoUAttack:
    """Momentum steps that shrink along a cosine, on a loss weighted by what a pixel is worth to a class's IoU.

    With overlap TP and union U, a pixel of the class that falls takes 1 / U off the IoU, and any other pixel that is
    turned into the class takes IoU / U. So pixels outside count for `worth`, which should be near the IoU that is at stake:
    with a number for the IoU over many chips together, with "chip" for every chip's own IoU at each step. More than two
    classes are read as two: the class, and the best of the others.

    Args:
        klass: Class whose IoU is attacked; "" for water, or the last class where there is none.
        worth: Weight of a pixel outside the class; 1 counts all pixels alike, as accuracy does; "chip" follows the chip's IoU,
            and the image of the chip's lowest IoU is kept.
        loss: What to climb.
        steps: Gradient steps; one forward and one backward pass each.
        first: Length of the first step, as a share of eps.
        last: Length of the last step.
        momentum: What is kept of the sum of gradients at each step.
        random_start: Whether to start at a random image of the threat set, or at the clean one.
    """

    klass: str = ""
    worth: float | Literal["chip"] = 0.4
    loss: AnyLoss = COUNT
    steps: int = 150
    first: float = 1.0
    last: float = 0.02
    momentum: float = 0.6
    random_start: bool = False

    def __post_init__(self) -> None:
        check_steps("iou", self.steps)
        if not 0 < self.last <= self.first:
            raise UsageError(f"iou: expected 0 < last <= first, got {self.last} and {self.first}; steps only shrink")
        if (self.worth != "chip" and not 0 < self.worth <= 1) or not 0 <= self.momentum < 1:
            raise UsageError(
                f"iou: expected 0 < worth <= 1 and 0 <= momentum < 1, got {self.worth} and {self.momentum}; "
                'worth 1 is accuracy, "chip" the chip\'s own IoU, momentum 0 is none'
            )

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check("iou", model, batch, threat)
        klass = chosen(model.spec, self.klass)
        with as_found(model):  # also where a caller has turned gradients off
            return self._climb(model, usable(batch), threat, keys, klass)

    def _climb(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys, klass: int) -> Tensor:
        label = torch.where(batch.valid, (batch.label == klass).long(), 0)
        own = self.worth == "chip"
        worth = torch.full((len(batch), 1, 1), 1.0 if self.worth == "chip" else self.worth).to(batch.image)
        return climb(
            "iou", model, batch, threat, keys,
            goal=AWAY, loss=_Worthy(self.loss), mover=lambda: _Glide(self), steps=self.steps,
            random_start=self.random_start, aim=_Aim(label, batch.valid, klass=klass, worth=worth, own=own),
        )  # fmt: skip


def chosen(spec: ModelSpec, klass: str) -> int:
    """Return the index of a class; "" is water, or the last class where there is none."""
    return spec.klass(klass or ("water" if "water" in spec.classes else spec.classes[-1]))


@dataclass(frozen=True)
class _Aim(Aim):
    """Label 1 is the class, 0 everything else; a hit counts for its worth, (B, 1, 1), or for the chip's own IoU."""

    klass: int = 1
    worth: Tensor = field(default_factory=lambda: torch.ones(1, 1, 1))
    own: bool = False

    def select(self, indices: Tensor) -> _Aim:
        return replace(self, label=self.label[indices], valid=self.valid[indices], worth=self.worth[indices])

    def seen_with(self, logits: Tensor, progress: float) -> _Aim:
        worth = self._iou(logits.detach()).clamp_min(LEAST)[:, None, None] if self.own else self.worth
        return replace(self, progress=progress, worth=worth)

    def weight(self) -> Tensor:
        return torch.where(self.label == 1, 1.0, self.worth)

    def hits(self, logits: Tensor) -> Tensor:
        """Return how far (B,) the image is towards the goal, scaled so that only a fully broken image has its pixel count."""
        fell = ((logits.argmax(1) == self.klass) != (self.label == 1)) & self.valid
        count = self.valid.flatten(1).sum(1)
        if self.own:
            share = 1 - self._iou(logits)
        else:
            weight = self.weight() * self.valid
            share = (fell * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-9)
        whole = fell.flatten(1).sum(1) == count
        return torch.where(whole, count.to(share), share * count * (1 - 1e-6))

    def _iou(self, logits: Tensor) -> Tensor:
        """Return the IoU (B,) of the class on every chip; 1 where it is neither there nor predicted."""
        says, true = (logits.argmax(1) == self.klass) & self.valid, (self.label == 1) & self.valid
        overlap, union = ((says & true), (says | true))
        return (overlap.flatten(1).sum(1) + (~union).flatten(1).all(1)) / union.flatten(1).sum(1).clamp_min(1).to(
            self.worth
        )


@dataclass(frozen=True)
class _Worthy:
    loss: PixelLoss

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        if not isinstance(aim, _Aim):
            raise UsageError("iou: expected its own aim, got another; call the attack itself")
        return self.loss(_two(logits, aim.klass), aim) * aim.weight()


def _two(logits: Tensor, klass: int) -> Tensor:
    """Return (B, 2, H, W): the best other class, and the class; the prediction of the class stays what it was."""
    others = [k for k in range(logits.shape[1]) if k != klass]
    return torch.stack([logits[:, others].amax(1), logits[:, klass]], 1)


class _Glide:
    """Momentum steps whose length falls along half a cosine."""

    def __init__(self, attack: IoUAttack) -> None:
        self.attack, self._count = attack, 0
        self._velocity: Tensor | None = None

    def move(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor:
        own = self.attack
        turn = math.pi * self._count / max(1, own.steps - 1)
        step = own.last + (own.first - own.last) * (1 + math.cos(turn)) / 2
        self._count += 1
        unit = grad / grad.flatten(1).abs().mean(1).clamp_min(torch.finfo(grad.dtype).tiny)[:, None, None, None]
        self._velocity = unit if self._velocity is None else own.momentum * self._velocity + unit
        return ball.project(adv + step * ball.ascend(self._velocity))

    def select(self, left: Tensor) -> None:
        self._velocity = None if self._velocity is None else self._velocity[left]

"""An attack on a class's IoU: the loss of each pixel is weighted by what a change of it takes off the IoU."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from seawall.attacks.ascent import Momentum, check_steps, gradient_ascent
from seawall.attacks.losses import AttackLoss, LossSetting, SigmoidCount
from seawall.attacks.target import UNTARGETED, AttackTarget, attack_mode, autograd_ready, check_attack_inputs
from seawall.class_names import main_class
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import Ball, ThreatModel
from seawall.types import Batch, ModelSpec, SegmentationModel

SIGMOID_COUNT = SigmoidCount()
SMALLEST_WORTH = 0.02
"""Least weight of a pixel outside the class, where the IoU of its chip is near 0."""


@register("attack", "iou", smoke={"steps": 16})
@dataclass(frozen=True)
class IoUAttack:
    """Momentum steps that shrink along a cosine, on a loss weighted by what a pixel is worth to a class's IoU.

    With overlap TP and union U, a pixel of the class that is missed takes 1 / U off the IoU, and any other pixel that is
    turned into the class takes IoU / U. So pixels outside count for `worth`, which should be near the IoU that is at stake:
    with a number for the IoU over many chips together, with "chip" for every chip's own IoU at each step. More than two
    classes are read as two: the class, and the best of the others.

    Args:
        klass: Class whose IoU is attacked; "" for water, or the last class where there is none.
        worth: Weight of a pixel outside the class; 1 counts all pixels alike, as accuracy does; "chip" follows the chip's IoU,
            and the image of the chip's lowest IoU is kept.
        loss: Per-pixel loss to ascend.
        steps: Gradient steps; one forward and one backward pass each.
        first: Length of the first step, as a share of eps.
        last: Length of the last step.
        momentum: What is kept of the sum of gradients at each step.
        random_start: Whether to start at a random image of the threat set, or at the clean one.
    """

    klass: str = ""
    worth: float | Literal["chip"] = 0.4
    loss: LossSetting = SIGMOID_COUNT
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
        check_attack_inputs("iou", model, batch, threat)
        klass = attacked_class(model.spec, self.klass)
        with attack_mode(model):  # also where a caller has turned gradients off
            return self._ascend(model, autograd_ready(batch), threat, keys, klass)

    def _ascend(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys, klass: int) -> Tensor:
        label = torch.where(batch.valid, (batch.label == klass).long(), 0)
        own = self.worth == "chip"
        worth = torch.full((len(batch), 1, 1), 1.0 if self.worth == "chip" else self.worth).to(batch.image)
        return gradient_ascent(
            "iou", model, batch, threat, keys,
            goal=UNTARGETED, loss=_WorthWeightedLoss(self.loss), update=lambda: _CosineMomentum(self), steps=self.steps,
            random_start=self.random_start, target=_ClassTarget(label, batch.valid, klass=klass, worth=worth, own=own),
        )  # fmt: skip


def attacked_class(spec: ModelSpec, klass: str) -> int:
    """Return the index of a class; "" is the main one."""
    return spec.klass(klass or main_class(spec.classes))


@dataclass(frozen=True)
class _ClassTarget(AttackTarget):
    """Label 1 is the class, 0 everything else; a success counts for its worth, (B, 1, 1), or for the chip's own IoU."""

    klass: int = 1
    worth: Tensor = field(default_factory=lambda: torch.ones(1, 1, 1))
    own: bool = False

    def select(self, indices: Tensor) -> _ClassTarget:
        return replace(self, label=self.label[indices], valid=self.valid[indices], worth=self.worth[indices])

    def at_step(self, logits: Tensor, progress: float) -> _ClassTarget:
        worth = self._iou(logits.detach()).clamp_min(SMALLEST_WORTH)[:, None, None] if self.own else self.worth
        return replace(self, progress=progress, worth=worth)

    def weight(self) -> Tensor:
        return torch.where(self.label == 1, 1.0, self.worth)

    def successes(self, logits: Tensor) -> Tensor:
        """Return how far (B,) the image is towards the goal; only an image without a right pixel reaches its pixel count."""
        fooled = ((logits.argmax(1) == self.klass) != (self.label == 1)) & self.valid
        count = self.valid.flatten(1).sum(1)
        if self.own:
            share = 1 - self._iou(logits)
        else:
            weight = self.weight() * self.valid
            share = (fooled * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-9)
        whole = fooled.flatten(1).sum(1) == count
        return torch.where(whole, count.to(share), share * count * (1 - 1e-6))

    def _iou(self, logits: Tensor) -> Tensor:
        """Return the IoU (B,) of the class on every chip; 1 where it is neither there nor predicted."""
        predicted, true = (logits.argmax(1) == self.klass) & self.valid, (self.label == 1) & self.valid
        overlap, union = predicted & true, predicted | true
        return (overlap.flatten(1).sum(1) + (~union).flatten(1).all(1)) / union.flatten(1).sum(1).clamp_min(1).to(
            self.worth
        )


@dataclass(frozen=True)
class _WorthWeightedLoss:
    loss: AttackLoss

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        if not isinstance(target, _ClassTarget):
            raise UsageError("iou: expected its own target, got another; call the attack itself")
        return self.loss(_two_class_logits(logits, target.klass), target) * target.weight()


def _two_class_logits(logits: Tensor, klass: int) -> Tensor:
    """Return (B, 2, H, W): the best other class, and the class; the prediction of the class stays what it was."""
    others = [k for k in range(logits.shape[1]) if k != klass]
    return torch.stack([logits[:, others].amax(1), logits[:, klass]], 1)


class _CosineMomentum:
    """Momentum steps whose length falls along half a cosine."""

    def __init__(self, attack: IoUAttack) -> None:
        self.attack, self._count = attack, 0
        self._momentum = Momentum(attack.first, attack.momentum)

    def update(self, ball: Ball, adv: Tensor, grad: Tensor) -> Tensor:
        first, last = self.attack.first, self.attack.last
        turn = math.pi * self._count / max(1, self.attack.steps - 1)
        self._momentum.step = last + (first - last) * (1 + math.cos(turn)) / 2
        self._count += 1
        return self._momentum.update(ball, adv, grad)

    def select(self, kept: Tensor) -> None:
        self._momentum.select(kept)

"""An attack that knows the detector: as many wrong pixels as a detector of attacked chips lets through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import PlainValidator
from torch import Tensor

from seawall.attacks.ascent import check_steps
from seawall.attacks.losses import CROSS_ENTROPY, LossSetting
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
from seawall.attacks.uncertainty_losses import relative_entropy
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import Ball, ThreatModel, per_image
from seawall.types import Batch, SegmentationModel

WEIGHTS = (1e-2, 1e2)
"""Range of the weight of the gradient of the detector's score against that of the loss, both of mean size 1."""
PACE = 1.5
"""Factor of that weight from step to step."""
LAST_STEP = 0.1
"""Last step over the first: the border between detected and not detected is met by small steps alone."""


@runtime_checkable
class ChipDetector(Protocol):
    """Logits (B, K, H, W) and scores (B,) of images in multiples of the cut-off, with gradients; above 1 a chip is detected."""

    def examine(self, model: SegmentationModel, image: Tensor, image_seen: Tensor) -> tuple[Tensor, Tensor]: ...


def parse_chip_detector(given: object) -> ChipDetector | None:
    """Return a detector, or None; recipes, which are text, can name none.

    Raises:
        ValueError: Neither.
    """
    if given is not None and not isinstance(given, ChipDetector):
        raise ValueError("a detector with a method examine, such as an AttackDetector")
    return given


DetectorSetting = Annotated[ChipDetector | None, PlainValidator(parse_chip_detector)]


@dataclass(frozen=True)
class KeptEntropy:
    """A detector that knows the mean entropy of the clean chips, and sees whatever moves it: none can be stricter about entropy.

    Args:
        clean: (B,) mean entropy of the clean chips over its largest value.
        tolerance: Largest change that is not detected.
    """

    clean: Tensor
    tolerance: float

    def examine(self, model: SegmentationModel, image: Tensor, image_seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and the change of the mean entropy over the tolerance."""
        logits = model(image)
        return logits, (mean_entropy(logits, image_seen) - self.clean).abs() / self.tolerance


def mean_entropy(logits: Tensor, image_seen: Tensor) -> Tensor:
    """Return the mean relative entropy (B,) over seen pixels; 0 without any."""
    seen = image_seen.any(1)
    return (relative_entropy(logits) * seen).flatten(1).sum(1) / seen.flatten(1).sum(1).clamp_min(1)


@register("attack", "undetected-pgd", paper="arXiv:1705.07263", smoke={"steps": 12}, traits=("weak",))
@dataclass(frozen=True)
class UndetectedPGD:
    """PGD on the loss less the score of a detector; of the images that are not detected, the most adversarial one is kept.

    Both gradients are scaled to mean size 1, and the weight of the score's grows by half at each step at which the image is detected and
    falls where it is not, image by image, while the steps get smaller: a map that is surely wrong is as certain as the right one, and the
    way there leads through uncertain maps. The clean image is the start, and the result where every other one is detected.

    Args:
        goal: What the adversary wants.
        loss: Per-pixel loss to ascend.
        steps: Gradient steps; one forward and up to two backward passes each, and one forward pass in the end.
        step: First step length, as a share of eps.
        tolerance: Without a detector, the largest change of the mean entropy of a chip, as a share of the largest entropy.
        detector: The detector that is known to the adversary, such as an `AttackDetector`; without one, the clean mean entropy is kept.

    Paper: Carlini and Wagner 2017, arXiv:1705.07263, section 4, detectors as a part of the loss. Differs: the weight follows the
    detector from step to step instead of being searched for.
    """

    goal: Goal = UNTARGETED
    loss: LossSetting = CROSS_ENTROPY
    steps: int = 40
    step: float = 0.1
    tolerance: float = 0.01
    detector: DetectorSetting = None

    def __post_init__(self) -> None:
        check_steps("undetected-pgd", self.steps, self.step)
        if not self.tolerance > 0:
            raise UsageError(f"undetected-pgd: expected tolerance > 0, got {self.tolerance}; 0.01 is usual")

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check_attack_inputs("undetected-pgd", model, batch, threat)
        if threat.radius == 0:
            return batch.image.detach().clone()
        with attack_mode(model):
            batch = autograd_ready(batch)
            target = make_target(model, batch, self.goal)
            detector = self.detector
            if detector is None:
                with torch.no_grad():
                    logits = check_logits(model(batch.image), batch.image, len(model.spec.classes))
                detector = KeptEntropy(mean_entropy(logits, batch.image_seen), self.tolerance)
            return self._ascend(model, batch, target, threat.around(batch.image, batch.image_seen), detector)

    def _ascend(
        self, model: SegmentationModel, batch: Batch, target: AttackTarget, ball: Ball, detector: ChipDetector
    ) -> Tensor:
        adv, best = ball.x, ball.x.clone()
        most = torch.full((len(batch),), -1, device=adv.device)
        weight = torch.ones(len(batch), device=adv.device)
        count = target.valid.flatten(1).sum(1).clamp_min(1)
        for step in range(self.steps + 1):
            adv = adv.detach().requires_grad_(step < self.steps)
            logits, score = detector.examine(model, adv, batch.image_seen)
            logits = check_logits(logits, adv, len(model.spec.classes))
            passes, successes = score.detach() <= 1, target.at_step(logits, 0.0).successes(logits)
            better = passes & (successes > most)
            best, most = torch.where(per_image(better), adv.detach(), best), torch.where(better, successes, most)
            if step == self.steps:
                break
            check_gradient(logits)
            now = target.at_step(logits, step / self.steps)
            loss = torch.where(target.valid, self.loss(logits, now), 0.0).flatten(1).sum(1) / count
            (grad,) = torch.autograd.grad(loss.sum(), adv, retain_graph=True)
            (score_grad,) = torch.autograd.grad(score.sum(), adv)
            joint = of_mean_size_one(grad) - per_image(weight) * of_mean_size_one(score_grad)
            weight = torch.where(passes, weight / PACE, weight * PACE).clamp(*WEIGHTS)
            length = self.step * (1 - (1 - LAST_STEP) * step / self.steps)
            adv = ball.project(adv.detach() + length * ball.ascend(joint))
        return best


def of_mean_size_one(grad: Tensor) -> Tensor:
    """Return a gradient (B, C, H, W) over the mean of its absolute values, image by image; 0 where it is 0 or no finite number."""
    known = grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return known / per_image(known.abs().flatten(1).mean(1).clamp_min(torch.finfo(known.dtype).tiny))

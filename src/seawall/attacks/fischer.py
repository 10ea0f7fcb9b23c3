"""Attacks in steps of one grey level: Fischer's, which hides a class, and iterated FGSM."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from seawall.attacks.ascent import SteepestAscent, gradient_ascent
from seawall.attacks.losses import CROSS_ENTROPY
from seawall.attacks.target import (
    UNTARGETED_PREDICTION,
    AttackTarget,
    Goal,
    Hide,
    attack_mode,
    autograd_ready,
    check_attack_inputs,
    check_logits,
    predicted_classes,
)
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "fischer", paper="arXiv:1703.01101", smoke={"klass": "water"}, traits=("targeted",))
@dataclass(frozen=True)
class Fischer:
    """The iterative targeted method with a hiding target, in grey levels.

    From the clean image, ceil(min(eps + 4, 1.25 eps)) steps of one grey level down the cross-entropy to the target;
    the last image is returned. Chips where the class is not predicted come back clean.

    Args:
        klass: Class to hide.
        level: One grey level in data units; 1/255 where 0 to 1 reflectance was stretched to 0 to 255.
        noise: On the "whole" image; "restricted" to the pixels predicted as the class after it was found, as in the
            paper; or "inside" these pixels at every step, so that it is found for them.

    Paper: Fischer et al. 2017, arXiv:1703.01101, section 3. Differs: the loss counts valid pixels only, and the
    threat's bounds hold.
    """

    klass: str
    level: float = 1 / 255
    noise: Literal["whole", "restricted", "inside"] = "whole"

    def __post_init__(self) -> None:
        check_level("fischer", self.level)

    @property
    def goal(self) -> Hide:
        """What the adversary wants."""
        return Hide(self.klass)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        klass = model.spec.klass(self.klass)
        check_attack_inputs("fischer", model, batch, threat)
        with attack_mode(model):
            batch = autograd_ready(batch)
            with torch.no_grad():
                logits = check_logits(model(batch.image), batch.image, len(model.spec.classes))
            target = self.goal.class_map(model.spec, batch, logits)
            hidden = (predicted_classes(logits) == klass) & batch.seen
            present = (hidden & batch.valid).flatten(1).any(1)
            valid = batch.valid & present[:, None, None]
            step = self.level / max(threat.radius, 1e-30)
            adv = gradient_ascent(
                "fischer", model, replace(batch, valid=valid), threat, keys,
                goal=self.goal, loss=CROSS_ENTROPY, update=lambda: SteepestAscent(step), steps=grey_steps(threat, self.level),
                keep="last", target=AttackTarget(torch.where(valid, target, 0), valid, targeted=True),
                within=hidden if self.noise == "inside" else None,
            )  # fmt: skip
            return torch.where(hidden[:, None], adv, batch.image) if self.noise == "restricted" else adv


@register("attack", "ifgsm", paper="arXiv:1711.09856", smoke={"goal": "untargeted"})
@dataclass(frozen=True)
class IFGSM:
    """Steps of one grey level, ceil(min(eps + 4, 1.25 eps)) of them with eps in grey levels.

    Targeted with `goal = "towards <class>"` or `"least-likely"`; `"least-likely moving"` computes the target anew at
    every step. The last image is returned, as in the paper.

    Args:
        goal: What the adversary wants.
        level: One grey level in data units; 1/255 where 0 to 1 reflectance was stretched to 0 to 255.

    Paper: Arnab, Miksik, Torr 2018, arXiv:1711.09856, section 3. Differs: the loss counts valid pixels only.
    """

    goal: Goal = UNTARGETED_PREDICTION
    level: float = 1 / 255

    def __post_init__(self) -> None:
        check_level("ifgsm", self.level)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        step = self.level / max(threat.radius, 1e-30)
        return gradient_ascent(
            "ifgsm", model, batch, threat, keys,
            goal=self.goal, loss=CROSS_ENTROPY, update=lambda: SteepestAscent(step), steps=grey_steps(threat, self.level), keep="last",
        )  # fmt: skip


def grey_steps(threat: ThreatModel, level: float) -> int:
    """Return ceil(min(eps + 4, 1.25 eps)) with eps in grey levels, at least 1.

    Example:
        >>> [grey_steps(ThreatModel("linf", eps), 1.0) for eps in (0.25, 1, 2, 8, 16, 32)]
        [1, 2, 3, 10, 20, 36]
    """
    eps = threat.radius / level
    return max(1, math.ceil(round(min(eps + 4, 1.25 * eps), 6)))  # rounding noise must not add a step


def check_level(name: str, level: float) -> None:
    """Check that a grey level is a positive, finite number.

    Raises:
        UsageError: It is not.
    """
    if not 0 < level < math.inf:
        raise UsageError(f"{name}: expected level > 0, got {level}; give one grey level in data units, such as 0.004")

"""Fischer's attack: a class disappears, everything else stays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from seawall.attacks.aim import Aim, as_found, check, check_logits, classes, usable
from seawall.attacks.climb import Steepest, climb
from seawall.attacks.goal import Hide
from seawall.attacks.ifgsm import check_level, grey_steps
from seawall.losses.attack import CE
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
        check("fischer", model, batch, threat)
        with as_found(model):
            batch = usable(batch)
            with torch.no_grad():
                logits = check_logits(model(batch.image), batch.image, len(model.spec.classes))
            target = self.goal.pixels(model.spec, batch, logits)
            hidden = (classes(logits) == klass) & batch.seen
            present = (hidden & batch.valid).flatten(1).any(1)
            valid = batch.valid & present[:, None, None]
            step = self.level / max(threat.radius, 1e-30)
            adv = climb(
                "fischer", model, replace(batch, valid=valid), threat, keys,
                goal=self.goal, loss=CE, mover=lambda: Steepest(step), steps=grey_steps(threat, self.level),
                keep="last", aim=Aim(torch.where(valid, target, 0), valid, targeted=True),
                within=hidden if self.noise == "inside" else None,
            )  # fmt: skip
            return torch.where(hidden[:, None], adv, batch.image) if self.noise == "restricted" else adv

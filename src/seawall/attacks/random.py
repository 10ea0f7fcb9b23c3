"""Random noise: the control that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from seawall.attacks.aim import check
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@register("attack", "random", traits=("weak", "black-box", "stochastic"))
@dataclass(frozen=True)
class Random:
    """A random image of the threat set; it never asks the model."""

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check("random", model, batch, threat)
        if threat.radius == 0:
            return batch.image.detach().clone()
        return threat.start(batch.image, batch.seen, keys.fold("random"))

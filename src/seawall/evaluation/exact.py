"""The exact worst case of models whose pixels are independent and have a closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seawall.errors import ModelError
from seawall.models.water_index import ThresholdNet, extreme_images
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


def exact_worst_images(model: SegmentationModel, batch: Batch, threat: ThreatModel) -> tuple[Tensor, ...]:
    """Return images of the threat set among which is the worst case of every pixel; none where there is no closed form."""
    if not isinstance(model, ThresholdNet):
        return ()
    return extreme_images(model, threat.around(batch.image, batch.image_seen))


@dataclass(frozen=True)
class ExactWorstCase:
    """The exact worst case as an attack: each pixel gets the values that make it wrong, where any in the threat set do.

    Pixels are independent, so all of them are wrong together, and every IoU is the lowest that the threat allows.
    """

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        """Return the images (B, C, H, W).

        Raises:
            ModelError: The worst case of this model under this threat has no closed form.
        """
        images = exact_worst_images(model, batch, threat)
        if not images:
            raise ModelError(
                f"exact: expected a threshold model under a linf threat, got {type(model).__name__} under {threat}; use a suite"
            )
        worst = batch.image.clone()
        with torch.no_grad():
            for image in images:
                wrong = model(image).argmax(1) != batch.label
                worst = torch.where(wrong[:, None], image, worst)
        return worst

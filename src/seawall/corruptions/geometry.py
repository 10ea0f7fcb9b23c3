"""Geometry: shifts, rotation, elastic warps, lens and transparency distortion, nodata wedges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.corruptions.severity import check_worst, linear_level
from seawall.corruptions.spatial import shift_batch
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Unit


def drawn_direction(keys: Keys, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return sine and cosine (B,) of a direction that each chip draws."""
    angle = keys.fold("direction").uniform((1,), 0.0, 2 * math.pi)[:, 0].to(like)
    return torch.sin(angle), torch.cos(angle)


def centered_grid(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the rows (H, 1) and columns (1, W) of pixels from the middle of a chip."""
    height, width = batch.image.shape[2:]
    rows = torch.arange(height, dtype=batch.image.dtype, device=batch.image.device) - (height - 1) / 2
    cols = torch.arange(width, dtype=batch.image.dtype, device=batch.image.device) - (width - 1) / 2
    return rows[:, None], cols[None]


@register("corruption", "shift", smoke={}, traits=("geometric",))
@final
@dataclass(frozen=True)
class Translation:
    """The whole chip is moved by a fraction of a pixel or more, in a direction that each chip draws.

    Reflectance is resampled by a phase in the frequency domain, which does not blur; decibels bilinearly in power.

    Quantity: length of the shift, 0 to 2 pixels. Label, seen and valid move with the image; what comes in from outside
    is unseen.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.

    Source: Sentinel-2 geolocation, 12.5 m (2 sigma) with ground control points, 20 m without.
    """

    image_unit: Unit = "reflectance"
    worst: float = 2.0

    quantity: ClassVar[str] = "length of the shift"
    unit: ClassVar[str] = "px"
    stage: ClassVar[Stage] = "geometry"

    def __post_init__(self) -> None:
        check_worst("shift", self.worst, 0.0, 64.0)

    def level(self, severity: float) -> float:
        """Return the length of the shift in pixels."""
        return linear_level("shift", severity, 0.0, self.worst)

    def __call__(self, batch: Batch, severity: float, keys: Keys) -> Batch:
        """Return the moved batch."""
        length = self.level(severity)
        if severity == 0:
            return batch
        down, right = (length * part for part in drawn_direction(keys.fold("shift"), batch.image))
        return shift_batch(batch, down, right, self.image_unit, moves_label=True)

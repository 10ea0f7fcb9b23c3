"""A U-Net that sees normalized differences of bands, with a bounded slope, beside the bands."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from seawall.errors import ModelError, UsageError
from seawall.models.blocks import FurtherBands
from seawall.models.unet import UNet
from seawall.registry import register
from seawall.types import ModelSpec


@register("model", "index-unet", smoke={"width": 4, "depth": 2})
@dataclass(frozen=True)
class IndexUNet(UNet):
    """U-Net on the standardized bands and on (a - b) / (a + b + floor) of every pair of bands.

    A normalized difference cancels illumination, but over dark water its slope grows without a bound, and so does what
    a small change of a band does to it. With the floor the slope is at most 1 / floor.

    Args:
        width: As of "unet", like the other settings that are not listed here.
        floor: Reflectance that is added to the sum of the two bands; the smaller, the steeper over dark surfaces.
    """

    floor: float = 0.1
    name: ClassVar[str] = "index-unet"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1e-3 <= self.floor <= 10:
            raise UsageError(
                f"{self.name}.floor: expected a reflectance in [0.001, 10], got {self.floor}; 0.1 is common"
            )

    def features(self, spec: ModelSpec) -> NormalizedDifferences:
        """Return what computes the normalized differences."""
        if spec.unit not in ("reflectance", "stretched") or len(spec.bands) < 2:
            raise ModelError(
                f"{self.name}: expected at least two optical bands, got {', '.join(spec.bands)} in {spec.unit}; use unet"
            )
        return NormalizedDifferences(self.floor)


class NormalizedDifferences(FurtherBands):
    """The normalized difference of every pair of bands, with a floor under the denominator.

    Args:
        floor: In data units; the slope with respect to a band is at most 1 / floor.
    """

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def count(self, bands: int) -> int:
        """Return the number of pairs."""
        return bands * (bands - 1) // 2

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C * (C - 1) / 2, H, W), each in (-1, 1); values below 0 count as 0."""
        bands = image.clamp_min(0).unbind(1)
        return torch.stack([(a - b) / (a + b + self.floor) for a, b in combinations(bands, 2)], 1)

"""A U-Net that sees normalized differences of bands, with a bounded slope, beside the bands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from seawall.errors import ModelError, UsageError
from seawall.models.blocks import Norm, Segmenter, check_bands_and_classes, check_sizes, receptive_radius, settings_of
from seawall.models.unet import UNet, UNetLayers
from seawall.registry import register
from seawall.types import ModelSpec


@register("model", "index-unet", smoke={"width": 4, "depth": 2})
@dataclass(frozen=True)
class IndexUNet:
    """U-Net on the standardized bands and on (a - b) / (a + b + floor) of every pair of bands.

    A normalized difference cancels illumination, but over dark water its slope grows without a bound, and so does what
    a small change of a band does to it. With the floor the slope is at most 1 / floor.

    Args:
        floor: Reflectance that is added to the sum of the two bands; the smaller, the steeper over dark surfaces.
        width: Features at full size; each halving doubles them.
        depth: Number of halvings of the image.
        norm: As of "unet".
        dropout: As of "unet".
    """

    floor: float = 0.1
    width: int = 16
    depth: int = 3
    norm: Norm = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes("index-unet", {"width": self.width, "depth": self.depth}, self.dropout)
        if not 1e-3 <= self.floor <= 10:
            raise UsageError(
                f"index-unet.floor: expected a reflectance in [0.001, 10], got {self.floor}; 0.1 is common"
            )

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes("index-unet", spec)
        if spec.unit not in ("reflectance", "stretched") or len(spec.bands) < 2:
            raise ModelError(
                f"index-unet: expected at least two optical bands, got {', '.join(spec.bands)} in {spec.unit}; use unet"
            )
        spec = replace(spec, architecture="index-unet", settings=settings_of(asdict(self)))
        bands = len(spec.bands)
        unet = UNet(self.width, self.depth, self.norm, self.dropout)
        layers = UNetLayers(bands + bands * (bands - 1) // 2, len(spec.classes), unet)
        reach = receptive_radius(self.depth, 2, self.norm)
        return Segmenter(spec, layers, 2**self.depth, reach, NormalizedDifferences(self.floor))


class NormalizedDifferences(nn.Module):
    """The normalized difference of every pair of bands, with a floor under the denominator.

    Args:
        floor: In data units; the slope with respect to a band is at most 1 / floor.
    """

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, C * (C - 1) / 2, H, W), each in (-1, 1); values below 0 count as 0."""
        bands = image.clamp_min(0).unbind(1)
        return torch.stack([(a - b) / (a + b + self.floor) for a, b in combinations(bands, 2)], 1)

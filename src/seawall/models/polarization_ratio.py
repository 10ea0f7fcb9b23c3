"""U-Nets that see the ratio of the two polarizations of a radar image beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seawall.decibels import to_power
from seawall.errors import ModelError
from seawall.models.blocks import FurtherBands
from seawall.models.unet import UNet
from seawall.models.unet_plus_plus import UNetPlusPlus
from seawall.registry import register
from seawall.types import ModelSpec, single_unit

LEAST_POWER = 1e-6
"""Backscatter below which a ratio has no meaning, -60 dB; it also keeps the quotient finite."""


@register("model", "ratio-unet", paper="arXiv:2107.08369", smoke={"width": 4, "depth": 2}, traits=("radar",))
@dataclass(frozen=True)
class RatioUNet(UNet):
    """U-Net on VV, VH and 1 - clip(VH / VV, 0, 1), the input of Paul and Ganju.

    Decibels are divided as linear power, 10^((VH - VV) / 10); the paper divides 8-bit numbers, as is done here where the unit is
    "stretched". Its network is `encoder = "mobilenetv2"`.

    Args:
        width: As of "unet", like the other settings.
    """

    name: ClassVar[str] = "ratio-unet"

    def features(self, spec: ModelSpec) -> PolarizationRatio:
        """Return what computes the ratio."""
        return ratio_of(self.name, spec)


@register(
    "model",
    "ratio-unet++",
    paper="arXiv:2107.08369",
    smoke={"encoder": "plain", "width": 4, "depth": 2},
    traits=("radar",),
)
@dataclass(frozen=True)
class RatioUNetPlusPlus(UNetPlusPlus):
    """U-Net++ on VV, VH and 1 - clip(VH / VV, 0, 1), the second network of Paul and Ganju; the ratio is that of "ratio-unet".

    Args:
        encoder: As of "unet++", like the other settings.
    """

    name: ClassVar[str] = "ratio-unet++"

    def features(self, spec: ModelSpec) -> PolarizationRatio:
        """Return what computes the ratio."""
        return ratio_of(self.name, spec)


def ratio_of(name: str, spec: ModelSpec) -> PolarizationRatio:
    """Return what computes the ratio for a model.

    Raises:
        ModelError: Its image lacks one of the polarizations.
    """
    if not {"VV", "VH"} <= set(spec.bands):
        raise ModelError(f"{name}: expected the bands VV and VH, got {', '.join(spec.bands)}; use unet")
    return PolarizationRatio(spec)


class PolarizationRatio(FurtherBands):
    """1 - clip(VH / VV, 0, 1) as a band (B, 1, H, W).

    Args:
        spec: Bands and unit of the image.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.at = spec.bands.index("VV"), spec.bands.index("VH")
        self.unit = single_unit(spec.unit, "polarization ratio")

    def count(self, bands: int) -> int:
        """Return 1."""
        return 1

    def forward(self, image: Tensor) -> Tensor:
        """Return the band."""
        power = to_power(image, self.unit)
        co, cross = (power[:, [band]] for band in self.at)
        return 1 - torch.clamp(cross / co.clamp_min(LEAST_POWER), 0, 1)

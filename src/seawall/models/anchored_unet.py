"""A linear classifier of each pixel's bands, whose logits a U-Net corrects by a bounded amount."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.models.unet import UNet, unet_layers
from seawall.registry import register

LINEAR_GAIN = 10.0
"""Factor of the linear logits: at the learning rates of a U-Net a handful of weights would otherwise be slow to grow."""


@register("model", "anchored-unet", smoke={"width": 4, "depth": 2})
@dataclass(frozen=True)
class AnchoredUNet(UNet):
    """Logits of a linear classifier of each pixel, plus a U-Net's logits that are bounded by a hyperbolic tangent.

    The linear part has a known slope: with two classes, where the difference of its logits exceeds 2 `bound` plus eps
    times the 1-norm of the difference of their weights, no change of eps per band moves the pixel's class, whatever the
    U-Net makes of the neighborhood.

    Args:
        width: As of "unet", like the other settings that are not listed here.
        bound: Largest absolute value of a correction, in units of the logits.
    """

    bound: float = 1.0
    name: ClassVar[str] = "anchored-unet"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.bound < 100:
            raise UsageError(f"{self.name}.bound: expected a number in (0, 100), got {self.bound}; 1 is common")

    def layers(self, bands: int, classes: int) -> nn.Module:
        """Return the linear classifier and the U-Net."""
        return AnchoredLayers(bands, classes, self, self.bound)


class AnchoredLayers(nn.Module):
    """The linear classifier and the U-Net on the standardized image; the correction is 0 before training.

    The names of submodules are those of the tensors in weights files.
    """

    def __init__(self, bands: int, classes: int, unet: UNet, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.linear = nn.Conv2d(bands, classes, 1)
        self.unet = unet_layers(bands, classes, unet)
        nn.init.zeros_(self.unet.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides can be halved `depth` times."""
        correction: Tensor = self.bound * torch.tanh(self.unet(x) / self.bound)
        return LINEAR_GAIN * self.linear(x) + correction  # type: ignore[no-any-return]

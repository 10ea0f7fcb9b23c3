"""The U-Net: an encoder and a decoder with skip connections."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from seawall.models.blocks import (
    Norm,
    Segmenter,
    check_bands_and_classes,
    check_sizes,
    double_conv,
    settings_of,
)
from seawall.models.cell_window import receptive_radius
from seawall.registry import register
from seawall.types import ModelSpec


@register("model", "unet", paper="arXiv:1505.04597", smoke={"width": 4, "depth": 2})
@dataclass(frozen=True)
class UNet:
    """U-Net with two normalized 3x3 convolutions per block.

    Paper: Ronneberger et al. 2015, arXiv:1505.04597. Differs: convolutions keep the size, every
    convolution is normalized, and the width is a setting.

    Args:
        width: Features at full size; each halving doubles them.
        depth: Number of halvings of the image.
        norm: "pixel" normalizes each pixel's channels, "batch" over the batch, "group" over the image; "none" leaves norms out.
        dropout: Share of feature maps dropped in the decoder during training.
    """

    width: int = 16
    depth: int = 3
    norm: Norm = "batch"
    dropout: float = 0.0
    name: ClassVar[str] = "unet"

    def __post_init__(self) -> None:
        check_sizes(self.name, {"width": self.width, "depth": self.depth}, self.dropout)

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes(self.name, spec)
        spec = replace(spec, architecture=self.name, settings=settings_of(asdict(self)))
        layers = self.layers(len(spec.bands), len(spec.classes))
        return Segmenter(spec, layers, 2**self.depth, receptive_radius(layers), self.features())

    def layers(self, bands: int, classes: int) -> nn.Module:
        """Return the layers between the standardized image and the logits."""
        return UNetLayers(bands, classes, self)

    def features(self) -> nn.Module | None:
        """Return what computes further bands from the image, which the layers see beside it; None where nothing does."""
        return None


class UNetLayers(nn.Module):
    """The layers of a U-Net between the standardized image and the logits; `rise` upsamples.

    The names of submodules are those of the tensors in weights files.
    """

    def __init__(self, bands: int, classes: int, settings: UNet) -> None:
        super().__init__()
        widths = [settings.width * 2**level for level in range(settings.depth + 1)]
        norm = settings.norm
        self.stem = double_conv(bands, widths[0], norm)
        self.down = nn.ModuleList(double_conv(a, b, norm) for a, b in pairwise(widths))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(double_conv(2 * a, a, norm, settings.dropout) for a in widths[:-1])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides can be halved `depth` times."""
        x = self.stem(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(nn.functional.max_pool2d(x, 2))
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([skips[level], self.rise[level](x)], 1))
        return self.head(x)  # type: ignore[no-any-return]

"""The dense U-Net: within a block, every convolution reads the block's input and all earlier features."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from seawall.models.blocks import (
    Norm,
    Segmenter,
    check_bands_and_classes,
    check_sizes,
    conv_norm_relu,
    make_norm,
    settings_of,
)
from seawall.models.cell_window import receptive_radius
from seawall.registry import register
from seawall.types import ModelSpec


@register("model", "dense-unet", paper="arXiv:1611.09326", smoke={"width": 4, "depth": 2, "growth": 4, "layers": 2})
@dataclass(frozen=True)
class DenseUNet:
    """U-Net with dense blocks: each convolution reads the block's input and the output of all earlier convolutions.

    Paper: Jégou et al. 2017, arXiv:1611.09326. Differs: as many convolutions in every block, a 1x1 convolution
    closes each block so that the width stays a setting, and upsampled features are concatenated as in a U-Net.

    Args:
        width: Features at full size; each halving doubles them.
        depth: Number of halvings of the image.
        growth: Features that each convolution adds at full size; doubled with each halving.
        layers: Convolutions per block.
        norm: "pixel" normalizes each pixel's channels, "batch" over the batch, "group" over the image; "none" leaves norms out.
        dropout: Share of feature maps dropped in the decoder during training.
    """

    width: int = 16
    depth: int = 3
    growth: int = 8
    layers: int = 3
    norm: Norm = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = {"width": self.width, "depth": self.depth, "growth": self.growth, "layers": self.layers}
        check_sizes("dense-unet", sizes, self.dropout)

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes("dense-unet", spec)
        spec = replace(spec, architecture="dense-unet", settings=settings_of(asdict(self)))
        layers = DenseUNetLayers(len(spec.bands), len(spec.classes), self)
        return Segmenter(spec, layers, 2**self.depth, receptive_radius(layers))


class DenseBlock(nn.Module):
    """Densely connected convolutions, then a 1x1 convolution (transition).

    The names of submodules are those of the tensors in weights files.
    """

    def __init__(self, inside: int, outside: int, growth: int, layers: int, norm: Norm, dropout: float = 0.0) -> None:
        super().__init__()
        self.grow = nn.ModuleList(conv_norm_relu(inside + i * growth, growth, norm) for i in range(layers))
        self.close = nn.Sequential(
            nn.Conv2d(inside + layers * growth, outside, 1, bias=norm == "none"),
            make_norm(norm, outside),
            nn.ReLU(inplace=True),
            *([nn.Dropout2d(dropout)] if dropout else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the block's outer width, same height and width."""
        features = [x]
        for layer in self.grow:
            features.append(layer(torch.cat(features, 1)))
        return self.close(torch.cat(features, 1))  # type: ignore[no-any-return]


class DenseUNetLayers(nn.Module):
    """The layers of a dense U-Net between the standardized image and the logits; `rise` upsamples."""

    def __init__(self, bands: int, classes: int, settings: DenseUNet) -> None:
        super().__init__()
        widths = [settings.width * 2**level for level in range(settings.depth + 1)]
        growths = [settings.growth * 2**level for level in range(settings.depth + 1)]
        layers, norm = settings.layers, settings.norm
        self.stem = conv_norm_relu(bands, widths[0], norm)
        self.down = nn.ModuleList(
            DenseBlock(inside, outside, growth, layers, norm)
            for inside, outside, growth in zip([widths[0], *widths], widths, growths, strict=False)
        )
        self.rise = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            DenseBlock(2 * a, a, growth, layers, norm, settings.dropout)
            for a, growth in zip(widths[:-1], growths, strict=False)
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides can be halved `depth` times."""
        x = self.down[0](self.stem(x))
        skips = []
        for down in list(self.down)[1:]:
            skips.append(x)
            x = down(nn.functional.max_pool2d(x, 2))
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([skips[level], self.rise[level](x)], 1))
        return self.head(x)  # type: ignore[no-any-return]

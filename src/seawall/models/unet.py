"""The U-Net: an encoder and a decoder with skip connections."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from seawall.models.blocks import (
    FurtherBands,
    Norm,
    Segmenter,
    bands_seen,
    check_bands_and_classes,
    double_conv,
    settings_of,
)
from seawall.models.cell_window import receptive_radius
from seawall.models.encoders import OWN_DEPTH, OWN_WIDTH, Encoder, EncoderName, check_encoder, make_encoder
from seawall.registry import register
from seawall.types import ModelSpec

PLAIN_DEPTH = 3
"""Halvings of a plain U-Net by default."""


@register("model", "unet", paper="arXiv:1505.04597", smoke={"width": 4, "depth": 2})
@dataclass(frozen=True)
class UNet:
    """U-Net with two normalized 3x3 convolutions per block, or with the encoder of a classification network.

    A plain U-Net upsamples by transposed convolutions to the widths of its encoder. With another encoder, features are
    upsampled by repetition and the decoder has 256, 128, 64, 32 and 16 features at strides 16 to 1, which are those of
    segmentation-models-pytorch; VGG-16 has a skip connection at full size too.

    Paper: Ronneberger et al. 2015, arXiv:1505.04597. Differs: convolutions keep the size, every
    convolution is normalized, and the width is a setting.

    Args:
        width: Features of the first convolution, by which all others go; 0 is the encoder's own: 16 if plain, 64 for
            ResNets and VGG-16, 32 for MobileNetV2.
        depth: Number of halvings of the image; 0 is 3 if plain, 5 for the others.
        norm: "pixel" normalizes each pixel's channels, "batch" over the batch, "group" over the image; "none" leaves norms out.
        dropout: Share of feature maps dropped in the decoder during training.
        encoder: One of `seawall.models.encoders.make_encoder`.
    """

    width: int = 0
    depth: int = 0
    norm: Norm = "batch"
    dropout: float = 0.0
    encoder: EncoderName = "plain"
    name: ClassVar[str] = "unet"

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder, self.norm, self.width, self.depth, self.dropout)
        # Weights files state the sizes, so that they stay readable where the own sizes of an encoder change.
        object.__setattr__(self, "width", self.width or OWN_WIDTH[self.encoder])
        object.__setattr__(self, "depth", self.depth or (PLAIN_DEPTH if self.encoder == "plain" else OWN_DEPTH))

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes(self.name, spec)
        settings = asdict(self)
        if self.encoder == "plain":  # files and unfinished trainings of plain U-Nets are from before there was a choice
            settings.pop("encoder")
        spec = replace(spec, architecture=self.name, settings=settings_of(settings))
        features = self.features(spec)
        layers = self.layers(bands_seen(spec, features), len(spec.classes))
        return Segmenter(spec, layers, 2**self.depth, receptive_radius(layers), features)

    def layers(self, bands: int, classes: int) -> nn.Module:
        """Return the layers between the standardized image and the logits."""
        return unet_layers(bands, classes, self)

    def features(self, spec: ModelSpec) -> FurtherBands | None:
        """Return what computes further bands from the image, which the layers see beside it; None where nothing does.

        Raises:
            ModelError: The image lacks what they are computed from.
        """
        return None


def unet_layers(bands: int, classes: int, settings: UNet) -> UNetLayers | EncoderUNetLayers:
    """Return the layers of a U-Net by its settings, with a layer `head` at the end."""
    if settings.encoder == "plain":
        return UNetLayers(bands, classes, settings)
    encoder = make_encoder(settings.encoder, bands, settings.norm, width=settings.width, depth=settings.depth)
    return EncoderUNetLayers(encoder, classes, settings.norm, settings.dropout)


class UNetLayers(nn.Module):
    """The layers of a plain U-Net between the standardized image and the logits; `rise` upsamples.

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


class EncoderUNetLayers(nn.Module):
    """The layers of a U-Net with the encoder of a classification network.

    The names of submodules are those of the tensors in weights files.
    """

    def __init__(self, encoder: Encoder, classes: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        inside, *skips = reversed(encoder.channels)
        skips += [0] if encoder.strides[0] > 1 else []  # at full size there may be nothing to skip from
        self.up = nn.ModuleList()
        for level, skip in zip(reversed(range(len(skips))), skips, strict=True):
            outside = decoder_width(2**level, encoder.scale)
            self.up.append(double_conv(inside + skip, outside, norm, dropout))
            inside = outside
        self.head = nn.Conv2d(inside, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides are multiples of the encoder's last stride."""
        x, *skips = reversed(self.encoder(x))
        for level, up in enumerate(self.up):
            x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
            x = up(torch.cat([x, skips[level]], 1) if level < len(skips) else x)
        return self.head(x)  # type: ignore[no-any-return]


def decoder_width(stride: int, scale: float) -> int:
    """Return the features of a decoder at a stride: 256 at stride 16, half as many with each doubling of the size.

    Example:
        >>> decoder_width(16, 1.0), decoder_width(1, 1.0), decoder_width(4, 0.125)
        (256, 16, 8)
    """
    return max(1, round(16 * stride * scale))

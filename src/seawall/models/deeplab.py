"""DeepLabV3+: dilated convolutions of several rates side by side, and a small decoder with the features of stride 4."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from seawall.models.blocks import (
    Norm,
    Segmenter,
    check_bands_and_classes,
    conv_norm_relu,
    settings_of,
    upsample,
)
from seawall.models.encoders import OWN_WIDTH, Encoder, EncoderName, check_encoder, make_encoder
from seawall.registry import register
from seawall.types import ModelSpec

RATES = (6, 12, 18)
"""Dilations at output stride 16."""


@register("model", "deeplabv3+", paper="arXiv:1802.02611", smoke={"width": 4})
@dataclass(frozen=True)
class DeepLabV3Plus:
    """DeepLabV3+: atrous spatial pyramid pooling at stride 16, then a decoder at stride 4.

    The pyramid is a 1x1 convolution, separable 3x3 convolutions with dilations 6, 12 and 18, and the mean over the whole
    image, so that a logit depends on the whole image, and tiles of a scene have other means than the scene.

    Paper: Chen et al. 2018, arXiv:1802.02611, section 3: 256 features, 48 of stride 4, two separable 3x3 convolutions
    after both are joined. Differs: encoders are smaller than Xception, and separable convolutions have no norm between
    their two parts, as in segmentation-models-pytorch, whose number of parameters is the same.

    Args:
        encoder: One of `seawall.models.encoders.make_encoder`.
        width: Features of its first convolution, by which all others go; 0 is the encoder's own: 64 for ResNets and
            VGG-16, 32 for MobileNetV2, 16 for the plain one.
        norm: As of "unet".
        dropout: Share of feature maps dropped after the pyramid during training.
    """

    encoder: EncoderName = "resnet18"
    width: int = 0
    norm: Norm = "batch"
    dropout: float = 0.1
    name: ClassVar[str] = "deeplabv3+"

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder, self.norm, self.width, dropout=self.dropout)
        object.__setattr__(self, "width", self.width or OWN_WIDTH[self.encoder])

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes(self.name, spec)
        spec = replace(spec, architecture=self.name, settings=settings_of(asdict(self)))
        encoder = make_encoder(self.encoder, len(spec.bands), self.norm, width=self.width, output_stride=16)
        layers = DeepLabLayers(encoder, len(spec.classes), self.norm, self.dropout)
        return Segmenter(spec, layers, encoder.strides[-1], reach=None)


class DeepLabLayers(nn.Module):
    """The layers of a DeepLabV3+ between the standardized image and the logits.

    The names of submodules are those of the tensors in weights files.
    """

    def __init__(self, encoder: Encoder, classes: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.fine = encoder.strides.index(4)
        features, skipped = (max(1, round(full * encoder.scale)) for full in (256, 48))
        self.pyramid = AtrousPyramid(encoder.channels[-1], features, norm, dropout)
        self.skip = conv_norm_relu(encoder.channels[self.fine], skipped, norm, 1)
        self.refine = nn.Sequential(
            separable_conv(features + skipped, features, norm), separable_conv(features, features, norm)
        )
        self.head = nn.Conv2d(features, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides are multiples of 16."""
        features = self.encoder(x)
        x = torch.cat([upsample(self.pyramid(features[-1]), 4), self.skip(features[self.fine])], 1)
        return upsample(self.head(self.refine(x)), 4)


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: convolutions of several dilations and the image's mean, joined by a 1x1 convolution."""

    def __init__(self, inside: int, outside: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm_relu(inside, outside, norm, 1)])
        self.branches.extend(separable_conv(inside, outside, norm, dilation) for dilation in RATES)
        self.mean = conv_norm_relu(inside, outside, norm, 1)
        joined = (len(self.branches) + 1) * outside
        self.join = nn.Sequential(conv_norm_relu(joined, outside, norm, 1), nn.Dropout2d(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same size."""
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.join(torch.cat([*(branch(x) for branch in self.branches), mean], 1))  # type: ignore[no-any-return]


def separable_conv(inside: int, outside: int, norm: Norm, dilation: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution of each feature, a 1x1 convolution of all, norm, ReLU."""
    each = nn.Conv2d(inside, inside, 3, padding=dilation, dilation=dilation, groups=inside, bias=False)
    return nn.Sequential(each, conv_norm_relu(inside, outside, norm, 1))

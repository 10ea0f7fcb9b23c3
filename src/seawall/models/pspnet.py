"""PSPNet: a dilated encoder whose features are joined with their means over the whole image and over its parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.losses.auxiliary import TrainingLogits
from seawall.models.blocks import (
    Norm,
    Segmenter,
    check_auxiliary,
    check_bands_and_classes,
    conv_norm_relu,
    settings_of,
    upsample,
)
from seawall.models.encoders import (
    OWN_WIDTH,
    Encoder,
    EncoderName,
    OutputStride,
    check_encoder,
    make_encoder,
)
from seawall.registry import register
from seawall.types import ModelSpec

PYRAMID = (1, 2, 3, 6)
"""Parts of a side, for each of which there is a mean."""


@register("model", "pspnet", paper="arXiv:1612.01105", smoke={"width": 4})
@dataclass(frozen=True)
class PSPNet:
    """PSPNet: pyramid pooling over 1, 2 x 2, 3 x 3 and 6 x 6 parts of the image, with an auxiliary loss in training.

    A logit depends on the whole image, so that tiles of a scene have other means than the scene. The auxiliary head is on the
    stage before the last; it is passed by except in `seawall.losses.auxiliary.training_logits`.

    Paper: Zhao et al. 2017, arXiv:1612.01105, section 3: widths follow from those of the encoder as for its ResNet-50 (a
    quarter of the last stage for each mean and for the last convolution, a quarter of the stage before it for the auxiliary
    head). Differs: the first convolution of a ResNet is 7x7, as in He et al. 2016, and the default encoder is smaller.

    Args:
        encoder: One of `seawall.models.encoders.make_encoder`.
        width: Features of its first convolution, by which all others go; 0 is the encoder's own: 64 for ResNets and
            VGG-16, 32 for MobileNetV2, 16 for the plain one.
        norm: As of "unet".
        dropout: Share of feature maps dropped before the heads during training.
        output_stride: Pixels per cell of the features that are pooled.
        auxiliary: Weight of the auxiliary loss; 0 has no auxiliary head.
    """

    encoder: EncoderName = "resnet18"
    width: int = 0
    norm: Norm = "batch"
    dropout: float = 0.1
    output_stride: OutputStride = 8
    auxiliary: float = 0.4
    name: ClassVar[str] = "pspnet"

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder, self.norm, self.width, dropout=self.dropout)
        check_auxiliary(self.name, self.auxiliary)
        object.__setattr__(self, "width", self.width or OWN_WIDTH[self.encoder])

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes(self.name, spec)
        spec = replace(spec, architecture=self.name, settings=settings_of(asdict(self)))
        encoder = make_encoder(
            self.encoder, len(spec.bands), self.norm, width=self.width, output_stride=self.output_stride
        )
        make = SupervisedPSPNetLayers if self.auxiliary else PSPNetLayers
        return Segmenter(spec, make(encoder, len(spec.classes), self), encoder.strides[-1], reach=None)


class PSPNetLayers(nn.Module):
    """The layers of a PSPNet between the standardized image and the logits.

    The names of submodules are those of the tensors in weights files.
    """

    def __init__(self, encoder: Encoder, classes: int, settings: PSPNet) -> None:
        super().__init__()
        self.encoder = encoder
        inside = encoder.channels[-1]
        each = max(1, inside // len(PYRAMID))
        self.pools = nn.ModuleList(conv_norm_relu(inside, each, settings.norm, 1) for _ in PYRAMID)
        self.head = classifier(inside + len(PYRAMID) * each, each, classes, settings)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides are multiples of the output stride."""
        return self.pooled_logits(self.encoder(x)[-1])

    def pooled_logits(self, x: Tensor) -> Tensor:
        """Return the logits of the encoder's last features, at the size of the image."""
        size = (x.shape[-2], x.shape[-1])
        means = (pool(part_means(x, parts)) for parts, pool in zip(PYRAMID, self.pools, strict=True))
        resized = [functional.interpolate(mean, size, mode="bilinear") for mean in means]
        return upsample(self.head(torch.cat([x, *resized], 1)), self.encoder.strides[-1])


class SupervisedPSPNetLayers(PSPNetLayers):
    """The layers of a PSPNet with an auxiliary head on the stage before the last."""

    def __init__(self, encoder: Encoder, classes: int, settings: PSPNet) -> None:
        super().__init__(encoder, classes, settings)
        self.weight = settings.auxiliary
        inside = encoder.channels[-2]
        self.auxiliary = classifier(inside, max(1, inside // 4), classes, settings)

    def training_logits(self, x: Tensor) -> TrainingLogits:
        """Return the logits with those of the auxiliary head."""
        *_, before, last = self.encoder(x)
        other = upsample(self.auxiliary(before), self.encoder.strides[-2])
        return TrainingLogits(self.pooled_logits(last), ((self.weight, other),))


def classifier(inside: int, middle: int, classes: int, settings: PSPNet) -> nn.Sequential:
    """Return a 3x3 convolution with norm and ReLU, dropout of whole feature maps, and a 1x1 convolution to logits."""
    return nn.Sequential(
        conv_norm_relu(inside, middle, settings.norm), nn.Dropout2d(settings.dropout), nn.Conv2d(middle, classes, 1)
    )


def part_means(x: Tensor, parts: int) -> Tensor:
    """Return the means over parts x parts rectangles of a map, as `adaptive_avg_pool2d`, of which ONNX lacks this case.

    Args:
        x: (B, C, H, W), of any height and width.
        parts: Rectangles per side; they overlap by a cell where the side is no multiple.
    """
    rows, columns = (averaging_matrix(side, parts, x) for side in (x.shape[-2], x.shape[-1]))
    return rows @ x @ columns.T


def averaging_matrix(side: int, parts: int, like: Tensor) -> Tensor:
    """Return the matrix (parts, side) that averages the cells from floor(i side / parts) to ceil((i + 1) side / parts)."""
    cell = torch.arange(side, device=like.device)
    part = torch.arange(parts, device=like.device)[:, None]
    inside = (cell >= part * side // parts) & (cell < ((part + 1) * side + parts - 1) // parts)
    weight = inside.to(like.dtype)
    return weight / weight.sum(1, keepdim=True)

"""Convolutionalized classifiers: the fully connected layers of a classifier as convolutions, and scores brought up to full size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.models.blocks import Norm, Segmenter, check_bands_and_classes, check_sizes, make_norm, settings_of
from seawall.models.cell_window import receptive_radius
from seawall.models.encoders import start_as_he, vgg16_blocks
from seawall.registry import preset, register
from seawall.types import ModelSpec

COARSEST = 32
"""Rows and columns of the image per cell of the coarsest maps, in both classifiers."""
FinestStride = Literal[8, 16, 32]
"""Rows and columns of the image per cell of the finest maps that are scored."""


@register("model", "fcn-8s", paper="arXiv:1411.4038", smoke={"width": 4, "fc": 8})
@dataclass(frozen=True)
class FCN:
    """FCN-8s: VGG-16 with its fully connected layers as convolutions, whose scores are added to those of two finer maps.

    Paper: Long et al. 2015, arXiv:1411.4038, section 4. Differs: the image is not padded by 100 pixels, but fc6 keeps the
    grid; all scores are trained at once; upsampling is learned to the end; weights start at random. width = 64, fc = 4096
    and norm = "none" are the published network.

    Args:
        width: Features of the first convolution; 64 in the paper.
        fc: Features of fc6 and fc7; 4096 in the paper.
        norm: Norm after each convolution of VGG-16: "batch" over the batch, "pixel" over each pixel's channels, "group"
            over the image; "none" as in the paper, which starts from weights of a classifier.
        dropout: Share of values dropped after fc6 and fc7 during training.
        stride: Rows and columns of the image per cell of the finest maps that are scored: 32 scores fc7 alone, 16 adds the
            fourth pooling, 8 the third as well.
    """

    width: int = 32
    fc: int = 512
    norm: Norm = "batch"
    dropout: float = 0.5
    stride: FinestStride = 8
    name: ClassVar[str] = "fcn-8s"

    def __post_init__(self) -> None:
        check_sizes(self.name, {"width": self.width, "fc": self.fc}, self.dropout)

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes(self.name, spec)
        pooled = [
            nn.Sequential(block, nn.MaxPool2d(2)) for block in vgg16_blocks(len(spec.bands), self.width, self.norm)
        ]
        finest = self.stride.bit_length() - 1  # poolings before the first maps that are scored
        parts = [nn.Sequential(*pooled[:finest]), *pooled[finest:]]
        scored = [multiple * self.width for multiple in (1, 2, 4, 8, 8)[finest - 1 : -1]]
        classifier = fully_connected([nn.Conv2d(8 * self.width, self.fc, 7, padding=3)], self.fc, self.dropout)
        layers = FullyConvolutional(parts, scored, classifier, len(spec.classes), self.stride)
        spec = replace(spec, architecture=self.name, settings=settings_of(asdict(self)))
        return Segmenter(spec, layers, COARSEST, receptive_radius(layers))


preset(
    "model", "fcn-16s", FCN(stride=16), summary="FCN-16s: FCN-8s without the scores of the third pooling.",
    paper="arXiv:1411.4038", smoke={"width": 4, "fc": 8},
)  # fmt: skip
preset(
    "model", "fcn-32s", FCN(stride=32), summary="FCN-32s: the scores of VGG-16's last layer alone, 32 times upsampling.",
    paper="arXiv:1411.4038", smoke={"width": 4, "fc": 8},
)  # fmt: skip


@register("model", "fcn-alexnet", paper="arXiv:1411.4038", smoke={"width": 6, "fc": 8})
@dataclass(frozen=True)
class FCNAlexNet:
    """FCN-AlexNet: the five convolutions of AlexNet, its fully connected layers as convolutions, 32 times upsampling.

    Paper: Long et al. 2015, arXiv:1411.4038, table 1; Krizhevsky et al. 2012. Differs: the image is not padded by 100
    pixels, but every layer keeps the grid; upsampling is learned; weights start at random, with batch norms unless told
    otherwise. width = 96, fc = 4096 and norm = "local" are the published network.

    Args:
        width: Features of the first convolution, a multiple of 6; the others keep the published ratio to it.
        fc: Features of fc6 and fc7.
        norm: "local" is the published local response normalization after the first two poolings; the others follow each
            convolution: "pixel" over each pixel's channels, "batch" over the batch, "group" over the image; or "none".
        dropout: Share of values dropped after fc6 and fc7 during training.
    """

    width: int = 96
    fc: int = 512
    norm: Norm | Literal["local"] = "batch"
    dropout: float = 0.5
    name: ClassVar[str] = "fcn-alexnet"

    def __post_init__(self) -> None:
        check_sizes(self.name, {"width": self.width, "fc": self.fc}, self.dropout)
        if self.width % 6:
            raise UsageError(
                f"{self.name}.width: expected a multiple of 6, which keeps the other widths even, got {self.width}; "
                f"use {self.width + -self.width % 6}"
            )

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes(self.name, spec)
        body = alexnet_body(len(spec.bands), self.width, self.norm)
        fc6 = (nn.ZeroPad2d((2, 3, 2, 3)), nn.Conv2d(self.width * 8 // 3, self.fc, 6))
        layers = FullyConvolutional(
            [body], [], fully_connected(fc6, self.fc, self.dropout), len(spec.classes), COARSEST
        )
        spec = replace(spec, architecture=self.name, settings=settings_of(asdict(self)))
        return Segmenter(spec, layers, COARSEST, receptive_radius(layers))


def alexnet_body(bands: int, width: int, norm: Norm | Literal["local"]) -> nn.Sequential:
    """Return the convolutions and poolings of AlexNet, which give maps of 1/32 of the image's rows and columns.

    The paddings move the maps up and left by 14.5 pixels in all, and that of fc6 by 16 pixels down and right, so that a
    cell looks at a square around its own pixels.
    """
    second, third = width * 8 // 3, width * 4
    convolutions = (  # features before and after, kernel, stride, padding, groups
        (bands, width, 11, 4, 4, 1),
        (width, second, 5, 1, 2, 2),
        (second, third, 3, 1, 1, 1),
        (third, third, 3, 1, 1, 2),
        (third, second, 3, 1, 1, 2),
    )
    each, biased = "none" if norm == "local" else norm, norm in ("local", "none")
    layers: list[nn.Module] = []
    for number, (inside, outside, kernel, stride, padding, groups) in enumerate(convolutions, 1):
        layers.append(nn.Conv2d(inside, outside, kernel, stride, padding, groups=groups, bias=biased))
        layers += [make_norm(each, outside), nn.ReLU(inplace=True)]
        if number in (1, 2, 5):
            layers.append(nn.MaxPool2d(3, 2, 1))
        if number in (1, 2) and norm == "local":
            layers.append(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0))
    return nn.Sequential(*layers)


def fully_connected(fc6: Sequence[nn.Module], width: int, dropout: float) -> nn.Sequential:
    """Return fc6 and fc7 as convolutions, each with its ReLU and dropout.

    Args:
        fc6: The layers whose kernel covers what the classifier saw of an image.
        width: Channels that they give, and those of fc7.
        dropout: Share of values dropped after each.
    """
    fc7 = nn.Conv2d(width, width, 1)
    return nn.Sequential(
        *fc6, nn.ReLU(inplace=True), nn.Dropout(dropout), fc7, nn.ReLU(inplace=True), nn.Dropout(dropout)
    )


class FullyConvolutional(nn.Module):
    """A classifier at every cell of its coarsest maps, whose scores are brought up to the size of the image.

    Scores of finer maps are added on the way, where there are any. They start at zero, so that the untrained network
    gives the bilinear interpolation of the coarsest scores.

    Args:
        parts: Layers that follow one another; the maps of each but the last are scored, from fine to coarse, and each has
            half the rows and columns of the one before.
        widths: Channels of the maps that are scored.
        classifier: fc6 and fc7.
        classes: Number of classes.
        stride: Rows and columns of the image per cell of the first part's maps.
    """

    def __init__(
        self, parts: Sequence[nn.Module], widths: Sequence[int], classifier: nn.Sequential, classes: int, stride: int
    ) -> None:
        super().__init__()
        fc7 = classifier[-3]
        self.parts = nn.ModuleList(parts).apply(start_as_he)
        self.classifier = classifier
        self.score = nn.Conv2d(fc7.out_channels, classes, 1)  # type: ignore[arg-type]
        self.skips = nn.ModuleList(zero_convolution(width, classes) for width in widths)
        self.ups = nn.ModuleList(bilinear_upsampling(classes, 2) for _ in widths)
        self.last = bilinear_upsampling(classes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides are multiples of 32."""
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        scores = self.score(self.classifier(x))
        for x, skip, up in zip(reversed(found[:-1]), reversed(self.skips), self.ups, strict=True):
            scores = up(scores) + skip(x)
        return self.last(scores)  # type: ignore[no-any-return]


def zero_convolution(inside: int, classes: int) -> nn.Conv2d:
    """Return a 1x1 convolution to scores, all zero before training."""
    layer = nn.Conv2d(inside, classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def bilinear_upsampling(classes: int, factor: int) -> nn.Sequential:
    """Return a transposed convolution that starts as the bilinear interpolation of every class.

    Its kernel has two cells in each direction, as the published one. The maps are continued by one cell on each side, so
    that the start is the interpolation at their edges too.

    Args:
        classes: Number of maps.
        factor: Even number of times that rows and columns become more.
    """
    layer = nn.ConvTranspose2d(classes, classes, 2 * factor, factor, factor + factor // 2, bias=False)
    offsets = (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.weight[range(classes), range(classes)] = torch.outer(1 - offsets, 1 - offsets)
    return nn.Sequential(nn.ReplicationPad2d(1), layer)

"""SegNet: VGG-16 down, and up again by max-unpooling, which puts each value where the maximum was."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from seawall.models.blocks import (
    Norm,
    Segmenter,
    check_bands_and_classes,
    check_sizes,
    conv_norm_relu,
    settings_of,
)
from seawall.models.cell_window import receptive_radius
from seawall.models.encoders import start_as_he, vgg16_blocks
from seawall.registry import register
from seawall.types import ModelSpec

DECODER_BLOCKS = ((8, 8, 8, 8), (8, 8, 8, 4), (4, 4, 4, 2), (2, 2, 1), (1, 1))
"""Features before and after each convolution of the decoder, coarse to fine, as multiples of the width: VGG-16 in reverse.

The convolution that gives the logits follows the last block."""


@register("model", "segnet", paper="arXiv:1511.00561", smoke={"width": 4})
@dataclass(frozen=True)
class SegNet:
    """SegNet: VGG-16 without its fully connected layers, and its mirror image with max-unpooling as the decoder.

    What the decoder learns of the image's detail is where the maxima were; no features go across.

    Paper: Badrinarayanan et al. 2017, arXiv:1511.00561, section 3. Differs: weights start at random instead of from a
    classifier's, and convolutions before a norm have no bias. width = 64 is the published network.

    Args:
        width: Features at full size; 64 in the paper.
        norm: "batch" normalizes over the batch, as in the paper, "pixel" each pixel's channels, "group" over the image;
            "none" leaves it out.
    """

    width: int = 32
    norm: Norm = "batch"

    def __post_init__(self) -> None:
        check_sizes("segnet", {"width": self.width}, 0.0)

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes("segnet", spec)
        layers = SegNetLayers(len(spec.bands), len(spec.classes), self)
        spec = replace(spec, architecture="segnet", settings=settings_of(asdict(self)))
        return Segmenter(spec, layers, 2 ** len(DECODER_BLOCKS), layers.radius())


class SegNetLayers(nn.Module):
    """The layers of a SegNet between the standardized image and the logits."""

    def __init__(self, bands: int, classes: int, settings: SegNet) -> None:
        super().__init__()
        width, norm = settings.width, settings.norm
        self.down = nn.ModuleList(vgg16_blocks(bands, width, norm))
        self.up = nn.ModuleList(
            nn.Sequential(*(conv_norm_relu(a * width, b * width, norm) for a, b in pairwise(block)))
            for block in DECODER_BLOCKS
        )
        self.head = nn.Conv2d(width, classes, 3, padding=1)
        self.apply(start_as_he)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides are multiples of 32."""
        positions: list[Tensor] = []
        for block in self.down:
            x, position = functional.max_pool2d(block(x), 2, return_indices=True)
            positions.append(position)
        for block, position in zip(self.up, reversed(positions), strict=True):
            x = block(functional.max_unpool2d(x, position, [2, 2]))
        return self.head(x)  # type: ignore[no-any-return]

    def radius(self) -> int | None:
        """Return the radius of the receptive field: that of plain upsampling, for a position depends on its cell alone."""
        pooled = (layer for block in self.down for layer in (block, nn.MaxPool2d(2)))
        raised = (layer for block in self.up for layer in (nn.Upsample(scale_factor=2), block))
        return receptive_radius(nn.Sequential(*pooled, *raised, self.head))

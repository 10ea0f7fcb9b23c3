"""Volpi and Tuia's two ways to label every pixel: a classifier of patches at each pixel, and learned upsampling.

Both have the same contracting layers, three times a convolution and an overlapping max pooling, and a layer that sees
what a patch leaves, so that they differ only in how they come back to full size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.models.blocks import (
    Norm,
    Segmenter,
    check_bands_and_classes,
    check_sizes,
    make_norm,
    pad_by_reflection,
    settings_of,
)
from seawall.models.cell_window import receptive_radius
from seawall.registry import register
from seawall.types import ModelSpec

CONTRACTING_KERNELS = (7, 3, 3)
"""Sides of the three convolutions; a max pooling of 3 pixels every 2 follows each."""
DOWNSAMPLING: int = 2 ** len(CONTRACTING_KERNELS)
SMALLEST_PATCH = 33
"""Side of a patch of which the contracting layers leave one cell."""
PATCH_STEP: int = 2 * DOWNSAMPLING
"""With as many pixels more the grid of cells has two more on a side, and so again a cell in its center."""


@dataclass(frozen=True)
class PatchSettings:
    """Settings that the two networks share.

    Args:
        width: Features of the first convolution, doubled with each halving.
        patch: Side of what one cell behind the contracting layers sees, in pixels: 33, 49, 65 and so on.
        norm: "pixel" normalizes each pixel's channels, "batch" over the batch, "group" over the image; "none" leaves it out.
        dropout: Share of feature maps dropped before the last layers during training.
    """

    width: int = 16
    patch: int = 49
    norm: Norm = "batch"
    dropout: float = 0.0
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_sizes(self.name, {"width": self.width, "patch": self.patch}, self.dropout)
        if (self.patch - SMALLEST_PATCH) % PATCH_STEP or self.patch < SMALLEST_PATCH:
            raise UsageError(
                f"{self.name}.patch: expected {SMALLEST_PATCH} and a multiple of {PATCH_STEP} more, got {self.patch}; "
                f"use {SMALLEST_PATCH}, {SMALLEST_PATCH + PATCH_STEP} or {SMALLEST_PATCH + 2 * PATCH_STEP}"
            )

    @property
    def widths(self) -> tuple[int, int, int]:
        """Features at a half, a quarter and an eighth of the size."""
        return self.width, 2 * self.width, 4 * self.width

    @property
    def cells(self) -> int:
        """Side of the grid that the contracting layers leave of a patch."""
        return 1 + (self.patch - SMALLEST_PATCH) // DOWNSAMPLING

    def described(self, spec: ModelSpec) -> ModelSpec:
        """Return the specification with architecture and settings.

        Raises:
            ModelError: It has no band, or fewer than two classes.
        """
        check_bands_and_classes(self.name, spec)
        return replace(spec, architecture=self.name, settings=settings_of(asdict(self)))


@register("model", "patch-classifier", paper="arXiv:1608.00775", smoke={"width": 4, "patch": 33})
@dataclass(frozen=True)
class CenterPixelClassifier(PatchSettings):
    """Volpi and Tuia's patch classifier: the class of a pixel from the patch around it, at every pixel.

    No patch is cut out. Where the classifier would go on with every second cell, the layers behind go on with all of them
    and look that much farther apart, so one pass over the image gives at each pixel what the classifier gives for its
    patch, to rounding. It costs as much as the layers at full size. The image is continued by reflection for the patches
    at its edges. In training each labelled pixel of a crop is one patch; batch norms take their statistics over all patches.

    Paper: Volpi and Tuia 2017, arXiv:1608.00775, the patch-based network. Differs: number, kernels and widths of the
    layers are chosen here, and the norm is a setting. Patches are not zero-padded inside.
    """

    name: ClassVar[str] = "patch-classifier"

    def __call__(self, spec: ModelSpec) -> Segmenter:
        spec = self.described(spec)
        reach = None if self.norm == "group" else self.patch // 2
        return Segmenter(spec, CenterPixelLayers(len(spec.bands), len(spec.classes), self), stride=1, reach=reach)


@register("model", "dense-labeling", paper="arXiv:1608.00775", smoke={"width": 4, "patch": 33})
@dataclass(frozen=True)
class DenseLabeling(PatchSettings):
    """Volpi and Tuia's full patch labeling: convolutions to an eighth of the size, transposed convolutions back up.

    No skip connections: the position of an edge has to pass through the coarsest maps.

    Paper: Volpi and Tuia 2017, arXiv:1608.00775, the network that labels full patches. Differs: number, kernels and widths
    of the layers are chosen here, and the norm is a setting.
    """

    name: ClassVar[str] = "dense-labeling"

    def __call__(self, spec: ModelSpec) -> Segmenter:
        spec = self.described(spec)
        layers = dense_labeling_layers(len(spec.bands), len(spec.classes), self)
        return Segmenter(spec, layers, DOWNSAMPLING, receptive_radius(layers))


def contracting_layers(bands: int, settings: PatchSettings, *, every_pixel: bool) -> list[nn.Module]:
    """Return the three convolutions with norm, ReLU and max pooling.

    Args:
        bands: Channels of the image.
        settings: Width and norm.
        every_pixel: Go on with all cells instead of every second one and look farther apart, without padding; else halve
            the maps.
    """
    layers: list[nn.Module] = []
    for level, (kernel, (inside, outside)) in enumerate(
        zip(CONTRACTING_KERNELS, pairwise((bands, *settings.widths)), strict=True)
    ):
        apart = 2**level if every_pixel else 1
        padding = 0 if every_pixel else kernel // 2
        layers += [
            nn.Conv2d(inside, outside, kernel, padding=padding, dilation=apart, bias=settings.norm == "none"),
            make_norm(settings.norm, outside),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 1, dilation=apart) if every_pixel else nn.MaxPool2d(3, 2, padding=1),
        ]
    return layers


class CenterPixelLayers(nn.Module):
    """The patch classifier at every pixel, between the standardized image and the logits."""

    def __init__(self, bands: int, classes: int, settings: CenterPixelClassifier) -> None:
        super().__init__()
        width = settings.widths[-1]
        self.margin = settings.patch // 2
        self.layers = nn.Sequential(
            *contracting_layers(bands, settings, every_pixel=True),
            nn.Conv2d(width, width, settings.cells, dilation=DOWNSAMPLING),
            nn.ReLU(inplace=True),
            nn.Dropout2d(settings.dropout),
            nn.Conv2d(width, classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image of any size."""
        return self.layers(pad_by_reflection(x, *[self.margin] * 4))  # type: ignore[no-any-return]


def dense_labeling_layers(bands: int, classes: int, settings: DenseLabeling) -> nn.Sequential:
    """Return the layers between the standardized image, whose sides are multiples of 8, and the logits."""
    width, cells = settings.widths[-1], settings.cells
    layers = [
        *contracting_layers(bands, settings, every_pixel=False),
        nn.Conv2d(width, width, cells, padding=cells // 2),
        nn.ReLU(inplace=True),
        nn.Dropout2d(settings.dropout),
    ]
    for inside, outside in pairwise((width, *reversed(settings.widths))):
        layers += [
            nn.ConvTranspose2d(inside, outside, 4, 2, 1, bias=settings.norm == "none"),
            make_norm(settings.norm, outside),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Conv2d(settings.width, classes, 1))

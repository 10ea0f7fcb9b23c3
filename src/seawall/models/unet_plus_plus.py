"""U-Net++: a U-Net whose skip connections are grids of convolutions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import UsageError
from seawall.losses.auxiliary import TrainingLogits
from seawall.models.blocks import (
    FurtherBands,
    Norm,
    Segmenter,
    bands_seen,
    check_auxiliary,
    check_bands_and_classes,
    double_conv,
    settings_of,
)
from seawall.models.cell_window import receptive_radius
from seawall.models.encoders import OWN_DEPTH, OWN_WIDTH, Encoder, EncoderName, check_encoder, make_encoder
from seawall.models.unet import decoder_width
from seawall.registry import register
from seawall.types import ModelSpec

PAPER_DEPTH = 4


@register(
    "model", "unet++", paper="arXiv:1807.10165", smoke={"encoder": "plain", "width": 4, "depth": 3, "auxiliary": 1.0}
)
@dataclass(frozen=True)
class UNetPlusPlus:
    """U-Net++: between encoder and decoder each size has a row of blocks, and a block reads all before it in its row.

    A block also reads the block one row below and one column before it, upsampled by repetition. In training the blocks at the
    finest size may have heads of their own (deep supervision); the prediction is that of the last one.

    Paper: Zhou et al. 2018, arXiv:1807.10165. Differs: convolutions are normalized; features are upsampled by repetition, not
    by transposed convolutions; heads are 3x3; and heads are not averaged. With the encoder of a classification network the last
    block of each row has the width of a U-Net's decoder, as in segmentation-models-pytorch, and VGG-16 has a row at full size too.

    Args:
        encoder: One of `seawall.models.encoders.make_encoder`.
        width: Features of its first convolution, by which all others go; 0 is the encoder's own: 16 if plain, 64 for
            ResNets and VGG-16, 32 for MobileNetV2.
        depth: Number of halvings of the image; 0 is 4 if plain, as in the paper, 5 for the others.
        norm: As of "unet".
        dropout: Share of feature maps dropped in the grid during training.
        auxiliary: Weight of the loss of each further head at the finest size; 0 has none, 1 is that of the paper.
    """

    encoder: EncoderName = "plain"
    width: int = 0
    depth: int = 0
    norm: Norm = "batch"
    dropout: float = 0.0
    auxiliary: float = 0.0
    name: ClassVar[str] = "unet++"

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder, self.norm, self.width, self.depth, self.dropout)
        check_auxiliary(self.name, self.auxiliary)
        object.__setattr__(self, "width", self.width or OWN_WIDTH[self.encoder])
        object.__setattr__(self, "depth", self.depth or (PAPER_DEPTH if self.encoder == "plain" else OWN_DEPTH))

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes(self.name, spec)
        spec = replace(spec, architecture=self.name, settings=settings_of(asdict(self)))
        features = self.features(spec)
        encoder, layers = self.layers(bands_seen(spec, features), len(spec.classes))
        return Segmenter(spec, layers, encoder.strides[-1], receptive_radius(layers), features)

    def layers(self, bands: int, classes: int) -> tuple[Encoder, nn.Module]:
        """Return the encoder, and the layers between the standardized image and the logits."""
        encoder = make_encoder(self.encoder, bands, self.norm, width=self.width, depth=self.depth)
        make = DeeplySupervisedLayers if self.auxiliary else UNetPlusPlusLayers
        return encoder, make(encoder, classes, self)

    def features(self, spec: ModelSpec) -> FurtherBands | None:
        """Return what computes further bands from the image, as of "unet"."""
        return None


class UNetPlusPlusLayers(nn.Module):
    """The layers of a U-Net++ between the standardized image and the logits.

    Block "i,j" is X^(i,j) of the paper: row i has the size of the encoder's stage i, and column 0 is the encoder.
    The names of submodules are those of the tensors in weights files.
    """

    def __init__(self, encoder: Encoder, classes: int, settings: UNetPlusPlus) -> None:
        super().__init__()
        norm, dropout = settings.norm, settings.dropout
        self.encoder = encoder
        self.rows = len(encoder.channels) - 1
        self.grid = nn.ModuleDict()
        for column in range(1, self.rows + 1):
            for row in range(self.rows + 1 - column):
                inside = column * encoder.channels[row] + self.features(row + 1, column - 1)
                self.grid[f"{row},{column}"] = double_conv(inside, self.features(row, column), norm, dropout)
        last = self.features(0, self.rows)
        full = encoder.strides[0] == 1
        size = decoder_width(1, encoder.scale)
        self.full = (
            nn.Identity()
            if full
            else nn.Sequential(nn.Upsample(scale_factor=2), double_conv(last, size, norm, dropout))
        )
        self.head = nn.Conv2d(last if full else size, classes, 3, padding=1)

    def features(self, row: int, column: int) -> int:
        """Return the width of a block."""
        if 0 < column == self.rows - row:
            return decoder_width(self.encoder.strides[row], self.encoder.scale)
        return self.encoder.channels[row]

    def finest(self, x: Tensor) -> list[Tensor]:
        """Return the first row, from the encoder's features to those that the prediction is made of."""
        grid = [[features] for features in self.encoder(x)]
        for column in range(1, self.rows + 1):
            for row in range(self.rows + 1 - column):
                below = functional.interpolate(grid[row + 1][column - 1], scale_factor=2, mode="nearest")
                grid[row].append(self.grid[f"{row},{column}"](torch.cat([*grid[row], below], 1)))
        return grid[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides are multiples of the encoder's last stride."""
        return self.head(self.full(self.finest(x)[-1]))  # type: ignore[no-any-return]


class DeeplySupervisedLayers(UNetPlusPlusLayers):
    """The layers of a U-Net++ with a head on each block of the first row."""

    def __init__(self, encoder: Encoder, classes: int, settings: UNetPlusPlus) -> None:
        super().__init__(encoder, classes, settings)
        if self.rows < 2:
            raise UsageError(
                f"unet++.auxiliary: expected at least 2 columns of blocks, got {self.rows}; set a larger depth, or auxiliary = 0"
            )
        self.weight = settings.auxiliary
        self.auxiliary = nn.ModuleList(
            nn.Conv2d(self.features(0, column), classes, 3, padding=1) for column in range(1, self.rows)
        )

    def training_logits(self, x: Tensor) -> TrainingLogits:
        """Return the logits with those of all other heads, resized to the image."""
        _, *shallow, last = self.finest(x)
        others = (head(features) for head, features in zip(self.auxiliary, shallow, strict=True))
        size = (x.shape[-2], x.shape[-1])
        return TrainingLogits(
            self.head(self.full(last)),
            tuple((self.weight, functional.interpolate(other, size, mode="bilinear")) for other in others),
        )

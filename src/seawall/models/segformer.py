"""SegFormer: attention over a reduced grid in four stages, and a decoder of 1x1 convolutions; of the size B0 by default."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.models.blocks import (
    PixelNorm,
    Segmenter,
    check_bands_and_classes,
    check_sizes,
    make_norm,
    settings_of,
    upsample,
)
from seawall.registry import register
from seawall.types import ModelSpec, Setting

StageSizes = tuple[int, int, int, int]
"""One number per stage; the stages have 1/4, 1/8, 1/16 and 1/32 of the image's rows and columns."""
FINEST = 4
"""Rows and columns of the image per cell of the first stage's maps."""
REDUCTIONS: StageSizes = (8, 4, 2, 1)
"""Keys and values of a stage are on a grid coarser by this: 1/32 of the image's rows and columns in every stage."""
EXPANSION = 4
"""Channels of the hidden layer of a feed-forward block, as a multiple of the stage's."""
SMALL: Mapping[str, Setting] = {"widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "decoder": 16}


@register("model", "segformer", paper="arXiv:2105.15203", smoke=SMALL)
@dataclass(frozen=True)
class SegFormer:
    """SegFormer: efficient attention in four stages and a decoder of 1x1 convolutions; B0 by default.

    Every pixel can depend on every other, so there is no bound of the receptive field.

    Paper: Xie et al. 2021, arXiv:2105.15203, sections 3.1 to 3.3 and table 6. Differs: logits are brought to the size of
    the image, there is no stochastic depth, and weights start as PyTorch draws them.

    Args:
        widths: Channels of each stage, a multiple of its heads.
        depths: Blocks of attention and feed-forward layers in each stage.
        heads: Heads of the attention in each stage.
        decoder: Channels of the decoder.
        dropout: Share of values dropped before the last layer during training.
    """

    widths: StageSizes = (32, 64, 160, 256)
    depths: StageSizes = (2, 2, 2, 2)
    heads: StageSizes = (1, 2, 5, 8)
    decoder: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        sizes = {"decoder": self.decoder}
        for name in ("widths", "depths", "heads"):
            sizes |= {f"{name}[{stage}]": size for stage, size in enumerate(getattr(self, name))}
        check_sizes("segformer", sizes, self.dropout)
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise UsageError(
                    f"segformer.widths: expected a multiple of the {heads} heads of the stage, got {width}; "
                    f"use {heads * math.ceil(width / heads)}"
                )

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes("segformer", spec)
        spec = replace(spec, architecture="segformer", settings=settings_of(asdict(self)))
        return Segmenter(spec, SegFormerLayers(len(spec.bands), len(spec.classes), self), stride=32, reach=None)


class SegFormerLayers(nn.Module):
    """The layers of a SegFormer between the standardized image and the logits.

    All features are maps (B, C, H, W): a linear layer over tokens is a 1x1 convolution, a layer norm a `PixelNorm`.
    """

    def __init__(self, bands: int, classes: int, settings: SegFormer) -> None:
        super().__init__()
        widths, decoder = settings.widths, settings.decoder
        self.stages = nn.ModuleList(
            attention_stage(inside, outside, blocks, heads, reduction, first=stage == 0)
            for stage, (inside, outside, blocks, heads, reduction) in enumerate(
                zip((bands, *widths), widths, settings.depths, settings.heads, REDUCTIONS, strict=False)
            )
        )
        self.unify = nn.ModuleList(nn.Conv2d(width, decoder, 1) for width in widths)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(widths) * decoder, decoder, 1, bias=False),
            make_norm("batch", decoder),
            nn.ReLU(inplace=True),
            nn.Dropout(settings.dropout),
        )
        self.head = nn.Conv2d(decoder, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides are multiples of 32."""
        found = []
        for level, (stage, unify) in enumerate(zip(self.stages, self.unify, strict=True)):
            x = stage(x)
            found.append(upsample(unify(x), 2**level) if level else unify(x))
        return upsample(self.head(self.fuse(torch.cat(found, 1))), FINEST)


def attention_stage(
    inside: int, outside: int, blocks: int, heads: int, reduction: int, *, first: bool
) -> nn.Sequential:
    """Return overlapping patches of the maps, merged by a convolution, and the blocks that work on them.

    Args:
        inside: Channels before.
        outside: Channels after.
        blocks: Number of blocks.
        heads: Heads of the attention.
        reduction: Keys and values are on a grid coarser by this.
        first: The first stage takes patches of 7 pixels every 4, the others of 3 every 2.
    """
    merge = nn.Conv2d(inside, outside, 7, 4, 3) if first else nn.Conv2d(inside, outside, 3, 2, 1)
    body = (AttentionBlock(outside, heads, reduction) for _ in range(blocks))
    return nn.Sequential(merge, PixelNorm(outside), *body, PixelNorm(outside))


class AttentionBlock(nn.Module):
    """Attention, then a feed-forward layer with a depthwise 3x3 convolution, each added to its input.

    Through its zero padding the convolution tells where a pixel is, so that no positional encoding is needed.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.attend = nn.Sequential(PixelNorm(width), ReducedAttention(width, heads, reduction))
        self.feed_forward = nn.Sequential(
            PixelNorm(width),
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, same shape."""
        x = x + self.attend(x)
        return x + self.feed_forward(x)  # type: ignore[no-any-return]


class ReducedAttention(nn.Module):
    """Self-attention of all pixels to a coarser grid.

    Args:
        width: Channels, a multiple of the heads.
        heads: Heads of the attention.
        reduction: The grid of keys and values is coarser by this, which divides the cost by its square.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduce = nn.Sequential()
        if reduction > 1:
            self.reduce = nn.Sequential(nn.Conv2d(width, width, reduction, reduction), PixelNorm(width))
        self.query = nn.Conv2d(width, width, 1)
        self.key_value = nn.Conv2d(width, 2 * width, 1)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return for each pixel the values that its query selects, same shape."""
        query = self._tokens(self.query(x))
        key, value = (self._tokens(half) for half in self.key_value(self.reduce(x)).chunk(2, 1))
        # Written out because the fused kernel of the CPU has no second derivative, which gradient alignment needs.
        share = torch.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]), -1)
        return self.project((share @ value).transpose(-2, -1).reshape(x.shape))  # type: ignore[no-any-return]

    def _tokens(self, x: Tensor) -> Tensor:
        """Return maps (B, C, H, W) as (B, heads, H * W, C / heads)."""
        return torch.stack(x.flatten(2).chunk(self.heads, 1), 1).transpose(-2, -1)

"""Encoders: the halves of networks that turn an image into features at falling resolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal, cast, get_args

from torch import Tensor, nn

from seawall.errors import UsageError, did_you_mean
from seawall.models.blocks import Norm, check_sizes, conv_norm, conv_norm_relu, double_conv

EncoderName = Literal["plain", "resnet18", "resnet34", "resnet50", "mobilenetv2", "vgg16"]
ENCODERS: tuple[EncoderName, ...] = get_args(EncoderName)
OWN_WIDTH = {"plain": 16, "resnet18": 64, "resnet34": 64, "resnet50": 64, "mobilenetv2": 32, "vgg16": 64}
"""Features of the first convolution; but for "plain" those of the papers."""
OWN_DEPTH = 5
"""Halvings of the image; those of all papers."""
OutputStride = Literal[8, 16, 32]


class Encoder(nn.Module):
    """An image to a list of feature maps, from fine to coarse.

    Args:
        stages: Each takes the features of the one before, the first the image.
        channels: Features that each stage gives.
        strides: Pixels per cell of each stage's features.
        scale: Width as a multiple of the encoder's own, by which the widths of decoders go.
    """

    def __init__(
        self, stages: Sequence[nn.Module], channels: Sequence[int], strides: Sequence[int], scale: float
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels, self.strides, self.scale = tuple(channels), tuple(strides), scale

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of every stage, of an image whose sides are multiples of the last stride."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def make_encoder(
    name: EncoderName,
    bands: int,
    norm: Norm = "batch",
    *,
    width: int = 0,
    depth: int = 0,
    output_stride: OutputStride = 32,
) -> Encoder:
    """Return an encoder with random weights.

    | name | stages at strides | source |
    |---|---|---|
    | plain | 1, 2, 4 ... | two 3x3 convolutions per stage, as in a U-Net |
    | resnet18, resnet34, resnet50 | 2, 4, 8, 16, 32 | He et al. 2016, arXiv:1512.03385 |
    | mobilenetv2 | 2, 4, 8, 16, 32 | Sandler et al. 2018, arXiv:1801.04381 |
    | vgg16 | 1, 2, 4, 8, 16, 32 | Simonyan and Zisserman 2015, arXiv:1409.1556; the last stage is a pooling |

    Weights of "plain" start as PyTorch's layers do, those of the others as in He et al. 2015, arXiv:1502.01852.

    Args:
        name: One of `ENCODERS`.
        bands: Bands of the image.
        norm: As of `seawall.models.blocks.make_norm`; "none" is for "plain" and "vgg16", which were published so.
        width: Features of the first convolution, by which all others go; 0 is the encoder's own, `OWN_WIDTH`.
        depth: Halvings of the image, after which stages are left out; 0 is 5.
        output_stride: Largest stride. Beyond it convolutions are dilated instead, so that the features are those of
            the undilated network at more places; "plain" and "vgg16" lose the pooling.

    Raises:
        UsageError: As `check_encoder`; or there is no such output stride.
    """
    check_encoder("encoder", name, norm, width, depth)
    if output_stride not in get_args(OutputStride):
        raise UsageError(f"encoder.output_stride: expected 8, 16 or 32, got {output_stride}; 16 is common")
    own = OWN_WIDTH[name]
    width, depth = width or own, depth or OWN_DEPTH
    if name == "plain":
        stages, channels, steps = _plain(bands, width, norm, depth, output_stride)
    elif name == "vgg16":
        stages, channels, steps = _vgg16(bands, width, norm, output_stride)
    elif name == "mobilenetv2":
        stages, channels, steps = _mobilenet(bands, width / own, norm, output_stride)
    else:
        stages, channels, steps = _resnet(name, bands, width, norm, output_stride)
    strides = list(accumulate(steps, mul))
    kept = depth + (strides[0] == 1)
    encoder = Encoder(stages[:kept], channels[:kept], strides[:kept], width / own)
    if name != "plain":
        encoder.apply(start_as_he)
    return encoder


def check_encoder(where: str, name: str, norm: Norm, width: int, depth: int = 0, dropout: float = 0.0) -> None:
    """Check the settings of an encoder.

    Args:
        where: Name of the network, for messages.
        name: Name of the encoder.
        norm: Its norm.
        width: Features of its first convolution; 0 is its own.
        depth: Halvings of the image; 0 is its own.
        dropout: Dropout of the network.

    Raises:
        UsageError: There is no such encoder, it does not go without a norm, a size is beyond its limits, or the dropout
            is no share.
    """
    if name not in ENCODERS:
        raise UsageError(f"{where}.encoder: unknown name {name!r}; {did_you_mean(name, ENCODERS)}")
    if norm == "none" and name not in ("plain", "vgg16"):
        raise UsageError(f"{where}.norm: expected a norm with the encoder {name}, got none; use batch, pixel or group")
    check_sizes(where, {"width": width or OWN_WIDTH[name], "depth": depth or OWN_DEPTH}, dropout)
    if depth > OWN_DEPTH and name != "plain":
        raise UsageError(f"{where}.depth: expected at most {OWN_DEPTH} with the encoder {name}, got {depth}; lower it")


Stages = tuple[list[nn.Module], list[int], list[int]]
"""Stages of an encoder, their channels, and the factor by which each of them divides the size."""


def _plain(bands: int, width: int, norm: Norm, depth: int, output_stride: int) -> Stages:
    channels = [width * 2**level for level in range(depth + 1)]
    stages: list[nn.Module] = [double_conv(bands, width, norm)]
    steps = [1]
    for (inside, outside), (step, _, dilation) in zip(
        pairwise(channels), _steps_and_dilations([2] * depth, output_stride), strict=True
    ):
        stages.append(nn.Sequential(_halve(step), double_conv(inside, outside, norm, dilation=dilation)))
        steps.append(step)
    return stages, channels, steps


def vgg16_blocks(
    bands: int, width: int = 64, norm: Norm = "none", dilations: Sequence[int] = (1,) * 5
) -> list[nn.Module]:
    """Return the five blocks of the 13 convolutions of VGG-16; a 2x2 max-pooling follows each in the paper.

    Paper: Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, D, which has no norm.

    Args:
        bands: Bands of the image.
        width: Features of the first block; 64 in the paper. The blocks have 1, 2, 4, 8 and 8 times as many.
        norm: Norm after each convolution.
        dilations: Dilation of each block.
    """
    blocks: list[nn.Module] = []
    inside = bands
    for multiple, count, dilation in zip((1, 2, 4, 8, 8), (2, 2, 3, 3, 3), dilations, strict=True):
        layers = []
        for _ in range(count):
            layers.append(conv_norm_relu(inside, width * multiple, norm, dilation=dilation))
            inside = width * multiple
        blocks.append(nn.Sequential(*layers))
    return blocks


def _vgg16(bands: int, width: int, norm: Norm, output_stride: int) -> Stages:
    plan = list(_steps_and_dilations([1, 2, 2, 2, 2, 2], output_stride))
    blocks = vgg16_blocks(bands, width, norm, [dilation for _, _, dilation in plan[:5]])
    stages = [nn.Sequential(_halve(step), block) for (step, _, _), block in zip(plan, blocks, strict=False)]
    channels = [width * multiple for multiple in (1, 2, 4, 8, 8)]
    if output_stride == 32:
        stages.append(nn.Sequential(_halve(2)))
        channels.append(channels[-1])
    return [*stages], channels, [step for step, _, _ in plan[: len(stages)]]


RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


def _resnet(name: str, bands: int, width: int, norm: Norm, output_stride: int) -> Stages:
    bottleneck = name == "resnet50"
    stages: list[nn.Module] = [conv_norm_relu(bands, width, norm, 7, stride=2)]
    channels, steps = [width], [2]
    plan = list(_steps_and_dilations([2, 2, 2, 2, 2], output_stride))[1:]
    for level, (count, (step, before, after)) in enumerate(zip(RESNET_BLOCKS[name], plan, strict=True)):
        middle = width * 2**level
        outside = middle * (4 if bottleneck else 1)
        pooled = level == 0  # the first stage halves by pooling, the others by their first block
        blocks: list[nn.Module] = [nn.MaxPool2d(3, 2, 1)] if pooled else []
        for index in range(count):
            inside = outside if index else channels[-1]
            stride, dilations = (1, (after, after)) if index or pooled else (step, (before, after))
            blocks.append(ResidualBlock(inside, middle, outside, norm, stride, dilations, bottleneck))
        stages.append(nn.Sequential(*blocks))
        channels.append(outside)
        steps.append(step)
    return stages, channels, steps


class ResidualBlock(nn.Module):
    """The block of a ResNet: two 3x3 convolutions, or with a bottleneck 1x1, 3x3, 1x1, plus the block's input.

    Differs from the paper's bottleneck: the 3x3 convolution has the stride, as in torchvision.

    Args:
        inside: Features of the input.
        middle: Features within.
        outside: Features of the output.
        norm: Norm after each convolution.
        stride: Stride of the first 3x3 convolution.
        dilations: Dilation of the first 3x3 convolution and of the second.
        bottleneck: Whether there is one 3x3 convolution between two 1x1.
    """

    def __init__(
        self,
        inside: int,
        middle: int,
        outside: int,
        norm: Norm,
        stride: int,
        dilations: tuple[int, int],
        bottleneck: bool,
    ) -> None:
        super().__init__()
        first, second = dilations
        if bottleneck:
            self.body = nn.Sequential(
                conv_norm_relu(inside, middle, norm, 1),
                conv_norm_relu(middle, middle, norm, stride=stride, dilation=first),
                conv_norm(middle, outside, norm, 1),
            )
        else:
            self.body = nn.Sequential(
                conv_norm_relu(inside, middle, norm, stride=stride, dilation=first),
                conv_norm(middle, outside, norm, dilation=second),
            )
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inside, outside, norm, 1, stride=stride)
        self.end = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the block's outer width."""
        return self.end(self.body(x) + self.shortcut(x))  # type: ignore[no-any-return]


MOBILENET_STAGES = (
    (2, ((1, 16, 1),)),
    (2, ((6, 24, 2),)),
    (2, ((6, 32, 3),)),
    (2, ((6, 64, 4), (6, 96, 3))),
    (2, ((6, 160, 3), (6, 320, 1))),
)
"""Per stage: its stride, and per group of blocks their expansion, width and number (arXiv:1801.04381, table 2)."""
MOBILENET_LAST = 1280


def _mobilenet(bands: int, scale: float, norm: Norm, output_stride: int) -> Stages:
    inside = _multiple_of_8(32 * scale)
    stem = [conv_norm(bands, inside, norm, stride=2), nn.ReLU6(inplace=True)]
    plan = list(_steps_and_dilations([step for step, _ in MOBILENET_STAGES], output_stride))
    stages: list[nn.Module] = []
    channels = []
    for level, ((_, groups), (step, before, after)) in enumerate(zip(MOBILENET_STAGES, plan, strict=True)):
        blocks: list[nn.Module] = [] if level else [*stem]
        for index, (expansion, features) in enumerate((e, n) for e, n, count in groups for _ in range(count)):
            outside = _multiple_of_8(features * scale)
            strided = index == 0 and level > 0  # the stem has the stride of the first stage
            stride, dilation = (step, before) if strided else (1, after)
            blocks.append(InvertedResidual(inside, outside, expansion, norm, stride, dilation))
            inside = outside
        stages.append(nn.Sequential(*blocks))
        channels.append(inside)
    last = _multiple_of_8(MOBILENET_LAST * max(1.0, scale))
    stages[-1] = nn.Sequential(stages[-1], conv_norm(inside, last, norm, 1), nn.ReLU6(inplace=True))
    return stages, [*channels[:-1], last], [step for step, _, _ in plan]


class InvertedResidual(nn.Module):
    """The block of a MobileNetV2: expansion by 1x1, one 3x3 convolution per feature, projection without ReLU by 1x1.

    Args:
        inside: Features of the input.
        outside: Features of the output; the input is added where it has the same size.
        expansion: Features within, as a multiple of `inside`.
        norm: Norm after each convolution.
        stride: Stride of the 3x3 convolution.
        dilation: Its dilation.
    """

    def __init__(self, inside: int, outside: int, expansion: int, norm: Norm, stride: int, dilation: int) -> None:
        super().__init__()
        middle = inside * expansion
        expand = [conv_norm(inside, middle, norm, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        each = conv_norm(middle, middle, norm, stride=stride, dilation=dilation, groups=middle)
        self.body = nn.Sequential(*expand, each, nn.ReLU6(inplace=True), conv_norm(middle, outside, norm, 1))
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the block's outer width."""
        features = cast(Tensor, self.body(x))
        return x + features if self.residual else features


def _multiple_of_8(features: float) -> int:
    """Return a width as MobileNets round it: to a multiple of 8, and not below nine tenths.

    Example:
        >>> [_multiple_of_8(width) for width in (4, 11, 12, 32)]
        [8, 16, 16, 32]
    """
    rounded = max(8, int(features + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * features else rounded + 8


def _halve(step: int) -> nn.Module:
    return nn.MaxPool2d(2) if step == 2 else nn.Identity()


def _steps_and_dilations(steps: Sequence[int], output_stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield of each stage the stride that is left to it, and the dilations before and after the place of its stride.

    Example:
        >>> list(_steps_and_dilations([2, 2, 2], 4))
        [(2, 1, 1), (2, 1, 1), (1, 1, 2)]
    """
    reached = dilation = 1
    for step in steps:
        before = dilation
        if reached * step > output_stride:
            step, dilation = 1, dilation * step
        reached *= step
        yield step, before, dilation


def start_as_he(layer: nn.Module) -> None:
    """Draw the weights of a convolution as in He et al. 2015, arXiv:1502.01852, which keeps the scale through ReLUs."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

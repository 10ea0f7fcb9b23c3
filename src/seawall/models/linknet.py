"""LinkNet: a decoder that adds the encoder's features to its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from seawall.models.blocks import Norm, Segmenter, check_bands_and_classes, conv_norm_relu, make_norm, settings_of
from seawall.models.cell_window import receptive_radius
from seawall.models.encoders import OWN_WIDTH, Encoder, EncoderName, check_encoder, make_encoder
from seawall.registry import register
from seawall.types import ModelSpec


@register("model", "linknet", paper="arXiv:1707.03718", smoke={"width": 4})
@dataclass(frozen=True)
class LinkNet:
    """LinkNet: each decoder block narrows, upsamples and widens, and the encoder's features are added to its output.

    Paper: Chaurasia and Culurciello 2017, arXiv:1707.03718; where the text leaves it open, as its authors released it
    (e-lab/pytorch-linknet). Differs: the encoder is a choice, so that what the last decoder block is added to is the
    features of stride 2 after a 3x3 max-pooling, which for a ResNet is the input of its first block, as in the paper.

    Args:
        encoder: One of `seawall.models.encoders.make_encoder`.
        width: Features of its first convolution, by which all others go; 0 is the encoder's own: 64 for ResNets and
            VGG-16, 32 for MobileNetV2, 16 for the plain one.
        norm: As of "unet".
    """

    encoder: EncoderName = "resnet18"
    width: int = 0
    norm: Norm = "batch"
    name: ClassVar[str] = "linknet"

    def __post_init__(self) -> None:
        check_encoder(self.name, self.encoder, self.norm, self.width)
        object.__setattr__(self, "width", self.width or OWN_WIDTH[self.encoder])

    def __call__(self, spec: ModelSpec) -> Segmenter:
        check_bands_and_classes(self.name, spec)
        spec = replace(spec, architecture=self.name, settings=settings_of(asdict(self)))
        encoder = make_encoder(self.encoder, len(spec.bands), self.norm, width=self.width)
        layers = LinkNetLayers(encoder, len(spec.classes), self.norm)
        return Segmenter(spec, layers, encoder.strides[-1], receptive_radius(layers))


class LinkNetLayers(nn.Module):
    """The layers of a LinkNet between the standardized image and the logits.

    The names of submodules are those of the tensors in weights files.
    """

    def __init__(self, encoder: Encoder, classes: int, norm: Norm) -> None:
        super().__init__()
        self.encoder = encoder
        channels = encoder.channels[-5:]  # at strides 2, 4, 8, 16 and 32
        last = max(1, round(32 * encoder.scale))
        self.decode = nn.ModuleList(
            narrow_upsample_widen(inside, outside, norm, upsample=index > 0)
            for index, (outside, inside) in enumerate(pairwise(channels))
        )
        self.rise = upsample_by_3x3(channels[0], last, norm)
        self.refine = conv_norm_relu(last, last, norm)
        self.head = nn.ConvTranspose2d(last, classes, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of a standardized image whose sides are multiples of 32."""
        half, *skips = self.encoder(x)[-5:]
        skips.insert(0, functional.max_pool2d(half, 3, 2, 1))
        x = skips.pop()
        for level in reversed(range(len(self.decode))):
            x = self.decode[level](x) + skips[level]
        return self.head(self.refine(self.rise(x)))  # type: ignore[no-any-return]


def narrow_upsample_widen(inside: int, outside: int, norm: Norm, upsample: bool) -> nn.Sequential:
    """Return the block of a LinkNet's decoder: 1x1 to a quarter of the features, 3x3 that may double the size, 1x1."""
    quarter = max(1, inside // 4)
    return nn.Sequential(
        conv_norm_relu(inside, quarter, norm, 1),
        upsample_by_3x3(quarter, quarter, norm) if upsample else conv_norm_relu(quarter, quarter, norm),
        conv_norm_relu(quarter, outside, norm, 1),
    )


def upsample_by_3x3(inside: int, outside: int, norm: Norm) -> nn.Sequential:
    """Return a transposed 3x3 convolution that doubles the size, norm, ReLU."""
    layer = nn.ConvTranspose2d(inside, outside, 3, 2, 1, output_padding=1, bias=norm == "none")
    return nn.Sequential(layer, make_norm(norm, outside), nn.ReLU(inplace=True))

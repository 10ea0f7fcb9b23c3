"""Encoders: parameters and shapes of the published ones, dilation, widths, and the windows of their layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from seawall.errors import ModelError, UsageError
from seawall.models.blocks import BatchNorm, double_conv, make_norm
from seawall.models.cell_window import CellWindow, receptive_radius
from seawall.models.encoders import ENCODERS, InvertedResidual, ResidualBlock, make_encoder, vgg16_blocks

# Parameters of torchvision 0.28.0 for three bands: resnet18(), resnet34(), resnet50() without `fc`, and `features` of
# mobilenet_v2(), mobilenet_v2(width_mult=0.5) and vgg16(). Those of segmentation-models-pytorch 0.6.0 are the same.
TORCHVISION = [
    ("resnet18", "batch", 0, 11_176_512),
    ("resnet34", "batch", 0, 21_284_672),
    ("resnet50", "batch", 0, 23_508_032),
    ("mobilenetv2", "batch", 0, 2_223_872),
    ("mobilenetv2", "batch", 16, 687_680),
    ("vgg16", "none", 0, 14_714_688),
]
# The channels that segmentation-models-pytorch 0.6.0 states (`encoder.out_channels`), from stride 1 or 2 on.
CHANNELS = {
    "resnet18": (64, 64, 128, 256, 512),
    "resnet34": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "mobilenetv2": (16, 24, 32, 96, 1280),
    "vgg16": (64, 128, 256, 512, 512, 512),
}


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize(("name", "norm", "width", "count"), TORCHVISION)
def test_an_encoder_has_the_parameters_of_torchvision(name, norm, width, count) -> None:
    assert parameters(make_encoder(name, 3, norm, width=width)) == count


def test_a_norm_replaces_the_biases_of_vgg16() -> None:
    # vgg16_bn of torchvision keeps its 4224 biases, which the norms cancel, beside the norms: 14,723,136.
    assert parameters(make_encoder("vgg16", 3, "batch")) == 14_723_136 - 4_224


@pytest.mark.parametrize("bands", [1, 13])
@pytest.mark.parametrize("name", ENCODERS)
def test_features_have_the_channels_and_strides_that_are_stated(name, bands) -> None:
    encoder = make_encoder(name, bands).eval()
    with torch.no_grad():
        features = encoder(torch.rand(2, bands, 64, 96))
    assert [tuple(x.shape) for x in features] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert encoder.channels == CHANNELS.get(name, (16, 32, 64, 128, 256, 512))
    assert encoder.strides == (1, 2, 4, 8, 16, 32)[-len(features) :]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2"])
def test_a_dilated_encoder_gives_the_same_features_at_more_places(name, output_stride) -> None:
    """At every place that the network of stride 32 has, the dilated one of the same weights has the same features."""
    usual = make_encoder(name, 2, width=16).double().eval()
    dilated = make_encoder(name, 2, width=16, output_stride=output_stride).double().eval()
    dilated.load_state_dict(usual.state_dict())
    image = torch.rand(1, 2, 96, 64, dtype=torch.double)
    with torch.no_grad():
        for stride, same, features, denser in zip(
            usual.strides, dilated.strides, usual(image), dilated(image), strict=True
        ):
            assert same == min(stride, output_stride)
            torch.testing.assert_close(denser[..., :: stride // same, :: stride // same], features)


@pytest.mark.parametrize(("name", "stages"), [("plain", 6), ("vgg16", 5)])
def test_without_its_last_poolings_an_encoder_has_dilated_convolutions_of_the_same_number(name, stages) -> None:
    usual, dilated = make_encoder(name, 2, width=4), make_encoder(name, 2, width=4, output_stride=8)
    assert parameters(usual) == parameters(dilated)
    assert dilated.strides == (1, 2, 4, 8, 8, 8)[:stages]
    last = [part for part in dilated.stages[4].modules() if isinstance(part, nn.Conv2d)]
    assert {layer.dilation for layer in last} == {(2, 2)}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_smaller_depth_leaves_the_coarse_stages_out(name) -> None:
    whole, part = make_encoder(name, 2, width=8), make_encoder(name, 2, width=8, depth=3)
    assert part.channels == whole.channels[: len(part.channels)]
    assert part.strides[-1] == 8


def test_the_blocks_of_vgg16_are_those_of_its_encoder() -> None:
    torch.manual_seed(0)
    encoder = make_encoder("vgg16", 3, "none", width=4)
    blocks = nn.ModuleList(vgg16_blocks(3, 4))
    blocks.load_state_dict(
        {key.replace(".1.", ".", 1): value for key, value in encoder.stages[:5].state_dict().items()}
    )
    x = torch.rand(1, 3, 32, 32)
    features = encoder(x)
    for level, block in enumerate(blocks):
        x = block(x)
        assert torch.equal(x, features[level])
        x = functional.max_pool2d(x, 2)
    assert torch.equal(x, features[5])


@pytest.mark.parametrize(("name", "count"), [("resnet18", 5), ("resnet50", 12), ("mobilenetv2", 10)])
def test_a_block_adds_its_input(name, count) -> None:
    """A block whose last norm gives 0 returns its input, where that has the size of the output; so many blocks have."""
    encoder = make_encoder(name, 2, width=16).eval()
    unchanged = 0
    for block in encoder.modules():
        if isinstance(block, ResidualBlock | InvertedResidual):
            parts = list(block.body.modules())
            next(part for part in reversed(parts) if isinstance(part, BatchNorm)).weight.data.zero_()
            x = torch.rand(1, next(part for part in parts if isinstance(part, nn.Conv2d)).in_channels, 6, 6)
            unchanged += torch.equal(block(x), x)
    assert unchanged == count


def test_the_features_of_mobilenet_end_at_6() -> None:
    features = make_encoder("mobilenetv2", 2, width=8, depth=5).eval()(1000 * torch.rand(1, 2, 64, 64))
    assert features[-1].max().item() == 6


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "vgg16"])
def test_weights_start_as_in_he_et_al(name) -> None:
    """Standard deviation sqrt(2 / inputs of a unit), arXiv:1502.01852, eq. 10; biases 0."""
    torch.manual_seed(0)
    encoder = make_encoder(name, 3, "none" if name == "vgg16" else "batch")
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
            assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.05)
            assert layer.bias is None or not layer.bias.any()


def test_what_no_encoder_is_or_can_be_is_refused() -> None:
    for settings, words in [
        (("resnet19", 3), "encoder.encoder: unknown name 'resnet19'; did you mean"),
        (("resnet18", 3, "none"), "expected a norm with the encoder resnet18"),
        (("mobilenetv2", 3, "none"), "expected a norm with the encoder mobilenetv2"),
    ]:
        with pytest.raises(UsageError, match=words):
            make_encoder(*settings)
    with pytest.raises(UsageError, match="expected at most 5 with the encoder vgg16, got 6"):
        make_encoder("vgg16", 3, depth=6)
    with pytest.raises(UsageError, match="output_stride: expected 8, 16 or 32, got 4"):
        make_encoder("plain", 3, output_stride=4)
    with pytest.raises(UsageError, match=r"width: expected a whole number in 1\.\.1024, got -1"):
        make_encoder("plain", 3, width=-1)


def test_one_value_per_channel_is_normalized_by_the_running_statistics() -> None:
    norm = BatchNorm(3)
    norm(torch.randn(8, 3, 4, 4) * 2 + 1)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = torch.randn(1, 3, 1, 1, requires_grad=True)
    assert torch.equal(norm(x), norm.eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    torch.autograd.grad(norm.train()(x).sum(), x)
    several = torch.randn(2, 3, 1, 1)
    assert torch.equal(BatchNorm(3)(several), nn.BatchNorm2d(3)(several))


def felt(network: nn.Module, row: int, side: int) -> tuple[int, int]:
    """Return the first and the last input row that changes the output's row, by the gradient with positive weights."""
    for weight in network.parameters():
        weight.data.abs_().add_(0.01)
    for layer in network.modules():
        if isinstance(layer, nn.MaxPool2d):  # the mean reads every cell of its window, the maximum one of them
            layer.forward = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    x = torch.rand(1, 1, side, 16).requires_grad_()
    out = network.eval()(x)
    (slope,) = torch.autograd.grad(out[0, :, row].sum(), x)
    rows = slope.abs().sum((0, 1, 3)).nonzero()
    return int(rows.min()), int(rows.max())


LAYERS = {
    "convolution": nn.Conv2d(1, 1, 5, padding=2),
    "dilated": nn.Conv2d(1, 1, 3, padding=4, dilation=4),
    "strided": nn.Sequential(nn.Conv2d(1, 1, 7, 2, 3), nn.Upsample(scale_factor=2)),
    "pooled": nn.Sequential(nn.MaxPool2d(4), nn.ConvTranspose2d(1, 1, 4, 4)),
    "overlapping pooling": nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")),
    "transposed 3": nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.ConvTranspose2d(1, 1, 3, 2, 1, 1)),
    "transposed 4": nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.ConvTranspose2d(1, 1, 4, 2, 1)),
    "bilinear by 4": nn.Sequential(nn.Conv2d(1, 1, 4, 4), nn.Upsample(scale_factor=4, mode="bilinear")),
    "repeated edges": nn.Sequential(nn.Conv2d(1, 1, 8, 8), nn.ReplicationPad2d(1), nn.ConvTranspose2d(1, 1, 16, 8, 12)),
    "uneven": nn.Sequential(
        nn.Conv2d(1, 1, 4, 4), nn.ZeroPad2d((2, 3, 2, 3)), nn.Conv2d(1, 1, 6), nn.Upsample(scale_factor=4)
    ),
    "two levels": nn.Sequential(nn.Conv2d(1, 1, 7, 2, 3), nn.Conv2d(1, 1, 3, 2, 1), nn.Upsample(scale_factor=4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_window_of_a_layer_is_that_of_its_gradient(name) -> None:
    """Over all phases of the strides, the farthest row that is felt is exactly as far as the window says."""
    network, side = LAYERS[name], 64
    window = network.eval()(CellWindow())
    ends = [felt(network, row, side) for row in range(28, 36)]
    before = max(row - first for row, (first, _) in zip(range(28, 36), ends, strict=True))
    after = max(last - row for row, (_, last) in zip(range(28, 36), ends, strict=True))
    assert (window.stride, window.before, window.after) == (1, before, after)
    assert receptive_radius(network) == max(before, after)


def test_a_window_is_joined_unbounded_or_refused() -> None:
    class Both(nn.Module):
        def __init__(self, one, other):
            super().__init__()
            self.one, self.other = one, other

        def forward(self, x):
            return torch.cat([2 * self.one(x) + 1, self.other(x)], 1)

    assert receptive_radius(Both(nn.Conv2d(1, 1, 9, padding=4), nn.Conv2d(1, 1, 3, padding=1))) == 4
    assert receptive_radius(double_conv(1, 4, "pixel")) == 2
    assert receptive_radius(nn.Sequential(nn.Conv2d(1, 4, 1), make_norm("group", 4))) is None
    for network, words in [
        (nn.AdaptiveAvgPool2d(4), "adaptive_avg_pool2d; add its rule"),
        (nn.ReflectionPad2d(1), "zeros or by the cell at the edge, got reflect"),
        (nn.Conv2d(1, 1, 2, 2), "expected logits of the size of the image"),
        (nn.Upsample(scale_factor=2), "expected a map of stride 2"),
        (nn.Conv2d(1, 1, (3, 5), padding=(1, 2)), "square kernels"),
        (Both(nn.Conv2d(1, 1, 2, 2), nn.Identity()), "expected maps of one stride"),
    ]:
        with pytest.raises(ModelError, match=words):
            receptive_radius(network)

"""SegFormer: its published size, its stages, and attention by hand."""

import math

import pytest
import torch
from torch.nn import functional

from seawall.errors import UsageError
from seawall.models.blocks import PixelNorm
from seawall.models.segformer import AttentionBlock, ReducedAttention, SegFormer
from seawall.types import ModelSpec


def spec(bands: int, classes: int) -> ModelSpec:
    return ModelSpec(tuple(f"x{i}" for i in range(bands)), tuple(f"k{i}" for i in range(classes)), "reflectance", 10.0)


def test_b0_has_the_published_number_of_parameters() -> None:
    """3.7 M: 3,752,694 are in the released weights for 150 classes, nvidia/segformer-b0-finetuned-ade-512-512."""
    assert sum(weight.numel() for weight in SegFormer()(spec(3, 150)).parameters()) == 3_752_694


def test_b1_has_it_too() -> None:
    """13,715,798 in nvidia/segformer-b1-finetuned-ade-512-512."""
    made = SegFormer(widths=(64, 128, 320, 512))(spec(3, 150))
    assert sum(weight.numel() for weight in made.parameters()) == 13_715_798


def test_each_stage_has_its_share_of_the_size() -> None:
    network = SegFormer()(spec(7, 2)).eval().network
    x, shapes = torch.rand(1, 7, 64, 96), []
    with torch.no_grad():
        assert network(x).shape == (1, 2, 64, 96)
        for stage in network.stages:
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(32, 16, 24), (64, 8, 12), (160, 4, 6), (256, 2, 3)]


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_is_the_mean_of_values_weighted_by_the_softmax_of_scaled_products(reduction: int) -> None:
    torch.manual_seed(0)
    layer, x = ReducedAttention(6, 2, reduction).double(), torch.rand(2, 6, 4, 6, dtype=torch.float64)
    keys_of = layer.reduce(x)
    assert keys_of.shape[2:] == (4 // reduction, 6 // reduction)
    query, (key, value) = layer.query(x), layer.key_value(keys_of).chunk(2, 1)
    expected = torch.zeros_like(x)
    for image in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            q, k, v = (maps[image, head].flatten(1) for maps in (query, key, value))
            for pixel in range(24):
                weights = torch.softmax(
                    torch.stack([q[:, pixel] @ k[:, j] for j in range(k.shape[1])]) / math.sqrt(3), 0
                )
                expected[image, head, pixel // 6, pixel % 6] = (v * weights).sum(1)
    torch.testing.assert_close(layer(x), layer.project(expected))


def normalized(x: torch.Tensor, norm: PixelNorm) -> torch.Tensor:
    """Return the layer norm over the channels of each pixel, by its formula."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_a_block_adds_attention_and_then_a_feed_forward_layer_of_its_neighborhood() -> None:
    torch.manual_seed(0)
    block, x = AttentionBlock(6, 2, 1).double(), torch.rand(2, 6, 4, 5, dtype=torch.float64)
    for weight in block.parameters():
        torch.nn.init.normal_(weight)
    (norm, attention), (other, widen, near, _, narrow) = block.attend, block.feed_forward
    mixed = x + attention(normalized(x, norm))
    hidden = functional.conv2d(normalized(mixed, other), widen.weight, widen.bias)
    hidden = functional.conv2d(hidden, near.weight, near.bias, padding=1, groups=24)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))  # GELU
    torch.testing.assert_close(block(x), mixed + functional.conv2d(hidden, narrow.weight, narrow.bias))


def test_every_pixel_can_depend_on_every_other() -> None:
    torch.manual_seed(0)
    model = SegFormer()(spec(2, 2)).eval()
    assert model.reach is None
    image = torch.rand(1, 2, 128, 128, requires_grad=True)
    (slope,) = torch.autograd.grad(model(image)[0, 1, 0, 0], image)
    assert bool((slope[..., -32:, -32:] != 0).any())


def test_gradients_of_gradients_are_there() -> None:
    """Gradient alignment differentiates the gradient to the image; the fused attention of the CPU cannot."""
    model = SegFormer((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 2, 2), 8)(spec(2, 2)).eval()
    image = torch.rand(1, 2, 32, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(model(image).square().sum(), image, create_graph=True)
    slope.square().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"segformer\.widths: expected a multiple of the 5 heads.*got 32; use 35"):
        SegFormer(widths=(32, 64, 32, 256))
    with pytest.raises(UsageError, match=r"segformer\.depths\[2\]"):
        SegFormer(depths=(2, 2, 0, 2))

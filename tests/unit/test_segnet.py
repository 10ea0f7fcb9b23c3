"""SegNet: values come back to where they were the maximum, and the published size."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from seawall.models.segnet import SegNet, pool_with_positions, unpool
from seawall.types import ModelSpec

SPEC = ModelSpec(("B03", "B08", "B11"), ("land", "water"), "reflectance", 10.0)


def test_unpooling_puts_each_maximum_back_to_its_place_and_zeros_elsewhere() -> None:
    image = torch.rand(2, 3, 6, 8) + 0.1
    pooled, position = pool_with_positions(image)
    back = unpool(pooled, position)
    assert torch.equal(back[back != 0], image[back != 0]) and int((back != 0).sum()) == pooled.numel()
    assert torch.equal(functional.max_pool2d(back, 2), pooled)


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_pooling_and_unpooling_are_those_of_pytorch(low: float) -> None:
    """Values of both signs, and with gradients; other values than the pooled ones, as a decoder unpools them."""
    draw = torch.Generator().manual_seed(0)
    image = (torch.rand(2, 5, 12, 10, generator=draw) + low).requires_grad_()
    other = image.detach().clone().requires_grad_()
    scale = torch.rand(2, 5, 6, 5, generator=draw)
    pooled, position = pool_with_positions(image)
    expected, index = functional.max_pool2d(other, 2, return_indices=True)
    assert torch.equal(pooled, expected)
    made, wanted = unpool(pooled * scale, position), functional.max_unpool2d(expected * scale, index, 2)
    assert torch.equal(made, wanted)
    target = torch.rand(2, 5, 12, 10, generator=draw)
    (made * target).sum().backward()
    (wanted * target).sum().backward()
    assert torch.equal(image.grad, other.grad)


def test_the_decoder_unpools_with_the_positions_of_the_same_level() -> None:
    """With a decoder that passes its first map on, the coarsest maximum ends at the pixel that it came from."""
    network = SegNet(4, "none")(SPEC).eval().network
    for block in network.down:  # the identity of the first map, which the ReLUs leave alone
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
                layer.weight.data[0, 0, 1, 1] = 1.0
    for layer in (*network.up.modules(), network.head):
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data[0, 0, 1, 1] = 1.0
    image = torch.rand(1, 3, 64, 64)
    flat = functional.max_pool2d(image[:, :1], 32, return_indices=True)
    expected = functional.max_unpool2d(*flat, 32)
    with torch.no_grad():
        assert torch.equal(network(image)[:, :1], expected)


def test_the_published_size() -> None:
    """The encoder has the 14.7 M of the paper (arXiv:1511.00561, section 3), the layers are those of the released prototxt.

    It is Models/segnet_train.prototxt of github.com/alexgkendall/SegNet-Tutorial, for CamVid's 11 classes, with biases
    before the norms, where they have no effect and there are none here.
    """
    down = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), *[(512, 512)] * 5]
    up = [*[(512, 512)] * 5, (512, 256), (256, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64), (64, 11)]
    made = SegNet(width=64)(ModelSpec(SPEC.bands, tuple(map(str, range(11))), "reflectance", 10.0))
    found = [layer for layer in made.network.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in found] == down + up
    convolutions = sum(9 * a * b for a, b in down + up) + 11  # the last has a bias
    assert sum(weight.numel() for weight in made.parameters()) == convolutions + sum(2 * b for _, b in down + up[:-1])
    biased = sum(9 * a * b + b for a, b in down)
    assert round(biased / 1e6, 1) == 14.7


def test_the_reach_is_that_of_the_convolutions_and_the_coarsest_cell() -> None:
    """3x3 convolutions reach one cell of their size: two each at 1 and 2 pixels, three each at 4, 8 and 16, down and up."""
    assert SegNet(4)(SPEC).reach == 2 * (2 * 1 + 2 * 2 + 3 * 4 + 3 * 8 + 3 * 16) + 31
    assert SegNet(4, "group")(SPEC).reach is None

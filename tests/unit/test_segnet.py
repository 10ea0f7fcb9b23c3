"""SegNet: values come back to where they were the maximum, and the published size."""

import torch
from torch import nn

from seawall.models.segnet import SegNet
from seawall.types import ModelSpec

SPEC = ModelSpec(("B03", "B08", "B11"), ("land", "water"), "reflectance", 10.0)


def pass_the_first_map_on(layers: nn.Module) -> None:
    """Make of every convolution one that copies its first map, which ReLUs leave as it is where it is not negative."""
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data[0, 0, 1, 1] = 1.0


def test_values_come_back_to_the_pixels_that_they_came_from() -> None:
    """With convolutions that copy, the maximum of 32x32 pixels goes down five levels and up again to its own pixel."""
    network = SegNet(4, "none")(SPEC).eval().network
    pass_the_first_map_on(network)
    image = torch.rand(1, 3, 64, 96)
    expected = torch.zeros(64, 96)
    for row in range(0, 64, 32):
        for col in range(0, 96, 32):
            cell = image[0, 0, row : row + 32, col : col + 32]
            down, right = divmod(int(cell.argmax()), 32)
            expected[row + down, col + right] = cell.max()
    with torch.no_grad():
        assert torch.equal(network(image)[0, 0], expected)


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

"""The radius of a path of layers against the gradients of networks whose weights hide nothing."""

import pytest
import torch
from torch import nn

from seawall.models.receptive_field import path_radius

PATHS = {
    "one convolution": [nn.Conv2d(1, 1, 5, padding=2)],
    "dilated": [nn.Conv2d(1, 1, 3, padding=4, dilation=4), nn.Conv2d(1, 1, 3, padding=1)],
    "down and up by 2": [nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.ConvTranspose2d(1, 1, 2, 2)],
    "bilinear by 8": [nn.Conv2d(1, 1, 8, 8), nn.ReplicationPad2d(1), nn.ConvTranspose2d(1, 1, 16, 8, 12)],
    "uneven": [nn.Conv2d(1, 1, 11, 4, 4), nn.ZeroPad2d((2, 3, 2, 3)), nn.Conv2d(1, 1, 6), nn.ConvTranspose2d(1, 1, 8, 4, 2)],
    "overlapping pooling": [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.ConvTranspose2d(1, 1, 4, 2, 1), nn.ConvTranspose2d(1, 1, 4, 2, 1)],
}  # fmt: skip


@pytest.mark.parametrize("layers", PATHS.values(), ids=PATHS)
def test_the_radius_is_the_farthest_pixel_with_a_gradient(layers: list[nn.Module]) -> None:
    side = 96
    image, at = torch.rand(1, 1, side, side, requires_grad=True), torch.arange(side)
    x = image
    for layer in layers:
        for weight in layer.parameters():
            nn.init.ones_(weight)
        # The average depends on every pixel of the window, where the maximum depends on one.
        x = (
            nn.functional.avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding)
            if isinstance(layer, nn.MaxPool2d)
            else layer(x)
        )
    assert x.shape == image.shape
    found = 0
    for row in range(40, 56):  # a period of the coarsest grid, far from the edges
        (slope,) = torch.autograd.grad(x[0, 0, row, 48], image, retain_graph=True)
        found = max(found, int((at - row)[slope[0, 0].abs().sum(1) > 0].abs().max()))
    assert path_radius(layers) == path_radius([nn.Sequential(*layers)]) == found


def test_a_group_norm_has_no_bound_and_other_layers_look_at_one_pixel() -> None:
    assert path_radius([nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)]) is None
    assert path_radius([nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)]) == 0

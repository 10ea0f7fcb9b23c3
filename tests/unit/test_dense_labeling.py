"""Volpi and Tuia's networks: the patch classifier at every pixel is the patch classifier, and both share their layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import UsageError
from seawall.models.dense_labeling import CONTRACTING_KERNELS, CenterPixelClassifier, DenseLabeling
from seawall.types import ModelSpec

SPEC = ModelSpec(("B03", "B08", "B11"), ("land", "water"), "reflectance", 10.0)


def classify_patch(layers: nn.Sequential, patch: Tensor) -> Tensor:
    """Return the logits (B, K) of patches (B, C, P, P) as a classifier of patches does it: with strides, without dilation."""
    x = patch
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = functional.conv2d(x, layer.weight, layer.bias)
        elif isinstance(layer, nn.MaxPool2d):
            x = functional.max_pool2d(x, 3, 2)
        else:
            x = layer(x)
    assert x.shape[2:] == (1, 1), "the classifier leaves one cell of a patch"
    return x[..., 0, 0]


def random_norms(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that differ from channel to channel, as after a training."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                nn.init.uniform_(values, 0.2, 1.0)
    return model


@pytest.mark.parametrize("patch", [33, 49, 65])
@pytest.mark.parametrize("norm", ["batch", "pixel"])
def test_the_patch_classifier_at_every_pixel_is_the_classifier_of_each_patch(patch: int, norm: str) -> None:
    torch.manual_seed(0)
    model = random_norms(CenterPixelClassifier(4, patch, norm)(SPEC)).eval()
    image, half = torch.rand(1, 3, patch + 6, patch + 9), patch // 2
    with torch.no_grad():
        whole = model(image)
        around = functional.pad(image, [half] * 4, mode="reflect")
        for row, col in ((0, 0), (half, half + 4), (half + 3, 2), (patch + 5, patch + 8)):  # edges and interior
            cut = around[..., row : row + patch, col : col + patch]
            torch.testing.assert_close(whole[..., row, col], classify_patch(model.network.layers, cut))


def test_the_reach_of_the_patch_classifier_is_half_a_patch_and_no_less() -> None:
    torch.manual_seed(0)
    model = CenterPixelClassifier(4, 33)(SPEC).eval()
    assert (model.reach, model.stride) == (16, 1)
    image = torch.rand(1, 3, 40, 40, requires_grad=True)
    logits = model(image)
    found = []
    for row in range(16, 24):  # all patches inside of the image
        (slope,) = torch.autograd.grad(logits[0, 1, row, 20], image, retain_graph=True)
        found.append(int((slope.abs().sum((0, 1)).nonzero() - torch.tensor([row, 20])).abs().max()))
    assert max(found) == 16


def test_both_networks_have_the_same_contracting_layers_and_differ_in_how_they_come_back() -> None:
    patches, dense = CenterPixelClassifier(6)(SPEC).network.layers, DenseLabeling(6)(SPEC).network
    down = (
        4 * len(CONTRACTING_KERNELS) + 1
    )  # convolution, norm, ReLU, pooling; and the layer that sees what a patch leaves
    for one, other in zip(patches[:down], dense[:down], strict=True):
        assert [tuple(w.shape) for w in one.parameters()] == [tuple(w.shape) for w in other.parameters()]
    assert not any(isinstance(layer, nn.ConvTranspose2d) for layer in patches)
    ups = [layer for layer in dense if isinstance(layer, nn.ConvTranspose2d)]
    assert [(up.kernel_size, up.stride) for up in ups] == [((4, 4), (2, 2))] * 3


def test_dense_labeling_has_no_skip_connection() -> None:
    """Cut at the coarsest maps, nothing of the image is left in the logits."""
    network = DenseLabeling(4, 33)(SPEC).eval().network
    coarsest = network[4 * len(CONTRACTING_KERNELS)]
    nn.init.zeros_(coarsest.weight)
    nn.init.zeros_(coarsest.bias)
    one, other = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(network(one), network(other))


@pytest.mark.parametrize("norm", ["batch", "pixel", "group", "none"])
@pytest.mark.parametrize("make", [CenterPixelClassifier, DenseLabeling])
def test_every_norm_trains_on_a_batch_of_one_pixel(make, norm: str) -> None:
    model = make(4, 33, norm)(SPEC).train()
    assert (model.reach is None) == (norm == "group"), "a group norm averages over the image"
    model(torch.rand(1, 3, 1, 1)).square().mean().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    first = next(layer for layer in model.network.modules() if isinstance(layer, nn.Conv2d))
    assert (first.bias is not None) == (norm == "none")


@pytest.mark.parametrize("patch", [0, 25, 32, 41, 50])
def test_a_patch_whose_cells_have_no_center_is_refused(patch: int) -> None:
    with pytest.raises(UsageError, match=r"patch-classifier\.patch: expected"):
        CenterPixelClassifier(patch=patch)

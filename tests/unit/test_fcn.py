"""Convolutionalized classifiers: the bilinear start, the scores that are added, and the published sizes."""

import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from seawall.errors import UsageError
from seawall.models.cell_window import CellWindow
from seawall.models.fcn import FCN, FCNAlexNet, bilinear_upsampling
from seawall.recipe.recipe import make_recipe
from seawall.registry import build
from seawall.types import ModelSpec

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("fcn-32s", "fcn-16s", "fcn-8s", "fcn-alexnet")


def spec(bands: int, classes: int) -> ModelSpec:
    return ModelSpec(tuple(f"x{i}" for i in range(bands)), tuple(f"k{i}" for i in range(classes)), "reflectance", 10.0)


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_upsampling_starts_as_the_interpolation_of_each_class(factor: int) -> None:
    up = bilinear_upsampling(3, factor)
    scores = torch.rand(2, 3, 4, 5)
    expected = functional.interpolate(scores, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(up(scores), expected, atol=1e-6, rtol=1e-5)


def test_a_ramp_of_scores_becomes_a_ramp_of_pixels() -> None:
    """Between the centers of the first and the last cell the interpolation of a linear function is that function."""
    ramp = torch.arange(6.0).expand(1, 1, 4, 6)
    pixels = (torch.arange(6 * 8) + 0.5) / 8 - 0.5
    torch.testing.assert_close(bilinear_upsampling(1, 8)(ramp)[0, 0, 9, 4:-4], pixels[4:-4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_network_interpolates_its_coarsest_scores(name: str) -> None:
    torch.manual_seed(0)
    network = build("model", name, {"width": 6, "fc": 8})(spec(3, 4)).eval().network
    image = torch.rand(1, 3, 96, 128)
    x = image
    for part in network.parts:
        x = part(x)
    scores = network.score(network.classifier(x))
    assert scores.shape == (1, 4, 3, 4) and scores.std() > 0
    for up in (*network.ups, network.last):
        scores = functional.interpolate(scores, scale_factor=up[1].stride, mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(image), scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "scored"), [("fcn-32s", []), ("fcn-16s", [48]), ("fcn-8s", [24, 48]), ("fcn-alexnet", [])]
)
def test_finer_maps_are_scored_by_a_1x1_convolution_and_added(name: str, scored: list[int]) -> None:
    """The widths are those of pool3 and pool4 of VGG-16: 4 and 8 times that of its first convolution."""
    network = build("model", name, {"width": 6, "fc": 8})(spec(3, 2)).eval().network
    assert [(skip.in_channels, skip.kernel_size) for skip in network.skips] == [(width, (1, 1)) for width in scored]
    image = torch.rand(1, 3, 64, 64)
    for index, skip in enumerate(network.skips):
        with torch.no_grad():
            before = network(image)
            skip.bias += 2.0
            torch.testing.assert_close(network(image), before + 2.0)  # a constant stays one when it is interpolated
            x = image
            for part in network.parts[: index + 1]:
                x = part(x)
            assert x.shape[-1] == 64 // {24: 8, 48: 16}[skip.in_channels]


def test_the_published_sizes() -> None:
    """At 3 bands, 21 classes and the published settings; upsampling has one kernel per pair of classes, as in Caffe.

    VGG-16 has 138,357,544 parameters (keras.io/api/applications), of which 1000 classes take 4,097,000. The paper's table 1
    has 134 M for FCN-VGG16 and 57 M for FCN-AlexNet, whose upsampling it fixes. FCN-8s in PyTorch with learned upsampling:
    134,489,759 (github.com/YBIGTA/DL_Models, models/fcn). AlexNet of two groups has 60,965,224
    (github.com/HewlettPackard/dlcookbook-dlbs), of which 1000 classes take 4,097,000.
    """
    score = 4096 * 21 + 21
    published = {"fc": 4096}
    with torch.device("meta"):
        vgg = [build("model", name, {"width": 64, "norm": "none", **published})(spec(3, 21)) for name in NAMES[:3]]
        alexnet = build("model", "fcn-alexnet", {"norm": "local", **published})(spec(3, 21))
    pool4, pool3, twice = 512 * 21 + 21, 256 * 21 + 21, 21 * 21 * 4 * 4
    body = 138_357_544 - 4_097_000 + score
    assert round(body / 1e6) == 134
    assert [parameters(model) for model in vgg] == [
        body + 21 * 21 * 64 * 64, body + pool4 + twice + 21 * 21 * 32 * 32, 134_489_759,
    ]  # fmt: skip
    assert body + pool4 + pool3 + 2 * twice + 21 * 21 * 16 * 16 == 134_489_759
    without = parameters(alexnet) - parameters(alexnet.network.last)
    assert without == 60_965_224 - 4_097_000 + score and round(without / 1e6) == 57


@pytest.mark.parametrize(("name", "size"), [("fcn-32s", 404), ("fcn-alexnet", 355)])
def test_fc7_sees_as_much_of_the_image_as_the_paper_says(name: str, size: int) -> None:
    """Table 1 of arXiv:1411.4038, "rf size"; beyond it the bilinear kernel reads the next cell."""
    model = build("model", name, {"width": 6, "fc": 4})(spec(2, 2)).eval()
    window = model.network.classifier(model.network.parts[0](CellWindow()))
    assert (window.before + window.stride + window.after, window.stride) == (size, 32)
    assert model.reach is not None and size // 2 < model.reach <= size // 2 + 34


@pytest.mark.parametrize("norm", ["batch", "pixel", "group", "none", "local"])
def test_every_norm_trains_on_a_batch_of_one_tiny_image(norm: str) -> None:
    for make in (FCNAlexNet,) if norm == "local" else (FCN, FCNAlexNet):
        model = make(width=6, fc=8, norm=norm)(spec(3, 2)).train()
        model(torch.rand(1, 3, 9, 5)).square().mean().backward()
        assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
        first = next(layer for layer in model.network.parts.modules() if isinstance(layer, nn.Conv2d))
        assert (first.bias is not None) == (norm in ("none", "local"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", ["seed1-figure-2.toml", "seed1-figure-2-water.toml"])
def test_a_name_is_enough_to_be_the_victim_of_seed_1(name: str, recipe: str) -> None:
    tables = tomllib.loads((RECIPES / recipe).read_text()) | {"model": {"name": name}}
    made = make_recipe(tables).model
    assert build("model", made.name, made.settings)(spec(6, 8)).spec.architecture == name


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"fcn-alexnet\.width: expected a multiple of 6.*got 10; use 12"):
        FCNAlexNet(width=10)
    with pytest.raises(UsageError, match=r"fcn-16s\.fc: expected a whole number in 1\.\.4096"):
        build("model", "fcn-16s", {"fc": 5000})
    with pytest.raises(UsageError, match=r"fcn-8s\.stride"):
        build("model", "fcn-8s", {"stride": 4})

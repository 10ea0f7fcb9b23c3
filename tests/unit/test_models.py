"""Networks, threshold rules and the adapter: shapes, normalization, closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from seawall.errors import ModelError, UsageError
from seawall.labels.rules import parse_rule
from seawall.models.adapter import PROBABILITIES, adapt
from seawall.models.blocks import Standardize, make_norm
from seawall.models.dense_unet import DenseUNet
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.registry import build, entries
from seawall.types import Batch, ModelSpec

S2 = ModelSpec(("B03", "B08", "B11"), ("land", "water"), "reflectance", 10.0)
S1 = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
SMALL = [UNet(width=4, depth=2), DenseUNet(width=4, depth=2, growth=4, layers=2)]


@pytest.mark.parametrize("make", SMALL, ids=repr)
@pytest.mark.parametrize("size", [(16, 16), (17, 30), (3, 5), (1, 1)])
def test_any_size_and_any_number_of_bands_and_classes(make, size) -> None:
    for bands, classes in ((1, 2), (13, 5)):
        spec = ModelSpec(
            tuple(f"x{i}" for i in range(bands)), tuple(f"k{i}" for i in range(classes)), "reflectance", 10
        )
        logits = make(spec).eval()(torch.rand(2, bands, *size))
        assert logits.shape == (2, classes, *size)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("make", SMALL, ids=repr)
def test_the_spec_says_how_to_build_the_model_again(make) -> None:
    model = make(S2)
    again = build("model", model.spec.architecture, model.spec.settings)
    assert again == make
    again(S2).load_state_dict(model.state_dict())


@pytest.mark.parametrize("norm", ["pixel", "batch", "group"])
def test_every_norm_trains_on_a_batch_of_one(norm) -> None:
    model = UNet(width=4, depth=2, norm=norm)(S2).train()
    model(torch.rand(1, 3, 16, 16)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    "make", [*SMALL, UNet(width=4, depth=3), DenseUNet(width=4, depth=1, growth=4, layers=3)], ids=repr
)
def test_reach_is_how_far_a_pixel_is_felt(make) -> None:
    torch.manual_seed(0)
    model = make(S2).eval()
    side = 2 * (model.reach + model.stride) + model.stride
    side += -side % model.stride
    image = torch.rand(1, 3, side, side)
    x = image.clone().requires_grad_()
    at = side // 2
    model(x)[0, 1, at, at].backward()
    felt = x.grad.abs().sum((0, 1)).nonzero()
    assert int((felt - at).abs().max()) <= model.reach
    far = image.clone()
    far[..., : at - model.reach] = 9.0
    assert torch.equal(model(far)[..., at:], model(image)[..., at:])


def test_the_side_of_a_padded_image_is_reflected() -> None:
    model = UNet(width=4, depth=2)(S2).eval()
    image = torch.rand(1, 3, 14, 16)
    reflected = torch.cat([image, image[..., [12, 11], :]], 2)
    torch.testing.assert_close(model(image), model(reflected)[..., :14, :])


def test_dropout_acts_in_training_only() -> None:
    model = UNet(width=4, depth=2, dropout=0.5)(S2)
    image = torch.rand(1, 3, 16, 16)
    assert not torch.equal(model.train()(image), model(image))
    assert torch.equal(model.eval()(image), model(image))


def test_dropout_is_in_the_decoder_alone() -> None:
    network = UNet(4, 2, dropout=0.5)(S2).train().network
    x = torch.rand(2, len(S2.bands), 16, 16)
    for stage in network.down:
        assert torch.equal(network.stem(x), network.stem(x))
        halved = torch.nn.functional.max_pool2d(torch.rand(2, stage[0][0].in_channels, 16, 16), 2)
        assert torch.equal(stage(halved), stage(halved))
    assert not torch.equal(network(x), network(x))


def test_the_bridges_of_the_unet_carry_each_size_to_its_own() -> None:
    network = UNet(4, 2, "pixel")(S2).eval().network
    a, b = torch.rand(2, 1, len(S2.bands), 16, 16)
    with torch.no_grad():
        for rise in network.rise:  # nothing comes up from below any more
            rise.weight.zero_()
            rise.bias.zero_()
        assert not torch.allclose(network(a), network(b)), "the image reaches the logits over the bridge alone"
        b[..., :5, :5] = a[..., :5, :5]
        assert torch.allclose(network(a)[..., 0, 0], network(b)[..., 0, 0]), (
            "and nearby only: two blocks of two convolutions"
        )


def test_the_pixel_norm_looks_at_one_pixel() -> None:
    x = torch.randn(2, 6, 3, 3)
    norm = make_norm("pixel", 6)
    other = x.clone()
    other[:, :, 0, 0] += torch.randn(2, 6)
    a, b = norm(x), norm(other)
    assert torch.equal(a[:, :, 1:], b[:, :, 1:]) and not torch.allclose(a[:, :, 0, 0], b[:, :, 0, 0])
    torch.testing.assert_close(a.mean(1), torch.zeros(2, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(norm(x[:1, :, 1:2, 1:2]), a[:1, :, 1:2, 1:2])


def test_bad_sizes_are_refused() -> None:
    for make in (lambda: UNet(width=-1), lambda: UNet(depth=9), lambda: UNet(dropout=1.0), lambda: DenseUNet(layers=0)):
        with pytest.raises(UsageError, match="expected"):
            make()
    with pytest.raises(ModelError, match="2 classes"):
        UNet()(ModelSpec(("B03",), ("water",), "reflectance", 10))
    with pytest.raises(ModelError, match="3 bands"):
        UNet(width=4, depth=1)(S2)(torch.rand(1, 2, 8, 8))


def test_standardize_is_the_first_layer_and_fits_data_units() -> None:
    model = UNet(width=4, depth=2)(S2).eval()
    image = torch.rand(1, 3, 8, 8)
    plain = model(image)
    model.standardize.fit([0.1, 0.2, 0.3], [0.5, 0.25, 2.0])
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    torch.testing.assert_close(model(image * std[:, None, None] + mean[:, None, None]), plain, rtol=1e-4, atol=1e-5)
    assert model.standardize.fitted


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0, 0], [1, 0]), ([0, 0], [1, float("nan")]), ([float("nan"), 0], [1, 1]), ([0], [1, 1]), ([0, 0], [1, -1])],
)
def test_statistics_that_cannot_be_are_refused(mean, std) -> None:
    layer = Standardize(2)
    with pytest.raises(ModelError, match="standardize"):
        layer.fit(mean, std)
    assert not layer.fitted


def test_threshold_logits_are_the_index_beside_zero() -> None:
    image = torch.tensor([0.3, 0.1, 0.2]).reshape(1, 3, 1, 1)
    for index, value in (("ndwi", 0.5), ("mndwi", 0.2)):
        logits = WaterIndexThreshold(index=index, threshold=0.1, sharpness=4.0)(S2)(image)
        torch.testing.assert_close(logits.flatten(), torch.tensor([0.0, 4 * (value - 0.1)]))
    full = ModelSpec(("B02", "B03", "B08", "B11", "B12"), ("land", "water"), "reflectance", 10.0)
    image = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).reshape(1, 5, 1, 1)
    for index, value in (("awei_nsh", 4 * (0.2 - 0.4) - (0.075 + 1.375)), ("awei_sh", 0.1 + 0.5 - 1.05 - 0.125)):
        got = WaterIndexThreshold(index=index)(full)(image)[0, 1].item()
        assert got == pytest.approx(10 * value, rel=1e-5)


def test_radar_water_is_below_the_threshold() -> None:
    model = WaterIndexThreshold()(S1)
    assert model.index.name == "vv"
    image = torch.tensor([[-20.0, -25.0], [-5.0, -12.0]]).reshape(2, 2, 1, 1)
    assert model(image).argmax(1).flatten().tolist() == [1, 0]


def test_unseen_and_undefined_pixels_are_land_with_no_gradient() -> None:
    dark = torch.full((1, 2, 1, 1), -30.0)
    assert WaterIndexThreshold()(S1)(dark).argmax(1).item() == 0
    for bands in ([0.0, 0.0, 0.0], [0.1, 0.2, -0.1]):
        image = torch.tensor(bands).reshape(1, 3, 1, 1).requires_grad_()
        logits = WaterIndexThreshold(index="mndwi")(S2)(image)
        logits.sum().backward()
        assert logits.argmax(1).item() == 0
        assert image.grad.eq(0).all()


def test_threshold_gradient_matches_finite_differences() -> None:
    model = WaterIndexThreshold(index="ndwi")(S2).double()
    image = torch.rand(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    assert torch.autograd.gradcheck(model, (image.requires_grad_(),))


def test_water_may_be_the_first_class() -> None:
    spec = ModelSpec(S2.bands, ("water", "land"), "reflectance", 10.0)
    image = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(WaterIndexThreshold()(spec)(image), WaterIndexThreshold()(S2)(image).flip(1))


def test_otsu_fit_finds_the_valley_or_falls_back() -> None:
    model = WaterIndexThreshold(index="ndwi", rule="otsu", threshold=0.25)(S2)
    image = torch.full((1, 3, 8, 8), 0.1)
    with pytest.raises(ModelError, match="fit"):
        model(image)
    image[:, 1, :4] = 0.3  # ndwi = -0.5 and 0
    image[:, 0, :4] = 0.1
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    model.fit([Batch.of(image, label)] * 2)
    assert model.threshold.item() == pytest.approx(-0.25, abs=2e-3)
    flat = WaterIndexThreshold(index="ndwi", rule="otsu", threshold=-0.1)(S2)
    flat.fit([Batch.of(torch.full((1, 3, 8, 8), 0.1), label)])
    assert flat.threshold.item() == pytest.approx(-0.1)
    with pytest.raises(UsageError, match="otsu"):
        WaterIndexThreshold(index="ndwi")(S2).fit([])


@pytest.mark.parametrize("apart", [0.0, 0.25, 0.35, 0.45, 0.55, 0.7, 1.0])
def test_otsu_of_the_model_is_otsu_of_the_label_rule(apart) -> None:
    """The same pixels give both verbs the same answer: two modes or one, and where they part."""
    rng = np.random.default_rng(3)
    index = np.concatenate([rng.normal(-apart / 2, 0.1, 6000), rng.normal(apart / 2, 0.1, 4000)]).clip(-0.9, 0.9)
    green = rng.uniform(0.05, 0.2, index.shape)
    image = np.stack([green, green * (1 - index) / (1 + index), green]).reshape(3, 100, 100).astype(np.float32)
    seen = np.ones((100, 100), bool)
    label = parse_rule("ndwi otsu else 0.05")(image, seen, ("B03", "B08", "B11"), "reflectance")
    model = WaterIndexThreshold(index="ndwi", rule="otsu", threshold=0.05)(S2)
    tensor = torch.from_numpy(image[None])
    model.fit([Batch.of(tensor, torch.zeros(1, 100, 100, dtype=torch.long))])
    assert (float(model.threshold) != np.float32(0.05)) == (label.threshold.method == "otsu")
    assert float(model.threshold) == pytest.approx(label.threshold.value, abs=0.01)
    assert (model(tensor).argmax(1)[0].numpy() == label.label).mean() > 0.995


def test_otsu_of_the_model_counts_batch_by_batch() -> None:
    image = torch.rand(4, 3, 16, 16) * 0.3 + 0.01
    label = torch.zeros(4, 16, 16, dtype=torch.long)
    fits = []
    for size in (1, 4):
        model = WaterIndexThreshold(index="ndwi", rule="otsu")(S2)
        batch = Batch.of(image, label)
        model.fit([batch.select(range(i, i + size)) for i in range(0, 4, size)])
        fits.append(float(model.threshold))
    assert fits[0] == fits[1]


def test_threshold_refuses_what_it_cannot_measure() -> None:
    cases = [
        (WaterIndexThreshold(index="awei_sh"), S2, "B02"),
        (WaterIndexThreshold(index="ndwi"), ModelSpec(S2.bands, S2.classes, "stretched", 10), "stretched"),
        (WaterIndexThreshold(), ModelSpec(("B01",), S2.classes, "reflectance", 10), "B01"),
        (WaterIndexThreshold(), ModelSpec(S2.bands, ("land", "water", "ice"), "reflectance", 10), "two classes"),
    ]
    for make, spec, word in cases:
        with pytest.raises(ModelError, match=word):
            make(spec)


class Net(nn.Module):
    """A 1x1 convolution whose output is dressed as others dress it."""

    def __init__(self, channels: int, dress=lambda out: out) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, channels, 1)
        self.dress = dress

    def forward(self, x):
        return self.dress(self.layer(x))


class Holder:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(
    "dress", [lambda o: o, lambda o: {"out": o}, lambda o: {"logits": o}, lambda o: Holder(o), lambda o: (o, None)]
)
def test_adapter_unwraps(dress) -> None:
    net = Net(2, dress)
    image = torch.rand(2, 3, 4, 4)
    assert torch.equal(adapt(net, S2)(image), net.layer(image))


def test_adapter_turns_one_logit_into_two() -> None:
    image = torch.rand(2, 3, 4, 4)
    net = Net(1)
    want = torch.cat([torch.zeros(2, 1, 4, 4), net.layer(image)], 1)
    assert torch.equal(adapt(net, S2)(image), want)
    net.dress = lambda out: out[:, 0]
    assert torch.equal(adapt(net, S2)(image), want)
    net.dress = torch.sigmoid
    torch.testing.assert_close(adapt(net, S2, sigmoid=True)(image), want, rtol=1e-4, atol=1e-5)


def test_adapter_flags_probabilities_and_turns_declared_ones_back() -> None:
    image = torch.rand(2, 3, 4, 4)
    net = Net(2, lambda out: out.softmax(1))
    quiet = adapt(net, S2)
    quiet(image)
    assert quiet.flags == (PROBABILITIES,)
    told = adapt(net, S2, softmax=True)
    torch.testing.assert_close(told(image).softmax(1), net(image))
    assert told.flags == ()
    with pytest.raises(ModelError, match="softmax=True"):
        adapt(Net(2, lambda out: 5 * out + 3), S2, softmax=True)(image)


@pytest.mark.parametrize("ending", ["sigmoid", "softmax"])
@pytest.mark.parametrize("shift", [-0.4, 0.4], ids=["below 0", "above 1"])
def test_a_declared_ending_with_values_outside_of_probabilities_is_refused(ending, shift) -> None:
    """One side out of range is enough, whichever it is: values below 0 only, or above 1 only."""
    image = torch.rand(2, 3, 4, 4)
    net = Net(2, lambda out: out.sigmoid() * 0.5 + (0.25 + 2 * shift))
    low, high = float(net(image).min()), float(net(image).max())
    assert (low < 0) != (high > 1)
    with pytest.raises(ModelError, match=f"expected probabilities.*leave out {ending}=True"):
        adapt(net, S2, **{ending: True})(image)


def test_adapter_resizes_and_normalizes_in_data_units() -> None:
    net = Net(2, lambda out: out[..., ::4, ::4])
    assert adapt(net, S2)(torch.rand(1, 3, 16, 16)).shape == (1, 2, 16, 16)
    plain = Net(2)
    image = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(adapt(plain, S2, mean=[0.0] * 3, std=[1e-4] * 3)(image), plain(image / 1e-4))


def test_adapter_refuses() -> None:
    image = torch.rand(1, 3, 4, 4)
    with pytest.raises(ModelError, match="together"):
        adapt(Net(2), S2, mean=[0.0] * 3)
    with pytest.raises(ModelError, match="one ending"):
        adapt(Net(2), S2, sigmoid=True, softmax=True)
    for net in (Net(5), Net(2, lambda out: "text"), Net(2, lambda out: out.mean((2, 3)))):
        with pytest.raises(ModelError, match="expected"):
            adapt(net, S2)(image)


def test_models_are_registered() -> None:
    assert {"unet", "dense-unet", "threshold"} <= {entry.name for entry in entries("model")}

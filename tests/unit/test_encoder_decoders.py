"""U-Net, U-Net++, LinkNet, PSPNet and DeepLabV3+ with every encoder: sizes, parameters, reach, auxiliary losses, learning."""

import importlib.util
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from seawall.errors import ModelError, UsageError
from seawall.inference.backends import export_onnx
from seawall.keyed_transforms.keys import SecretKey
from seawall.losses.auxiliary import TrainingLogits, training_logits
from seawall.losses.segmentation import CrossEntropyLoss
from seawall.models.cell_window import receptive_radius
from seawall.models.dual_network import DualNetwork
from seawall.models.encoders import ENCODERS
from seawall.models.keyed import protect
from seawall.models.linknet import LinkNet
from seawall.models.pspnet import part_means
from seawall.models.unet import UNet
from seawall.models.unet_plus_plus import UNetPlusPlus
from seawall.models.weights import load_model, save_model
from seawall.modules import batch_norms
from seawall.registry import build
from seawall.rng import Keys
from seawall.simulate.scene import simulate_s2
from seawall.testing.fixtures import ground_batch
from seawall.training.distributed import shard
from seawall.types import Batch, ModelSpec

NETWORKS = ("unet", "unet++", "linknet", "pspnet", "deeplabv3+")
RGB = ModelSpec(("B02", "B03", "B04"), ("land", "water"), "reflectance", 10.0)
TWO = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)

# Parameters for three bands and two classes.
# (1) segmentation-models-pytorch 0.6.0: smp.Unet, UnetPlusPlus and DeepLabV3Plus with that encoder, and otherwise its defaults.
SMP = [
    ("unet", "resnet18", 14_328_354),
    ("unet", "resnet34", 24_436_514),
    ("unet", "resnet50", 32_521_250),
    ("unet", "mobilenetv2", 6_629_090),
    ("unet++", "resnet18", 15_970_594),
    ("unet++", "resnet34", 26_078_754),
    ("unet++", "resnet50", 48_985_890),
    ("unet++", "mobilenetv2", 6_824_866),
    ("deeplabv3+", "resnet18", 12_329_554),
    ("deeplabv3+", "resnet34", 22_437_714),
    ("deeplabv3+", "resnet50", 26_677_842),
    ("deeplabv3+", "mobilenetv2", 4_378_770),
]


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def made(network: str, spec: ModelSpec = TWO, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return build("model", network, settings)(spec)


@pytest.mark.parametrize(("network", "encoder", "count"), SMP)
def test_a_network_has_the_parameters_of_segmentation_models_pytorch(network, encoder, count) -> None:
    assert parameters(made(network, RGB, encoder=encoder)) == count


def test_vgg16_has_a_skip_connection_at_full_size_and_no_center() -> None:
    """segmentation-models-pytorch 0.6.0 leaves out the one, as all encoders lack it there, and adds two 3x3 convolutions of
    512 features behind the last pooling, which no paper has. Its vgg16_bn also keeps 4224 biases before norms."""
    center = 2 * 9 * 512 * 512 + 2 * 2 * 512
    skip = 9 * 64 * 16
    assert parameters(made("unet", RGB, encoder="vgg16")) == 23_756_834 - 4_224 - center + skip
    row = [9 * 64 * (64 * column + 128) + 9 * 64 * 64 + 4 * 64 for column in (1, 2, 3, 4)]
    assert parameters(made("unet++", RGB, encoder="vgg16")) == 39_355_938 - 4_224 - center + sum(row) + 9 * 16 * 5 * 64


def test_the_plain_unet_and_unet_plus_plus_have_the_parameters_of_the_paper() -> None:
    """7.76 and 9.04 million, Zhou et al. 2018, arXiv:1807.10165, table 2: 32 to 512 features, no norm, and transposed 2x2
    convolutions to the width r of a row, where ours read the 2 r features of the row below as they are."""
    assert round(parameters(made("unet", RGB, width=32, depth=4, norm="none")) / 1e6, 2) == 7.76
    transposed = sum(count * (9 * r * r - (8 * r * r + r)) for count, r in ((4, 32), (3, 64), (2, 128), (1, 256)))
    ours = parameters(made("unet++", RGB, width=32, norm="none"))
    assert round((ours - transposed) / 1e6, 2) == 9.04


def test_linknet_has_the_parameters_of_its_authors() -> None:
    """11.5 million, Chaurasia and Culurciello 2017, arXiv:1707.03718. By layers, e-lab/pytorch-linknet (models/linknet.py): the
    decoder blocks 512-256-128-64-64, then 64-32-32-classes; its 64 biases before norms are not here."""
    blocks = [
        i * i // 4 + 9 * (i // 4) ** 2 + i // 4 * o + 2 * (2 * (i // 4) + o)
        for i, o in ((512, 256), (256, 128), (128, 64), (64, 64))
    ]
    end = 9 * 64 * 32 + 2 * 32 + 9 * 32 * 32 + 2 * 32 + 4 * 32 * 2 + 2
    assert parameters(made("linknet", RGB)) == 11_176_512 + sum(blocks) + end == 11_533_442


def test_pspnet_has_the_parameters_of_the_paper() -> None:
    """ResNet-50 of torchvision 0.28.0 without `fc`; Zhao et al. 2017, arXiv:1612.01105, figure 3 and section 4: four 1x1
    convolutions to a quarter of 2048, a 3x3 convolution of 4096 to 512, and an auxiliary head of 1024 to 256 on stage 4.
    (segmentation-models-pytorch stops at stride 8 instead, and has neither the 3x3 convolution nor the auxiliary head.)"""
    pools = 4 * (2048 * 512 + 2 * 512)
    head = 9 * 4096 * 512 + 2 * 512 + 512 * 2 + 2
    auxiliary = 9 * 1024 * 256 + 2 * 256 + 256 * 2 + 2
    assert parameters(made("pspnet", RGB, encoder="resnet50")) == 23_508_032 + pools + head + auxiliary
    assert parameters(made("pspnet", RGB, encoder="resnet50", auxiliary=0.0)) == 23_508_032 + pools + head


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_takes_every_encoder_any_size_and_any_number_of_bands_and_classes(network, encoder) -> None:
    for bands, classes, size in ((1, 2, (33, 20)), (13, 5, (3, 70))):
        spec = ModelSpec(tuple(f"x{i}" for i in range(bands)), tuple(f"k{i}" for i in range(classes)), "sigma0_db", 10)
        model = made(network, spec, encoder=encoder, width=4).eval()
        logits = model(torch.rand(2, bands, *size))
        assert logits.shape == (2, classes, *size)
        assert torch.isfinite(logits).all()


@pytest.mark.parametrize("norm", ["pixel", "batch", "group", "none"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_on_a_batch_of_one_with_every_norm(network, norm) -> None:
    """At 32 x 32 pixels the last stage of an encoder is one cell, as is the mean over an image at any size."""
    model = made(network, width=8, encoder="plain" if norm == "none" else "resnet18", norm=norm).train()
    label = torch.zeros(1, 32, 32, dtype=torch.long)
    label[:, :16] = 1
    output = training_logits(model, torch.rand(1, 2, 32, 32))
    output.loss(CrossEntropyLoss(), label, label >= 0).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(torch.isfinite(norm.running_var).all() for norm in batch_norms(model))


def farthest(model: nn.Module, side: int) -> int:
    """Return how far a pixel is felt, at the worst phase: one image per phase, and every path is open."""
    model = model.double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.ReLU | nn.ReLU6):
            layer.forward = functional.softplus
        if isinstance(layer, nn.MaxPool2d):
            layer.forward = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    x = torch.rand(1, 2, model.stride, side, dtype=torch.double).repeat(model.stride, 1, 1, 1).requires_grad_()
    columns = side // 2 + torch.arange(model.stride)
    logits = model(x)[torch.arange(model.stride), 1, model.stride // 2, columns]
    (slope,) = torch.autograd.grad(logits.sum(), x)
    felt = slope.abs().sum((1, 2)) > 0
    return max(int((row.nonzero()[:, 0] - column).abs().max()) for row, column in zip(felt, columns, strict=True))


@pytest.mark.parametrize(
    ("network", "settings", "reach"),
    [
        ("unet", {"encoder": "resnet18", "depth": 4}, 151),
        ("unet", {"encoder": "mobilenetv2", "depth": 3}, 51),
        ("unet++", {"width": 2}, 108),
        ("unet++", {"encoder": "vgg16", "depth": 3, "width": 2}, 64),
        ("linknet", {"encoder": "resnet18"}, 254),
        ("linknet", {"encoder": "resnet50"}, 250),
    ],
)
def test_reach_is_how_far_a_pixel_is_felt_at_the_worst_phase(network, settings, reach) -> None:
    model = made(network, **{"width": 4, **settings})
    side = 2 * (-(-(reach + model.stride) // model.stride) + 1) * model.stride
    assert model.reach == reach
    assert farthest(model, side) == reach


def test_without_a_bound_the_reach_is_none() -> None:
    for network in ("pspnet", "deeplabv3+"):
        assert made(network, width=4).reach is None
    for network in ("unet", "unet++", "linknet"):
        assert made(network, width=4, norm="group").reach is None


def test_linknet_adds_the_encoders_features_to_its_own() -> None:
    network = made("linknet", width=8).eval().network
    x = torch.rand(1, 2, 96, 64)
    for block in network.decode:  # nothing comes up from below any more
        block[-1][1].weight.data.zero_()
        block[-1][1].bias.data.zero_()
    stem, first, *_ = network.encoder.stages
    pooled = first[0](stem(x))  # the input of the first block of a ResNet, as in the paper
    assert torch.equal(network(x), network.head(network.refine(network.rise(pooled))))
    added = []
    for level, block in enumerate(network.decode):
        block.register_forward_pre_hook(lambda _, given, level=level: added.append((level, given[0])))
    network(x)
    features = network.encoder(x)[1:]
    assert [level for level, _ in added] == [3, 2, 1, 0]
    assert all(torch.equal(given, features[level]) for level, given in added)


def test_the_pyramid_of_deeplab_looks_6_12_and_18_cells_far_and_at_the_whole_map() -> None:
    pyramid = made("deeplabv3+", width=16).eval().network.pyramid
    assert [receptive_radius(branch) for branch in pyramid.branches] == [0, 6, 12, 18]
    x = torch.rand(1, 128, 48, 48)
    far = x.clone()
    far[..., 0, 0] += 1
    with torch.no_grad():
        change = (pyramid(x) - pyramid(far)).abs().amax(1)[0]
    assert bool((change > 0).all()), "by the mean over the map"
    assert float(change[24:, 24:].max() - change[24:, 24:].min()) < 1e-3 * float(change.max())


@pytest.mark.parametrize("side", [(1, 1), (5, 9), (6, 12), (13, 7)])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_means_of_parts_are_those_of_adaptive_pooling(side, parts) -> None:
    x = torch.rand(2, 3, *side)
    torch.testing.assert_close(part_means(x, parts), functional.adaptive_avg_pool2d(x, parts))


AUXILIARY = [("pspnet", {"dropout": 0.0}), ("unet++", {"auxiliary": 0.4})]


@pytest.mark.parametrize(("network", "settings"), AUXILIARY)
def test_auxiliary_heads_are_in_training_logits_alone(network, settings) -> None:
    model, image = made(network, width=4, **settings).eval(), torch.rand(2, 2, 50, 37)
    calls = []
    model.network.auxiliary.register_forward_hook(lambda *_: calls.append("head"))
    for head in model.network.auxiliary.children():
        head.register_forward_hook(lambda *_: calls.append("head"))
    for mode in (True, False):
        model.train(mode)(image)
    assert not calls
    output = training_logits(model, image)
    assert calls and torch.equal(output.logits, model(image))
    assert {weight for weight, _ in output.auxiliary} == {0.4}
    for _, logits in output.auxiliary:
        assert logits.shape == (2, 2, 50, 37) and not torch.allclose(logits, output.logits)


def test_a_pspnet_has_one_auxiliary_head_and_a_unet_plus_plus_one_per_further_column() -> None:
    image = torch.rand(1, 2, 32, 32)
    counts = {
        (name, depth): len(training_logits(made(name, **settings), image).auxiliary)
        for name, depth, settings in [
            ("pspnet", 0, {"width": 4}),
            ("unet++", 2, {"width": 4, "depth": 2, "auxiliary": 1.0}),
            ("unet++", 4, {"width": 4, "depth": 4, "auxiliary": 1.0}),
        ]
    }
    assert counts == {("pspnet", 0): 1, ("unet++", 2): 1, ("unet++", 4): 3}
    assert training_logits(made("unet", width=4), image).auxiliary == ()


@pytest.mark.parametrize("objective", ["supervised", "adversarial"])
@pytest.mark.parametrize(("network", "settings"), AUXILIARY)
def test_objectives_train_auxiliary_heads_on_the_images_of_the_loss(network, settings, objective) -> None:
    model = made(network, width=4, norm="pixel", **settings).train()
    batch = ground_batch(images=2, size=32)
    inputs: list[torch.Tensor] = []
    model.network.encoder.stages[0].register_forward_hook(lambda module, given, out: inputs.append(given[0].detach()))
    value = build("objective", objective)(model, batch, Keys(0, batch.chips))
    value.backward()
    assert all(bool((w.grad != 0).any()) for w in model.network.auxiliary.parameters())
    assert torch.equal(inputs[-1], batch.image) == (objective == "supervised")  # the standardization is the identity
    output = training_logits(model, inputs[-1])
    loss = partial(CrossEntropyLoss(), label=batch.label, valid=batch.valid)
    torch.testing.assert_close(value, loss(output.logits) + sum(w * loss(z) for w, z in output.auxiliary))


def test_the_auxiliary_loss_of_two_processes_is_that_of_one() -> None:
    """Each process weights its loss by its share of the valid pixels; the auxiliary losses are means over these pixels too."""
    model = made("pspnet", width=4, norm="pixel", dropout=0.0).train()
    batch = ground_batch(images=3, size=24)
    whole = training_logits(model, batch.image).loss(CrossEntropyLoss(), batch.label, batch.valid)
    shares = 0.0
    for rank in range(2):
        mine = shard(batch, rank, 2)
        share = mine.valid.sum() / batch.valid.sum()
        shares += share * training_logits(model, mine.image).loss(CrossEntropyLoss(), mine.label, mine.valid)
    torch.testing.assert_close(whole, shares)


def test_auxiliary_heads_work_behind_a_keyed_transform_and_not_in_twins() -> None:
    model = protect(made("pspnet", width=4), "negative-positive", {"block": 4}, SecretKey(bytes(32)), salt="a")
    image = 0.3 * torch.rand(1, 2, 22, 30)
    output = training_logits(model.eval(), image)
    assert isinstance(output, TrainingLogits) and torch.equal(output.logits, model(image))
    assert [logits.shape for _, logits in output.auxiliary] == [(1, 2, 22, 30)]
    with pytest.raises(UsageError, match=r"without auxiliary heads.*set its auxiliary = 0"):
        DualNetwork("pspnet", {"width": 4})(TWO)
    DualNetwork("pspnet", {"width": 4, "auxiliary": 0.0})(TWO)


def test_what_a_network_cannot_be_is_refused() -> None:
    for network, settings, words in [
        ("unet", {"encoder": "resnet101"}, "unet"),
        ("linknet", {"encoder": "resnet18", "norm": "none"}, "linknet.norm: expected a norm with the encoder resnet18"),
        ("unet", {"encoder": "mobilenetv2", "depth": 6}, "unet.depth: expected at most 5 with the encoder mobilenetv2"),
        ("deeplabv3+", {"dropout": 1.0}, "deeplabv3.*dropout"),
        ("pspnet", {"auxiliary": -1.0}, "pspnet.auxiliary: expected a weight"),
        ("pspnet", {"output_stride": 4}, "output_stride"),
    ]:
        with pytest.raises(UsageError, match=words):
            build("model", network, settings)
    with pytest.raises(UsageError, match=r"linknet.encoder: unknown name 'resnet'; did you mean"):
        LinkNet("resnet")
    with pytest.raises(UsageError, match=r"unet\+\+.auxiliary: expected at least 2 columns"):
        UNetPlusPlus(depth=1, auxiliary=1.0)(TWO)
    with pytest.raises(ModelError, match="2 classes"):
        LinkNet()(ModelSpec(("B03",), ("water",), "reflectance", 10))


def test_a_plain_unet_stays_what_it_was(tmp_path) -> None:
    """Weights files from before there were encoders have these settings and tensors."""
    model = UNet(4, 1)(TWO)
    assert model.spec.settings == {"width": 4, "depth": 1, "norm": "batch", "dropout": 0.0}
    assert UNet()(TWO).spec.settings == {"width": 16, "depth": 3, "norm": "batch", "dropout": 0.0}
    convolutions = {name for name, tensor in model.network.state_dict().items() if tensor.ndim == 4}
    assert convolutions == {
        *("stem.0.0.weight", "stem.1.0.weight", "down.0.0.0.weight", "down.0.1.0.weight", "rise.0.weight"),
        *("up.0.0.0.weight", "up.0.1.0.weight", "head.weight"),
    }
    other = UNet(encoder="resnet18", width=4, depth=2)(TWO)
    assert other.spec.settings["encoder"] == "resnet18"
    save_model(tmp_path / "m.safetensors", other)
    assert load_model(tmp_path / "m.safetensors").spec == other.spec


def lake() -> Batch:
    """A simulated chip with a third of water."""
    scene = simulate_s2("lake-45", 64, bands=("B03", "B08"), clouds=False)
    image, label = torch.from_numpy(scene.image)[None], torch.from_numpy(scene.water.astype(np.int64))[None]
    assert 0.3 < float(label.float().mean()) < 0.4
    return Batch.of(image, label)


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ("unet", {"encoder": "resnet18", "depth": 4}),
        ("unet++", {"encoder": "mobilenetv2", "depth": 3, "auxiliary": 1.0}),
        ("linknet", {"encoder": "resnet18"}),
        ("pspnet", {"encoder": "vgg16", "dropout": 0.0}),
        ("deeplabv3+", {"encoder": "plain", "dropout": 0.0}),
    ],
)
def test_a_network_learns_one_chip_by_heart(network, settings) -> None:
    batch = lake()
    model = made(network, width=8, **settings)
    model.standardize.fit(batch.image.mean((0, 2, 3)), batch.image.std((0, 2, 3)))
    objective, optimizer = build("objective", "supervised"), torch.optim.Adam(model.train().parameters(), lr=0.01)
    for _ in range(90):
        optimizer.zero_grad()
        objective(model, batch, Keys(0, batch.chips)).backward()
        optimizer.step()
    with torch.no_grad():
        water = model.eval()(batch.image).argmax(1) == 1
    truth = batch.label == 1
    # all land or all water has 0 and 0.35, and bilinear interpolation from stride 8 loses the narrow channels
    assert float((water & truth).sum() / (water | truth).sum()) > 0.8


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs the extra deploy",
)
@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ("unet", {"encoder": "resnet18", "depth": 2}),
        ("unet++", {"encoder": "mobilenetv2", "depth": 2}),
        ("linknet", {"encoder": "vgg16", "norm": "none"}),
        ("pspnet", {"encoder": "plain"}),
        ("deeplabv3+", {"encoder": "plain", "norm": "pixel"}),
    ],
)
def test_a_network_is_exported_with_free_sizes(network, settings, tmp_path) -> None:
    export_onnx(made(network, width=4, **settings).eval(), tmp_path / "model.onnx")  # which compares it at two sizes
    assert (tmp_path / "model.onnx").stat().st_size > 1000

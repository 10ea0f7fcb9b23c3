"""Image-level labels: pooled scores and size bounds in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from seawall.errors import UsageError
from seawall.models.unet import UNet
from seawall.registry import build
from seawall.rng import Keys
from seawall.testing.fixtures import linear_model
from seawall.training.objectives.image_level import MultipleInstance, SizeConstraint
from seawall.types import Batch, ModelSpec


def bags() -> Batch:
    """Three images with the labels land, water and none; a corner of each is unseen."""
    image = 0.6 * torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(3, 8, 8, dtype=torch.bool)
    seen[:, :3, :3] = False
    label = torch.tensor([0, 1, 1])[:, None, None].expand(3, 8, 8)
    valid = seen & torch.tensor([True, True, False])[:, None, None]
    return Batch.of(image, label, seen=seen, valid=valid)


def value(objective, model, batch: Batch) -> float:
    return objective(model, batch, Keys(0, batch.chips)).item()


def test_pooled_scores_are_between_mean_and_maximum() -> None:
    batch, model = bags(), linear_model()
    logits = model(batch.image).detach()
    odds = logits[:, 1] - logits[:, 0]
    inside = [one[seen] for one, seen in zip(odds, batch.seen, strict=True)]
    mean, top = torch.stack([x.mean() for x in inside]), torch.stack([x.max() for x in inside])
    assert torch.allclose(MultipleInstance(pooling="mean").pooled(odds, batch.seen), mean, atol=1e-5)
    assert torch.allclose(MultipleInstance(sharpness=1e-3).pooled(odds, batch.seen), mean, atol=1e-2)
    assert torch.allclose(MultipleInstance(sharpness=100).pooled(odds, batch.seen), top, atol=math.log(64) / 100 + 1e-4)
    five = torch.stack([(torch.exp(5 * x).mean()).log() / 5 for x in inside])
    assert torch.allclose(MultipleInstance().pooled(odds, batch.seen), five, atol=1e-4)
    label = torch.tensor([0.0, 1.0])
    expected = functional.binary_cross_entropy_with_logits(five[:2], label)
    assert value(MultipleInstance(), model, batch) == pytest.approx(expected.item(), rel=1e-5)
    wild = replace(batch, image=torch.where(batch.seen[:, None], batch.image, 9.0))
    assert value(MultipleInstance(), model, wild) == pytest.approx(expected.item(), rel=1e-5), "unseen pixels count"


def test_the_pooled_logits_of_a_network_are_its_head_on_pooled_features() -> None:
    """The identity behind class activation maps, for a network whose last layer is linear."""
    spec = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
    torch.manual_seed(0)
    model = UNet(4, 1, "pixel")(spec).eval()
    image, kept = torch.rand(2, 2, 8, 8), []
    head = model.network.head
    hook = head.register_forward_hook(lambda module, given, out: kept.append(given[0]))
    odds = model(image)
    hook.remove()
    pooled = MultipleInstance(pooling="mean").pooled(odds[:, 1] - odds[:, 0], torch.ones(2, 8, 8, dtype=torch.bool))
    logits = head(kept[0].mean((2, 3), keepdim=True))[..., 0, 0]
    assert torch.allclose(pooled, logits[:, 1] - logits[:, 0], atol=1e-5)


def test_sizes_outside_their_bounds_cost_their_square() -> None:
    batch, model = bags(), linear_model()
    p = model(batch.image).softmax(1)[:, 1].detach()
    share = float(p[1][batch.seen[1]].mean())
    assert 0.1 < share < 0.9
    land = functional.cross_entropy(model(batch.image)[:1], batch.label[:1], reduction="none")[batch.valid[:1]].mean().item()  # fmt: skip
    for low, high, cost in (
        (0.0, 1.0, 0.0), (0.0, share - 0.05, 0.05**2), (share + 0.1, 1.0, 0.1**2), (share - 0.01, share + 0.01, 0.0),
    ):  # fmt: skip
        got = value(SizeConstraint(weight=7.0, low=low, high=high), model, batch)
        assert got == pytest.approx(land + 7 * cost, abs=1e-5), (low, high)


def test_wrong_settings_are_refused() -> None:
    for name, settings, says in (
        ("multiple-instance", {"pooling": "max"}, "pooling"), ("multiple-instance", {"sharpness": 0.0}, "sharpness"),
        ("size-constraint", {"low": 0.6, "high": 0.5}, "low <= high"), ("size-constraint", {"weight": -1.0}, "weight"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            build("objective", name, settings)
    with pytest.raises(UsageError, match="class: expected one of land, water, got 'snow'"):
        value(MultipleInstance(of="snow"), linear_model(), bags())

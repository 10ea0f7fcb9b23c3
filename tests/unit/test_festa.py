"""FESTA: every part against loops over pixels, finite differences and closed forms, and features of every network."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seawall.errors import ModelError, UsageError
from seawall.modules import features_stride, head_layer, kept_features, seen_features
from seawall.registry import build, entries
from seawall.rng import Keys
from seawall.testing.fixtures import ground_batch
from seawall.training.objectives.festa import Festa, nearest_neighbor_distance, sampled_pixels
from seawall.training.objectives.supervised import Supervised
from seawall.types import Batch, FittedModel, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
RADAR = ModelSpec(("VV", "VH"), ("land", "water"), "sigma0_db", 10.0)
ALL = {"share": 1.0}
ONLY_FEATURES = {"beta": 0.0, "gamma": 0.0, **ALL}
ONLY_NEIGHBORS = {"alpha": 0.0, "gamma": 0.0, **ALL}
ONLY_FAR = {"alpha": 0.0, "beta": 0.0, **ALL}
NETWORKS = [
    (entry.name, settings)
    for entry in entries("model")
    for settings in (
        [entry.smoke, {**entry.smoke, "auxiliary": 0.5}] if entry.name in ("pspnet", "unet++") else [entry.smoke]
    )
    if entry.name != "twins"
]


def maps(images: int = 2, width: int = 3, rows: int = 5, cols: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(images, width, rows, cols, generator=draw, dtype=torch.float64)
    return features, torch.rand(images, rows, cols, generator=draw) > 0.25


def by_loops(features: np.ndarray, seen: np.ndarray, alpha: float, beta: float, gamma: float) -> float:
    """The mean over all seen pixels, as equations 2 to 5 read."""
    values = []
    for image, there in zip(features, seen, strict=True):
        places = [(r, c) for r in range(there.shape[0]) for c in range(there.shape[1]) if there[r, c]]
        for r, c in places:
            mine = image[:, r, c]
            others = [image[:, p, q] for p, q in places if (p, q) != (r, c)]
            around = [image[:, p, q] for p, q in places if (p, q) != (r, c) and max(abs(p - r), abs(q - c)) == 1]
            nearest = min(((mine - x) ** 2).sum() for x in others)
            neighbor = min((((mine - x) ** 2).sum() for x in around), default=0.0)
            far = min((mine @ x) / math.sqrt((mine @ mine) * (x @ x)) for x in others)
            values.append(alpha * nearest + beta * neighbor + gamma * far)
    return float(np.mean(values))


def relations(features: Tensor, seen: Tensor, **settings: float) -> Tensor:
    return Festa(**settings).relations(features, seen, Keys(0, tuple(f"c{i}" for i in range(len(features)))))


@pytest.mark.parametrize("weights", [(0.5, 1.5, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_relations_are_those_of_the_equations(weights: tuple[float, float, float]) -> None:
    for seed in range(3):
        features, seen = maps(seed=seed)
        alpha, beta, gamma = weights
        got = relations(features, seen, alpha=alpha, beta=beta, gamma=gamma, **ALL)
        assert float(got) == pytest.approx(by_loops(features.numpy(), seen.numpy(), *weights), rel=1e-5)


@pytest.mark.parametrize("only", [ONLY_FEATURES, ONLY_NEIGHBORS, ONLY_FAR])
def test_every_part_has_the_gradient_of_finite_differences(only: dict[str, float]) -> None:
    features, seen = maps(images=1)
    features.requires_grad_()
    value = relations(features, seen, **only)
    (grad,) = torch.autograd.grad(value, features)
    assert float(value.detach().abs()) > 0.05 and float(grad[0][:, seen[0]].abs().max()) > 0.01, (
        "the released neighbor part is 0"
    )
    assert bool((grad[0][:, ~seen[0]] == 0).all()), "an unseen pixel was sampled, or is a partner"
    assert torch.autograd.gradcheck(lambda x: relations(x, seen, **only), features)


def test_rows_do_not_go_on_in_the_next_ones() -> None:
    features = torch.tensor([[[[0.0, 10.0, 5.0], [5.0, 20.0, 40.0]]]])
    at = torch.tensor([2, 3])
    got = nearest_neighbor_distance(features[0].flatten(1).T, torch.ones(2, 3, dtype=torch.bool), at)
    assert got.tolist() == [25.0, 25.0], (
        "5 beside 10, and 5 beside 0: the equal value is in the next row's first column"
    )
    alone = torch.tensor([[True, False, False], [False, False, True]])
    assert nearest_neighbor_distance(features[0].flatten(1).T, alone, torch.tensor([0])).tolist() == [0.0]


def test_far_part_turns_features_apart_by_the_sine_of_their_angle() -> None:
    """Its gradient is tangential, of size sin(angle) / length: it keeps a collapse from being stable, and the others cause one."""
    for angle in (0.01, 0.3, 1.2):
        a, b = torch.tensor([2.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
        features = torch.stack([a, b], 1).double().reshape(1, 2, 1, 2).requires_grad_()
        seen = torch.ones(1, 1, 2, dtype=torch.bool)
        (far,) = torch.autograd.grad(relations(features, seen, **ONLY_FAR), features)
        assert torch.allclose(far[0, :, 0, 0], torch.tensor([0.0, math.sin(angle) / 2]).double(), atol=1e-5)
        step = (features - 0.1 * far).detach()[0, :, 0]
        turned = torch.atan2(step[1, 1], step[0, 1]) - torch.atan2(step[1, 0], step[0, 0])
        assert float(turned) > angle, "descent turns the two apart"
        for together in (ONLY_FEATURES, ONLY_NEIGHBORS):
            (near,) = torch.autograd.grad(relations(features, seen, **together), features)
            assert float(near[0, :, 0, 0] @ (a - b).double()) > 0, "descent draws the two together"


def spread_after_descent(**settings: float) -> float:
    features, seen = maps(images=1, rows=6, cols=6)
    features = 1 + 0.05 * features
    for _ in range(200):
        features.requires_grad_()
        (grad,) = torch.autograd.grad(relations(features, seen, share=1.0, **settings) * int(seen.sum()), features)
        features = (features - 0.02 * grad).detach()
    unit = nn.functional.normalize(features[0][:, seen[0]], dim=0)
    return float(1 - (unit.T @ unit).min())


def test_nearly_collapsed_features_fall_together_without_the_far_part_and_apart_with_it() -> None:
    assert spread_after_descent(alpha=0.5, beta=1.5, gamma=1.0) > 1.0, "more than a right angle"
    before = float(spread_after_descent(alpha=1e-12, beta=0.0, gamma=0.0))
    assert spread_after_descent(alpha=0.5, beta=1.5, gamma=0.0) < 0.6 * before < 0.1


def test_a_share_of_the_seen_pixels_is_sampled_by_the_chip_alone() -> None:
    seen = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) > 0.5
    keys = Keys(3, ("a", "b"))
    at = sampled_pixels(seen, 0.1, keys, 1)
    assert len(at) == len(at.unique()) == round(0.1 * int(seen.sum())) and bool(seen.flatten()[at].all())
    assert torch.equal(at, sampled_pixels(seen, 0.1, Keys(3, ("b",)), 0))
    assert not torch.equal(at, sampled_pixels(seen, 0.1, keys, 0))
    assert len(sampled_pixels(seen, 1e-9, keys, 0)) == 1 and len(sampled_pixels(~seen & seen, 0.5, keys, 0)) == 0


def test_cells_with_an_unseen_pixel_are_left_out_and_those_of_the_padding_cut_off() -> None:
    seen = torch.ones(1, 5, 6, dtype=torch.bool)
    seen[0, 0, 3] = False
    features, cells = seen_features(torch.arange(16.0).reshape(1, 1, 4, 4), seen, 2)
    assert features.shape == (1, 1, 3, 3)
    assert cells.tolist() == [[[True, False, True], [True, True, True], [True, True, True]]]


@pytest.mark.parametrize(("name", "settings"), NETWORKS, ids=[f"{name} {len(settings)}" for name, settings in NETWORKS])
def test_every_network_has_features(name: str, settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = build("model", name, settings)(RADAR if name.startswith("ratio-") else SPEC)
    if isinstance(model, FittedModel) or not any(weight.requires_grad for weight in model.parameters()):
        pytest.skip("has no weights that are trained")
    batch = ground_batch(images=2, size=70)
    modes = [module.training for module in model.modules()]
    with kept_features(model, batch.image) as kept:
        logits = model(batch.image)
    assert [module.training for module in model.modules()] == modes
    assert len(kept) == 1 and kept[0].requires_grad == (name != "linear")
    assert not any(module._forward_pre_hooks for module in model.modules()), "a hook was left"
    stride = features_stride(model, batch.image, kept[0])
    features, _ = seen_features(kept[0], batch.seen, stride)
    assert features.shape[2:] == (math.ceil(70 / stride), math.ceil(70 / stride))
    head = head_layer(model, batch.image)
    assert logits.shape[1] == 2 and head(kept[0]).shape[1] == 2
    value = Festa(share=0.05)(model, batch, Keys(0, batch.chips))
    assert bool(value.isfinite())


def test_objective_is_the_loss_plus_the_weighted_relations() -> None:
    torch.manual_seed(0)
    model = build("model", "unet", {"width": 4, "depth": 1, "norm": "pixel"})(SPEC)
    batch = ground_batch(images=2, size=16)
    batch = replace(batch, valid=batch.valid & (torch.rand(batch.valid.shape) < 0.05))
    keys = Keys(0, batch.chips)
    plain = Supervised()(model, batch, keys)
    with kept_features(model, batch.image) as kept:
        model(batch.image)
    parts = [
        Festa(share=0.3, **{"alpha": 0.0, "beta": 0.0, "gamma": 0.0, part: weight}).relations(
            kept[0], batch.seen, keys.fold("festa")
        )
        for part, weight in (("alpha", 0.5), ("beta", 1.5), ("gamma", 1.0))
    ]
    for weight in (0.1, 2.0):
        got = Festa(share=0.3, weight=weight)(model, batch, keys)
        assert float(got) == pytest.approx(float(plain + weight * sum(parts)), rel=1e-5)
    assert all(abs(float(part)) > 1e-4 for part in parts)


def test_unlabelled_pixels_are_sampled_and_unseen_ones_are_not() -> None:
    torch.manual_seed(0)
    model = build("model", "linear", {})(SPEC)
    batch = ground_batch(images=2, size=16)
    keys = Keys(0, batch.chips)
    festa = Festa(share=1.0)
    value = festa(model, replace(batch, valid=torch.zeros_like(batch.valid)), keys)
    assert float(value) != 0
    other = torch.where(batch.seen[:, None], batch.image, 0.7)
    assert torch.equal(
        value, festa(model, Batch(other, batch.label, batch.seen, torch.zeros_like(batch.valid), batch.chips), keys)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "festa.alpha: expected a weight from 0 up"),
        ({"gamma": math.nan}, "festa.gamma"),
        ({"share": 0.0}, "festa.share: expected a share above 0"),
        ({"share": 1.5}, "festa.share"),
        ({"weight": 0.0}, "use the objective supervised"),
        ({"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, "use the objective supervised"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Festa(**settings)


def test_a_function_without_layers_is_refused() -> None:
    batch = ground_batch(images=1)
    with pytest.raises(ModelError, match="expected a network"):
        Festa()(lambda image: image, batch, Keys(0, batch.chips))  # type: ignore[arg-type]

    class Fixed(nn.Module):
        spec = SPEC

        def forward(self, image: Tensor) -> Tensor:
            return image

    with pytest.raises(ModelError, match="expected a layer with weights before the logits"):
        Festa()(Fixed(), batch, Keys(0, batch.chips))

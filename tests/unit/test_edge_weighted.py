"""U-Net's weights are those of the paper: closed form, two nearest objects by brute force, and invalid pixels that are nothing."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from seawall.errors import UsageError
from seawall.losses.edge_weighted import EdgeWeightedCrossEntropy, edge_weight_map
from seawall.losses.segmentation import CrossEntropyLoss, as_loss


def brute_force(objects: np.ndarray, strength: float, sigma: float, structure: np.ndarray) -> np.ndarray:
    """Return the added weight, from the distance of every pixel to every pixel of every object."""
    labels, count = ndimage.label(objects, structure)
    rows, cols = np.indices(objects.shape)
    away = [
        np.hypot(rows[..., None] - (at := np.argwhere(labels == k))[:, 0], cols[..., None] - at[:, 1]).min(-1)
        for k in range(1, count + 1)
    ]
    if count < 2:
        return np.zeros(objects.shape)
    first, second = np.sort(np.stack(away), 0)[:2]
    return np.where(objects, 0.0, strength * np.exp(-((first + second) ** 2) / (2 * sigma**2)))


def test_two_pixels_from_either_object_is_7_2615() -> None:
    row = np.zeros((1, 5), bool)
    row[0, [0, 4]] = True
    assert edge_weight_map(row)[0, 2] == pytest.approx(7.2615, abs=5e-5)
    assert edge_weight_map(row, strength=2.0, sigma=1.0)[0, 1] == pytest.approx(2 * np.exp(-8), rel=1e-5)


@pytest.mark.parametrize(("neighbors", "structure"), [(4, None), (8, np.ones((3, 3)))])
@pytest.mark.parametrize("share", [0.005, 0.05, 0.3, 0.9])
def test_the_two_nearest_objects_are_those_of_brute_force(neighbors, structure, share) -> None:
    for seed in range(3):
        objects = np.random.default_rng(seed).random((40, 53)) < share
        for sigma in (1.0, 5.0):
            want = brute_force(objects, 10.0, sigma, structure)
            np.testing.assert_allclose(edge_weight_map(objects, 10.0, sigma, neighbors), want, atol=1e-4)


def test_one_object_or_none_adds_nothing() -> None:
    mask = np.zeros((20, 20), bool)
    assert not edge_weight_map(mask).any() and not edge_weight_map(~mask).any()
    mask[3:6, 3:6] = True
    assert not edge_weight_map(mask).any()


def test_the_loss_is_the_weighted_mean_and_balances_the_classes() -> None:
    label = torch.tensor([[[1, 0, 0, 0, 1, 0, 0, 0, 0, 0]]])
    valid = torch.ones_like(label, dtype=torch.bool)
    logits = torch.randn(1, 2, 1, 10, generator=torch.Generator().manual_seed(0))
    cross_entropy = -logits.log_softmax(1).gather(1, label[:, None])[0, 0, 0].numpy()
    gap = 10 * np.exp(-np.array([0, 16, 16, 16, 0, 36, 64, 100, 144, 196]) / 50) * (label[0, 0].numpy() == 0)
    for weights, own in (
        ((1.0, 1.0), np.ones(10)),
        ((), np.where(label[0, 0] == 1, 10 / 4, 10 / 16)),
        ((1.0, 3.0), 1 + 2 * label[0, 0].numpy()),
    ):
        want = ((own + gap) * cross_entropy).sum() / (own + gap).sum()
        assert float(EdgeWeightedCrossEntropy(weights=weights)(logits, label, valid)) == pytest.approx(want, rel=1e-5)
    plain = EdgeWeightedCrossEntropy(strength=0.0, weights=(1.0, 1.0))(logits, label, valid)
    assert torch.allclose(plain, CrossEntropyLoss()(logits, label, valid))


def test_invalid_pixels_are_no_objects_weigh_nothing_and_may_divide_one() -> None:
    label = torch.ones(1, 1, 7, dtype=torch.long)
    label[0, 0, 1:3] = 0
    valid = torch.ones_like(label, dtype=torch.bool)
    valid[0, 0, 0] = False  # the left object is not there
    logits = torch.randn(1, 2, 1, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = EdgeWeightedCrossEntropy(weights=(1.0, 1.0))
    assert torch.allclose(loss(logits, label, valid), CrossEntropyLoss()(logits, label, valid))
    both = loss(logits, label, torch.ones_like(valid))
    assert not torch.allclose(both, CrossEntropyLoss()(logits, label, torch.ones_like(valid)))
    (slope,) = torch.autograd.grad(loss(logits, label, valid), logits)
    assert (slope[..., 0] == 0).all() and (slope[..., 1:] != 0).all()
    valid[0, 0] = torch.tensor([False, True, True, True, True, False, True])  # objects of pixels 3 to 4, and of pixel 6
    assert not torch.allclose(loss(logits, label, valid), CrossEntropyLoss()(logits, label, valid))


def test_the_class_of_the_objects_can_be_any() -> None:
    water = torch.zeros(1, 1, 9, dtype=torch.long)
    water[0, 0, [0, 4]] = 2
    valid = torch.ones_like(water, dtype=torch.bool)
    logits = torch.randn(1, 3, 1, 9, generator=torch.Generator().manual_seed(2))
    second = EdgeWeightedCrossEntropy(klass=2)(logits, water, valid)
    turned = EdgeWeightedCrossEntropy(klass=0)(logits.flip(1), 2 - water, valid)
    assert torch.allclose(second, turned) and not torch.allclose(
        second, EdgeWeightedCrossEntropy()(logits, water, valid)
    )


def test_recipes_name_it_and_wrong_settings_are_refused() -> None:
    assert as_loss({"name": "edge-weighted", "sigma": 3}) == EdgeWeightedCrossEntropy(sigma=3.0)
    as_loss("edge-weighted + 0.5 dice")
    for settings, word in (
        ({"klass": -1}, "klass"),
        ({"sigma": 0.0}, "sigma"),
        ({"strength": -1.0}, "strength"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
    ):
        with pytest.raises(UsageError, match=word):
            EdgeWeightedCrossEntropy(**settings)
    logits, label, valid = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), torch.ones(1, 2, 2).bool()
    for settings in ({"klass": 2}, {"weights": (1.0, 1.0, 1.0)}):
        with pytest.raises(UsageError, match="fit them to the classes"):
            EdgeWeightedCrossEntropy(**settings)(logits, label, valid)

"""Losses against hand-computed values, and the promise that invalid pixels mean nothing."""

import math

import pytest
import torch
from torch.nn import functional

from seawall.errors import DataError, UsageError
from seawall.losses.segmentation import (
    BCE,
    CrossEntropyLoss,
    Dice,
    Focal,
    Jaccard,
    Sum,
    as_loss,
    binary_cross_entropy,
    focal,
    masked_mean,
    masked_mean_per_image,
    pixel_cross_entropy,
)
from seawall.registry import build, entries

ALL = [
    CrossEntropyLoss(),
    CrossEntropyLoss(weights=(1.0, 3.0)),
    CrossEntropyLoss(smoothing=0.1),
    BCE(),
    Dice(),
    Jaccard(),
    Focal(),
    Sum({"ce": 1.0, "dice": 0.5}),
]


def sample(classes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, classes, 5, 4, generator=draw)
    label = torch.randint(0, classes, (2, 5, 4), generator=draw)
    return logits, label, torch.rand(2, 5, 4, generator=draw) > 0.3


def test_cross_entropy_of_one_pixel() -> None:
    logits = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)  # p = 3/4, 1/4
    for label, share in ((0, 0.75), (1, 0.25)):
        got = pixel_cross_entropy(logits, torch.full((1, 1, 1), label))
        assert got.item() == pytest.approx(-math.log(share), rel=1e-6)


def test_focal_of_one_pixel_and_gamma_zero() -> None:
    logits = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)
    got = focal(logits, torch.ones(1, 1, 1, dtype=torch.long), gamma=2.0)
    assert got.item() == pytest.approx(0.75**2 * math.log(4), rel=1e-6)
    logits, label, _ = sample()
    assert torch.equal(focal(logits, label, 0.0), pixel_cross_entropy(logits, label))


def test_focal_gradient_is_finite_at_certainty() -> None:
    logits = torch.tensor([[80.0, -80.0]]).reshape(1, 2, 1, 1).requires_grad_()
    focal(logits, torch.zeros(1, 1, 1, dtype=torch.long), gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_binary_is_cross_entropy_with_two_classes_and_one_against_rest_with_more() -> None:
    logits, label, _ = sample()
    torch.testing.assert_close(binary_cross_entropy(logits, label), pixel_cross_entropy(logits, label))
    logits, label, _ = sample(4)
    share, truth = logits.softmax(1), functional.one_hot(label, 4).movedim(-1, 1).float()
    want = -(truth * share.log() + (1 - truth) * (1 - share).log()).mean(1)
    torch.testing.assert_close(binary_cross_entropy(logits, label), want, rtol=1e-4, atol=1e-5)


def test_dice_and_jaccard_closed_form() -> None:
    # Certain logits: water predicted on 2 pixels, labeled on 3, both on 1; land 2 and 1 of 4, both on 0.
    pred = torch.tensor([1, 1, 0, 0])
    label = torch.tensor([1, 0, 1, 1]).reshape(1, 2, 2)
    logits = 50.0 * functional.one_hot(pred, 2).T.reshape(1, 2, 2, 2).float()
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    water, land = (2 * 1 + 1) / (5 + 1), (2 * 0 + 1) / (3 + 1)
    assert Dice()(logits, label, valid).item() == pytest.approx(1 - (water + land) / 2, rel=1e-5)
    water, land = (1 + 1) / (4 + 1), (0 + 1) / (3 + 1)
    assert Jaccard()(logits, label, valid).item() == pytest.approx(1 - (water + land) / 2, rel=1e-5)


def test_weighted_and_smoothed_cross_entropy_match_torch() -> None:
    logits, label, valid = sample()
    ignored = torch.where(valid, label, -100)
    for loss, settings in (
        (CrossEntropyLoss(), {}),
        (CrossEntropyLoss(weights=(1.0, 3.0)), {"weight": torch.tensor([1.0, 3.0])}),
        (CrossEntropyLoss(smoothing=0.2), {"label_smoothing": 0.2}),
    ):
        want = functional.cross_entropy(logits, ignored, ignore_index=-100, **settings)
        torch.testing.assert_close(loss(logits, label, valid), want)


def test_masked_means() -> None:
    values = torch.tensor([[[1.0, 3.0]], [[5.0, float("nan")]], [[7.0, 7.0]]])
    valid = torch.tensor([[[True, True]], [[True, False]], [[False, False]]])
    assert masked_mean(values, valid).item() == 3.0
    assert masked_mean_per_image(values, valid).tolist() == [2.0, 5.0, 0.0]


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_nothing_valid_is_exactly_zero(loss) -> None:
    logits, label, valid = sample()
    logits.requires_grad_()
    value = loss(logits, label, torch.zeros_like(valid))
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_invalid_pixels_mean_nothing(loss) -> None:
    logits, label, valid = sample()
    wild = torch.where(valid, label, 255)
    wild[~valid & (torch.arange(4) % 2 == 0)] = -1
    noise = torch.where(valid[:, None], logits, 17 * torch.ones_like(logits)).requires_grad_()
    value = loss(noise, wild, valid)
    value.backward()
    torch.testing.assert_close(value, loss(logits, label, valid))
    assert not noise.grad.movedim(1, -1)[~valid].any()


def test_a_valid_label_outside_the_classes_is_refused() -> None:
    logits, label, valid = sample()
    label[0, 0, 0], valid[0, 0, 0] = 255, True
    with pytest.raises(DataError, match="255"):
        CrossEntropyLoss()(logits, label, valid)


def test_logits_of_another_size_are_refused() -> None:
    logits, label, valid = sample()
    with pytest.raises(DataError, match="resize"):
        Dice()(logits[..., :2], label, valid)


def test_bad_settings_are_refused() -> None:
    for make in (
        lambda: CrossEntropyLoss(smoothing=1.0),
        lambda: CrossEntropyLoss(weights=(0.0, 0.0)),
        lambda: Dice(smooth=0.0),
        lambda: Focal(gamma=-1.0),
        lambda: Sum({}),
        lambda: Sum({"ce": -1.0}),
        lambda: as_loss("dise"),
        lambda: as_loss("0.5"),
        lambda: as_loss(3),
    ):
        with pytest.raises(UsageError):
            make()
    with pytest.raises(UsageError, match="2 weights"):
        CrossEntropyLoss(weights=(1.0, 1.0, 1.0))(*sample())


def test_losses_are_registered_and_built_from_plain_settings() -> None:
    assert {"ce", "bce", "dice", "jaccard", "focal", "sum"} <= {entry.name for entry in entries("loss")}
    assert build("loss", "sum", {"terms": {"ce": 1.0, "dice": 2.0}}) == as_loss("ce + 2 dice")
    assert as_loss({"name": "focal", "gamma": 3.0}) == Focal(3.0)
    assert as_loss("jaccard") == Jaccard()

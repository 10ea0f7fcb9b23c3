"""The report's own convention: what it means, and that its tables are consistent with it."""

import cv2
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from seawall.errors import DataError
from seawall.metrics.srip import binarize, otsu_gray_level, scores_of_counts, srip_scores, to_gray

ALL = np.ones((8, 8), bool)


def masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    share = rng.choice([0.0, 0.02, 0.5, 1.0], 2)
    return tuple((rng.random((8, 8)) < s).astype(np.uint8) * 255 for s in share)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("zero_division", [0.0, 1.0])
def test_equal_to_scikit_learn(seed: int, zero_division: float) -> None:
    prediction, truth = masks(seed)
    got = srip_scores(prediction, truth, zero_division=zero_division)
    t, p = (truth > 0).ravel(), (prediction > 0).ravel()
    macro = {"average": "macro", "zero_division": zero_division}
    assert got["iou"] == pytest.approx(jaccard_score(t, p, **macro))
    assert got["precision"] == pytest.approx(precision_score(t, p, **macro))
    assert got["recall"] == pytest.approx(recall_score(t, p, **macro))
    assert got["f1"] == pytest.approx(f1_score(t, p, **macro))
    assert got["accuracy"] == pytest.approx(accuracy_score(t, p))
    if (t | p).any():
        assert got["dice"] == pytest.approx(f1_score(t, p, average="binary", zero_division=0))
    else:
        assert got["dice"] is None
    land = recall_score(t, p, pos_label=False, average="binary", zero_division=0)
    assert got["specificity"] == (None if t.all() else pytest.approx(land))


@pytest.mark.parametrize("seed", range(40))
def test_binarized_as_opencv_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind = seed % 4
    if kind == 0:
        picture = rng.integers(0, 256, (16, 16))
    elif kind == 1:
        picture = np.where(rng.random((16, 16)) < 0.3, rng.normal(200, 9, (16, 16)), rng.normal(40, 15, (16, 16)))
    elif kind == 2:
        picture = rng.choice([3, 250], (16, 16))
    else:
        picture = np.full((16, 16), rng.choice([0, 7, 255]))
    picture = picture.clip(0, 255).astype(np.uint8)
    _, theirs = cv2.threshold(picture, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    assert np.array_equal(binarize(picture, np.ones_like(picture, bool)), theirs > 0)


def test_otsu_of_two_levels_and_of_one() -> None:
    assert otsu_gray_level(np.array([0, 0, 255], np.uint8)) == 0
    assert otsu_gray_level(np.array([9, 9, 9], np.uint8)) == 0


def test_invalid_pixels_mean_nothing() -> None:
    rng = np.random.default_rng(0)
    prediction, truth = (rng.integers(0, 256, (8, 8)).astype(np.uint8) for _ in range(2))
    valid = rng.random((8, 8)) < 0.5
    junk = np.where(valid, prediction, 255).astype(np.uint8), np.where(valid, truth, 0).astype(np.uint8)
    assert srip_scores(prediction, truth, valid) == srip_scores(*junk, valid)
    assert set(srip_scores(prediction, truth, valid & False).values()) == {None}


def test_gray_is_finite_and_bounded() -> None:
    assert to_gray(np.array([0.0, 0.5, 1.0, 2.0, -1.0, np.nan])).tolist() == [0, 128, 255, 255, 0, 0]


def test_wrong_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="uint8"):
        srip_scores(np.zeros((2, 2)), np.zeros((2, 2)))


def test_table_2_is_what_labels_without_water_give() -> None:
    """Table 2 says precision .6445, recall = IoU .5950, accuracy = specificity .9011, F1 .6143.

    With no water in any label the share of images predicted all land, p = 2 * precision - 1, gives the accuracy
    2 * recall - p; IoU equals recall and specificity equals accuracy. No further figure is free.
    """
    precision, recall, accuracy, f1 = 0.6445, 0.5950, 0.9011, 0.6143
    p = 2 * precision - 1
    assert p == pytest.approx(0.289) and 2 * recall - p == pytest.approx(accuracy, abs=2e-4)
    images, pixels, rng = 1000, 64 * 64, np.random.default_rng(0)
    right = (accuracy - p) / (1 - p)
    spread = np.concatenate(
        [np.ones(289), np.clip(rng.beta(4.0, 4.0 * (1 - right) / right, images - 289), 0, 1 - 1e-3)]
    )
    spread[289:] += right - spread[289:].mean()
    each = []
    for share in spread:
        tn = round(pixels * min(share, 1.0))
        each.append(scores_of_counts(0, pixels - tn, 0, tn))
    mean = {
        name: np.mean([s[name] for s in each])
        for name in ("iou", "accuracy", "precision", "recall", "f1", "specificity")
    }
    assert mean["precision"] == pytest.approx(precision, abs=1e-3)
    assert mean["recall"] == pytest.approx(recall, abs=2e-3) and mean["iou"] == pytest.approx(mean["recall"])
    assert mean["accuracy"] == pytest.approx(accuracy, abs=4e-3) and mean["specificity"] == mean["accuracy"]
    assert mean["f1"] == pytest.approx(f1, abs=6e-3)
    assert mean["accuracy"] == pytest.approx(2 * mean["recall"] - (2 * mean["precision"] - 1), abs=1e-12)


def test_table_3_has_a_dice_below_its_iou_because_they_are_of_different_things() -> None:
    """Dice .6784 of water alone against IoU .7527 averaged over land and water; F1 .8133 is the mean of both Dices."""
    dice, f1 = 0.6784, 0.8133
    land = 2 * f1 - dice
    assert land == pytest.approx(0.948, abs=1e-3)
    water_iou, land_iou = dice / (2 - dice), land / (2 - land)
    assert (water_iou + land_iou) / 2 == pytest.approx(0.7073, abs=1e-3)  # per image means need not commute
    got = scores_of_counts(513, 243, 243, 9001)
    assert got["dice"] < got["iou"] and got["dice"] == pytest.approx(dice, abs=1e-3)


def test_smoothing_defines_dice_of_nothing() -> None:
    assert scores_of_counts(0, 0, 0, 9)["dice"] is None
    assert scores_of_counts(0, 0, 0, 9, smooth=1)["dice"] == 1.0

"""Scores by the convention of the SRIP report: Otsu-binarized pictures, macro average per image, mean over images.

It is kept under its own name because its numbers mean something else: its IoU is the mean over land and water of one
image, its Dice is of water alone, and both label and prediction are binarized anew, image by image.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import DoubleArray
from seawall.errors import DataError
from seawall.labels.threshold import best_split
from seawall.metrics.ratios import divide_or_nan
from seawall.records import finite_or_none

GRAY_LEVELS = 256


def otsu_gray_level(picture: NDArray[np.uint8]) -> int:
    """Return the gray level that splits a histogram with the largest variance between its two sides.

    Of equal splits the lowest counts. A picture of one level has no split and gives 0, as OpenCV does: an all-black
    label stays land and an all-white one stays water.

    Example:
        >>> otsu_gray_level(np.array([10, 10, 200, 201], np.uint8))
        10
    """
    counts = np.bincount(picture.ravel(), minlength=GRAY_LEVELS)
    return best_split(counts)[0] if np.count_nonzero(counts) > 1 else 0


def binarize(picture: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what lies above the Otsu level of the valid pixels; invalid ones are False."""
    return (picture > otsu_gray_level(picture[valid])) & valid


def to_gray(share: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return a map of 0..1 as the 8-bit picture that the convention uses; what is not finite is black."""
    picture: NDArray[np.uint8] = np.round(np.clip(np.nan_to_num(share), 0.0, 1.0) * 255).astype(np.uint8)
    return picture


def srip_scores(
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    valid: NDArray[np.bool_] | None = None,
    *,
    zero_division: float = 0.0,
    smooth: float = 0.0,
) -> Mapping[str, float | None]:
    """Score one image as the report's code does.

    IoU, precision, recall and F1 are means over those of {land, water} that label or prediction hold, as
    scikit-learn's `average="macro"` takes them.

    Args:
        prediction: (H, W) 8-bit picture of the water probability.
        truth: (H, W) 8-bit picture of the label.
        valid: (H, W) pixels that count; all where None.
        zero_division: What precision and recall of a class are where nothing was predicted or is there.
        smooth: Added to numerator and denominator of Dice; one variant of the released code adds 1.

    Returns:
        iou, accuracy, precision, recall, f1, specificity, dice; None where undefined.

    Raises:
        DataError: The pictures are not of one shape, or not 8-bit.
    """
    if prediction.shape != truth.shape or prediction.dtype != np.uint8 or truth.dtype != np.uint8:
        raise DataError(
            f"srip: expected two uint8 pictures of one shape, got {prediction.dtype} {prediction.shape} and "
            f"{truth.dtype} {truth.shape}; convert probabilities with to_gray()"
        )
    valid = np.ones(truth.shape, bool) if valid is None else valid
    predicted, true = binarize(prediction, valid), binarize(truth, valid)
    tp, fp = int(np.count_nonzero(predicted & true)), int(np.count_nonzero(predicted & ~true))
    fn, tn = int(np.count_nonzero(true & ~predicted)), int(np.count_nonzero(valid & ~predicted & ~true))
    return scores_of_counts(tp, fp, fn, tn, zero_division=zero_division, smooth=smooth)


def scores_of_counts(
    tp: int, fp: int, fn: int, tn: int, *, zero_division: float = 0.0, smooth: float = 0.0
) -> Mapping[str, float | None]:
    """Score one image from its counts; water is the positive class.

    Example:
        >>> scores_of_counts(0, 0, 0, 4)["iou"], scores_of_counts(0, 1, 0, 3)["iou"]
        (1.0, 0.375)
    """
    right = np.array([tn, tp], np.float64)
    invented = np.array([fn, fp], np.float64)
    missed = np.array([fp, fn], np.float64)
    there = right + invented + missed > 0
    divided = np.array([zero_division, zero_division])
    precision, recall = (
        np.where(right + other > 0, divide_or_nan(right, right + other), divided) for other in (invented, missed)
    )
    union = right + invented + missed
    pixels = tp + fp + fn + tn
    return {
        "iou": _macro(divide_or_nan(right, union), there),
        "accuracy": (tp + tn) / pixels if pixels else None,
        "precision": _macro(precision, there),
        "recall": _macro(recall, there),
        "f1": _macro(divide_or_nan(2 * right, right + union), there),
        "specificity": tn / (tn + fp) if tn + fp else None,
        "dice": (2 * tp + smooth) / (2 * tp + fp + fn + smooth) if 2 * tp + fp + fn + smooth else None,
    }


def _macro(each: DoubleArray, there: NDArray[np.bool_]) -> float | None:
    return finite_or_none(each[there].mean()) if there.any() else None

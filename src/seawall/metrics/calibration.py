"""CalibrationCounts counts per chip: how often the model is right at each level of confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import log_softmax

from seawall.arrays import BoolArray, DoubleArray
from seawall.errors import UsageError
from seawall.metrics.ratios import divide_or_nan
from seawall.records import finite_or_none

CONFIDENCE_BINS = 15
"""Equal bins of the confidence in records and calibrations."""


@dataclass(frozen=True)
class CalibrationCounts:
    """Sums over the valid pixels of each chip.

    Args:
        count: (B, M) pixels per confidence bin.
        correct: (B, M) of these, how many are right.
        confidence: (B, M) sum of their confidences.
        nll: (B,) sum of the negative log likelihoods of the true class.
        brier: (B,) sum of the squared distances between probabilities and the true class.
        entropy: (B,) sum of the entropies of the probabilities, in nats.
    """

    count: NDArray[np.int64]
    correct: NDArray[np.int64]
    confidence: DoubleArray
    nll: DoubleArray
    brier: DoubleArray
    entropy: DoubleArray

    @staticmethod
    def joined(parts: Sequence[CalibrationCounts]) -> CalibrationCounts:
        """Return the counts of several batches as one."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return CalibrationCounts(*(np.concatenate(column) for column in columns))

    def select(self, kept: BoolArray) -> CalibrationCounts:
        """Return the counts of some of the chips (B,)."""
        return CalibrationCounts(*(column[kept] for column in vars(self).values()))


def calibration_counts(logits: Tensor, label: Tensor, valid: Tensor, bins: int = CONFIDENCE_BINS) -> CalibrationCounts:
    """Sort valid pixels into equal bins of the largest probability; bin i holds [i/M, (i+1)/M), the last also 1.

    Args:
        logits: (B, K, H, W), finite.
        label: (B, H, W).
        valid: (B, H, W) bool.
        bins: Number of bins M.

    Raises:
        UsageError: Fewer than one bin.
    """
    if bins < 1:
        raise UsageError(f"calibration: expected at least one bin, got {bins}; {CONFIDENCE_BINS} is usual")
    label = label.masked_fill(~valid, 0)
    logs = log_softmax(logits.float(), 1)
    probability = logs.exp()
    confidence, guess = probability.max(1)
    code = (confidence * bins).long().clamp_(0, bins - 1)
    code += torch.arange(len(label), device=label.device).view(-1, 1, 1) * bins
    shape = (len(label), bins)

    def total(weight: Tensor) -> DoubleArray:
        sums = torch.bincount(code[valid], weight[valid].double(), minlength=len(label) * bins)
        return sums.view(shape).cpu().numpy()

    true = probability.gather(1, label[:, None])[:, 0]
    nll = -logs.gather(1, label[:, None])[:, 0]
    brier = probability.square().sum(1) - 2 * true + 1
    entropy = -(probability * logs).sum(1)
    ones = torch.ones_like(confidence)
    return CalibrationCounts(
        total(ones).astype(np.int64),
        total((guess == label).float()).astype(np.int64),
        total(confidence),
        total(nll).sum(1),
        total(brier).sum(1),
        total(entropy).sum(1),
    )


def expected_calibration_error(found: CalibrationCounts) -> float | None:
    """Return the pooled expected calibration error; None without a valid pixel."""
    gaps = np.abs(found.correct.sum(0) - found.confidence.sum(0)).sum()
    return finite_or_none(float(divide_or_nan(gaps, found.count.sum())))

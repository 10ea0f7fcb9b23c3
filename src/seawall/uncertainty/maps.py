"""Uncertainty maps of one or many predictions; entropies are in nats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from seawall.errors import UsageError


@dataclass(frozen=True)
class Prediction:
    """What several passes say together.

    Args:
        probability: (B, K, H, W) mean of the passes' probabilities.
        entropy: (B, H, W) entropy of the mean, 0 to ln K: all that is unsure.
        mutual_information: (B, H, W) the part of it that comes from passes that disagree, at least 0.
        margin: (B, H, W) largest less second largest mean probability, 0 to 1: small is unsure.
        variation: (B, H, W) 1 less the largest mean probability.
        passes: Number of passes.
    """

    probability: Tensor
    entropy: Tensor
    mutual_information: Tensor
    margin: Tensor
    variation: Tensor
    passes: int


def gather(passes: Iterable[Tensor]) -> Prediction:
    """Average the probabilities of several passes, one at a time, so that memory does not grow with them.

    Args:
        passes: Logits (B, K, H, W), one tensor per pass.

    Raises:
        UsageError: There is no pass.

    Example:
        >>> gather([torch.zeros(1, 2, 1, 1)] * 3).mutual_information.item()
        0.0
    """
    total: Tensor | None = None
    within: Tensor | None = None
    count = 0
    for logits in passes:
        # double, so that the order of the passes is lost in rounding: flipping the image flips the map exactly
        probability = torch.softmax(logits.double(), 1)
        spread = entropy(probability)
        total = probability if total is None else total + probability
        within = spread if within is None else within + spread
        count += 1
    if total is None or within is None:
        raise UsageError("uncertainty: expected at least one pass, got none; ask for one or more")
    mean = total / count
    whole = entropy(mean)
    return Prediction(
        mean.float(),
        whole.float(),
        (whole - within / count).clamp_min(0).float(),
        margin(mean).float(),
        (1 - mean.amax(1)).float(),
        count,
    )


def entropy(probability: Tensor) -> Tensor:
    """Return the entropy over classes: (B, K, ...) to (B, ...), 0 ln 0 taken as 0."""
    return -torch.xlogy(probability, probability).sum(1)


def margin(probability: Tensor) -> Tensor:
    """Return the largest less the second largest probability; with one class the largest."""
    if probability.shape[1] == 1:
        return probability[:, 0]
    best = probability.topk(2, 1).values
    return best[:, 0] - best[:, 1]

"""Mahalanobis distance from clean rows with a shrunk covariance, and the scores and false alarms of groups that were left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from seawall.arrays import BoolArray, DoubleArray
from seawall.metrics.detection import clean_groups_needed, conformal_flags

FOLDS = 20
"""Parts that groups are divided into to score each by a fit to the others; up to so many each is left out alone."""

GroupScores = Callable[[DoubleArray], DoubleArray]
"""Maps the rows of a group to its scores: one per row, or one for the group."""
GroupFit = Callable[[Sequence[DoubleArray]], GroupScores]
"""Fits scores to the rows of clean groups."""


@dataclass(frozen=True)
class Mahalanobis:
    """The distance from the center of clean rows; `fit_mahalanobis` returns it.

    Args:
        center: (D,) mean.
        scale: (D,) standard deviation; infinite for an entry that never varied, which then never counts.
        precision: (D, D) inverse of the shrunk covariance of the standardized entries.
        limits: (D,) largest standardized deviation that counts.
    """

    center: DoubleArray
    scale: DoubleArray
    precision: DoubleArray
    limits: DoubleArray

    def deviations(self, rows: Tensor) -> Tensor:
        """Return the standardized deviations (N, D) of rows; 0 where an entry is undefined (NaN)."""
        center, scale, limits = (torch.from_numpy(v).to(rows.device) for v in (self.center, self.scale, self.limits))
        z = (rows.double() - center) / scale
        return torch.where(z.isnan(), 0.0, z).clamp(-limits, limits)

    def distances(self, rows: Tensor) -> Tensor:
        """Return the distance (N,) of rows, with gradients."""
        z = self.deviations(rows)
        squared = torch.einsum("ni,ij,nj->n", z, torch.from_numpy(self.precision).to(z.device), z)
        return squared.clamp_min(1e-24).sqrt()  # the gradient of the root is infinite at 0


def fit_mahalanobis(
    rows: DoubleArray, limits: DoubleArray | None = None, weights: DoubleArray | None = None
) -> Mahalanobis:
    """Return the distance from the center of rows (N, D).

    Args:
        rows: Clean rows; entries that are undefined are NaN, and stand for the mean.
        limits: (D,) largest standardized deviation that counts; none by default.
        weights: (N,) weight of each row; equal by default.

    Paper: Ledoit and Wolf 2004, the shrinkage of the covariance towards a multiple of the identity.
    """
    share = np.ones(len(rows)) if weights is None else weights * (len(rows) / weights.sum())
    known = np.where(np.isnan(rows), 0.0, share[:, None])
    filled = np.nan_to_num(rows)
    total = known.sum(0).clip(1e-12)
    center = (known * filled).sum(0) / total
    deviation = np.sqrt((known * np.square(filled - center)).sum(0) / total)
    scale = np.where(deviation > 1e-9 * np.abs(filled).max(0).clip(1e-9), deviation, np.inf)
    z = np.where(np.isnan(rows), 0.0, (filled - center) / scale)
    covariance, _ = ledoit_wolf(z * np.sqrt(share)[:, None], assume_centered=True)
    none = np.full(rows.shape[1], np.inf)
    return Mahalanobis(center, scale, np.linalg.inv(covariance), none if limits is None else limits)


def left_out_scores(groups: Sequence[DoubleArray], fit: GroupFit) -> list[DoubleArray]:
    """Return the scores of each group by a fit to the groups of the other folds."""
    scores: list[DoubleArray] = [np.zeros(0)] * len(groups)
    for out, others in group_folds(len(groups)):
        score = fit([groups[i] for i in others])
        for i in out:
            scores[i] = score(groups[i])
    return scores


def left_out_flags(groups: Sequence[DoubleArray], fit: GroupFit, alarms: float) -> list[BoolArray] | None:
    """Return which scores are flagged by a fit and a cut-off that the groups of the other folds give; None where these are too few."""
    flags: list[BoolArray] = [np.zeros(0, bool)] * len(groups)
    for out, others in group_folds(len(groups)):
        if len(others) < clean_groups_needed(alarms):
            return None
        kept = [groups[i] for i in others]
        score, (clean, names) = fit(kept), flat_scores(left_out_scores(kept, fit))
        for i in out:
            flags[i] = conformal_flags(score(groups[i]), clean, alarms, names)
    return flags


def flat_scores(scores: Sequence[DoubleArray]) -> tuple[DoubleArray, tuple[str, ...]]:
    """Return the scores of all groups in one row, and the group of each."""
    names = tuple(str(i) for i, own in enumerate(scores) for _ in own)
    return np.concatenate(list(scores)), names


def group_folds(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the groups of each fold, and all others.

    Example:
        >>> list(group_folds(2))
        [([0], [1]), ([1], [0])]
    """
    for fold in range(min(FOLDS, count)):
        out = set(range(fold, count, FOLDS))
        yield sorted(out), [i for i in range(count) if i not in out]

"""Detectors of attacked chips: fitted to clean chips alone, with a cut-off for a stated share of false alarms over groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from seawall.arrays import BoolArray, DoubleArray
from seawall.errors import UsageError, did_you_mean
from seawall.metrics.detection import check_clean_groups, conformal_flags
from seawall.types import SegmentationModel
from seawall.uncertainty.chip_features import chip_features, predict_with_gradients
from seawall.uncertainty.mahalanobis import GroupScores, Mahalanobis, fit_mahalanobis, flat_scores, left_out_scores

ALL_FEATURES = "all features"
"""The detector that reads every feature."""


@dataclass(frozen=True)
class AttackDetector:
    """The distance of a chip's features from those of clean chips; `fit_attack_detector` returns it.

    One feature gives the absolute standardized deviation, whichever way an attack moves it; all of them Mahalanobis' distance.

    Args:
        name: A feature, or "all features".
        reads: Which features it reads.
        distance: From the mean of clean chips, each group counted once.
        clean: Score of each clean chip by a fit to other groups.
        groups: Group of each of these.
        alarms: Share of clean chips of a new group that may be flagged.
    """

    name: str
    reads: tuple[int, ...]
    distance: Mahalanobis
    clean: DoubleArray
    groups: tuple[str, ...]
    alarms: float

    def scores(self, features: Tensor) -> Tensor:
        """Return the score (N,) of features (N, F), with gradients; an undefined feature counts as usual."""
        return self.distance.distances(features[:, list(self.reads)])

    def flags(self, scores: DoubleArray) -> BoolArray:
        """Return which scores are too high for a clean chip."""
        return conformal_flags(scores, self.clean, self.alarms, self.groups)

    @property
    def cut(self) -> float:
        """The largest score of a clean chip that is not flagged: an adversary who stays at or below it is not noticed."""
        return float(self.clean[~self.flags(self.clean)].max())

    def examine(self, model: SegmentationModel, image: Tensor, image_seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K, H, W) of images and their scores in multiples of the cut-off (B,), with gradients."""
        prediction = predict_with_gradients(model, image)
        scores = self.scores(chip_features(prediction, image, image_seen))
        tiny = torch.finfo(prediction.probability.dtype).tiny
        return prediction.probability.clamp_min(tiny).log(), scores / self.cut


def fit_attack_detector(
    clean: Mapping[str, DoubleArray], names: Sequence[str], name: str = ALL_FEATURES, alarms: float = 0.05
) -> AttackDetector:
    """Return a detector that is fitted to clean chips alone.

    Args:
        clean: Group to the features (n, F) of its chips.
        names: (F,) names of the features.
        name: The feature that it reads, or "all features".
        alarms: Share of clean chips of a new group that may be flagged.

    Raises:
        UsageError: There is no such feature, or there are too few groups for the rate.
    """
    if name != ALL_FEATURES and name not in names:
        raise UsageError(f"detector: unknown feature {name!r}; {did_you_mean(name, (*names, ALL_FEATURES))}")
    check_clean_groups("detector", len(clean), alarms)
    reads = tuple(range(len(names))) if name == ALL_FEATURES else (list(names).index(name),)
    rows = [clean[group][:, reads] for group in sorted(clean)]
    scores, groups = flat_scores(left_out_scores(rows, _fit))
    return AttackDetector(name, reads, _distance(rows), scores, groups, alarms)


def _distance(groups: Sequence[DoubleArray]) -> Mahalanobis:
    """Return the distance from the chips of groups, each group counted once."""
    weights = np.concatenate([np.full(len(rows), 1 / len(rows)) for rows in groups])
    return fit_mahalanobis(np.concatenate(list(groups)), weights=weights)


def _fit(groups: Sequence[DoubleArray]) -> GroupScores:
    return partial(_scores_of, _distance(groups))


def _scores_of(distance: Mahalanobis, rows: DoubleArray) -> DoubleArray:
    found: DoubleArray = distance.distances(torch.from_numpy(rows)).numpy()
    return found

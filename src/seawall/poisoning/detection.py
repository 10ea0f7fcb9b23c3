"""Detectors of poisoned chips, by the activations of a network trained on them, and their false-alarm rates.

The scores of clean chips depend on the scenes, the network and the layer, so that no fixed cut-off is right. With chips
that are known to be clean ("trusted": labelled by hand, not trained on) the cut-off follows from their scores, for any
false-alarm rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import nn

from seawall.arrays import DoubleArray
from seawall.errors import DataError, UsageError
from seawall.metrics.detection import auroc, clean_groups_needed, conformal_flags
from seawall.modules import eval_mode, forward_with_maps, masked_map_mean, to_device_of
from seawall.registry import register
from seawall.types import Batch


@dataclass(frozen=True)
class PoisonDetection:
    """Scores and flags of a detector.

    Args:
        chips: Ids.
        scores: One per chip; higher is more suspect.
        flagged: One per chip: classified as poisoned.
        method: Name of the detector.
    """

    chips: tuple[str, ...]
    scores: DoubleArray
    flagged: NDArray[np.bool_]
    method: str

    def rates(self, poisoned: Iterable[str]) -> tuple[float | None, float | None]:
        """Return the share of poisoned chips that was flagged, and of clean ones (false alarms); None without any."""
        bad = np.isin(self.chips, list(poisoned))
        return tuple(float(self.flagged[at].mean()) if at.any() else None for at in (bad, ~bad))  # type: ignore[return-value]

    def auc(self, poisoned: Iterable[str]) -> float | None:
        """Return the probability that a poisoned chip has the higher score than a clean one; None without both."""
        bad = np.isin(self.chips, list(poisoned))
        return auroc(self.scores[bad], self.scores[~bad])


def activations(
    model: nn.Module, layer: nn.Module, batches: Iterable[Batch], klass: int | None = None
) -> tuple[tuple[str, ...], DoubleArray]:
    """Return one vector per chip: a layer's activations averaged over the valid pixels that are labelled so.

    Args:
        model: Trained on the chips; called in eval mode on its own device, its modes are restored.
        layer: One of its modules, such as the last block before the logits; the deepest one separates less.
        batches: The chips with the labels as given.
        klass: Average over pixels of this label only; all valid ones if None. Chips without such pixels are left out.

    Returns:
        Ids, and (N, D).

    Raises:
        DataError: The layer does not give maps (B, D, h, w), or no chip has such pixels.
    """
    chips, rows = list[str](), list[DoubleArray]()
    with eval_mode(model), torch.no_grad():
        for batch in batches:
            _, maps = forward_with_maps(model, layer, to_device_of(model, batch).image)
            at = batch.valid if klass is None else batch.valid & (batch.label == klass)
            mean = masked_map_mean(maps, at)
            for i, chip in enumerate(batch.chips):
                if bool(at[i].any()):
                    chips.append(chip)
                    rows.append(mean[i].double().cpu().numpy())
    if not rows:
        raise DataError(
            f"activations: expected chips with valid pixels of class {klass}, got none; choose another class"
        )
    return tuple(chips), np.stack(rows)


@runtime_checkable
class PoisonDetector(Protocol):
    """Ids, features (N, D) of the chips and, if there are any, of trusted chips (M, D) to scores and flags."""

    @property
    def alarms(self) -> float:
        """With trusted chips, the share of clean chips that may be flagged; a setting of every detector."""

    def __call__(
        self, chips: Sequence[str], features: DoubleArray, trusted: DoubleArray | None = None
    ) -> PoisonDetection: ...


@register("detector", "spectral-signatures", paper="arXiv:1811.00636")
@dataclass(frozen=True)
class SpectralSignatures:
    """Distance along the direction in which the chips differ most; see `spectral_signatures`.

    Args:
        share: Expected share of poisoned chips, where no chips are trusted.
        alarms: With trusted chips, the share of clean chips that may be flagged.
    """

    share: float | None = None
    alarms: float = 0.05

    def __call__(
        self, chips: Sequence[str], features: DoubleArray, trusted: DoubleArray | None = None
    ) -> PoisonDetection:
        share = None if trusted is not None else self.share
        return spectral_signatures(chips, features, share, trusted=trusted, alarms=self.alarms)


@register("detector", "activation-clustering", paper="arXiv:1811.03728")
@dataclass(frozen=True)
class ActivationClustering:
    """Nearness to the smaller of two clusters; see `activation_clustering`.

    Args:
        seed: Seed of the clustering.
        alarms: With trusted chips, the share of clean chips that may be flagged.
    """

    seed: int = 0
    alarms: float = 0.05

    def __call__(
        self, chips: Sequence[str], features: DoubleArray, trusted: DoubleArray | None = None
    ) -> PoisonDetection:
        return activation_clustering(chips, features, seed=self.seed, trusted=trusted, alarms=self.alarms)


def spectral_signatures(
    chips: Sequence[str],
    features: DoubleArray,
    share: float | None = None,
    *,
    trusted: DoubleArray | None = None,
    alarms: float = 0.05,
) -> PoisonDetection:
    """Score chips by how far they lie along the direction in which the chips differ most.

    Paper: Tran et al. 2018, arXiv:1811.00636, algorithm 1, whose cut-off needs the true share. Differs: with trusted
    chips the cut-off follows from their scores, and distances count from the median. The direction is then that of all chips,
    the trusted among them: fitted to the others alone it would fit their noise, and flag more clean chips than asked.

    Args:
        chips: Ids.
        features: (N, D).
        share: Expected share of poisoned chips; 1.5 times as many are flagged, on clean chips too.
        trusted: (M, D) of chips that are known to be clean and that the network did not learn; M from 1 / alarms - 1.
        alarms: With `trusted`, the share of clean chips that may be flagged, on average over such sets.
            Without a share and without trusted chips those beyond 2.5 robust deviations are flagged, without a bound
            on false alarms: features of clean chips have long tails, and many poisons move them.

    Raises:
        DataError: The features are not one finite vector per chip.
        UsageError: Share, alarms or the number of trusted chips is invalid, or both share and trusted are given.
    """
    x = _centered_features(chips, features, trusted, alarms)
    if share is not None and (trusted is not None or not 0 <= share <= 1):
        raise UsageError(
            f"spectral-signatures.share: expected a share in [0, 1] or trusted chips, got {share} "
            f"{'with' if trusted is not None else 'without'} trusted chips; give one of them"
        )
    direction = np.linalg.svd(x, full_matrices=False)[2][0] if len(x) > 1 else np.zeros(x.shape[1])
    along = x @ direction
    if trusted is not None:
        scores = np.abs(along - np.median(along))
        flags = conformal_flags(scores[: len(chips)], scores[len(chips) :], alarms)
        return PoisonDetection(tuple(chips), scores[: len(chips)], flags, "spectral-signatures")
    scores = along**2
    if share is None:
        flagged = robust_z(along) > 2.5
    else:
        flagged = np.zeros(len(x), bool)
        flagged[np.argsort(-scores, kind="stable")[: min(len(x), math.floor(1.5 * share * len(x)))]] = True
    return PoisonDetection(tuple(chips), scores, flagged, "spectral-signatures")


def activation_clustering(
    chips: Sequence[str],
    features: DoubleArray,
    *,
    seed: int = 0,
    smallest: float = 0.25,
    gap: float = 0.4,
    trusted: DoubleArray | None = None,
    alarms: float = 0.05,
) -> PoisonDetection:
    """Split chips into two clusters; the smaller one is suspect.

    With trusted chips those are flagged that lie nearer to the smaller cluster's center than trusted ones do; without,
    the whole smaller cluster if it is small and well separated, which a poisoned share above `smallest` never is.

    Paper: Chen et al. 2018, arXiv:1811.03728. Differs: principal instead of independent components, which need more
    chips, and a silhouette by distances to the two centers.

    Args:
        chips: Ids.
        features: (N, D).
        seed: Of the clustering.
        smallest: A cluster with at most this share of the chips can be poisoned.
        gap: Least silhouette for the two clusters to count as two.
        trusted: (M, D) of chips that are known to be clean and that the network did not learn; M from 1 / alarms - 1.
        alarms: With `trusted`, the share of clean chips that may be flagged, on average over such sets.

    Raises:
        DataError: The features are not one finite vector per chip.
        UsageError: Alarms or the number of trusted chips is invalid.
    """
    x = _centered_features(chips, features, trusted, alarms)
    if len(x) < 4:
        return PoisonDetection(tuple(chips), np.zeros(len(chips)), np.zeros(len(chips), bool), "activation-clustering")
    _, sizes, axes = np.linalg.svd(x, full_matrices=False)
    kept = min(10, len(sizes), len(x) - 2)
    low = x @ axes[:kept].T
    cluster = KMeans(2, n_init=10, random_state=seed).fit_predict(low)
    minor = int(np.count_nonzero(cluster == 1) < len(cluster) / 2)
    means = np.stack([low[cluster == k].mean(0) for k in (0, 1)])
    distance = np.linalg.norm(low[:, None] - means[None], axis=2)
    scores = _minor_cluster_score(distance, minor)
    if trusted is not None:
        flags = conformal_flags(scores[: len(chips)], scores[len(chips) :], alarms)
        return PoisonDetection(tuple(chips), scores[: len(chips)], flags, "activation-clustering")
    inside, outside = distance[np.arange(len(x)), cluster], distance[np.arange(len(x)), 1 - cluster]
    separation = float(np.mean((outside - inside) / np.maximum(np.maximum(outside, inside), 1e-12)))
    poisoned = np.mean(cluster == minor) <= smallest and separation >= gap
    return PoisonDetection(tuple(chips), scores, (cluster == minor) & bool(poisoned), "activation-clustering")


def robust_z(values: DoubleArray) -> DoubleArray:
    """Return the distance from the median in robust standard deviations (1.4826 median absolute deviations)."""
    distance = np.abs(values - np.median(values))
    scale = 1.4826 * float(np.median(distance))
    return distance / scale if scale > 0 else np.where(distance > 0, np.inf, 0.0)


def _minor_cluster_score(distance: DoubleArray, minor: int) -> DoubleArray:
    """Return the relative difference of the distances to the large and to the small cluster's center, in [-1, 1]."""
    return np.asarray((distance[:, 1 - minor] - distance[:, minor]) / np.maximum(distance.sum(1), 1e-12))


def _centered_features(
    chips: Sequence[str], features: DoubleArray, trusted: DoubleArray | None, alarms: float
) -> DoubleArray:
    """Return the features of the chips and then those of the trusted ones, less the mean of them all."""
    if features.ndim != 2 or len(features) != len(chips) or not len(chips) or not np.isfinite(features).all():
        raise DataError(
            f"detector: expected a finite vector for each of {len(chips)} chips, got {features.shape}; use `activations`"
        )
    if trusted is None:
        return np.asarray(features - features.mean(0), np.float64)
    if trusted.ndim != 2 or trusted.shape[1] != features.shape[1] or not np.isfinite(trusted).all():
        raise DataError(
            f"detector: expected finite trusted features (M, {features.shape[1]}), got {trusted.shape}; use `activations` "
            "with the same model and layer"
        )
    if not 0 < alarms < 1 or len(trusted) < clean_groups_needed(alarms):
        raise UsageError(
            f"detector.alarms: expected a rate in (0, 1) with at least 1 / alarms - 1 trusted chips, got {alarms} and "
            f"{len(trusted)} chips; trust more chips or allow more alarms"
        )
    both = np.concatenate([features, trusted]).astype(np.float64)
    return np.asarray(both - both.mean(0))

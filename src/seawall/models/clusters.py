"""Clusters of pixels or of regions that are fitted to training chips, and the class of each cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from seawall.arrays import DoubleArray
from seawall.errors import DataError, UsageError, did_you_mean
from seawall.models.water_index import ThresholdNet, WaterIndexThreshold, parse_threshold
from seawall.types import ModelSpec

MAJORITY, WATER_INDEX = "majority", "water-index"
"""Ways from clusters or regions to classes, beside the text of a rule such as "mndwi > 0"."""

Covariance = Literal["tied", "full", "diag", "spherical"]
"""Covariances of a Gaussian mixture, in scikit-learn's words."""

WEIGHTLESS = 1e4
"""Taken off the logarithm of the weight of Gaussians that only fill up their number."""

SAMPLE_ROWS = 40_000
"""Pixels or regions that clusters are fitted to, drawn evenly from all of the training part."""


def class_rule(name: str, text: str, spec: ModelSpec) -> ThresholdNet | None:
    """Return the water index that gives classes; None where the majority of the training pixels does.

    Args:
        name: Of the model, for messages.
        text: "majority"; "water-index", the first index that fits the bands, at its published threshold; or a rule such as "mndwi > 0".
        spec: Bands, classes and unit.

    Raises:
        UsageError: The text is none of these.
        ModelError: The bands, the unit or the classes do not fit the index.
    """
    settings = check_class_rule(name, text)
    return None if settings is None else settings(spec)


def check_class_rule(name: str, text: str) -> WaterIndexThreshold | None:
    """Return the settings of the water index of a class rule, without the specification; see `class_rule`.

    Raises:
        UsageError: The text is no class rule.
    """
    if text == MAJORITY:
        return None
    if text == WATER_INDEX:
        return WaterIndexThreshold()
    if not set("<>") & set(text):
        raise UsageError(
            f'{name}.classes: unknown name {text!r}; {did_you_mean(text, (MAJORITY, WATER_INDEX))}, or a rule such as "mndwi > 0"'
        )
    return parse_threshold(f"{name}.classes", text)


def check_cluster_count(where: str, count: int) -> None:
    """Check a number of clusters.

    Raises:
        UsageError: It is below 1 or above 1024.
    """
    if not 1 <= count <= 1024:
        raise UsageError(f"{where}: expected a whole number in 1..1024, got {count}; 16 is common")


@dataclass(frozen=True)
class ClusterSample:
    """What clusters are fitted to: a row for each pixel, or for each region.

    Args:
        features: (n, F).
        weight: (n,) number of pixels of each row.
        pixels: (n, K) number of valid pixels of each class.
        index: (n,) mean water index, NaN where it is undefined or not asked for.
        draw: (n,) random numbers by which rows are chosen.
    """

    features: DoubleArray
    weight: DoubleArray
    pixels: DoubleArray
    index: DoubleArray
    draw: DoubleArray

    def __len__(self) -> int:
        return len(self.draw)

    @staticmethod
    def merged(name: str, parts: Iterable[ClusterSample], most: int = SAMPLE_ROWS) -> ClusterSample:
        """Return the rows of the smallest random numbers of all parts: an even sample, whatever the order of the parts.

        Args:
            name: Of the model, for messages.
            parts: Rows of some chips each; few are in memory at once.
            most: Rows that are kept.

        Raises:
            DataError: There is no row.
        """
        kept: list[ClusterSample] = []
        for part in parts:
            kept = [_smallest_draws([*kept, part], most)]
        if not kept or not len(kept[0]):
            raise DataError(f"{name}: expected training chips with seen pixels, got none; choose other chips")
        return kept[0]


def _smallest_draws(parts: list[ClusterSample], most: int) -> ClusterSample:
    columns = [
        np.concatenate(values)
        for values in zip(*((p.features, p.weight, p.pixels, p.index, p.draw) for p in parts), strict=True)
    ]
    order = np.argsort(columns[-1], kind="stable")[:most]
    return ClusterSample(*(column[order] for column in columns))


def _standardization(features: DoubleArray, weight: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Return mean and standard deviation of each feature; a constant one keeps its scale."""
    share = weight / weight.sum()
    mean = share @ features
    std = np.sqrt(share @ (features - mean) ** 2)
    return mean, np.where(std > 1e-9 * np.maximum(np.abs(mean), 1e-9), std, 1.0)


class KMeansClusters(nn.Module):
    """K-means on standardized features: each row belongs to the nearest center.

    Args:
        count: Number of clusters; of fewer distinct rows there are as many as of these, and the others are copies.
        features: Number of features.
    """

    mean: Tensor
    std: Tensor
    centers: Tensor

    def __init__(self, count: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("centers", torch.zeros(count, features))

    def fit(self, sample: ClusterSample, seed: int) -> DoubleArray:
        """Find the centers by scikit-learn's k-means; return the membership (n, clusters) of each row, 0 or 1."""
        mean, std = _standardization(sample.features, sample.weight)
        scaled = (sample.features - mean) / std
        count = min(len(self.centers), len(np.unique(scaled, axis=0)))
        with threadpool_limits(1):  # sums over threads are rounded in any order
            found = KMeans(count, n_init=4, random_state=seed % 2**32).fit(scaled, sample_weight=sample.weight)
        rows = np.arange(len(self.centers)) % count
        _fill(self.mean, mean)
        _fill(self.std, std)
        _fill(self.centers, found.cluster_centers_[rows])
        return np.asarray(np.eye(len(self.centers))[found.labels_])

    def assign(self, features: Tensor) -> Tensor:
        """Return the cluster (n,) of each row (n, F)."""
        scaled = (features - self.mean) / self.std
        # center by center: the differences from all of them at once would not fit into memory
        return torch.stack([(scaled - center).square().sum(1) for center in self.centers], 1).argmin(1)

    def forward(self, features: Tensor, log_shares: Tensor) -> Tensor:
        """Return the logits (n, K) of rows (n, F), those of their clusters (clusters, K); without a gradient to the rows."""
        return log_shares[self.assign(features)]


class GaussianClusters(nn.Module):
    """A mixture of Gaussians on standardized features: each row belongs to all clusters, by its posterior.

    Args:
        count: Number of clusters; of fewer distinct rows there are as many as of these, and the others have no weight.
        features: Number of features.
        covariance: "tied", one matrix for all clusters; "full", a matrix for each; "diag", variances for each; "spherical", one
            variance for each.
    """

    mean: Tensor
    std: Tensor
    centers: Tensor
    log_weights: Tensor
    precisions: Tensor

    def __init__(self, count: int, features: int, covariance: Covariance) -> None:
        super().__init__()
        self.covariance = covariance
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("centers", torch.zeros(count, features))
        self.register_buffer("log_weights", torch.zeros(count))
        self.register_buffer("precisions", torch.eye(features).repeat(count, 1, 1))

    def fit(self, sample: ClusterSample, seed: int) -> DoubleArray:
        """Find the mixture by scikit-learn's expectation maximization; return the posterior (n, clusters) of each row."""
        mean, std = _standardization(sample.features, sample.weight)
        scaled = (sample.features - mean) / std
        count = min(len(self.centers), len(np.unique(scaled, axis=0)))
        with threadpool_limits(1):
            mixture = GaussianMixture(
                count, covariance_type=self.covariance, reg_covar=1e-4, max_iter=200, random_state=seed % 2**32
            )
            found = mixture.fit(scaled)
            posterior = found.predict_proba(scaled)
        rows = np.arange(len(self.centers)) % count
        log_weights = np.log(np.maximum(found.weights_, 1e-30))[rows]
        log_weights[count:] -= WEIGHTLESS
        _fill(self.mean, mean)
        _fill(self.std, std)
        _fill(self.centers, found.means_[rows])
        _fill(self.log_weights, log_weights)
        _fill(self.precisions, _square_matrices(found.precisions_cholesky_, self.covariance, count, len(mean))[rows])
        return np.pad(posterior, ((0, 0), (0, len(rows) - count)))

    def log_posterior(self, features: Tensor) -> Tensor:
        """Return the logarithm of the probability (n, clusters) of each cluster, given a row (n, F)."""
        scaled = (features - self.mean) / self.std
        parts = [
            weight + chol.diagonal().log().sum() - ((scaled - center) @ chol).square().sum(1) / 2
            for weight, center, chol in zip(self.log_weights, self.centers, self.precisions, strict=True)
        ]
        return torch.stack(parts, 1).log_softmax(1)

    def forward(self, features: Tensor, log_shares: Tensor) -> Tensor:
        """Return the logits (n, K) of rows (n, F): the logarithm of the mean of the clusters' class shares (clusters, K)."""
        return (self.log_posterior(features)[:, :, None] + log_shares).logsumexp(1)


def _square_matrices(factors: DoubleArray, covariance: Covariance, count: int, features: int) -> DoubleArray:
    """Return scikit-learn's Cholesky factors of the precisions as a matrix (features, features) for each cluster."""
    if covariance == "full":
        return factors
    if covariance == "tied":
        return np.broadcast_to(factors, (count, features, features))
    each = factors if covariance == "diag" else factors[:, None]
    return np.eye(features) * each[:, None]


def _fill(buffer: Tensor, values: DoubleArray) -> None:
    buffer.copy_(torch.tensor(values))


def cluster_log_shares(name: str, sample: ClusterSample, membership: DoubleArray, rule: ThresholdNet | None) -> Tensor:
    """Return the logarithm of the share (clusters, K) of each class in each cluster.

    By majority: among the valid training pixels, with one pixel more of the whole part's shares, so that no share is 0 and a
    cluster without a valid pixel has those of the part. By a water index: the probabilities of its threshold model at the
    mean index of the cluster.

    Args:
        name: Of the model, for messages.
        sample: The rows that the clusters were fitted to.
        membership: (n, clusters) of each row.
        rule: The water index; None for the majority.

    Raises:
        DataError: No training pixel is valid.
    """
    if rule is not None:
        known = np.isfinite(sample.index)
        weight = membership[known] * sample.weight[known, None]
        total = weight.sum(0)
        mean = (sample.index[known] @ weight) / np.maximum(total, 1e-12)
        values, defined = (torch.from_numpy(each).to(rule.threshold.device) for each in (mean, total > 0))
        return rule.scores(values, defined).log_softmax(1)
    pixels = sample.pixels.sum(0)
    if not pixels.sum():
        raise DataError(
            f'{name}: expected labelled training pixels, got none; label them, or set classes = "{WATER_INDEX}"'
        )
    whole = (pixels + 1) / (pixels + 1).sum()
    counts = membership.T @ sample.pixels + whole
    return torch.from_numpy(np.log(counts / counts.sum(1, keepdims=True)))

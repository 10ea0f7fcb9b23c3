"""Clustering of pixels by k-means and by a Gaussian mixture, over color, texture or both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.models.blocks import check_bands_and_classes, check_fitted, check_image_bands, settings_of
from seawall.models.clusters import (
    MAJORITY,
    ClusterSample,
    Covariance,
    GaussianClusters,
    KMeansClusters,
    check_class_rule,
    check_cluster_count,
    class_rule,
    cluster_log_shares,
)
from seawall.models.pixel_features import FeatureSpace, PixelFeatures, Texture
from seawall.models.water_index import ThresholdNet
from seawall.modules import to_device_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, ModelSpec, single_unit


@dataclass(frozen=True)
class PixelClustering(ABC):
    """The settings of both clusterings.

    Args:
        clusters: Number of clusters.
        space: What pixels are compared by: "color", their bands; "texture", what `texture` computes; or "both".
        texture: "statistics", the standard deviation of each band in the window; "glcm", the contrast of its gray-level co-occurrence matrix;
            "gabor", the energy of the mean of the bands at four orientations.
        window: Side of the window of the texture in pixels, odd.
        classes: How a cluster gets its class: "majority" of its training pixels; "water-index", the side of the
            published threshold on which the mean of the first fitting water index over the cluster lies; or a rule such as "mndwi > 0".
    """

    clusters: int = 64
    space: FeatureSpace = "color"
    texture: Texture = "statistics"
    window: int = 7
    classes: str = MAJORITY
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_cluster_count(f"{self.name}.clusters", self.clusters)
        check_class_rule(self.name, self.classes)
        if self.window < 3 or self.window % 2 == 0 or self.window > 63:
            raise UsageError(
                f"{self.name}.window: expected an odd number of pixels in 3..63, got {self.window}; 7 is common"
            )
        if self.space == "color" and (self.texture, self.window) != ("statistics", 7):
            raise UsageError(
                f"{self.name}.texture, {self.name}.window: expected none where only colors are compared, got {self.texture} and "
                f'{self.window}; set space = "texture" or "both"'
            )

    def __call__(self, spec: ModelSpec) -> ClusterNet:
        """Return the model, without a fit."""
        return ClusterNet(replace(spec, architecture=self.name, settings=settings_of(asdict(self))), self)

    @abstractmethod
    def make_clusters(self, features: int) -> KMeansClusters | GaussianClusters:
        """Return clusters of so many features, without a fit."""


@register("model", "k-means", paper="Lloyd 1982", smoke={"clusters": 4}, traits=("no-gradient", "ignores-unseen"))
@dataclass(frozen=True)
class KMeansClustering(PixelClustering):
    """K-means over the pixels of the training part: a pixel gets the class of the nearest center.

    The settings are those of `PixelClustering`. The clusters are found once, on the training part, and not in each new
    image, so that a cluster means the same everywhere. Probabilities are the class shares of a cluster.

    Paper: Lloyd 1982.
    """

    name: ClassVar[str] = "k-means"

    def make_clusters(self, features: int) -> KMeansClusters:
        """Return clusters of so many features, without a fit."""
        return KMeansClusters(self.clusters, features)


@register(
    "model", "gaussian-mixture", paper="Dempster, Laird, Rubin 1977", smoke={"clusters": 4}, traits=("ignores-unseen",)
)
@dataclass(frozen=True)
class GaussianMixtureClustering(PixelClustering):
    """A mixture of Gaussians over the pixels of the training part.

    The other settings are those of `PixelClustering`. The probabilities of a pixel are the mean of the clusters' class shares,
    weighted by their posterior, so they change smoothly with the image and can be attacked by gradients.

    Args:
        clusters: Number of Gaussians.
        covariance: "tied", one matrix for all Gaussians; "full", a matrix for each; "diag" or "spherical", variances for each. With
            matrices of their own, wide Gaussians take what is unlike the training part, whatever its class is there.

    Paper: Dempster, Laird, Rubin 1977.
    """

    clusters: int = 16
    covariance: Covariance = "tied"
    name: ClassVar[str] = "gaussian-mixture"

    def make_clusters(self, features: int) -> GaussianClusters:
        """Return clusters of so many features, without a fit."""
        return GaussianClusters(self.clusters, features, self.covariance)


class ClusterNet(nn.Module):
    """The model of a clustering of pixels: features, clusters, and the class shares of each cluster.

    Args:
        spec: Bands, classes and unit.
        settings: Features, clusters and the way to classes.

    Raises:
        ModelError: The specification does not fit the water index of the class rule.
    """

    fitted: Tensor
    log_shares: Tensor
    stride = 1

    def __init__(self, spec: ModelSpec, settings: PixelClustering) -> None:
        super().__init__()
        check_bands_and_classes(settings.name, spec)
        self.spec, self.name = spec, settings.name
        self.rule: ThresholdNet | None = class_rule(settings.name, settings.classes, spec)
        self.features = PixelFeatures(
            len(spec.bands), single_unit(spec.unit, settings.name), settings.space, settings.texture, settings.window
        )
        self.reach = self.features.reach
        self.clusters = settings.make_clusters(self.features.count)
        self.register_buffer("log_shares", torch.zeros(settings.clusters, len(spec.classes)))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W).

        Raises:
            ModelError: The model was never fitted, or the image has other bands.
        """
        check_fitted(self.name, self.fitted)
        check_image_bands(self.name, image, len(self.spec.bands))
        rows = _rows_of(self.features(image))
        count, _, height, width = image.shape
        logits: Tensor = self.clusters(rows, self.log_shares)
        return logits.view(count, height, width, -1).movedim(-1, 1).contiguous()

    def fit(self, batches: Iterable[Batch], seed: int = 0) -> None:
        """Find the clusters on the seen pixels of training chips, and the class of each.

        Args:
            batches: Training chips, read once; of many pixels an even sample is taken.
            seed: Of the sample and of the first centers.

        Raises:
            DataError: No pixel is seen, or classes are by majority and none is valid.
        """
        sample = ClusterSample.merged(self.name, self._samples(batches, seed))
        membership = self.clusters.fit(sample, seed)
        self.log_shares.copy_(cluster_log_shares(self.name, sample, membership, self.rule))
        self.fitted.fill_(True)

    @torch.no_grad()
    def _samples(self, batches: Iterable[Batch], seed: int) -> Iterator[ClusterSample]:
        for chips in batches:
            batch = to_device_of(self, chips)
            features = self.features(batch.image).movedim(1, -1)
            keys = Keys(seed, batch.chips, ("fit", self.name))
            for i in range(len(batch)):
                chip, seen = batch.select([i]), batch.seen[i]
                known = chip.valid[0][seen].double()[:, None]
                klass = torch.where(batch.valid[i], batch.label[i], 0)[seen]
                pixels = torch.nn.functional.one_hot(klass, len(self.spec.classes)) * known
                draw = keys.numpy(i).random(seen.shape)
                rows, index = (plane[seen].double().cpu().numpy() for plane in (features[i], self._index(chip)))
                yield ClusterSample(rows, np.ones(len(rows)), pixels.cpu().numpy(), index, draw[seen.cpu().numpy()])

    def _index(self, chip: Batch) -> Tensor:
        """Return the water index (H, W) of a chip, NaN where it is undefined; NaN everywhere without a rule."""
        if self.rule is None:
            return torch.full(chip.seen.shape[1:], torch.nan, device=chip.image.device)
        index, defined = self.rule.measure(chip.image)
        return torch.where(defined, index, torch.nan)[0]


def _rows_of(features: Tensor) -> Tensor:
    """Return features (B, F, H, W) as rows (B * H * W, F)."""
    return features.movedim(1, -1).flatten(0, 2)

"""Segmentation by regions: an image is divided into regions, and each region is classified as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seawall.arrays import BoolArray, DoubleArray
from seawall.decibels import from_power, to_power
from seawall.errors import UsageError
from seawall.models.blocks import check_bands_and_classes, check_fitted, check_image_bands, settings_of
from seawall.models.clusters import (
    MAJORITY,
    ClusterSample,
    KMeansClusters,
    check_class_rule,
    check_cluster_count,
    class_rule,
    cluster_log_shares,
)
from seawall.models.water_index import ThresholdNet
from seawall.rng import Keys
from seawall.types import Batch, ModelSpec, Unit, seen_pixels, single_unit

RegionMap = NDArray[np.int64]
"""(H, W): the number of each pixel's region, from 0 on in the order of their first pixels, and -1 where unseen."""


PROTOTYPES = 64
"""Clusters of the means of training regions."""


@dataclass(frozen=True)
class RegionSegmentation(ABC):
    """A way to divide an image into regions, and the settings of their classification.

    Args:
        prototypes: Number of k-means clusters of the means of training regions.
        classes: How a region gets its class: "majority" of the training pixels in the regions of the nearest prototype; "water-index",
            the side of its published threshold on which the mean of the first fitting water index over the region lies; or a rule such
            as "mndwi > 0". With an index there is nothing to fit.
    """

    prototypes: int = PROTOTYPES
    classes: str = MAJORITY
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_cluster_count(f"{self.name}.prototypes", self.prototypes)
        if check_class_rule(self.name, self.classes) is not None and self.prototypes != PROTOTYPES:
            raise UsageError(
                f"{self.name}.prototypes: expected none where a water index gives the classes, got {self.prototypes}; leave it out"
            )

    def __call__(self, spec: ModelSpec) -> RegionNet:
        """Return the model, without a fit."""
        return RegionNet(replace(spec, architecture=self.name, settings=settings_of(asdict(self))), self)

    @abstractmethod
    def partition(self, values: DoubleArray, seen: BoolArray, unit: Unit) -> RegionMap:
        """Divide the seen pixels of an image into regions.

        Args:
            values: (H, W, C) in data units; what unseen pixels hold means nothing.
            seen: (H, W).
            unit: Unit of the values.
        """


class RegionNet(nn.Module):
    """The model of a segmentation by regions. Its regions are found on the CPU, and it has no gradient to the image.

    A region may be as large as the image, so there is no bound on how far a pixel's class depends on others.

    Args:
        spec: Bands, classes and unit.
        method: Divides images into regions.

    Raises:
        ModelError: The specification does not fit the water index of the class rule.
    """

    fitted: Tensor
    log_shares: Tensor
    stride, reach = 1, None

    def __init__(self, spec: ModelSpec, method: RegionSegmentation) -> None:
        super().__init__()
        check_bands_and_classes(method.name, spec)
        self.spec, self.method, self.unit = spec, method, single_unit(spec.unit, method.name)
        self.rule: ThresholdNet | None = class_rule(method.name, method.classes, spec)
        self.clusters = KMeansClusters(method.prototypes, len(spec.bands))
        self.register_buffer("log_shares", torch.zeros(method.prototypes, len(spec.classes)))
        self.register_buffer("fitted", torch.tensor(self.rule is not None))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W), the same all over a region, and 0 where unseen.

        Raises:
            ModelError: The model was never fitted, or the image has other bands.
        """
        check_fitted(self.method.name, self.fitted)
        chips = image.detach()
        logits = torch.zeros_like(chips[:, :1]).repeat(1, len(self.spec.classes), 1, 1)
        for chip, regions, out in zip(chips, self.regions(chips), logits, strict=True):
            seen = regions >= 0
            out[:, seen] = self._region_logits(chip, regions).to(out.dtype).T[:, regions[seen]]
        return logits

    def regions(self, image: Tensor) -> Tensor:
        """Return the region (B, H, W) of each pixel, from 0 on in each image; -1 where unseen.

        Raises:
            ModelError: The image has other bands.
        """
        check_image_bands(self.method.name, image, len(self.spec.bands))
        values = image.detach().movedim(1, -1).double().cpu().numpy()
        seen = seen_pixels(image, self.unit).cpu().numpy()
        found = [self.method.partition(*chip, self.unit) for chip in zip(values, seen, strict=True)]
        maps = np.stack(found) if found else np.zeros(seen.shape, np.int64)
        return torch.from_numpy(maps).to(image.device)

    def _region_logits(self, chip: Tensor, regions: Tensor) -> Tensor:
        """Return the logits (n, K) of the regions of an image (C, H, W)."""
        if self.rule is None:
            means = region_means(chip, regions, self.unit).to(self.log_shares.dtype)
            logits: Tensor = self.clusters(means, self.log_shares)
            return logits
        index, defined = (plane[0] for plane in self.rule.measure(chip[None]))
        ids, count = regions[defined & (regions >= 0)], int(regions.max()) + 1
        values = to_power(index[defined & (regions >= 0), None].double(), self.unit)
        mean = from_power(_mean_by_region(values, ids, count), self.unit)[:, 0]
        return self.rule.scores(mean, torch.bincount(ids, minlength=count) > 0)

    def fit(self, batches: Iterable[Batch], seed: int = 0) -> None:
        """Find the prototypes of the regions of training chips, and the class shares of each.

        Args:
            batches: Training chips, read once; of many regions an even sample is taken.
            seed: Of the sample and of the first centers.

        Raises:
            UsageError: A water index gives the classes, so there is nothing to fit.
            DataError: No pixel is seen, or none is valid.
        """
        if self.rule is not None:
            raise UsageError(
                f'{self.method.name}.classes: expected "{MAJORITY}" to fit, got {self.method.classes!r}; use the model as it is'
            )
        sample = ClusterSample.merged(self.method.name, self._samples(batches, seed))
        membership = self.clusters.fit(sample, seed)
        self.log_shares.copy_(cluster_log_shares(self.method.name, sample, membership, None))
        self.fitted.fill_(True)

    def _samples(self, batches: Iterable[Batch], seed: int) -> Iterator[ClusterSample]:
        classes = len(self.spec.classes)
        for batch in batches:
            keys = Keys(seed, batch.chips, ("fit", self.method.name))
            for i, regions in enumerate(self.regions(batch.image)):
                means = region_means(batch.image[i], regions, self.unit).cpu().numpy()
                count = len(means)
                valid = batch.valid[i] & (regions >= 0)
                pairs = torch.bincount(regions[valid] * classes + batch.label[i][valid], minlength=count * classes)
                weight = torch.bincount(regions[regions >= 0], minlength=count).cpu().numpy()
                yield ClusterSample(
                    means, weight.astype(float), pairs.view(count, classes).cpu().numpy().astype(float),
                    np.full(count, np.nan), keys.numpy(i).random(count),
                )  # fmt: skip


def region_means(image: Tensor, regions: Tensor, unit: Unit) -> Tensor:
    """Return the mean (n, C) of each band over each region; that of decibels is of power.

    Args:
        image: (C, H, W).
        regions: (H, W) from 0 to n - 1; -1 where unseen.
        unit: Unit of the image.
    """
    ids, count = regions[regions >= 0], int(regions.max()) + 1
    return from_power(_mean_by_region(to_power(image[:, regions >= 0].T.double(), unit), ids, count), unit)


def _mean_by_region(values: Tensor, ids: Tensor, count: int) -> Tensor:
    """Return the mean (count, F) of the rows (n, F) of each region; 0 where a region has none."""
    total = torch.zeros(count, values.shape[1], dtype=values.dtype, device=values.device).index_add_(0, ids, values)
    return total / torch.bincount(ids, minlength=count).clamp_min(1)[:, None]


def in_order(regions: RegionMap) -> RegionMap:
    """Return the same regions, numbered from 0 on in the order of their first pixels, row by row; below 0 becomes -1.

    Example:
        >>> in_order(np.array([[7, 7, -2], [3, 7, 3]])).tolist()
        [[0, 0, -1], [1, 0, 1]]
    """
    known = regions >= 0
    _, first, inverse = np.unique(regions[known], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    made = np.full(regions.shape, -1, np.int64)
    made[known] = rank[inverse]
    return made

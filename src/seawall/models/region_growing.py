"""Region growing: from seeds, regions take in neighbors as long as these are similar enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from seawall.arrays import BoolArray, DoubleArray
from seawall.decibels import from_power, to_power
from seawall.errors import DataError, UsageError
from seawall.models.regions import RegionMap, RegionSegmentation, in_order
from seawall.registry import register
from seawall.types import Unit

Comparison = Literal["seed", "mean"]
Neighbors = Literal[4, 8]

TOLERANCE: Mapping[Unit, float] = {"reflectance": 0.03, "sigma0_db": 2.0, "gamma0_db": 2.0, "stretched": 0.05}
"""Largest difference of similar pixels, in data units."""
MINIMUM_RADIUS = 2
"""A seed has the lowest gradient within so many pixels."""
FREE, OUTSIDE = -1, -2
"""Marks of pixels that are in no region yet, and of those that never will be."""


@register(
    "model",
    "region-growing",
    paper="Zucker 1976",
    smoke={"prototypes": 4},
    traits=("no-gradient", "ignores-unseen"),
)
@dataclass(frozen=True)
class RegionGrowing(RegionSegmentation):
    """Regions that grow from seeds, and take in a neighbor as long as no band differs by more than a tolerance.

    The other settings are those of `RegionSegmentation`. All regions grow at once, in sweeps; a pixel that several can take goes to the
    most similar one. Pixels that none takes get seeds of their own, until every seen pixel is in a region.

    Args:
        tolerance: Largest difference in any band between a pixel and its region, in data units; None takes 0.03 of reflectance,
            2 dB, or 0.05 of a stretched picture.
        compare: Compare a pixel with the value of the "seed", or with the "mean" of the region so far.
        neighbors: 4 or 8 neighbors of a pixel.
        spacing: Distance of evenly spaced markers that serve as seeds, in pixels; 0 takes the minima of the gradient.
        smoothing: Standard deviation in pixels of a Gaussian filter before; 0 for none.

    Paper: Zucker 1976, section 3. Differs: sweeps over all regions instead of one region after the other, so that the order of the seeds
    means nothing.
    """

    tolerance: float | None = None
    compare: Comparison = "mean"
    neighbors: Neighbors = 8
    spacing: int = 0
    smoothing: float = 0.0
    name: ClassVar[str] = "region-growing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None and not 0 <= self.tolerance < np.inf:
            raise UsageError(
                f"{self.name}.tolerance: expected a number >= 0 in data units, got {self.tolerance}; such as 0.03 or 2"
            )
        if self.spacing < 0 or not 0 <= self.smoothing <= 50:
            raise UsageError(
                f"{self.name}.spacing, {self.name}.smoothing: expected pixels >= 0, smoothing at most 50, got {self.spacing} and {self.smoothing}; 0 is none"
            )

    def partition(self, values: DoubleArray, seen: BoolArray, unit: Unit) -> RegionMap:
        """Divide the seen pixels of an image into regions; see `grow_regions`."""
        smooth = smoothed(values, seen, self.smoothing, unit)
        markers = None if not self.spacing else evenly_spaced_markers(seen.shape, self.spacing)
        tolerance = TOLERANCE[unit] if self.tolerance is None else self.tolerance
        return grow_regions(
            smooth, seen, markers, tolerance=tolerance, compare=self.compare, neighbors=self.neighbors, unit=unit
        )


def smoothed(values: DoubleArray, seen: BoolArray, sigma: float, unit: Unit) -> DoubleArray:
    """Return an image (H, W, C) after a Gaussian filter over its seen pixels; decibels are averaged as power."""
    if not sigma:
        return values
    known = seen.astype(np.float64)[..., None]
    power = to_power(torch.from_numpy(np.where(seen[..., None], values, 0.0)), unit).numpy() * known
    weight = ndimage.gaussian_filter(known, (sigma, sigma, 0), mode="constant")
    mean = ndimage.gaussian_filter(power, (sigma, sigma, 0), mode="constant") / np.maximum(weight, 1e-12)
    return from_power(torch.from_numpy(mean), unit).numpy()


def evenly_spaced_markers(shape: tuple[int, int], spacing: int) -> NDArray[np.int64]:
    """Return markers on a square grid, as `grow_regions` takes them.

    Example:
        >>> evenly_spaced_markers((2, 5), 2).tolist()
        [[0, 0, 0, 0, 0], [0, 1, 0, 2, 0]]
    """
    markers = np.zeros(shape, np.int64)
    grid = markers[spacing // 2 :: spacing, spacing // 2 :: spacing]
    grid[...] = np.arange(1, grid.size + 1).reshape(grid.shape)
    return markers


def grow_regions(
    values: DoubleArray, seen: BoolArray, markers: NDArray[np.int64] | None = None, *,
    tolerance: float, compare: Comparison = "mean", neighbors: Neighbors = 8, unit: Unit = "reflectance",
) -> RegionMap:  # fmt: skip
    """Divide the seen pixels of an image into regions.

    In each sweep every pixel beside a region is compared with the regions beside it. It joins the most similar one if no band
    differs by more than the tolerance; of equally similar ones that whose seed comes first, row by row. With "seed" a
    region is compared by the value of its seed; with "mean" by its mean after the sweep before, so a pixel that was
    refused is compared again. When no region takes a pixel any more, the minima of the gradient among the free pixels become seeds.

    Args:
        values: (H, W, C) in data units.
        seen: (H, W); other pixels are in no region and change none.
        markers: (H, W) as scikit-image has them: 0 where there is none, else the number of a marker. Pixels of one number are one seed, of their mean
            value. None takes the minima of the gradient.
        tolerance: Largest difference in any band, in data units.
        compare: "seed" or "mean".
        neighbors: 4 or 8.
        unit: Unit of the values; means of decibels are of power.

    Raises:
        DataError: The markers have another shape than the image.

    Example:
        >>> row = np.array([[[0.1], [0.11], [0.3], [0.31]]])
        >>> grow_regions(row, np.ones((1, 4), bool), tolerance=0.05).tolist()
        [[0, 0, 1, 1]]
    """
    growth = _Growth(values, seen, compare, neighbors, unit)
    if markers is not None:
        if markers.shape != seen.shape:
            raise DataError(
                f"markers: expected an array of the image's shape {seen.shape}, got {markers.shape}; 0 is no marker"
            )
        growth.add_seeds(np.pad(in_order(np.where(seen & (markers > 0), markers, -1)), 1, constant_values=-1).ravel())
        growth.grow(tolerance)
    while growth.free.any():
        growth.add_seeds(growth.minima())
        growth.grow(tolerance)
    return in_order(growth.labels.reshape(growth.shape)[1:-1, 1:-1])


class _Growth:
    """Regions while they grow, on an image with a border of one pixel around it, as flat arrays.

    Attributes:
        labels: Region of each pixel, from 0 on; `FREE` or `OUTSIDE`.
        shape: Rows and columns with the border.
    """

    def __init__(
        self, values: DoubleArray, seen: BoolArray, compare: Comparison, neighbors: Neighbors, unit: Unit
    ) -> None:
        self.compare, self.unit = compare, unit
        self.shape = (seen.shape[0] + 2, seen.shape[1] + 2)
        self.labels = np.where(np.pad(seen, 1), FREE, OUTSIDE).ravel()
        self._values = np.pad(values, ((1, 1), (1, 1), (0, 0))).reshape(len(self.labels), -1)
        self._power = to_power(torch.from_numpy(self._values), unit).numpy()
        # what a filter rounds differently is no gradient: a constant image is one plateau
        self._gradient = np.pad(np.round(largest_difference(values, seen), 9), 1)
        width = self.shape[1]
        steps = [(-1, 0), (0, -1), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)][:neighbors]
        self._steps = np.array([down * width + right for down, right in steps])
        bands = self._values.shape[1]
        self._sum, self._count, self._seed = np.zeros((0, bands)), np.zeros(0), np.zeros((0, bands))
        self._new = np.zeros(0, np.int64)

    @property
    def free(self) -> BoolArray:
        """Pixels without a region."""
        return np.asarray(self.labels == FREE)

    def minima(self) -> NDArray[np.int64]:
        """Return a seed, numbered from 0 on, at the first pixel of each minimum of the gradient among the free pixels; else -1."""
        free = self.free.reshape(self.shape)
        height = np.where(free, self._gradient, np.inf)
        lowest = ndimage.minimum_filter(height, 2 * MINIMUM_RADIUS + 1, mode="constant", cval=np.inf)
        plateaus, count = ndimage.label(free & (height == lowest), np.ones((3, 3)))
        _, first = np.unique(plateaus, return_index=True)
        seeds = np.full(len(self.labels), -1)
        seeds[first[-count:]] = np.arange(count)
        return seeds

    def add_seeds(self, seeds: NDArray[np.int64]) -> None:
        """Begin a region at each number of a flat array that is not below 0."""
        self._new = np.flatnonzero(seeds >= 0)
        count = int(seeds.max(initial=-1)) + 1
        before = len(self._count)
        self.labels[self._new] = before + seeds[self._new]
        self._sum = np.concatenate([self._sum, np.zeros((count, self._sum.shape[1]))])
        self._count = np.concatenate([self._count, np.zeros(count)])
        self._add_pixels(self._new)
        self._seed = np.concatenate([self._seed, self._means()[before:]])

    def grow(self, tolerance: float) -> None:
        """Sweep until no region takes a pixel any more."""
        refused = np.zeros(0, np.int64)
        while len(self._new):
            near = (self._new[:, None] + self._steps).ravel()
            border = np.unique(np.concatenate([refused, near[self.labels[near] == FREE]]))
            found = self.labels[border[:, None] + self._steps]
            regions = self._seed if self.compare == "seed" else self._means()
            apart = np.abs(self._values[border][:, None] - regions[np.maximum(found, 0)]).max(2)
            apart[found < 0] = np.inf
            least = apart.min(1)
            region = np.where(apart == least[:, None], found, len(regions)).min(1)
            similar = least <= tolerance
            self._new = border[similar]
            self.labels[self._new] = region[similar]
            if self.compare == "mean":
                self._add_pixels(self._new)
                refused = border[~similar]

    def _add_pixels(self, pixels: NDArray[np.int64]) -> None:
        np.add.at(self._sum, self.labels[pixels], self._power[pixels])
        np.add.at(self._count, self.labels[pixels], 1)

    def _means(self) -> DoubleArray:
        return from_power(torch.from_numpy(self._sum / self._count[:, None]), self.unit).numpy()


def largest_difference(values: DoubleArray, seen: BoolArray) -> DoubleArray:
    """Return the gradient (H, W): the largest difference in any band between a pixel and its four neighbors, seen ones alone."""
    gradient = np.zeros(seen.shape)
    for axis in (0, 1):
        step = np.abs(np.diff(values, axis=axis)).max(2, initial=0.0)
        first, second = (np.delete(seen, end, axis) for end in (-1, 0))
        step = np.where(first & second, step, 0.0)
        before, after = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        np.maximum(gradient[before], step, out=gradient[before])
        np.maximum(gradient[after], step, out=gradient[after])
    return gradient

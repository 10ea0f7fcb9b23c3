"""Split and merge: blocks of a quadtree are split until they are uniform, then similar neighbors are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from seawall.arrays import BoolArray, DoubleArray
from seawall.decibels import from_power, to_power
from seawall.errors import UsageError
from seawall.models.regions import RegionMap, RegionSegmentation, in_order
from seawall.registry import register
from seawall.types import Unit

SPREAD: Mapping[Unit, float] = {"reflectance": 0.02, "sigma0_db": 1.5, "gamma0_db": 1.5, "stretched": 0.04}
"""Largest standard deviation of a uniform region, in data units."""


@register(
    "model",
    "split-and-merge",
    paper="Horowitz, Pavlidis 1976",
    smoke={"prototypes": 4, "largest": 8},
    traits=("no-gradient", "ignores-unseen"),
)
@dataclass(frozen=True)
class SplitAndMerge(RegionSegmentation):
    """Blocks are split while a band varies too much, then the most similar neighbors are merged as long as they may be.

    The other settings are those of `RegionSegmentation`. The quadtree is anchored at the upper left pixel, and its blocks have sides that are
    powers of two; what lies outside of the image counts as unseen.

    Args:
        spread: Largest standard deviation of a band in a region, in data units; None takes 0.02 of reflectance, 1.5 dB, or 0.04 of a
            stretched picture.
        difference: Largest difference between the means of two regions that are merged, in any band; None takes `spread`.
        largest: Side of the largest blocks, a power of two; objects much smaller than a block do not show in its standard deviation.

    Paper: Horowitz, Pavlidis 1976. Differs: two regions are merged by the difference of their means, and only where their union
    keeps the standard deviation too.
    """

    spread: float | None = None
    difference: float | None = None
    largest: int = 16
    name: ClassVar[str] = "split-and-merge"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("spread", "difference"):
            if (value := getattr(self, key)) is not None and not 0 <= value < np.inf:
                raise UsageError(
                    f"{self.name}.{key}: expected a number >= 0 in data units, got {value}; such as 0.02 or 1.5"
                )
        if not 1 <= self.largest <= 4096 or self.largest & (self.largest - 1):
            raise UsageError(
                f"{self.name}.largest: expected a power of two in 1..4096, got {self.largest}; 16 is common"
            )

    def partition(self, values: DoubleArray, seen: BoolArray, unit: Unit) -> RegionMap:
        """Divide the seen pixels of an image into regions."""
        spread = SPREAD[unit] if self.spread is None else self.spread
        blocks = quadtree_blocks(values, seen, spread=spread, largest=self.largest)
        return merge_regions(
            values, blocks, spread=spread, difference=spread if self.difference is None else self.difference, unit=unit
        )


def quadtree_blocks(values: DoubleArray, seen: BoolArray, *, spread: float, largest: int) -> RegionMap:
    """Return the leaves of the quadtree: the largest blocks in which no band has a higher standard deviation.

    A block that unseen pixels divide is one leaf all the same.

    Args:
        values: (H, W, C).
        seen: (H, W); other pixels count in no block.
        spread: Largest standard deviation over the seen pixels of a block.
        largest: Side of the largest blocks, a power of two.

    Example:
        >>> image = np.array([[0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 5.0, 9.0]])[..., None]
        >>> quadtree_blocks(image, np.ones((2, 4), bool), spread=1.0, largest=4).tolist()
        [[0, 0, 1, 2], [0, 0, 3, 4]]
    """
    height, width = seen.shape
    tall, wide = (-(-side // largest) * largest for side in seen.shape)
    count = np.zeros((tall, wide, 1))
    count[:height, :width, 0] = seen
    total = np.zeros((tall, wide, values.shape[2]))
    total[:height, :width] = np.where(seen[..., None], values, 0.0)
    levels = [(count, total, total**2)]
    while len(levels) <= np.log2(largest):
        levels.append(tuple(_sum_of_four(plane) for plane in levels[-1]))  # type: ignore[arg-type]
    leaves = np.full((tall, wide), -1)
    undecided = np.ones(levels[-1][0].shape[:2], bool)
    for level, (n, s, q) in reversed(list(enumerate(levels))):
        uniform = (_deviation(n, s, q) <= spread) | (level == 0)
        leaf = undecided & uniform & (n[..., 0] > 0)
        first = leaves.max() + 1
        number = np.where(leaf, first + np.cumsum(leaf).reshape(leaf.shape) - 1, -1)
        leaves = np.maximum(leaves, _enlarged(number, 2**level))
        undecided = _enlarged(undecided & ~leaf, 2) if level else undecided
    return in_order(np.where(seen, leaves[:height, :width], -1))


def _sum_of_four(plane: DoubleArray) -> DoubleArray:
    rows, cols, depth = plane.shape
    return np.asarray(plane.reshape(rows // 2, 2, cols // 2, 2, depth).sum((1, 3)))


def _enlarged(plane: NDArray[np.generic], factor: int) -> NDArray[np.generic]:
    return plane.repeat(factor, 0).repeat(factor, 1)


def _deviation(count: DoubleArray, total: DoubleArray, squares: DoubleArray) -> DoubleArray:
    """Return the largest standard deviation of any band, from sums along the last axis; 0 without a pixel."""
    n = np.maximum(count, 1)
    variance = squares / n - (total / n) ** 2
    return np.asarray(np.sqrt(np.maximum(variance, 0.0).max(-1)))


class RegionSums(NamedTuple):
    """Number of pixels (n, 1) of regions, and the sums (n, C) of their values, of their squares and of their power."""

    pixels: DoubleArray
    total: DoubleArray
    squares: DoubleArray
    power: DoubleArray

    @staticmethod
    def of(values: DoubleArray, regions: RegionMap, unit: Unit) -> RegionSums:
        """Return the sums of the regions of an image (H, W, C)."""
        ids, inside = regions[regions >= 0], values[regions >= 0]
        power = to_power(torch.from_numpy(inside), unit).numpy()
        parts = (np.ones((len(ids), 1)), inside, inside**2, power)
        empty = int(regions.max(initial=-1)) + 1
        return RegionSums(*(_add_rows(np.zeros((empty, part.shape[1])), ids, part) for part in parts))

    def at(self, regions: NDArray[np.int64]) -> RegionSums:
        """Return the sums of the chosen regions."""
        return RegionSums(*(part[regions] for part in self))

    def plus(self, other: RegionSums) -> RegionSums:
        """Return the sums of the unions."""
        return RegionSums(*(mine + own for mine, own in zip(self, other, strict=True)))


def _add_rows(into: DoubleArray, at: NDArray[np.int64], rows: DoubleArray) -> DoubleArray:
    np.add.at(into, at, rows)
    return into


@dataclass(frozen=True)
class MergeRule:
    """Which pairs of regions may be merged.

    Args:
        spread: Largest standard deviation of a band in the union.
        difference: Largest difference of the means of a band.
        unit: Unit of the values; means of decibels are of power.
    """

    spread: float
    difference: float
    unit: Unit

    def __call__(self, first: RegionSums, second: RegionSums) -> tuple[DoubleArray, BoolArray]:
        """Return the largest difference of the means (n,) of each pair, and whether it may be merged."""
        one, other = (
            from_power(torch.from_numpy(sums.power / sums.pixels), self.unit).numpy() for sums in (first, second)
        )
        apart = np.abs(one - other).max(1)
        union = first.plus(second)
        uniform = _deviation(union.pixels, union.total, union.squares) <= self.spread
        return apart, (apart <= self.difference) & uniform


def merge_regions(
    values: DoubleArray, regions: RegionMap, *, spread: float, difference: float, unit: Unit = "reflectance"
) -> RegionMap:
    """Merge neighboring regions until no pair is left that may be merged, the most similar first.

    In each round every region names its most similar neighbor. Of two that name each other the larger one is a center, and takes in those
    that named it, one after the other, as long as each may still be merged with what the center has become.

    Args:
        values: (H, W, C).
        regions: (H, W) regions to begin with.
        spread: Largest standard deviation of a band in a merged region.
        difference: Largest difference of the means of two regions that are merged.
        unit: Unit of the values.
    """
    rule, sums, pairs = (
        MergeRule(spread, difference, unit),
        RegionSums.of(values, regions, unit),
        adjacent_regions(regions),
    )
    merged = np.arange(len(sums.pixels))
    while True:
        apart, may = rule(sums.at(pairs[:, 0]), sums.at(pairs[:, 1]))
        if not may.any():
            return in_order(np.where(regions >= 0, merged[np.maximum(regions, 0)], -1) if len(merged) else regions)
        joins, center = _proposals(pairs[may], apart[may], sums)
        taken = _accepted(joins, center, sums, rule)
        joins, center = joins[taken], center[taken]
        for part in sums:
            _add_rows(part, center, part[joins])
        into = np.arange(len(merged))
        into[joins] = center
        merged, pairs = into[merged], into[pairs]
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]


def _proposals(
    pairs: NDArray[np.int64], apart: DoubleArray, sums: RegionSums
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the regions that join a center in this round, and their centers, sorted by center and then by difference."""
    # a strict order, so that the best choices have no cycle but pairs
    order = np.lexsort((pairs.max(1), pairs.min(1), apart))
    first, second = pairs[order].T
    rank, none = np.arange(len(pairs)), len(pairs)
    best = np.full(len(sums.pixels), none)
    np.minimum.at(best, first, rank)
    np.minimum.at(best, second, rank)
    mutual = (best[first] == rank) & (best[second] == rank)
    one, other = first[mutual], second[mutual]
    is_center = np.zeros(len(best), bool)
    is_center[np.where(sums.pixels[one, 0] >= sums.pixels[other, 0], one, other)] = True
    joins = np.flatnonzero((best < none) & ~is_center)
    named = first[best[joins]] + second[best[joins]] - joins
    joins, named = joins[is_center[named]], named[is_center[named]]
    order = np.lexsort((best[joins], named))
    return joins[order], named[order]


def _accepted(joins: NDArray[np.int64], center: NDArray[np.int64], sums: RegionSums, rule: MergeRule) -> BoolArray:
    """Return which regions join their center: those before the first that may not be merged with the center as it is by then."""
    begins = np.append(True, center[1:] != center[:-1])
    start = np.flatnonzero(begins)[np.cumsum(begins) - 1]

    def before(part: DoubleArray) -> DoubleArray:
        added = np.cumsum(part[joins], 0) - part[joins]
        return np.asarray(part[center] + added - added[start])

    _, may = rule(RegionSums(*map(before, sums)), sums.at(joins))
    refused = np.cumsum(~may)
    return np.asarray(refused == (refused - ~may)[start])


def adjacent_regions(regions: RegionMap) -> NDArray[np.int64]:
    """Return the pairs (n, 2) of regions that share an edge between two pixels, each once.

    Example:
        >>> adjacent_regions(np.array([[0, 1], [0, -1], [2, 2]])).tolist()
        [[0, 1], [0, 2]]
    """
    sides = [(regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])]
    pairs = np.concatenate([np.stack([one.ravel(), other.ravel()], 1) for one, other in sides])
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs >= 0).all(1)]
    return np.unique(np.sort(pairs, 1), axis=0)

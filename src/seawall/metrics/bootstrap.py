"""Percentile bootstrap over groups: chips of one event are not independent, so whole events are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import DoubleArray
from seawall.errors import UsageError, did_you_mean
from seawall.metrics.ratios import ConfusionCounts, compute_ratio, divide_or_nan

AVERAGES = ("pooled", "per_chip", "per_group")


@dataclass(frozen=True)
class Resamples:
    """Groups of chips and how often each is drawn in every resample.

    The draws depend on the number of groups and the seed alone, so two methods over the same groups
    are resampled alike and their intervals are paired.

    Args:
        member: (G, N) 0/1, which chip is in which group.
        weights: (R, G) how often a group is drawn; empty where fewer than two groups leave nothing to draw.
    """

    member: DoubleArray
    weights: DoubleArray

    @staticmethod
    def over(groups: Sequence[str], samples: int = 1000, seed: int = 0) -> Resamples:
        """Draw with replacement as many groups as there are, `samples` times."""
        names, where = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        member = (where[None, :] == np.arange(len(names))[:, None]).astype(np.float64)
        count = len(names)
        if count < 2 or samples < 1:
            return Resamples(member, np.zeros((0, count)))
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
        return Resamples(member, draws.astype(np.float64))

    @property
    def once(self) -> DoubleArray:
        """Every group drawn once, (1, G): the point estimate."""
        return np.ones((1, self.member.shape[0]))


@dataclass(frozen=True)
class IntervalEstimate:
    """An estimate per class with its interval; NaN where undefined.

    Args:
        value: (K,).
        low: (K,).
        high: (K,).
        n: (K,) sample size: pixels (pooled), chips (per_chip) or groups (per_group).
    """

    value: DoubleArray
    low: DoubleArray
    high: DoubleArray
    n: NDArray[np.int64]

    def only(self, k: int) -> IntervalEstimate:
        """Return the estimate of one class."""
        at = slice(k, k + 1)
        return IntervalEstimate(self.value[at], self.low[at], self.high[at], self.n[at])


def average_ratio(
    counts: ConfusionCounts, name: str, how: str, member: DoubleArray, weights: DoubleArray
) -> DoubleArray:
    """Average a ratio over weighted groups.

    Args:
        counts: Counts per chip, (N, K).
        name: A ratio of `seawall.metrics.ratios`.
        how: "pooled": ratio of summed counts; "per_chip": mean over the chips where it is defined;
            "per_group": mean over groups of the ratio pooled within the group.
        member: (G, N) membership.
        weights: (R, G).

    Returns:
        (R, K), or (R, 1) for ratios without a class.
    """
    if how == "pooled":
        return compute_ratio(name, counts.pool(member).pool(weights))
    if how == "per_chip":
        return weighted_mean(compute_ratio(name, counts), member, weights)
    if how == "per_group":
        return weighted_mean(compute_ratio(name, counts.pool(member)), np.eye(len(member)), weights)
    raise UsageError(f"average: unknown averaging {how!r}; {did_you_mean(how, AVERAGES)}")


def weighted_mean(values: DoubleArray, member: DoubleArray, weights: DoubleArray) -> DoubleArray:
    """Mean of (N, K) values over weighted groups, counting only what is defined."""
    there = np.isfinite(values)
    sums, counts = member @ np.where(there, values, 0.0), member @ there.astype(np.float64)
    return divide_or_nan(weights @ sums, weights @ counts)


def estimate_ratio(
    counts: ConfusionCounts, name: str, how: str, draws: Resamples, level: float = 0.95
) -> IntervalEstimate:
    """Return a ratio and its percentile interval over resampled groups."""
    value = average_ratio(counts, name, how, draws.member, draws.once)[0]
    low, high = percentile_interval(average_ratio(counts, name, how, draws.member, draws.weights), level)
    return IntervalEstimate(value, low, high, _sample_size(counts, name, how, draws))


def estimate_mean(values: DoubleArray, draws: Resamples, level: float = 0.95) -> IntervalEstimate:
    """Return the mean over chips of (N, K) values and its interval."""
    value = weighted_mean(values, draws.member, draws.once)[0]
    low, high = percentile_interval(weighted_mean(values, draws.member, draws.weights), level)
    return IntervalEstimate(value, low, high, np.isfinite(values).sum(0))


def estimate_quotient(top: DoubleArray, bottom: DoubleArray, n: int, draws: Resamples) -> IntervalEstimate:
    """Return the sum of `top` over the sum of `bottom`, (N,) each, and its interval; `n` is the sample size."""
    pair = draws.member @ np.stack([top, bottom], 1)
    value, drawn = (divide_or_nan((w @ pair)[:, 0], (w @ pair)[:, 1]) for w in (draws.once, draws.weights))
    low, high = percentile_interval(drawn[:, None])
    return IntervalEstimate(value, low, high, np.array([n]))


def percentile_interval(resampled: DoubleArray, level: float = 0.95) -> tuple[DoubleArray, DoubleArray]:
    """Return the ends of the percentile interval over (R, K) resamples, leaving out undefined ones."""
    shape = resampled.shape[1:]
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    tail = 50 * (1 - level)
    for k in range(shape[0]):
        defined = resampled[np.isfinite(resampled[:, k]), k]
        if len(defined):
            low[k], high[k] = np.percentile(defined, [tail, 100 - tail])
    return low, high


def _sample_size(counts: ConfusionCounts, name: str, how: str, draws: Resamples) -> NDArray[np.int64]:
    if how == "pooled":
        width = compute_ratio(name, counts).shape[-1]
        if np.isfinite(counts.pixels).all():
            return np.full(width, int(counts.pixels.sum()), dtype=np.int64)
        true: NDArray[np.int64] = (counts.tp + counts.fn).sum(0).astype(np.int64)
        return true  # pixels are not known: those of the class are
    unit = counts if how == "per_chip" else counts.pool(draws.member)
    defined: NDArray[np.int64] = np.isfinite(compute_ratio(name, unit)).sum(0)
    return defined

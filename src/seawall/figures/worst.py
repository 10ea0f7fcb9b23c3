"""The worst that a suite of attacks does: per image, and for figures that pool images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.figures.ratios import Array, mean_defined, ratio

Choice = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """What each attack did to each image.

    Args:
        overlap: (A, N, K) pixels where label and prediction agree on a class.
        union: (A, N, K) pixels of the class in label or prediction.
        there: (A, N) bool, which images an attack was run on; every image needs at least one.
    """

    overlap: Array
    union: Array
    there: NDArray[np.bool_]

    def pooled(self, chosen: Choice) -> float:
        """Return the mIoU over images pooled, for one attack per image; NaN if no class is there."""
        at = np.arange(len(chosen))
        return float(_miou(self.overlap[chosen, at].sum(0), self.union[chosen, at].sum(0)))


def worst_pooled(c: Candidates, *, seed: int = 0, restarts: int = 4, rounds: int = 50) -> tuple[float, Choice]:
    """Choose one attack per image so that the pooled mIoU is low: greedy, from several starts.

    Every candidate of an image is compared with the state at hand and the best is taken, until a whole round over
    the images changes nothing. A class that is nowhere takes no part; no other class loses its place by that.

    Args:
        c: The candidates.
        seed: Seed of the orders in which images are visited and of the random starts.
        restarts: Random starts beside each attack alone, each class's exact minimum and each image's own minimum.
        rounds: Most rounds per start.

    Returns:
        The pooled mIoU and the index of the attack per image.
    """
    rng = np.random.default_rng(seed)
    attacks, images, _ = c.overlap.shape
    first = c.there.argmax(0)
    starts = [np.where(c.there[a], a, first) for a in range(attacks)]
    starts += [worst_ratio(c.overlap[..., k], c.union[..., k], c.there)[1] for k in range(c.overlap.shape[2])]
    starts.append(_lowest(np.nan_to_num(mean_defined(ratio(c.overlap, c.union)), nan=2.0), c.there))
    free = rng.random((restarts, attacks, images))
    starts += [_lowest(draw, c.there) for draw in free]
    ended = [_descend(c, start, rng, rounds) for start in starts]
    return min(ended, key=lambda found: np.nan_to_num(found[0], nan=2.0))


def worst_ratio(top: Array, bottom: Array, there: NDArray[np.bool_]) -> tuple[float, Choice]:
    """Choose one attack per image so that sum(top) / sum(bottom) is smallest: exact, by Dinkelbach's method.

    Args:
        top: (A, N), such as the overlap of one class or the right pixels.
        bottom: (A, N), such as its union or the valid pixels.
        there: (A, N) bool.

    Returns:
        The ratio (NaN where every choice has a zero denominator) and the attack per image.

    Example:
        >>> top, bottom = np.array([[4.0, 4.0], [1.0, 3.0]]), np.array([[5.0, 5.0], [2.0, 6.0]])
        >>> worst_ratio(top, bottom, np.ones((2, 2), bool))
        (0.5, array([1, 1]))
    """
    at = np.arange(top.shape[1])
    share, chosen = np.inf, there.argmax(0)
    for _ in range(100):
        goal = bottom * -1.0 if share == np.inf else top - share * bottom
        new = _lowest(goal, there)
        total = bottom[new, at].sum()
        if total <= 0:
            return (float("nan") if share == np.inf else float(share)), chosen
        value = top[new, at].sum() / total
        if value >= share:
            break
        share, chosen = value, new
    return float(share), chosen


def worst_each(values: Array, there: NDArray[np.bool_]) -> tuple[Array, Choice]:
    """Return each image's lowest value over attacks and who reached it; NaN where none is defined.

    Args:
        values: (A, N); of equal ones the first attack wins.
        there: (A, N) bool.
    """
    defined = np.where(there & np.isfinite(values), values, np.inf)
    chosen = defined.argmin(0)
    lowest = defined[chosen, np.arange(values.shape[1])]
    return np.where(np.isfinite(lowest), lowest, np.nan), chosen


def _descend(c: Candidates, start: Choice, rng: np.random.Generator, rounds: int) -> tuple[float, Choice]:
    chosen, at = start.copy(), np.arange(len(start))
    overlap, union = c.overlap[chosen, at].sum(0), c.union[chosen, at].sum(0)
    now = _miou(overlap, union)
    for _ in range(rounds):
        before = now
        for i in rng.permutation(len(chosen)):
            held = chosen[i]
            tops = overlap - c.overlap[held, i] + c.overlap[:, i]
            bottoms = union - c.union[held, i] + c.union[:, i]
            each = np.where(c.there[:, i], np.nan_to_num(_miou(tops, bottoms), nan=2.0), np.inf)
            best = int(each.argmin())
            if each[best] < np.nan_to_num(now, nan=2.0):
                chosen[i], overlap, union, now = best, tops[best], bottoms[best], each[best]
        if not now < before:
            break
    return float(now), chosen


def _lowest(values: Array, there: NDArray[np.bool_]) -> Choice:
    chosen: Choice = np.where(there, values, np.inf).argmin(0)
    return chosen


def _miou(overlap: Array, union: Array) -> Array:
    return mean_defined(ratio(overlap, union))

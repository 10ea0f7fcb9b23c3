"""The worst case over attacks: per image, and for ratios that pool images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import DoubleArray
from seawall.class_names import main_class
from seawall.metrics.aggregate import ChipTable, chip_tables, interval_records
from seawall.metrics.bootstrap import IntervalEstimate, Resamples, estimate_mean, estimate_quotient, estimate_ratio
from seawall.metrics.ratios import ConfusionCounts, divide_or_nan, mean_defined
from seawall.records import Record

ChosenAttacks = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """What each attack did to each image.

    Args:
        overlap: (A, N, K) pixels where label and prediction agree on a class.
        union: (A, N, K) pixels of the class in label or prediction.
        there: (A, N) bool, which images an attack was run on; every image needs at least one.
    """

    overlap: DoubleArray
    union: DoubleArray
    there: NDArray[np.bool_]

    def pooled(self, chosen: ChosenAttacks) -> float:
        """Return the mIoU over images pooled, for one attack per image; NaN if no class is there."""
        at = np.arange(len(chosen))
        return float(_miou(self.overlap[chosen, at].sum(0), self.union[chosen, at].sum(0)))


def worst_pooled(c: Candidates, *, seed: int = 0, restarts: int = 4, rounds: int = 50) -> tuple[float, ChosenAttacks]:
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
    starts.append(_lowest(np.nan_to_num(mean_defined(divide_or_nan(c.overlap, c.union)), nan=2.0), c.there))
    random = rng.random((restarts, attacks, images))
    starts += [_lowest(draw, c.there) for draw in random]
    ended = [_greedy_descent(c, start, rng, rounds) for start in starts]
    return min(ended, key=lambda found: np.nan_to_num(found[0], nan=2.0))


def worst_ratio(top: DoubleArray, bottom: DoubleArray, there: NDArray[np.bool_]) -> tuple[float, ChosenAttacks]:
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


def worst_each(values: DoubleArray, there: NDArray[np.bool_]) -> tuple[DoubleArray, ChosenAttacks]:
    """Return each image's lowest value over attacks and who reached it; NaN where none is defined.

    Args:
        values: (A, N); of equal ones the first attack wins.
        there: (A, N) bool.
    """
    defined = np.where(there & np.isfinite(values), values, np.inf)
    chosen = defined.argmin(0)
    lowest = defined[chosen, np.arange(values.shape[1])]
    return np.where(np.isfinite(lowest), lowest, np.nan), chosen


def _greedy_descent(
    c: Candidates, start: ChosenAttacks, rng: np.random.Generator, rounds: int
) -> tuple[float, ChosenAttacks]:
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


def _lowest(values: DoubleArray, there: NDArray[np.bool_]) -> ChosenAttacks:
    chosen: ChosenAttacks = np.where(there, values, np.inf).argmin(0)
    return chosen


def _miou(overlap: DoubleArray, union: DoubleArray) -> DoubleArray:
    return mean_defined(divide_or_nan(overlap, union))


WORST = "worst case"


def worst_case(
    rows: Iterable[Record],
    methods: Collection[str] | None = None,
    *,
    klass: str = "",
    samples: int = 1000,
    seed: int = 0,
) -> list[Record]:
    """Return the metrics under an adversary who runs every attack and keeps the best per chip; corruptions take no part.

    One set of rows per recipe, model and threat, under the method "worst case". The clean prediction is always a
    candidate: an adversary may do nothing. Each metric has its own choice of attacks, because the attack that is
    worst for one metric is not worst for another: accuracy, mIoU and per-class IoU per chip take each chip's
    minimum; pooled accuracy and each class's pooled IoU are minimized exactly, the pooled mIoU greedily. Intervals
    resample groups with the choice held. `won.<attack>` records the chips, and their share, on which an attack
    leaves the lowest IoU of `klass`; "none" where no attack lowers it.

    Args:
        rows: Rows with a chip.
        methods: Attacks to choose from; all that share a threat where None.
        klass: Class whose IoU decides which attack has won; "" for the mIoU, and with two classes for water, or the
            second where none is called so.
        samples: Resamples of the bootstrap.
        seed: Seed of the bootstrap and of the greedy search.
    """
    every = [t for t in chip_tables(rows) if t.places and t.method != WORST and t.severity is None]
    clean = {(s.recipe, s.model): s for s in every if s.method == "clean"}
    suites: dict[tuple[str, str, str], list[ChipTable]] = {}
    for table in every:
        if table.method != "clean" and (methods is None or table.method in methods):
            suites.setdefault((table.recipe, table.model, table.threat), []).append(table)
    found: list[Record] = []
    for (recipe, model, _), attacked in suites.items():
        base = clean.get((recipe, model))
        stacked = _StackedTables([*([base] if base else []), *sorted(attacked, key=lambda s: s.method)], klass)
        found += [replace(row, flags=stacked.flags) for row in stacked.rows(samples, seed)]
    return found


class _StackedTables:
    """The tables of all attacks under one threat, stacked as (A, N, K)."""

    def __init__(self, members: Sequence[ChipTable], klass: str = "") -> None:
        self.members, self.klass = members, klass
        self.places = sorted({place for s in members for place in s.places})
        self.classes = list(dict.fromkeys(k for s in members for k in s.classes))
        shape = (len(members), len(self.places), len(self.classes))
        self.tp, self.fp, self.fn = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.pixels, self.there = np.zeros(shape[:2]), np.zeros(shape[:2], bool)
        for a, table in enumerate(members):
            at = [self.places.index(place) for place in table.places]
            columns = [self.classes.index(k) for k in table.classes]
            for stacked, own in ((self.tp, table.counts.tp), (self.fp, table.counts.fp), (self.fn, table.counts.fn)):
                stacked[a][np.ix_(at, columns)] = own
            self.pixels[a, at], self.there[a, at] = np.nan_to_num(table.counts.pixels), True
        self.union = self.tp + self.fp + self.fn

    def rows(self, samples: int, seed: int) -> Iterator[Record]:
        draws = Resamples.over([group for group, _ in self.places], samples, seed)
        last = self.members[-1]
        table = replace(last, method=WORST)  # with the rows of a member, which hold the threat as values
        each = divide_or_nan(self.tp, self.union)
        right = self.tp.sum(-1)
        for metric, values in (
            ("accuracy.per_chip", divide_or_nan(right, self.pixels)),
            ("miou.per_chip", mean_defined(each)),
        ):
            e = estimate_mean(worst_each(values, self.there)[0][:, None], draws)
            yield from interval_records(table, metric, e, ("",))
        for k, klass in enumerate(self.classes):
            e = estimate_mean(worst_each(each[..., k], self.there)[0][:, None], draws)
            yield from interval_records(table, "iou.per_chip", e, (klass,))
            chosen = worst_ratio(self.tp[..., k], self.union[..., k], self.there)[1]
            e = estimate_ratio(self._chosen(chosen), "iou", "pooled", draws)
            yield from interval_records(table, "iou.pooled", e.only(k), (klass,))
        yield from interval_records(table, "accuracy.pooled", self._share(right, draws), ("",))
        chosen = worst_pooled(Candidates(self.tp, self.union, self.there), seed=seed)[1]
        yield from interval_records(
            table, "miou.pooled", estimate_ratio(self._chosen(chosen), "miou", "pooled", draws), ("",)
        )
        yield from self._winners(table, each)

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of all members, and what is missing."""
        missing = int((~self.there).sum())
        partial = [f"partial suite: {missing} of {self.there.size} missing"] if missing else []
        return tuple(dict.fromkeys([*(flag for s in self.members for flag in s.flags), *partial]))

    def _chosen(self, chosen: ChosenAttacks) -> ConfusionCounts:
        at = np.arange(len(self.places))
        return ConfusionCounts(self.tp[chosen, at], self.fp[chosen, at], self.fn[chosen, at], self.pixels[chosen, at])

    def _share(self, right: DoubleArray, draws: Resamples) -> IntervalEstimate:
        chosen = worst_ratio(right, self.pixels, self.there)[1]
        at = np.arange(len(self.places))
        top, bottom = right[chosen, at], self.pixels[chosen, at]
        return estimate_quotient(top, bottom, int(bottom.sum()), draws)

    def _winners(self, table: ChipTable, each: DoubleArray) -> Iterator[Record]:
        judge = self.klass or (main_class(self.classes) if self.classes else "")
        single = self.klass in self.classes or len(self.classes) == 2
        values = each[..., self.classes.index(judge)] if single else mean_defined(each)
        lowest, chosen = worst_each(values, self.there)
        defined: NDArray[np.bool_] = np.isfinite(lowest)
        names = ["none" if s.method == "clean" else s.method for s in self.members]
        for (group, chip), winner, there in zip(self.places, chosen, defined, strict=True):
            if there:
                yield replace(table.record(f"won.{names[winner]}", 1.0, 1, group=group), chip=chip)
        for a, name in enumerate(names):
            share = float(divide_or_nan((defined & (chosen == a)).sum(), defined.sum()))
            yield table.record(f"won.{name}", share, int(defined.sum()))

"""The worst case over the rows of several attacks, as rows of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from seawall.figures.intervals import Estimate, Resamples, ends, estimate, estimate_mean
from seawall.figures.ratios import Array, Tally, mean_defined, ratio
from seawall.figures.sheet import Sheet, sheets
from seawall.figures.worst import Candidates, Choice, worst_each, worst_pooled, worst_ratio
from seawall.records import Record

WORST = "worst case"


def worst_case(
    rows: Iterable[Record],
    methods: Collection[str] | None = None,
    *,
    klass: str = "",
    samples: int = 1000,
    seed: int = 0,
) -> list[Record]:
    """Return what the adversary reaches who runs every attack and keeps the best per chip.

    One set of rows per recipe, model and threat, under the method "worst case". The clean prediction is always a
    candidate: an adversary may do nothing. Each figure has its own choice of attacks, because the attack that is
    worst for one figure is not worst for another: accuracy, mIoU and per-class IoU per chip take each chip's
    minimum; pooled accuracy and each class's pooled IoU are minimized exactly, the pooled mIoU greedily. Intervals
    resample groups with the choice held. `won.<attack>` says on which chips, and on what share of them, an attack
    leaves the lowest IoU of `klass`; "none" where no attack lowers it.

    Args:
        rows: Rows with a chip.
        methods: Attacks to choose from; all that share a threat where None.
        klass: Class whose IoU decides which attack has won; "" for the mIoU, and with two classes for water, or the
            second where none is called so.
        samples: Resamples of the bootstrap.
        seed: Seed of the bootstrap and of the greedy search.
    """
    every = [sheet for sheet in sheets(rows) if sheet.places and sheet.method != WORST]
    clean = {(s.recipe, s.model): s for s in every if s.method == "clean"}
    suites: dict[tuple[str, str, str], list[Sheet]] = {}
    for sheet in every:
        if sheet.method != "clean" and (methods is None or sheet.method in methods):
            suites.setdefault((sheet.recipe, sheet.model, sheet.threat), []).append(sheet)
    found: list[Record] = []
    for (recipe, model, _), attacked in suites.items():
        base = clean.get((recipe, model))
        suite = _Suite([*([base] if base else []), *sorted(attacked, key=lambda s: s.method)], klass)
        found += [replace(row, flags=suite.flags) for row in suite.rows(samples, seed)]
    return found


class _Suite:
    """The sheets of one threat, stacked as (A, N, K)."""

    def __init__(self, members: Sequence[Sheet], klass: str = "") -> None:
        self.members, self.klass = members, klass
        self.places = sorted({place for s in members for place in s.places})
        self.classes = list(dict.fromkeys(k for s in members for k in s.classes))
        shape = (len(members), len(self.places), len(self.classes))
        self.tp, self.fp, self.fn = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.pixels, self.there = np.zeros(shape[:2]), np.zeros(shape[:2], bool)
        for a, sheet in enumerate(members):
            at = [self.places.index(place) for place in sheet.places]
            columns = [self.classes.index(k) for k in sheet.classes]
            for mine, theirs in ((self.tp, sheet.tally.tp), (self.fp, sheet.tally.fp), (self.fn, sheet.tally.fn)):
                mine[a][np.ix_(at, columns)] = theirs
            self.pixels[a, at], self.there[a, at] = np.nan_to_num(sheet.tally.pixels), True
        self.union = self.tp + self.fp + self.fn

    def rows(self, samples: int, seed: int) -> Iterator[Record]:
        draws = Resamples.over([group for group, _ in self.places], samples, seed)
        last = self.members[-1]
        sheet = replace(last, method=WORST)  # with the rows of a member, which hold the threat as values
        each = ratio(self.tp, self.union)
        right = self.tp.sum(-1)
        for metric, values in (("accuracy.per_chip", ratio(right, self.pixels)), ("miou.per_chip", mean_defined(each))):
            e = estimate_mean(worst_each(values, self.there)[0][:, None], draws)
            yield from _ends(sheet, metric, e)
        for k, klass in enumerate(self.classes):
            e = estimate_mean(worst_each(each[..., k], self.there)[0][:, None], draws)
            yield from _ends(sheet, "iou.per_chip", e, klass)
            chosen = worst_ratio(self.tp[..., k], self.union[..., k], self.there)[1]
            e = estimate(self._chosen(chosen), "iou", "pooled", draws)
            yield from _ends(sheet, "iou.pooled", e.only(k), klass)
        yield from _ends(sheet, "accuracy.pooled", self._share(right, draws))
        chosen = worst_pooled(Candidates(self.tp, self.union, self.there), seed=seed)[1]
        yield from _ends(sheet, "miou.pooled", estimate(self._chosen(chosen), "miou", "pooled", draws))
        yield from self._winners(sheet, each)

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of all members, and what is missing."""
        missing = int((~self.there).sum())
        partial = [f"partial suite: {missing} of {self.there.size} missing"] if missing else []
        return tuple(dict.fromkeys([*(flag for s in self.members for flag in s.flags), *partial]))

    def _chosen(self, chosen: Choice) -> Tally:
        at = np.arange(len(self.places))
        return Tally(self.tp[chosen, at], self.fp[chosen, at], self.fn[chosen, at], self.pixels[chosen, at])

    def _share(self, right: Array, draws: Resamples) -> Estimate:
        chosen = worst_ratio(right, self.pixels, self.there)[1]
        at = np.arange(len(self.places))
        pair = draws.member @ np.stack([right[chosen, at], self.pixels[chosen, at]], 1)
        value, drawn = (ratio((w @ pair)[:, 0], (w @ pair)[:, 1]) for w in (draws.once, draws.weights))
        low, high = ends(drawn[:, None])
        return Estimate(value, low, high, np.array([int(self.pixels[chosen, at].sum())]))

    def _winners(self, sheet: Sheet, each: Array) -> Iterator[Record]:
        judge = self.klass or ("water" if "water" in self.classes else self.classes[-1] if self.classes else "")
        single = self.klass in self.classes or len(self.classes) == 2
        values = each[..., self.classes.index(judge)] if single else mean_defined(each)
        lowest, chosen = worst_each(values, self.there)
        defined: NDArray[np.bool_] = np.isfinite(lowest)
        names = ["none" if s.method == "clean" else s.method for s in self.members]
        for (group, chip), winner, there in zip(self.places, chosen, defined, strict=True):
            if there:
                yield replace(sheet.record(f"won.{names[winner]}", 1.0, 1, group=group), chip=chip)
        for a, name in enumerate(names):
            share = float(ratio((defined & (chosen == a)).sum(), defined.sum()))
            yield sheet.record(f"won.{name}", share, int(defined.sum()))


def _ends(sheet: Sheet, metric: str, e: Estimate, klass: str = "") -> Iterator[Record]:
    for name, value in ((metric, e.value[0]), (f"{metric}.low", e.low[0]), (f"{metric}.high", e.high[0])):
        yield sheet.record(name, value, int(e.n[0]), klass=klass)

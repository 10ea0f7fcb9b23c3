"""Figures over a whole set, from the rows of its chips: a pure function, so a page can trace every number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from seawall.arrays import DoubleArray
from seawall.metrics.bootstrap import AVERAGES, Estimate, Resamples, ends, estimate, estimate_mean
from seawall.metrics.ratios import CLASSWISE, OVERALL, Tally, measure, ratio
from seawall.records import Record

SRIP = ("iou", "accuracy", "precision", "recall", "f1", "specificity", "dice")


def figures(rows: Iterable[Record], *, samples: int = 1000, seed: int = 0) -> list[Record]:
    """Return the aggregates of every model, method and threat, each with its interval over groups.

    The order of the rows means nothing, nor do aggregates among them. A figure `m` has its ends in `m.low` and
    `m.high` (95 %, percentile bootstrap over groups; undefined with fewer than two groups). Ratios of each group
    alone carry the group's name. Calibration and size figures appear where their rows are.

    Args:
        rows: Rows with a chip, such as `evaluate` writes.
        samples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Example:
        >>> chip = lambda metric, klass, value: Record("r", "m", "clean", "", "c", "g", metric, klass, value, 4)
        >>> rows = [chip("tp", "water", 1), chip("fp", "water", 1), chip("fn", "water", 2), chip("pixels", "", 4)]
        >>> next(row.value for row in figures(rows) if row.metric == "iou.pooled")
        0.25
    """
    found: list[Record] = []
    for sheet in sheets(rows):
        if sheet.places:
            draws = Resamples.over(sheet.groups, samples, seed)
            found += _of_counts(sheet, draws)
            found += _of_groups(sheet)
        for part in (_of_srip, _of_bins, _of_sizes, _of_area, _of_hiding):
            found += part(sheet, samples, seed)
        found += _of_costs(sheet)
    return found


def _of_counts(sheet: Sheet, draws: Resamples) -> Iterator[Record]:
    tally = sheet.tally
    for how in AVERAGES:
        for name in _measurable(tally):
            e = estimate(tally, name, how, draws)
            yield from _with_ends(sheet, f"{name}.{how}", e, sheet.classes if name in CLASSWISE else ("",))
    if np.isfinite(tally.pixels).all():
        pixels = tally.pixels.sum()
        yield sheet.record("pixels", pixels, int(pixels), seconds=sheet.seconds)


def _of_groups(sheet: Sheet) -> Iterator[Record]:
    groups = np.array(sheet.groups)
    for group in np.unique(groups):
        pooled = sheet.tally.select(groups == group).total()
        n = int(np.nan_to_num(pooled.pixels))
        for name in _measurable(sheet.tally):
            klasses = sheet.classes if name in CLASSWISE else ("",)
            for klass, value in zip(klasses, measure(name, pooled), strict=True):
                yield sheet.record(f"{name}.pooled", value, n, klass=klass, group=str(group))


def _measurable(tally: Tally) -> Sequence[str]:
    """What needs the pixels of all classes is left out where rows do not say them."""
    if np.isfinite(tally.pixels).all():
        return (*CLASSWISE, *OVERALL)
    return tuple(name for name in CLASSWISE if name != "specificity")


def _of_srip(sheet: Sheet, samples: int, seed: int) -> Iterator[Record]:
    for name in SRIP:
        groups, values = sheet.values(f"srip.{name}")
        if groups:
            e = estimate_mean(values, Resamples.over(groups, samples, seed))
            yield from _with_ends(sheet, f"srip.{name}", e, ("",))


def _of_bins(sheet: Sheet, samples: int, seed: int) -> Iterator[Record]:
    """Calibration: the pooled bins, and the expected calibration error that they give."""
    held = sheet.rows.get("calib.pixels", {})
    places = sorted((group, chip) for group, chip, _ in held)
    if not places:
        return
    draws = Resamples.over([group for group, _ in places], samples, seed)
    for part, name in (("calib", "ece"), ("calib.edge", "ece.edge")):
        bins = _bins(sheet, part, places)  # (3, N, M): count, correct, confidence
        pixels = int(bins[0].sum())
        groups = bins.transpose(0, 2, 1) @ draws.member.T  # (3, M, G)
        whole, drawn = (_ece(*(groups @ w.T).transpose(0, 2, 1)) for w in (draws.once, draws.weights))
        low, high = ends(drawn[:, None])
        yield from _with_ends(sheet, name, Estimate(whole, low, high, np.array([pixels])), ("",))
        if part == "calib":
            yield from _ece_of_groups(sheet, _ece(*groups.transpose(0, 2, 1)))
        for kind, pooled in zip(("count", "correct", "confidence"), bins.sum(1), strict=True):
            for i, value in enumerate(pooled):
                if bins[0, :, i].sum():
                    yield sheet.record(f"{part}.{kind}.{i}", value, int(bins[0, :, i].sum()))
    for name in ("nll", "brier"):
        total = sum(row.value or 0.0 for _, row in sorted(sheet.rows.get(f"calib.{name}", {}).items()))
        pixels = sum(int(row.value or 0) for row in held.values())
        yield sheet.record(name, float(ratio(total, pixels)), pixels)


def _ece_of_groups(sheet: Sheet, each: DoubleArray) -> Iterator[Record]:
    there = each[np.isfinite(each)]
    yield sheet.record("ece.per_group", float(there.mean()) if len(there) else np.nan, len(there))
    yield sheet.record("ece.worst_group", float(there.max()) if len(there) else np.nan, len(there))


def _bins(sheet: Sheet, part: str, places: list[tuple[str, str]]) -> DoubleArray:
    names = [name for name in sheet.rows if name.startswith(f"{part}.count.")]
    width = 1 + max((int(name.rsplit(".", 1)[1]) for name in names), default=0)
    table = np.zeros((3, len(places), width))
    at = {place: i for i, place in enumerate(places)}
    for j, kind in enumerate(("count", "correct", "confidence")):
        for i in range(width):
            for (group, chip, _), row in sheet.rows.get(f"{part}.{kind}.{i}", {}).items():
                if (group, chip) in at:
                    table[j, at[group, chip], i] = row.value or 0.0
    return table


def _ece(count: DoubleArray, correct: DoubleArray, confidence: DoubleArray) -> DoubleArray:
    """Mean distance between accuracy and confidence over bins (R, M), weighted by pixels."""
    return ratio(np.abs(correct - confidence).sum(-1), count.sum(-1))


def _of_sizes(sheet: Sheet, samples: int, seed: int) -> Iterator[Record]:
    """IoU and recall of the class's bodies, by the size of the body."""
    names = dict.fromkeys(name.removeprefix("size.fn.") for name in sheet.rows if name.startswith("size.fn."))
    if not names:
        return
    for klass in dict.fromkeys(k for name in names for _, _, k in sheet.rows[f"size.fn.{name}"]):
        places = sorted({(g, c) for g, c, k in sheet.rows.get("area.true_km2", {}) if k == klass})
        draws = Resamples.over([group for group, _ in places], samples, seed)
        for name in names:
            columns = [_chips(sheet, f"size.{part}.{name}", klass, places) for part in ("tp", "fp", "fn")]
            tally = Tally(columns[0], columns[1], columns[2], np.zeros(len(places)))
            true = int((columns[0] + columns[2]).sum())
            for metric in ("iou", "recall"):
                e = estimate(tally, metric, "pooled", draws)
                e = Estimate(e.value, e.low, e.high, np.array([true]))
                yield from _with_ends(sheet, f"size.{metric}.{name}", e, (klass,))
            bodies = _chips(sheet, f"size.bodies.{name}", klass, places).sum()
            yield sheet.record(f"size.bodies.{name}", bodies, true, klass=klass)


def _of_area(sheet: Sheet, samples: int, seed: int) -> Iterator[Record]:
    for klass in dict.fromkeys(k for _, _, k in sheet.rows.get("area.true_km2", {})):
        places = sorted((g, c) for g, c, k in sheet.rows["area.true_km2"] if k == klass)
        draws = Resamples.over([group for group, _ in places], samples, seed)
        true, lost, invented = (
            _chips(sheet, f"area.{part}_km2", klass, places)[:, 0] for part in ("true", "lost", "invented")
        )
        for part, values in (("true", true), ("lost", lost), ("invented", invented)):
            yield sheet.record(f"area.{part}_km2", values.sum(), len(places), klass=klass)
        for part, values in (("lost", lost), ("invented", invented)):
            pooled = draws.member @ np.stack([values, true], 1)
            whole, drawn = (ratio((w @ pooled)[:, 0], (w @ pooled)[:, 1]) for w in (draws.once, draws.weights))
            low, high = ends(drawn[:, None])
            yield from _with_ends(
                sheet, f"area.{part}_share", Estimate(whole, low, high, np.array([len(places)])), (klass,)
            )


def _chips(sheet: Sheet, metric: str, klass: str, places: list[tuple[str, str]]) -> DoubleArray:
    held = sheet.rows.get(metric, {})
    found = (held.get((group, chip, klass)) for group, chip in places)
    return np.array([[row.value or 0.0 if row else 0.0] for row in found], np.float64).reshape(-1, 1)


def _of_hiding(sheet: Sheet, samples: int, seed: int) -> Iterator[Record]:
    """Shares of a hidden class: mean and standard deviation over the chips that have the class, and how many have not."""
    for name in ("fooled", "preserved"):
        for klass in dict.fromkeys(k for _, _, k in sheet.rows.get(name, {})):
            groups, values = sheet.values(name, klass)
            there = np.isfinite(values[:, 0])
            e = estimate_mean(values, Resamples.over(groups, samples, seed))
            yield from _with_ends(sheet, f"{name}.per_chip", e, (klass,))
            std = float(values[there, 0].std()) if there.any() else np.nan
            yield sheet.record(f"{name}.std", std, int(there.sum()), klass=klass)
            yield sheet.record(f"{name}.skipped", float((~there).sum()), len(there), klass=klass)


def _of_costs(sheet: Sheet) -> Iterator[Record]:
    """The largest distance within the budget; the means of passes per chip, and of the smallest noise that was a success."""
    largest = ("distance.linf", "distance.l2")
    means = ("passes", "distance.free.linf", "distance.free.l2", "distance.free.reached")
    for name in (*largest, *means):
        groups, values = sheet.values(name)
        there = values[np.isfinite(values)]
        if groups:
            value = (there.mean() if name in means else there.max()) if len(there) else np.nan
            yield sheet.record(name, float(value), len(there))


def _with_ends(sheet: Sheet, metric: str, e: Estimate, classes: Sequence[str]) -> Iterator[Record]:
    for i, klass in enumerate(classes):
        for name, value in ((metric, e.value[i]), (f"{metric}.low", e.low[i]), (f"{metric}.high", e.high[i])):
            yield sheet.record(name, value, int(e.n[i]), klass=klass)


COUNTS = ("tp", "fp", "fn")


@dataclass(frozen=True)
class Sheet:
    """The chips of one model under one method and threat, sorted by group and id.

    Args:
        recipe: Recipe id.
        model: Model name.
        method: What was done to the images.
        threat: Threat or severity as text.
        rows: The chips' rows, by metric, then by (group, chip, klass).
    """

    recipe: str
    model: str
    method: str
    threat: str
    rows: Mapping[str, Mapping[tuple[str, str, str], Record]] = field(repr=False)

    @cached_property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Group and id of every counted chip."""
        found = {(g, c) for name in (*COUNTS, "pixels") for g, c, _ in self.rows.get(name, {})}
        return tuple(sorted(found))

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of every counted chip."""
        return tuple(group for group, _ in self.places)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Classes in the order in which the rows name them."""
        return tuple(dict.fromkeys(k for name in COUNTS for _, _, k in self.rows.get(name, {})))

    @cached_property
    def tally(self) -> Tally:
        """Counts of every chip, (N, K); pixels are NaN where no row says them."""
        tp, fp, fn = (self.column(name) for name in COUNTS)
        held = self.rows.get("pixels", {})
        pixels = [held[g, c, ""].value if (g, c, "") in held else None for g, c in self.places]
        return Tally(tp, fp, fn, np.array([np.nan if p is None else p for p in pixels], np.float64))

    def column(self, metric: str) -> DoubleArray:
        """Return a per-class metric as (N, K), zero where there is no row."""
        held = self.rows.get(metric, {})
        table = np.zeros((len(self.places), len(self.classes)))
        at = {place: i for i, place in enumerate(self.places)}
        for (group, chip, klass), row in held.items():
            if row.value is not None and klass in self.classes and (group, chip) in at:
                table[at[group, chip], self.classes.index(klass)] = row.value
        return table

    def values(self, metric: str, klass: str = "") -> tuple[tuple[str, ...], DoubleArray]:
        """Return the groups and the values (N, 1) of the chips that have a metric; None is NaN."""
        held = sorted((key, row.value) for key, row in self.rows.get(metric, {}).items() if key[2] == klass)
        column = np.array([[np.nan if v is None else v] for _, v in held], np.float64).reshape(-1, 1)
        return tuple(key[0] for key, _ in held), column

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """Every flag that a row carries, in the order of first sight."""
        every = (flag for name in self.rows.values() for row in name.values() for flag in row.flags)
        return tuple(dict.fromkeys(every))

    @cached_property
    def seconds(self) -> float:
        """Time over all chips; the rows of one chip share one measurement."""
        spent: dict[tuple[str, str], float] = {}
        for name in self.rows.values():
            for (group, chip, _), row in name.items():
                spent[group, chip] = max(spent.get((group, chip), 0.0), row.seconds)
        return sum(spent[place] for place in sorted(spent))

    def record(
        self, metric: str, value: float, n: int, *, klass: str = "", group: str = "", seconds: float = 0.0
    ) -> Record:
        """Make an aggregate row of this sheet; a value that is not finite is undefined."""
        plain = float(value) if np.isfinite(value) else None
        return replace(self._like, group=group).measured(metric, plain, n, klass, seconds)

    @cached_property
    def _like(self) -> Record:
        """A row of this sheet without a chip, which holds the threat as values."""
        first = next((row for rows in self.rows.values() for row in rows.values()), None)
        blank = first or Record(self.recipe, self.model, self.method, self.threat, "", "", "", "", None, 0)
        return replace(blank, method=self.method, chip="", group="", flags=self.flags)


def sheets(rows: Iterable[Record]) -> Iterator[Sheet]:
    """Yield one sheet per (recipe, model, method, threat), in the order of first sight; aggregates are left out."""
    found: dict[tuple[str, str, str, str], dict[str, dict[tuple[str, str, str], Record]]] = {}
    for row in rows:
        if row.chip:
            metrics = found.setdefault((row.recipe, row.model, row.method, row.threat), {})
            metrics.setdefault(row.metric, {})[row.group, row.chip, row.klass] = row
    for setup, metrics in found.items():
        yield Sheet(*setup, rows=metrics)

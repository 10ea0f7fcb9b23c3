"""Aggregates over a set of chips, with intervals, from the records of the chips alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from seawall.arrays import DoubleArray
from seawall.metrics.bootstrap import (
    AVERAGES,
    IntervalEstimate,
    Resamples,
    estimate_mean,
    estimate_quotient,
    estimate_ratio,
    percentile_interval,
)
from seawall.metrics.ratios import CLASSWISE, OVERALL, ConfusionCounts, compute_ratio, divide_or_nan
from seawall.records import CorruptionFacts, Record, finite_or_none

SRIP_SCORES = ("iou", "accuracy", "precision", "recall", "f1", "specificity", "dice")


def aggregate_records(rows: Iterable[Record], *, samples: int = 1000, seed: int = 0) -> list[Record]:
    """Return the aggregates of every model, method and threat, each with its interval over groups.

    Neither the order of the records nor aggregates among them change the result. A metric `m` has its interval in `m.low` and
    `m.high` (95 %, percentile bootstrap over groups; undefined with fewer than two groups). Ratios of each group
    alone carry the group's name. Calibration and object sizes appear where their records are.

    Args:
        rows: Rows with a chip, such as `evaluate_model` writes.
        samples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Example:
        >>> chip = lambda metric, klass, value: Record("r", "m", "clean", "", "c", "g", metric, klass, value, 4)
        >>> rows = [chip("tp", "water", 1), chip("fp", "water", 1), chip("fn", "water", 2), chip("pixels", "", 4)]
        >>> next(row.value for row in aggregate_records(rows) if row.metric == "iou.pooled")
        0.25
    """
    found: list[Record] = []
    for table in chip_tables(rows):
        if table.places:
            draws = Resamples.over(table.groups, samples, seed)
            found += _of_counts(table, draws)
            found += _of_groups(table)
        for part in (_of_srip, _of_bins, _of_boundary, _of_sizes, _of_area, _of_hiding, _of_kept_pixels):
            found += part(table, samples, seed)
        found += _of_costs(table)
    return found


def _of_counts(table: ChipTable, draws: Resamples) -> Iterator[Record]:
    counts = table.counts
    for how in AVERAGES:
        for name in _defined_ratios(counts):
            e = estimate_ratio(counts, name, how, draws)
            yield from interval_records(table, f"{name}.{how}", e, table.classes if name in CLASSWISE else ("",))
    if np.isfinite(counts.pixels).all():
        pixels = counts.pixels.sum()
        yield table.record("pixels", pixels, int(pixels), seconds=table.seconds)


def _of_groups(table: ChipTable) -> Iterator[Record]:
    groups = np.array(table.groups)
    for group in np.unique(groups):
        pooled = table.counts.select(groups == group).total()
        n = int(np.nan_to_num(pooled.pixels))
        for name in _defined_ratios(table.counts):
            klasses = table.classes if name in CLASSWISE else ("",)
            for klass, value in zip(klasses, compute_ratio(name, pooled), strict=True):
                yield table.record(f"{name}.pooled", value, n, klass=klass, group=str(group))


def _defined_ratios(counts: ConfusionCounts) -> Sequence[str]:
    """Return the ratios that the records suffice for; some need the pixels of all classes."""
    if np.isfinite(counts.pixels).all():
        return (*CLASSWISE, *OVERALL)
    return tuple(name for name in CLASSWISE if name != "specificity")


def _of_srip(table: ChipTable, samples: int, seed: int) -> Iterator[Record]:
    for name in SRIP_SCORES:
        groups, values = table.values(f"srip.{name}")
        if groups:
            e = estimate_mean(values, Resamples.over(groups, samples, seed))
            yield from interval_records(table, f"srip.{name}", e, ("",))


def _of_bins(table: ChipTable, samples: int, seed: int) -> Iterator[Record]:
    """Calibration: the pooled bins, and the expected calibration error that they give."""
    held = table.rows.get("calib.pixels", {})
    places = sorted((group, chip) for group, chip, _ in held)
    if not places:
        return
    draws = Resamples.over([group for group, _ in places], samples, seed)
    for part, name in (("calib", "ece"), ("calib.edge", "ece.edge")):
        bins = _bins(table, part, places)  # (3, N, M): count, correct, confidence
        pixels = int(bins[0].sum())
        groups = bins.transpose(0, 2, 1) @ draws.member.T  # (3, M, G)
        whole, drawn = (_ece(*(groups @ w.T).transpose(0, 2, 1)) for w in (draws.once, draws.weights))
        low, high = percentile_interval(drawn[:, None])
        yield from interval_records(table, name, IntervalEstimate(whole, low, high, np.array([pixels])), ("",))
        if part == "calib":
            yield from _ece_of_groups(table, _ece(*groups.transpose(0, 2, 1)))
        for kind, pooled in zip(("count", "correct", "confidence"), bins.sum(1), strict=True):
            for i, value in enumerate(pooled):
                if bins[0, :, i].sum():
                    yield table.record(f"{part}.{kind}.{i}", value, int(bins[0, :, i].sum()))
    for name in ("nll", "brier", "entropy"):
        if f"calib.{name}" not in table.rows:  # rows of an earlier version
            continue
        total = sum(row.value or 0.0 for _, row in sorted(table.rows.get(f"calib.{name}", {}).items()))
        pixels = sum(int(row.value or 0) for row in held.values())
        yield table.record(name, float(divide_or_nan(total, pixels)), pixels)


def _ece_of_groups(table: ChipTable, each: DoubleArray) -> Iterator[Record]:
    there = each[np.isfinite(each)]
    yield table.record("ece.per_group", float(there.mean()) if len(there) else np.nan, len(there))
    yield table.record("ece.worst_group", float(there.max()) if len(there) else np.nan, len(there))


def _bins(table: ChipTable, part: str, places: list[tuple[str, str]]) -> DoubleArray:
    names = [name for name in table.rows if name.startswith(f"{part}.count.")]
    width = 1 + max((int(name.rsplit(".", 1)[1]) for name in names), default=0)
    bins = np.zeros((3, len(places), width))
    at = {place: i for i, place in enumerate(places)}
    for j, kind in enumerate(("count", "correct", "confidence")):
        for i in range(width):
            for (group, chip, _), row in table.rows.get(f"{part}.{kind}.{i}", {}).items():
                if (group, chip) in at:
                    bins[j, at[group, chip], i] = row.value or 0.0
    return bins


def _ece(count: DoubleArray, correct: DoubleArray, confidence: DoubleArray) -> DoubleArray:
    """Mean distance between accuracy and confidence over bins (R, M), weighted by pixels."""
    return divide_or_nan(np.abs(correct - confidence).sum(-1), count.sum(-1))


def _of_boundary(table: ChipTable, samples: int, seed: int) -> Iterator[Record]:
    """IoU of the pixels near the boundary of each class."""
    if "boundary.pixels" not in table.rows:
        return
    tp, fp, fn = (table.column(f"boundary.{name}") for name in COUNTS)
    counts, draws = ConfusionCounts(tp, fp, fn, np.zeros(len(tp))), Resamples.over(table.groups, samples, seed)
    for how in AVERAGES:
        yield from interval_records(
            table, f"boundary_iou.{how}", estimate_ratio(counts, "iou", how, draws), table.classes
        )


def _of_sizes(table: ChipTable, samples: int, seed: int) -> Iterator[Record]:
    """IoU and recall of the connected objects of a class, by their size."""
    names = dict.fromkeys(name.removeprefix("size.fn.") for name in table.rows if name.startswith("size.fn."))
    if not names:
        return
    for klass in dict.fromkeys(k for name in names for _, _, k in table.rows[f"size.fn.{name}"]):
        places = sorted({(g, c) for g, c, k in table.rows.get("area.true_km2", {}) if k == klass})
        draws = Resamples.over([group for group, _ in places], samples, seed)
        for name in names:
            columns = [_chip_column(table, f"size.{part}.{name}", klass, places) for part in ("tp", "fp", "fn")]
            counts = ConfusionCounts(columns[0], columns[1], columns[2], np.zeros(len(places)))
            true = int((columns[0] + columns[2]).sum())
            for metric in ("iou", "recall"):
                e = estimate_ratio(counts, metric, "pooled", draws)
                e = IntervalEstimate(e.value, e.low, e.high, np.array([true]))
                yield from interval_records(table, f"size.{metric}.{name}", e, (klass,))
            bodies = _chip_column(table, f"size.bodies.{name}", klass, places).sum()
            yield table.record(f"size.bodies.{name}", bodies, true, klass=klass)


def _of_area(table: ChipTable, samples: int, seed: int) -> Iterator[Record]:
    for klass in dict.fromkeys(k for _, _, k in table.rows.get("area.true_km2", {})):
        places = sorted((g, c) for g, c, k in table.rows["area.true_km2"] if k == klass)
        draws = Resamples.over([group for group, _ in places], samples, seed)
        true, lost, invented = (
            _chip_column(table, f"area.{part}_km2", klass, places)[:, 0] for part in ("true", "lost", "invented")
        )
        for part, values in (("true", true), ("lost", lost), ("invented", invented)):
            yield table.record(f"area.{part}_km2", values.sum(), len(places), klass=klass)
        for part, values in (("lost", lost), ("invented", invented)):
            e = estimate_quotient(values, true, len(places), draws)
            yield from interval_records(table, f"area.{part}_share", e, (klass,))


def _chip_column(table: ChipTable, metric: str, klass: str, places: list[tuple[str, str]]) -> DoubleArray:
    held = table.rows.get(metric, {})
    found = (held.get((group, chip, klass)) for group, chip in places)
    return np.array([[row.value or 0.0 if row else 0.0] for row in found], np.float64).reshape(-1, 1)


def _of_hiding(table: ChipTable, samples: int, seed: int) -> Iterator[Record]:
    """Shares of a hidden class: mean and standard deviation over the chips that have the class, and how many have not."""
    for name in ("fooled", "preserved"):
        for klass in dict.fromkeys(k for _, _, k in table.rows.get(name, {})):
            groups, values = table.values(name, klass)
            there = np.isfinite(values[:, 0])
            e = estimate_mean(values, Resamples.over(groups, samples, seed))
            yield from interval_records(table, f"{name}.per_chip", e, (klass,))
            std = float(values[there, 0].std()) if there.any() else np.nan
            yield table.record(f"{name}.std", std, int(there.sum()), klass=klass)
            yield table.record(f"{name}.skipped", float((~there).sum()), len(there), klass=klass)


def _of_kept_pixels(table: ChipTable, samples: int, seed: int) -> Iterator[Record]:
    """The valid pixels that a corruption left, over those of the clean images."""
    groups, before = table.values("pixels.clean")
    if groups:
        kept, draws = table.values("pixels")[1], Resamples.over(groups, samples, seed)
        yield from interval_records(
            table, "pixels.kept_share", estimate_quotient(kept[:, 0], before[:, 0], len(groups), draws), ("",)
        )


def _of_costs(table: ChipTable) -> Iterator[Record]:
    """The largest distance within the budget; the means of passes per chip, and of the smallest noise that was a success."""
    largest = ("distance.linf", "distance.l2")
    means = ("passes", "distance.free.linf", "distance.free.l2", "distance.free.reached")
    for name in (*largest, *means):
        groups, values = table.values(name)
        there = values[np.isfinite(values)]
        if groups:
            value = (there.mean() if name in means else there.max()) if len(there) else np.nan
            yield table.record(name, float(value), len(there))


def interval_records(table: ChipTable, metric: str, e: IntervalEstimate, classes: Sequence[str]) -> Iterator[Record]:
    """Yield an estimate per class with the ends of its interval."""
    for i, klass in enumerate(classes):
        for name, value in ((metric, e.value[i]), (f"{metric}.low", e.low[i]), (f"{metric}.high", e.high[i])):
            yield table.record(name, value, int(e.n[i]), klass=klass)


COUNTS = ("tp", "fp", "fn")


@dataclass(frozen=True)
class ChipTable:
    """The records of the chips of one model under one method and threat, sorted by group and id.

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
    def counts(self) -> ConfusionCounts:
        """Counts of every chip, (N, K); pixels are NaN where there is no record of them."""
        tp, fp, fn = (self.column(name) for name in COUNTS)
        held = self.rows.get("pixels", {})
        pixels = [held[g, c, ""].value if (g, c, "") in held else None for g, c in self.places]
        return ConfusionCounts(tp, fp, fn, np.array([np.nan if p is None else p for p in pixels], np.float64))

    @property
    def corruption(self) -> CorruptionFacts:
        """Severity and level of the corruption."""
        return self._like.corruption

    @property
    def severity(self) -> float | None:
        """Severity of the corruption; None where the images were not corrupted."""
        return self._like.severity

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
        """Every flag that a row carries, in the order of the records."""
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
        """Make an aggregate record of this table; a value that is not finite becomes None."""
        return replace(self._like, group=group).measured(metric, finite_or_none(value), n, klass, seconds)

    @cached_property
    def _like(self) -> Record:
        """A record of this table without a chip, with the threat as values."""
        first = next((row for rows in self.rows.values() for row in rows.values()), None)
        blank = first or Record(self.recipe, self.model, self.method, self.threat, "", "", "", "", None, 0)
        return replace(blank, method=self.method, chip="", group="", flags=self.flags)


def chip_tables(rows: Iterable[Record]) -> Iterator[ChipTable]:
    """Yield one table per (recipe, model, method, threat), in the order of the records; aggregates are left out."""
    found: dict[tuple[str, str, str, str], dict[str, dict[tuple[str, str, str], Record]]] = {}
    for row in rows:
        if row.chip:
            metrics = found.setdefault((row.recipe, row.model, row.method, row.threat), {})
            metrics.setdefault(row.metric, {})[row.group, row.chip, row.klass] = row
    for setup, metrics in found.items():
        yield ChipTable(*setup, rows=metrics)

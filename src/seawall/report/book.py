"""The records, looked up by what they are of; every cell of the page remembers the key of its record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from seawall.figures import WORST, figures, with_doubts, worst_case
from seawall.records import Record
from seawall.report.words import DASH, budget, count, ratio

CLEAN = ("clean", "")
Setup = tuple[str, str, str]
"""Model, method, threat."""


@dataclass(frozen=True)
class Count:
    """Pixels of one class on one chip: found rightly, invented, missed."""

    chip: str
    group: str
    tp: float
    fp: float
    fn: float

    @property
    def union(self) -> float:
        """Pixels that are of the class in the label, the prediction or both."""
        return self.tp + self.fp + self.fn

    @property
    def iou(self) -> float | None:
        """Intersection over union; undefined where neither has the class."""
        return self.tp / self.union if self.union else None


@dataclass(frozen=True)
class Cell:
    """One number of a table: its text, its interval, what it is, the key of its record, its flags."""

    text: str
    title: str
    key: str = ""
    low: str = ""
    high: str = ""
    flags: tuple[str, ...] = ()
    best: bool = False


class Book:
    """Records in order, with the aggregates that their counts give.

    Args:
        records: Rows of a run, counts first; aggregates that are not there are made from the counts.
        klass: The class that single figures are about.
    """

    def __init__(self, records: Iterable[Record], klass: str) -> None:
        given = with_doubts(records)
        self.klass = klass
        self._rows: dict[tuple[str, ...], Record] = {}
        self.rows = (*figures(given), *worst_case(given), *given)
        for record in self.rows:
            self._rows[_place(record)] = record
        self.given = tuple(r for r in given if r.method != WORST)

    def record(self, setup: Setup, metric: str, klass: str = "", group: str = "", chip: str = "") -> Record | None:
        """Return the row of a metric, or None where it was not measured."""
        return self._rows.get((*setup, chip, group, metric, klass))

    def value(self, setup: Setup, metric: str, klass: str = "", group: str = "") -> float | None:
        """Return the value of a metric, None where it was not measured or is undefined."""
        found = self.record(setup, metric, klass, group)
        return found.value if found else None

    @cached_property
    def setups(self) -> tuple[Setup, ...]:
        """Every (model, method, threat) that was measured, in the order of the file; the worst case is made from them."""
        return tuple(dict.fromkeys((r.model, r.method, r.threat) for r in self.given))

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Model names, in the order of the file."""
        return tuple(dict.fromkeys(model for model, _, _ in self.setups))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Groups with a clean figure, sorted."""
        return tuple(sorted({r.group for r in self.given if r.group and r.method == "clean"}))

    @cached_property
    def _counts(self) -> Mapping[tuple[Setup, str], Mapping[str, Count]]:
        piles: dict[tuple[Setup, str], dict[str, Count]] = {}
        for r in self.given:
            if r.chip and r.metric in ("tp", "fp", "fn") and r.value is not None:
                pile = piles.setdefault(((r.model, r.method, r.threat), r.klass), {})
                c = pile.get(r.chip, Count(r.chip, r.group, 0, 0, 0))
                sums = {"tp": c.tp, "fp": c.fp, "fn": c.fn, r.metric: r.value}
                pile[r.chip] = Count(r.chip, r.group, sums["tp"], sums["fp"], sums["fn"])
        return piles

    def counts(self, setup: Setup, klass: str = "") -> Mapping[str, Count]:
        """Return the counts of every chip, for the page's class unless another is named."""
        return self._counts.get((setup, klass or self.klass), {})

    def seconds(self, setup: Setup) -> float | None:
        """Return the time over all chips; rows of one chip share one measurement."""
        spent: dict[str, float] = {}
        for r in self.given:
            if (r.model, r.method, r.threat) == setup and r.chip:
                spent[r.chip] = max(spent.get(r.chip, 0.0), r.seconds)
        total = sum(spent.values())
        return total or None

    @cached_property
    def _flags(self) -> Mapping[Setup, tuple[str, ...]]:
        found: dict[Setup, dict[str, None]] = {}
        for r in self.given:
            if r.flags:
                found.setdefault((r.model, r.method, r.threat), {}).update(dict.fromkeys(r.flags))
        return {setup: tuple(names) for setup, names in found.items()}

    def flags(self, setup: Setup) -> tuple[str, ...]:
        """Return every flag that any row of a setup carries."""
        return self._flags.get(setup, ())

    def cell(
        self,
        setup: Setup,
        metric: str,
        klass: str | None = None,
        group: str = "",
        say: Callable[[float | None], str] = ratio,
    ) -> Cell:
        """Return a metric as a table cell, with its interval where there is one."""
        name = (self.klass if _per_class(metric) else "") if klass is None else klass
        found = self.record(setup, metric, name, group)
        what = " · ".join(part for part in (metric, name, *setup, group) if part)
        if found is None:
            return Cell(DASH, f"{what}: not measured in this run")
        flags = tuple(dict.fromkeys((*found.flags, *self.flags(setup))))
        if found.value is None:
            return Cell(DASH, f"{what}: {undefined(metric)}", key_text(found), flags=flags)
        ends = [self.value(setup, f"{metric}.{end}", name, group) for end in ("low", "high")]
        low, high = (say(end) if None not in ends else "" for end in ends)
        title = f"{what} · n = {count(found.n)}" + (f" · 95 % interval {low} to {high}" if low else "")
        return Cell(say(found.value), title, key_text(found), low, high, flags)


def _place(record: Record) -> tuple[str, ...]:
    """Return a record's place; the group of a chip's row is not needed to find it."""
    group = "" if record.chip else record.group
    return (record.model, record.method, record.threat, record.chip, group, record.metric, record.klass)


def key_text(record: Record) -> str:
    """Write a record's key as one string, as the page's `data-key` attributes hold it."""
    return "|".join(record.key)


def _per_class(metric: str) -> bool:
    return metric.split(".")[0] in ("iou", "f1", "precision", "recall", "dice", "specificity", "size", "area")


def undefined(metric: str) -> str:
    """Say why a metric has no value."""
    name = metric.split(".")[0]
    reasons = {
        "precision": "undefined, because nothing was predicted as this class",
        "recall": "undefined, because the labels hold no pixel of this class",
        "specificity": "undefined, because the labels hold no pixel outside this class",
        "accuracy": "undefined, because no pixel counts",
    }
    return reasons.get(name, "undefined, because neither labels nor predictions hold this class")


def is_attack(threat: str) -> bool:
    """Tell an adversary's threat from the severity of a natural perturbation."""
    return bool(budget(threat).norm)


__all__ = ["CLEAN", "WORST", "Book", "Cell", "Count", "Setup", "is_attack", "key_text", "undefined"]

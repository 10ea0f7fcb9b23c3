"""The records, looked up by what they are of; every cell of the page remembers the key of its record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from seawall.metrics.aggregate import figures
from seawall.metrics.robustness_card import with_doubts
from seawall.metrics.worst_case import WORST, worst_case
from seawall.records import Record
from seawall.report.formatting import DASH, Budget, count, percent, plain, ratio
from seawall.report.run_reader import NoiseFacts

NAMES = {
    "unet": "U-Net", "dense-unet": "dense U-Net", "ndwi": "NDWI", "mndwi": "MNDWI", "awei_nsh": "AWEI", "awei_sh": "AWEI shadow",
    "awei-nsh": "AWEI", "awei-sh": "AWEI shadow", "otsu": "Otsu", "fgsm": "FGSM", "bim": "BIM", "pgd": "PGD", "apgd": "APGD",
    "segpgd": "SegPGD", "cospgd": "CosPGD", "dag": "DAG", "sea": "SEA", "clean": "clean", "random": "random noise", "none": "none hurts",
    "sigma0_db": "dB (sigma nought)", "gamma0_db": "dB (gamma nought)",
}  # fmt: skip


def said(name: str) -> str:
    """Return a method's or unit's name as people write it; `Book.said` says that of a model.

    Example:
        >>> said("unet"), said("mine")
        ('U-Net', 'mine')
    """
    return NAMES.get(name, name)


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
        noises: Which labels each network learned from, where they were corrupted.
    """

    def __init__(self, records: Iterable[Record], klass: str, noises: Mapping[str, NoiseFacts] | None = None) -> None:
        given = with_doubts(records)
        self.klass = klass
        self.noises = noises or {}
        self._rows: dict[tuple[str, ...], Record] = {}
        self.rows = (*figures(given), *worst_case(given), *given)
        for record in self.rows:
            self._rows[_place(record)] = record
        self.given = tuple(r for r in given if r.method != WORST)

    def budget(self, threat: str) -> Budget:
        """Return what a threat allows, from the fields of its rows; only its text where they say no more."""
        return self._budgets.get(threat, Budget(threat))

    @cached_property
    def _budgets(self) -> Mapping[str, Budget]:
        return {
            r.threat: Budget(r.threat, r.norm, r.eps, r.unit, r.bands, r.region, r.limits) for r in self.given if r.norm
        }

    @cached_property
    def corrupted(self) -> tuple[Corrupted, ...]:
        """Networks that were trained on corrupted labels, by kind and by what was asked for."""
        return tuple(corrupted(self.models, self.noises))

    def said(self, model: str) -> str:
        """Return a model's name as people write it, with the labels that it learned from and what was reached."""
        if model not in self.noises:
            return said(model)
        noise = Corrupted.of(model, self.noises[model])
        return f"{said(noise.base)}, {noise.label}"

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
        for r in self.rows:
            if r.flags:
                found.setdefault((r.model, r.method, r.threat), {}).update(dict.fromkeys(r.flags))
        return {setup: tuple(names) for setup, names in found.items()}

    def flags(self, setup: Setup) -> tuple[str, ...]:
        """Return every flag that any row of a setup carries; those of the worst case are of all that it is made from."""
        return self._flags.get(setup, ())

    @property
    def flagged(self) -> Mapping[Setup, tuple[str, ...]]:
        """Every setup that carries a flag, the worst case included."""
        return self._flags

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


__all__ = ["CLEAN", "WORST", "Book", "Cell", "Count", "Setup", "key_text", "said", "undefined"]


@dataclass(frozen=True)
class Corrupted:
    """A network that was trained on corrupted labels.

    Args:
        model: Its name in the rows.
        base: The network that was trained on the labels as they are.
        noise: Name of the label noise.
        asked: What was asked for: a share of pixels, or the setting that the sweep varies.
        reached: Share of the valid training pixels that the noise changed.
        objective: Loss or objective that training went through the noise with; "" for the recipe's own.
    """

    model: str
    base: str
    noise: str
    asked: float | None = None
    reached: float | None = None
    objective: str = ""

    @staticmethod
    def of(model: str, facts: NoiseFacts) -> Corrupted:
        """Return what the run says about one of its networks."""
        return Corrupted(model, facts.model, facts.noise, facts.rate, facts.changed_share, facts.objective)

    @property
    def kind(self) -> str:
        """Rows of one kind make one curve over the share that was changed."""
        return f"{self.noise}, by {self.objective}" if self.objective else self.noise

    @property
    def rate(self) -> str:
        """What was asked for, in words: a share as a percentage, any other setting as a number."""
        if self.asked is None:
            return DASH
        return percent(self.asked) if self.asked <= 1 else plain(self.asked)

    @property
    def changed(self) -> str:
        """What was reached, in words."""
        return percent(self.reached)

    @property
    def label(self) -> str:
        """Noise, what was asked for, and what was reached.

        Example:
            >>> Corrupted("m", "unet", "thirds", 0.1, 0.02).label
            'thirds 10\u202f% (2\u202f% changed)'
        """
        reached = "" if self.reached is None else f" ({self.changed} changed)"
        way = f", by {self.objective}" if self.objective else ""
        return f"{self.noise} {self.rate}{reached}{way}"


def corrupted(models: Sequence[str], noises: Mapping[str, NoiseFacts]) -> list[Corrupted]:
    """Return every network trained on corrupted labels, by kind and by what was asked for.

    Args:
        models: Names in the rows.
        noises: What the run says about the labels of its networks.
    """
    found = [Corrupted.of(model, noises[model]) for model in models if model in noises]
    first = {kind: i for i, kind in reversed(list(enumerate(c.kind for c in found)))}
    return sorted(found, key=lambda c: (c.base, first[c.kind], c.asked is None, c.asked or 0.0))


def kinds(models: Sequence[Corrupted]) -> list[str]:
    """Return the kinds of noise, in order."""
    return list(dict.fromkeys(c.kind for c in models))

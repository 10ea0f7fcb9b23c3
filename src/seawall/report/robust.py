"""What an adversary does to a model: curves over eps, the worst case, winners, area, bands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from seawall.metrics.worst_case import worst_ratio
from seawall.records import Record
from seawall.report.book import CLEAN, WORST, Book, Count, Setup
from seawall.report.words import Budget


@dataclass(frozen=True)
class Attacked:
    """One model under one family of threats: the same norm and unit, several sizes.

    Args:
        book: The records.
        model: Name of the model.
        budgets: Sizes of the family, smallest first.
        methods: Attacks that were run, in the order of the file.
    """

    book: Book
    model: str
    budgets: tuple[Budget, ...]
    methods: tuple[str, ...]

    @property
    def unit(self) -> str:
        """Unit of the sizes, as a reader says it."""
        return self.budgets[0].unit

    @property
    def name(self) -> str:
        """The family as a reader says it."""
        return self.budgets[0].name

    def setup(self, method: str, size: Budget) -> Setup:
        """Return the key of one attack at one size."""
        return (self.model, method, size.text)

    def chosen(self, size: Budget) -> list[tuple[Setup, Count]]:
        """Return each chip's counts under the choice of attacks that makes the pooled IoU smallest, clean included."""
        setups = [(self.model, *CLEAN), *(self.setup(method, size) for method in self.methods)]
        piles = [self.book.counts(setup) for setup in setups]
        chips = sorted(set().union(*piles))
        there = np.array([[chip in pile for chip in chips] for pile in piles])
        tp, union = (
            np.array([[getattr(pile[c], part) if c in pile else 0.0 for c in chips] for pile in piles])
            for part in ("tp", "union")
        )
        _, best = worst_ratio(tp, union, there)
        return [(setups[a], piles[a][chip]) for a, chip in zip(best, chips, strict=True)]

    def winners(self, size: Budget) -> Mapping[str, Record]:
        """Return, per chip, the row that says which attack leaves the lowest IoU."""
        place = (self.model, WORST, size.text)
        return {
            r.chip: r
            for r in self.book.rows
            if r.chip and r.metric.startswith("won.") and (r.model, r.method, r.threat) == place
        }


def families(book: Book) -> list[Attacked]:
    """Return every model with every family of threats on all bands, the largest family first."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, list[Budget]]] = {}
    for model, method, threat in book.setups:
        size = book.budget(threat)
        if method in (CLEAN[0], WORST) or not size.norm or size.bands:
            continue
        found.setdefault((model, size.family), {}).setdefault(method, []).append(size)
    made = []
    for (model, _), methods in found.items():
        sizes = sorted({size for some in methods.values() for size in some}, key=lambda b: (b.size, b.text))
        made.append(Attacked(book, model, tuple(sizes), tuple(methods)))
    order = {model: i for i, model in enumerate(book.models)}
    return sorted(made, key=lambda a: (order[a.model], -len(a.budgets) * len(a.methods), a.name))


USUAL = {"reflectance": 0.01, "dB": 0.5}
"""The size that one sentence names, per unit, where it was run."""


def headline(attacked: Attacked) -> Budget:
    """Return the size that one sentence should name: 1 % reflectance or 0.5 dB where it was run, else the largest."""
    for size in attacked.budgets:
        usual = USUAL.get(size.unit)
        if usual is not None and len(set(size.eps)) == 1 and abs(size.size - usual) < 1e-9:
            return size
    return attacked.budgets[-1]


@dataclass(frozen=True)
class BandDamage:
    """How much pooled IoU an adversary takes with one band alone, next to all bands at the same size."""

    band: str
    record: Record
    clean: float
    lost: float
    everything: float | None


def by_band(book: Book, model: str) -> Mapping[tuple[str, Budget], list[BandDamage]]:
    """Return, per attack and budget on all bands, the damage with each band alone."""
    clean = book.value((model, *CLEAN), "iou.pooled", book.klass)
    whole = {
        (method, replace(size, text="")): size
        for _, method, threat in book.setups
        if not (size := book.budget(threat)).bands
    }
    found: dict[tuple[str, Budget], list[BandDamage]] = {}
    for name, method, threat in book.setups:
        size = book.budget(threat)
        row = book.record((model, method, threat), "iou.pooled", book.klass)
        if name != model or len(size.bands) != 1 or clean is None or row is None or row.value is None:
            continue
        everywhere = replace(size, text="", bands=())
        beside = whole.get((method, everywhere))
        full = None if beside is None else book.value((model, method, beside.text), "iou.pooled", book.klass)
        damage = BandDamage(size.bands[0], row, clean, clean - row.value, None if full is None else clean - full)
        found.setdefault((method, beside or everywhere), []).append(damage)
    return found

"""Long rows laid out as arrays: one sheet per model, method and threat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from seawall.figures.ratios import Array, Tally
from seawall.records import Record

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

    def column(self, metric: str) -> Array:
        """Return a per-class metric as (N, K), zero where there is no row."""
        held = self.rows.get(metric, {})
        table = np.zeros((len(self.places), len(self.classes)))
        at = {place: i for i, place in enumerate(self.places)}
        for (group, chip, klass), row in held.items():
            if row.value is not None and klass in self.classes and (group, chip) in at:
                table[at[group, chip], self.classes.index(klass)] = row.value
        return table

    def values(self, metric: str, klass: str = "") -> tuple[tuple[str, ...], Array]:
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

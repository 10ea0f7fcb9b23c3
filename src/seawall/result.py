"""What a verb returns, and how it says what it is doing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from seawall.errors import PartialError, RunError

Row = Mapping[str, str | int | float | None]
Progress = Callable[[str, int, int, str], None]
"""Called as progress(stage, done, total, note)."""
StageProgress = Callable[[int, int, str], None]
"""Called as progress(done, total, note), within one stage."""
MutableRow = dict[str, str | int | float | None]
Failed = Sequence[tuple[str, str]]
"""(item, reason) of items that were left out."""


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""


def of_stage(progress: Progress, stage: str) -> StageProgress:
    """Return the progress of one stage, called as progress(done, total, note)."""

    def step(done: int, total: int, note: str = "") -> None:
        progress(stage, done, total, note)

    return step


@dataclass(frozen=True)
class Result:
    """What a verb returns: facts, a table and what failed; text for people, data for programs.

    Args:
        facts: Named single values, such as paths.
        table: Rows with the same columns.
        failed: (item, reason) of items that were left out.
        done: How many items came out; 0 makes it a failure and no partial success. None: some did.
    """

    facts: Row = field(default_factory=dict)
    table: Sequence[Row] = ()
    failed: Failed = ()
    done: int | None = None

    def data(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "facts": dict(self.facts),
            "table": [dict(row) for row in self.table],
            "failed": [{"item": item, "reason": reason} for item, reason in self.failed],
        }

    def text(self) -> str:
        """Return what a person reads: the table, then the facts, then the failures."""
        lines = _table(self.table)
        width = max((len(name) for name in self.facts), default=0)
        lines += [f"{name:<{width}}  {_cell(value)}" for name, value in self.facts.items()]
        lines += [f"failed: {item}: {reason}" for item, reason in self.failed]
        return "\n".join(lines)

    def check(self) -> None:
        """Raise when something failed.

        Raises:
            PartialError: Some items failed; the rest is done.
            RunError: All of them failed.
        """
        if self.failed and self.done == 0:
            item, reason = self.failed[0]
            several = (
                f"{item}: expected something to be done, got {len(self.failed)} failures; the reasons are listed above"
            )
            raise RunError(reason if len(self.failed) == 1 else several)
        if self.failed:
            raise PartialError(f"{len(self.failed)} item(s) failed, the rest is done; the reasons are listed above")


def _table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    columns = list(rows[0])
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[at]) for line in cells)) for at, column in enumerate(columns)]
    numeric = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            f"{v:>{w}}" if right else f"{v:<{w}}" for v, w, right in zip(values, widths, numeric, strict=True)
        ).rstrip()

    return [line(columns), line(["-" * w for w in widths]), *map(line, cells), ""]


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)

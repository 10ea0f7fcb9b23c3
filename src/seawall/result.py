"""Results of verbs, and the callbacks that report progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from seawall.errors import PartialError, RunError

ResultRow = Mapping[str, str | int | float | None]
Progress = Callable[[str, int, int, str], None]
"""Called as progress(stage, done, total, note)."""
StageProgress = Callable[[int, int, str], None]
"""Called as progress(done, total, note), within one stage."""
MutableRow = dict[str, str | int | float | None]
Failed = Sequence[tuple[str, str]]
"""(item, reason) of items that were left out."""


def no_progress(*_: object) -> None:
    """Report nothing; fits `Progress` and `StageProgress`."""


def stage_progress(progress: Progress, stage: str) -> StageProgress:
    """Return the progress of one stage, called as progress(done, total, note)."""

    def report(done: int, total: int, note: str = "") -> None:
        progress(stage, done, total, note)

    return report


@dataclass(frozen=True)
class Result:
    """What a verb returns: facts, a table and what failed; printed as text or as JSON.

    Args:
        facts: Named single values, such as paths.
        table: Rows with the same columns.
        failed: (item, reason) of items that were left out.
        done: Number of items that succeeded; 0 makes it a failure instead of a partial success. None: at least one.
    """

    facts: ResultRow = field(default_factory=dict)
    table: Sequence[ResultRow] = ()
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
        """Return the text for a terminal: the table, then the facts, then the failures."""
        lines = _format_table(self.table)
        width = max((len(name) for name in self.facts), default=0)
        lines += [f"{name:<{width}}  {_format_cell(value)}" for name, value in self.facts.items()]
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


def _format_table(rows: Sequence[ResultRow]) -> list[str]:
    if not rows:
        return []
    columns = list(rows[0])
    cells = [[_format_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[at]) for line in cells)) for at, column in enumerate(columns)]
    numeric = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]

    def line(values: Sequence[str]) -> str:
        return "  ".join(
            f"{v:>{w}}" if right else f"{v:<{w}}" for v, w, right in zip(values, widths, numeric, strict=True)
        ).rstrip()

    return [line(columns), line(["-" * w for w in widths]), *map(line, cells), ""]


def _format_cell(value: str | int | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)

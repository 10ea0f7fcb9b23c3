"""The robustness card as a table: every attack and the worst case, with cost, wins and flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seawall.figures.aggregate import figures
from seawall.figures.doubts import with_doubts
from seawall.figures.suite import WORST, worst_case
from seawall.records import Record

Row = dict[str, str | int | float | None]
SCORES = ("iou.pooled", "iou.pooled.low", "iou.pooled.high", "iou.per_chip")


def card(rows: Iterable[Record], methods: Sequence[str], threat: str, klass: str) -> list[Row]:
    """Return a row per attack: IoU pooled and per chip, accuracy, passes per chip, seconds, chips won, flags.

    What the interrogation cost stands in a row of its own and in no sum.

    Args:
        rows: Rows with a chip of one recipe and model, clean ones among them.
        methods: Attacks, in the order to show.
        threat: The threat as the rows say it.
        klass: Class of the IoU.
    """
    mine = [r for r in with_doubts(rows) if r.method == "clean" or (r.method in methods and r.threat == threat)]
    worst = worst_case(mine, methods, klass=klass) if len(methods) > 1 else []
    found: dict[tuple[str, str, str], Record] = {}
    for row in (*figures(mine), *worst):
        if not row.chip and not row.group:
            found[row.method, row.metric, row.klass] = row
    table = [_line(found, name, "" if name == "clean" else threat, klass) for name in ("clean", *methods)]
    cost = [r for r in mine if r.metric == "interrogation.passes" and r.value is not None]
    if worst:
        for line, name in zip(table, ("none", *methods), strict=True):
            line["won"] = sum(1 for r in worst if r.chip and r.metric == f"won.{name}")
        total = _line(found, WORST, threat, klass)
        total["passes"] = _sum(line["passes"] for line in table)
        total["seconds"] = _sum(line["seconds"] for line in table)
        total["won"] = None
    if cost:
        table.append(_cost(max(cost, key=lambda r: r.seconds), table[0]))
    return [*table, total] if worst else table


def _cost(row: Record, like: Row) -> Row:
    """Return the line that says what the interrogation took: passes per chip that was asked, and seconds."""
    line: Row = dict.fromkeys(like)
    return line | {
        "method": "interrogation",
        "threat": row.threat,
        "passes": row.value,
        "seconds": row.seconds,
        "flags": "",
    }


def _line(found: dict[tuple[str, str, str], Record], name: str, threat: str, klass: str) -> Row:
    def value(metric: str, of: str = "") -> float | None:
        row = found.get((name, metric, of))
        return row.value if row else None

    pooled, pixels = found.get((name, "iou.pooled", klass)), found.get((name, "pixels", ""))
    return {
        "method": name,
        "threat": threat,
        **{metric: value(metric, klass) for metric in SCORES},
        "accuracy": value("accuracy.pooled"),
        "passes": value("passes"),
        "seconds": pixels.seconds if pixels and name != "clean" else None,
        "flags": ", ".join(pooled.flags) if pooled else "",
    }


def _sum(values: Iterable[str | int | float | None]) -> float | None:
    known = [v for v in values if isinstance(v, int | float)]
    return sum(known) if known else None

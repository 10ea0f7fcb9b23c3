"""The robustness card: a table of every attack and the worst case, with cost, wins and flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.consistency import with_consistency_flags
from seawall.metrics.worst_case import WORST, worst_case
from seawall.records import Record
from seawall.result import MutableRow

CARD_METRICS = ("iou.pooled", "iou.pooled.low", "iou.pooled.high", "iou.per_chip")


def robustness_card(rows: Iterable[Record], methods: Sequence[str], threat: str, klass: str) -> list[MutableRow]:
    """Return a row per attack: IoU pooled and per chip, accuracy, passes per chip, seconds, chips won, flags.

    The cost of the sanity checks has a row of its own, and is in no sum.

    Args:
        rows: Rows with a chip of one recipe and model, clean ones among them.
        methods: Attacks, in the order to show.
        threat: The threat as text, as in the records.
        klass: Class of the IoU.
    """
    mine = [
        r for r in with_consistency_flags(rows) if r.method == "clean" or (r.method in methods and r.threat == threat)
    ]
    worst = worst_case(mine, methods, klass=klass) if len(methods) > 1 else []
    found: dict[tuple[str, str, str], Record] = {}
    for row in (*aggregate_records(mine), *worst):
        if not row.chip and not row.group:
            found[row.method, row.metric, row.klass] = row
    table = [_card_row(found, name, "" if name == "clean" else threat, klass) for name in ("clean", *methods)]
    cost = [r for r in mine if r.metric == "sanity_checks.passes" and r.value is not None]
    if worst:
        for line, name in zip(table, ("none", *methods), strict=True):
            line["won"] = sum(1 for r in worst if r.chip and r.metric == f"won.{name}")
        total = _card_row(found, WORST, threat, klass)
        total["passes"] = _sum_known(line["passes"] for line in table)
        total["seconds"] = _sum_known(line["seconds"] for line in table)
        total["won"] = None
    if cost:
        table.append(_sanity_cost_row(max(cost, key=lambda r: r.seconds), table[0]))
    return [*table, total] if worst else table


def _sanity_cost_row(row: Record, like: MutableRow) -> MutableRow:
    """Return the row with the cost of the sanity checks: passes per checked chip, and seconds."""
    line: MutableRow = dict.fromkeys(like)
    return line | {
        "method": "sanity checks",
        "threat": row.threat,
        "passes": row.value,
        "seconds": row.seconds,
        "flags": "",
    }


def _card_row(found: dict[tuple[str, str, str], Record], name: str, threat: str, klass: str) -> MutableRow:
    def value(metric: str, of: str = "") -> float | None:
        row = found.get((name, metric, of))
        return row.value if row else None

    pooled, pixels = found.get((name, "iou.pooled", klass)), found.get((name, "pixels", ""))
    return {
        "method": name,
        "threat": threat,
        **{metric: value(metric, klass) for metric in CARD_METRICS},
        "accuracy": value("accuracy.pooled"),
        "passes": value("passes"),
        "seconds": pixels.seconds if pixels and name != "clean" else None,
        "flags": ", ".join(pooled.flags) if pooled else "",
    }


def _sum_known(values: Iterable[str | int | float | None]) -> float | None:
    known = [v for v in values if isinstance(v, int | float)]
    return sum(known) if known else None

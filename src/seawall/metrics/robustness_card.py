"""The robustness card as a table: every attack and the worst case, with cost, wins and flags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from seawall.metrics.aggregate import figures
from seawall.metrics.worst_case import WORST, worst_case
from seawall.records import Record
from seawall.result import MutableRow

SCORES = ("iou.pooled", "iou.pooled.low", "iou.pooled.high", "iou.per_chip")


def card(rows: Iterable[Record], methods: Sequence[str], threat: str, klass: str) -> list[MutableRow]:
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


def _cost(row: Record, like: MutableRow) -> MutableRow:
    """Return the line that says what the interrogation took: passes per chip that was asked, and seconds."""
    line: MutableRow = dict.fromkeys(like)
    return line | {
        "method": "interrogation",
        "threat": row.threat,
        "passes": row.value,
        "seconds": row.seconds,
        "flags": "",
    }


def _line(found: dict[tuple[str, str, str], Record], name: str, threat: str, klass: str) -> MutableRow:
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


Setup = tuple[str, str, str, str]
"""Recipe, model, method and threat."""

Chips = Mapping[str, tuple[float, float]]
"""Right and valid pixels by chip."""

NOISE, BLACK_BOX, TRANSFER = frozenset({"random"}), frozenset({"square"}), frozenset({"transfer"})
SLACK = 0.002
"""Accuracy by which one attack must beat another; below it, two runs differ by chance."""


def doubts(rows: Iterable[Record]) -> Mapping[Setup, tuple[str, ...]]:
    """Return the flags of each setup that follow from comparing attacks by pooled pixel accuracy.

    `weaker-than-noise`: random noise did more. `black-box-wins` and `transfer-wins`: square or transfer beat every
    attack with gradients. `not-monotone`: the same attack did less under a threat that allows more: no band has less
    budget, and some band more. Only chips that both attacks of a comparison were run on count.

    Args:
        rows: Rows with a chip, such as `evaluate` writes.
    """
    found: dict[Setup, tuple[str, ...]] = {}
    right, told = _right(rows)
    for setup, chips in right.items():
        if not any(told[setup].eps):
            continue
        recipe, model, method, threat = setup
        rivals = {s[2]: right[s] for s in right if (s[0], s[1], s[3]) == (recipe, model, threat)}
        mine = _beaten(method, rivals)
        smaller = [s for s in right if s[:3] == setup[:3] and told[s].adversary.allows_less(told[setup].adversary)]
        if method not in NOISE and any(_beats(right[s], chips) for s in smaller):
            mine = (*mine, "not-monotone")
        if mine:
            found[setup] = mine
    return found


def _beaten(method: str, rivals: Mapping[str, Chips]) -> tuple[str, ...]:
    """Return the flags of a method that attacks without gradients beat under the same threat."""
    mine: list[str] = []
    if method not in NOISE and any(_beats(rivals[n], rivals[method]) for n in NOISE & rivals.keys()):
        mine.append("weaker-than-noise")
    if method not in NOISE | BLACK_BOX | TRANSFER:
        white = [held for name, held in rivals.items() if name not in NOISE | BLACK_BOX | TRANSFER]
        for flag, names in (("black-box-wins", BLACK_BOX), ("transfer-wins", TRANSFER)):
            if any(all(_beats(rivals[n], held) for held in white) for n in names & rivals.keys()):
                mine.append(flag)
    return tuple(mine)


def with_doubts(rows: Iterable[Record]) -> list[Record]:
    """Return the rows with the flags of `doubts` added to those that they carry."""
    held = list(rows)
    extra = doubts(held)
    return [
        replace(row, flags=tuple(dict.fromkeys((*row.flags, *more))))
        if (more := extra.get((row.recipe, row.model, row.method, row.threat))) and row.chip
        else row
        for row in held
    ]


def _right(rows: Iterable[Record]) -> tuple[dict[Setup, Chips], dict[Setup, Record]]:
    """Return right and valid pixels of each chip under each setup, and a row of each setup that holds its threat."""
    right: dict[Setup, dict[str, list[float]]] = {}
    told: dict[Setup, Record] = {}
    for row in rows:
        if row.chip and row.method != "clean" and row.metric in ("tp", "pixels") and row.value is not None:
            setup = (row.recipe, row.model, row.method, row.threat)
            told.setdefault(setup, row)
            chip = right.setdefault(setup, {}).setdefault(row.chip, [0.0, 0.0])
            chip[row.metric == "pixels"] += row.value
    return {setup: {c: (a, b) for c, (a, b) in chips.items()} for setup, chips in right.items()}, told


def _beats(strong: Chips, weak: Chips) -> bool:
    shared = strong.keys() & weak.keys()
    pixels = sum(weak[chip][1] for chip in shared)
    return pixels > 0 and sum(weak[c][0] - strong[c][0] for c in shared) > SLACK * pixels

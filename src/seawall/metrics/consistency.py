"""Consistency checks: flags of attacks that another attack, or a smaller budget, beats, and of corruptions that a smaller severity beats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from seawall.records import Record

SetupKey = tuple[str, str, str, str]
"""Recipe, model, method and threat."""

RightPixels = Mapping[str, tuple[float, float]]
"""Right and valid pixels by chip."""

NOISE, BLACK_BOX, TRANSFER = frozenset({"random"}), frozenset({"square"}), frozenset({"transfer"})
ACCURACY_MARGIN = 0.002
"""Accuracy by which one attack must beat another; below it, two runs differ by chance."""
SEVERITY_MARGIN = 0.01
"""Accuracy by which a smaller severity must do more harm; corruptions are random, and need not be as steady as attacks."""


def consistency_flags(rows: Iterable[Record]) -> Mapping[SetupKey, tuple[str, ...]]:
    """Return the flags of each setup that follow from comparing attacks and severities by pooled pixel accuracy.

    `weaker-than-noise`: random noise lowered the accuracy more. `black-box-wins` and `transfer-wins`: square or transfer beat every
    attack with gradients. `not-monotone`: the same attack lowered the accuracy less under a threat that allows more: no band has less
    budget, and some band more. Only chips that both attacks of a comparison were run on count. `milder-when-severe`: a corruption at a
    smaller severity lowered the accuracy more, by over `SEVERITY_MARGIN`; accuracy is of the pixels that each severity leaves valid.

    Args:
        rows: Rows with a chip, such as `evaluate_model` writes.
    """
    found: dict[SetupKey, tuple[str, ...]] = {}
    right, first_record = _right_pixels(rows)
    for setup, chips in right.items():
        if first_record[setup].severity is not None:
            weaker = [s for s in right if s[:3] == setup[:3] and _is_less_severe(first_record[s], first_record[setup])]
            if any(_accuracy(right[s]) < _accuracy(chips) - SEVERITY_MARGIN for s in weaker):
                found[setup] = ("milder-when-severe",)
            continue
        if not any(first_record[setup].eps):
            continue
        recipe, model, method, threat = setup
        rivals = {s[2]: right[s] for s in right if (s[0], s[1], s[3]) == (recipe, model, threat)}
        mine = _beaten(method, rivals)
        smaller = [
            s
            for s in right
            if s[:3] == setup[:3] and first_record[s].adversary.allows_less(first_record[setup].adversary)
        ]
        if method not in NOISE and any(_beats(right[s], chips) for s in smaller):
            mine = (*mine, "not-monotone")
        if mine:
            found[setup] = mine
    return found


def _is_less_severe(record: Record, other: Record) -> bool:
    return record.severity is not None and other.severity is not None and record.severity < other.severity


def _accuracy(chips: RightPixels) -> float:
    pixels = sum(valid for _, valid in chips.values())
    return sum(right for right, _ in chips.values()) / pixels if pixels else float("nan")


def _beaten(method: str, rivals: Mapping[str, RightPixels]) -> tuple[str, ...]:
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


def with_consistency_flags(rows: Iterable[Record]) -> list[Record]:
    """Return the rows with the flags of `consistency_flags` added to their own."""
    held = list(rows)
    extra = consistency_flags(held)
    return [
        replace(row, flags=tuple(dict.fromkeys((*row.flags, *more))))
        if (more := extra.get((row.recipe, row.model, row.method, row.threat))) and row.chip
        else row
        for row in held
    ]


def _right_pixels(rows: Iterable[Record]) -> tuple[dict[SetupKey, RightPixels], dict[SetupKey, Record]]:
    """Return right and valid pixels of each chip under each setup, and a row of each setup that holds its threat."""
    right: dict[SetupKey, dict[str, list[float]]] = {}
    first_record: dict[SetupKey, Record] = {}
    for row in rows:
        if row.chip and row.method != "clean" and row.metric in ("tp", "pixels") and row.value is not None:
            setup = (row.recipe, row.model, row.method, row.threat)
            first_record.setdefault(setup, row)
            chip = right.setdefault(setup, {}).setdefault(row.chip, [0.0, 0.0])
            chip[row.metric == "pixels"] += row.value
    return {setup: {c: (a, b) for c, (a, b) in chips.items()} for setup, chips in right.items()}, first_record


def _beats(strong: RightPixels, weak: RightPixels) -> bool:
    shared = strong.keys() & weak.keys()
    pixels = sum(weak[chip][1] for chip in shared)
    return pixels > 0 and sum(weak[c][0] - strong[c][0] for c in shared) > ACCURACY_MARGIN * pixels

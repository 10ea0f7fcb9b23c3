"""What the rows of several attacks say against each other: flags that no single attack can raise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from seawall.records import Record

Setup = tuple[str, str, str, str]
"""Recipe, model, method and threat."""

NOISE, BLACK_BOX, TRANSFER = frozenset({"random"}), frozenset({"square"}), frozenset({"transfer"})
SLACK = 0.002
"""Accuracy by which one attack must beat another; below it, two runs differ by chance."""


def doubts(rows: Iterable[Record]) -> Mapping[Setup, tuple[str, ...]]:
    """Return the flags of each setup that follow from comparing attacks by pooled pixel accuracy.

    `weaker-than-noise`: random noise did more. `black-box-wins` and `transfer-wins`: square or transfer beat every
    attack with gradients. `not-monotone`: the same attack did less at a larger budget of the same threat. Only chips
    that both attacks of a comparison were run on count.

    Args:
        rows: Rows with a chip, such as `evaluate` writes.
    """
    found: dict[Setup, list[str]] = {}
    right = _right(rows)
    for setup, chips in right.items():
        recipe, model, method, threat = setup
        if not _budget(threat):
            continue
        rivals = {s[2]: right[s] for s in right if (s[0], s[1], s[3]) == (recipe, model, threat)}
        mine: list[str] = []
        if method not in NOISE and any(_beats(rivals[n], chips) for n in NOISE & rivals.keys()):
            mine.append("weaker-than-noise")
        if method not in NOISE | BLACK_BOX | TRANSFER:
            white = [held for name, held in rivals.items() if name not in NOISE | BLACK_BOX | TRANSFER]
            for flag, names in (("black-box-wins", BLACK_BOX), ("transfer-wins", TRANSFER)):
                if any(all(_beats(rivals[n], held) for held in white) for n in names & rivals.keys()):
                    mine.append(flag)
        smaller = [s for s in right if s[:3] == setup[:3] and _less(s[3], threat)]
        if method not in NOISE and any(_beats(right[s], chips) for s in smaller):
            mine.append("not-monotone")
        if mine:
            found[setup] = mine
    return {setup: tuple(flags) for setup, flags in found.items()}


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


Chips = Mapping[str, tuple[float, float]]


def _right(rows: Iterable[Record]) -> dict[Setup, dict[str, tuple[float, float]]]:
    """Right pixels and valid pixels of each chip under each setup."""
    right: dict[Setup, dict[str, list[float]]] = {}
    for row in rows:
        if row.chip and row.method != "clean" and row.metric in ("tp", "pixels") and row.value is not None:
            chip = right.setdefault((row.recipe, row.model, row.method, row.threat), {}).setdefault(
                row.chip, [0.0, 0.0]
            )
            chip[row.metric == "pixels"] += row.value
    return {setup: {c: (a, b) for c, (a, b) in chips.items()} for setup, chips in right.items()}


def _beats(strong: Chips, weak: Chips) -> bool:
    shared = strong.keys() & weak.keys()
    pixels = sum(weak[chip][1] for chip in shared)
    return pixels > 0 and sum(weak[c][0] - strong[c][0] for c in shared) > SLACK * pixels


def _budget(threat: str) -> tuple[float, str] | None:
    """Return the size of a threat and everything else that it says; None where it is no threat of one size."""
    form = re.fullmatch(r"(linf|l2|haze|speckle) ([0-9.e-]+)(.*)", threat)
    return (float(form[2]), f"{form[1]}{form[3]}") if form else None


def _less(small: str, large: str) -> bool:
    a, b = _budget(small), _budget(large)
    return a is not None and b is not None and a[1] == b[1] and a[0] < b[0]

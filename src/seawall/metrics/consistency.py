"""Consistency checks: flags of attacks that another attack, or a smaller budget, beats, and of corruptions that a smaller severity beats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from seawall.records import Record

SetupKey = tuple[str, str, str, str]
"""Recipe, model, method and threat."""

RightPixels = Mapping[str, tuple[float, float]]
"""Right and valid pixels by chip."""

NOISE, BLACK_BOX = frozenset({"random"}), frozenset({"square", "black-box"})
TRANSFER = frozenset({"transfer", "transfer-plain", "transfer-other-key", "guessed-keys"})
ACCURACY_MARGIN = 0.002
"""Accuracy by which one attack must beat another; below it, two runs differ by chance."""
SEVERITY_MARGIN = 0.01
"""mIoU by which a smaller severity must do more harm; corruptions are random, and need not be as steady as attacks."""


def consistency_flags(rows: Iterable[Record]) -> Mapping[SetupKey, tuple[str, ...]]:
    """Return the flags of each setup that follow from comparing attacks by pooled pixel accuracy, and severities by pooled mIoU.

    `weaker-than-noise`: random noise lowered the accuracy more. `black-box-wins` and `transfer-wins`: square or transfer beat every
    attack with gradients. `not-monotone`: the same attack lowered the accuracy less under a threat that allows more: no band has less
    budget, and some band more. Only chips that both attacks of a comparison were run on count. `milder-when-severe`: a corruption at a
    smaller severity lowered the mIoU more, by over `SEVERITY_MARGIN`.

    Args:
        rows: Rows with a chip, such as `evaluate_model` writes.
    """
    held = list(rows)
    found: dict[SetupKey, tuple[str, ...]] = dict.fromkeys(_milder_when_severe(held), ("milder-when-severe",))
    right, first_record = _right_pixels(held)
    for setup, chips in right.items():
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


def _milder_when_severe(rows: Iterable[Record]) -> Iterator[SetupKey]:
    """Yield the setups of corruptions that left a clearly higher mIoU than a smaller severity did."""
    counts: dict[SetupKey, dict[tuple[str, str], float]] = {}
    severity: dict[SetupKey, float] = {}
    for row in rows:
        if row.severity is not None and row.chip and row.metric in ("tp", "fp", "fn"):
            setup = (row.recipe, row.model, row.method, row.threat)
            severity[setup] = row.severity
            of_class = counts.setdefault(setup, {})
            of_class[row.klass, row.metric] = of_class.get((row.klass, row.metric), 0.0) + (row.value or 0.0)
    score = {setup: _mean_iou(of_class) for setup, of_class in counts.items()}
    for setup in score:
        smaller = [score[s] for s in score if s[:3] == setup[:3] and severity[s] < severity[setup]]
        if smaller and min(smaller) < score[setup] - SEVERITY_MARGIN:
            yield setup


def _mean_iou(counts: Mapping[tuple[str, str], float]) -> float:
    classes = {klass for klass, _ in counts}
    parts = [[counts.get((klass, metric), 0.0) for metric in ("tp", "fp", "fn")] for klass in sorted(classes)]
    defined = [part[0] / sum(part) for part in parts if sum(part)]
    return sum(defined) / len(defined) if defined else float("nan")


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

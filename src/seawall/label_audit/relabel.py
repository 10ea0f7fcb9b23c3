"""Automatic relabelling in rounds: judge, mend the labels that are surely wrong, judge again, and know when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seawall.errors import UsageError
from seawall.label_audit.confident_learning import Opinion, suspect

Labels = Mapping[str, NDArray[np.int64]]
Judge = Callable[[Labels], Callable[[], Iterable[Opinion]]]
"""From labels to opinions of models that were trained on them, each about chips that it has not seen."""

Why = Literal["settled", "worse", "budget", "rounds"]


@dataclass(frozen=True)
class Round:
    """One round.

    Args:
        issues: Wrong pixels as estimated before mending.
        mended: Pixels that were changed in this round.
        share: Changed share of the valid pixels, against the labels as they were given.
    """

    issues: int
    mended: int
    share: float


@dataclass(frozen=True)
class Mended:
    """The labels in the end.

    Args:
        labels: Chip to label (H, W).
        rounds: What was done.
        why: "settled": next to nothing was left to mend. "worse": the models contradicted the mended labels more
            than the ones before, which are returned. "budget": more would have changed than may. "rounds": all
            rounds were done.
    """

    labels: dict[str, NDArray[np.int64]]
    rounds: tuple[Round, ...]
    why: Why


def mend(
    labels: Labels,
    judge: Judge,
    classes: int,
    *,
    rounds: int = 3,
    sure: float = 0.9,
    settled: float = 0.001,
    budget: float = 0.3,
) -> Mended:
    """Relabel pixels that confident learning suspects and whose other class the model is sure of, round by round.

    Relabelling feeds on its own output, so it stops by rules that need no clean label.

    Args:
        labels: Chip to label (H, W), meaningless where not valid.
        judge: Trains on labels and returns opinions, such as by `kfold_groups`; called once per round.
        classes: K.
        rounds: At most so many.
        sure: Least probability of the new class.
        settled: Stop when fewer than this share of the valid pixels would change.
        budget: Largest share of the valid pixels that may differ from the labels as given.

    Raises:
        UsageError: A share is out of range.
    """
    if rounds < 1 or not 0 <= sure <= 1 or not 0 <= settled <= 1 or not 0 <= budget <= 1:
        raise UsageError(
            f"relabel: expected rounds of at least 1 and shares in [0, 1], got {rounds}, {sure}, {settled}, {budget}; fix them"
        )
    given = {chip: label.copy() for chip, label in labels.items()}
    now = {chip: label.copy() for chip, label in labels.items()}
    before, done = now, list[Round]()
    for _ in range(rounds):
        opinions = judge(now)
        found = suspect(opinions, classes)
        if done and found.issues > done[-1].issues:
            return Mended(before, tuple(done), "worse")
        new, mended, changed, valid = dict(now), 0, 0, 0
        for opinion in opinions():
            fix = found.find(opinion) & (opinion.probs.max(0) >= sure)
            label = np.where(fix, opinion.probs.argmax(0), now[opinion.chip]).astype(np.int64)
            new[opinion.chip] = label
            mended += int(np.count_nonzero(fix))
            changed += int(np.count_nonzero((label != given[opinion.chip]) & opinion.valid))
            valid += len(opinion.given)
        if valid and changed / valid > budget:
            return Mended(now, tuple(done), "budget")
        before, now = now, new
        done.append(Round(found.issues, mended, changed / valid if valid else 0.0))
        if mended <= settled * valid:
            return Mended(now, tuple(done), "settled")
    return Mended(now, tuple(done), "rounds")

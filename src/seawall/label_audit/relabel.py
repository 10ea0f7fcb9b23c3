"""Automatic relabelling in rounds: predict out of sample, change the labels that are surely wrong, and repeat until a rule stops it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder
from seawall.data.raw_chips import sha256_text
from seawall.data.writer import ChipWriter
from seawall.errors import UsageError
from seawall.io import RunLock
from seawall.label_audit.confident_learning import OutOfSample, find_label_issues
from seawall.label_audit.cross_validation import FoldTraining, cross_validate, label_planes, read_predictions
from seawall.result import MutableRow, Progress

LabelsByChip = Mapping[str, NDArray[np.int64]]
CrossValidate = Callable[[LabelsByChip], Callable[[], Iterable[OutOfSample]]]
"""From labels to out-of-sample predictions of models that were trained on these labels."""

ROUNDS = 3
"""Largest number of rounds."""

StopReason = Literal["settled", "worse", "budget", "rounds"]


@dataclass(frozen=True)
class RelabelRound:
    """One round of relabelling.

    Args:
        issues: Wrong pixels as estimated before the round.
        changed: Pixels that were changed in this round.
        share: Changed share of the valid pixels, against the labels as they were given.
    """

    issues: int
    changed: int
    share: float


@dataclass(frozen=True)
class RelabelResult:
    """The labels after the last round.

    Args:
        labels: Chip to label (H, W).
        rounds: The rounds that were kept.
        stop_reason: "settled": almost no pixel would change. "worse": the models contradicted the new labels more than
            the ones before, which are returned. "budget": more pixels would have changed than allowed. "rounds": the
            number of rounds was reached.
    """

    labels: dict[str, NDArray[np.int64]]
    rounds: tuple[RelabelRound, ...]
    stop_reason: StopReason


def relabel_in_rounds(
    labels: LabelsByChip,
    predict: CrossValidate,
    classes: int,
    *,
    rounds: int = ROUNDS,
    sure: float = 0.9,
    settled: float = 0.001,
    budget: float = 0.3,
) -> RelabelResult:
    """Relabel the pixels that are label issues and whose predicted class has a high probability, round by round.

    The models of a round are trained on the labels of the round before, so the stopping rules need no clean label.

    Args:
        labels: Chip to label (H, W), meaningless where not valid.
        predict: Trains on labels and returns out-of-sample predictions, such as `cross_validate`; called once per round.
        classes: Number of classes.
        rounds: Largest number of rounds.
        sure: Smallest probability of the new class.
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
    before, done = now, list[RelabelRound]()
    for _ in range(rounds):
        samples = predict(now)
        found = find_label_issues(samples, classes)
        if done and found.issues > done[-1].issues:
            return RelabelResult(before, tuple(done), "worse")
        new, changed, differ, valid = dict(now), 0, 0, 0
        for sample in samples():
            fix = found.mask(sample) & (sample.probs.max(0) >= sure)
            label = np.where(fix, sample.probs.argmax(0), now[sample.chip]).astype(np.int64)
            new[sample.chip] = label
            changed += int(np.count_nonzero(fix))
            differ += int(np.count_nonzero((label != given[sample.chip]) & sample.valid))
            valid += len(sample.given)
        if valid and differ / valid > budget:
            return RelabelResult(now, tuple(done), "budget")
        before, now = now, new
        done.append(RelabelRound(found.issues, changed, differ / valid if valid else 0.0))
        if changed <= settled * valid:
            return RelabelResult(now, tuple(done), "settled")
    return RelabelResult(now, tuple(done), "rounds")


def relabel_chips(
    folder: ChipFolder,
    out: Path,
    work: Path,
    predictions: Mapping[str, Path],
    settings: FoldTraining | None,
    progress: Progress,
) -> MutableRow:
    """Write a chip folder in which labels that are surely wrong are changed; images are copied as they are.

    Args:
        folder: The chips; they stay as they are.
        out: The new folder. Chips that are there and whole are not written again.
        work: Gets the folds of the later rounds.
        predictions: File with the out-of-sample probabilities of each chip, trained on the labels of `folder`.
        settings: How the folds of the later rounds are trained; None for a single round with these predictions.
        progress: Called as the work goes on.

    Returns:
        The folder, the share of the valid pixels that changed, the rounds, and why they ended.

    Raises:
        UsageError: `out` is the folder itself.
        DataError: `out` has other chips.
    """
    if out.resolve() == folder.root.resolve():
        raise UsageError(
            f"relabel: expected another folder than {folder.root} to write to, got the same; choose another"
        )
    given = {id_: folder.read(id_).label for id_ in folder.ids}

    def predict(labels: LabelsByChip) -> Callable[[], Iterable[OutOfSample]]:
        files = predictions
        if settings is not None and any(not np.array_equal(labels[id_], given[id_]) for id_ in given):
            files = cross_validate(folder, work, settings, progress, label_planes(folder, labels))[0]
        return lambda: read_predictions(folder, files, labels)

    rounds = relabel_in_rounds(given, predict, len(folder.classes), rounds=1 if settings is None else ROUNDS)
    planes = label_planes(folder, rounds.labels)
    pixels = 0
    with RunLock(out):
        writer = ChipWriter(out, folder.header)
        for done, id_ in enumerate(folder.ids):
            progress("relabel", done, len(folder.ids), id_)
            changed = int(np.count_nonzero((rounds.labels[id_] != given[id_]) & (planes[id_] != IGNORE)))
            pixels += changed
            row = folder.row(id_)
            digest = sha256_text(row.sha256, row.label_sha256, hashlib.sha256(planes[id_].tobytes()).hexdigest())
            if not writer.is_complete(id_, digest):
                note = (f"{changed} pixels relabelled by confident learning",) if changed else ()
                writer.relabel(folder, id_, planes[id_], note, source_sha256=digest)
        writer.finish(folder.ids)
    progress("relabel", len(folder.ids), len(folder.ids), "")
    share = rounds.rounds[-1].share if rounds.rounds else 0.0
    return {
        "relabelled": str(out), "relabelled_px": pixels, "relabelled_share": share, "relabel_rounds": len(rounds.rounds),
        "relabel_stop": rounds.stop_reason,
    }  # fmt: skip

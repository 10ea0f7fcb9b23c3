"""Find wrong labels in a chip folder: out-of-sample predictions, confident learning, a ranked list, a contact sheet."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from seawall.data.chip_format import IGNORE, encode_label
from seawall.data.chips import ChipFolder
from seawall.data.selection import SEEN_IN_TRAINING, select_chips
from seawall.errors import DataError, UsageError
from seawall.io import RunLock, escape_formulas, write_atomic
from seawall.label_audit.confident_learning import (
    LabelIssues,
    OutOfSample,
    combined_evidence,
    compare_second_source,
    find_label_issues,
    softmin,
    tail_evidence,
)
from seawall.label_audit.contact_sheet import ContactCard, write_contact_sheet
from seawall.label_audit.cross_validation import FoldTraining, cross_validate, read_predictions, write_predictions
from seawall.label_audit.relabel import relabel_chips
from seawall.label_audit.training_dynamics import ChipDynamics
from seawall.labels.registration import label_shift
from seawall.labels.rules import LabelRule, parse_rule
from seawall.models.weights import load_model, read_spec, split_of
from seawall.result import Failed, MutableRow, Progress
from seawall.types import single_unit

SUSPECT_COLUMNS = (
    "rank",
    "chip",
    "group",
    "evidence",
    "evidence_issues",
    "evidence_shift",
    "evidence_learning",
    "issue_share",
    "issues_px",
    "quality",
    "loss",
    "train_loss",
    "aum",
    "shift_gain",
    "shift_rows",
    "shift_cols",
    "rule_agreement",
    "witness_px",
    "witness_share",
    "valid_px",
)

EVIDENCE_COLUMNS = ("evidence_issues", "evidence_shift", "evidence_learning")
"""Evidence against a label: by its pixels, by a move of the whole label, by how it was learned."""

MAX_SHIFT_PX = 8
"""Farthest move of a label that is compared with the prediction, in pixels along each axis."""


def audit_chips(
    chips: Path, out: Path, *, weights: Path | None, folds: int, model: str, epochs: int, rule: str, worst: int, seed: int,
    device: str, progress: Progress, relabel: Path | None = None,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Rank the chips of a folder by how wrong their labels look; write the list, the sheet and the suspect pixels.

    Args:
        chips: The chip folder; it stays as it is.
        out: Gets the results, and the folds' weights and predictions.
        weights: A model that was not trained on these chips; None trains one per fold of groups.
        folds: Number of folds.
        model: Registered network of the folds.
        epochs: Passes over the chips of each fold's model.
        rule: Label rule to compare with, such as "mndwi > 0"; empty for none.
        worst: Chips on the contact sheet.
        seed: Seed of folds and training.
        device: auto, cpu, cuda or mps.
        progress: Called as the work goes on.
        relabel: Folder to write the chips to with the labels changed that are surely wrong: in up to three rounds of
            folds, or in one round of `weights`. None changes nothing.

    Returns:
        Facts, the rows of the contact sheet, and nothing failed.

    Raises:
        UsageError: A number is out of range, or `relabel` is the chip folder.
        DataError: There are no chips, or fewer groups than folds.
    """
    if worst < 1 or epochs < 1:
        raise UsageError(f"audit-labels: expected worst and epochs of at least 1, got {worst} and {epochs}; raise them")
    folder = ChipFolder.open(chips)
    if not len(folder):
        raise DataError(f"{chips}: expected chips, got none; curate some")
    second = parse_rule(rule) if rule else None
    if second is not None and folder.header.water is None:
        raise UsageError(
            f"rule: expected chips with the class water, got {', '.join(folder.classes)}; an index says nothing about them"
        )
    if relabel is not None and relabel.resolve() in (chips.resolve(), out.resolve()):
        raise UsageError(f"relabel: expected a folder apart from {chips} and {out}, got {relabel}; choose another")
    seen: frozenset[str] = frozenset()
    settings = FoldTraining(model, folds, epochs, seed, device) if weights is None else None
    relabelled: MutableRow = {}
    with RunLock(out):
        dynamics: dict[str, ChipDynamics] = {}
        if settings is not None:
            predictions, dynamics = cross_validate(folder, out, settings, progress)
        else:
            folder = folder.as_seen_by(read_spec(cast(Path, weights)).bands)
            net = load_model(cast(Path, weights), bands=folder.bands, classes=folder.classes, unit=folder.unit)
            predictions = write_predictions(net, folder, folder.ids, out, device)
            seen = select_chips(folder, split_of(net), "all").seen
        found = find_label_issues(lambda: read_predictions(folder, predictions), len(folder.classes))
        rows = _rank_rows(
            [
                _audit_chip(folder, found, sample, second, dynamics.get(sample.chip), out)
                for sample in read_predictions(folder, predictions)
            ]
        )
        _write_ranking(out, folder, found, rows)
        sheet = _write_worst(folder, predictions, found, rows[:worst], out)
        if relabel is not None:
            relabelled = relabel_chips(folder, relabel, out, predictions, settings, progress)
    facts: MutableRow = {
        "list": str(out / "suspects.csv"), "sheet": str(sheet), "picture": str(out / "sheet.png"), "pixels": str(out / "suspects"), "chips": len(rows),
        "suspect_px": sum(int(row["issues_px"] or 0) for row in rows), "issues_estimated": found.issues,
        **{
            f"{was} labelled {given}": float(found.transition()[i, j])
            for i, was in enumerate(folder.classes) for j, given in enumerate(folder.classes) if i != j
        },
    }  # fmt: skip
    if seen:
        known = f"{len(seen)} of {len(folder)} chips: a network rarely contradicts labels that it was trained on; leave out --weights to train per fold"
        facts[f"flag {SEEN_IN_TRAINING}"] = known
    return facts | relabelled, rows[:worst], ()


def _audit_chip(
    folder: ChipFolder,
    found: LabelIssues,
    sample: OutOfSample,
    rule: LabelRule | None,
    dynamics: ChipDynamics | None,
    out: Path,
) -> MutableRow:
    """Return a chip's row, and write its suspect pixels as a GeoTIFF: 1 suspect, 0 not, 255 without a label."""
    wrong = found.mask(sample)
    marks = np.where(sample.valid, wrong, IGNORE).astype(np.uint8)
    write_atomic(out / "suspects" / f"{sample.chip}.tif", encode_label(marks, folder.row(sample.chip).grid).data)
    valid = len(sample.given)
    row: MutableRow = {
        "chip": sample.chip, "group": folder.row(sample.chip).group, "valid_px": valid,
        "evidence": None, **dict.fromkeys(EVIDENCE_COLUMNS),
        "issues_px": int(np.count_nonzero(wrong)),
        "issue_share": int(np.count_nonzero(wrong)) / valid if valid else None, "quality": softmin(sample.quality),
        "loss": float(-np.log(sample.quality.clip(1e-7)).mean()) if valid else None,
        "train_loss": dynamics.loss if dynamics else None, "aum": dynamics.aum if dynamics else None,
        "rule_agreement": None, "witness_px": None, "witness_share": None,
    }  # fmt: skip
    chip, water = folder.read(sample.chip), folder.header.water
    moved = label_shift(
        sample.label, sample.probs.argmax(0), sample.valid, chip.seen, reach=MAX_SHIFT_PX,
        classes=range(len(folder.classes)) if water is None else (water,),
    )  # fmt: skip
    row |= {
        "shift_gain": moved.gain if moved else None, "shift_rows": moved.rows if moved else None,
        "shift_cols": moved.cols if moved else None,
    }  # fmt: skip
    if rule is not None and water is not None:
        other = rule(chip.image, chip.seen, folder.bands, single_unit(folder.unit, "audit")).label
        share, against = compare_second_source(sample, other == 1, other != IGNORE, water)
        both = int(np.count_nonzero(against & wrong))
        row |= {"rule_agreement": share, "witness_px": both, "witness_share": both / valid if valid else None}
    return row


def _rank_rows(rows: list[MutableRow]) -> list[MutableRow]:
    """Sort by the sum of three pieces of evidence: suspect pixels, a move of the whole label, and training dynamics.

    With a rule only the suspect pixels count that the rule contradicts as well. Chips without a label come last.
    """
    ruled = any(row["witness_share"] is not None for row in rows)
    found = {
        "evidence_issues": "witness_share" if ruled else "issue_share", "evidence_shift": "shift_gain", "evidence_learning": "train_loss",
    }  # fmt: skip
    for name, column in found.items():
        evidence = tail_evidence([None if row[column] is None else float(row[column] or 0) for row in rows])
        for row, value in zip(rows, evidence, strict=True):
            row[name] = value
    for row in rows:
        row["evidence"] = combined_evidence(
            [None if row[name] is None else float(row[name] or 0) for name in EVIDENCE_COLUMNS]
        )

    def key(row: MutableRow) -> tuple[float, float, float, str]:
        by = [row["evidence"], row["issue_share"], row["loss"]]
        first, second, third = (-float(-1 if value is None else value) for value in by)
        return (first, second, third, str(row["chip"]))

    ordered = sorted(rows, key=key)
    return [{name: {**row, "rank": rank}[name] for name in SUSPECT_COLUMNS} for rank, row in enumerate(ordered, 1)]


def _write_ranking(out: Path, folder: ChipFolder, found: LabelIssues, rows: Sequence[MutableRow]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, SUSPECT_COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(map(escape_formulas, rows))
    write_atomic(out / "suspects.csv", text.getvalue())
    write_atomic(out / "suspects.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    facts = {
        "classes": list(folder.classes), "issues": found.issues, "cut": found.cut,
        "thresholds": [None if math.isnan(t) else t for t in found.thresholds.tolist()],
        "joint": found.joint.tolist(), "transition": found.transition().tolist(),
    }  # fmt: skip
    write_atomic(out / "confident.json", json.dumps(facts, indent=1))


def _write_worst(
    folder: ChipFolder, predictions: Mapping[str, Path], found: LabelIssues, rows: Sequence[MutableRow], out: Path
) -> Path:
    cards = []
    for row in rows:
        chip = folder.read(str(row["chip"]))
        sample = OutOfSample(chip.id, np.load(predictions[chip.id]).astype(np.float32), chip.label, chip.valid)
        predicted: NDArray[np.int64] = sample.probs.argmax(0).astype(np.int64)
        cards.append(
            ContactCard(row, chip.image, chip.label, predicted, chip.seen, chip.valid, found.mask(sample), folder.bands)
        )
    return write_contact_sheet(out, cards, folder.classes, str(folder.root))

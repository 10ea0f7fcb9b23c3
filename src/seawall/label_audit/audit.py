"""Find wrong labels in a chip folder: out-of-sample predictions, confident learning, a ranked list, a contact sheet."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from seawall import registry
from seawall.data.chip_format import IGNORE, encode_label
from seawall.data.chips import ChipFolder, digest_chips
from seawall.data.loader import patches, whole
from seawall.data.raw_chips import sha
from seawall.data.selection import SEEN_IN_TRAINING, select_chips
from seawall.data.splits import kfold_groups
from seawall.errors import DataError, UsageError
from seawall.inference.predict import model_digest
from seawall.io import RunLock, escape_formulas, open_atomic, write_atomic
from seawall.label_audit.confident_learning import Opinion, Suspicion, agreed, combined, softmin, suspect, tail_evidence
from seawall.label_audit.contact_sheet import Card, write_sheet
from seawall.label_audit.training_dynamics import Dynamics, Learned
from seawall.labels.indices import Rule, parse_rule
from seawall.labels.registration import label_shift
from seawall.models.blocks import Standardize
from seawall.models.weights import load_model, split_of
from seawall.result import Failed, MutableRow, Progress
from seawall.rng import Keys
from seawall.training.loop import Training, fit
from seawall.training.objectives.supervised import Supervised
from seawall.types import Batch, ModelSpec, Setting

COLUMNS = (
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


WITNESSES = ("evidence_issues", "evidence_shift", "evidence_learning")
"""Evidence against a label: by its pixels, by a move of the whole label, by how it was learned."""


@dataclass(frozen=True)
class Teaching:
    """How the models of the folds are trained."""

    model: str
    folds: int
    epochs: int
    seed: int
    device: str

    def training(self, chips: ChipFolder, ids: Sequence[str]) -> Training:
        """Return the settings: an epoch shows about as many pixels as the chips have."""
        side = max(32, min(128, *(min(chips.row(id_).height, chips.row(id_).width) for id_ in ids)) // 16 * 16)
        pixels = sum(chips.row(id_).height * chips.row(id_).width for id_ in ids)
        steps = max(4, min(200, math.ceil(pixels / (8 * side * side))))
        return Training(
            epochs=self.epochs, steps_per_epoch=steps, batch=8, patch=side, lr=2e-3, monitor="watched", tensorboard=False,
        )  # fmt: skip


def audit_chips(
    chips: Path, out: Path, *, weights: Path | None, folds: int, model: str, epochs: int, rule: str, worst: int, seed: int,
    device: str, progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Rank the chips of a folder by how wrong their labels look; write the list, the sheet and the suspect pixels.

    Raises:
        UsageError: A number is out of range.
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
    seen: frozenset[str] = frozenset()
    with RunLock(out):
        if weights is None:
            teaching = Teaching(model, folds, epochs, seed, device)
            said, learned = _cross_validate(folder, out, teaching, progress)
        else:
            net = load_model(weights, bands=folder.bands, classes=folder.classes, unit=folder.unit)
            said, learned = _predict(net, folder, folder.ids, out, device), {}
            seen = select_chips(folder, split_of(net), "all").seen

        def opinions() -> Iterator[Opinion]:
            for id_ in folder.ids:
                chip = folder.read(id_)
                yield Opinion(id_, np.load(said[id_]).astype(np.float32), chip.label, chip.valid)

        found = suspect(opinions, len(folder.classes))
        rows = _ranked([_judge(folder, found, o, second, learned.get(o.chip), out) for o in opinions()])
        _write_list(out, folder, found, rows)
        sheet = _show(folder, said, found, rows[:worst], out)
    facts: MutableRow = {
        "list": str(out / "suspects.csv"), "sheet": str(sheet), "picture": str(out / "sheet.png"), "pixels": str(out / "suspects"), "chips": len(rows),
        "suspect_px": sum(int(row["issues_px"] or 0) for row in rows), "issues_estimated": found.issues,
        **{
            f"{was} labelled {given}": float(found.transition()[i, j])
            for i, was in enumerate(folder.classes) for j, given in enumerate(folder.classes) if i != j
        },
    }  # fmt: skip
    if seen:
        known = f"{len(seen)} of {len(folder)} chips: a network finds nothing wrong with what it learned; leave out --weights to train per fold"
        facts[f"flag {SEEN_IN_TRAINING}"] = known
    return facts, rows[:worst], ()


def _cross_validate(
    folder: ChipFolder, out: Path, teaching: Teaching, progress: Progress
) -> tuple[dict[str, Path], dict[str, Learned]]:
    """Train one model per fold and let it speak on the groups that it has not seen."""
    said: dict[str, Path] = {}
    watched: dict[str, list[Learned]] = {}
    splits = kfold_groups(folder, teaching.folds, teaching.seed)
    for number, split in enumerate(splits):
        key = sha(digest_chips(folder, split.train), repr(teaching), repr(folder.header))[:12]
        home = out / "folds" / f"{number + 1}-of-{len(splits)}-{key}"

        def tell(done: int, total: int, note: str, number: int = number) -> None:
            progress("train folds", number * total + done, len(splits) * total, note)

        net, dynamics = _teach(folder, split.train, home, teaching, tell)
        for chip, learned in dynamics.learned().items():
            watched.setdefault(chip, []).append(learned)
        said |= _predict(net, folder, split.test, out, teaching.device)
    return said, {chip: _mean(list_) for chip, list_ in watched.items()}


def _teach(
    folder: ChipFolder, ids: Sequence[str], home: Path, teaching: Teaching, tell: Callable[[int, int, str], None]
) -> tuple[nn.Module, Dynamics]:
    spec = ModelSpec(folder.bands, folder.classes, folder.unit, folder.gsd_m, note="label audit")
    training = teaching.training(folder, ids)
    make = cast(
        Callable[[ModelSpec], nn.Module], registry.build("model", teaching.model, SMALL.get(teaching.model, {}))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Keys(teaching.seed, (teaching.model,)).number(0))
        net = make(spec)
    mean, std = folder.mean_std(ids)
    cast(Standardize, net.standardize).fit(mean.tolist(), std.clip(1e-6).tolist())

    def feed(epoch: int) -> Iterator[Batch]:
        return patches(
            folder, ids, patch=training.patch, batch=training.batch, count=training.patches_per_epoch, epoch=epoch,
            seed=teaching.seed, augment="d4",
        )  # fmt: skip

    dynamics = Dynamics(lambda: whole(folder, ids), home / "dynamics.jsonl")
    # "watched" counts up, so that the last weights are kept: wrong labels must not choose the best ones
    fit(
        net,
        Supervised(),
        feed,
        dynamics.check,
        training,
        home,
        device=teaching.device,
        seed=teaching.seed,
        progress=tell,
    )
    return load_model(home / "model.safetensors"), dynamics


SHIFT_PX = 8
"""Farthest move of a label that is tried against the prediction, in pixels along each axis."""

SMALL: Mapping[str, dict[str, Setting]] = {"unet": {"width": 12, "depth": 3}}
"""Settings for the folds' models: small ones learn wrong labels by heart last."""


def _predict(net: nn.Module, folder: ChipFolder, ids: Sequence[str], out: Path, device: str) -> dict[str, Path]:
    """Return where each chip's probabilities lie; what is there for the same weights and image is kept."""
    digest = model_digest(net)
    where = {id_: out / "predictions" / f"{sha(digest, folder.row(id_).sha256)[:24]}.npy" for id_ in ids}
    missing = [id_ for id_, path in where.items() if not path.exists()]
    home = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )
    net.to(home).eval()
    with torch.no_grad():
        for batch in whole(folder, missing, 4):
            probs = net(batch.image.to(home)).softmax(1).cpu().numpy().astype(np.float16)
            for id_, plane in zip(batch.chips, probs, strict=True):
                with open_atomic(where[id_]) as file:
                    np.save(file, plane)
    return where


def _judge(
    folder: ChipFolder, found: Suspicion, opinion: Opinion, second: Rule | None, learned: Learned | None, out: Path
) -> MutableRow:
    """Return a chip's row, and write its suspect pixels as a GeoTIFF: 1 suspect, 0 not, 255 without a label."""
    wrong = found.find(opinion)
    marks = np.where(opinion.valid, wrong, IGNORE).astype(np.uint8)
    write_atomic(out / "suspects" / f"{opinion.chip}.tif", encode_label(marks, folder.row(opinion.chip).grid).data)
    valid = len(opinion.given)
    row: MutableRow = {
        "chip": opinion.chip, "group": folder.row(opinion.chip).group, "valid_px": valid,
        "evidence": None, **dict.fromkeys(WITNESSES),
        "issues_px": int(np.count_nonzero(wrong)),
        "issue_share": int(np.count_nonzero(wrong)) / valid if valid else None, "quality": softmin(opinion.quality),
        "loss": float(-np.log(opinion.quality.clip(1e-7)).mean()) if valid else None,
        "train_loss": learned.loss if learned else None, "aum": learned.aum if learned else None,
        "rule_agreement": None, "witness_px": None, "witness_share": None,
    }  # fmt: skip
    chip, water = folder.read(opinion.chip), folder.header.water
    moved = label_shift(
        opinion.label, opinion.probs.argmax(0), opinion.valid, chip.seen, reach=SHIFT_PX,
        classes=range(len(folder.classes)) if water is None else (water,),
    )  # fmt: skip
    row |= {
        "shift_gain": moved.gain if moved else None, "shift_rows": moved.rows if moved else None,
        "shift_cols": moved.cols if moved else None,
    }  # fmt: skip
    if second is not None and water is not None:
        other = second(chip.image, chip.seen, folder.bands, folder.unit).label
        share, against = agreed(opinion, other == 1, other != IGNORE, water)
        both = int(np.count_nonzero(against & wrong))
        row |= {"rule_agreement": share, "witness_px": both, "witness_share": both / valid if valid else None}
    return row


def _ranked(rows: list[MutableRow]) -> list[MutableRow]:
    """Sort by the evidence of three witnesses: suspect pixels, a move of the whole label, and how it was learned.

    With a rule only the suspect pixels count that the rule holds against the label as well. Chips without a label
    come last.
    """
    ruled = any(row["witness_share"] is not None for row in rows)
    found = {
        "evidence_issues": "witness_share" if ruled else "issue_share", "evidence_shift": "shift_gain", "evidence_learning": "train_loss",
    }  # fmt: skip
    for name, column in found.items():
        told = tail_evidence([None if row[column] is None else float(row[column] or 0) for row in rows])
        for row, value in zip(rows, told, strict=True):
            row[name] = value
    for row in rows:
        row["evidence"] = combined([None if row[name] is None else float(row[name] or 0) for name in WITNESSES])

    def key(row: MutableRow) -> tuple[float, float, float, str]:
        by = [row["evidence"], row["issue_share"], row["loss"]]
        first, second, third = (-float(-1 if value is None else value) for value in by)
        return (first, second, third, str(row["chip"]))

    ordered = sorted(rows, key=key)
    return [{name: {**row, "rank": rank}[name] for name in COLUMNS} for rank, row in enumerate(ordered, 1)]


def _write_list(out: Path, folder: ChipFolder, found: Suspicion, rows: Sequence[MutableRow]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
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


def _show(
    folder: ChipFolder, said: Mapping[str, Path], found: Suspicion, rows: Sequence[MutableRow], out: Path
) -> Path:
    cards = []
    for row in rows:
        chip = folder.read(str(row["chip"]))
        opinion = Opinion(chip.id, np.load(said[chip.id]).astype(np.float32), chip.label, chip.valid)
        guess: NDArray[np.int64] = opinion.probs.argmax(0).astype(np.int64)
        cards.append(Card(row, chip.image, chip.label, guess, chip.seen, chip.valid, found.find(opinion), folder.bands))
    return write_sheet(out, cards, folder.classes, str(folder.root))


def _mean(several: Sequence[Learned]) -> Learned:
    count = len(several)
    return Learned(
        sum(one.loss for one in several) / count,
        sum(one.aum for one in several) / count,
        sum(one.epochs for one in several),
    )

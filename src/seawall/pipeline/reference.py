"""The reference network of a recipe: its weights, the attacks that go with it, and what both networks cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from torch import nn

from seawall.attacks.transfer import Transfer
from seawall.data.chips import ChipFolder
from seawall.data.splits import Split
from seawall.errors import UsageError
from seawall.evaluation.case import CLEAN_CASE, Case
from seawall.evaluation.exact import ExactWorstCase, exact_worst_images
from seawall.models.weights import load_model, split_of
from seawall.pipeline.context import RunContext
from seawall.pipeline.validation_metrics import OVERFITTING
from seawall.recipe.sections import REFERENCE
from seawall.threat.model import ThreatModel
from seawall.training.checkpoint import HistoryRow
from seawall.training.pretrain import PRETRAINING
from seawall.types import Batch, SegmentationModel


def given_reference(run: RunContext, chips: ChipFolder, split: Split) -> dict[str, nn.Module]:
    """Load the reference that the recipe has weights of; nothing where it trains one or has none.

    Raises:
        ModelError: The file is no weights file, or has other bands, classes or another unit than the chips.
        UsageError: The weights do not record a split, or not this one: a chip of the test part is in no test part of theirs.
    """
    if run.recipe.reference is None or not run.recipe.reference.weights:
        return {}
    path = Path(run.recipe.reference.weights)
    model = load_model(path, bands=chips.bands, classes=chips.classes, unit=chips.unit)
    record = split_of(model)
    for id_ in split.test:
        row = chips.row(id_)
        part = record.part(row.sha256, row.group) if record is not None else ""
        if part != "test":
            raise UsageError(
                f"reference.weights: expected a network with the same test part, got {path}, which has {id_} in "
                f"{f'its {part} part' if part else 'no part'}; train it on these chips with the same seed and shares of the split"
            )
    return {REFERENCE: model}


def _threats(cases: Iterable[Case]) -> list[ThreatModel]:
    return list(dict.fromkeys(case.threat for case in cases if case.threat is not None))


def transfer_cases(cases: Iterable[Case], reference: nn.Module) -> list[Case]:
    """Return an attack on the reference, given to another model, under every threat of the cases."""
    return [Case("transfer", Transfer(surrogate=reference), threat) for threat in _threats(cases)]


def exact_cases(cases: Sequence[Case], model: nn.Module, batch: Batch) -> list[Case]:
    """Return the cases of a model without an adversary and in its exact worst case; the cases as they are where it has none."""
    net, threats = cast(SegmentationModel, model), _threats(cases)
    if not all(exact_worst_images(net, batch, threat) for threat in threats):
        return list(cases)
    return [CLEAN_CASE, *(Case("exact", ExactWorstCase(), threat) for threat in threats)]


def hardening_facts(run: RunContext) -> dict[str, object]:
    """Return the names of both networks, the CPU-minutes of their trainings, and what the overfitting monitor said."""
    hardened, reference = run.recipe.model.name, run.recipe.reference
    weights = reference.weights if reference is not None else ""
    folders = {REFERENCE: Path(weights).parent if weights else run.folder / "models" / REFERENCE}
    folders[hardened] = run.folder / "models" / hardened
    rows = _history(folders[hardened])
    kept = [row for row in rows if row["best"]][-1:]
    return {
        "before": REFERENCE,
        "after": hardened,
        "cpu_minutes": {name: _training_minutes(folder) for name, folder in folders.items()},
        "overfitting_epochs": [row["epoch"] for row in rows if row.get(OVERFITTING)],
        "kept_epoch": kept[0]["epoch"] if kept else None,
    }


FIT_BILL = "fit.json"
"""File beside the weights of a model that was fitted: the CPU seconds of the fit."""


def training_minutes(run: RunContext, name: str) -> float | None:
    """Return the CPU-minutes of the training or the fit of a model of a run; None where they were not recorded."""
    folder = run.folder / "models" / name
    bill = folder / FIT_BILL
    if bill.exists():
        return float(json.loads(bill.read_text(encoding="utf-8"))["cpu_seconds"]) / 60
    return _training_minutes(folder)


def _training_minutes(folder: Path) -> float | None:
    """Return the CPU-minutes of a training and of its pre-training; None where a history does not have them."""
    return _cpu_minutes(_history(folder / PRETRAINING) + _history(folder))


def _history(folder: Path) -> list[HistoryRow]:
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _cpu_minutes(rows: Sequence[HistoryRow]) -> float | None:
    """Return the CPU time of a training; None where its history does not have it."""
    spent = [row.get("cpu_seconds") for row in rows]
    return sum(float(s) for s in spent if s is not None) / 60 if spent and None not in spent else None

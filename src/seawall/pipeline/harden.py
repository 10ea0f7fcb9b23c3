"""`seawall harden`: a plain and a hardened network of the same chips, and a card that compares them.

It makes a recipe with a reference and runs it, so that the run folder is that of any other run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seawall import registry
from seawall.bands import channels_of_sources
from seawall.data.chips import ChipFolder
from seawall.errors import ModelError, UsageError, did_you_mean
from seawall.io import write_atomic
from seawall.pipeline.run import run_recipe
from seawall.pipeline.trained_model import flag_facts
from seawall.pipeline.training import model_factory, spec_of_chips
from seawall.pipeline.validation_metrics import OVERFITTING
from seawall.recipe.recipe import Recipe, change_recipe
from seawall.recipe.sections import MethodSection
from seawall.report.hardening import card_rows, overfitting_text
from seawall.report.record_index import RecordIndex
from seawall.report.run_reader import read_run
from seawall.result import Failed, MutableRow, Progress
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.training.configuration import Training
from seawall.types import DECIBEL_UNITS, ModelSpec

LOSS = "ce + dice"
BUDGETS = (0.125, 0.25, 0.5, 1.0)
"""Budgets of the card, as shares of the eps that is asked for."""

MONITORED = 0.5
"""Budget that the validation chips are attacked with, which selects the weights, as a share of that eps."""

INDICES = ("mndwi", "ndwi")
TRAINING: Mapping[str, object] = {"epochs": 30, "steps_per_epoch": 50, "check_every": 5}


@dataclass(frozen=True)
class HardeningMethod:
    """A way of hardening.

    Args:
        objective: Registered objective on attacked images.
        settings: Its settings beside the loss and the threat.
        training: Settings of the training that differ from the plain network's.
    """

    objective: str
    settings: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, object] = field(default_factory=dict)


HARDENING_METHODS: Mapping[str, HardeningMethod] = {
    "n-fgsm-squared": HardeningMethod("n-fgsm", {"draw": "squared"}),
    "n-fgsm-drawn": HardeningMethod("n-fgsm", {"draw": "uniform"}),
    "pgd-3-squared": HardeningMethod("adversarial", {"draw": "squared"}),
}
DEFAULT_MODELS = ("index-unet", "unet")
"""The first of these that fits the chips is hardened unless another is named."""


def harden_chips(
    chips: Path, threat: str, *, method: str, model: str, against: Path | None, suite: str, changes: Sequence[str], out: Path, seed: int,
    device: str, resume: bool, progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Train a plain and a hardened network, attack both, and return the facts and the rows of the card.

    Raises:
        UsageError: The threat does not fit the chips or allows nothing, or the method is unknown.
    """
    spec = spec_of_chips(ChipFolder.open(chips))
    if not threat:
        raise UsageError('harden: expected a threat such as "linf 2% reflectance", got none; give norm, size and unit')
    parsed = parse_threat(threat, spec)
    if not parsed.radius:
        raise UsageError(f"harden: expected a threat with eps above 0, got {threat!r}; 0 allows no attack to train on")
    if method not in HARDENING_METHODS:
        raise UsageError(f"harden: unknown method {method!r}; {did_you_mean(method, HARDENING_METHODS)}")
    chosen = default_model(spec) if model == "auto" else model
    tree = hardening_tree(spec, parsed, HARDENING_METHODS[method], model=chosen, suite=suite)
    tree |= {"seed": seed, "title": f"Hardened within {threat}"}
    tree["data"] = {"source": str(chips), "kind": "chips", "sensor": sensor_of(spec)}
    if against is not None:
        tree["reference"]["weights"] = str(against)
    done = run_recipe(change_recipe(tree, changes), out, device=device, resume=resume, progress=progress)
    facts, table = hardening_card(done.run.folder, done.run.recipe)
    facts = {"report": str(done.page), **facts}
    write_atomic(done.run.folder / "card.json", json.dumps({"facts": facts, "table": table}, indent=1) + "\n")
    return facts, table, done.failed


def sensor_of(spec: ModelSpec) -> str:
    """Return the sensor of a recipe's data: the sources of the bands, or s1 where they are in decibels."""
    sources = channels_of_sources(spec.bands)
    return ",".join(sources) if "" not in sources else "s1" if spec.unit in DECIBEL_UNITS else "s2"


def hardening_tree(
    spec: ModelSpec, threat: ThreatModel, method: HardeningMethod, *, model: str, suite: str
) -> dict[str, Any]:
    """Return the recipe of a hardening without its chips, as plain values.

    Both networks take the same steps. The plain one has no attacked validation, and the settings of a training that belong
    to the method have their defaults in it.
    """
    name, settings = registry.parse_settings("suite", suite)
    own = {"halt": OVERFITTING, **method.training}
    objective = {"name": method.objective, "settings": {"loss": LOSS, "threat": str(threat), **method.settings}}
    plain = {"name": "supervised", "settings": {"loss": LOSS}}
    return {
        "name": "harden",
        "model": {"name": model},
        "training": {
            "objective": objective,
            "settings": {**TRAINING, **own},
            "robustness": {"threat": str(threat.scaled(MONITORED)), "steps": 10},
        },
        "reference": {"objective": plain, "settings": {key: getattr(Training(), key) for key in own}},
        "baselines": fitting_indices(spec),
        "suites": [{"name": name, "settings": settings, "threats": [str(threat.scaled(b)) for b in BUDGETS]}],
        "examples": 2,
    }


def default_model(spec: ModelSpec) -> str:
    """Return the first of the default models that can be built for the chips."""
    return next(name for name in DEFAULT_MODELS if _fits(MethodSection(name=name), spec))


def fitting_indices(spec: ModelSpec) -> list[dict[str, Any]]:
    """Return the threshold models of the water indices whose bands, unit and classes the chips have."""
    methods = [MethodSection(name="threshold", settings={"index": index}) for index in INDICES]
    return [method.model_dump() for method in methods if _fits(method, spec)]


def _fits(method: MethodSection, spec: ModelSpec) -> bool:
    try:
        model_factory(method)(spec)
    except ModelError:
        return False
    return True


def hardening_card(folder: Path, recipe: Recipe) -> tuple[MutableRow, list[MutableRow]]:
    """Return the facts of the card and its rows: a network, a threat, the IoU with its interval, and its flags."""
    run = read_run(folder)
    index = RecordIndex(run.records, run.klass, run.facts.noises, run.facts.uncertainty)
    table: list[MutableRow] = []
    flags: dict[str, None] = {}
    for name, setups in card_rows(run, index):
        for setup in setups:
            low, high = (index.value(setup, f"iou.pooled.{end}", run.klass) for end in ("low", "high"))
            found = index.flags(setup)
            flags |= dict.fromkeys(found)
            table.append(
                {"network": name, "threat": setup[2] or "clean", "iou": index.value(setup, "iou.pooled", run.klass),
                 "low": low, "high": high, "flags": ", ".join(found)}
            )  # fmt: skip
    hardening = run.facts.hardening
    minutes: MutableRow = {f"CPU-minutes of {name}": spent for name, spent in hardening.cpu_minutes.items()}
    facts: MutableRow = {
        "class": run.klass,
        "weights": str(folder / "models" / recipe.model.name / "model.safetensors"),
        **minutes,
        "CPU-minutes of the evaluation": run.facts.cpu_seconds.get("evaluation", 0.0) / 60,
        "overfitting": overfitting_text(hardening),
        **flag_facts(flags),
    }
    return facts, table

"""`seawall run`: chips -> split -> train -> evaluate -> attack -> corrupted labels -> scene map -> report.

Each stage reads the files of the one before from the run folder, so a killed run continues where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from seawall.chip_context import ChipContext
from seawall.class_names import main_class
from seawall.data.chips import ChipFolder, digest_chips
from seawall.data.splits import Split
from seawall.defenses.corrupted_batches import training_corruptions
from seawall.errors import RecipeError, RunError
from seawall.io import RunLock, write_atomic
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.consistency import with_consistency_flags
from seawall.models.weights import read_spec, weights_digest
from seawall.pipeline.context import RunContext
from seawall.pipeline.costs import measure_run_costs
from seawall.pipeline.data import load_chips, make_split
from seawall.pipeline.evaluation import baseline_models, evaluate_models, uncertainty_facts
from seawall.pipeline.keyed import key_check, keyed_facts, validate_keyed
from seawall.pipeline.mapping import map_scene
from seawall.pipeline.provenance import RunMetadata, data_facts, record_environment
from seawall.pipeline.reference import given_reference, hardening_facts
from seawall.pipeline.rounds import RoundFigures, round_figures
from seawall.pipeline.sensitivity import run_sensitivity
from seawall.pipeline.training import (
    check_fitted_model,
    measure_label_noise,
    measure_supervision,
    model_factory,
    spec_of_chips,
    train_networks,
    training_settings,
)
from seawall.pipeline.validate import baseline_name, check_distinct_names, corruption_cases, validate_recipe
from seawall.pipeline.validation_metrics import validation_metrics
from seawall.pipeline.weight_faults import measure_weight_faults
from seawall.recipe.recipe import RUN_KEYS, Recipe
from seawall.recipe.sections import REFERENCE, MethodSection
from seawall.report.page import write_report
from seawall.report.run_facts import SupervisionFacts
from seawall.result import Progress
from seawall.training.checkpoint import describe_differences
from seawall.training.configuration import Training
from seawall.types import FittedModel
from seawall.weight_faults.int8 import weight_parameters


@dataclass(frozen=True)
class RunOutcome:
    """The result of a run.

    Args:
        run: The run.
        page: The report.
        maps: Path of each layer of the scene.
        failed: (item, reason) of chips that were left out.
        code: Versions of the code that made the rows, oldest first; several after a resume with other code.
    """

    run: RunContext
    page: Path
    maps: Mapping[str, str]
    failed: tuple[tuple[str, str], ...]
    code: tuple[str, ...] = ()


def run_recipe(recipe: Recipe, out: Path, *, device: str, resume: bool, progress: Progress) -> RunOutcome:
    """Run a recipe from chips to report in `out/<recipe id>`.

    Raises:
        RunError: Another process works in that folder, or it holds another experiment.
    """
    folder = out / recipe.id
    run = RunContext(recipe, folder, device, resume, progress)
    validate_recipe(recipe)
    if recipe.keyed is not None:
        validate_keyed(recipe.keyed)
    with RunLock(folder):
        if not resume:
            _clear_folder(folder)
        write_atomic(folder / "recipe.toml", recipe.to_toml())
        code = record_environment(folder)
        metadata = RunMetadata(folder / "facts.json")
        with metadata.time_stage("chips"):
            stored, failed = load_chips(run, out / "chips")
        chips = stored.with_bands(recipe.inputs)
        split = make_split(run, chips)
        if not split.test:
            raise RecipeError(
                "split.test: expected a share above 0 for a run, which is measured on it, got 0; raise it"
            )
        metadata.update(data=data_facts(chips, split))
        check_same_experiment(run, chips, split)
        monitors = [training_settings(run, chips, split, network).monitor for network in recipe.networks]
        metadata.update(monitor=monitors[0])
        _check_models(run, chips, split)
        given = given_reference(run, chips, split)
        metadata.update(noises=measure_label_noise(run, chips, split))
        metadata.update(supervision=measure_supervision(run, chips, split))
        metadata.update(uncertainty=uncertainty_facts(recipe))
        metadata.update(corruption_baseline=baseline_name(recipe.baselines[0]) if recipe.baselines else "")
        with metadata.time_stage("training"):
            models = dict(train_networks(run, stored, split)) | given
        metadata.update(rounds=rounds_of_networks(run))
        with metadata.time_stage("evaluation"):
            baselines = dict(baseline_models(run, chips, split))
            evaluate_models(run, chips, split, models, baselines)
        with metadata.time_stage("sensitivity"):
            run_sensitivity(run, chips, split, models)
        metadata.update(keyed=keyed_facts(recipe, spec_of_chips(chips)))
        if recipe.faults:
            with metadata.time_stage("weight faults"):
                measure_weight_faults(run, chips, split, models)
        if recipe.cost is not None:
            with metadata.time_stage("cost"):
                measure_run_costs(run, recipe.cost, models | baselines)
        if recipe.reference is not None:
            metadata.update(hardening=hardening_facts(run))
        with metadata.time_stage("scene"):
            name, network = next(iter(models.items()))
            maps = map_scene(run, chips, network, folder / "models" / name / "model.safetensors")
        write_report(folder)
    return RunOutcome(run, folder / "report.html", maps, failed, code)


def _check_models(run: RunContext, chips: ChipFolder, split: Split) -> None:
    """Build the baselines and cases before the training, so that a missing band is found early."""
    list(corruption_cases(run.recipe, ChipContext.of(chips, split.test)))
    check_distinct_names(run.recipe, spec_of_chips(chips))
    if run.recipe.sensitivity is not None:
        training_corruptions(run.recipe.sensitivity.corruptions, spec_of_chips(chips))
    _check_model_of_recipe(run, chips)
    for further in run.recipe.models:
        trained = further.training or further.objective or further.balance
        if trained and isinstance(untrained_model(further, chips), FittedModel):
            raise RecipeError(
                f"models: expected name, called and settings alone for {further.name}, which is fitted to the training chips; remove the others"
            )
    for method in run.recipe.baselines:
        if any(weight.requires_grad for weight in untrained_model(method, chips).parameters()):
            raise RecipeError(
                f"baselines: expected models that need no training by gradients, got {method.name}; name it as the recipe's model"
            )


def _check_model_of_recipe(run: RunContext, chips: ChipFolder) -> None:
    model = untrained_model(run.recipe.model, chips)
    check_fitted_model(run.recipe, model)
    if run.recipe.faults:
        weight_parameters(model)


def untrained_model(method: MethodSection, chips: ChipFolder) -> nn.Module:
    """Return a model for these chips, to look at; the caller's random stream is left alone."""
    with torch.random.fork_rng(devices=[]):
        return model_factory(method)(spec_of_chips(chips))


def train_only(
    recipe: Recipe, out: Path, *, device: str, resume: bool, progress: Progress
) -> tuple[dict[str, str | int | float | None], list[dict[str, str | int | float | None]], tuple[tuple[str, str], ...]]:
    """Split a chip folder and train one network; return facts, a table of the validation figures, and no failures."""
    for key in RUN_KEYS:
        if getattr(recipe, key):
            raise RecipeError(
                f"{key}: expected nothing of it in a training, got some; put it into a recipe for `seawall run`"
            )
    validate_recipe(recipe)
    run = RunContext(recipe, out, device, resume, progress)
    stored, _ = load_chips(run, out)
    chips = stored.with_bands(recipe.inputs)
    split = make_split(run, chips)
    training = training_settings(run, chips, split)
    _check_model_of_recipe(run, chips)
    with RunLock(out):
        check_same_experiment(run, chips, split)
        write_atomic(out / "recipe.toml", recipe.to_toml())
        code = record_environment(out)
        known = known_label_facts(measure_supervision(run, chips, split))
        model = dict(train_networks(run, stored, split))[recipe.model.name]
    figures = validation_metrics(model, chips, split.val, recipe.training.robustness) if split.val else {}
    table: list[dict[str, str | int | float | None]] = [
        {"metric": name, "value": value} for name, value in figures.items()
    ]
    chosen = {} if isinstance(model, FittedModel) else {"kept": kept_weights(training)}
    weights = out / "models" / recipe.model.name / "model.safetensors"
    facts: dict[str, str | int | float | None] = {
        "weights": str(weights), "train": len(split.train), "val": len(split.val), "test": len(split.test),
        "split": split.how, **known, **chosen, **code_facts(code),
    }  # fmt: skip
    return facts, table, ()


def kept_weights(training: Training) -> str:
    """Return in words which weights of a training are kept."""
    mean = f", their average with decay {training.ema:g}" if training.ema else ""
    return f"the last{mean}" if training.keep == "last" else f"the best by {training.monitor}{mean}"


def rounds_of_networks(run: RunContext) -> dict[str, list[RoundFigures]]:
    """Return the figures of every round of the networks that were trained in rounds."""
    found = {network.name: round_figures(run.folder / "models" / network.name) for network in run.recipe.networks}
    return {name: rounds for name, rounds in found.items() if rounds}


def label_facts(run: RunContext) -> dict[str, str]:
    """Return what was done to the labels of each network: the noise and the change that it made, and how much of them is known."""
    facts = json.loads((run.folder / "facts.json").read_text(encoding="utf-8"))
    return known_label_facts(facts.get("supervision", {})) | {
        f"labels of {name}": f"{noise['noise']} {noise['vary']} {noise['rate']:g} asked, {noise['changed_share']:.1%} of the training pixels changed"
        for name, noise in facts.get("noises", {}).items()
    }


def known_label_facts(supervision: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Return how much of the training labels each network knows, as text."""
    return {
        f"known labels of {name}": SupervisionFacts.model_validate(known).text for name, known in supervision.items()
    }


def code_facts(versions: Sequence[str]) -> dict[str, str]:
    """Return the code versions of a run as a fact, if there are several."""
    return {"code": ", then ".join(versions)} if len(versions) > 1 else {}


def check_same_experiment(run: RunContext, chips: ChipFolder, split: Split) -> None:
    """Refuse a folder of another experiment; write the settings and chip digests of this one into it.

    Raises:
        RunError: Settings or chips differ from those in the folder; names them.
    """
    path = run.folder / "experiment.json"
    now = _flatten(run.recipe.deciding) | {
        f"chips.{part}": digest_chips(chips, ids) for part, ids in split.parts().items()
    }
    now |= key_check(run.recipe)
    if reference := given_reference(run, chips, split):
        now["reference.digest"] = weights_digest(reference[REFERENCE])
    if run.resume and path.exists():
        was = _flatten(Recipe(name=run.recipe.name).deciding) | json.loads(path.read_text(encoding="utf-8"))
        if changes := describe_differences(was, now):
            raise RunError(
                f"{run.folder}: expected the experiment that was begun here, got {changes}; undo the change, choose another folder, or start over with --no-resume"
            )
    write_atomic(path, json.dumps(now, indent=1, sort_keys=True))


def _flatten(tree: Mapping[str, object], under: str = "") -> dict[str, str]:
    """Return the leaves of a tree as texts, by dotted keys."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{under}{key}.")
        else:
            found[f"{under}{key}"] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return found


def summarize_run(run: RunContext) -> list[dict[str, str | float | None]]:
    """Return one row per model, method and threat: IoU and accuracy on the held-out chips with interval and flags."""
    spec = read_spec(run.folder / "models" / run.recipe.model.name / "model.safetensors")
    klass = main_class(spec.classes)
    log = [row for row in run.log if row.severity is None]  # a row per severity of every corruption would be hundreds
    made = [r for r in aggregate_records(with_consistency_flags(log)) if not r.chip and not r.group]
    found = {(r.model, r.method, r.threat, r.metric, r.klass): r.value for r in made}
    flags = {(r.model, r.method, r.threat): ", ".join(r.flags) for r in made}
    columns = {
        "iou.pooled": klass,
        "iou.pooled.low": klass,
        "iou.pooled.high": klass,
        "iou.per_chip": klass,
        "accuracy.pooled": "",
    }
    return [
        {
            "model": where[0], "method": where[1], "threat": where[2],
            **{metric: found.get((*where, metric, of)) for metric, of in columns.items()}, "flags": flags[where],
        }
        for where in dict.fromkeys(key[:3] for key in found)
    ]  # fmt: skip


def _clear_folder(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

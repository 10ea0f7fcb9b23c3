"""The networks of a recipe: one on the labels as they are, one per label noise and rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import nn

from seawall import registry
from seawall.class_names import class_index, main_class
from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder, digest_chips
from seawall.data.loader import PatchFeed, whole_chips
from seawall.data.splits import Split, record_split
from seawall.errors import DataError, RecipeError, UsageError, did_you_mean
from seawall.label_noise.build import CorruptedLabels, build_noise_of_chips
from seawall.models.blocks import Standardize
from seawall.models.keyed import KeyedModel
from seawall.models.weights import load_model, save_model, set_split, spec_of, split_of, weights_digest
from seawall.pipeline.context import RunContext
from seawall.pipeline.keyed import network_key, protected
from seawall.pipeline.validation_metrics import ROBUST_IOU, SINGLE_STEP_IOU, metric_names, validation_metrics
from seawall.pipeline.worker import training_job
from seawall.recipe.recipe import Network, Recipe
from seawall.recipe.sections import MethodSection, PretrainingSection, TrainingSection
from seawall.rng import Keys
from seawall.training.configuration import MEAN_IOU, Training, default_monitor
from seawall.training.launch import run_processes
from seawall.training.loop import fit
from seawall.training.pretrain import PRETRAINING, PatchLabels, pretrain_encoder
from seawall.types import Batch, FittedModel, ModelSpec, Objective, wants_all_bands


def train_networks(run: RunContext, chips: ChipFolder, split: Split) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network trained on clean labels, the reference, then one per label noise and rate.

    Args:
        run: The run.
        chips: The chips with all of their bands; the networks take the recipe's `inputs`.
        split: Split of the chips.
    """
    for network in run.recipe.networks:
        yield network.name, train_network(run, chips, split, network)


def corrupted_labels(run: RunContext, chips: ChipFolder, split: Split, network: Network) -> CorruptedLabels | None:
    """Return the corrupted labels that a network is trained on, or None if it has no label noise.

    Raises:
        UsageError: The noise does not fit the chips.
    """
    if network.noise is None:
        return None
    noise = build_noise_of_chips(network.noise.name, network.noise.at(network.rate), chips, split.train)
    return CorruptedLabels(chips, noise, run.recipe.seed, run.folder / "labels" / network.name)


def measure_label_noise(run: RunContext, chips: ChipFolder, split: Split) -> dict[str, dict[str, float | int | str]]:
    """Corrupt the training labels by every label noise; return the share of pixels that each changes, by network.

    Raises:
        DataError: A rate above 0 changes nothing, so that the network would equal the clean one.
    """
    found: dict[str, dict[str, float | int | str]] = {}
    for network in run.recipe.networks:
        noise, labels = network.noise, corrupted_labels(run, chips, split, network)
        if noise is None or labels is None:
            continue
        changed, valid = _count_changed(chips, labels, split.train)
        if network.rate > 0 and not any(changed):
            raise DataError(
                f"noises.{noise.name}: expected {noise.vary} {network.rate:g} to change labels of {len(changed)} training chips, "
                f"got none changed in {valid} pixels; use another noise or a higher rate"
            )
        found[network.name] = {
            "model": run.recipe.model.name,
            "noise": noise.called or noise.name,
            "rate": network.rate,
            "vary": noise.vary,
            "objective": noise.way,
            "changed_share": sum(changed) / valid,
            "chips_changed": sum(n > 0 for n in changed),
            "chips": len(changed),
        }
    return found


def _count_changed(chips: ChipFolder, labels: CorruptedLabels, ids: Sequence[str]) -> tuple[list[int], int]:
    """Return the number of changed valid pixels of each chip, and the number of valid pixels of all."""
    changed, valid = [], 0
    for id_ in ids:
        plane = labels(id_)
        counts = plane != IGNORE
        changed.append(int(np.count_nonzero((plane != chips.stored(id_)[1]) & counts)))
        valid += int(np.count_nonzero(counts))
    return changed, valid


def train_network(run: RunContext, chips: ChipFolder, split: Split, network: Network) -> nn.Module:
    """Train one network, or load it if its training is complete."""
    devices = run.recipe.training.devices
    if devices > 1:
        run_processes(
            "seawall.pipeline.worker", training_job(run, chips, network), devices, f"train {network.name}",
            run.stage_progress(f"train {network.name}"),
        )  # fmt: skip
    else:
        train_in_process(run, chips, split, network)
    return load_model(run.folder / "models" / network.name / "model.safetensors", key=network_key(run.recipe, network))


def train_in_process(run: RunContext, chips: ChipFolder, split: Split, network: Network) -> None:
    """Train one network in this process, which may be one of several of a distributed training.

    A model that is fitted to chips is fitted and written instead. `chips` have all of their bands; an objective that declares
    `all_bands` gets these, and everything else those that the network takes.
    """
    recipe, section = run.recipe, run.recipe.training_of(network)
    objective, stored, chips = objective_of(network.objective), chips, chips.with_bands(recipe.inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Keys(recipe.seed, (recipe.model.name,)).number(0))
        model = protected(
            recipe, network, model_factory(recipe.model)(replace(spec_of_chips(chips), note=recipe.title))
        )
    start = _start_from(section.start, model, chips, split)
    set_split(model, record_split(chips, split))
    if isinstance(model, FittedModel):
        _fit_network(run, chips, split, network, model)
        return
    training = training_settings(run, chips, split, network)
    if isinstance(model, KeyedModel):
        model.fit_standardize(whole_chips(chips, split.train))
    elif not start:
        mean, std = chips.mean_std(split.train)
        cast(Standardize, model.standardize).fit(mean.tolist(), std.tolist())
    labels = corrupted_labels(run, chips, split, network)

    def patches(training: Training, folder: ChipFolder = chips) -> PatchFeed:
        return PatchFeed(
            folder, split.train, training.patch, training.batch, training.patches_per_epoch, recipe.seed,
            section.balance, section.augment, training.workers, labels,
        )  # fmt: skip

    if section.pretraining is not None:
        _pretrain(run, model, section.pretraining, network, patches)
        start = weights_digest(model)
    fit(
        model,
        objective,
        patches(training, stored if wants_all_bands(objective) else chips),
        lambda trained: validation_metrics(trained, chips, split.val, section.robustness),
        training,
        run.folder / "models" / network.name,
        device=run.device,
        devices=section.devices,
        resume=run.resume,
        seed=recipe.seed,
        context={
            "train": digest_chips(chips, split.train),
            "val": digest_chips(chips, split.val),
            "labels": labels.identity if labels else "as they are",
            "augment": section.augment,
            "balance": section.balance,
            **({"start": start} if start else {}),
        },
        metrics=metric_names(chips.classes, section.robustness),
        progress=run.stage_progress(f"train {network.name}"),
    )


def _fit_network(run: RunContext, chips: ChipFolder, split: Split, network: Network, model: nn.Module) -> None:
    """Fit a model to the training chips, with the labels of the network, and write its weights; a resumed run does it again, in seconds."""
    labels = corrupted_labels(run, chips, split, network)
    progress = run.stage_progress(f"train {network.name}")
    progress(0, 1, f"fits to {len(split.train)} chips")
    fit_to_chips(model, whole_chips(chips, split.train, edit=labels.relabelled if labels else None), run.recipe.seed)
    save_model(run.folder / "models" / network.name / "model.safetensors", model)
    progress(1, 1, f"fitted to {len(split.train)} chips")


def fit_to_chips(model: nn.Module, batches: Iterable[Batch], seed: int) -> None:
    """Fit a model to training chips, if it is fitted to chips and not yet."""
    if isinstance(model, FittedModel) and not model.fitted:
        model.fit(batches, seed)


def check_fitted_model(recipe: Recipe, model: nn.Module) -> None:
    """Refuse keys of a recipe that have no effect on its model, where that is fitted to chips instead of being trained.

    Raises:
        RecipeError: Names the key.
    """
    if not isinstance(model, FittedModel):
        return
    given = {
        "training": recipe.training != TrainingSection(),
        "reference": recipe.reference is not None,
        "keyed": recipe.keyed is not None,
        "faults": bool(recipe.faults),
        "sensitivity": recipe.sensitivity is not None,
        "noises.objective": any(noise.objective is not None for noise in recipe.noises),
    }
    if wrong := [key for key, there in given.items() if there]:
        raise RecipeError(
            f"{wrong[0]}: expected no such key for {recipe.model.name}, which is fitted to the training chips and has no gradients to its weights; "
            "remove it, or train a network"
        )


def _pretrain(
    run: RunContext,
    model: nn.Module,
    section: PretrainingSection,
    network: Network,
    patches: Callable[[Training], PatchFeed],
) -> None:
    """Train the encoder of a network on one label per patch, or load it if that is done."""
    stage = f"pretrain {network.name}"
    settings = {**run.recipe.training_of(network).settings, **section.settings}
    training = replace(Training(**settings), monitor="", halt="", patience=0)  # there is no validation
    classes = spec_of(model).classes
    feed = PatchLabels(patches(training), class_index(section.of or main_class(classes), classes), section.share)
    folder = run.folder / "models" / network.name / PRETRAINING
    pretrain_encoder(
        model, objective_of(section.objective or network.objective), feed, training, folder, seed=run.recipe.seed, device=run.device,
        resume=run.resume, progress=run.stage_progress(stage),
    )  # fmt: skip


def objective_of(method: MethodSection) -> Objective:
    """Return a registered objective with its settings."""
    return registry.build("objective", method.name, method.settings)


def _start_from(path: str, model: nn.Module, chips: ChipFolder, split: Split) -> str:
    """Load the weights to start from, and return the digest of their tensors; "" where there are none.

    Raises:
        ModelError: They do not fit the model or the chips.
        UsageError: They were trained or selected on chips of the test part, or on validation chips of this split.
    """
    if not path:
        return ""
    load_model(path, bands=chips.bands, classes=chips.classes, unit=chips.unit, into=model)
    known = split_of(model)
    for id_ in (*split.val, *split.test) if known is not None else ():
        row = chips.row(id_)
        part = known.part(row.sha256, row.group) if known is not None else ""
        if part == "train" or (part == "val" and id_ in split.test):
            raise UsageError(
                f"training.start: expected weights that have not seen the held-out chips, got {path}, whose {part} part has {id_}; "
                "use the same seed and shares of the split"
            )
    return weights_digest(model)


def training_settings(run: RunContext, chips: ChipFolder, split: Split, network: Network | None = None) -> Training:
    """Return the settings of the training of a network, the recipe's first by default, with the metric that selects the weights.

    By default it is the IoU of water, or the mean over the classes if no validation chip has water; after PGD where the
    validation chips are attacked.

    Raises:
        UsageError: The monitored metric is unknown, or no validation pixel has its class.
    """
    section = run.recipe.training_of(network or run.recipe.networks[0])
    training, classes, robustness = Training(**section.settings), chips.classes, section.robustness
    counts = np.sum([chips.row(id_).class_counts for id_ in split.val], axis=0)
    pixels = {f"val.iou.{name}": int(n) for name, n in zip(classes, counts, strict=True)}
    if not training.monitor:
        default = default_monitor(classes)
        default = default if pixels.get(default) else MEAN_IOU
        return replace(training, monitor=default if robustness is None else default.replace("val.iou", ROBUST_IOU))
    names = metric_names(classes, robustness)
    if training.monitor not in names:
        raise UsageError(
            f"training.monitor: expected one of the validation figures, got {training.monitor!r}; {did_you_mean(training.monitor, names)}"
        )
    if pixels.get(training.monitor.replace(ROBUST_IOU, "val.iou").replace(SINGLE_STEP_IOU, "val.iou"), 1) == 0:
        raise UsageError(
            f"training.monitor: expected a class of the {len(split.val)} validation chips, got {training.monitor!r} without a pixel; "
            f"use {MEAN_IOU}, or another split"
        )
    return training


def spec_of_chips(chips: ChipFolder) -> ModelSpec:
    """Return the specification of a model for these chips."""
    return ModelSpec(chips.bands, chips.classes, chips.unit, chips.gsd_m)


def model_factory(method: MethodSection) -> Callable[[ModelSpec], nn.Module]:
    """Return a registered model with its settings, called with a specification."""
    return cast(Callable[[ModelSpec], nn.Module], registry.build("model", method.name, method.settings))

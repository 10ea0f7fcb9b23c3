"""The networks of a recipe: one on the labels as they are, one per label noise and rate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from seawall import registry
from seawall.chip_context import ChipContext
from seawall.class_names import class_index, main_class
from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder, digest_chips
from seawall.data.loader import PatchFeed, whole_chips
from seawall.data.splits import Split, record_split
from seawall.data.unlabelled import SemiSupervisedFeed, TrainingLabels, UnknownLabels, chips_without_labels
from seawall.errors import DataError, RecipeError, UsageError, did_you_mean
from seawall.io import write_atomic
from seawall.label_noise.build import CorruptedLabels, build_noise_of_chips
from seawall.models.blocks import Standardize
from seawall.models.keyed import KeyedModel
from seawall.models.weights import load_model, save_model, set_split, spec_of, weights_digest
from seawall.pipeline.context import RunContext
from seawall.pipeline.keyed import network_key, protected
from seawall.pipeline.other_weights import guided, start_from
from seawall.pipeline.reference import FIT_BILL
from seawall.pipeline.rounds import RoundsContext, RoundTraining, clear_rounds, run_rounds
from seawall.pipeline.validate import learns_without_labels
from seawall.pipeline.validation_metrics import ROBUST_IOU, SINGLE_STEP_IOU, metric_names, validation_metrics
from seawall.pipeline.worker import training_job
from seawall.recipe.recipe import Network, Recipe
from seawall.recipe.sections import MethodSection, PretrainingSection, RoundsSection, TrainingSection
from seawall.rng import Keys
from seawall.supervision.build import KnownLabels, build_supervision
from seawall.training.checkpoint import History
from seawall.training.configuration import MEAN_IOU, Masking, Training, default_monitor
from seawall.training.launch import run_processes
from seawall.training.loop import fit
from seawall.training.pretrain import PRETRAINING, PatchLabels, pretrain_encoder
from seawall.training.reconstruction import pretrain_network
from seawall.types import Batch, FittedModel, ModelSpec, Objective, wants_all_bands


def train_networks(run: RunContext, chips: ChipFolder, split: Split) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network trained on clean labels, the reference, then one per label noise and rate; train members of ensembles too.

    Args:
        run: The run.
        chips: The chips with all of their bands; the networks take the recipe's `inputs`.
        split: Split of the chips.
    """
    for network in run.recipe.networks:
        model = train_network(run, chips, split, network)
        if not network.member:
            yield network.name, model


def corrupted_labels(run: RunContext, chips: ChipFolder, split: Split, network: Network) -> CorruptedLabels | None:
    """Return the corrupted labels that a network is trained on, or None if it has no label noise.

    Raises:
        UsageError: The noise does not fit the chips.
    """
    if network.noise is None:
        return None
    noise = build_noise_of_chips(network.noise.name, network.noise.at(network.rate), chips, split.train)
    return CorruptedLabels(chips, noise, run.recipe.seed, run.folder / "labels" / network.name)


def known_labels(run: RunContext, chips: ChipFolder, split: Split, network: Network) -> KnownLabels | None:
    """Return the known part of the training labels of a network, after its noise; None where all labels are known.

    Raises:
        UsageError: The supervision does not fit the chips.
    """
    sections = run.recipe.training.supervision
    if not sections:
        return None
    context = ChipContext.of(chips, split.train)
    supervisions = [build_supervision(one.name, one.settings, context) for one in sections]
    noisy = corrupted_labels(run, chips, split, network)
    return KnownLabels(
        chips, split.train, supervisions, run.recipe.seed, run.folder / "labels" / network.name / "known", noisy
    )


def measure_supervision(run: RunContext, chips: ChipFolder, split: Split) -> dict[str, dict[str, int]]:
    """Apply the supervision to the training labels; return what is known to each network: pixels and chips, and those that there are.

    Raises:
        DataError: A class of the training labels is in no known one.
    """
    found: dict[str, dict[str, int]] = {}
    for network in run.recipe.own_networks:
        if (labels := known_labels(run, chips, split, network)) is not None:
            found[network.name] = labels.counts().facts()
    return found


def measure_label_noise(run: RunContext, chips: ChipFolder, split: Split) -> dict[str, dict[str, float | int | str]]:
    """Corrupt the training labels by every label noise; return the share of the known pixels that each changes, by network.

    Raises:
        DataError: A rate above 0 changes nothing, so that the network would equal the clean one.
    """
    found: dict[str, dict[str, float | int | str]] = {}
    for network in run.recipe.own_networks:
        noise, labels = network.noise, corrupted_labels(run, chips, split, network)
        if noise is None or labels is None:
            continue
        changed, known = _count_changed(chips, labels, known_labels(run, chips, split, network), split.train)
        if network.rate > 0 and not any(changed):
            raise DataError(
                f"noises.{noise.name}: expected {noise.vary} {network.rate:g} to change labels of {len(changed)} training chips, "
                f"got none changed in {known} pixels; use another noise or a higher rate"
            )
        found[network.name] = {
            "model": network.model.name,
            "noise": noise.called or noise.name,
            "rate": network.rate,
            "vary": noise.vary,
            "objective": noise.way,
            "changed_share": sum(changed) / known,
            "chips_changed": sum(n > 0 for n in changed),
            "chips": len(changed),
        }
    return found


def _count_changed(
    chips: ChipFolder, labels: CorruptedLabels, known: KnownLabels | None, ids: Sequence[str]
) -> tuple[list[int], int]:
    """Return the number of changed pixels of each chip among those with a known label, and the number of these in all chips."""
    changed, valid = [], 0
    for id_ in ids:
        plane = labels(id_)
        counts = (plane if known is None else known(id_)) != IGNORE
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
    section = run.recipe.training_of(network)
    folder = run.folder / "models" / network.name
    if section.rounds is not None:
        _train_in_rounds(run, chips, split, network, section.rounds, folder)
        return
    stored, chips = chips, chips.with_bands(run.recipe.inputs)
    model = _new_model(run, chips, network, network.model)
    start = start_from(section, model, chips, split)
    training = training_settings(run, chips, split, network)
    fitted = isinstance(model, FittedModel)
    set_split(model, record_split(chips, split, selected=not split.val or (training.keep == "best" and not fitted)))
    if isinstance(model, FittedModel):
        _fit_network(run, chips, split, network, model)
        return
    if not start or section.adapt_bands:
        _standardize(model, chips, split)
    labels = training_labels(run, chips, split, network)
    if section.pretraining is not None:
        _pretrain(run, chips, network, model, section.pretraining, labels)
        start = weights_digest(model)
    _fit_to_labels(run, stored, split, network, model, labels, training, folder, start, f"train {network.name}")


def _new_model(run: RunContext, chips: ChipFolder, network: Network, method: MethodSection) -> nn.Module:
    """Return a model of a recipe with its first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Keys(network.seed(run.recipe.seed), (method.name,)).number(0))
        spec = replace(spec_of_chips(chips), note=run.recipe.title)
        return protected(run.recipe, network, model_factory(method)(spec))


def _standardize(model: nn.Module, chips: ChipFolder, split: Split) -> None:
    """Fit the normalization of a model to the training chips."""
    if isinstance(model, KeyedModel):
        model.fit_standardize(whole_chips(chips, split.train))
        return
    mean, std = chips.mean_std(split.train)
    cast(Standardize, model.standardize).fit(mean.tolist(), std.tolist())


def training_labels(run: RunContext, chips: ChipFolder, split: Split, network: Network) -> TrainingLabels:
    """Return the labels that a network is trained on: after its noise, and of those the known part.

    Raises:
        UsageError: Noise or supervision do not fit the chips.
        DataError: A class of the training labels has no known pixel.
    """
    bare = chips_without_labels(chips, split)
    known = known_labels(run, chips, split, network)
    if known is not None:
        known.counts()  # refuses a class without any known label
        return TrainingLabels(known.labelled, (*known.unlabelled, *bare), known, known, known.identity)
    noisy = corrupted_labels(run, chips, split, network)
    return TrainingLabels(split.train, bare, noisy, None, noisy.identity if noisy else "as they are")


def _labelled_patches(
    run: RunContext, chips: ChipFolder, network: Network, labels: TrainingLabels, training: Training
) -> PatchFeed:
    """Return the patches of the labelled chips of a training."""
    section = run.recipe.training_of(network)
    return PatchFeed(
        chips, labels.labelled, training.patch, training.batch, training.patches_per_epoch, network.seed(run.recipe.seed),
        section.balance, section.augment, training.workers, labels.planes, labels.counted,
    )  # fmt: skip


def _fit_to_labels(
    run: RunContext, stored: ChipFolder, split: Split, network: Network, model: nn.Module, labels: TrainingLabels, training: Training,
    folder: Path, start: str, stage: str,
) -> History:  # fmt: skip
    """Train a network on labels; `start` is the digest of the weights that it starts from, "" for random ones."""
    section = run.recipe.training_of(network)
    objective = guided(objective_of(network.objective), stored, split)
    chips = stored.with_bands(run.recipe.inputs)
    patches = _labelled_patches(run, stored if wants_all_bands(objective) else chips, network, labels, training)
    ratio = section.unlabelled if learns_without_labels(network.objective) else 0
    return fit(
        model,
        objective,
        SemiSupervisedFeed(patches, labels.unlabelled, ratio) if ratio else patches,
        (lambda trained: validation_metrics(trained, chips, split.val, section.robustness)) if split.val else None,
        training,
        folder,
        device=run.device,
        devices=section.devices,
        resume=run.resume,
        seed=network.seed(run.recipe.seed),
        context={
            "train": digest_chips(chips, split.train),
            "val": digest_chips(chips, split.val),
            "labels": labels.identity,
            "augment": section.augment,
            "balance": section.balance,
            **({"start": start} if start else {}),
            **({"unlabelled": f"{ratio} of {digest_chips(chips, labels.unlabelled)}"} if ratio else {}),
        },
        metrics=metric_names(chips.classes, section.robustness),
        progress=run.stage_progress(stage),
    )


def _train_in_rounds(
    run: RunContext, chips: ChipFolder, split: Split, network: Network, rounds: RoundsSection, folder: Path
) -> None:
    """Train a network in rounds, each on the labels that follow from the one before."""
    stored, chips = chips, chips.with_bands(run.recipe.inputs)
    if not run.resume:
        clear_rounds(folder)

    def train(round_: RoundTraining) -> tuple[nn.Module, History]:
        model = _new_model(run, chips, network, round_.model or network.model)
        _standardize(model, chips, split)
        set_split(model, record_split(chips, split))
        if round_.start is not None:
            load_model(round_.start, into=model)
        start = "" if round_.start is None else weights_digest(model)
        training = training_settings(run, chips, split, network, round_.settings)
        stage = f"train {network.name}, {round_.name}"
        history = _fit_to_labels(
            run, stored, split, network, model, round_.labels, training, round_.folder, start, stage
        )
        return model.eval(), history

    work = RoundsContext(
        chips, training_labels(run, chips, split, network), known_labels(run, chips, split, network), train, folder,
        run.recipe.seed, training_settings(run, chips, split, network).better,
    )  # fmt: skip
    run_rounds(rounds.method, work)


def _fit_network(run: RunContext, chips: ChipFolder, split: Split, network: Network, model: nn.Module) -> None:
    """Fit a model to the training chips, with the labels of the network, and write its weights; a resumed run does it again, in seconds."""
    labels = known_labels(run, chips, split, network) or corrupted_labels(run, chips, split, network)
    progress = run.stage_progress(f"train {network.name}")
    progress(0, 1, f"fits to {len(split.train)} chips")
    began = time.process_time()
    fit_to_chips(model, whole_chips(chips, split.train, edit=labels.relabelled if labels else None), run.recipe.seed)
    bill = json.dumps({"cpu_seconds": time.process_time() - began})
    save_model(run.folder / "models" / network.name / "model.safetensors", model)
    write_atomic(run.folder / "models" / network.name / FIT_BILL, bill)
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
        "training": recipe.training != TrainingSection(supervision=recipe.training.supervision),
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
    run: RunContext, chips: ChipFolder, network: Network, model: nn.Module, section: PretrainingSection, labels: TrainingLabels
) -> None:  # fmt: skip
    """Train a network, or its encoder, on another task first, or load it if that is done."""
    settings = {**run.recipe.training_of(network).settings, **section.settings}
    training = replace(Training(**settings), monitor="", halt="", patience=0)  # there is no validation
    folder, progress = (
        run.folder / "models" / network.name / PRETRAINING,
        run.stage_progress(f"pretrain {network.name}"),
    )
    patches = _labelled_patches(run, chips, network, labels, training)
    if section.task == "reconstruction":
        ids = (*labels.labelled, *labels.unlabelled)
        every = replace(patches, ids=ids, balance="area", labels=UnknownLabels(chips), balance_labels=None)
        pretrain_network(
            model, Masking(**section.masking), every, training, folder, seed=network.seed(run.recipe.seed), device=run.device,
            resume=run.resume, progress=progress, context={"chips": digest_chips(chips, ids)},
        )  # fmt: skip
        return
    classes = spec_of(model).classes
    feed = PatchLabels(patches, class_index(section.of or main_class(classes), classes), section.share)
    pretrain_encoder(
        model, objective_of(section.objective or network.objective), feed, training, folder, seed=network.seed(run.recipe.seed), device=run.device,
        resume=run.resume, progress=progress,
    )  # fmt: skip


def objective_of(method: MethodSection) -> Objective:
    """Return a registered objective with its settings."""
    return registry.build("objective", method.name, method.settings)


def training_settings(
    run: RunContext,
    chips: ChipFolder,
    split: Split,
    network: Network | None = None,
    changes: Mapping[str, object] | None = None,
) -> Training:
    """Return the settings of the training of a network, the recipe's first by default, with the metric that selects the weights.

    By default it is the IoU of water, or the mean over the classes if no validation chip has water; after PGD where the
    validation chips are attacked. Without validation chips there is none, and the last weights are kept. `changes` are settings
    of one part of the training.

    Raises:
        UsageError: The monitored metric is unknown, no validation pixel has its class, or there is no validation chip.
    """
    section = run.recipe.training_of(network or run.recipe.networks[0])
    training = Training(**{**section.settings, **(changes or {})})
    classes, robustness = chips.classes, section.robustness
    if not split.val:
        check_without_validation(training, robustness is not None)
        return replace(training, keep="last")
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


def check_without_validation(training: Training, robustness: bool) -> None:
    """Refuse settings that need validation chips, where there are none.

    Raises:
        UsageError: Names the setting.
    """
    needing = {
        "monitor": bool(training.monitor),
        "halt": bool(training.halt),
        "patience": training.patience > 0,
        "robustness": robustness,
    }
    if given := [key for key, there in needing.items() if there]:
        raise UsageError(
            f"training.{given[0]}: expected none without validation chips, which it needs; leave it out, or raise split.val"
        )


def spec_of_chips(chips: ChipFolder) -> ModelSpec:
    """Return the specification of a model for these chips."""
    return ModelSpec(chips.bands, chips.classes, chips.unit, chips.gsd_m)


def model_factory(method: MethodSection) -> Callable[[ModelSpec], nn.Module]:
    """Return a registered model with its settings, called with a specification."""
    return cast(Callable[[ModelSpec], nn.Module], registry.build("model", method.name, method.settings))

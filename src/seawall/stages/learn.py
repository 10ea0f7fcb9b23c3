"""The networks of a recipe: one on the labels as they are, one per label noise and rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from seawall import registry
from seawall.datasets.chips import Chip, ChipFolder
from seawall.datasets.loader import patches, whole
from seawall.datasets.splits import Split
from seawall.errors import DataError
from seawall.facts import digest_chips
from seawall.keys import Keys
from seawall.metrics import confusion
from seawall.models.standardize import Standardize
from seawall.models.weights import load_model
from seawall.orders import Relabel, noise_of
from seawall.recipe import Method, Noise
from seawall.schedule import make_training
from seawall.stages.run import Run
from seawall.train import fit
from seawall.types import Batch, ModelSpec, Objective


def learn(run: Run, chips: ChipFolder, split: Split) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network trained on clean labels, then one per label noise and rate."""
    name, training = run.recipe.model.name, run.recipe.training
    yield name, train_one(run, chips, split, name, training.objective, None)
    for called, (noise, _, fault) in corruptions(run, chips, split).items():
        yield called, train_one(run, chips, split, called, noise.objective or training.objective, fault)


def corruptions(run: Run, chips: ChipFolder, split: Split) -> dict[str, tuple[Noise, float, Relabel]]:
    """Return the label faults of a recipe, each with its rate, by the name of the network that learns from them."""
    name = run.recipe.model.name
    return {
        f"{name}@{noise.name}-{rate:g}" + (f"+{_way(noise.objective)}" if noise.objective else ""): (
            noise,
            rate,
            Relabel(noise_of(noise, rate, chips, split), run.recipe.seed),
        )
        for noise in run.recipe.noises
        for rate in noise.rates
    }


def realize(run: Run, chips: ChipFolder, split: Split) -> dict[str, dict[str, float | int | str]]:
    """Return which fault each network learns from, and what the fault really changes in the training part.

    Raises:
        DataError: It changes nothing; a network trained on it would be the clean one under another name.
    """
    found: dict[str, dict[str, float | int | str]] = {}
    for called, (noise, rate, fault) in corruptions(run, chips, split).items():
        pairs = [(chip := chips.read(id_), fault(chip)) for id_ in split.train]
        wrong = [int(((old.label != new.label) & old.valid).sum()) for old, new in pairs]
        valid = sum(int(old.valid.sum()) for old, _ in pairs)
        if not any(wrong) and any(rate > 0 for rate in noise.rates):
            raise DataError(
                f"noises.{noise.name}: expected it to change labels of {len(pairs)} training chips, got none changed "
                f"in {valid} pixels; use another noise, or more chips"
            )
        found[called] = {
            "model": run.recipe.model.name,
            "noise": noise.name,
            "rate": rate,
            "vary": noise.vary,
            "objective": _way(noise.objective) if noise.objective else "",
            "changed_share": sum(wrong) / valid,
            "chips_changed": sum(n > 0 for n in wrong),
            "chips": len(pairs),
        }
    return found


def _way(objective: Method) -> str:
    """Name how a network is trained through a noise: by its loss if that is all, else by its objective."""
    loss = objective.settings.get("loss")
    return loss.replace(" ", "") if objective.name == "supervised" and isinstance(loss, str) else objective.name


def train_one(
    run: Run, chips: ChipFolder, split: Split, name: str, objective: Method, edit: Callable[[Chip], Chip] | None
) -> nn.Module:
    """Train one network, or load it where its training is complete."""
    recipe, folder = run.recipe, run.folder / "models" / name
    training = make_training(recipe.training.settings)
    make = maker(recipe.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Keys(recipe.seed, (recipe.model.name,)).number(0))
        model = make(replace(spec_of_chips(chips), note=recipe.title))
    mean, std = chips.mean_std(split.train)
    cast(Standardize, model.standardize).fit(mean.tolist(), std.tolist())

    def feed(epoch: int) -> Iterator[Batch]:
        return patches(
            chips, split.train, patch=training.patch, batch=training.batch, count=training.patches_per_epoch, epoch=epoch,
            seed=recipe.seed, augment=recipe.training.augment, balance=recipe.training.balance, edit=edit,
        )  # fmt: skip

    fit(
        model,
        cast(Objective, registry.build("objective", objective.name, objective.settings)),
        feed,
        lambda trained: check(trained, chips, split.val),
        training,
        folder,
        device=run.device,
        resume=run.resume,
        seed=recipe.seed,
        context={"chips": digest_chips(chips, split.train), "labels": repr(edit)},
        progress=run.say(f"train {name}"),
    )
    return load_model(folder / "model.safetensors")


def check(model: nn.Module, chips: ChipFolder, ids: Iterable[str]) -> dict[str, float]:
    """Return the figures that choose the best epoch: IoU per class, pooled over the validation chips."""
    classes = chips.classes
    counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in whole(chips, tuple(ids)):
            pred = model(batch.image.to(device)).argmax(1).cpu()
            counts += confusion(pred, batch.label, batch.valid, len(classes)).sum(0)
    hit = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - hit
    return {f"val.iou.{name}": float(hit[k] / union[k]) if union[k] else 0.0 for k, name in enumerate(classes)}


def spec_of_chips(chips: ChipFolder) -> ModelSpec:
    """Return what a model of these chips needs."""
    return ModelSpec(chips.bands, chips.classes, chips.unit, chips.gsd_m)


def maker(method: Method) -> Callable[[ModelSpec], nn.Module]:
    """Return what builds a registered model."""
    return cast(Callable[[ModelSpec], nn.Module], registry.build("model", method.name, method.settings))

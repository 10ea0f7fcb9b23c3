"""`seawall train`: one network of a chip folder, by the recipe that cross-validation over places chose for few chips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seawall.data.chips import ChipFolder
from seawall.pipeline.harden import sensor_of
from seawall.pipeline.run import train_only, untrained_model
from seawall.pipeline.training import spec_of_chips
from seawall.recipe.recipe import change_recipe
from seawall.recipe.sections import MethodSection
from seawall.result import Failed, MutableRow, Progress
from seawall.types import FittedModel, ModelSpec

SUPERVISED_LOSS = "ce + dice"
FIXED_LENGTH: Mapping[str, object] = {
    "epochs": 20,
    "steps_per_epoch": 50,
    "patch": 64,
    "batch": 8,
    "lr": 2e-3,
    "keep": "last",
    "ema": 0.99,
}
"""A fixed length and the average of the last weights: the best of a few validation chips is one of chance (docs/measured.md)."""


def few_chips_model(spec: ModelSpec) -> MethodSection:
    """Return the model that did best on few chips: a small U-Net, with the normalized differences of reflectance bands."""
    several = spec.unit == "reflectance" and len(spec.bands) > 1
    return MethodSection(name="index-unet" if several else "unet", settings={"width": 8, "depth": 3})


def train_chips(
    chips: Path,
    *,
    out: Path,
    model: str | None,
    changes: Sequence[str],
    seed: int,
    device: str,
    resume: bool,
    progress: Progress,
) -> tuple[Mapping[str, str | int | float | None], list[MutableRow], Failed]:
    """Train one network on the training part of a chip folder.

    Args:
        chips: A chip folder.
        out: Where weights, logs and checkpoints go.
        model: Registered model; None takes that of the changes, or `few_chips_model`.
        changes: `key=value` changes of the recipe.
        seed: Seed of split, weights and patches.
        device: auto, cpu, cuda or mps.
        resume: Continue from the checkpoint in the folder.
        progress: Called as the work goes on.
    """
    stored = ChipFolder.open(chips)
    data = {"source": str(chips), "kind": "chips", "sensor": sensor_of(spec_of_chips(stored))}
    supervised = {"name": "supervised", "settings": {"loss": SUPERVISED_LOSS}}
    tree: dict[str, Any] = {"name": "train", "seed": seed, "model": {"name": model or ""}, "data": data}
    tree["training"] = {"objective": supervised, "settings": FIXED_LENGTH}
    asked = change_recipe(tree, changes)  # the changes may name a model, the bands that it takes, and an objective
    if asked.training.objective.name != supervised["name"]:
        del tree["training"]["objective"]  # which has other settings
    taken = stored.with_bands(asked.inputs)
    section = MethodSection(name=asked.model.name) if asked.model.name else few_chips_model(spec_of_chips(taken))
    tree["model"] = section.model_dump()
    if isinstance(untrained_model(section, taken), FittedModel):
        del tree["training"]
    return train_only(change_recipe(tree, changes), out, device=device, resume=resume, progress=progress)

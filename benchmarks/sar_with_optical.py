"""What an optical network gives to a radar one that is used alone, on held-out places: water IoU, and CPU-minutes.

Two tables: the radar network has the labels of all training chips, or those of about a seventh of them, while the optical one
has all of them; there distillation goes on where no label is.

Trains on the OMBRIA chips (SEAWALL_DATA), which have one polarization and three optical bands after a flood, or on simulated scenes,
split by group; the seed decides split, weights and patches. The network "optical" is the teacher and the start of the others of its
seed, and has their split. Equal optimizer steps for all, but for "sar, twice the steps", which has those of a method and its teacher
together. Weights are selected by validation chips. Every finished cell is a JSON line in `--out`/cells.jsonl, with the counts of every
group; a run that was stopped goes on where it stopped.

    python benchmarks/sar_with_optical.py --out runs/sar                                     # all methods, 3 seeds
    python benchmarks/sar_with_optical.py --out runs/sar --methods "optical;sar;distilled" --seeds 0
    python benchmarks/sar_with_optical.py --out runs/sar --table                             # print what is there
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from few_labels import objective
from study import (
    CLEAN,
    KEPT,
    LOSS,
    Cells,
    SplitChips,
    cells_of_methods,
    folder_of,
    method_table,
    real_or_simulated,
    recipe_by_group,
    training_settings,
)

from seawall.recipe.recipe import Recipe

OPTICAL, SAR = "optical", "sar"
START: Mapping[str, object] = {"adapt_bands": True}
"""Training keys of a network that starts from the optical one, whose weights file is added."""

METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    OPTICAL: ("s2", {}),
    SAR: ("s1", {}),
    "distilled": ("s1", {"objective": objective("distillation")}),
    "pre-trained": ("s1", START),
    "coral": ("s1", {"objective": objective("moment-matching"), **START}),
    "both": ("s1,s2", {}),
    "sar, twice the steps": ("s1", {"passes": 2}),
    "distilled, predictions": ("s1", {"objective": objective("distillation", weight=0.0)}),
    "distilled, features": ("s1", {"objective": objective("distillation", kd_weight=0.0)}),
    "distilled, a tenth": ("s1", {"objective": objective("distillation", weight=0.1, kd_weight=0.1)}),
    "kernels": ("s1", {"objective": objective("kernel-matching"), **START}),
}
"""Inputs and training keys, in the order in which they are trained."""

FEW = {"supervision": [{"name": "chips", "settings": {"share": 0.15}}]}
PAIRS = {**FEW, "unlabelled": 1}
FEW_LABELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sar, few labels": ("s1", FEW),
    "distilled, few labels": ("s1", {"objective": objective("distillation"), **FEW}),
    "distilled, few labels and pairs": ("s1", {"objective": objective("distillation"), **PAIRS}),
    "predictions, few labels and pairs": ("s1", {"objective": objective("distillation", weight=0.0), **PAIRS}),
    "pre-trained, few labels": ("s1", {**START, **FEW}),
    "coral, few labels and pairs": ("s1", {"objective": objective("moment-matching"), **START, **PAIRS}),
    "kernels, few labels and pairs": ("s1", {"objective": objective("kernel-matching"), **START, **PAIRS}),
}
"""The same where few radar chips have labels; "pairs" are the chips without a label."""


def recipe(given: argparse.Namespace, method: str, seed: int) -> Recipe:
    """Return what one network is trained by."""
    inputs, changes = {**METHODS, **FEW_LABELS}[method]
    teacher = str(folder_of(given.out, OPTICAL, seed) / "models/unet/model.safetensors")
    asked = changes.get("objective", objective("supervised"))
    guide = {} if asked["name"] == "supervised" else {"teacher": teacher}
    section: dict[str, object] = {
        "objective": {"name": asked["name"], "settings": {**asked["settings"], **guide, "loss": LOSS}},
        "settings": {**training_settings(given, 64, 3), "epochs": given.passes * changes.get("passes", 1)},
    }
    if "adapt_bands" in changes:
        section |= {"start": teacher, "adapt_bands": True}
    section |= {key: changes[key] for key in ("supervision", "unlabelled") if key in changes}
    return recipe_by_group(
        {
            "name": "sar-with-optical",
            "seed": seed,
            "data": {**real_or_simulated("ombria_"), "sensor": "s1,s2"},
            "inputs": inputs.split(","),
            "model": {"name": "unet", "settings": {"width": given.width, "depth": 3}},
            "training": section,
        }
    )


def measure(given: argparse.Namespace, cells: Cells, seed: int) -> None:
    """Add the cells of one seed."""
    held = SplitChips.of(recipe(given, OPTICAL, seed), given.out)
    for method in given.methods:
        if not cells.has(method, seed, KEPT, CLEAN):
            network, minutes = held.trained(recipe(given, method, seed), folder_of(given.out, method, seed))
            cells.add(method, seed, KEPT, CLEAN, held.counts(network), held.groups, minutes)


def main() -> None:
    """Train, measure, print the tables."""
    _, cells = cells_of_methods(__doc__, "runs/sar", [*METHODS, *FEW_LABELS], "tables", measure)
    print("\n".join([*method_table(cells, METHODS, SAR), "", *method_table(cells, FEW_LABELS, "sar, few labels")]))


if __name__ == "__main__":
    main()

"""What an optical network gives to a radar one that is used alone, on held-out places: water IoU, and CPU-minutes.

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
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from few_labels import objective, table
from hardening import LOSS, Cells, billed_training, corrupted_counts

from seawall.pipeline.context import RunContext
from seawall.pipeline.data import load_chips, make_split
from seawall.recipe.recipe import Recipe, make_recipe

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


def weights_of(given: argparse.Namespace, method: str, seed: int) -> Path:
    """Return the folder of a training."""
    return Path(given.out) / f"{method.replace(', ', '-').replace(' ', '-')}-s{seed}"


def recipe(given: argparse.Namespace, method: str, seed: int) -> Recipe:
    """Return what one network is trained by."""
    inputs, changes = METHODS[method]
    real = {"source": "$SEAWALL_DATA", "kind": "index", "select": "ombria_"}
    data = real if os.environ.get("SEAWALL_DATA") else {"count": 24, "size": 128}
    teacher = str(weights_of(given, OPTICAL, seed) / "models/unet/model.safetensors")
    asked = changes.get("objective", objective("supervised"))
    guide = {} if asked["name"] == "supervised" else {"teacher": teacher}
    section: dict[str, object] = {
        "objective": {"name": asked["name"], "settings": {**asked["settings"], **guide, "loss": LOSS}},
        "settings": {
            "epochs": given.passes * changes.get("passes", 1), "steps_per_epoch": given.steps, "patch": 64, "batch": 8, "lr": 2e-3,
            "check_every": min(3, given.passes), "tensorboard": False,
        },
    }  # fmt: skip
    if "adapt_bands" in changes:
        section |= {"start": teacher, "adapt_bands": True}
    return make_recipe(
        {
            "name": "sar-with-optical",
            "seed": seed,
            "data": {**data, "sensor": "s1,s2"},
            "inputs": inputs.split(","),
            "split": {"val": 0.15, "test": 0.35},
            "model": {"name": "unet", "settings": {"width": given.width, "depth": 3}},
            "training": section,
        }
    )


def measure(given: argparse.Namespace, cells: Cells, seed: int) -> None:
    """Add the cells of one seed."""
    base = RunContext(recipe(given, OPTICAL, seed), given.out, "cpu", True, lambda *_: None)
    chips, _ = load_chips(base, given.out / "chips")
    split = make_split(base, chips)
    groups = {id_: chips.row(id_).group for id_ in split.test}
    for method in given.methods:
        if cells.has(method, seed, "kept", "clean"):
            continue
        order, began = recipe(given, method, seed), time.process_time()
        network, minutes = billed_training(order, weights_of(given, method, seed), chips, split, began)
        counts = corrupted_counts(network, chips.with_bands(order.inputs), split.test, None, 0.0)
        cells.add(method, seed, "kept", "clean", counts, groups, minutes)


def main() -> None:
    """Train, measure, print the table."""
    given = asked()
    torch.set_num_threads(given.threads)
    cells = Cells(given.out / "cells.jsonl")
    for seed in () if given.table else given.seeds:
        measure(given, cells, seed)
    print("\n".join(table(cells, METHODS, SAR)))


def asked() -> argparse.Namespace:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, default=Path("runs/sar"), help="keep chips, networks and cells there")
    ask.add_argument(
        "--methods", type=lambda text: text.split(";"), default=list(METHODS), help="names with semicolons"
    )
    ask.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    ask.add_argument("--passes", type=int, default=12, help="epochs of the training")
    ask.add_argument("--steps", type=int, default=20, help="optimizer steps per epoch")
    ask.add_argument("--width", type=int, default=8)
    ask.add_argument("--table", action="store_true", help="print the table of the finished cells and stop")
    ask.add_argument("--threads", type=int, default=1)
    given = ask.parse_args()
    if unknown := [name for name in given.methods if name not in METHODS]:
        ask.error(f"--methods: expected some of {'; '.join(METHODS)}, got {unknown[0]}")
    return given


if __name__ == "__main__":
    main()

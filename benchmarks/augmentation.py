"""What each augmentation gives on held-out places: water IoU on clean chips, under corruptions that the network was trained on,
and under corruptions that it never saw; and what the sensitivity analysis costs.

Trains on the real chips (SEAWALL_DATA) or on simulated scenes, split by group; the seed decides split, weights, patches and
draws. Equal optimizer steps for all methods: `--passes` epochs of `--steps` steps, of which the last weights are kept: selected
by clean validation they may be from before the first augmented step. augmix sends three images per patch through the
network in each step. "Seen" are the corruptions that the methods of this package train on
(`seawall.defenses.corrupted_batches.TRAINING_CORRUPTIONS`), "held out" all others of the sensor; trivial and rand have
brightness and rotations of their own. Every finished cell is a JSON line in `--out`/cells.jsonl, with the counts of every
group; a run that was stopped goes on where it stopped.

    python benchmarks/augmentation.py --out runs/augmentation                                  # all methods, 3 seeds
    python benchmarks/augmentation.py --out runs/augmentation --methods none,sensitivity --seeds 0
    python benchmarks/augmentation.py --out runs/augmentation --table                          # print what is there
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from study import (
    CLEAN,
    LOSS,
    Cells,
    Parts,
    SplitChips,
    StudyParser,
    corrupted_counts,
    folder_of,
    mean_difference,
    mean_iou,
    recipe_by_group,
    training_settings,
    value_text,
)

from seawall.chip_context import ChipContext
from seawall.corruptions.build import fitting_corruptions
from seawall.defenses.corrupted_batches import TRAINING_CORRUPTIONS
from seawall.recipe.recipe import Recipe

INNER: Mapping[str, object] = {"objective_settings": {"loss": LOSS}}
CLOCK: Mapping[str, object] = {"rounds": 10, "clean_rounds": 2, "curve_rounds": 3}
METHODS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "none": ("supervised", {"loss": LOSS}),
    "uniform": ("uniform-augmentation", INNER),
    "sensitivity": ("sensitivity-augmentation", {**INNER, **CLOCK}),
    "trivial": ("trivial-augment", INNER),
    "rand": ("rand-augment", INNER),
    "augmix": ("augmix", {"loss": LOSS}),
    "gradient": ("gradient-sensitive-augmentation", INNER),
}
"""Objective and settings of each method. The clock has half of the paper's rounds, for these trainings are short."""


def recipe(given: argparse.Namespace, method: str, seed: int) -> Recipe:
    """Return what one network is trained by."""
    name, settings = METHODS[method]
    training = training_settings(given, given.patch, given.passes)
    return recipe_by_group(
        {
            "name": "augmentation",
            "seed": seed,
            "model": {"name": "unet", "settings": {"width": given.width, "depth": 3}},
            "training": {"objective": {"name": name, "settings": dict(settings)}, "settings": training},
        }
    )


def measure(given: argparse.Namespace, cells: Cells, seed: int) -> None:
    """Add the cells of one seed: clean, then every corruption at every severity."""
    held = SplitChips.of(recipe(given, "none", seed), given.out)
    known = fitting_corruptions(ChipContext.of(held.chips, held.chips.ids))[0]
    grid = [("0", CLEAN), *((f"{severity:g}", name) for name in known for severity in given.severities)]
    for method in given.methods:
        todo = [(severity, name) for severity, name in grid if not cells.has(method, seed, severity, name)]
        if not todo:
            continue
        network, minutes = held.trained(recipe(given, method, seed), folder_of(given.out, method, seed))
        for severity, name in todo:
            counts = corrupted_counts(network, held.chips, held.split.test, known.get(name), float(severity))
            cells.add(method, seed, severity, name, counts, held.groups, minutes)


def analysis(given: argparse.Namespace, method: str, seed: int) -> tuple[float, float]:
    """Return the passes of the sample and the CPU-minutes of a training's measurements; 0 where it measures nothing."""
    files = list(folder_of(given.out, method, seed).rglob("history.jsonl"))
    last = json.loads(files[0].read_text().splitlines()[-1]) if files else {}
    return float(last.get("objective.passes", 0)), float(last.get("objective.cpu_s", 0)) / 60


SEEN = {text.split()[0] for text in TRAINING_CORRUPTIONS["reflectance"]}
PARTS = (CLEAN, "seen", "held out")


def part_of(corruption: str) -> str:
    """Return which mean a corruption is part of."""
    return CLEAN if corruption == CLEAN else "seen" if corruption in SEEN else "held out"


def table(given: argparse.Namespace, cells: Cells) -> Iterator[str]:
    """Yield the lines of the tables: means over seeds and corruptions, then every corruption by severity."""
    sizes = Counter((r["method"], r["seed"]) for r in cells.rows)
    whole = sorted(key for key, size in sizes.items() if size == max(sizes.values()))
    done = {method: [s for m, s in whole if m == method] for method in METHODS if method in dict(whole)}

    def of(method: str, seeds: list[int]) -> list[dict[str, Any]]:
        rows = [r for r in cells.rows if r["method"] == method and r["seed"] in seeds]
        return sorted(rows, key=lambda r: (r["seed"], r["attack"], r["budget"]))

    def counts(rows: list[dict[str, Any]], part: str) -> Parts:
        return [r["groups"] for r in rows if part_of(r["attack"]) == part]

    yield "| method | seeds | clean | seen | held out | CPU-min | passes of the analysis | its CPU-min |"
    yield "|---|---|---|---|---|---|---|---|"
    for method, seeds in done.items():
        rows = of(method, seeds)
        figures = [value_text(mean_iou(counts(rows, part))) for part in PARTS]
        bill = np.mean([float(str(r["cpu_minutes"])) for r in rows])
        passes, minutes = np.mean([analysis(given, method, seed) for seed in seeds], 0)
        yield f"| {method} | {','.join(map(str, seeds))} | {' | '.join(figures)} | {bill:.1f} | {passes:.0f} | {minutes:.1f} |"
    yield ""
    yield "| method | " + " | ".join(f"{part} minus none" for part in PARTS) + " |"
    yield "|---|---|---|---|"
    for method, seeds in done.items():
        if seeds == done.get("none") and method != "none":
            pairs = [(counts(of(method, seeds), part), counts(of("none", seeds), part)) for part in PARTS]
            shown = " | ".join("{:+.3f} ({:+.3f} to {:+.3f})".format(*mean_difference(*pair)) for pair in pairs)
            yield f"| {method} | {shown} |"
    steps = sorted({(r["attack"] not in SEEN, r["attack"], r["budget"]) for r in cells.rows if r["attack"] != CLEAN})
    yield ""
    yield "| corruption | severity | trained on | " + " | ".join(done) + " |"
    yield "|---|" + "---|" * (len(done) + 2)
    for held, name, severity in steps:
        cell = {
            m: [r["groups"] for r in of(m, s) if (r["attack"], r["budget"]) == (name, severity)]
            for m, s in done.items()
        }
        shown = " | ".join(f"{mean_iou(parts)[0]:.3f}" if parts else "" for parts in cell.values())
        yield f"| {name} | {severity} | {'no' if held else 'yes'} | {shown} |"


def main() -> None:
    """Train, corrupt, print the tables."""
    given = asked()
    torch.set_num_threads(1)
    cells = Cells(given.out / "cells.jsonl")
    for seed in () if given.table else given.seeds:
        measure(given, cells, seed)
    print("\n".join(table(given, cells)))


def asked() -> argparse.Namespace:
    ask = StudyParser(__doc__, "runs/augmentation")
    ask.add_names("--methods", METHODS)
    ask.add_seeds()
    ask.add_argument("--severities", type=lambda text: [float(s) for s in text.split(",")], default=[0.5, 1.0])
    ask.add_training(passes=40, steps=30)
    ask.add_argument("--patch", type=int, default=64)
    ask.add_table()
    return ask.parse_args()


if __name__ == "__main__":
    main()

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
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardening import LOSS, Cells, billed_training, corrupted_counts

from seawall.chip_context import ChipContext
from seawall.corruptions.build import fitting_corruptions
from seawall.defenses.corrupted_batches import TRAINING_CORRUPTIONS
from seawall.metrics.bootstrap import Resamples, percentile_interval, weighted_mean
from seawall.metrics.ratios import divide_or_nan
from seawall.pipeline.context import RunContext
from seawall.pipeline.data import load_chips, make_split
from seawall.recipe.recipe import Recipe, make_recipe

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
    real = {"source": "$SEAWALL_DATA", "kind": "index", "select": "hls_"}
    training = {
        "epochs": given.passes, "steps_per_epoch": given.steps, "patch": given.patch, "batch": 8, "lr": 2e-3,
        "check_every": given.passes, "tensorboard": False,
    }  # fmt: skip
    return make_recipe(
        {
            "name": "augmentation",
            "seed": seed,
            "data": real if os.environ.get("SEAWALL_DATA") else {"count": 24, "size": 128},
            "split": {"val": 0.15, "test": 0.35},
            "model": {"name": "unet", "settings": {"width": given.width, "depth": 3}},
            "training": {"objective": {"name": name, "settings": dict(settings)}, "settings": training},
        }
    )


def measure(given: argparse.Namespace, cells: Cells, seed: int) -> None:
    """Add the cells of one seed: clean, then every corruption at every severity."""
    base = RunContext(recipe(given, "none", seed), given.out, "cpu", True, lambda *_: None)
    chips, _ = load_chips(base, given.out / "chips")
    split, known = make_split(base, chips), fitting_corruptions(ChipContext.of(chips, chips.ids))[0]
    groups = {id_: chips.row(id_).group for id_ in split.test}
    grid = [("0", "clean"), *((f"{severity:g}", name) for name in known for severity in given.severities)]
    for method in given.methods:
        todo = [(severity, name) for severity, name in grid if not cells.has(method, seed, severity, name)]
        if not todo:
            continue
        folder, began = given.out / f"{method}-s{seed}", time.process_time()
        network, minutes = billed_training(recipe(given, method, seed), folder, chips, split, began)
        for severity, name in todo:
            counts = corrupted_counts(network, chips, split.test, known.get(name), float(severity))
            cells.add(method, seed, severity, name, counts, groups, minutes)


Parts = list[Mapping[str, list[int]]]
"""Counts of several cells: intersection and union by group."""


def mean_iou(parts: Parts) -> tuple[float, float, float]:
    """Return the mean of the pooled IoUs of several cells, and its 95 % interval over groups."""
    return mean_difference(parts, [])


def mean_difference(first: Parts, second: Parts) -> tuple[float, float, float]:
    """Return the mean IoU of the first cells minus that of the second, and its 95 % interval: both of the same redrawn groups."""
    names = sorted({name for part in (*first, *second) for name in part})
    draws = Resamples.over(names)

    def mean(parts: Parts, weights: np.ndarray) -> np.ndarray:
        if not parts:
            return np.zeros(len(weights))
        table = np.array([[part.get(name, (0, 0)) for name in names] for part in parts], float)  # cells x groups x 2
        ratios = divide_or_nan(weights @ table[:, :, 0].T, weights @ table[:, :, 1].T)  # resamples x cells
        return weighted_mean(ratios.T, np.eye(len(parts)), np.ones((1, len(parts))))[0]

    once, drawn = (mean(first, weights) - mean(second, weights) for weights in (draws.once, draws.weights))
    low, high = percentile_interval(drawn[:, None])
    return float(once[0]), float(low[0]), float(high[0])


def analysis(given: argparse.Namespace, method: str, seed: int) -> tuple[float, float]:
    """Return the passes of the sample and the CPU-minutes of a training's measurements; 0 where it measures nothing."""
    files = list((given.out / f"{method}-s{seed}").rglob("history.jsonl"))
    last = json.loads(files[0].read_text().splitlines()[-1]) if files else {}
    return float(last.get("objective.passes", 0)), float(last.get("objective.cpu_s", 0)) / 60


SEEN = {text.split()[0] for text in TRAINING_CORRUPTIONS["reflectance"]}
PARTS = ("clean", "seen", "held out")


def part_of(corruption: str) -> str:
    """Return which mean a corruption is part of."""
    return "clean" if corruption == "clean" else "seen" if corruption in SEEN else "held out"


def table(given: argparse.Namespace, cells: Cells) -> Iterator[str]:
    """Yield the lines of the tables: means over seeds and corruptions, then every corruption by severity."""
    size = max((sum(r["method"] == m and r["seed"] == s for r in cells.rows) for m in METHODS for s in range(9)), default=0)  # fmt: skip
    done: dict[str, list[int]] = {}
    for method in METHODS:
        seeds = sorted({r["seed"] for r in cells.rows if r["method"] == method})
        if whole := [s for s in seeds if sum((r["method"], r["seed"]) == (method, s) for r in cells.rows) == size]:
            done[method] = whole

    def of(method: str, seeds: list[int]) -> list[dict[str, Any]]:
        rows = [r for r in cells.rows if r["method"] == method and r["seed"] in seeds]
        return sorted(rows, key=lambda r: (r["seed"], r["attack"], r["budget"]))

    def counts(rows: list[dict[str, Any]], part: str) -> Parts:
        return [r["groups"] for r in rows if part_of(r["attack"]) == part]

    yield "| method | seeds | clean | seen | held out | CPU-min | passes of the analysis | its CPU-min |"
    yield "|---|---|---|---|---|---|---|---|"
    for method, seeds in done.items():
        rows = of(method, seeds)
        figures = ["{:.3f} ({:.2f} to {:.2f})".format(*mean_iou(counts(rows, part))) for part in PARTS]
        bill = np.mean([float(str(r["cpu_minutes"])) for r in rows])
        passes, minutes = np.mean([analysis(given, method, seed) for seed in seeds], 0)
        yield f"| {method} | {','.join(map(str, seeds))} | {' | '.join(figures)} | {bill:.1f} | {passes:.0f} | {minutes:.1f} |"
    yield ""
    yield "| method | " + " | ".join(f"{part} minus none" for part in PARTS) + " |"
    yield "|---|---|---|---|"
    for method, seeds in done.items():
        if seeds == done.get("none") and method != "none":
            pairs = [(counts(of(method, seeds), part), counts(of("none", seeds), part)) for part in PARTS]
            yield (
                f"| {method} | "
                + " | ".join("{:+.3f} ({:+.3f} to {:+.3f})".format(*mean_difference(*p)) for p in pairs)
                + " |"
            )
    steps = sorted({(r["attack"] not in SEEN, r["attack"], r["budget"]) for r in cells.rows if r["attack"] != "clean"})
    yield ""
    yield "| corruption | severity | trained on | " + " | ".join(done) + " |"
    yield "|---|" + "---|" * (len(done) + 2)
    for held, name, severity in steps:
        cell = {
            m: [r["groups"] for r in of(m, s) if (r["attack"], r["budget"]) == (name, severity)]
            for m, s in done.items()
        }
        shown = " | ".join(f"{mean_iou(parts)[0]:.3f}" if parts else "" for parts in cell.values())  # type: ignore[arg-type]
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
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, default=Path("runs/augmentation"), help="keep chips, networks and cells there")
    ask.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS), help="names with commas")
    ask.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    ask.add_argument("--severities", type=lambda text: [float(s) for s in text.split(",")], default=[0.5, 1.0])
    ask.add_argument("--passes", type=int, default=40, help="epochs of the training")
    ask.add_argument("--steps", type=int, default=30, help="optimizer steps per epoch")
    ask.add_argument("--width", type=int, default=8)
    ask.add_argument("--patch", type=int, default=64)
    ask.add_argument("--table", action="store_true", help="print the tables of the finished cells and stop")
    given = ask.parse_args()
    if unknown := [name for name in given.methods if name not in METHODS]:
        ask.error(f"--methods: expected some of {', '.join(METHODS)}, got {unknown[0]}")
    return given


if __name__ == "__main__":
    main()

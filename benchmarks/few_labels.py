"""What unlabelled chips, image-level labels and pre-training without labels give on held-out places: water IoU, and CPU-minutes.

Trains on the real chips (SEAWALL_DATA) or on simulated scenes, split by group; the seed decides split, labelled chips, weights and
patches. Two tables: a tenth of the training chips labelled, and image-level labels of all of them; beside each stands
the network that has all labels. Equal optimizer steps of the network for all methods of a table, but for the rounds, which add
their own; an unlabelled patch stands beside every labelled one where a method takes some. Weights are selected by
validation chips with labels. Every finished cell is a JSON line in `--out`/cells.jsonl, with the counts of every group; a run that was
stopped goes on where it stopped.

    python benchmarks/few_labels.py --out runs/few-labels                                # both tables, 3 seeds
    python benchmarks/few_labels.py --out runs/few-labels --methods "all;chips;fixmatch" --seeds 0
    python benchmarks/few_labels.py --out runs/few-labels --table                        # print what is there
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from hardening import LOSS, Cells, Parts, billed_training, corrupted_counts, difference, pooled

from seawall.models.weights import load_model
from seawall.pipeline.context import RunContext
from seawall.pipeline.data import load_chips, make_split
from seawall.pipeline.rounds import ROUNDS_FOLDER, round_figures
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.types import SegmentationModel

CHIPS = [{"name": "chips", "settings": {"share": 0.1}}]
IMAGES = [{"name": "image-labels", "settings": {"share": 0.1}}]
WHOLE = {"patch": 128, "batch": 2}
"""Patches as large as the chips, so that the label of the chip is that of the patch; as many pixels per step."""
EMA = {"ema": 0.99}
ALIKE: Mapping[str, object] = {"gain": 0.2, "band_gain": 0.05}


def objective(name: str, **settings: object) -> dict[str, object]:
    return {"name": name, "settings": settings}


PLAIN = objective("supervised", loss=LOSS)
FEW: Mapping[str, Mapping[str, Any]] = {
    "all": {"objective": PLAIN},
    "chips": {"objective": PLAIN, "supervision": CHIPS},
    "chips, views": {"objective": objective("mean-teacher", loss=LOSS, **ALIKE), "supervision": CHIPS, "settings": EMA},
    "mean-teacher": {"objective": objective("mean-teacher", loss=LOSS, **ALIKE), "supervision": CHIPS, "unlabelled": 1, "settings": EMA},
    "fixmatch": {"objective": objective("fixmatch", loss=LOSS), "supervision": CHIPS, "unlabelled": 1, "settings": EMA},
    "paul-ganju": {
        "objective": PLAIN, "supervision": CHIPS,
        "rounds": {"name": "paul-ganju", "settings": {"tile": 64, "settings": {"epochs": 4}}},
    },
    "reconstruction": {"objective": PLAIN, "supervision": CHIPS, "pretraining": {"task": "reconstruction"}},
    "fixmatch, no guard": {
        "objective": objective("fixmatch", loss=LOSS, bound=0.0), "supervision": CHIPS, "unlabelled": 1, "settings": EMA,
    },
}  # fmt: skip
"""Training sections with a tenth of the chips labelled; "chips, views" is the mean teacher without unlabelled chips."""

IMAGE: Mapping[str, Mapping[str, Any]] = {
    "relabel-loop": {
        "objective": PLAIN, "supervision": IMAGES, "rounds": {"name": "relabel-loop", "settings": {"rounds": 3, "stop": 0.0}},
    },
    "class activation": {"objective": objective("multiple-instance", pooling="mean"), "supervision": IMAGES, "settings": WHOLE},
    "log-sum-exp": {"objective": objective("multiple-instance"), "supervision": IMAGES, "settings": WHOLE},
    "size": {"objective": objective("size-constraint", low=0.1), "supervision": IMAGES, "settings": WHOLE},
}  # fmt: skip
"""Training sections with image-level labels: water where more than a tenth of the chip is."""

METHODS = {
    **{name: FEW[name] for name in FEW if name != "fixmatch, no guard"},
    **IMAGE,
    "fixmatch, no guard": FEW["fixmatch, no guard"],
}
"""In the order in which they are trained."""
BESIDE = {"paul-ganju": "unet++"}


def recipe(given: argparse.Namespace, method: str, seed: int) -> Recipe:
    """Return what one network is trained by."""
    real = {"source": "$SEAWALL_DATA", "kind": "index", "select": "hls_"}
    network = {"width": given.width, "depth": 3}
    section = dict(METHODS[method])
    usual = {
        "epochs": given.passes, "steps_per_epoch": given.steps, "patch": 64, "batch": 8, "lr": 2e-3, "check_every": min(3, given.passes),
        "tensorboard": False,
    }  # fmt: skip
    section["settings"] = {**usual, **section.get("settings", {})}
    if method in BESIDE:
        rounds = section["rounds"]
        section["rounds"] = {**rounds, "settings": {**rounds["settings"], "beside_settings": network}}
    return make_recipe(
        {
            "name": "few-labels",
            "seed": seed,
            "data": real if os.environ.get("SEAWALL_DATA") else {"count": 24, "size": 128},
            "split": {"val": 0.15, "test": 0.35},
            "model": {"name": "unet", "settings": network},
            "training": section,
        }
    )


def measure(given: argparse.Namespace, cells: Cells, seed: int) -> None:
    """Add the cells of one seed; a method in rounds has one for each round as well."""
    base = RunContext(recipe(given, "all", seed), given.out, "cpu", True, lambda *_: None)
    chips, _ = load_chips(base, given.out / "chips")
    split = make_split(base, chips)
    groups = {id_: chips.row(id_).group for id_ in split.test}

    def add(method: str, part: str, network: SegmentationModel, minutes: float) -> None:
        if not cells.has(method, seed, part, "clean"):
            counts = corrupted_counts(network, chips, split.test, None, 0.0)
            cells.add(method, seed, part, "clean", counts, groups, minutes)

    for method in given.methods:
        if cells.has(method, seed, "kept", "clean"):
            continue
        folder, began = given.out / f"{method.replace(', ', '-').replace(' ', '-')}-s{seed}", time.process_time()
        network, minutes = billed_training(recipe(given, method, seed), folder, chips, split, began)
        home = folder / "models/unet"
        for row in round_figures(home):
            weights = home / ROUNDS_FOLDER / str(row["round"]) / "model.safetensors"
            if weights.exists():  # a round without an accepted tile trains nothing
                own = cast(SegmentationModel, load_model(weights).eval())
                add(method, f"round {row['round']}", own, float(row["cpu_minutes"] or 0))
        add(method, "kept", network, minutes)


def parts(cells: Cells, method: str, part: str, seeds: list[int]) -> Parts:
    """Return the counts of a cell over the seeds that have it."""
    rows = [r for r in cells.rows if (r["method"], r["budget"]) == (method, part)]
    return [r["groups"] for r in rows if r["seed"] in seeds]


def table(cells: Cells, methods: Mapping[str, object], reference: str) -> Iterator[str]:
    """Yield the lines of a table: IoU over the seeds, each seed alone, the paired difference to a method, and CPU-minutes."""
    yield f"| method | water IoU (95 %) | by seed | minus {reference} | CPU-min |"
    yield "|---|---|---|---|---|"
    found = list(dict.fromkeys((r["method"], r["budget"]) for r in cells.rows))
    for method in methods:
        for part in sorted(p for m, p in found if m == method):
            rows = sorted(
                (r for r in cells.rows if (r["method"], r["budget"]) == (method, part)), key=lambda r: r["seed"]
            )
            seeds = [r["seed"] for r in rows]
            value, low, high = pooled([r["groups"] for r in rows])
            beside = parts(cells, reference, "kept", seeds)
            change = "" if method == reference or len(beside) < len(seeds) else "{:+.3f} ({:+.2f} to {:+.2f})".format(
                *difference([r["groups"] for r in rows], beside)
            )  # fmt: skip
            minutes = sum(r["cpu_minutes"] for r in rows) / len(rows)
            alone = ", ".join(f"{r['iou']:.3f}" for r in rows)
            name = method if part == "kept" else f"{method}, {part}"
            yield f"| {name} | {value:.3f} ({low:.2f} to {high:.2f}) | {alone} | {change} | {minutes:.1f} |"


def main() -> None:
    """Train, measure, print the tables."""
    given = asked()
    torch.set_num_threads(given.threads)
    cells = Cells(given.out / "cells.jsonl")
    for seed in () if given.table else given.seeds:
        measure(given, cells, seed)
    cells.rows = [row for row in cells.rows if row["seed"] in given.seeds]
    print("\n".join([*table(cells, FEW, "chips"), "", *table(cells, {"all": {}, **IMAGE}, "all")]))


def asked() -> argparse.Namespace:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, default=Path("runs/few-labels"), help="keep chips, networks and cells there")
    ask.add_argument(
        "--methods", type=lambda text: text.split(";"), default=list(METHODS), help="names with semicolons"
    )
    ask.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    ask.add_argument("--passes", type=int, default=12, help="epochs of the training")
    ask.add_argument("--steps", type=int, default=20, help="optimizer steps per epoch")
    ask.add_argument("--width", type=int, default=8)
    ask.add_argument("--table", action="store_true", help="print the tables of the finished cells and stop")
    ask.add_argument("--threads", type=int, default=1)
    given = ask.parse_args()
    if unknown := [name for name in given.methods if name not in METHODS]:
        ask.error(f"--methods: expected some of {'; '.join(METHODS)}, got {unknown[0]}")
    return given


if __name__ == "__main__":
    main()

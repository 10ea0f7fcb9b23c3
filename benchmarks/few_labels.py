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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from study import (
    CLEAN,
    KEPT,
    LOSS,
    Cells,
    SplitChips,
    cells_of_methods,
    folder_of,
    method_table,
    recipe_by_group,
    training_settings,
)

from seawall.models.weights import load_model
from seawall.pipeline.rounds import ROUNDS_FOLDER, round_figures
from seawall.recipe.recipe import Recipe
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


def recipe(given: argparse.Namespace, method: str, seed: int) -> Recipe:
    """Return what one network is trained by."""
    network = {"width": given.width, "depth": 3}
    section = dict(METHODS[method])
    section["settings"] = {**training_settings(given, 64, 3), **section.get("settings", {})}
    if method == "paul-ganju":
        rounds = section["rounds"]
        section["rounds"] = {**rounds, "settings": {**rounds["settings"], "beside_settings": network}}
    return recipe_by_group(
        {
            "name": "few-labels",
            "seed": seed,
            "model": {"name": "unet", "settings": network},
            "training": section,
        }
    )


def measure(given: argparse.Namespace, cells: Cells, seed: int) -> None:
    """Add the cells of one seed."""
    held = SplitChips.of(recipe(given, "all", seed), given.out)
    for method in given.methods:
        add_method(cells, held, method, recipe(given, method, seed), given.out, seed)


def add_method(cells: Cells, held: SplitChips, method: str, order: Recipe, out: Path, seed: int) -> None:
    """Train and add the cell of a method, if it is missing; a method in rounds has one for each round as well."""
    if cells.has(method, seed, KEPT, CLEAN):
        return

    def add(part: str, network: SegmentationModel, minutes: float) -> None:
        if not cells.has(method, seed, part, CLEAN):
            cells.add(method, seed, part, CLEAN, held.counts(network), held.groups, minutes)

    folder = folder_of(out, method, seed)
    network, minutes = held.trained(order, folder)
    home = folder / "models" / order.model.name
    for row in round_figures(home):
        weights = home / ROUNDS_FOLDER / str(row["round"]) / "model.safetensors"
        if weights.exists():  # a round without an accepted tile trains nothing
            own = cast(SegmentationModel, load_model(weights).eval())
            add(f"round {row['round']}", own, float(row["cpu_minutes"] or 0))
    add(KEPT, network, minutes)


def main() -> None:
    """Train, measure, print the tables."""
    given, cells = cells_of_methods(__doc__, "runs/few-labels", METHODS, "tables", measure)
    cells.rows = [row for row in cells.rows if row["seed"] in given.seeds]
    print("\n".join([*method_table(cells, FEW, "chips"), "", *method_table(cells, ["all", *IMAGE], "all")]))


if __name__ == "__main__":
    main()

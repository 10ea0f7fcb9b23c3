"""What sparse labels give on held-out places: water IoU of networks that know points or scribbles, beside all labels.

Trains on the real chips (SEAWALL_DATA) or on simulated scenes, split by group; the seed decides split, weights, patches and which
labels are known. Equal optimizer steps for all: `--passes` epochs of `--steps` steps, patches centered on known pixels of
both classes alike. Weights are selected on the validation part, which keeps all its labels. Every finished training is a JSON line in
`--out`/cells.jsonl, with the counts of every group; a run that was stopped goes on where it stopped.

    python benchmarks/sparse_labels.py --out runs/sparse-labels                                     # all cells, 3 seeds
    python benchmarks/sparse_labels.py --out runs/sparse-labels --cells "all partial,points-3 festa" --seeds 0
    python benchmarks/sparse_labels.py --out runs/sparse-labels --table                             # print what is there
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from study import (
    JsonLines,
    SplitChips,
    StudyParser,
    group_counts,
    mean_difference,
    mean_iou,
    pooled,
    print_without_groups,
    quiet_run,
    recipe_by_group,
    training_settings,
)

from seawall.pipeline.training import measure_supervision
from seawall.recipe.recipe import Recipe

ALL, PARTIAL, FESTA = "all", "partial", "festa"
LABELS: Mapping[str, list[dict[str, object]]] = {
    ALL: [],
    **{f"points-{n}": [{"name": "points", "settings": {"count": n}}] for n in (1, 3, 10)},
    **{f"scribbles-{n}": [{"name": "scribbles", "settings": {"count": n}}] for n in (3, 10, 100)},
}
"""Which labels are known: points and scribbles count pixels per class and chip."""
WAYS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    PARTIAL: ("supervised", {}),
    FESTA: ("festa", {}),
    "festa-weight-0.01": ("festa", {"weight": 0.01}),
    "festa-without-features": ("festa", {"alpha": 0.0}),
    "festa-without-neighbors": ("festa", {"beta": 0.0}),
    "festa-without-far": ("festa", {"gamma": 0.0}),
}
"""Objective and settings of each way to learn from them."""
CELLS = (
    "all partial", "points-1 partial", "points-3 partial", "points-10 partial", "points-1 festa", "points-3 festa", "points-10 festa",
    "scribbles-3 partial", "scribbles-10 partial", "scribbles-100 partial", "points-3 festa-without-features",
    "points-3 festa-without-neighbors", "points-3 festa-without-far", "points-3 festa-weight-0.01",
)  # fmt: skip


def recipe(given: argparse.Namespace, cell: str, seed: int) -> Recipe:
    """Return what one network is trained by."""
    labels, way = cell.split()
    objective, settings = WAYS[way]
    return recipe_by_group(
        {
            "name": "sparse-labels",
            "seed": seed,
            "model": {"name": "unet", "settings": {"width": given.width, "depth": 3}},
            "training": {
                "objective": {"name": objective, "settings": {"loss": "ce", **settings}},
                "supervision": LABELS[labels],
                "settings": training_settings(given, given.patch, 5),
                "balance": "classes",
            },
        }
    )


def measure(given: argparse.Namespace, rows: JsonLines, seed: int) -> None:
    """Add the trainings of one seed."""
    held = SplitChips.of(recipe(given, "all partial", seed), given.out)
    for cell in given.cells:
        if any((row["cell"], row["seed"]) == (cell, seed) for row in rows.rows):
            continue
        order, folder = recipe(given, cell, seed), given.out / f"{cell.replace(' ', '+')}-s{seed}"
        network, minutes = held.trained(order, folder)
        known = measure_supervision(quiet_run(order, folder), held.chips, held.split).get(order.model.name)
        by_group = group_counts(held.counts(network), held.groups)
        everything = sum(sum(held.chips.row(id_).class_counts) for id_ in held.split.train)
        iou, low, high = pooled([by_group])
        row = {
            "cell": cell, "seed": seed, "known": known["pixels"] if known else everything, "of": everything, "groups": by_group,
            "cpu_minutes": round(minutes, 2), "iou": iou, "low": low, "high": high,
        }  # fmt: skip
        rows.append(row)
        print_without_groups(row)


def table(rows: JsonLines) -> Iterator[str]:
    """Yield the lines of the table: the mean over seeds, and the difference to partial cross-entropy on the same labels and to all labels."""
    yield "| known labels | objective | seeds | known pixels | water IoU | minus partial, same labels | minus all labels | CPU-min |"
    yield "|---|---|---|---|---|---|---|---|"

    def of(cell: str, seeds: set[int]) -> list[dict[str, Any]]:
        found = [row for row in rows.rows if row["cell"] == cell and row["seed"] in seeds]
        return sorted(found, key=lambda row: int(row["seed"]))

    for cell in CELLS:
        labels, way = cell.split()
        mine = of(cell, {row["seed"] for row in rows.rows})
        if not mine:
            continue
        seeds = {row["seed"] for row in mine}
        value, low, high = mean_iou([row["groups"] for row in mine])
        share = np.mean([row["known"] / row["of"] for row in mine])
        columns = [f"{value:.3f} [{low:.3f}, {high:.3f}]"]
        for other in (f"{labels} {PARTIAL}", f"{ALL} {PARTIAL}"):
            beside = of(other, seeds)
            if other == cell or len(beside) < len(mine):
                columns.append("")
                continue
            gain, less, more = mean_difference([row["groups"] for row in mine], [row["groups"] for row in beside])
            columns.append(f"{gain:+.3f} [{less:+.3f}, {more:+.3f}]")
        known = f"{np.mean([row['known'] for row in mine]):.0f} ({share:.2%})"
        minutes = np.mean([row["cpu_minutes"] for row in mine])
        yield f"| {labels} | {way} | {len(mine)} | {known} | {' | '.join(columns)} | {minutes:.1f} |"


def main() -> None:
    """Parse, measure what is missing, print the table."""
    ask = StudyParser(__doc__, "runs/sparse-labels")
    ask.add_argument("--cells", type=lambda text: text.split(","), default=list(CELLS))
    ask.add_seeds()
    ask.add_training(passes=6, steps=40)
    ask.add_argument("--patch", type=int, default=64)
    ask.add_table("table")
    given = ask.parse_args()
    rows = JsonLines(given.out / "cells.jsonl")
    for seed in () if given.table else given.seeds:
        measure(given, rows, seed)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()

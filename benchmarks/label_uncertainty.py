"""Wrong labels and uncertainty on real chips: does a network become less sure where its labels were wrong, and does averaging help?

Runs a recipe once per seed, each with a split of its own, and prints one table over all runs: means over the seeds, with 95 % intervals over places that
are redrawn in all seeds alike. A run that was stopped goes on.

    python benchmarks/label_uncertainty.py --out runs/label-uncertainty             # 18 trainings and 20 minutes of one core per seed
    python benchmarks/label_uncertainty.py --out runs/label-uncertainty --table     # print what is there

SEAWALL_DATA names the folder of the real chips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from study import StudyParser, binned_ece, figure_text, mean_over_seeds

import seawall
from seawall.arrays import DoubleArray
from seawall.metrics.aggregate import ChipTable, chip_tables
from seawall.metrics.calibration import CONFIDENCE_BINS
from seawall.records import read_records

RECIPE = Path(__file__).resolve().parents[1] / "recipes/label-uncertainty-real.toml"


def tables_of(run: Path) -> dict[str, ChipTable]:
    """Return the chips of every model of a run as they are, by the name of the model."""
    return {one.model: one for one in chip_tables(read_records(run / "records.jsonl")) if one.method == "clean"}


def sums(tables: Sequence[ChipTable], metrics: Sequence[str], klass: str = "") -> DoubleArray:
    """Return the sums of metrics over the chips of each place, (S, G, M); 0 where a place is not in a run."""
    names = sorted({group for one in tables for group in one.groups})
    found = np.zeros((len(tables), len(names), len(metrics)))
    for i, one in enumerate(tables):
        for j, metric in enumerate(metrics):
            for (group, _, own), row in one.rows.get(metric, {}).items():
                if own == klass:
                    found[i, names.index(group), j] += row.value or 0.0
    return found


def bins(tables: Sequence[ChipTable], part: str) -> DoubleArray:
    """Return count, correct and confidence per bin of each place, (S, G, 3, M)."""
    return np.stack(
        [
            sums(tables, [f"{part}.{kind}.{i}" for i in range(CONFIDENCE_BINS)])
            for kind in ("count", "correct", "confidence")
        ],
        2,
    )


def quotient(found: DoubleArray) -> float:
    """Return the first sum over that of all others."""
    return float(found[0] / found[1:].sum()) if found[1:].any() else np.nan


def iou(found: DoubleArray) -> float:
    """Return the IoU of true positives, false positives and false negatives."""
    return quotient(found[[0, 0, 1, 2]])


FIGURES: dict[str, Callable[[Sequence[ChipTable]], tuple[DoubleArray, Callable[[DoubleArray], float]]]] = {
    "IoU of water": lambda tables: (sums(tables, ["tp", "fp", "fn"], "water"), iou),
    "ECE": lambda tables: (bins(tables, "calib"), binned_ece),
    "ECE at the shore": lambda tables: (bins(tables, "calib.edge"), binned_ece),
    "NLL": lambda tables: (sums(tables, ["calib.nll", "calib.pixels"]), quotient),
    "mean entropy": lambda tables: (sums(tables, ["calib.entropy", "calib.pixels"]), quotient),
}


def table(runs: Sequence[Path]) -> Iterator[str]:
    """Yield the lines of the table: a row per model that all runs have."""
    held = [tables_of(run) for run in runs]
    yield f"| {len(runs)} seeds | {' | '.join(FIGURES)} |"
    yield "|---" * (1 + len(FIGURES)) + "|"
    for model in held[0]:
        if all(model in one for one in held):
            own = [one[model] for one in held]
            cells = [figure_text(mean_over_seeds(*figure(own))) for figure in FIGURES.values()]
            yield f"| {model} | {' | '.join(cells)} |"


def main() -> None:
    parser = StudyParser(__doc__, "runs/label-uncertainty")
    parser.add_seeds()
    parser.add_table()
    parser.add_threads()
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.table:
        for seed in given.seeds:
            seawall.run(RECIPE, out=given.out / f"s{seed}", changes=[f"seed={seed}"])
    print(
        "\n".join(
            table(
                [
                    path.parent
                    for seed in given.seeds
                    for path in sorted((given.out / f"s{seed}").glob("*/records.jsonl"))
                ]
            )
        )
    )


if __name__ == "__main__":
    main()

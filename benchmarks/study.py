"""What the studies of this folder share: recipes, chips, trainings and their bill, counts, cells in a file, figures, arguments.

A study trains networks on chips that are split by group, one split per seed, counts on the held-out chips of every group how much
water a network shares with the label, and keeps each finished cell as a JSON line, so that a run that was stopped goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from seawall.arrays import DoubleArray
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.data.splits import Split
from seawall.metrics.bootstrap import Resamples, estimate_quotient, percentile_interval, weighted_mean
from seawall.metrics.ratios import divide_or_nan
from seawall.pipeline.context import RunContext
from seawall.pipeline.data import load_chips, make_split
from seawall.pipeline.training import train_network
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.rng import Keys
from seawall.types import Batch, Corruption, SegmentationModel

LOSS = "ce + dice"
KEPT, CLEAN = "kept", "clean"
"""Budget and attack of a cell that has neither: the network that the training keeps, on chips as they are."""

Counts = dict[str, list[int]]
"""Water pixels that model and label share, and that either has: (intersection, union) by chip or by group."""
Parts = Sequence[Mapping[str, Sequence[int]]]
"""Counts by group of several cells, mostly one per seed."""
Figure = tuple[float, float, float]
"""A value and its 95 % interval over groups."""


def real_or_simulated(select: str) -> dict[str, object]:
    """Return the data section: the real chips whose names start so where SEAWALL_DATA is set, or simulated scenes."""
    real: dict[str, object] = {"source": "$SEAWALL_DATA", "kind": "index", "select": select}
    return real if os.environ.get("SEAWALL_DATA") else {"count": 24, "size": 128}


def recipe_by_group(tree: Mapping[str, object]) -> Recipe:
    """Return a recipe with a third of the groups held out, on the HLS chips or simulated scenes if it does not say which."""
    return make_recipe({"data": real_or_simulated("hls_"), "split": {"val": 0.15, "test": 0.35}, **tree})


def training_settings(given: argparse.Namespace, patch: int, check_every: int) -> dict[str, object]:
    """Return the settings of a training of `--passes` epochs with `--steps` steps each."""
    return {
        "epochs": given.passes, "steps_per_epoch": given.steps, "patch": patch, "batch": 8, "lr": 2e-3,
        "check_every": min(check_every, given.passes), "tensorboard": False,
    }  # fmt: skip


def quiet_run(order: Recipe, folder: Path) -> RunContext:
    """Return a run on the processor that goes on where it stopped and prints nothing."""
    return RunContext(order, folder, "cpu", True, lambda *_: None)


@dataclass(frozen=True)
class SplitChips:
    """The chips of a study and the split of one seed."""

    chips: ChipFolder
    split: Split

    @staticmethod
    def of(order: Recipe, out: Path) -> SplitChips:
        run = quiet_run(order, out)
        chips, _ = load_chips(run, out / "chips")
        return SplitChips(chips, make_split(run, chips))

    @cached_property
    def groups(self) -> dict[str, str]:
        """Return the group of every held-out chip."""
        return {id_: self.chips.row(id_).group for id_ in self.split.test}

    def trained(self, order: Recipe, folder: Path) -> tuple[SegmentationModel, float]:
        """Return the network of a recipe and the CPU-minutes of its training."""
        return billed_training(order, folder, self.chips, self.split)

    def counts(self, model: SegmentationModel) -> Counts:
        """Return the counts of every held-out chip as it is, in the bands of the model."""
        return water_counts(model, self.chips.with_bands(model.spec.bands), self.split.test)


def folder_of(out: Path, method: str, seed: int) -> Path:
    """Return the folder of a training."""
    return out / f"{method.replace(', ', '-').replace(' ', '-')}-s{seed}"


def billed_training(order: Recipe, folder: Path, chips: ChipFolder, split: Split) -> tuple[SegmentationModel, float]:
    """Return the network of a recipe and the CPU-minutes of its training, which are kept beside it."""
    began, bill = time.process_time(), folder / "cpu_minutes.json"
    model = train_network(quiet_run(order, folder), chips, split, order.networks[0])
    if bill.exists():
        spent = json.loads(bill.read_text())
    else:  # of a training that was killed, the last part
        spent = (time.process_time() - began) / 60
        bill.write_text(json.dumps(spent))
    return cast(SegmentationModel, model.eval()), spent


def water_counts(
    model: SegmentationModel, chips: ChipFolder, ids: tuple[str, ...], change: Callable[[Batch], Batch] | None = None
) -> Counts:
    """Return the counts of every chip, after a change of the batches if there is one."""
    found: Counts = {}
    for clean in whole_chips(chips, ids):
        batch = clean if change is None else change(clean)
        with torch.no_grad():
            water = model(batch.image).argmax(1) == 1
        found |= shared_water(batch.chips, water, batch.label == 1, batch.valid)
    return found


def corrupted_counts(
    model: SegmentationModel, chips: ChipFolder, ids: tuple[str, ...], corruption: Corruption | None, severity: float
) -> Counts:
    """Return the counts of every chip, under a corruption if there is one."""
    if corruption is None:
        return water_counts(model, chips, ids)
    return water_counts(model, chips, ids, lambda batch: corruption(batch, severity, Keys(0, batch.chips)))


def shared_water(names: Iterable[str], water: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> Counts:
    """Return the counts of every chip from its predicted and its labelled water."""
    both, either = (part.flatten(1).sum(1).tolist() for part in (water & truth & valid, (water | truth) & valid))
    return {name: [int(top), int(bottom)] for name, top, bottom in zip(names, both, either, strict=True)}


def group_counts(counts: Counts, groups: Mapping[str, str]) -> Counts:
    """Return the counts of every group, summed over its chips."""
    by_group: Counts = {}
    for chip, (top, bottom) in counts.items():
        sums = by_group.setdefault(groups[chip], [0, 0])
        sums[0], sums[1] = sums[0] + top, sums[1] + bottom
    return by_group


class JsonLines:
    """Rows in a file, one JSON line each; a line that a killed writer left half is not read, and the next row takes its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text() if path.exists() else ""
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the file."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as sink:
            sink.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            sink.write(json.dumps(row).encode() + b"\n")


class Cells(JsonLines):
    """The finished cells; a cell is (method, seed, budget, attack)."""

    def has(self, *key: object) -> bool:
        return any((r["method"], r["seed"], r["budget"], r["attack"]) == key for r in self.rows)

    def add(
        self,
        method: str,
        seed: int,
        budget: str,
        attack: str,
        counts: Counts,
        groups: Mapping[str, str],
        minutes: float,
    ) -> None:
        by_group = group_counts(counts, groups)
        row = {
            "method": method,
            "seed": seed,
            "budget": budget,
            "attack": attack,
            "groups": by_group,
            "cpu_minutes": round(minutes, 2),
        }
        row |= dict(zip(("iou", "low", "high"), pooled([by_group]), strict=True))
        self.append(row)
        print_without_groups(row)


def print_without_groups(row: Mapping[str, object]) -> None:
    """Print a finished cell without its counts."""
    print({key: value for key, value in row.items() if key != "groups"}, flush=True)


def every_draw(draws: Resamples) -> DoubleArray:
    """Return the weights of the groups as they are, and below them those of every resample: (1 + R, G)."""
    return np.concatenate([draws.once, draws.weights])


def figure_of(drawn: DoubleArray) -> Figure:
    """Return a figure from its value and those of the resamples after it: (1 + R)."""
    low, high = percentile_interval(drawn[1:, None])
    return float(drawn[0]), float(low[0]), float(high[0])


def weighted_iou(parts: Parts, names: list[str], weights: DoubleArray) -> DoubleArray:
    """Return the IoU over all parts for each row of the weights (R, G) of the groups; NaN without water."""
    sums = weights @ group_sums(parts, names)
    return divide_or_nan(sums[:, 0], sums[:, 1])


def group_sums(parts: Parts, names: list[str]) -> DoubleArray:
    """Return intersection and union of every group, summed over the parts: (G, 2)."""
    return np.array([[sum(part.get(name, (0, 0))[i] for part in parts) for i in (0, 1)] for name in names], float)


def pooled(parts: Parts) -> Figure:
    """Return the IoU over all groups of all parts."""
    names = sorted({name for part in parts for name in part})
    sums = group_sums(parts, names)
    found = estimate_quotient(sums[:, 0], sums[:, 1], len(names), Resamples.over(names))
    value, low, high = (round(float(v[0]), 4) for v in (found.value, found.low, found.high))
    return value, low, high


def difference(first: Parts, second: Parts) -> Figure:
    """Return the pooled IoU of the first minus that of the second: both are taken of the same redrawn groups."""
    names = sorted({name for part in (*first, *second) for name in part})
    weights = every_draw(Resamples.over(names))
    return figure_of(weighted_iou(first, names, weights) - weighted_iou(second, names, weights))


def mean_iou(parts: Parts) -> Figure:
    """Return the mean of the IoUs of several cells."""
    return mean_difference(parts, [])


def mean_difference(first: Parts, second: Parts) -> Figure:
    """Return the mean IoU of the first cells minus that of the second: both are taken of the same redrawn groups."""
    names = sorted({name for part in (*first, *second) for name in part})
    weights = every_draw(Resamples.over(names))

    def mean(parts: Parts) -> DoubleArray:
        if not parts:
            return np.zeros(len(weights))
        ratios = np.array([weighted_iou([part], names, weights) for part in parts])  # cells x resamples
        return weighted_mean(ratios, np.eye(len(parts)), np.ones((1, len(parts))))[0]

    return figure_of(mean(first) - mean(second))


def mean_over_seeds(values: DoubleArray, figure: Callable[[DoubleArray], float], samples: int = 500) -> Figure:
    """Return a figure of sums over places, the mean over seeds, with its interval over places that are redrawn in all seeds alike.

    Args:
        values: (S, G, ...) per seed and place; 0 where a place is not in a seed.
        figure: Of the sum (...) over places.
        samples: Number of resamples.
    """
    weights = every_draw(Resamples.over([str(i) for i in range(values.shape[1])], samples))
    drawn = [np.nanmean([figure(np.tensordot(w, one, 1)) for one in values]) for w in weights]
    return figure_of(np.array(drawn))


def binned_ece(bins: DoubleArray) -> float:
    """Return the expected calibration error of bins (3, M): count, correct, confidence; NaN without a pixel."""
    return float(divide_or_nan(np.abs(bins[1] - bins[2]).sum(), bins[0].sum()))


def figure_text(figure: Figure, digits: int = 3) -> str:
    """Return a figure with its interval, without zeros before the point.

    Example:
        >>> figure_text((0.5, -0.25, 1.5), 2)
        '.50 (-.25 to 1.50)'
    """
    value, low, high = (
        f"{part:.{digits}f}".replace("0.", ".", 1) if abs(part) < 1 else f"{part:.{digits}f}" for part in figure
    )
    return f"{value} ({low} to {high})"


def value_text(figure: Figure) -> str:
    """Return a figure as the tables show it."""
    value, low, high = figure
    return f"{value:.3f} ({low:.2f} to {high:.2f})"


def change_text(figure: Figure) -> str:
    """Return a difference as the tables show it."""
    value, low, high = figure
    return f"{value:+.3f} ({low:+.2f} to {high:+.2f})"


def method_table(cells: Cells, methods: Iterable[str], reference: str) -> Iterator[str]:
    """Yield the lines of a table: IoU over the seeds, each seed alone, the paired difference to a method, and CPU-minutes."""
    yield f"| method | water IoU (95 %) | by seed | minus {reference} | CPU-min |"
    yield "|---|---|---|---|---|"
    beside = {r["seed"]: r["groups"] for r in cells.rows if (r["method"], r["budget"]) == (reference, KEPT)}
    for method in methods:
        own = sorted((r for r in cells.rows if r["method"] == method), key=lambda r: int(r["seed"]))
        for part in sorted({r["budget"] for r in own}):
            rows = [r for r in own if r["budget"] == part]
            counts, paired = [r["groups"] for r in rows], {r["seed"] for r in rows} <= beside.keys()
            change = (
                change_text(difference(counts, [beside[r["seed"]] for r in rows]))
                if method != reference and paired
                else ""
            )
            minutes = sum(r["cpu_minutes"] for r in rows) / len(rows)
            alone = ", ".join(f"{r['iou']:.3f}" for r in rows)
            name = method if part == KEPT else f"{method}, {part}"
            yield f"| {name} | {value_text(pooled(counts))} | {alone} | {change} | {minutes:.1f} |"


class StudyParser(argparse.ArgumentParser):
    """The command line of a study: `--out`, and the arguments that several studies have, in the order in which they are added."""

    def __init__(self, doc: str | None, out: str) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--out", type=Path, default=Path(out), help="keep chips, networks and cells there")

    def add_names(
        self, option: str, known: Collection[str], separator: str = ",", words: str = "names with commas"
    ) -> None:
        """Add a list of names, by default all that are known."""

        def names(text: str) -> list[str]:
            found = text.split(separator)
            if unknown := [name for name in found if name not in known]:
                self.error(f"{option}: expected some of {f'{separator} '.join(known)}, got {unknown[0]}")
            return found

        self.add_argument(option, type=names, default=list(known), help=words)

    def add_seeds(self, count: int = 3) -> None:
        """Add the seeds, by default the first ones."""
        self.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=list(range(count)))

    def add_training(self, passes: int, steps: int, width: int = 8) -> None:
        """Add the length of the training and the width of the network."""
        self.add_argument("--passes", type=int, default=passes, help="epochs of the training")
        self.add_argument("--steps", type=int, default=steps, help="optimizer steps per epoch")
        self.add_argument("--width", type=int, default=width)

    def add_table(self, what: str = "tables") -> None:
        """Add the wish for the tables alone."""
        self.add_argument("--table", action="store_true", help=f"print the {what} of the finished cells and stop")

    def add_threads(self) -> None:
        self.add_argument("--threads", type=int, default=1)


def cells_of_methods(
    doc: str | None,
    out: str,
    methods: Collection[str],
    what: str,
    measure: Callable[[argparse.Namespace, Cells, int], None],
) -> tuple[argparse.Namespace, Cells]:
    """Return the arguments and the cells of a study of methods by seeds; a seed's missing cells are measured first.

    Args:
        doc: What the command line says of the script.
        out: Default folder.
        methods: Their names, which hold commas and are listed with semicolons.
        what: "table" or "tables", as `--help` names them.
        measure: Adds the missing cells of a seed; not called where only the table is asked for.
    """
    ask = StudyParser(doc, out)
    ask.add_names("--methods", methods, ";", "names with semicolons")
    ask.add_seeds()
    ask.add_training(passes=12, steps=20)
    ask.add_table(what)
    ask.add_threads()
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    cells = Cells(given.out / "cells.jsonl")
    for seed in () if given.table else given.seeds:
        measure(given, cells, seed)
    return given, cells

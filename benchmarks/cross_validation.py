"""Which recipe makes the best maps from few chips: cross-validation over places, one change of the recipe at a time.

Every variant is a list of `--set` changes of a base recipe, so that the winner is a recipe. For each the chips are split into
folds of whole places; a network is trained on all folds but one and measured on that one, so every chip is measured once, by a
network that never saw its place. Nothing is chosen by a validation part unless the variant has one, which is taken from the
training places. A cell is (data, variant, seed, fold, view); its confusion counts per chip are a JSON line in `--out`/cells.jsonl, and a run
that was stopped goes on where it stopped. Views: "plain"; "tta", the mean over the eight symmetries; "ensemble", the mean over
the networks of all seeds, and "ensemble tta".

    python benchmarks/cross_validation.py --data hls --out runs/cv                        # every variant, 5 folds, seed 0
    python benchmarks/cross_validation.py --data hls --out runs/cv --variants base,index --seeds 0,1,2
    python benchmarks/cross_validation.py --data hls --out runs/cv --table                # print what is there

A training of the base takes about 50 CPU-seconds. SEAWALL_DATA names the folder of the real chips.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from study import (
    LOSS,
    JsonLines,
    StudyParser,
    billed_training,
    change_text,
    every_draw,
    figure_of,
    quiet_run,
    value_text,
)

from seawall.arrays import DoubleArray
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.data.splits import Split, kfold_groups, labelled_ids, split_groups
from seawall.metrics.bootstrap import Resamples, average_ratio
from seawall.metrics.counts import confusion
from seawall.metrics.ratios import ConfusionCounts
from seawall.pipeline.data import load_chips
from seawall.recipe.recipe import Recipe, change_recipe
from seawall.types import SegmentationModel
from seawall.uncertainty.ensemble import mean_of_networks
from seawall.uncertainty.tta import TTA

BASE: Mapping[str, Any] = {
    "name": "cross-validation",
    "data": {"source": "$SEAWALL_DATA", "kind": "index"},
    "split": {"val": 0.0},
    "model": {"name": "unet", "settings": {"width": 8, "depth": 3}},
    "training": {
        "objective": {"name": "supervised", "settings": {"loss": LOSS}},
        "settings": {
            "epochs": 20, "steps_per_epoch": 50, "patch": 64, "batch": 8, "lr": 2e-3, "keep": "last", "ema": 0.99, "tensorboard": False,
        },
    },
}  # fmt: skip
"""A small U-Net, 1000 steps on patches of 64 pixels, no validation part, the average of the last weights."""

DATA: Mapping[str, Sequence[str]] = {
    "hls": ["data.select=hls_"],
    "etci": ["data.select=etci_", "data.sensor=s1"],
    "sen1floods11": ["data.select=sen1floods11_", "data.sensor=s1"],
    "ombria": ["data.select=ombria_", "data.sensor=s1,s1.pre,s2,s2.pre"],
}

CHOSEN = ["split.val=0.2", "training.settings.keep=best", "training.settings.ema=0.0"]
JITTER = "['gain worst=0.2', 'offset worst=0.01']"

VARIANTS: Mapping[str, Sequence[str]] = {
    "base": [],
    "best of a fifth": CHOSEN,
    "no average": ["training.settings.ema=0.0"],
    "average .998": ["training.settings.ema=0.998"],
    "index inputs": ["model.name=index-unet"],
    "anchored": ["model.name=anchored-unet"],
    "ce": ["training.objective.settings.loss=ce"],
    "dice": ["training.objective.settings.loss=dice"],
    "jaccard": ["training.objective.settings.loss=ce + jaccard"],
    "focal + dice": ["training.objective.settings.loss=focal + dice"],
    "edge-weighted": ["training.objective.settings.loss=edge-weighted"],
    "class balance": ["training.balance=classes"],
    "no symmetries": ["training.augment=none"],
    "gain and offset": [f"training.objective={{name='uniform-augmentation', settings={{corruptions={JITTER}, objective_settings={{loss='ce + dice'}}}}}}"],
    "all corruptions": ["training.objective={name='uniform-augmentation', settings={objective_settings={loss='ce + dice'}}}"],
    "radar gain": ["training.objective={name='uniform-augmentation', settings={corruptions=['radar-gain', 'wind'], objective_settings={loss='ce + dice'}}}"],
    "TrivialAugment": ["training.objective={name='trivial-augment', settings={objective_settings={loss='ce + dice'}}}"],
    "dropout": ["model.settings.dropout=0.2"],
    "weight decay .1": ["training.settings.weight_decay=0.1"],
    "group norm": ["model.settings.norm=group"],
    "pixel norm": ["model.settings.norm=pixel"],
    "source dropout": ["training.objective={name='source-dropout', settings={rate=0.5, objective_settings={loss='ce + dice'}}}"],
    "ratio": ["model.name=ratio-unet"],
    "ratio U-Net++": ["model={name='ratio-unet++', settings={encoder='plain', width=8}}"],
    "one radar image": ["inputs=['s1']"],
    "both radar images": ["inputs=['s1', 's1.pre']"],
    "one of each": ["inputs=['s1', 's2']"],
    "VH alone": ["inputs=['VH']"],
    "width 16": ["model.settings.width=16"],
    "depth 4": ["model.settings.depth=4"],
    "patch 96": ["training.settings.patch=96"],
    "2000 steps": ["training.settings.epochs=40"],
    "500 steps": ["training.settings.epochs=10"],
    "ResNet-18": ["model.settings={encoder='resnet18', width=16}"],
    "linear": ["model={name='linear'}", "training.settings.lr=0.1"],
}  # fmt: skip


def etci_place(id_: str) -> str:
    """Return the block of 5 by 8 tiles of a tile of the one event: neighbors are mostly in one block."""
    found = re.search(r"_x(m?\d+)_y(m?\d+)$", id_)
    assert found is not None, id_
    x, y = (int(text.replace("m", "-")) for text in found.groups())
    return f"{x // 5}.{y // 8}"


def placed(chips: ChipFolder) -> ChipFolder:
    """Return the folder with the groups that folds keep together: the places, or blocks of tiles where there is one event."""
    if len({row.group for row in chips.rows}) > 1:
        return chips
    return ChipFolder(chips.root, chips.header, [replace(row, group=etci_place(row.id)) for row in chips.rows])


def with_validation(chips: ChipFolder, fold: Split, share: float, seed: int) -> Split:
    """Return the fold with a validation part taken from its training places."""
    if not share:
        return fold
    parts = split_groups(chips, seed, val=share, test=0.0, ids=fold.train)
    return Split(parts.train, parts.val, fold.test, fold.how)


def chip_counts(model: SegmentationModel, chips: ChipFolder, ids: Iterable[str]) -> dict[str, list[list[int]]]:
    """Return the confusion counts of every chip: rows are labels, columns predictions."""
    found = {}
    for batch in whole_chips(chips.with_bands(model.spec.bands), tuple(ids)):
        with torch.no_grad():
            pred = model(batch.image).argmax(1)
        counts = confusion(pred, batch.label, batch.valid, len(chips.classes)).tolist()
        found |= dict(zip(batch.chips, counts, strict=True))
    return found


@dataclass(frozen=True)
class CrossValidation:
    """The folds of one data set and the cells that are there."""

    given: argparse.Namespace
    data: str
    cells: JsonLines
    chips: ChipFolder

    @staticmethod
    def of(given: argparse.Namespace, data: str) -> CrossValidation:
        order = change_recipe(BASE, DATA[data])
        home = given.out / data
        chips, _ = load_chips(quiet_run(order, home), home / "chips")
        return CrossValidation(given, data, JsonLines(given.out / "cells.jsonl"), placed(chips))

    def recipe(self, variant: str, seed: int) -> Recipe:
        return change_recipe(BASE, [*DATA[self.data], *VARIANTS[variant], f"seed={seed}"])

    def folds(self) -> Sequence[Split]:
        return kfold_groups(self.chips, self.given.folds, 0, ids=labelled_ids(self.chips))

    def has(self, *key: object) -> bool:
        return any(
            (r["data"], r["variant"], r["seed"], r["fold"], r["view"]) == (self.data, *key) for r in self.cells.rows
        )

    def trained(self, variant: str, seed: int, number: int, fold: Split) -> tuple[SegmentationModel, float]:
        order = self.recipe(variant, seed)
        folder = self.given.out / self.data / f"{variant.replace(' ', '-')}-s{seed}-f{number}"
        split = with_validation(self.chips, fold, order.split.val, seed)
        return billed_training(order, folder, self.chips, split)

    def add(self, variant: str, seed: int, number: int, view: str, model: SegmentationModel, minutes: float) -> None:
        if self.has(variant, seed, number, view):
            return
        counts = chip_counts(model, self.chips, self.folds()[number].test)
        self.cells.append(
            {"data": self.data, "variant": variant, "seed": seed, "fold": number, "view": view, "minutes": round(minutes, 2), "chips": counts}
        )  # fmt: skip

    def measure(self, variant: str) -> None:
        """Train and measure the missing cells of a variant."""
        seeds, every = self.given.seeds, -1
        for number, fold in enumerate(self.folds()):
            views = [(seed, view) for seed in seeds for view in ("plain", "tta")]
            views += [(every, view) for view in ("ensemble", "ensemble tta") if len(seeds) > 1]
            if all(self.has(variant, seed, number, view) for seed, view in views):
                continue
            made = [self.trained(variant, seed, number, fold) for seed in seeds]
            for seed, (model, minutes) in zip(seeds, made, strict=True):
                self.add(variant, seed, number, "plain", model, minutes)
                self.add(variant, seed, number, "tta", TTA()(model), minutes)
            if len(seeds) > 1:
                first, *others = (model for model, _ in made)
                both = mean_of_networks(first, others)
                total = sum(minutes for _, minutes in made)
                self.add(variant, every, number, "ensemble", both, total)
                self.add(variant, every, number, "ensemble tta", TTA()(cast(SegmentationModel, both)), total)

    def table(self) -> Iterator[str]:
        """Yield the lines: IoU of water pooled and per chip, and both minus the base on the same resampled places."""
        yield f"| {self.data} | seeds | pooled | per chip | pooled - base | per chip - base | CPU-min |"
        yield "|---|---|---|---|---|---|---|"
        rows = [r for r in self.cells.rows if r["data"] == self.data]
        base = self._counts([r for r in rows if (r["variant"], r["view"], r["seed"]) == ("base", "plain", 0)])
        for variant, view in dict.fromkeys((r["variant"], r["view"]) for r in rows):
            mine = [r for r in rows if (r["variant"], r["view"]) == (variant, view)]
            seeds = [
                s for s in sorted({r["seed"] for r in mine}) if sum(r["seed"] == s for r in mine) == self.given.folds
            ]
            counts = [self._counts([r for r in mine if r["seed"] == s]) for s in seeds]
            if counts:
                minutes = float(np.mean([r["minutes"] for r in mine]))
                name = variant if view == "plain" else f"{variant}, {view}"
                seen = len(seeds) if seeds != [-1] else len(self.given.seeds)
                yield f"| {name} | {seen} | " + " | ".join(self._figures(counts, base)) + f" | {minutes:.1f} |"

    def _counts(self, rows: Sequence[dict[str, Any]]) -> DoubleArray:
        """Return the confusion counts (N, K, K) of all chips, by id."""
        chips: dict[str, Any] = {}
        for row in rows:
            chips |= row["chips"]
        return np.array([chips[id_] for id_ in sorted(chips)], float)

    def _figures(self, runs: Sequence[DoubleArray], base: DoubleArray) -> Iterator[str]:
        draws = Resamples.over([self.chips.row(id_).group for id_ in sorted(labelled_ids(self.chips))])
        weights, water = every_draw(draws), self.chips.classes.index("water")

        def mean(tables: Sequence[DoubleArray], how: str) -> DoubleArray:
            every = [ConfusionCounts.of(table) for table in tables]
            found = [average_ratio(counts, "iou", how, draws.member, weights)[:, water] for counts in every]
            return np.mean(found, 0) if found else np.full(len(weights), np.nan)

        mine = [mean(runs, how) for how in ("pooled", "per_chip")]
        beside = [mean([base] if len(base) else [], how) for how in ("pooled", "per_chip")]
        yield from (value_text(figure_of(one)) for one in mine)
        yield from (change_text(figure_of(one - other)) for one, other in zip(mine, beside, strict=True))


def main() -> None:
    """Train, measure, print the table."""
    given = asked()
    torch.set_num_threads(given.threads)
    for data in given.data:
        bench = CrossValidation.of(given, data)
        for variant in () if given.table else given.variants:
            bench.measure(variant)
            print(f"{data} {variant}", flush=True)
        print("\n".join(bench.table()), flush=True)


def asked() -> argparse.Namespace:
    ask = StudyParser(__doc__, "runs/cross-validation")
    ask.add_names("--data", DATA)
    ask.add_names("--variants", VARIANTS)
    ask.add_seeds(1)
    ask.add_argument("--folds", type=int, default=5)
    ask.add_table("table")
    ask.add_threads()
    return ask.parse_args()


if __name__ == "__main__":
    main()

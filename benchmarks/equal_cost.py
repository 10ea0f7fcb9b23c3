"""Does seawall's suite at 300 (and at 30) passes lower the water IoU as far as SEA at 900, and on how many networks?

Sixteen cells: U-Net and dense U-Net, trained plainly and adversarially, from two seeds, each attacked within 1 % and 2 %
reflectance. Trains on the real chips (SEAWALL_DATA) or on simulated scenes. Networks and counts stay in `--home`, so that a
run that was stopped goes on where it stopped; about 40 CPU minutes in all.

    python benchmarks/equal_cost.py --home runs/equal-cost                 # everything, then the table
    python benchmarks/equal_cost.py --home runs/equal-cost --train-only
    python benchmarks/equal_cost.py --home runs/equal-cost --cells unet-plain-s0    # names that start so
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from strength import Counts, counted, some, worst
from study import SplitChips, quiet_run, recipe_by_group

from seawall.attacks.apgd import APGD
from seawall.attacks.losses import CosPGDLoss, JensenShannon, TsallisCrossEntropy
from seawall.attacks.pgd import PGD, PAdam
from seawall.attacks.suites import SEA, Seawall, Suite
from seawall.data.loader import whole_chips
from seawall.pipeline.training import train_network
from seawall.recipe.recipe import Recipe
from seawall.rng import Keys
from seawall.threat.parser import parse_threat
from seawall.types import Attack, Batch, SegmentationModel

ARCHITECTURES: Mapping[str, Mapping[str, object]] = {
    "unet": {"width": 8, "depth": 3},
    "dense-unet": {"width": 6, "depth": 2, "growth": 4, "layers": 2},
}
TAUGHT = {"plain": 900, "adversarial": 400}
"""Optimizer steps; an adversarial one costs four times a plain one."""
THREATS = ("linf 1% reflectance", "linf 2% reflectance")


def recipe(architecture: str, taught: str, seed: int) -> Recipe:
    """Return what one network is trained by."""
    objective: dict[str, object] = {"name": "supervised"}
    if taught == "adversarial":
        settings = {"threat": THREATS[0], "attack": "pgd", "attack_settings": {"steps": 3, "step": 0.5, "keep": "last"}}
        objective = {"name": "adversarial", "settings": settings}
    return recipe_by_group(
        {
            "name": "equal-cost",
            "seed": seed,
            "model": {"name": architecture, "settings": ARCHITECTURES[architecture]},
            "training": {
                "objective": objective,
                "settings": {
                    "epochs": 10,
                    "steps_per_epoch": TAUGHT[taught] // 10,
                    "patch": 64,
                    "batch": 8,
                    "lr": 4e-3,
                },
            },
        }
    )


def networks(given: argparse.Namespace) -> Iterator[tuple[str, SegmentationModel, Batch]]:
    """Yield each network with the chips that it is attacked on; all share the chips and the split of seed 0."""
    held = SplitChips.of(recipe("unet", "plain", 0), given.home)
    batch = some(whole_chips(held.chips, held.split.test), given)
    for seed in (0, 1):
        for taught in TAUGHT:
            for architecture in ARCHITECTURES:
                name = f"{architecture}-{taught}-s{seed}"
                if not name.startswith(given.cells):
                    continue
                order = recipe(architecture, taught, seed)
                start = time.process_time()
                model = train_network(quiet_run(order, given.home / name), held.chips, held.split, order.networks[0])
                spent = time.process_time() - start
                if spent > 5:
                    print(f"{name}: trained in {spent:.0f} CPU s", flush=True)
                yield name, cast(SegmentationModel, model.eval()), batch


class Cell:
    """The counts of one network within one threat: kept in a file, an attack that is there is not run again."""

    def __init__(self, home: Path, name: str, model: SegmentationModel, batch: Batch, threat: str) -> None:
        self.model, self.batch = model, batch
        self.threat, self.keys = parse_threat(threat, model.spec), Keys(0, batch.chips)
        size = f"{len(batch)}x{batch.image.shape[-1]}"
        self.path = home / "cells" / size / f"{name}@{threat.replace(' ', '-').replace('%', '')}.json"
        self.held: dict[str, list[list[float]]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def run(self, name: str, attack: Attack | None) -> Counts:
        """Return overlap and union of every chip after an attack, or on the clean images."""
        if name not in self.held:
            image = attack(self.model, self.batch, self.threat, self.keys) if attack else self.batch.image
            self.held[name] = [part.tolist() for part in counted(self.model, self.batch, image)]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.held))
        return cast(Counts, tuple(np.array(part) for part in self.held[name]))

    def suite(self, suite: Suite) -> tuple[float, float]:
        """Return the water IoU of a suite's worst case, pooled and mean per chip; doing nothing is a candidate."""
        held = [self.run("clean", None), *(self.run(repr(member.attack), member.attack) for member in suite.members())]
        return worst(held)


def singles() -> Mapping[str, Attack]:
    """The published attacks that one would run alone, 100 passes each."""
    return {
        "pgd": PGD(steps=100, step=0.1), "cospgd": PGD(loss=CosPGDLoss(), steps=100, step=0.1), "padam-ce": PAdam(steps=100),
        "apgd-ce": APGD(steps=100), "js": APGD(loss=JensenShannon(), steps=100), "tsallis": APGD(loss=TsallisCrossEntropy(), steps=100),
    }  # fmt: skip


def measured(cell: Cell, alone: bool) -> dict[str, tuple[float, float]]:
    """Return every figure of a cell, (pooled, per chip)."""
    row = {"clean": worst([cell.run("clean", None)])}
    row["own 30"], row["own 300"] = cell.suite(Seawall(30)), cell.suite(Seawall(300))
    row["SEA 900"] = cell.suite(SEA(300))
    if alone:
        each = [worst([cell.run("clean", None), cell.run(repr(attack), attack)]) for attack in singles().values()]
        row["best single 100"] = min(pooled for pooled, _ in each), min(per_chip for _, per_chip in each)
    return row


GOALS = (("own 300", "SEA 900"), ("own 30", "SEA 900"), ("own 30", "best single 100"))


def table(rows: Mapping[str, Mapping[str, tuple[float, float]]], slack: float) -> None:
    """Print the figures and, for each goal, on how many cells it is kept."""
    names = list(next(iter(rows.values())))
    print("| cell | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for cell, row in rows.items():
        print(f"| {cell} | " + " | ".join(f"{row[n][0]:.4f} / {row[n][1]:.4f}" for n in names) + " |")
    for ours, theirs in GOALS:
        if theirs not in names:
            continue
        for i, how in enumerate(("pooled", "per chip")):
            kept = sum(row[ours][i] <= row[theirs][i] for row in rows.values())
            near = sum(row[ours][i] <= row[theirs][i] + slack for row in rows.values())
            print(f"{ours} not above {theirs}, {how}: {kept} of {len(rows)}, within {slack:g}: {near}")


def main() -> None:
    """Train, attack, print."""
    given = asked()
    torch.set_num_threads(given.threads)
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for name, model, batch in networks(given):
        if given.train_only:
            continue
        for threat in THREATS:
            start = time.process_time()
            cell = Cell(given.home, name, model, batch, threat)
            rows[f"{name}, {threat.split()[1]}"] = row = measured(cell, given.singles)
            spent = time.process_time() - start
            said = ", ".join(f"{k} {a:.4f} / {b:.4f}" for k, (a, b) in row.items())
            print(f"{name}, {threat}, {len(batch)} chips: {said} ({spent:.0f} CPU s)", flush=True)
    if rows:
        table(rows, given.slack)


def asked() -> argparse.Namespace:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--home", type=Path, default=Path("runs/equal-cost"), help="keep chips, networks and counts there")
    ask.add_argument("--cells", default="", help="networks whose name starts so")
    ask.add_argument("--chips", type=int, default=8)
    ask.add_argument("--size", type=int, default=48)
    ask.add_argument("--singles", action="store_true", help="also the best published single attack at 100 passes")
    ask.add_argument("--slack", type=float, default=0.001, help="IoU within which two figures count as a tie")
    ask.add_argument("--train-only", action="store_true")
    ask.add_argument("--threads", type=int, default=1)
    return ask.parse_args()


if __name__ == "__main__":
    main()

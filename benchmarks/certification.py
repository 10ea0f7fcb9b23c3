"""How much of real chips is certified: share, water IoU and area under every perturbation within a radius, and what the draws cost.

Trains on the real chips (SEAWALL_DATA) or on simulated scenes, split by group, plainly and with Gaussian noise of each sigma; the
seed decides split, weights, patches and noise. Held-out chips are certified each jointly over its pixels at tau 0.75 and alpha 0.001,
under the noise that the network was trained with, and the plain network under the same. The attack spends the radius on the weakest
certified pixel of a chip. Every finished cell is a JSON line in `--out`/certificates.jsonl; a run that was stopped goes on where it stopped.

    python benchmarks/certification.py --out runs/certification             # 5 trainings and 8 certificates for each of 3 seeds
    python benchmarks/certification.py --out runs/certification --table     # print what is there
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from study import (
    CLEAN,
    LOSS,
    JsonLines,
    Parts,
    SplitChips,
    StudyParser,
    folder_of,
    group_counts,
    pooled,
    print_without_groups,
    recipe_by_group,
    training_settings,
    value_text,
    water_counts,
)
from torch import nn

from seawall.data.loader import whole_chips
from seawall.pipeline.certify_chips import CertifiedChip, ChipCertifier
from seawall.recipe.recipe import Recipe
from seawall.types import SegmentationModel
from seawall.uncertainty.certification import Certification

SIGMAS = (0.02, 0.05, 0.1, 0.2)
PLAIN, NOISE = "plain", "noise"
SEQUENTIAL = "by looks"
"""Cells of Holm's correction and looks, over more chips than those on which the rules are compared."""
RULES: Mapping[str, Mapping[str, Any]] = {
    "Bonferroni, 1000 draws": {"correction": "bonferroni", "looks": (1000,)},
    "Bonferroni, 100 draws": {"correction": "bonferroni", "samples": 100, "looks": (100,)},
    "Bonferroni, looks": {"correction": "bonferroni"},
    "Holm, looks": {},
}
"""Fixed numbers of draws as published, and looks at growing numbers with a share of alpha each."""
COMPARED_SIGMA = 0.1
"""Noise under which the rules are compared and certified pixels are attacked."""
SUMS = ("seen", "certified", "water", "both", "either")
"""Pixels of a group: seen, certified, certified as water; certified water that is labelled so; either of them."""


def recipe(given: argparse.Namespace, sigma: float, seed: int) -> Recipe:
    """Return what one network is trained by; sigma 0 is plain training."""
    objective: dict[str, object] = {"name": "supervised", "settings": {"loss": LOSS}}
    if sigma:
        settings = {"sigma": sigma, "objective_settings": {"loss": LOSS}}
        objective = {"name": "gaussian-noise", "settings": settings}
    training = {**training_settings(given, 64, given.passes), "keep": "last", "ema": 0.99}
    return recipe_by_group(
        {
            "name": "certification",
            "seed": seed,
            "model": {"name": "index-unet", "settings": {"width": given.width, "depth": 3}},
            "training": {"objective": objective, "settings": training},
        }
    )


@dataclass(frozen=True)
class Study:
    """One network of one seed and the chips that it is certified on."""

    cells: JsonLines
    held: SplitChips
    seed: int
    training: str
    sigma: float
    net: nn.Module

    def ids(self, most: int) -> tuple[str, ...]:
        """Return about so many held-out chips, spread over the places."""
        every = self.held.split.test
        return every[:: -(-len(every) // most)]

    def measure_clean(self, most: int) -> None:
        """Add the cell of the network on chips as they are, if it is not there."""
        if any(
            (row["rule"], row["seed"], row["training"]) == (CLEAN, self.seed, self.training) for row in self.cells.rows
        ):
            return
        net = cast(SegmentationModel, self.net)
        counts = water_counts(net, self.held.chips.with_bands(net.spec.bands), self.ids(most))
        by_group = group_counts(counts, self.held.groups)
        row = {"seed": self.seed, "training": self.training, "sigma": self.sigma, "rule": CLEAN, "groups": by_group}
        self.cells.append(row)
        print_without_groups(row)

    def measure(self, rule: str, certification: Certification, most: int, attack_steps: int = 0) -> None:
        """Add the cell of a rule, if it is not there."""
        key = {"seed": self.seed, "training": self.training, "sigma": self.sigma, "rule": rule}
        if any(all(row[name] == value for name, value in key.items()) for row in self.cells.rows):
            return
        certifier = ChipCertifier(self.net, certification, attack_steps)
        ids = self.ids(most)
        counts: dict[str, list[int]] = {}
        draws: list[int] = []
        flipped, least, seconds = 0, 1.0, 0.0
        for batch in whole_chips(self.held.chips, ids, 1):
            began = time.monotonic()
            [chip] = certifier.certify([batch])
            seconds += time.monotonic() - began
            counts[batch.chips[0]] = chip_sums(chip)
            draws.append(chip.look.draws)
            if attack_steps:
                outcome = certifier.attack(chip)
                flipped += outcome.flipped
                least = min(least, 1.0 if outcome.least_share is None else outcome.least_share)
        by_group: dict[str, list[int]] = {}
        for chip_id, sums in counts.items():
            held = by_group.setdefault(self.held.groups[chip_id], [0] * len(SUMS))
            by_group[self.held.groups[chip_id]] = [a + b for a, b in zip(held, sums, strict=True)]
        row = {
            **key,
            "groups": by_group,
            "chips": len(ids),
            "draws": float(np.mean(draws)),
            "seconds": seconds / len(ids),
        }
        if attack_steps:
            row |= {"flipped": flipped, "least": least}
        self.cells.append(row)
        print_without_groups(row)


def chip_sums(chip: CertifiedChip) -> list[int]:
    """Return the pixels of a chip, in the order of `SUMS`."""
    truth = (chip.batch.label[0] == 1).numpy()
    valid, water = chip.batch.valid[0].numpy(), chip.certified & (chip.classes == 1)
    parts = (chip.seen, chip.certified, water, water & truth & valid, (water | truth) & valid)
    return [int(part.sum()) for part in parts]


def measure(given: argparse.Namespace, cells: JsonLines, seed: int) -> None:
    """Add the cells of one seed."""
    held = SplitChips.of(recipe(given, 0.0, seed), given.out)
    for sigma in (0.0, *given.sigmas):
        name = f"{NOISE} {sigma:g}" if sigma else PLAIN
        network, _ = held.trained(recipe(given, sigma, seed), folder_of(given.out, name, seed))
        net = cast(nn.Module, network)
        Study(cells, held, seed, name, sigma, net).measure_clean(given.chips)
        for own in (sigma,) if sigma else given.sigmas:
            study = Study(cells, held, seed, name, own, net)
            study.measure(SEQUENTIAL, Certification(sigma=own, seed=seed), given.chips)
            if own == COMPARED_SIGMA and sigma:
                for rule, settings in RULES.items():
                    study.measure(rule, Certification(sigma=own, seed=seed, **settings), given.compared)
                study.measure("attack", Certification(sigma=own, seed=seed), given.compared, given.attack_steps)


def parts_of(rows: Sequence[Mapping[str, Any]], top: str, bottom: str) -> Parts:
    """Return two of the sums of every group and seed, for a quotient."""
    first, second = SUMS.index(top), SUMS.index(bottom)
    return [{group: (sums[first], sums[second]) for group, sums in row["groups"].items()} for row in rows]


def share_table(cells: JsonLines) -> Iterator[str]:
    """Yield the lines of what is certified by each training and sigma."""
    yield "| training | sigma | radius | certified share (95 %) | certified water IoU (95 %) | water IoU of the network | draws | s per chip |"
    yield "|---|---|---|---|---|---|---|---|"
    chosen = [row for row in cells.rows if row["rule"] == SEQUENTIAL]
    for training, sigma in sorted(
        {(row["training"], row["sigma"]) for row in chosen}, key=lambda key: (key[1], key[0])
    ):
        rows = [row for row in chosen if (row["training"], row["sigma"]) == (training, sigma)]
        clean = [row["groups"] for row in cells.rows if (row["rule"], row["training"]) == (CLEAN, training)]
        figures = [value_text(pooled(parts_of(rows, *pair))) for pair in (("certified", "seen"), ("both", "either"))]
        draws, seconds = (np.mean([row[name] for row in rows]) for name in ("draws", "seconds"))
        radius = Certification(sigma=sigma).radius * sigma
        yield f"| {training} | {sigma:g} | {radius:.4f} | {' | '.join(figures)} | {value_text(pooled(clean))} | {draws:.0f} | {seconds:.1f} |"


def rule_table(cells: JsonLines) -> Iterator[str]:
    """Yield the lines of what each rule certifies with how many draws."""
    yield "| rule | draws | certified share (95 %) | of what 1000 draws certify | s per chip |"
    yield "|---|---|---|---|---|"
    found = {
        rule: [r for r in cells.rows if (r["rule"], r["sigma"]) == (rule, COMPARED_SIGMA) and r["training"] != PLAIN]
        for rule in RULES
    }
    whole = pooled(parts_of(found["Bonferroni, 1000 draws"], "certified", "seen"))[0]
    for rule, rows in found.items():
        share = pooled(parts_of(rows, "certified", "seen"))
        draws, seconds = (np.mean([row[name] for row in rows]) for name in ("draws", "seconds"))
        yield f"| {rule} | {draws:.0f} | {value_text(share)} | {share[0] / whole:.3f} | {seconds:.1f} |"


def area_table(cells: JsonLines) -> Iterator[str]:
    """Yield the lines of the certified area, in km2 of 30 m pixels and over all seeds."""
    yield "| training | sigma | certified water, km2 | may be water, km2 | seen, km2 |"
    yield "|---|---|---|---|---|"
    chosen = [row for row in cells.rows if row["rule"] == SEQUENTIAL]
    for training, sigma in sorted(
        {(row["training"], row["sigma"]) for row in chosen}, key=lambda key: (key[1], key[0])
    ):
        sums = [
            sum(np.array(list(row["groups"].values())))
            for row in chosen
            if (row["training"], row["sigma"]) == (training, sigma)
        ]
        seen, certified, water = np.mean(sums, 0)[:3] * 900 / 1e6
        yield f"| {training} | {sigma:g} | {water:.1f} | {water + seen - certified:.1f} | {seen:.1f} |"


def attack_table(cells: JsonLines) -> Iterator[str]:
    """Yield the lines of the attacks on certified pixels."""
    yield "| seed | chips | certified pixels | flipped | least share of votes |"
    yield "|---|---|---|---|---|"
    for row in (row for row in cells.rows if row["rule"] == "attack"):
        certified = sum(sums[SUMS.index("certified")] for sums in row["groups"].values())
        yield f"| {row['seed']} | {row['chips']} | {certified} | {row['flipped']} | {row['least']:.3f} |"


def main() -> None:
    """Train, certify, print the tables."""
    ask = StudyParser(__doc__, "runs/certification")
    ask.add_seeds()
    ask.add_training(passes=12, steps=30)
    ask.add_argument("--sigmas", type=lambda text: [float(one) for one in text.split(",")], default=list(SIGMAS))
    ask.add_argument(
        "--chips", type=int, default=12, help="chips of a seed that are certified, spread over the held-out places"
    )
    ask.add_argument("--attack-steps", type=int, default=20)
    ask.add_argument(
        "--compared", type=int, default=6, help="chips of a seed on which rules are compared and pixels attacked"
    )
    ask.add_table()
    ask.add_threads()
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    cells = JsonLines(given.out / "certificates.jsonl")
    for seed in () if given.table else given.seeds:
        measure(given, cells, seed)
    for table in (share_table, rule_table, area_table, attack_table):
        print("\n".join([*table(cells), ""]))


if __name__ == "__main__":
    main()

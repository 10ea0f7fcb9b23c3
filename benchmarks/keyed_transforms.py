"""What keyed block transforms give on held-out places: water IoU under adaptive attacks, at borders, and without the key.

Trains on the real chips (SEAWALL_DATA) or on simulated scenes, split by group; the seed decides split, weights, patches and
key. Every transform is trained at each block size at equal optimizer steps, attacked with the key (PGD-20 through the
transform, straight through the encryption, and with the slope of its code table), by the images of an attack on the plain network, and tried without the
transform and with wrong keys. At `--block` it is attacked through a surrogate with another key, in expectation over
guessed keys, and by Square too. The border IoU counts the pixels within 2 pixels of a border of the label.

Every finished cell is a JSON line in `--out`/cells.jsonl, with the counts of every group; a run that was stopped goes on
where it stopped. The keys of this study are no secrets: they follow from the seed.

    python benchmarks/keyed_transforms.py --out runs/keyed-study            # two seeds, about 40 CPU-minutes on the HLS chips
    python benchmarks/keyed_transforms.py --out runs/keyed-study --table    # print what is there
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from study import (
    CLEAN,
    LOSS,
    Counts,
    JsonLines,
    SplitChips,
    StudyParser,
    group_counts,
    pooled,
    recipe_by_group,
    shared_water,
    training_settings,
    value_text,
)
from torch import Tensor
from torch.nn import functional

from seawall import registry
from seawall.data.loader import whole_chips
from seawall.keyed_transforms.keys import public_key
from seawall.models.keyed import KeyedModel, KeyEnsemble
from seawall.recipe.recipe import Recipe
from seawall.rng import Keys
from seawall.threat.parser import parse_threat
from seawall.types import Attack, Batch, SegmentationModel

PLAIN = "plain"
BUDGETS = ("0.5%", "1%")
TRANSFORMS: Mapping[str, tuple[int, ...]] = {
    "shuffle": (2, 4, 8),
    "negative-positive": (2, 4, 8),
    "format-preserving": (4,),
}
BORDER = 2
"""Pixels on either side of a border of the label that the border IoU counts."""
EXPENSIVE = ("transfer-other-key", "guessed-keys", "black-box")
WITHOUT_KEY = ("no transform", "wrong key 1", "wrong key 2", "wrong key 3")
SLOPE = "key-known-slope"
COLUMNS = (CLEAN, "key-known", SLOPE, "transfer-plain", *EXPENSIVE)
NOT_OF_PLAIN = (SLOPE, "transfer-plain", "guessed-keys")


def network_names() -> list[str]:
    """Return the plain network and every transform at each of its block sizes."""
    return [PLAIN, *(f"{name} {block}" for name, blocks in TRANSFORMS.items() for block in blocks)]


@dataclass(frozen=True)
class Study:
    """Chips, split and settings of one seed.

    Args:
        given: Options of the command.
        seed: The seed.
    """

    given: argparse.Namespace
    seed: int

    def recipe(self, network: str, key: str = "") -> Recipe:
        """Return what one network is trained by; `key` names the file of its key."""
        tree: dict[str, object] = {
            "name": "keyed-study",
            "seed": self.seed,
            "model": {"name": "unet", "settings": {"width": self.given.width, "depth": 3}},
            "training": {
                "objective": {"name": "supervised", "settings": {"loss": LOSS}},
                "settings": training_settings(self.given, 64, 5),
            },
        }
        if network != PLAIN:
            name, block = network.split()
            threats = [f"linf {budget} reflectance" for budget in BUDGETS]
            tree["keyed"] = {"transform": name, "settings": {"block": int(block)}, "key": key, "threats": threats}
        return recipe_by_group(tree)

    @cached_property
    def held(self) -> SplitChips:
        return SplitChips.of(self.recipe(PLAIN), self.given.out)

    @cached_property
    def batches(self) -> list[Batch]:
        return list(whole_chips(self.held.chips, self.held.split.test))

    def network(self, name: str, whose: str = "mine") -> SegmentationModel:
        """Return a trained network, with the key of the study or of another adversary."""
        key = self.given.out / f"{whose}-s{self.seed}.key"
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text(public_key(f"study {whose} {self.seed}").secret.hex())
        folder = self.given.out / f"{name.replace(' ', '-')}{'' if whose == 'mine' else '-' + whose}-s{self.seed}"
        model, minutes = self.held.trained(self.recipe(name, str(key)), folder)
        print(f"{folder.name}: {minutes:.2f} CPU-minutes", flush=True)
        return model

    def attacked(self, attack: Attack, model: SegmentationModel, budget: str) -> list[Tensor]:
        """Return the adversarial images of the test chips."""
        threat = parse_threat(f"linf {budget} reflectance", model.spec)
        return [attack(model, batch, threat, Keys(self.seed, batch.chips)) for batch in self.batches]

    def counts(self, model: SegmentationModel, images: Sequence[Tensor] | None = None) -> dict[str, Counts]:
        """Return intersection and union of water by group: over all pixels, and over those near a border of the label."""
        found: dict[str, Counts] = {"iou": {}, "border": {}}
        for i, batch in enumerate(self.batches):
            with torch.no_grad():
                water = model(batch.image if images is None else images[i]).argmax(1) == 1
            truth = batch.label == 1
            for name, where in (("iou", batch.valid), ("border", batch.valid & near_border(truth))):
                found[name] |= shared_water(batch.chips, water, truth, where)
        return {name: group_counts(counts, self.held.groups) for name, counts in found.items()}


def near_border(truth: Tensor) -> Tensor:
    """Return the pixels (B, H, W) within `BORDER` pixels of one with the other label."""
    plane, side = truth[:, None].float(), 2 * BORDER + 1
    return (functional.max_pool2d(plane, side, 1, BORDER) != -functional.max_pool2d(-plane, side, 1, BORDER))[:, 0]


class Cells(JsonLines):
    """The finished cells."""

    def has(self, network: str, seed: int, attack: str, budget: str) -> bool:
        key = (network, seed, attack, budget)
        return any((r["network"], r["seed"], r["attack"], r["budget"]) == key for r in self.rows)

    def add(
        self, network: str, seed: int, attack: str, budget: str, counts: Mapping[str, object], seconds: float
    ) -> None:
        row = {
            "network": network,
            "seed": seed,
            "attack": attack,
            "budget": budget,
            **counts,
            "cpu_seconds": round(seconds, 1),
        }
        self.append(row)
        print(network, seed, attack, budget, pooled([row["iou"]]), row["cpu_seconds"], flush=True)

    def seeds(self, network: str) -> list[int]:
        """Return the seeds that have as many cells of a network as any seed, so that all figures of a row are of the same."""
        counts = Counter(row["seed"] for row in self.rows if row["network"] == network)
        return sorted(seed for seed, count in counts.items() if count == max(counts.values()))

    def parts(self, network: str, attack: str, budget: str, measure: str) -> list[Counts]:
        key, seeds = (network, attack, budget), self.seeds(network)
        rows = [r for r in self.rows if r["seed"] in seeds]
        return [r[measure] for r in rows if (r["network"], r["attack"], r["budget"]) == key]


def measure(given: argparse.Namespace, cells: Cells, seed: int) -> None:
    """Add the cells of one seed."""
    study = Study(given, seed)
    pgd = registry.build("attack", "pgd", {"steps": 20})
    plain = study.network(PLAIN)
    transferred: dict[str, list[Tensor]] = {}
    for name in given.networks:
        network = plain if name == PLAIN else study.network(name)
        expensive = name == PLAIN or name.endswith(f" {given.block}")
        for attack in COLUMNS:
            if (attack in EXPENSIVE and not expensive) or (name == PLAIN and attack in NOT_OF_PLAIN):
                continue
            if attack == SLOPE and not name.startswith("format-preserving"):
                continue  # the gradient of the others is their own
            for budget in ("",) if attack == CLEAN else BUDGETS:
                if cells.has(name, seed, attack, budget):
                    continue
                began, images = time.process_time(), None
                if attack == "transfer-plain":
                    if budget not in transferred:
                        transferred[budget] = study.attacked(pgd, plain, budget)
                    images = transferred[budget]
                elif attack != CLEAN:
                    by, source = adversary(study, name, network, attack, pgd)
                    images = study.attacked(by, source, budget)
                cells.add(name, seed, attack, budget, study.counts(network, images), time.process_time() - began)
        if isinstance(network, KeyedModel):
            for without in WITHOUT_KEY:
                if not cells.has(name, seed, without, ""):
                    keyless = network.without_transform()
                    if without != WITHOUT_KEY[0]:
                        keyless = network.with_key(public_key(f"study {without} {seed}"))
                    cells.add(name, seed, without, "", study.counts(cast(SegmentationModel, keyless)), 0.0)


def adversary(
    study: Study, name: str, network: SegmentationModel, attack: str, pgd: Attack
) -> tuple[Attack, SegmentationModel]:
    """Return an attack and the model that it is run on."""
    if attack == "black-box":
        return registry.build("attack", "square", {"steps": study.given.queries}), network
    if attack == "transfer-other-key":  # the plain network gets the images of the shuffling surrogate
        other = study.network(f"shuffle {study.given.block}" if name == PLAIN else name, "other")
        return pgd, cast(KeyedModel, other).for_attacks()
    if attack == "guessed-keys":
        guesses = [public_key(f"study guess {study.seed} {i}") for i in range(study.given.guesses)]
        ensemble = KeyEnsemble([cast(KeyedModel, network).with_key(key).for_attacks() for key in guesses])
        return registry.build("attack", "pgd", {"steps": 10}), cast(SegmentationModel, ensemble.eval())
    return pgd, cast(KeyedModel, network).for_attacks() if attack == SLOPE else network


def table(cells: Cells) -> Iterator[str]:
    """Yield the lines of the tables: pooled over the seeds, with 95 % intervals over places."""
    names = [name for name in network_names() if cells.parts(name, CLEAN, "", "iou")]
    for budget in BUDGETS:
        yield f"Water IoU within {budget} reflectance:"
        yield ""
        yield from lines(("seeds", *COLUMNS), names, lambda n, c, b=budget: shown(cells, n, c, b, "iou"))
        yield ""
    yield "Borders and access, clean images:"
    yield ""
    columns = (CLEAN, "border", *WITHOUT_KEY)
    yield from lines(
        ("seeds", *columns),
        names,
        lambda n, c: shown(cells, n, CLEAN if c == "border" else c, "", "border" if c == "border" else "iou"),
    )


def lines(head: Sequence[str], names: Sequence[str], cell: Callable[[str, str], str]) -> Iterator[str]:
    """Yield a table with a row per network."""
    yield f"| network, block | {' | '.join(head)} |"
    yield "|---" * (len(head) + 1) + "|"
    for name in names:
        yield f"| {name} | {' | '.join(cell(name, column) for column in head)} |"


def shown(cells: Cells, network: str, attack: str, budget: str, measure: str) -> str:
    """Return a figure with its interval; a dash where it was not measured."""
    if attack == "seeds":
        return ", ".join(map(str, cells.seeds(network)))
    parts = cells.parts(network, attack, "" if attack in (CLEAN, *WITHOUT_KEY) else budget, measure)
    if not parts:
        return "–"
    return value_text(pooled(parts))


def main() -> None:
    """Train, attack, print the tables."""
    given = asked()
    torch.set_num_threads(given.threads)
    cells = Cells(given.out / "cells.jsonl")
    for seed in () if given.table else given.seeds:
        measure(given, cells, seed)
    print("\n".join(table(cells)))


def asked() -> argparse.Namespace:
    ask = StudyParser(__doc__, "runs/keyed-study")
    ask.add_names("--networks", network_names(), words="such as 'plain,shuffle 4'")
    ask.add_seeds(2)
    ask.add_argument("--block", type=int, default=4, help="block size of the expensive attacks")
    ask.add_training(passes=15, steps=30)
    ask.add_argument("--guesses", type=int, default=4, help="keys that are guessed at once")
    ask.add_argument("--queries", type=int, default=100, help="forward passes per chip of Square")
    ask.add_table()
    ask.add_threads()
    return ask.parse_args()


if __name__ == "__main__":
    main()

"""Do poisons flip a region of an image that nobody touched, and are backdoors found? Small networks, simulated scenes.

Clean-label poisons (gradient matching, MetaPoison) and flipped labels against random noise of the same size and against
clean chips, each with fresh victims, in two regimes:

* "scratch": victims learn from all chips from fresh weights that the adversary does not know.
* "tune": victims start from published weights, which the adversary knows, and learn from a few local chips.

Backdoors: how often the trigger works where it is in view, and how many poisoned chips two detectors catch at a stated
rate of false alarms: those on clean chips of the poisoned network, and on the chips of a clean one. Every seed has its
own scenes, networks, target and victims. Rows are appended to poison.jsonl; one that is there is not made again.

    python benchmarks/poison.py --out runs/poison            # about 15 minutes of one quiet core
    python benchmarks/poison.py --out runs/poison --table    # prints the table of the rows that are there
    python benchmarks/poison.py --out runs/taste --seeds 0 --kinds dirty-label backdoor-pattern      # a taste
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from study import JsonLines
from torch.nn import functional

from seawall.arrays import DoubleArray
from seawall.models.blocks import Segmenter
from seawall.models.unet import UNet
from seawall.poisoning.backdoor import Backdoor, trigger_rate
from seawall.poisoning.detection import PoisonDetection, activation_clustering, activations, spectral_signatures
from seawall.poisoning.dirty_label import DirtyLabel
from seawall.poisoning.gradient_matching import GradientMatching
from seawall.poisoning.meta_poison import MetaPoison
from seawall.poisoning.random_perturbation import RandomPerturbation
from seawall.poisoning.target import PoisonTarget, choose_chips, evaluate_poison, insert_poisoned
from seawall.rng import Keys
from seawall.simulate.scene import simulate_s2
from seawall.types import Batch, ModelSpec

BANDS = ("B03", "B08", "B11")
SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
SIDE, REGION, TRUSTED, ALARMS = 32, 6, 40, 0.05
CRAFTED = ("gradient-matching", "meta-poison")
KINDS = (*CRAFTED, "dirty-label", "backdoor-patch", "backdoor-pattern")
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % points of Student's t by the number of seeds."""


@dataclass(frozen=True)
class Order:
    """One row to be made."""

    kind: str
    regime: str
    eps: float
    share: float
    seed: int


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    rows = JsonLines(asked.out / "poison.jsonl")
    settings = {"chips": asked.chips, "local": asked.local, "epochs": asked.epochs, "steps": asked.steps,
                "restarts": asked.restarts, "victims": asked.victims}  # fmt: skip
    done = {json.dumps([row["order"], row["settings"]], sort_keys=True) for row in rows.rows}
    for order in [] if asked.table else orders(asked):
        key = {"order": vars(order), "settings": settings}
        if json.dumps([key["order"], key["settings"]], sort_keys=True) in done:
            continue
        start = time.process_time()
        world = world_of(order.seed, asked.chips, asked.local, asked.epochs)
        figures = backdoor(world, order) if order.kind.startswith("backdoor") else flip(world, order, asked)
        row = {**key, "figures": figures, "seconds": round(time.process_time() - start, 1)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(table([row for row in rows.rows if asked.table or row["settings"] == settings]))


def orders(asked: argparse.Namespace) -> Iterator[Order]:
    """Seed by seed, so that an early end leaves whole seeds."""
    for seed in asked.seeds:
        for kind in asked.kinds:
            if kind.startswith("backdoor"):
                yield from (Order(kind, "scratch", 0.1, share, seed) for share in (0.1, 0.2))
            elif kind == "dirty-label":
                yield from (
                    Order(kind, regime, 0.0, share, seed) for regime, share in (("scratch", 0.2), ("tune", 0.5))
                )
            else:
                yield Order(kind, "scratch", 0.1, 0.2, seed)
                yield from (Order(kind, "tune", eps, 0.5, seed) for eps in (0.02, 0.05, 0.1))


@cache
def world_of(seed: int, count: int, local: int, epochs: int) -> World:
    return World(seed, count, local, epochs)


class World:
    """Chips to learn from and to test on, and how a network is trained."""

    def __init__(self, seed: int, count: int, local: int, epochs: int) -> None:
        self.epochs, self.seed = epochs, seed
        self.train, self.test = chips(count, 10 * seed), chips(15, 10 * seed + 1)
        self.local, self.trusted = chips(local, 10 * seed + 2), chips(TRUSTED, 10 * seed + 3)
        self.mean, self.std = self.train.image.mean((0, 2, 3)), self.train.image.std((0, 2, 3))

    @cached_property
    def base(self) -> Segmenter:
        """A network of the clean chips."""
        return self.learn(self.train, 99)

    def make(self, seed: int) -> Segmenter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = UNet(8, 2, norm="pixel")(SPEC)
        net.standardize.fit(self.mean, self.std)
        return net

    def learn(self, batch: Batch, seed: int) -> Segmenter:
        """Train from scratch."""
        return descend(self.make(seed + 1000), batch, seed, self.epochs, 3e-3)

    def tune(self, batch: Batch, seed: int) -> Segmenter:
        """Go on from the clean network, with all its weights."""
        return descend(copy.deepcopy(self.base), batch, seed, 20, 1e-3)

    def quality(self, net: Segmenter) -> float:
        """Return the water IoU on the test chips."""
        with torch.no_grad():
            water, true = net(self.test.image).argmax(1) == 1, self.test.label == 1
        return float((water & true).sum() / (water | true).sum())

    def target(self) -> PoisonTarget:
        """Return the square of water that the clean network gets right and is least sure of, of all test chips."""
        base = self.base
        with torch.no_grad():
            z = base(self.test.image)
        gap = z[:, 1] - z[:, 0]
        right = (-functional.max_pool2d(-((self.test.label == 1) & (gap > 0)).float()[:, None], REGION, 1))[:, 0] > 0
        mean = functional.avg_pool2d(gap[:, None], REGION, 1)[:, 0]
        place = int(torch.where(right, mean, torch.inf).argmin())
        chip, row, col = (int(i) for i in np.unravel_index(place, tuple(mean.shape)))
        region = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        region[0, row : row + REGION, col : col + REGION] = True
        return PoisonTarget(self.test.select([chip]), region, 0)


def descend(net: Segmenter, batch: Batch, seed: int, epochs: int, rate: float) -> Segmenter:
    """Train with Adam, batches of 8 and random flips."""
    draw, descent = torch.Generator().manual_seed(seed), torch.optim.Adam(net.train().parameters(), rate)
    for _ in range(epochs):
        for part in torch.randperm(len(batch), generator=draw).split(8):
            mini = batch.select(part.tolist())
            axes = [axis for axis in (-1, -2) if torch.rand(1, generator=draw) < 0.5]
            loss = functional.cross_entropy(net(mini.image.flip(axes)), mini.label.flip(axes))
            descent.zero_grad()
            loss.backward()
            descent.step()
    return net.eval()


def flip(world: World, order: Order, asked: argparse.Namespace) -> dict[str, object]:
    """Craft a poison, or flip labels, and count what it does to fresh victims."""
    aim, scratch = world.target(), order.regime == "scratch"
    train, learn = (world.train, world.learn) if scratch else (world.local, world.tune)
    ids = choose_chips(train.chips, order.share, order.seed)
    few = train.select([train.chips.index(id_) for id_ in ids])
    rest = train.select([i for i, id_ in enumerate(train.chips) if id_ not in ids])
    keys, losses = Keys(order.seed, few.chips), tuple[float, ...]()
    if order.kind == "dirty-label":
        bad = DirtyLabel(1, 0)(few, keys)
    elif order.kind == "gradient-matching":
        made = GradientMatching(order.eps, asked.steps, asked.restarts).craft(world.base, aim, few, keys)
        bad, losses = made.batch, made.losses
    else:
        start = world.make if scratch else (lambda seed: copy.deepcopy(world.base))
        craft = MetaPoison(order.eps, asked.steps // 2, 4, world.epochs if scratch else 20, mini=len(few) + 4,
                           adam=3e-3 if scratch else 1e-3)  # fmt: skip
        made = craft.craft(start, aim, few, rest, keys)
        bad, losses = made.batch, made.losses
    control = RandomPerturbation(order.eps)(few, keys)
    seeds = range(100 * order.seed, 100 * order.seed + asked.victims)
    found = evaluate_poison(
        aim, train, insert_poisoned(train, bad), insert_poisoned(train, control), learn, seeds, world.quality
    )
    figures: dict[str, object] = {
        "flipped": found.flipped, "flipped, random noise": found.control, "flipped, clean": found.clean,
        "IoU": found.quality, "IoU, clean": found.clean_quality,
    }  # fmt: skip
    return {**figures, **({"loss, first": losses[0], "loss, last": losses[-1]} if losses else {})}


def backdoor(world: World, order: Order) -> dict[str, object]:
    """Train on chips with a backdoor, try the trigger, and look for the poisoned chips."""
    poison = Backdoor("patch", order.eps, reach=4) if order.kind == "backdoor-patch" else Backdoor("pattern", order.eps)
    train, test = world.train, world.test
    ids = choose_chips(train.chips, order.share, order.seed)
    few = train.select([train.chips.index(id_) for id_ in ids])
    bad = insert_poisoned(train, poison(few, Keys(order.seed, few.chips)))
    net, later = world.learn(bad, order.seed), Keys(order.seed, test.chips)
    stamped = replace(test, image=poison.stamp(test, later))
    with torch.no_grad():
        works, plain = (trigger_rate(net(batch.image).argmax(1), test, poison, later) for batch in (stamped, test))
    made: dict[str, object] = {"trigger works": works, "without trigger": plain, "IoU": world.quality(net)}
    for klass, of in ((None, "all pixels"), (0, "land")):
        dirty, clean = (looked(world, of_net, batch, klass) for of_net, batch in ((net, bad), (world.base, train)))
        for name, detect in DETECTORS.items():
            verdict, calm = detect(*dirty, order.share), detect(*clean, order.share)
            caught, alarms = verdict.rates(ids)
            made |= {
                f"{name}, {of}: caught": caught, f"{name}, {of}: false alarms": alarms,
                f"{name}, {of}: alarms, clean network": calm.rates(())[1], f"{name}, {of}: AUC": verdict.auc(ids),
            }  # fmt: skip
    return made


def looked(
    world: World, net: Segmenter, batch: Batch, klass: int | None
) -> tuple[tuple[str, ...], DoubleArray, DoubleArray]:
    """Return ids, activations of the last block, and those of trusted chips."""
    names, features = activations(net, net.network.up[0], [batch], klass)
    return names, features, activations(net, net.network.up[0], [world.trusted], klass)[1]


DETECTORS: Mapping[str, Callable[[Sequence[str], DoubleArray, DoubleArray, float], PoisonDetection]] = {
    "spectral, trusted": lambda ids, x, known, share: spectral_signatures(ids, x, trusted=known, alarms=ALARMS),
    "clusters, trusted": lambda ids, x, known, share: activation_clustering(ids, x, trusted=known, alarms=ALARMS),
    "spectral, true share": lambda ids, x, known, share: spectral_signatures(ids, x, share),
    "spectral, nothing known": lambda ids, x, known, share: spectral_signatures(ids, x),
    "clusters, nothing known": lambda ids, x, known, share: activation_clustering(ids, x),
}
"""Cut-offs from trusted chips; from the true share, as in the paper; and from the chips in question alone."""


def table(rows: Sequence[Mapping]) -> str:
    """Return two markdown tables, of poisons and of detectors: means over seeds, with 95 % t intervals."""
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        order = row["order"]
        key = (KINDS.index(order["kind"]), order["regime"], order["eps"], order["share"])
        groups.setdefault(key, []).append(row["figures"])
    poisons = ["", "| poison | regime | eps | share | figure | mean, 95 % interval | seeds |", "|---" * 7 + "|"]
    columns = ("caught", "false alarms", "alarms, clean network", "AUC")
    detectors = ["", f"| poison | share | detector | {' | '.join(columns)} | seeds |", "|---" * 8 + "|"]
    for (kind, regime, eps, share), mine in sorted(groups.items()):
        names = list(dict.fromkeys(name for figures in mine for name in figures))
        for name in (name for name in names if ": " not in name):
            start = f"| {KINDS[kind]} | {regime} | {eps:g} | {share:g} | {name}"
            poisons.append(f"{start} | {interval(mine, name)} | {len(mine)} |")
        for name in dict.fromkeys(name.partition(": ")[0] for name in names if ": " in name):
            cells = " | ".join(interval(mine, f"{name}: {column}") for column in columns)
            detectors.append(f"| {KINDS[kind]} | {share:g} | {name} | {cells} | {len(mine)} |")
    return "\n".join(poisons + (detectors if len(detectors) > 3 else []))


def interval(mine: Sequence[Mapping], name: str) -> str:
    """Return the mean over seeds and its t interval, cut off where a share cannot be."""
    values = [float(np.mean(v)) for figures in mine if (v := figures.get(name)) is not None]
    if len(values) not in T95:
        return " ".join(f"{v:.3f}" for v in values)
    mean, half = np.mean(values), T95[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    low, high = mean - half, mean + half
    if not name.startswith("loss"):
        low, high = max(low, 0.0), min(high, 1.0)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def chips(count: int, seed: int) -> Batch:
    images, labels, seen = [], [], []
    for i in range(count):
        made = simulate_s2(f"poison{seed}-{i}", 2 * SIDE, BANDS, 10.0, seed, clouds=False)
        for plane, of in (
            (made.image[:, :SIDE, :SIDE], images),
            (made.water[:SIDE, :SIDE].astype(np.int64), labels),
            (made.seen[:SIDE, :SIDE], seen),
        ):
            of.append(torch.from_numpy(np.ascontiguousarray(plane)))
    return Batch.of(
        torch.stack(images), torch.stack(labels), seen=torch.stack(seen), chips=[f"p{seed}-{i}" for i in range(count)]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/poison"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--victims", type=int, default=2, help="fresh networks per row")
    parser.add_argument("--chips", type=int, default=60, help="to learn from in the scratch regime")
    parser.add_argument("--local", type=int, default=16, help="to learn from in the tune regime")
    parser.add_argument("--epochs", type=int, default=30, help="from scratch")
    parser.add_argument("--steps", type=int, default=60, help="of gradient matching; MetaPoison takes half as many")
    parser.add_argument("--restarts", type=int, default=2, help="of gradient matching; 8 in its paper")
    parser.add_argument("--table", action="store_true", help="only print the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()

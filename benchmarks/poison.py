"""Do poisons flip a region of an image that nobody touched, and are backdoors found? Small networks, simulated scenes.

Clean-label poisons (gradient matching, MetaPoison) against random noise of the same size and against clean training,
each with fresh victims; dirty labels as the upper end. Backdoors: how often the trigger works, and what two detectors
find, with their false alarms on clean chips. Rows are appended; one that is there is not made again.

    python benchmarks/poison.py --out runs/poison
    python benchmarks/poison.py --out runs/poison --eps 0.05 --targets 1 --victims 2                      # a taste
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from seawall.imagery.simulate import simulate_s2
from seawall.keys import Keys
from seawall.models.blocks import Segmenter
from seawall.models.unet import UNet
from seawall.poison.clean_label import GradientMatching, MetaPoison
from seawall.poison.detect import Verdict, activation_clustering, activations, spectral_signatures
from seawall.poison.dirty import Backdoor, trigger_rate
from seawall.poison.target import Target, choose, insert, random_control, victims
from seawall.types import Batch, ModelSpec

BANDS = ("B03", "B08", "B11")
SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
SIDE, REGION = 32, 6


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    path = asked.out / "poison.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(r["kind"], r["eps"], r["share"], r["target"]) for r in rows}
    world = World(asked.chips, asked.epochs)
    for target in range(asked.targets):
        for kind, eps, share in orders(asked):
            if (kind, eps, share, target) in done:
                continue
            start = time.perf_counter()
            made = (
                backdoor(world, kind, eps, share, target)
                if kind.startswith("backdoor")
                else flip(world, kind, eps, share, target, asked.victims)
            )
            row = {
                "kind": kind,
                "eps": eps,
                "share": share,
                "target": target,
                **made,
                "seconds": round(time.perf_counter() - start, 1),
            }
            rows.append(row)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    print(table(rows))


def orders(asked: argparse.Namespace) -> list[tuple[str, float, float]]:
    crafts = [
        (kind, eps, share) for kind in asked.kinds if kind != "backdoor" for eps in asked.eps for share in asked.shares
    ]
    return crafts + [
        (f"backdoor-{how}", 0.1, share)
        for how in ("patch", "pattern")
        for share in asked.shares
        if "backdoor" in asked.kinds
    ]


class World:
    """Chips to learn from and to test on, and how a network is trained."""

    def __init__(self, count: int, epochs: int) -> None:
        self.epochs = epochs
        self.train, self.test = chips(count, 0), chips(max(12, count // 4), 1)
        self.mean, self.std = self.train.image.mean((0, 2, 3)), self.train.image.std((0, 2, 3))
        self.base = self.learn(self.train, 99)

    def make(self, seed: int) -> Segmenter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = UNet(8, 2, norm="pixel")(SPEC)
        net.standardize.fit(self.mean, self.std)
        return net

    def learn(self, batch: Batch, seed: int) -> Segmenter:
        """Train from scratch with random flips."""
        net, draw = self.make(seed + 1000).train(), torch.Generator().manual_seed(seed)
        descent = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(self.epochs):
            for part in torch.randperm(len(batch), generator=draw).split(8):
                mini = batch.select(part.tolist())
                axes = [axis for axis in (-1, -2) if torch.rand(1, generator=draw) < 0.5]
                loss = functional.cross_entropy(net(mini.image.flip(axes)), mini.label.flip(axes))
                descent.zero_grad()
                loss.backward()
                descent.step()
        return net.eval()

    def quality(self, net: Segmenter) -> float:
        """Return the water IoU on the test chips."""
        with torch.no_grad():
            water, true = net(self.test.image).argmax(1) == 1, self.test.label == 1
        return float((water & true).sum() / (water | true).sum())

    def target(self, number: int) -> Target:
        """Return a square of water that the clean network gets right; higher numbers are surer ones."""
        with torch.no_grad():
            z = self.base(self.test.image)
        gap = z[:, 1] - z[:, 0]
        right = (-functional.max_pool2d(-((self.test.label == 1) & (gap > 0)).float()[:, None], REGION, 1))[:, 0] > 0
        mean = functional.avg_pool2d(gap[:, None], REGION, 1)[:, 0]
        per_chip = torch.where(right, mean, torch.inf).flatten(1).min(1)
        chip = int(per_chip.values.argsort()[number])
        row, col = divmod(int(per_chip.indices[chip]), mean.shape[-1])
        region = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        region[0, row : row + REGION, col : col + REGION] = True
        return Target(self.test.select([chip]), region, 0)


def flip(world: World, kind: str, eps: float, share: float, number: int, count: int) -> dict[str, object]:
    """Craft a clean-label poison and count what it does to fresh victims."""
    aim, train = world.target(number), world.train
    ids = choose(train.chips, share, number)
    few = train.select([train.chips.index(id_) for id_ in ids])
    keys = Keys(number, few.chips)
    if kind == "gradient-matching":
        made = GradientMatching(eps, steps=120).craft(world.base, aim, few, keys)
    else:
        rest = train.select([i for i, id_ in enumerate(train.chips) if id_ not in ids])
        made = MetaPoison(eps, steps=30, surrogates=4, epochs=8, lr=0.2, mini=len(few) + 4).craft(
            world.make, aim, few, rest, keys
        )
    control = random_control(few, eps, keys)
    found = victims(
        aim, train, insert(train, made.batch), insert(train, control), world.learn, range(count), world.quality
    )
    return {
        "flipped": list(found.flipped), "control": list(found.control), "clean": list(found.clean),
        "iou": list(found.quality), "iou.clean": list(found.clean_quality), "loss": [made.losses[0], made.losses[-1]],
    }  # fmt: skip


def backdoor(world: World, how: str, eps: float, share: float, seed: int) -> dict[str, object]:
    """Train on chips with a backdoor, try the trigger, and look for the poisoned chips."""
    poison, train, test = Backdoor("patch" if how == "backdoor-patch" else "pattern", eps=eps), world.train, world.test
    ids = choose(train.chips, share, seed)
    few = train.select([train.chips.index(id_) for id_ in ids])
    bad = insert(train, poison(few, Keys(seed, few.chips)))
    net = world.learn(bad, seed)
    stamped = replace(test, image=poison.stamp(test, Keys(seed, test.chips)))
    with torch.no_grad():
        works, plain = (trigger_rate(net(batch.image).argmax(1), test, poison) for batch in (stamped, test))
    made: dict[str, object] = {"trigger": works, "trigger.clean": plain, "iou": world.quality(net)}
    for klass, of in ((None, "all"), (0, "land")):
        names, features = activations(net, net.network.up[0], [bad], klass)
        clean, calm = activations(world.base, world.base.network.up[0], [train], klass)
        for short, detect in DETECTORS.items():
            verdict = detect(names, features, share)
            caught, alarms = verdict.rates(ids)
            made |= {
                f"caught.{short}.{of}": caught, f"alarms.{short}.{of}": alarms, f"auc.{short}.{of}": verdict.auc(ids),
                f"false.{short}.{of}": float(detect(clean, calm, share).flagged.mean()),
            }  # fmt: skip
    return made


DETECTORS: Mapping[str, Callable[[Sequence[str], np.ndarray, float], Verdict]] = {
    "spectral": lambda ids, features, share: spectral_signatures(ids, features, share),
    "spectral-z": lambda ids, features, share: spectral_signatures(ids, features),
    "clusters": lambda ids, features, share: activation_clustering(ids, features),
}
"""The first knows the share of poisoned chips, as in its paper; the others do not."""


def table(rows: Sequence[Mapping[str, object]]) -> str:
    lines = ["", "| kind | eps | share | what | mean | lowest | highest |", "|---" * 7 + "|"]
    for kind, eps, share in sorted({(str(r["kind"]), float(r["eps"]), float(r["share"])) for r in rows}):  # type: ignore[arg-type]
        mine = [r for r in rows if (r["kind"], r["eps"], r["share"]) == (kind, eps, share)]
        names = [
            name for row in mine for name in row if name not in ("kind", "eps", "share", "target", "seconds", "loss")
        ]
        for name in dict.fromkeys(names):
            values = [
                v for r in mine for v in (r[name] if isinstance(r.get(name), list) else [r.get(name)]) if v is not None
            ]  # type: ignore[union-attr]
            if values:
                lines.append(
                    f"| {kind} | {eps:g} | {share:g} | {name} | {np.mean(values):.3f} | {min(values):.3f} | {max(values):.3f} |"
                )
    return "\n".join(lines)


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
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=("gradient-matching", "meta-poison", "backdoor"),
        default=["gradient-matching", "meta-poison", "backdoor"],
    )
    parser.add_argument("--eps", nargs="+", type=float, default=[0.02, 0.05], help="reflectance")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.05, 0.2], help="share of the training chips")
    parser.add_argument("--targets", type=int, default=3)
    parser.add_argument("--victims", type=int, default=3)
    parser.add_argument("--chips", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

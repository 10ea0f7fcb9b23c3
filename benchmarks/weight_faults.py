"""Flips of weight bits until the water IoU on held-out places is halved, per network and defense; what checksums cost.

Trains small networks on the real chips (SEAWALL_DATA) or on simulated scenes, split by group; the seed decides split,
weights, patches and random flips. Bits are chosen on patches of training chips, the IoU is that of the test chips, and
the search knows the defense. Every finished cell is a JSON line in `--out`/cells.jsonl; a run that was stopped goes on
where it stopped. One thread: about 25 CPU-minutes for all cells and 3 seeds.

    python benchmarks/weight_faults.py --out runs/weight-faults             # all networks and defenses, 3 seeds, then the costs
    python benchmarks/weight_faults.py --out runs/weight-faults --networks linear --seeds 0
    python benchmarks/weight_faults.py --out runs/weight-faults --table     # print what is there, as markdown
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from study import LOSS, JsonLines, SplitChips, StudyParser, quiet_run, recipe_by_group
from torch import nn

from seawall import registry
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.errors import ModelError
from seawall.models.checksums import GROUP_BYTES, WeightGuard, tensor_bytes
from seawall.models.weights import load_model, pack_safetensors, read_checksums, save_model, unpack_safetensors
from seawall.pipeline.training import model_factory, spec_of_chips, train_network
from seawall.pipeline.weight_faults import fault_line, training_patches
from seawall.recipe.recipe import Recipe
from seawall.recipe.sections import MethodSection
from seawall.weight_faults.build import NamedFault, named_defenses
from seawall.weight_faults.int8 import BITS, int8_weights
from seawall.weight_faults.search import AttackedLoss, ProgressiveBitSearch

SEARCH, IOU_SEARCH, RANDOM = "progressive-bit-search", "progressive-bit-search objective=soft-iou", "random-flips"
HEAD_SPARED = "progressive-bit-search spared=head"
CLUSTERED = "clustered training"
READ_THROUGH = ("reconstruction", "clipping", "clipping group=16")
DEFENSES = ("none", CLUSTERED, *READ_THROUGH)
COSTS = "costs"
LEARNING = {"width": 8, "depth": 3}


@dataclass(frozen=True)
class TrainedArchitecture:
    """An architecture with its settings and those of its training that differ."""

    settings: Mapping[str, object] = field(default_factory=lambda: dict(LEARNING))
    training: Mapping[str, object] = field(default_factory=dict)


NETWORKS: Mapping[str, TrainedArchitecture] = {
    "unet": TrainedArchitecture(),
    "dense-unet": TrainedArchitecture({"width": 8, "depth": 3}),
    "anchored-unet": TrainedArchitecture(),
    "linear": TrainedArchitecture({}, {"lr": 0.1}),
}


def recipe(given: argparse.Namespace, network: str, clustered: bool, seed: int) -> Recipe:
    """Return what one network is trained by."""
    objective: dict[str, object] = {"name": "supervised", "settings": {"loss": LOSS}}
    if clustered:
        settings = {"strength": given.strength, "objective_settings": {"loss": LOSS}}
        objective = {"name": "clustered-weights", "settings": settings}
    training: dict[str, object] = {
        "epochs": given.passes, "steps_per_epoch": 30, "patch": 64, "batch": 8, "lr": 2e-3, "check_every": 5, "tensorboard": False,
        **NETWORKS[network].training,
    }  # fmt: skip
    return recipe_by_group(
        {
            "name": "weight-faults",
            "seed": seed,
            "model": {"name": network, "settings": dict(NETWORKS[network].settings)},
            "training": {"objective": objective, "settings": training},
        }
    )


def trained(given: argparse.Namespace, network: str, clustered: bool, seed: int, held: SplitChips) -> nn.Module:
    """Return a trained network, which is kept in a folder of its own."""
    folder = given.out / f"{network}{'-clustered' if clustered else ''}-s{seed}"
    order = recipe(given, network, clustered, seed)
    return train_network(quiet_run(order, folder), held.chips, held.split, order.networks[0])


class Cells(JsonLines):
    """The finished cells; a cell is (network, defense, fault, seed)."""

    def find(self, network: str, defense: str, fault: str) -> list[dict[str, object]]:
        """Return the cells of all seeds."""
        key = (network, defense, fault)
        return [row for row in self.rows if (row["network"], row["defense"], row["fault"]) == key]

    def has(self, network: str, defense: str, fault: str, seed: int) -> bool:
        return any(row["seed"] == seed for row in self.find(network, defense, fault))

    def add(self, row: dict[str, object]) -> None:
        self.append(row)
        print({k: v for k, v in row.items() if k not in ("curve", "flips")}, flush=True)


def measure(given: argparse.Namespace, cells: Cells, network: str, seed: int) -> None:
    """Add the cells of one network and seed."""
    held = SplitChips.of(recipe(given, network, False, seed), given.out)
    batch = training_patches(held.chips, held.split.train, given.images, seed)
    for defense in DEFENSES:
        faults = [SEARCH, RANDOM]
        if defense == "none":
            faults.append(IOU_SEARCH)
        if defense != "clipping" and network != "linear":  # it has one layer
            faults.append(HEAD_SPARED)
        todo = [fault for fault in faults if not cells.has(network, defense, fault, seed)]
        if not todo:
            continue
        net = trained(given, network, defense == CLUSTERED, seed, held)
        read_by = dict(named_defenses(READ_THROUGH)).get(defense)
        for fault in todo:
            made = registry.build("fault", *registry.parse_settings("fault", fault))
            named = NamedFault(fault, made, defense, read_by, given.random if fault == RANDOM else given.most)
            found = fault_line(
                network, named, net, batch, lambda: whole_chips(held.chips, held.split.test), seed, lambda *_: None
            )
            cells.add({"network": network, **found.model_dump(exclude={"model"}), "iou": [found.iou[0], found.iou[-1]]})


def timed(call: Callable[[], object], repeats: int) -> float:
    """Return the smallest CPU seconds of a call."""
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


def search_costs(given: argparse.Namespace, network: str, seed: int) -> dict[str, object]:
    """Return CPU seconds per flip: of the search, of the search over all weights, and of the exhaustive search."""
    held = SplitChips.of(recipe(given, network, False, seed), given.out)
    batch = training_patches(held.chips, held.split.train, given.images, seed)
    net = trained(given, network, False, seed, held)
    seconds: dict[str, float] = {}
    for name, k_top in (("search", 10), ("all weights", 0)):
        with int8_weights(net) as weights:
            rounds = ProgressiveBitSearch(k_top)(weights, batch, 0)
            next(rounds)
            seconds[name] = timed(lambda rounds=rounds: next(rounds), 3)  # type: ignore[misc]
    with int8_weights(net) as weights:
        loss, bits = AttackedLoss.of(weights, batch, "ce", "predicted"), weights.size * BITS
        seconds["one pass"] = timed(lambda: loss.value(net), 5)
    return {
        "network": network,
        "fault": COSTS,
        "defense": COSTS,
        "seed": seed,
        "bits": bits,
        "layers": len(weights.layers),
        **seconds,
    }


def checksum_costs(given: argparse.Namespace, chips: ChipFolder, width: int) -> dict[str, object]:
    """Return milliseconds of checksums and of a tile for a U-Net of a width, and what loading noticed of flipped bits."""
    net = model_factory(MethodSection(name="unet", settings={"width": width}))(spec_of_chips(chips))
    net.standardize.fit([0.1] * len(chips.bands), [0.1] * len(chips.bands))
    path, plain = given.out / f"width{width}.safetensors", given.out / f"width{width}-plain.safetensors"
    save_model(path, net)
    tensors, meta = unpack_safetensors(path)
    plain.write_bytes(pack_safetensors(tensors, {k: v for k, v in meta.items() if k not in ("digest", "checksums")})[0])
    model = load_model(path)
    guard = WeightGuard.of(model, read_checksums(path))
    data = b"".join(tensor_bytes(tensor) for tensor in tensors.values())
    groups = [data[at : at + GROUP_BYTES] for at in range(0, len(data), GROUP_BYTES)]
    tile = torch.rand(1, len(chips.bands), 512, 512)
    with torch.no_grad():
        seconds = {
            "load": timed(lambda: load_model(path), 7), "load without": timed(lambda: load_model(plain), 7), "verify": timed(guard.verify, 20),
            "crc32": timed(lambda: [zlib.crc32(one) for one in groups], 20),
            "sha256": timed(lambda: [hashlib.sha256(one).digest() for one in groups], 20), "tile": timed(lambda: model(tile), 3),
        }  # fmt: skip
    return {
        "network": f"unet width {width}", "fault": COSTS, "defense": "checksums", "seed": 0, "weights": sum(t.numel() for t in tensors.values()),
        "bytes": path.stat().st_size, "bytes without": plain.stat().st_size, **{k: 1000 * v for k, v in seconds.items()},
        "tried": given.tried, "noticed": noticed_flips(path, given.tried),
    }  # fmt: skip


def noticed_flips(path: Path, tried: int) -> int:
    """Return how many of some random single bits of a file's weights, flipped one at a time, loading refuses with the layer."""
    data, noticed, draw = path.read_bytes(), 0, np.random.default_rng(0)
    start = 8 + int.from_bytes(data[:8], "little")
    broken = path.with_suffix(".broken")
    for at in draw.integers(start, len(data), tried).tolist():
        changed = bytearray(data)
        changed[at] ^= 1 << int(draw.integers(8))
        broken.write_bytes(changed)
        try:
            load_model(broken)
        except ModelError as bad:
            noticed += "have changed in '" in str(bad)
    broken.unlink()
    return noticed


def flips_text(rows: Sequence[Mapping[str, object]], key: str = "flips_to_half") -> str:
    """Return the median over the seeds and the range; one that was never halved counts as more than its flips.

    Example:
        >>> flips_text([{"flips_to_half": 3, "flips": []}, {"flips_to_half": None, "flips": [0] * 60}, {"flips_to_half": 8, "flips": []}])
        '8 (3 to > 60)'
    """
    if not rows:
        return ""
    values = sorted((float("inf") if row[key] is None else row[key], len(row["flips"])) for row in rows)  # type: ignore[arg-type, type-var]

    def text(value: tuple[float, int]) -> str:
        return f"> {value[1]}" if value[0] == float("inf") else f"{value[0]:.0f}"

    return f"{text(values[(len(values) - 1) // 2])} ({text(values[0])} to {text(values[-1])})"


def share_of(flips: Sequence[Sequence[object]], is_one: Callable[[Sequence[object]], bool]) -> str:
    """Return the share of flips for which something is true."""
    return f"{sum(map(is_one, flips)) / len(flips):.0%}" if flips else ""


def table(cells: Cells) -> Iterator[str]:
    """Yield the lines of the tables: flips to half, seconds per flip, checksums."""
    yield (
        "| network | defense | 8-bit IoU | flips to half, search | of these in the head | sign bits | soft-IoU objective | head protected | random flips "
        "| detected | seeds |"
    )
    yield "|---|" + "---|" * 10
    for network in NETWORKS:
        for defense in DEFENSES:
            found = cells.find(network, defense, SEARCH)
            if not found:
                continue
            flips = [flip for row in found for flip in row["flips"]]  # type: ignore[attr-defined]
            every = [
                row
                for fault in (SEARCH, IOU_SEARCH, HEAD_SPARED, RANDOM)
                for row in cells.find(network, defense, fault)
            ]
            detected = sum(row["detected"] for row in every) / sum(len(row["flips"]) for row in every)  # type: ignore[misc, arg-type]
            iou = statistics.mean(row["iou"][0] for row in found)  # type: ignore[index]
            others = [flips_text(cells.find(network, defense, fault)) for fault in (IOU_SEARCH, HEAD_SPARED, RANDOM)]
            yield (
                f"| {network} | {defense} | {iou:.3f} | {flips_text(found)} | {share_of(flips, lambda flip: 'head' in str(flip[0]))} "
                f"| {share_of(flips, lambda flip: flip[2] == 7)} | {' | '.join(others)} | {detected:.0%} | {','.join(str(row['seed']) for row in found)} |"
            )
    yield ""
    yield "| network | bits | search, s per flip | over all weights, s per flip | one pass, s | every bit by a pass, hours per flip |"
    yield "|---|---|---|---|---|---|"
    for row in cells.rows:
        if row["defense"] == COSTS:
            hours = row["bits"] * row["one pass"] / 3600
            yield f"| {row['network']} | {row['bits']} | {row['search']:.2f} | {row['all weights']:.2f} | {row['one pass']:.4f} | {hours:.3g} |"
    yield ""
    yield (
        "| network | weights | file, bytes | of these checksums | load, ms | without checksums | verify, ms | SHA-256 alone | CRC-32 alone | "
        "one tile of 512 pixels, ms | single bits noticed on loading |"
    )
    yield "|---|" + "---|" * 10
    for row in cells.rows:
        if row["defense"] == "checksums":
            yield (
                f"| {row['network']} | {row['weights']} | {row['bytes']} | {row['bytes'] - row['bytes without']} | {row['load']:.1f} | {row['load without']:.1f} "
                f"| {row['verify']:.2f} | {row['sha256']:.2f} | {row['crc32']:.2f} | {row['tile']:.0f} | {row['noticed']} of {row['tried']} |"
            )


def main() -> None:
    """Train, flip, print the tables."""
    given = asked()
    torch.set_num_threads(1)
    cells = Cells(given.out / "cells.jsonl")
    if not given.table:
        for seed in given.seeds:
            for network in given.networks:
                measure(given, cells, network, seed)
        for network in given.networks:
            if not cells.has(network, COSTS, COSTS, given.seeds[0]):
                cells.add(search_costs(given, network, given.seeds[0]))
        chips = SplitChips.of(recipe(given, "linear", False, 0), given.out).chips
        for width in (8, 16, 32):
            if not cells.has(f"unet width {width}", "checksums", COSTS, 0):
                cells.add(checksum_costs(given, chips, width))
    print("\n".join(table(cells)))


def asked() -> argparse.Namespace:
    ask = StudyParser(__doc__, "runs/weight-faults")
    ask.add_names("--networks", NETWORKS)
    ask.add_seeds()
    ask.add_argument("--passes", type=int, default=12, help="epochs of 30 steps")
    ask.add_argument("--strength", type=float, default=1e-2, help="of the clustering penalty")
    ask.add_argument("--images", type=int, default=4, help="patches of 128 pixels that bits are chosen on")
    ask.add_argument("--most", type=int, default=40, help="flips after which a search stops")
    ask.add_argument("--random", type=int, default=3000, help="flips after which random flips stop")
    ask.add_argument("--tried", type=int, default=1000, help="single bits of each file that are flipped one at a time")
    ask.add_table()
    return ask.parse_args()


if __name__ == "__main__":
    main()

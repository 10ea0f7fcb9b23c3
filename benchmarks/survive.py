"""What a network keeps of its clean IoU when it learns from wrong labels: way to learn x noise x rate, on held-out groups.

Each row is one training: its seed decides the split, the first weights and the noise. Only the training part is
corrupted; the held-out groups keep their clean labels. Rows are appended as they are made, and a row that is there is
not made again, so the same command goes on after a kill. Nothing here looks at a clean label to choose weights:
every training ends after the same number of steps.

    python benchmarks/survive.py --data simulated --out runs/survive
    python benchmarks/survive.py --data hls --out runs/survive            # needs SEAWALL_DATA
    python benchmarks/survive.py --data simulated --ways ce gce --noises dilate --seeds 0   # a taste
    python benchmarks/survive.py --data simulated --table                  # the tables of the rows so far

What each way is told: "forward" and "backward" get the true transition matrix, measured on the corrupted training
labels; "co-teaching" the true share of wrong pixels; "boundary-tolerant" no more than its default of 2 pixels;
"relabel" and "forward-estimated" judge the training part by two-fold cross-validation, each fold at half the steps.
The rate that a noise is asked for and the share of wrong pixels that it reaches differ for some noises ("thirds"
leaves a third of the chips as they are and never goes over its budget); the tables show both.

Intervals: 95 %, over 2000 draws of seeds and of held-out groups within each; gains over "ce" are paired.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from study import JsonLines

from seawall import registry
from seawall.data.chips import Chip, ChipFolder
from seawall.data.curate import curate_chips
from seawall.data.loader import patches, whole_chips
from seawall.data.sources.simulated import Simulated
from seawall.data.splits import Split, kfold_groups, split_groups
from seawall.label_audit.confident_learning import OutOfSample, find_label_issues
from seawall.label_audit.relabel import relabel_in_rounds
from seawall.label_noise.build import ChipNoise
from seawall.metrics.counts import confusion
from seawall.pipeline.corrupt_labels import noise_for
from seawall.rng import Keys
from seawall.training.loop import Training, fit
from seawall.types import ModelSpec

RATES: Mapping[str, tuple[float, float]] = {
    "symmetric": (0.2, 0.4),
    "class-dependent": (0.2, 0.45),
    "dilate": (0.1, 0.2),
    "thirds": (0.1, 0.2),
    "patches": (0.2, 0.4),
    "shift": (3, 6),
}
"""Two rates of each noise. Shares of the valid pixels; for "class-dependent" the share of water labelled as land (a
ninth of it of the land is labelled as water); for "shift" pixels."""

REAL = {"class-dependent": (0.45,), "dilate": (0.2,), "shift": (5,)}
"""Fewer on the real chips, whose trainings take longer."""

WAYS: Mapping[str, Mapping[str, object]] = {
    "ce": {"loss": "ce"}, "sce": {"loss": "sce"}, "gce": {"loss": "gce"}, "nr-dice": {"loss": "nr-dice"},
    "bootstrap": {"loss": "bootstrap"}, "boundary-tolerant": {"loss": "boundary-tolerant"},
    "forward": {}, "backward": {}, "co-teaching": {}, "relabel": {"loss": "ce"}, "forward-estimated": {},
}  # fmt: skip
Labels = dict[str, np.ndarray]


def noise_text(noise: str, rate: float, gsd_m: float) -> str:
    """Return a noise of the study as `seawall corrupt --noise` takes it."""
    return {
        "symmetric": f"symmetric {rate:g}",
        "class-dependent": f"class-dependent matrix=[[{1 - rate / 9!r},{rate / 9!r}],[{rate!r},{1 - rate!r}]]",
        "dilate": f"dilate {rate:g} exact=true",
        "thirds": f"thirds {rate:g}",
        "patches": f"patches {rate:g}",
        "shift": f"shift {rate * gsd_m:g} m",
    }[noise]


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    rows = JsonLines(asked.out / f"{asked.data}.jsonl")
    if not asked.table:
        measure(asked, rows)
    print(tables(rows.rows, asked.data))


def cells(asked: argparse.Namespace) -> list[tuple[str, str, float]]:
    """Return (way, noise, rate) of one seed in the order of the study; the clean labels first."""
    rates = {noise: (RATES if asked.data == "simulated" else REAL).get(noise, RATES[noise]) for noise in asked.noises}
    noisy = [(noise, rate) for noise in asked.noises for rate in rates[noise]]
    return [(way, noise, rate) for noise, rate in [("clean", 0.0), *noisy] for way in asked.ways]


def measure(asked: argparse.Namespace, rows: JsonLines) -> None:
    folder = chips(asked)
    done = {key(row) for row in rows.rows}
    todo = [(seed, *cell) for seed in asked.seeds for cell in cells(asked) if (asked.data, seed, *cell) not in done]
    print(f"{len(todo)} rows to make, {len(done)} there", flush=True)
    for number, (seed, way, noise, rate) in enumerate(todo):
        start = time.process_time()
        row: dict[str, object] = {"data": asked.data, "seed": seed, "way": way, "noise": noise, "rate": rate}
        row |= one(folder, asked, seed, way, noise, rate)
        row["cpu_s"] = round(time.process_time() - start, 1)
        rows.append(row)
        print(
            f"[{number + 1}/{len(todo)}] seed {seed} {noise} {rate:g} {way}: IoU {row['iou']:.3f}, {row['cpu_s']} s",
            flush=True,
        )


def one(
    folder: ChipFolder, asked: argparse.Namespace, seed: int, way: str, noise: str, rate: float
) -> dict[str, object]:
    """Train once and measure on the held-out groups."""
    split, labels = given(folder, asked.fold, seed, noise, rate)
    counts = transitions(folder, split.train, labels)
    wrong = 1 - float(counts.trace() / counts.sum())
    facts: dict[str, object] = {"wrong": wrong, "transitions": counts.tolist()}
    settings, name = dict(WAYS[way]), "supervised"
    if way in ("forward", "backward"):
        name, settings = f"{way}-corrected", {"matrix": (counts / counts.sum(1, keepdims=True)).tolist()}
    elif way == "forward-estimated":
        found = find_label_issues(judged(folder, asked, seed, noise, rate)(labels), len(folder.classes))
        name, settings = "forward-corrected", {"matrix": found.transition().tolist()}
        facts["estimated"] = settings["matrix"]
    elif way == "co-teaching":
        name, settings = "co-teaching", {"rate": min(0.5, wrong), "ramp": 4}
    elif way == "relabel":
        mended = relabel_in_rounds(labels, judged(folder, asked, seed, noise, rate), len(folder.classes), rounds=1)
        after = transitions(folder, split.train, mended.labels)
        facts |= {"wrong_after": 1 - float(after.trace() / after.sum()), "why": mended.why}
        labels = mended.labels
    net = learn(folder, split.train, labels, name, settings, seed, asked, asked.steps)
    return {**score(net, folder, split.test), **facts}


@lru_cache(2)
def given(folder: ChipFolder, fold: float, seed: int, noise: str, rate: float) -> tuple[Split, Labels]:
    """Return the split and the labels as given to the training."""
    split = split_groups(folder, seed, val=0.0, test=fold)
    if noise == "clean":
        return split, {id_: folder.read(id_).label for id_ in split.train}
    edit = ChipNoise(noise_for(noise_text(noise, rate, folder.gsd_m), folder, split.train), seed)
    return split, {id_: edit(folder.read(id_)).label for id_ in split.train}


def transitions(folder: ChipFolder, ids: tuple[str, ...], labels: Labels) -> np.ndarray:
    """Count valid pixels by (true class, given class) over chips: (K, K)."""
    count = len(folder.classes)
    total = np.zeros(count * count)
    for id_ in ids:
        chip = folder.read(id_)
        pairs = chip.label[chip.valid] * count + labels[id_][chip.valid]
        total += np.bincount(pairs, minlength=count * count)
    return total.reshape(count, count)


_JUDGED: dict[tuple[object, ...], list[OutOfSample]] = {}


def judged(
    folder: ChipFolder, asked: argparse.Namespace, seed: int, noise: str, rate: float
) -> Callable[[Labels], Callable[[], list[OutOfSample]]]:
    """Return opinions on the training chips by models that saw the other half of their groups; kept for the next way."""

    def judge(labels: Labels) -> Callable[[], list[OutOfSample]]:
        name = (asked.data, seed, noise, rate)
        if name not in _JUDGED:
            _JUDGED.clear()
            said = []
            for fold in kfold_groups(folder, 2, seed, ids=sorted(labels)):
                net = learn(folder, fold.train, labels, "supervised", {"loss": "ce"}, seed, asked, asked.steps // 2)
                with torch.no_grad():
                    for batch in whole_chips(folder, fold.test, 4):
                        for i, id_ in enumerate(batch.chips):
                            probs = net(batch.image[i : i + 1]).softmax(1)[0].numpy()
                            said.append(OutOfSample(id_, probs, labels[id_], folder.read(id_).valid))
            _JUDGED[name] = said
        return lambda: _JUDGED[name]

    return judge


def learn(
    folder: ChipFolder,
    ids: tuple[str, ...],
    labels: Labels,
    objective: str,
    settings: Mapping[str, object],
    seed: int,
    asked: argparse.Namespace,
    steps: int,
) -> torch.nn.Module:
    """Train a small U-Net on labels."""
    small = {"width": asked.width, "depth": 3}
    name, of = ("twins", {"settings": small}) if objective == "co-teaching" else ("unet", small)
    spec = ModelSpec(folder.bands, folder.classes, folder.unit, folder.gsd_m)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Keys(seed, ("survive",)).number(0))
        net = registry.build("model", name, of)(spec)
    mean, std = stats(folder, ids)
    net.standardize.fit(mean.tolist(), std.tolist())
    epochs = 8
    training = Training(
        epochs=epochs, steps_per_epoch=max(1, steps // epochs), batch=asked.batch, patch=asked.patch, lr=3e-3,
        tensorboard=False, save_s=0,
    )  # fmt: skip

    def edit(chip: Chip) -> Chip:
        return replace(chip, label=labels[chip.id])

    def feed(epoch: int) -> Iterator[object]:
        return patches(
            folder, ids, patch=asked.patch, batch=asked.batch, count=training.patches_per_epoch, epoch=epoch, seed=seed,
            augment="d4", edit=edit,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as home:
        fit(net, registry.build("objective", objective, settings), feed, None, training, home, device="cpu", seed=seed)
    return net.eval()


@lru_cache(16)
def stats(folder: ChipFolder, ids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    return folder.mean_std(ids)


def score(net: torch.nn.Module, folder: ChipFolder, ids: tuple[str, ...]) -> dict[str, object]:
    """Count water on the held-out groups with their clean labels."""
    water, counts = folder.classes.index("water"), dict[str, list[int]]()
    with torch.no_grad():
        for batch in whole_chips(folder, ids, 4):
            table = confusion(net(batch.image).argmax(1), batch.label, batch.valid, len(folder.classes)).numpy()
            for chip, cell in zip(batch.chips, table, strict=True):
                hit = int(cell[water, water])
                of = counts.setdefault(folder.row(chip).group, [0, 0, 0])
                for i, n in enumerate((hit, int(cell[:, water].sum()) - hit, int(cell[water].sum()) - hit)):
                    of[i] += n
    return {"iou": iou(np.array(list(counts.values())).sum(0)), "groups": counts}


def iou(counts: np.ndarray) -> float:
    return float(counts[0] / max(1, counts.sum()))


def chips(asked: argparse.Namespace) -> ChipFolder:
    home = asked.out / "chips" / asked.data
    if (home / "index.json").exists():
        return ChipFolder.open(home)
    if asked.data == "simulated":
        bands = ("B02", "B03", "B04", "B08", "B11", "B12")
        return curate_chips(Simulated(asked.scenes, asked.size, "s2", bands, seed=0), home).folder
    source = os.environ.get("SEAWALL_DATA", "")
    if not source:
        raise SystemExit("error: SEAWALL_DATA: expected the folder of real chips, got nothing; export it")
    return curate_chips(source, home, kind="index", sensor="s2", select="hls_").folder


def key(row: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("data", "seed", "way", "noise", "rate"))


Runs = Mapping[int, Mapping[str, object]]
"""Rows of one cell by their seed."""


def tables(rows: list[dict[str, object]], data: str) -> str:
    """Return two Markdown tables: mean IoU over seeds with its interval, and the paired gain over cross-entropy."""
    found: dict[tuple[str, float], dict[str, dict[int, dict[str, object]]]] = {}
    for row in rows:
        at = found.setdefault((str(row["noise"]), float(row["rate"])), {})  # type: ignore[arg-type]
        at.setdefault(str(row["way"]), {})[int(row["seed"])] = row  # type: ignore[call-overload]
    ways = [way for way in WAYS if any(way in cell for cell in found.values())]
    order = ["clean", *RATES]
    cells_ = sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    seeds = sorted({int(row["seed"]) for row in rows})  # type: ignore[call-overload]
    lines = [f"{data}, seeds {seeds}: water IoU on held-out groups with clean labels, mean and 95 % interval", ""]
    head = ["| noise | asked | wrong pixels | " + " | ".join(ways) + " |", "|" + "---|" * (3 + len(ways))]
    lines += head + [_line(at, cell, [level(cell.get(way, {})) for way in ways]) for at, cell in cells_]
    lines += ["", "Gain over ce, paired by seed and groups:", ""]
    lines += head + [
        _line(at, cell, [gain(cell.get(way, {}), cell.get("ce", {})) for way in ways]) for at, cell in cells_
    ]
    return "\n".join(lines)


def _line(at: tuple[str, float], cell: Mapping[str, Runs], said: list[str]) -> str:
    noise, rate = at
    asked = "" if noise == "clean" else f"{rate:g} px" if noise == "shift" else f"{rate:.0%}"
    wrong = [float(row["wrong"]) for runs in cell.values() for row in runs.values()]  # type: ignore[arg-type]
    return f"| {noise} | {asked} | {np.mean(wrong):.1%} | " + " | ".join(said) + " |"


def level(runs: Runs) -> str:
    if not runs:
        return "-"
    low, high = np.percentile(resample(runs), (2.5, 97.5))
    return f"{np.mean([float(r['iou']) for r in runs.values()]):.3f} [{low:.3f}, {high:.3f}]"  # type: ignore[arg-type]


def gain(runs: Runs, base: Runs) -> str:
    both = sorted(set(runs) & set(base))
    if not both or runs is base:
        return "-"
    one, two = ({seed: of[seed] for seed in both} for of in (runs, base))
    low, high = np.percentile(resample(one) - resample(two), (2.5, 97.5))
    mean = np.mean([float(one[s]["iou"]) - float(two[s]["iou"]) for s in both])  # type: ignore[arg-type]
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def resample(runs: Runs, draws: int = 2000) -> np.ndarray:
    """Draw seeds, and groups within each seed's held-out part; the same draws for the same seeds, so that gains are paired."""
    rng = np.random.default_rng(0)
    seeds = sorted(runs)
    per_seed = []
    for seed in seeds:
        groups = runs[seed]["groups"]
        counts = np.array([groups[g] for g in sorted(groups)], np.float64)  # type: ignore[index,call-overload]
        weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), draws)
        total = weights @ counts
        per_seed.append(total[:, 0] / np.maximum(1, total.sum(1)))
    pick = rng.integers(0, len(seeds), (draws, len(seeds)))
    return np.stack(per_seed, 1)[np.arange(draws)[:, None], pick].mean(1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("simulated", "hls"), default="simulated")
    parser.add_argument("--out", type=Path, default=Path("runs/survive"))
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS), default=[way for way in WAYS if way != "forward-estimated"]
    )
    parser.add_argument(
        "--noises", nargs="+", choices=list(RATES), help="all six on simulated chips, three on the real ones"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=160, help="optimizer steps per training")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--patch", type=int, help="side of a training patch; 32 for simulated chips, 64 for the real ones"
    )
    parser.add_argument("--width", type=int, default=8, help="features of the U-Net at full size")
    parser.add_argument("--scenes", type=int, default=48, help="simulated scenes")
    parser.add_argument("--size", type=int, default=48, help="side of a simulated scene in pixels")
    parser.add_argument("--fold", type=float, default=0.4, help="held-out share")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the tables of the rows so far")
    asked = parser.parse_args()
    asked.noises = asked.noises or list(RATES if asked.data == "simulated" else REAL)
    asked.patch = asked.patch or (32 if asked.data == "simulated" else 64)
    return asked


if __name__ == "__main__":
    main()

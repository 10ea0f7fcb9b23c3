"""What a network keeps of its clean IoU when it learns from wrong labels: loss x noise x rate, on held-out groups.

Each row is one training: its seed decides the split, the first weights and the noise. Only the training part is
corrupted; the held-out groups keep their clean labels. Rows are appended as they are made, and a row that is there is
not made again, so the same command goes on after a kill. Nothing here looks at a clean label to choose anything:
every training ends after the same number of steps.

    python benchmarks/survive.py --data simulated --out runs/survive
    python benchmarks/survive.py --data hls --out runs/survive            # needs SEAWALL_DATA
    python benchmarks/survive.py --data simulated --losses ce gce --noises "dilate" --rates 0.2 --seeds 0   # a taste
    python benchmarks/survive.py --data simulated --table                  # the table of the rows so far

"forward" and "relabel" first judge the training part by cross-validation, which costs two more trainings, shared by
both. Intervals: 95 %, over 2000 draws of seeds and of held-out groups within each.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from seawall import registry
from seawall.corrupt_labels import noise_for
from seawall.datasets.chips import Chip, ChipFolder
from seawall.datasets.curate import curate
from seawall.datasets.loader import patches, whole
from seawall.datasets.simulated import Simulated
from seawall.datasets.splits import Split, kfold_groups, split_groups
from seawall.keys import Keys
from seawall.label_noise import Relabel
from seawall.labels.confident import Opinion, suspect
from seawall.learning.relabel import mend
from seawall.metrics import confusion
from seawall.train import Training, fit
from seawall.types import ModelSpec

NOISES = {
    "symmetric": "symmetric {rate}",
    "patches": "patches {rate}",
    "dilate": "dilate {rate} exact=true",
    "erode": "erode {rate} exact=true of=class",
    "thirds": "thirds {rate}",
    "drop-objects": "drop-objects {rate} of=class",
    "shift": "shift {meters}",
    "index-threshold": "index-threshold budget={rate}",
}
"""Rates are shares: of the valid pixels, or of the class where it says so; a shift of 1 is 20 pixels."""

LOSSES: Mapping[str, Mapping[str, object]] = {
    "ce": {"loss": "ce"}, "dice": {"loss": "dice"}, "gce": {"loss": "gce"}, "sce": {"loss": "sce"}, "nr-dice": {"loss": "nr-dice"},
    "bootstrap": {"loss": "bootstrap"}, "boundary-tolerant": {"loss": "boundary-tolerant"},
    "forward": {}, "co-teaching": {}, "relabel": {"loss": "ce"},
}  # fmt: skip
Labels = dict[str, np.ndarray]


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    path = asked.out / f"{asked.data}.jsonl"
    if not asked.table:
        measure(asked, path)
    print(table(read(path), asked))


def measure(asked: argparse.Namespace, path: Path) -> None:
    folder = chips(asked)
    done = {key(row) for row in read(path)}
    cells = [(loss, "clean", 0.0) for loss in asked.losses]
    cells += [(loss, noise, rate) for noise in asked.noises for rate in asked.rates for loss in asked.losses]
    todo = [(seed, *cell) for seed in asked.seeds for cell in cells if (asked.data, seed, *cell) not in done]
    cost = probe(folder, asked)
    trainings = sum(2 if loss == "co-teaching" else 1 for _, loss, _, _ in todo)
    trainings += 2 * len({(seed, noise, rate) for seed, loss, noise, rate in todo if loss in ("forward", "relabel")})
    print(
        f"{len(todo)} rows to make, {len(done)} there; {cost:.0f} s per training, about {trainings * cost / 60:.0f} min",
        flush=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, (seed, loss, noise, rate) in enumerate(todo):
        start = time.perf_counter()
        row = {
            "data": asked.data,
            "seed": seed,
            "loss": loss,
            "noise": noise,
            "rate": rate,
            **one(folder, asked, seed, loss, noise, rate),
        }
        row["seconds"] = round(time.perf_counter() - start, 1)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"[{number + 1}/{len(todo)}] seed {seed} {noise} {rate:g} {loss}: IoU {row['iou']:.3f}, {row['seconds']} s",
            flush=True,
        )


def one(
    folder: ChipFolder, asked: argparse.Namespace, seed: int, loss: str, noise: str, rate: float
) -> dict[str, object]:
    """Train once and measure on the held-out groups."""
    split, labels = given(folder, asked.fold, seed, noise, rate)
    settings, name, facts = dict(LOSSES[loss]), "supervised", {}
    if loss == "forward":
        found = suspect(judged(folder, asked, seed, noise, rate)(labels), len(folder.classes))
        name, settings = "forward-corrected", {"matrix": found.transition().tolist()}
        facts = {"matrix": settings["matrix"]}
    elif loss == "co-teaching":
        # the rate that is left out is what the corruption really changed: the one thing a user must guess
        name, settings = "co-teaching", {"rate": min(0.5, changed(folder, split, labels)), "ramp": 4}
        facts = {"left_out": settings["rate"]}
    elif loss == "relabel":
        mended = mend(labels, judged(folder, asked, seed, noise, rate), len(folder.classes), rounds=1)
        facts = {
            "changed": changed(folder, split, labels),
            "changed_after": changed(folder, split, mended.labels),
            "why": mended.why,
        }
        labels = mended.labels
    net = learn(folder, split.train, labels, name, settings, seed, asked)
    return {
        **score(net, folder, split.test),
        "wrong": changed(folder, split, given(folder, asked.fold, seed, noise, rate)[1]),
        **facts,
    }


@lru_cache(2)
def given(folder: ChipFolder, fold: float, seed: int, noise: str, rate: float) -> tuple[Split, Labels]:
    """Return the split and the labels as given to the training."""
    split = split_groups(folder, seed, val=0.0, test=fold)
    if noise == "clean":
        return split, {id_: folder.read(id_).label for id_ in split.train}
    text = NOISES[noise].format(rate=rate, meters=f"{20 * rate * folder.gsd_m:g} m")
    edit = Relabel(noise_for(text, folder, split.train), seed)
    return split, {id_: edit(folder.read(id_)).label for id_ in split.train}


_JUDGED: dict[tuple[object, ...], list[Opinion]] = {}


def judged(
    folder: ChipFolder, asked: argparse.Namespace, seed: int, noise: str, rate: float
) -> Callable[[Labels], Callable[[], list[Opinion]]]:
    """Return opinions on the training chips by models that saw the other half of their groups; kept for the next loss."""

    def judge(labels: Labels) -> Callable[[], list[Opinion]]:
        name = (asked.data, seed, noise, rate)
        if name not in _JUDGED:
            _JUDGED.clear()
            said = []
            for fold in kfold_groups(folder, 2, seed, ids=sorted(labels)):
                net = learn(folder, fold.train, labels, "supervised", {"loss": "ce"}, seed, asked)
                with torch.no_grad():
                    for batch in whole(folder, fold.test, 4):
                        for i, id_ in enumerate(batch.chips):
                            probs = net(batch.image[i : i + 1]).softmax(1)[0].numpy()
                            said.append(Opinion(id_, probs, labels[id_], folder.read(id_).valid))
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
        epochs=epochs, steps_per_epoch=max(1, asked.steps // epochs), batch=8, patch=64, lr=3e-3, tensorboard=False, save_s=0
    )  # fmt: skip

    def edit(chip: Chip) -> Chip:
        return replace(chip, label=labels[chip.id])

    def feed(epoch: int) -> Iterator[object]:
        return patches(
            folder,
            ids,
            patch=64,
            batch=8,
            count=training.patches_per_epoch,
            epoch=epoch,
            seed=seed,
            augment="d4",
            edit=edit,
        )

    with tempfile.TemporaryDirectory() as home:
        fit(net, registry.build("objective", objective, settings), feed, None, training, home, device="cpu", seed=seed)
    return net.eval()


@lru_cache(16)
def stats(folder: ChipFolder, ids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    return folder.mean_std(ids)


def score(net: torch.nn.Module, folder: ChipFolder, ids: tuple[str, ...]) -> dict[str, object]:
    """Count water on the held-out groups with their clean labels."""
    water, counts = folder.header.water or 1, dict[str, list[int]]()
    with torch.no_grad():
        for batch in whole(folder, ids, 4):
            table = confusion(net(batch.image).argmax(1), batch.label, batch.valid, len(folder.classes)).numpy()
            for chip, cell in zip(batch.chips, table, strict=True):
                hit = int(cell[water, water])
                of = counts.setdefault(folder.row(chip).group, [0, 0, 0])
                for i, n in enumerate((hit, int(cell[:, water].sum()) - hit, int(cell[water].sum()) - hit)):
                    of[i] += n
    return {"iou": iou(np.array(list(counts.values())).sum(0)), "groups": counts}


def iou(counts: np.ndarray) -> float:
    return float(counts[0] / max(1, counts.sum()))


def changed(folder: ChipFolder, split: Split, labels: Labels) -> float:
    """Return the share of the training part's valid pixels whose label is wrong."""
    wrong = valid = 0
    for id_ in split.train:
        chip = folder.read(id_)
        wrong += int(((labels[id_] != chip.label) & chip.valid).sum())
        valid += int(chip.valid.sum())
    return wrong / max(1, valid)


def chips(asked: argparse.Namespace) -> ChipFolder:
    home = asked.out / "chips" / asked.data
    if (home / "index.json").exists():
        return ChipFolder.open(home)
    if asked.data == "simulated":
        bands = ("B02", "B03", "B04", "B08", "B11", "B12")
        return curate(Simulated(asked.scenes, 128, "s2", bands, seed=0), home).folder
    source = os.environ.get("SEAWALL_DATA", "")
    if not source:
        raise SystemExit("error: SEAWALL_DATA: expected the folder of real chips, got nothing; export it")
    return curate(source, home, kind="index", sensor="s2", select="hls_").folder


def probe(folder: ChipFolder, asked: argparse.Namespace) -> float:
    """Return the seconds of one training, from a short one."""
    short = argparse.Namespace(**{**vars(asked), "steps": 16})
    split, labels = given(folder, asked.fold, 0, "clean", 0.0)
    learn(folder, split.train, labels, "supervised", {"loss": "ce"}, 0, short)
    start = time.perf_counter()
    learn(folder, split.train, labels, "supervised", {"loss": "ce"}, 0, short)
    return (time.perf_counter() - start) * asked.steps / 16


def read(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    raw = path.read_text()
    return [json.loads(line) for line in raw[: raw.rfind("\n") + 1].splitlines()]


def key(row: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("data", "seed", "loss", "noise", "rate"))


def table(rows: list[dict[str, object]], asked: argparse.Namespace) -> str:
    """Return Markdown: mean IoU over seeds with its interval, and below it the gain over cross-entropy with its own."""
    cells: dict[tuple[str, float], dict[str, dict[int, dict[str, object]]]] = {}
    for row in rows:
        at = cells.setdefault((str(row["noise"]), float(row["rate"])), {})  # type: ignore[arg-type]
        at.setdefault(str(row["loss"]), {})[int(row["seed"])] = row  # type: ignore[call-overload]
    losses = [loss for loss in LOSSES if any(loss in cell for cell in cells.values())]
    lines = [f"{asked.data}: water IoU on held-out groups, clean labels; second line: gain over ce", ""]
    lines += ["| noise | rate | wrong px | " + " | ".join(losses) + " |", "|---" * (3 + len(losses)) + "|"]
    for (noise, rate), cell in sorted(cells.items(), key=lambda item: (item[0][0] != "clean", item[0])):
        wrong = np.mean([float(r["wrong"]) for runs in cell.values() for r in runs.values()])  # type: ignore[arg-type]
        said = [spoken(cell.get(loss, {}), cell.get("ce", {}), loss) for loss in losses]
        lines.append(f"| {noise} | {rate:g} | {wrong:.1%} | " + " | ".join(said) + " |")
    return "\n".join(lines)


def spoken(runs: Mapping[int, Mapping[str, object]], base: Mapping[int, Mapping[str, object]], loss: str) -> str:
    if not runs:
        return "-"
    drawn = resample(runs)
    text = f"{np.mean([float(r['iou']) for r in runs.values()]):.3f} [{np.percentile(drawn, 2.5):.3f}, {np.percentile(drawn, 97.5):.3f}]"  # type: ignore[arg-type]
    both = sorted(set(runs) & set(base))
    if loss == "ce" or not both:
        return text
    one, two = ({seed: of[seed] for seed in both} for of in (runs, base))
    apart = resample(one) - resample(two)
    gain = np.mean([float(one[s]["iou"]) - float(two[s]["iou"]) for s in both])  # type: ignore[arg-type]
    return f"{text}<br>{gain:+.3f} [{np.percentile(apart, 2.5):+.3f}, {np.percentile(apart, 97.5):+.3f}]"


def resample(runs: Mapping[int, Mapping[str, object]], draws: int = 2000) -> np.ndarray:
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
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument(
        "--noises",
        nargs="+",
        choices=list(NOISES),
        default=["symmetric", "patches", "dilate", "thirds", "drop-objects"],
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=240, help="optimizer steps per training")
    parser.add_argument("--width", type=int, default=8, help="features of the U-Net at full size")
    parser.add_argument("--scenes", type=int, default=40, help="simulated scenes of 128 x 128 pixels")
    parser.add_argument("--fold", type=float, default=0.4, help="held-out share")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of the rows so far")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""How well wrong labels are found: precision and recall against faults that were put in, on simulated and real chips.

Simulated: scenes are curated with exact labels, `seawall corrupt` puts in a fault, `seawall audit-labels` looks for it
without knowing. "some": the chips of two fifths of the scenes are corrupted, so that chips can be told apart; "all":
every chip is, so that the models learn the fault itself.

Real (`--data hls`, needs SEAWALL_DATA): about a fifth of the chips, drawn by the seed, get a fault: "shift" moves 19
labels by 5 pixels; "mix" gives 4 chips each a shift by 5 pixels, a mirrored label, a label dilated by 3 pixels, one
eroded by 3 pixels, and one without any water. The labels of the other chips are taken for right, which some are not,
so that the figures understate what is found.

Rows are appended; one that is there is not made again, and audits are kept, so that a changed score is soon measured.

    python benchmarks/find.py --out runs/find
    python benchmarks/find.py --out runs/find --data hls
    python benchmarks/find.py --out runs/find --noises "drop-objects 30% of=objects" --seeds 0 --epochs 4      # a taste

Per pixel: precision and recall of the suspect pixels, and of those that a water index holds against the label too.
Per chip ("some" and the real chips): the probability that a corrupted chip ranks before an untouched one, by each
column, and the share of corrupted chips among the first n, with n corrupted chips in all.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from study import JsonLines

from seawall import api
from seawall.data.chips import Chip, ChipFolder
from seawall.data.curate import curate_chips
from seawall.data.label_planes import stored_label
from seawall.data.sources.simulated import Simulated
from seawall.data.writer import ChipWriter
from seawall.geo.raster import read_raster
from seawall.label_audit.confident_learning import precision_recall
from seawall.labels.rules import parse_rule
from seawall.pipeline.corrupt_labels import chip_batch, noise_for
from seawall.rng import Keys

NOISES = (
    "symmetric 10%", "patches 10%", "dilate 10% exact=true", "erode 30% exact=true of=class", "drop-objects 50% of=objects",
    "shift 50 m", "index-threshold",
)  # fmt: skip
SCORES = {
    "rank": -1,
    "issue_share": 1,
    "quality": -1,
    "loss": 1,
    "train_loss": 1,
    "aum": -1,
    "shift_gain": 1,
    "rule_agreement": -1,
    "witness_share": 1,
}
"""Columns of the ranked list, and whether a high (1) or a low (-1) value is suspect."""


FAULTS: Mapping[str, Sequence[str]] = {
    "shift": ("shift 5 px",) * 19,
    "mix": ("shift 5 px", "mirror", "dilate 3 px", "erode 3 px", "drop") * 4,
}
"""The faults of the real chips, one chip each."""


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    rows = JsonLines(asked.out / f"find-{asked.data}.jsonl")
    done = {(row["noise"], row["spread"], row["seed"]) for row in rows.rows}
    cells = (
        [(n, s) for s in asked.spread for n in asked.noises]
        if asked.data == "simulated"
        else [(n, "some") for n in FAULTS]
    )
    todo = [(n, s, seed) for seed in asked.seeds for n, s in cells if (n, s, seed) not in done]
    print(f"{len(todo)} audits to make, {len(done)} there", flush=True)
    for noise, spread, seed in todo:
        row = {"noise": noise, "spread": spread, "seed": seed, **one(asked, noise, spread, seed)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(table(rows.rows))


def one(asked: argparse.Namespace, noise: str, spread: str, seed: int) -> dict[str, object]:
    """Put a fault in, look for it, and count."""
    start = time.process_time()
    clean = scenes(asked, seed)
    home = asked.out / "audits" / asked.data / f"{noise.replace(' ', '-').replace('%', '')}-{spread}-{seed}"
    bad = home / "bad"
    if asked.data == "hls":
        inject(clean, bad, FAULTS[noise], seed)
    else:
        part, split = ("all", ()) if spread == "all" else ("test", (f"seed={seed}",))
        api.corrupt(clean.root, noise=(noise,), out=bad, part=part, changes=split, seed=seed)
    done = api.audit_labels(
        bad, out=home / "audit", folds=4 if asked.data == "hls" else 3, epochs=asked.epochs, rule="mndwi > 0", worst=1,
        seed=seed, device="cpu",
    )  # fmt: skip
    rows = [json.loads(line) for line in (home / "audit" / "suspects.jsonl").read_text().splitlines()]
    made, wrong, found, both, touched = ChipFolder.open(bad), [], [], [], set[str]()
    for id_ in made.ids:
        before, after = clean.read(id_), made.read(id_)
        wrong.append((before.label != after.label) & after.valid)
        if wrong[-1].any():
            touched.add(id_)
        found.append(read_raster(home / "audit" / "suspects" / f"{id_}.tif").data[0] == 1)
        rule = parse_rule("mndwi > 0")(after.image, after.seen, made.bands, made.unit).label
        both.append(found[-1] & (rule != 255) & (rule != after.label))
    precision, recall = precision_recall(found, wrong)
    sure, caught = precision_recall(both, wrong)
    valid = max(1, sum(len(made.read(i).label[made.read(i).valid]) for i in made.ids))
    told: dict[str, object] = {}
    if spread == "some":
        told["chips"] = [{"bad": row["chip"] in touched, **{name: row[name] for name in SCORES}} for row in rows]
    return {
        "wrong": sum(int(w.sum()) for w in wrong) / valid, "precision": precision, "recall": recall,
        "precision.witness": sure, "recall.witness": caught,
        "estimated": float(done.facts["issues_estimated"] or 0) / valid,
        **told, "cpu_s": round(time.process_time() - start, 1),
    }  # fmt: skip


def inject(clean: ChipFolder, out: Path, faults: Sequence[str], seed: int) -> None:
    """Write a folder in which some chips, drawn by the seed among those with both classes, have a fault each."""
    mixed = [
        id_ for id_ in clean.ids if 0.02 < float(np.mean(clean.read(id_).label[clean.read(id_).valid] == 1)) < 0.98
    ]
    drawn = np.random.default_rng(seed).permutation(mixed)[: len(faults)]
    fault = dict(zip(drawn.tolist(), faults, strict=True))
    writer = ChipWriter(out, clean.header)
    for id_ in clean.ids:
        chip = clean.read(id_)
        label = spoiled(chip, fault[id_], clean, seed) if id_ in fault else chip.label
        source = f"{fault.get(id_, 'as it is')} {seed} {clean.row(id_).label_sha256}"
        if not writer.is_complete(id_, source):
            writer.relabel(clean, id_, stored_label(replace(chip, label=label)), source_sha256=source)
    writer.finish(clean.ids)


def spoiled(chip: Chip, fault: str, clean: ChipFolder, seed: int) -> np.ndarray:
    """Return a chip's label with one fault."""
    if fault == "mirror":
        return np.ascontiguousarray(chip.label[:, ::-1])
    if fault == "drop":
        return np.zeros_like(chip.label)
    name, pixels, _ = fault.split()
    text = f"{name} {float(pixels) * clean.gsd_m:g} m" + ("" if name == "shift" else " exact=true kernel=3")
    noise = noise_for(text, clean, (chip.id,))
    return noise(chip_batch(chip), Keys(seed, (chip.id,), ("noise",))).label[0].numpy()


def auc(value: np.ndarray, bad: np.ndarray) -> float:
    """Return the probability that a corrupted chip has a higher value than an untouched one; NaN without both."""
    one, two = value[bad], value[~bad]
    apart = one[:, None] - two[None]
    return float(((apart > 0) + 0.5 * (apart == 0)).mean()) if len(one) and len(two) else float("nan")


def precision_at_n(value: np.ndarray, bad: np.ndarray) -> float:
    """Return the share of corrupted chips among the first n, with n corrupted chips in all."""
    return float(bad[np.argsort(-value, kind="stable")[: bad.sum()]].mean()) if bad.any() else float("nan")


def scenes(asked: argparse.Namespace, seed: int) -> ChipFolder:
    home = asked.out / "chips" / ("hls" if asked.data == "hls" else str(seed))
    if (home / "index.json").exists():
        return ChipFolder.open(home)
    if asked.data == "hls":
        source = os.environ.get("SEAWALL_DATA", "")
        if not source:
            raise SystemExit("error: SEAWALL_DATA: expected the folder of real chips, got nothing; export it")
        return curate_chips(source, home, kind="index", sensor="s2", select="hls_").folder
    return curate_chips(
        Simulated(asked.scenes, 128, "s2", ("B02", "B03", "B04", "B08", "B11", "B12"), seed=seed), home
    ).folder


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return Markdown: a table of pixels, and one of chips for the faults of some chips."""
    names = ["wrong", "estimated", "precision", "recall", "precision.witness", "recall.witness"]
    lines = ["", "Pixels: mean, lowest and highest of the seeds", ""]
    lines += ["| spread | noise | " + " | ".join(names) + " |", "|" + "---|" * (2 + len(names))]
    cells = sorted({(str(r["spread"]), str(r["noise"])) for r in rows})
    for spread, noise in cells:
        mine = [r for r in rows if (r["spread"], r["noise"]) == (spread, noise)]
        told = [spoken([r.get(name) for r in mine]) for name in names]
        lines.append(f"| {spread} | {noise} | " + " | ".join(told) + " |")
    lines += ["", "Chips: AUROC and precision at n, mean and 95 % interval over seeds and chips", ""]
    lines += ["| noise | seeds | measure | " + " | ".join(SCORES) + " |", "|" + "---|" * (3 + len(SCORES))]
    for noise in [noise for spread, noise in cells if spread == "some"]:
        mine = [r for r in rows if (r["spread"], r["noise"]) == ("some", noise)]
        for measure, of in (("AUROC", auc), ("P@n", precision_at_n)):
            told = [interval([r["chips"] for r in mine], name, sign, of) for name, sign in SCORES.items()]  # type: ignore[misc]
            lines.append(f"| {noise} | {len(mine)} | {measure} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def interval(
    seeds: Sequence[Sequence[Mapping[str, float | None]]],
    name: str,
    sign: int,
    of: Callable[[np.ndarray, np.ndarray], float],
    draws: int = 1000,
) -> str:
    """Return the mean over seeds of a measure, and its interval over draws of seeds and of chips within each."""
    rng, data = np.random.default_rng(0), []
    for chips in seeds:
        there = [(sign * float(chip[name] or 0), bool(chip["bad"])) for chip in chips if chip[name] is not None]
        data.append((np.array([value for value, _ in there]), np.array([bad for _, bad in there])))
    drawn = np.empty((len(data), draws))
    for i, (value, bad) in enumerate(data):
        for k in range(draws):
            pick = rng.integers(0, len(value), len(value))
            drawn[i, k] = of(value[pick], bad[pick])
    means = np.nanmean(drawn[rng.integers(0, len(data), (draws, len(data))), np.arange(draws)[:, None]], axis=1)
    low, high = np.nanpercentile(means, (2.5, 97.5))
    return f"{np.nanmean([of(*one) for one in data]):.2f} [{low:.2f}, {high:.2f}]"


def spoken(values: Sequence[object]) -> str:
    there = [float(v) for v in values if v is not None]  # type: ignore[arg-type]
    if not there:
        return "-"
    return f"{np.mean(there):.2f}" + (f" [{min(there):.2f}, {max(there):.2f}]" if len(there) > 1 else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/find"))
    parser.add_argument("--data", choices=("simulated", "hls"), default="simulated")
    parser.add_argument("--noises", nargs="+", default=list(NOISES))
    parser.add_argument("--spread", nargs="+", choices=("some", "all"), default=["some", "all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=36, help="simulated scenes of 128 x 128 pixels")
    parser.add_argument("--epochs", type=int, help="8 on simulated chips, 12 on the real ones")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    asked.epochs = asked.epochs or (12 if asked.data == "hls" else 8)
    return asked


if __name__ == "__main__":
    main()

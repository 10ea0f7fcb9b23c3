"""How well wrong labels are found: precision and recall against faults that were put in, on simulated scenes.

Scenes are curated with exact labels, `seawall corrupt` puts in a fault, `seawall audit-labels` looks for it without
knowing. "some": the chips of two fifths of the scenes are corrupted, so that chips can be told apart; "all": every
chip is, so that the models learn the fault itself. Rows are appended; one that is there is not made again.

    python benchmarks/find.py --out runs/find
    python benchmarks/find.py --out runs/find --noises "drop-objects 30% of=objects" --seeds 0 --epochs 4      # a taste

Per pixel: precision and recall of the suspect pixels, and of those that a water index holds against the label too.
Per chip ("some" only): the probability that a corrupted chip ranks before an untouched one, by each score.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from seawall import api
from seawall.datasets.chips import ChipFolder
from seawall.datasets.curate import curate
from seawall.datasets.simulated import Simulated
from seawall.imagery.raster import read_raster
from seawall.labels.confident import precision_recall
from seawall.labels.rule import parse_rule

NOISES = (
    "symmetric 10%", "patches 10%", "dilate 10% exact=true", "erode 30% exact=true of=class", "drop-objects 50% of=objects",
    "shift 50 m", "index-threshold",
)  # fmt: skip
SCORES = {
    "issue_share": 1,
    "quality": -1,
    "loss": 1,
    "train_loss": 1,
    "aum": -1,
    "rule_agreement": -1,
    "witness_share": 1,
}
"""Columns of the ranked list, and whether a high (1) or a low (-1) value is suspect."""


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    path = asked.out / "find.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["noise"], row["spread"], row["seed"]) for row in rows}
    todo = [
        (n, s, seed) for seed in asked.seeds for s in asked.spread for n in asked.noises if (n, s, seed) not in done
    ]
    print(f"{len(todo)} audits to make, {len(done)} there", flush=True)
    for noise, spread, seed in todo:
        row = {"noise": noise, "spread": spread, "seed": seed, **one(asked, noise, spread, seed)}
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    print(table(rows))


def one(asked: argparse.Namespace, noise: str, spread: str, seed: int) -> dict[str, object]:
    """Put a fault in, look for it, and count."""
    start = time.perf_counter()
    clean = scenes(asked, seed)
    with tempfile.TemporaryDirectory() as home:
        bad = Path(home) / "bad"
        part = "all" if spread == "all" else "test"
        api.corrupt(
            clean.root, noise=(noise,), out=bad, part=part, changes=[f"seed={seed}"] if part != "all" else [], seed=seed
        )
        done = api.audit_labels(
            bad,
            out=Path(home) / "audit",
            folds=3,
            epochs=asked.epochs,
            rule="mndwi > 0",
            worst=1,
            seed=seed,
            device="cpu",
        )
        rows = [json.loads(line) for line in (Path(home) / "audit" / "suspects.jsonl").read_text().splitlines()]
        touched = {
            r["chip"] for r in map(json.loads, (bad / "corruptions.jsonl").read_text().splitlines()) if r["changed"]
        }
        made, wrong, found, both = ChipFolder.open(bad), [], [], []
        for id_ in made.ids:
            before, after = clean.read(id_), made.read(id_)
            wrong.append((before.label != after.label) & after.valid)
            found.append(read_raster(Path(home) / "audit" / "suspects" / f"{id_}.tif").data[0] == 1)
            rule = parse_rule("mndwi > 0")(after.image, after.seen, made.bands, made.unit).label
            both.append(found[-1] & (rule != 255) & (rule != after.label))
    precision, recall = precision_recall(found, wrong)
    sure, caught = precision_recall(both, wrong)
    share = float(sum(w.sum() for w in wrong) / max(1, sum(made.row(i).valid for i in made.ids)))
    aucs = {f"auc.{name}": auc(rows, touched, name, sign) for name, sign in SCORES.items()} if spread == "some" else {}
    return {
        "wrong": share, "precision": precision, "recall": recall, "precision.witness": sure, "recall.witness": caught,
        "estimated": float(done.facts["issues_estimated"] or 0) / max(1, sum(made.row(i).valid for i in made.ids)),
        **aucs, "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def auc(rows: Sequence[Mapping[str, float | str | None]], bad: set[str], name: str, sign: int) -> float | None:
    there = [(sign * float(row[name]), row["chip"] in bad) for row in rows if row[name] is not None]
    one, two = (np.array([value for value, is_bad in there if is_bad is kind]) for kind in (True, False))
    if not len(one) or not len(two):
        return None
    apart = one[:, None] - two[None]
    return float(((apart > 0) + 0.5 * (apart == 0)).mean())


def scenes(asked: argparse.Namespace, seed: int) -> ChipFolder:
    home = asked.out / "chips" / str(seed)
    if (home / "index.json").exists():
        return ChipFolder.open(home)
    return curate(
        Simulated(asked.scenes, 128, "s2", ("B02", "B03", "B04", "B08", "B11", "B12"), seed=seed), home
    ).folder


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return Markdown: mean over seeds, and the lowest and highest of them."""
    names = [
        "wrong",
        "estimated",
        "precision",
        "recall",
        "precision.witness",
        "recall.witness",
        *(f"auc.{n}" for n in SCORES),
    ]
    lines = ["", "| spread | noise | " + " | ".join(names) + " |", "|---" * (2 + len(names)) + "|"]
    for spread, noise in sorted({(str(r["spread"]), str(r["noise"])) for r in rows}):
        mine = [r for r in rows if (r["spread"], r["noise"]) == (spread, noise)]
        lines.append(
            f"| {spread} | {noise} | " + " | ".join(spoken([r.get(name) for r in mine]) for name in names) + " |"
        )
    return "\n".join(lines)


def spoken(values: Sequence[object]) -> str:
    there = [float(v) for v in values if v is not None]  # type: ignore[arg-type]
    if not there:
        return "-"
    return f"{np.mean(there):.2f}" + (f" [{min(there):.2f}, {max(there):.2f}]" if len(there) > 1 else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/find"))
    parser.add_argument("--noises", nargs="+", default=list(NOISES))
    parser.add_argument("--spread", nargs="+", choices=("some", "all"), default=["some", "all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=36, help="simulated scenes of 128 x 128 pixels")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

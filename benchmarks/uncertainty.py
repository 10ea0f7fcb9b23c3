"""How sure are the networks, and are they right to be? Estimators and temperatures on places that were not trained on.

Places are cut into folds. In each fold and seed a small index U-Net with dropout is trained, two more as members of an ensemble, and one
with snapshots. Every estimator around them predicts the places of the fold; the temperature of a place is fitted on the other places of its
fold. A place is one row; figures are pooled over all places, their intervals resample places.

- errors of calibration over all pixels and near shores, before and after a temperature
- what is right: IoU, negative log-likelihood, area under error against coverage
- seconds: time of each estimator on a tile relative to the network alone, over the number of its passes

    python benchmarks/uncertainty.py --out runs/uncertainty           # about 30 minutes on one core
    python benchmarks/uncertainty.py --out runs/uncertainty --table

SEAWALL_DATA names the folder of the real chips.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from study import (
    JsonLines,
    StudyParser,
    binned_ece,
    figure_text,
    mean_over_seeds,
    quiet_run,
)

from seawall.arrays import DoubleArray
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.data.splits import Split, kfold_groups, labelled_ids
from seawall.metrics.calibration import CalibrationCounts
from seawall.metrics.risk_coverage import area_under_risk_coverage, least_area, risk_coverage
from seawall.models.weights import load_model
from seawall.pipeline.calibrate import calibration_of
from seawall.pipeline.data import load_chips
from seawall.pipeline.training import train_networks
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.types import SegmentationModel
from seawall.uncertainty.build import fitted_estimator, parse_uncertainty
from seawall.uncertainty.calibration import fold_of_scenes
from seawall.uncertainty.scene_scores import score_scenes
from seawall.uncertainty.temperature import TEMPERATURE_KINDS, TemperatureKind, TemperatureScaled, fit_temperature

DATA: Mapping[str, Mapping[str, object]] = {
    "HLS": {"source": "$SEAWALL_DATA", "kind": "index", "select": "hls_", "sensor": "s2"},
    "OMBRIA": {"source": "$SEAWALL_DATA", "kind": "index", "select": "ombria_", "sensor": "s2"},
}
ESTIMATORS = ("softmax", "tta", "mc-dropout passes=20", "laplace passes=20", "snapshot-ensemble", "ensemble")
SNAPSHOTS = 5
BINS = 100
"""Steps of the probability whose pixels are kept for error against coverage."""
PARTS = ("before", "after", "shore before", "shore after")


def order_of(data: str, seed: int, snapshots: int) -> Recipe:
    """Return the recipe of a network with two members, or of one with snapshots."""
    settings = {
        "epochs": 20, "steps_per_epoch": 50, "patch": 64, "batch": 8, "lr": 2e-3, "keep": "last", "ema": 0.99, "tensorboard": False,
    }  # fmt: skip
    more: dict[str, object] = (
        {"settings": {**settings, "snapshots": SNAPSHOTS}} if snapshots else {"settings": settings, "members": 2}
    )
    loss = {"name": "supervised", "settings": {"loss": "ce + dice"}}
    model = {"name": "index-unet" if data == "HLS" else "unet", "settings": {"width": 8, "depth": 3, "dropout": 0.1}}
    return make_recipe(
        {
            "name": "uncertainty",
            "seed": seed,
            "data": dict(DATA[data]),
            "model": model,
            "training": {"objective": loss, **more},
        }
    )


class Remembered(torch.nn.Module):
    """A predictor that computes the logits of an image once."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.spec = model.spec
        self.inner = model
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        names = [hashlib.blake2b(one.contiguous().numpy().tobytes(), digest_size=16).hexdigest() for one in image]
        missing = [i for i, name in enumerate(names) if name not in self.kept]
        if missing:
            with torch.no_grad():
                self.kept |= dict(zip((names[i] for i in missing), self.inner(image[missing]), strict=True))
        return torch.stack([self.kept[name] for name in names])


@dataclass(frozen=True)
class Bench:
    """The folds of one data set and the rows that are there."""

    given: argparse.Namespace
    data: str
    chips: ChipFolder
    rows: JsonLines

    @staticmethod
    def of(given: argparse.Namespace, data: str) -> Bench:
        home = given.out / data
        chips, _ = load_chips(quiet_run(order_of(data, 0, 0), home), home / "chips")
        return Bench(given, data, chips, JsonLines(given.out / f"rows-{data}.jsonl"))

    def folds(self) -> Sequence[Split]:
        return kfold_groups(self.chips, self.given.folds, 0, ids=labelled_ids(self.chips))

    def weights(self, seed: int, number: int, fold: Split, snapshots: int) -> Path:
        """Return the weights of a network, after training it, its members or its snapshots where they are missing."""
        order = order_of(self.data, seed, snapshots)
        folder = self.given.out / self.data / f"{'snapshots' if snapshots else 'members'}-s{seed}-f{number}"
        split = Split(fold.train, (), fold.test, fold.how, fold.settings)
        for _ in train_networks(quiet_run(order, folder), self.chips, split):
            pass
        return folder / "models" / order.model.name / "model.safetensors"

    def measure(self) -> None:
        """Add the rows that are missing."""
        there = {(r["seed"], r["fold"], r["estimator"], r["temperature"]) for r in self.rows.rows}
        for seed in self.given.seeds:
            for number, fold in enumerate(self.folds()):
                for text in ESTIMATORS:
                    if all((seed, number, text, kind) in there for kind in TEMPERATURE_KINDS):
                        continue
                    weights = self.weights(seed, number, fold, int(text == "snapshot-ensemble"))
                    model = cast(SegmentationModel, load_model(weights))
                    chips = self.chips.with_bands(model.spec.bands)
                    method = fitted_estimator(
                        parse_uncertainty(text, weights),
                        cast(torch.nn.Module, model),
                        lambda c=chips, f=fold: whole_chips(c, f.train),
                    )
                    plain = cast(SegmentationModel, Remembered(cast(SegmentationModel, method(model).eval())))
                    for kind in TEMPERATURE_KINDS:
                        if (seed, number, text, kind) not in there:
                            self.add(seed, number, text, kind, plain, chips, fold.test)

    def add(
        self,
        seed: int,
        number: int,
        text: str,
        kind: TemperatureKind,
        plain: SegmentationModel,
        chips: ChipFolder,
        ids: Sequence[str],
    ) -> None:
        """Add a row with the figures of every place of a fold."""
        place = {id_: chips.row(id_).group for id_ in ids}
        folds = fold_of_scenes(list(place.values()))
        found: dict[str, Any] = {}
        for part in sorted(set(folds.values())):
            divisor = fit_temperature(plain, whole_chips(chips, [i for i in ids if folds[place[i]] != part]), kind)
            model = plain if divisor is None else cast(SegmentationModel, TemperatureScaled(plain, divisor).eval())
            for name in sorted({place[i] for i in ids if folds[place[i]] == part}):
                own = [i for i in ids if place[i] == name]
                counts = [
                    CalibrationCounts.joined(c) for c in zip(*calibration_of(plain, divisor, chips, own), strict=True)
                ]
                (score,) = score_scenes(model, whole_chips(chips, own), place, "water", chips.gsd_m)
                found[name] = {
                    "bins": [[c.count.sum(0).tolist(), c.correct.sum(0).tolist(), c.confidence.sum(0).tolist()] for c in counts],
                    "nll": float(counts[1].nll.sum()), "brier": float(counts[1].brier.sum()), "entropy": float(counts[1].entropy.sum()),
                    "pixels": int(counts[1].count.sum()), "areas": [score.hits_km2, score.misses_km2, score.alarms_km2, score.rejections_km2],
                    "own": coarse(score.missed, score.true_km2, 1.0), "other": coarse(score.alarmed, score.valid_km2 - score.true_km2, -1.0),
                }  # fmt: skip
        self.rows.append({"seed": seed, "fold": number, "estimator": text, "temperature": kind, "places": found})


def coarse(curve: DoubleArray | None, area: float, sign: float) -> list[float]:
    """Return the area in each of `BINS` steps of the probability, by a curve over finer steps."""
    if curve is None:
        return [0.0] * BINS
    ends = curve[:: (len(curve) - 1) // BINS]
    steps = sign * np.diff(ends)
    steps[-1] += 1 - ends[-1] if sign > 0 else ends[-1]
    return [round(float(s) * area, 6) for s in steps]


def iou(areas: DoubleArray) -> float:
    return float(areas[0] / areas[:3].sum())


def excess(hist: DoubleArray) -> float:
    """Return the area under error against coverage over the least that is possible, of (own, other) areas (2, BINS)."""
    p = (np.arange(BINS) + 0.5) / BINS
    coverage, risk = risk_coverage(np.maximum(p, 1 - p).round(6), hist.sum(0), np.where(p >= 0.5, hist[1], hist[0]))
    return (area_under_risk_coverage(coverage, risk) or 0.0) - least_area(float(risk[-1]))


class Table:
    """The rows of one data set by estimator and temperature."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], folds: int) -> None:
        self.rows = rows
        seeds = sorted({r["seed"] for r in rows})
        self.seeds = [
            s
            for s in seeds
            if len({(r["fold"], r["estimator"], r["temperature"]) for r in rows if r["seed"] == s})
            == folds * len(ESTIMATORS) * len(TEMPERATURE_KINDS)
        ]

    def values(self, text: str, kind: str, pick: Callable[[Mapping[str, Any]], Any]) -> DoubleArray:
        """Return (S, G, ...) of every place, in one order for all estimators."""
        found = []
        for seed in self.seeds:
            places: dict[str, Any] = {}
            for row in self.rows:
                if (row["seed"], row["estimator"], row["temperature"]) == (seed, text, kind):
                    places |= row["places"]
            found.append([pick(places[name]) for name in sorted(places)])
        return np.array(found, np.float64)

    def lines(self, data: str) -> Iterator[str]:
        yield f"| {data}, {len(self.seeds)} seeds | IoU of water | ECE as it is | global | class | local | ECE at the shore as it is | global | local | NLL as it is | global | local | excess AURC |"
        yield "|---|" + "---|" * 12
        for text in ESTIMATORS:
            figures = [figure_text(mean_over_seeds(self.values(text, "none", lambda p: p["areas"]), iou))]
            for part, kinds in ((1, ("none", "global", "class", "local")), (3, ("none", "global", "local"))):
                figures += [
                    figure_text(mean_over_seeds(self.values(text, kind, lambda p, j=part: p["bins"][j]), binned_ece))
                    for kind in kinds
                ]
            for kind in ("none", "global", "local"):
                figures.append(
                    figure_text(
                        mean_over_seeds(
                            self.values(text, kind, lambda p: [p["nll"], p["pixels"]]), lambda s: float(s[0] / s[1])
                        )
                    )
                )
            figures.append(
                figure_text(mean_over_seeds(self.values(text, "none", lambda p: [p["own"], p["other"]]), excess), 4)
            )
            yield f"| {text} | " + " | ".join(figures) + " |"

    def changes(self, data: str) -> Iterator[str]:
        """Yield the lines of what each temperature changes, place by place resampled together."""
        yield ""
        yield f"| {data}: ECE less that as it is | global | class | local | at the shore: global | class | local |"
        yield "|---|---|---|---|---|---|---|"
        for text in ESTIMATORS:
            cells = []
            for part in (1, 3):
                for kind in ("global", "class", "local"):
                    both = np.stack([self.values(text, k, lambda p, j=part: p["bins"][j]) for k in (kind, "none")], 2)
                    cells.append(figure_text(mean_over_seeds(both, lambda s: binned_ece(s[0]) - binned_ece(s[1]))))
            yield f"| {text} | " + " | ".join(cells) + " |"


def times(bench: Bench) -> Iterator[str]:
    """Yield the lines of time on a tile of 768 pixels, side by side, each relative to the network alone."""
    weights = {n: bench.weights(bench.given.seeds[0], 0, bench.folds()[0], n) for n in (0, 1)}
    model = cast(SegmentationModel, load_model(weights[0]))
    image = torch.rand(1, len(model.spec.bands), 768, 768)
    chips = bench.chips.with_bands(model.spec.bands)
    made = {}
    for text in ESTIMATORS:
        method = fitted_estimator(
            parse_uncertainty(text, weights[int(text == "snapshot-ensemble")]),
            cast(torch.nn.Module, model),
            lambda: whole_chips(chips, chips.ids[:8]),
        )
        made[text] = method(model).eval()
    spent: dict[str, list[float]] = {text: [] for text in ("network", *ESTIMATORS)}
    with torch.inference_mode():
        for _ in range(5):
            for text, one in {"network": model, **made}.items():
                began = time.process_time()
                one(image) if text == "network" else one.predict(image)
                spent[text].append(time.process_time() - began)
    alone = float(np.median(spent["network"]))
    yield ""
    yield "| estimator | passes | time over that of the network | per pass |"
    yield "|---|---|---|---|"
    for text, one in made.items():
        ratio = float(np.median(spent[text])) / alone
        yield f"| {text} | {one.passes} | {ratio:.2f} | {ratio / one.passes:.2f} |"


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = StudyParser(__doc__, "runs/uncertainty")
    parser.add_names("--data", DATA)
    parser.add_seeds()
    parser.add_argument("--folds", type=int, default=3)
    parser.add_table()
    given = parser.parse_args()
    torch.set_num_threads(1)
    for data in given.data:
        bench = Bench.of(given, data)
        if not given.table:
            bench.measure()
        table = Table(bench.rows.rows, given.folds)
        if table.seeds:
            print("\n".join([*table.lines(data), *table.changes(data)]))
        if data == given.data[0]:
            print("\n".join(times(bench)))


if __name__ == "__main__":
    main()

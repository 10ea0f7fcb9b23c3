"""What each way of hardening gives on held-out places: water IoU on clean chips and within four budgets, and what it costs.

Trains on the real chips (SEAWALL_DATA) or on simulated scenes, split by group; the seed decides split, weights and patches.
The water indices on the same chips stand beside, by their exact worst case. Every finished cell is a JSON line in
`--out`/cells.jsonl, with the counts of every group; a run that was stopped goes on where it stopped. Equal optimizer steps
for all methods: `--passes` epochs of `--steps` steps.

CPU-minutes of one training of 600 steps (20 passes), width 16, patches of 96 pixels, one thread of a busy machine, of
which plain was measured at 5.8 and the others follow from their passes through the network: plain, index and anchored 6;
fgsm, n-fgsm, fgsm-rs, step-* 12; pgd-3, segpgd-3, pir-at 24; trades 30; grad-align 18; linear 1. PGD-20 on 33 chips takes
4 minutes per budget for a U-Net. `--width 8 --patch 64` takes about a sixth.

    python benchmarks/hardening.py --out runs/hardening                                   # all methods, 3 seeds, PGD-20
    python benchmarks/hardening.py --out runs/hardening --methods plain,index-n-fgsm-squared --seeds 0
    python benchmarks/hardening.py --out runs/hardening --suite "seawall passes=300" --methods plain,index-n-fgsm-squared
    python benchmarks/hardening.py --out runs/hardening --transfer                         # attacks on plain, given to the others
    python benchmarks/hardening.py --out runs/hardening --corruptions                      # natural perturbations, for the column mean CE
    python benchmarks/hardening.py --out runs/hardening --table                            # print what is there
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from seawall import registry
from seawall.arrays import DoubleArray
from seawall.attacks.suites import named_attacks, parse_suite
from seawall.attacks.transfer import Transfer
from seawall.chip_context import ChipContext
from seawall.corruptions.build import fitting_corruptions
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.data.splits import Split
from seawall.metrics.bootstrap import Resamples, estimate_quotient, percentile_interval
from seawall.metrics.ratios import divide_or_nan
from seawall.metrics.worst_case import worst_ratio
from seawall.models.water_index import ThresholdNet, extreme_images
from seawall.pipeline.context import RunContext
from seawall.pipeline.data import load_chips, make_split
from seawall.pipeline.training import model_factory, spec_of_chips, train_network
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.recipe.sections import MethodSection
from seawall.rng import Keys
from seawall.threat.parser import parse_threat
from seawall.types import Attack, Corruption, SegmentationModel

LOSS = "ce + dice"
ONE, TWO = "linf 1% reflectance", "linf 2% reflectance"
BUDGETS = ("0.25%", "0.5%", "1%", "2%")
INDICES = ("mndwi", "ndwi")
PLAIN, FIVE_STEP, TRANSFER = "plain", "pgd-5", "transfer"


@dataclass(frozen=True)
class Method:
    """A way of hardening: model, objective, settings of the training that differ, and whether the encoder is pre-trained."""

    model: str = "unet"
    objective: str = "supervised"
    settings: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, object] = field(default_factory=dict)
    pretrained: bool = False


ONE_FIXED: Mapping[str, object] = {"threat": ONE}
UP_TO_TWO: Mapping[str, object] = {"threat": TWO, "draw": "uniform"}
MOSTLY_SMALL: Mapping[str, object] = {"threat": TWO, "draw": "squared"}
FAST_RATE: Mapping[str, object] = {"lr": 0.1}
FIVE_STEPS: Mapping[str, object] = {"attack_settings": {"steps": 5, "step": 0.4, "keep": "last"}}

METHODS: Mapping[str, Method] = {
    "plain": Method(),
    "fgsm": Method(objective="fgsm", settings=ONE_FIXED),
    "fgsm-rs": Method(objective="fgsm-rs", settings=ONE_FIXED),
    "n-fgsm": Method(objective="n-fgsm", settings=ONE_FIXED),
    "grad-align": Method(objective="grad-align", settings=ONE_FIXED),
    "step-checkpoints": Method(objective="step-checkpoints", settings=ONE_FIXED),
    "step-linearized": Method(objective="step-linearized", settings=ONE_FIXED),
    "pgd-3": Method(objective="adversarial", settings=ONE_FIXED),
    FIVE_STEP: Method(objective="adversarial", settings={**ONE_FIXED, **FIVE_STEPS}),
    "segpgd-3": Method(objective="segpgd-training", settings=ONE_FIXED),
    "trades": Method(objective="trades", settings={"threat": ONE, "steps": 3, "step": 0.5}),
    "pir-at": Method(objective="adversarial", settings=ONE_FIXED, pretrained=True),
    "n-fgsm-drawn": Method(objective="n-fgsm", settings=UP_TO_TWO),
    "n-fgsm-squared": Method(objective="n-fgsm", settings=MOSTLY_SMALL),
    "pgd-3-squared": Method(objective="adversarial", settings=MOSTLY_SMALL),
    "index-plain": Method("index-unet"),
    "index-n-fgsm-squared": Method("index-unet", "n-fgsm", MOSTLY_SMALL),
    "anchored-n-fgsm-squared": Method("anchored-unet", "n-fgsm", MOSTLY_SMALL),
    "linear-plain": Method("linear", training=FAST_RATE),
    "linear-fgsm": Method("linear", "fgsm", {"threat": TWO}, FAST_RATE),
}


def recipe(given: argparse.Namespace, method: Method, seed: int) -> Recipe:
    """Return what one network is trained by."""
    real = {"source": "$SEAWALL_DATA", "kind": "index", "select": "hls_"}
    network = {} if method.model == "linear" else {"width": given.width, "depth": given.depth}
    objective = {"name": method.objective, "settings": {"loss": LOSS, **method.settings}}
    training: dict[str, object] = {
        "epochs": given.passes, "steps_per_epoch": given.steps, "patch": given.patch, "batch": 8, "lr": 2e-3,
        "check_every": min(5, given.passes), "tensorboard": False, **method.training,
    }  # fmt: skip
    section: dict[str, object] = {"objective": objective, "settings": training}
    if method.pretrained:
        labels = {"name": method.objective, "settings": {**method.settings, "loss": "ce"}}
        section["pretraining"] = {"objective": labels, "settings": {"epochs": max(1, given.passes // 2)}}
    if method.objective != "supervised":  # hardened weights are selected by their multi-step figure
        section["robustness"] = {"threat": ONE, "steps": 10}
    return make_recipe(
        {
            "name": "hardening",
            "seed": seed,
            "data": real if os.environ.get("SEAWALL_DATA") else {"count": 24, "size": 128},
            "split": {"val": 0.15, "test": 0.35},
            "model": {"name": method.model, "settings": network},
            "training": section,
        }
    )


def trained(
    given: argparse.Namespace, name: str, seed: int, chips: ChipFolder, split: Split
) -> tuple[SegmentationModel, float]:
    """Return a trained network and the CPU-minutes of its training, kept beside it."""
    method, folder = METHODS[name], given.out / f"{name}-s{seed}"
    began = time.process_time()
    return billed_training(recipe(given, method, seed), folder, chips, split, began)


def billed_training(
    order: Recipe, folder: Path, chips: ChipFolder, split: Split, began: float
) -> tuple[SegmentationModel, float]:
    """Return the network of a recipe and its CPU-minutes since `began`, which are kept beside it."""
    bill = folder / "cpu_minutes.json"
    spent = json.loads(bill.read_text()) if bill.exists() else 0.0
    model = train_network(RunContext(order, folder, "cpu", True, lambda *_: None), chips, split, order.networks[0])
    if not bill.exists():  # of a training that was killed, the last part
        spent = (time.process_time() - began) / 60
        bill.write_text(json.dumps(spent))
    return cast(SegmentationModel, model.eval()), spent


def corrupted_counts(
    model: SegmentationModel, chips: ChipFolder, ids: tuple[str, ...], corruption: Corruption | None, severity: float
) -> Counts:
    """Return the counts of every chip under a corruption."""
    found: Counts = {}
    for clean in whole_chips(chips, ids):
        batch = clean if corruption is None else corruption(clean, severity, Keys(0, clean.chips))
        with torch.no_grad():
            water = model(batch.image).argmax(1) == 1
        found |= water_counts(batch.chips, water, batch.label == 1, batch.valid)
    return found


Counts = dict[str, list[int]]
"""Water pixels that model and label share, and that either has: (intersection, union) per chip."""


def attacked_counts(
    model: SegmentationModel, chips: ChipFolder, ids: tuple[str, ...], attack: Attack | None, threat: str
) -> Counts:
    """Return the counts of every chip, after an attack if there is one."""
    found: Counts = {}
    for batch in whole_chips(chips, ids):
        image = batch.image
        if attack is not None:
            image = attack(model, batch, parse_threat(threat, model.spec), Keys(0, batch.chips))
        with torch.no_grad():
            water = model(image).argmax(1) == 1
        found |= water_counts(batch.chips, water, (batch.label == 1), batch.valid)
    return found


def exact_counts(model: ThresholdNet, chips: ChipFolder, ids: tuple[str, ...], threat: str) -> Counts:
    """Return the counts of a threshold model in its exact worst case."""
    found: Counts = {}
    for batch in whole_chips(chips, ids):
        ball = parse_threat(threat, model.spec).around(batch.image, batch.seen)
        says = torch.stack([model(image).argmax(1) == 1 for image in extreme_images(model, ball)])
        truth = batch.label == 1
        found |= water_counts(batch.chips, torch.where(truth, says.all(0), says.any(0)), truth, batch.valid)
    return found


def water_counts(names: Iterable[str], water: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> Counts:
    """Return the counts of every chip from its predicted and its labelled water."""
    both, either = (part.flatten(1).sum(1).tolist() for part in (water & truth & valid, (water | truth) & valid))
    return {name: [int(top), int(bottom)] for name, top, bottom in zip(names, both, either, strict=True)}


def worst_counts(parts: list[Counts]) -> Counts:
    """Return each chip's counts under the choice of attacks that makes the pooled IoU smallest."""
    names = list(parts[0])
    top, bottom = (np.array([[part[name][i] for name in names] for part in parts], float) for i in (0, 1))
    chosen = worst_ratio(top, bottom, np.ones(top.shape, bool))[1]
    return {name: parts[int(a)][name] for name, a in zip(names, chosen, strict=True)}


def group_counts(counts: Counts, groups: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the counts of every group, summed over its chips."""
    by_group: dict[str, list[int]] = {}
    for chip, (top, bottom) in counts.items():
        sums = by_group.setdefault(groups[chip], [0, 0])
        sums[0], sums[1] = sums[0] + top, sums[1] + bottom
    return by_group


class JsonLines:
    """Rows in a file, one JSON line each; a line that a killed writer left half is not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("}")]

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the file."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as sink:
            sink.write(json.dumps(row) + "\n")


class Cells(JsonLines):
    """The finished cells; a cell is (method, seed, budget, attack)."""

    def has(self, *key: object) -> bool:
        return any((r["method"], r["seed"], r["budget"], r["attack"]) == key for r in self.rows)

    def add(
        self,
        method: str,
        seed: int,
        budget: str,
        attack: str,
        counts: Counts,
        groups: Mapping[str, str],
        minutes: float,
    ) -> None:
        by_group = group_counts(counts, groups)
        row = {
            "method": method,
            "seed": seed,
            "budget": budget,
            "attack": attack,
            "groups": by_group,
            "cpu_minutes": round(minutes, 2),
        }
        row |= dict(zip(("iou", "low", "high"), pooled([by_group]), strict=True))
        self.append(row)
        print({key: value for key, value in row.items() if key != "groups"}, flush=True)


Parts = list[dict[str, list[int]]]
"""(intersection, union) of every group, one mapping per seed."""


def group_sums(parts: Parts, names: list[str]) -> DoubleArray:
    """Return intersection and union of every group, summed over the parts: (G, 2)."""
    return np.array([[sum(part.get(name, (0, 0))[i] for part in parts) for i in (0, 1)] for name in names], float)


def difference(first: Parts, second: Parts) -> tuple[float, float, float]:
    """Return the IoU of the first minus that of the second, and its 95 % interval: both are taken of the same redrawn groups."""
    names = sorted({name for part in (*first, *second) for name in part})
    sums = [group_sums(parts, names) for parts in (first, second)]
    draws = Resamples.over(names)
    value, drawn = (
        np.subtract(*(divide_or_nan((weights @ pair)[:, 0], (weights @ pair)[:, 1]) for pair in sums))
        for weights in (draws.once, draws.weights)
    )
    low, high = percentile_interval(drawn[:, None])
    return float(value[0]), float(low[0]), float(high[0])


def pooled(parts: Parts) -> tuple[float, float, float]:
    """Return the IoU over all groups of all parts, and its 95 % interval over groups."""
    names = sorted({name for part in parts for name in part})
    sums = group_sums(parts, names)
    found = estimate_quotient(sums[:, 0], sums[:, 1], len(names), Resamples.over(names))
    return tuple(round(float(v[0]), 4) for v in (found.value, found.low, found.high))  # type: ignore[return-value]


def label_of(given: argparse.Namespace) -> str:
    """Return the name of the attacks in the cells."""
    return TRANSFER if given.transfer else given.suite or "pgd-20"


def attacks_of(given: argparse.Namespace, plain: SegmentationModel | None) -> dict[str, Attack]:
    """Return the attacks of a cell: PGD-20, the members of a suite, or the transfer attack from the plain network."""
    if plain is not None:
        return {TRANSFER: Transfer(surrogate=plain)}
    if given.suite:
        return dict(named_attacks(parse_suite(given.suite)))
    return {"pgd-20": registry.build("attack", "pgd", {"steps": 20})}


@dataclass(frozen=True)
class Bench:
    """What the cells of one seed share."""

    given: argparse.Namespace
    cells: Cells
    seed: int
    chips: ChipFolder
    split: Split

    @staticmethod
    def of(given: argparse.Namespace, cells: Cells, seed: int) -> Bench:
        base = RunContext(recipe(given, METHODS["plain"], seed), given.out, "cpu", True, lambda *_: None)
        chips, _ = load_chips(base, given.out / "chips")
        return Bench(given, cells, seed, chips, make_split(base, chips))

    def add(self, method: str, budget: str, attack: str, counts: Counts, minutes: float) -> None:
        groups = {id_: self.chips.row(id_).group for id_ in self.split.test}
        self.cells.add(method, self.seed, budget, attack, counts, groups, minutes)

    def missing(self, method: str, grid: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the (budget, attack) of a method that have no cell."""
        return [(budget, attack) for budget, attack in grid if not self.cells.has(method, self.seed, budget, attack)]

    def trained(self, method: str) -> tuple[SegmentationModel, float]:
        return trained(self.given, method, self.seed, self.chips, self.split)

    def threshold(self, index: str) -> ThresholdNet:
        build = model_factory(MethodSection(name="threshold", settings={"index": index}))
        return cast(ThresholdNet, build(spec_of_chips(self.chips)))


def measure_attacks(bench: Bench) -> None:
    """Add the clean and the attacked cells of one seed: the indices, then every method."""
    given, chips, ids = bench.given, bench.chips, bench.split.test
    for index in INDICES:
        for budget, _ in bench.missing(index, [(b, "exact") for b in ("0%", *BUDGETS)]):
            counts = exact_counts(bench.threshold(index), chips, ids, f"linf {budget} reflectance")
            bench.add(index, budget, "exact", counts, 0.0)
    plain = bench.trained(PLAIN)[0] if given.transfer else None
    grid = [("0%", "clean"), *((budget, label_of(given)) for budget in BUDGETS)]
    for name in given.methods:
        if (given.transfer and name == PLAIN) or not (todo := bench.missing(name, grid)):
            continue
        network, minutes = bench.trained(name)
        clean = attacked_counts(network, chips, ids, None, "")
        for budget, attack in todo:
            members = attacks_of(given, plain).values() if attack != "clean" else ()
            parts = [attacked_counts(network, chips, ids, a, f"linf {budget} reflectance") for a in members]
            bench.add(name, budget, attack, worst_counts([clean, *parts]), minutes)


SEVERITIES = (0.5, 1.0)
REFERENCE_INDEX = "mndwi"
"""Corruption errors are relative to the threshold 0 of this index."""


def measure_corruptions(bench: Bench) -> None:
    """Add the cells of one seed under every natural perturbation: the index, then every method."""
    known = fitting_corruptions(ChipContext.of(bench.chips, bench.chips.ids))[0]
    grid = [(f"severity {severity:g}", name) for name in known for severity in SEVERITIES]
    for method in (REFERENCE_INDEX, *bench.given.methods):
        todo = bench.missing(method, grid)
        if not todo:
            continue
        network, minutes = (bench.threshold(method), 0.0) if method in INDICES else bench.trained(method)
        for budget, name in todo:
            counts = corrupted_counts(network, bench.chips, bench.split.test, known[name], float(budget.split()[1]))
            bench.add(method, budget, name, counts, minutes)


@dataclass(frozen=True)
class FinishedSeeds:
    """A method with the seeds of which every budget is there, under one attack beside the clean and the exact cells."""

    cells: Cells
    attack: str
    method: str
    seeds: tuple[int, ...]

    def parts(self, method: str, budget: str, attack: str = "") -> Parts:
        """Return the counts of any method on these seeds."""
        fits = ("clean", "exact", attack or self.attack)
        rows = [r for r in self.cells.rows if (r["method"], r["budget"]) == (method, budget) and r["attack"] in fits]
        return [r["groups"] for r in rows if r["seed"] in self.seeds]

    def iou(self, method: str, budget: str) -> float:
        """Return the pooled IoU of any method on these seeds; NaN where there is no cell."""
        return pooled(self.parts(method, budget) or [{"": [0, 0]}])[0]

    def minutes(self) -> float:
        """Return the mean CPU-minutes of a training."""
        own = [r for r in self.cells.rows if r["method"] == self.method and r["seed"] in self.seeds]
        return float(np.mean([r["cpu_minutes"] for r in own]))

    def mean_corruption_error(self) -> str:
        """Return the mean over corruptions of the sum of 1 - IoU over that of the index, with its interval; "" without cells."""
        rows = [r for r in self.cells.rows if r["budget"].startswith("severity") and r["seed"] in self.seeds]
        of = {m: [r for r in rows if r["method"] == m] for m in (self.method, REFERENCE_INDEX)}
        if not of[self.method] or len(of[self.method]) != len(of[REFERENCE_INDEX]):
            return ""
        names = sorted({group for r in rows for group in r["groups"]})
        draws = Resamples.over(names)
        weights = np.concatenate([draws.once, draws.weights])
        errors = []
        for corruption in dict.fromkeys(r["attack"] for r in rows):
            lost = []
            for method in (self.method, REFERENCE_INDEX):
                every = [
                    group_sums(
                        [r["groups"] for r in of[method] if (r["attack"], r["budget"]) == (corruption, budget)], names
                    )
                    for budget in (f"severity {severity:g}" for severity in SEVERITIES)
                ]
                lost.append(sum(1 - divide_or_nan((weights @ pair)[:, 0], (weights @ pair)[:, 1]) for pair in every))
            errors.append(lost[0] / lost[1])
        mean = np.mean(np.array(errors), 0)
        low, high = percentile_interval(mean[1:, None])
        return f"{mean[0]:.3f} ({low[0]:.2f} to {high[0]:.2f})"

    def flag(self, budget: str) -> str:
        """Return a flag where the transfer attack leaves less than the attack: the figure is too good."""
        other = self.parts(self.method, budget, TRANSFER) if budget != "0%" else []
        return " ⚑" if len(other) == len(self.seeds) and pooled(other)[0] < self.iou(self.method, budget) else ""

    def better_index(self, budget: str) -> Parts:
        """Return the counts of the water index with the higher IoU on these seeds."""
        ious = [self.iou(index, budget) for index in INDICES]
        return self.parts(INDICES[int(np.argmax(ious))], budget)


def finished(cells: Cells, attack: str) -> Iterator[FinishedSeeds]:
    """Yield every method with its finished seeds, in the order of the cells."""
    for name in dict.fromkeys(row["method"] for row in cells.rows):
        mine = [r for r in cells.rows if r["method"] == name and r["attack"] in ("clean", "exact", attack)]
        seeds = sorted({r["seed"] for r in mine})
        whole = [s for s in seeds if {r["budget"] for r in mine if r["seed"] == s} == {"0%", *BUDGETS}]
        if whole:
            yield FinishedSeeds(cells, attack, name, tuple(whole))


def table(cells: Cells, attack: str) -> Iterator[str]:
    """Yield the lines of the table: pooled over the seeds, with intervals over groups; ⚑ where the transfer attack does more."""
    yield "| method | seeds | " + " | ".join(("clean", *BUDGETS)) + " | mean CE | CPU-min |"
    yield "|---|" + "---|" * (len(BUDGETS) + 4)
    for done in finished(cells, attack):
        figures = [(*pooled(done.parts(done.method, budget)), done.flag(budget)) for budget in ("0%", *BUDGETS)]
        shown = " | ".join(f"{v:.3f} ({low:.2f} to {high:.2f}){flag}" for v, low, high, flag in figures)
        yield f"| {done.method} | {','.join(map(str, done.seeds))} | {shown} | {done.mean_corruption_error()} | {done.minutes():.1f} |"


def differences(cells: Cells, attack: str) -> Iterator[str]:
    """Yield the lines of the paired comparison, with intervals over the same redrawn groups, and whether the bar is met.

    The bar: above the better index at every budget, and not below plain on clean images. "yes" where every difference to
    the index is above 0 with its whole interval and that to plain is at least 0; "by estimate" where the differences
    themselves are at least 0.
    """
    yield "| method | clean minus plain | " + " | ".join(f"{b} minus better index" for b in BUDGETS) + " | bar |"
    yield "|---|" + "---|" * (len(BUDGETS) + 2)
    for done in finished(cells, attack):
        plain = done.parts(PLAIN, "0%")
        if done.method in INDICES or len(plain) < len(done.seeds):
            continue
        found = [difference(done.parts(done.method, "0%"), plain)]
        found += [difference(done.parts(done.method, b), done.better_index(b)) for b in BUDGETS]
        sure = found[0][0] >= 0 and all(low > 0 for _, low, _ in found[1:])
        met = "yes" if sure else "by estimate" if min(value for value, _, _ in found) >= 0 else "no"
        shown = " | ".join(f"{v:+.3f} ({low:+.2f} to {high:+.2f})" for v, low, high in found)
        yield f"| {done.method} | {shown} | {met} |"


def against_five_steps(cells: Cells, attack: str) -> Iterator[str]:
    """Yield the lines of the paired comparison with training on PGD of 5 steps, where both have the same seeds."""
    yield (
        "| method | " + " | ".join(f"{b} minus {FIVE_STEP}" for b in ("clean", *BUDGETS)) + f" | CPU-min over {PLAIN} |"
    )
    yield "|---|" + "---|" * (len(BUDGETS) + 2)
    rows = {done.method: done for done in finished(cells, attack)}
    if not {PLAIN, FIVE_STEP} <= rows.keys():
        return
    for done in rows.values():
        if done.method in (*INDICES, FIVE_STEP) or done.seeds != rows[FIVE_STEP].seeds:
            continue
        pairs = [(done.parts(done.method, b), done.parts(FIVE_STEP, b)) for b in ("0%", *BUDGETS)]
        shown = " | ".join("{:+.3f} ({:+.2f} to {:+.2f})".format(*difference(*pair)) for pair in pairs)
        yield f"| {done.method} | {shown} | {done.minutes() / rows[PLAIN].minutes():.1f} |"


def main() -> None:
    """Train, attack, print the table."""
    given = asked()
    torch.set_num_threads(given.threads)
    cells = Cells(given.out / "cells.jsonl")
    for seed in () if given.table else given.seeds:
        (measure_corruptions if given.corruptions else measure_attacks)(Bench.of(given, cells, seed))
    attack = label_of(given)
    print("\n".join([*table(cells, attack), "", *differences(cells, attack), "", *against_five_steps(cells, attack)]))


def asked() -> argparse.Namespace:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, default=Path("runs/hardening"), help="keep chips, networks and cells there")
    ask.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS), help="names with commas")
    ask.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    ask.add_argument("--passes", type=int, default=20, help="epochs of the training")
    ask.add_argument("--steps", type=int, default=30, help="optimizer steps per epoch")
    ask.add_argument("--width", type=int, default=16)
    ask.add_argument("--depth", type=int, default=3)
    ask.add_argument("--patch", type=int, default=96)
    ask.add_argument("--suite", default="", help='such as "seawall passes=30"; else PGD-20')
    ask.add_argument(
        "--transfer", action="store_true", help="attack the plain network of the seed instead of the method's"
    )
    ask.add_argument("--corruptions", action="store_true", help="measure natural perturbations instead of attacks")
    ask.add_argument("--table", action="store_true", help="print the table of the finished cells and stop")
    ask.add_argument("--threads", type=int, default=1)
    given = ask.parse_args()
    if unknown := [name for name in given.methods if name not in METHODS]:
        ask.error(f"--methods: expected some of {', '.join(METHODS)}, got {unknown[0]}")
    return given


if __name__ == "__main__":
    main()

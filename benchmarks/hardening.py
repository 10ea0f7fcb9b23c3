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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from study import (
    CLEAN,
    LOSS,
    Cells,
    Counts,
    Parts,
    SplitChips,
    StudyParser,
    change_text,
    corrupted_counts,
    difference,
    every_draw,
    figure_of,
    folder_of,
    pooled,
    recipe_by_group,
    shared_water,
    training_settings,
    value_text,
    water_counts,
    weighted_iou,
)

from seawall import registry
from seawall.attacks.suites import named_attacks, parse_suite
from seawall.attacks.transfer import Transfer
from seawall.chip_context import ChipContext
from seawall.corruptions.build import fitting_corruptions
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.metrics.bootstrap import Resamples
from seawall.metrics.worst_case import worst_ratio
from seawall.models.water_index import ThresholdNet, extreme_images
from seawall.pipeline.training import model_factory, spec_of_chips
from seawall.recipe.recipe import Recipe
from seawall.recipe.sections import MethodSection
from seawall.rng import Keys
from seawall.threat.parser import parse_threat
from seawall.types import Attack, Batch, SegmentationModel

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
    network = {} if method.model == "linear" else {"width": given.width, "depth": given.depth}
    objective = {"name": method.objective, "settings": {"loss": LOSS, **method.settings}}
    training = {**training_settings(given, given.patch, 5), **method.training}
    section: dict[str, object] = {"objective": objective, "settings": training}
    if method.pretrained:
        labels = {"name": method.objective, "settings": {**method.settings, "loss": "ce"}}
        section["pretraining"] = {"objective": labels, "settings": {"epochs": max(1, given.passes // 2)}}
    if method.objective != "supervised":  # hardened weights are selected by their multi-step figure
        section["robustness"] = {"threat": ONE, "steps": 10}
    return recipe_by_group(
        {
            "name": "hardening",
            "seed": seed,
            "model": {"name": method.model, "settings": network},
            "training": section,
        }
    )


def attacked_counts(
    model: SegmentationModel, chips: ChipFolder, ids: tuple[str, ...], attack: Attack | None, threat: str
) -> Counts:
    """Return the counts of every chip, after an attack if there is one."""
    if attack is None:
        return water_counts(model, chips, ids)

    def attacked(batch: Batch) -> Batch:
        return replace(batch, image=attack(model, batch, parse_threat(threat, model.spec), Keys(0, batch.chips)))

    return water_counts(model, chips, ids, attacked)


def exact_counts(model: ThresholdNet, chips: ChipFolder, ids: tuple[str, ...], threat: str) -> Counts:
    """Return the counts of a threshold model in its exact worst case."""
    found: Counts = {}
    for batch in whole_chips(chips, ids):
        ball = parse_threat(threat, model.spec).around(batch.image, batch.seen)
        says = torch.stack([model(image).argmax(1) == 1 for image in extreme_images(model, ball)])
        truth = batch.label == 1
        found |= shared_water(batch.chips, torch.where(truth, says.all(0), says.any(0)), truth, batch.valid)
    return found


def worst_counts(parts: list[Counts]) -> Counts:
    """Return each chip's counts under the choice of attacks that makes the pooled IoU smallest."""
    names = list(parts[0])
    top, bottom = (np.array([[part[name][i] for name in names] for part in parts], float) for i in (0, 1))
    chosen = worst_ratio(top, bottom, np.ones(top.shape, bool))[1]
    return {name: parts[int(a)][name] for name, a in zip(names, chosen, strict=True)}


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
    held: SplitChips

    @staticmethod
    def of(given: argparse.Namespace, cells: Cells, seed: int) -> Bench:
        return Bench(given, cells, seed, SplitChips.of(recipe(given, METHODS[PLAIN], seed), given.out))

    def add(self, method: str, budget: str, attack: str, counts: Counts, minutes: float) -> None:
        self.cells.add(method, self.seed, budget, attack, counts, self.held.groups, minutes)

    def missing(self, method: str, grid: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the (budget, attack) of a method that have no cell."""
        return [(budget, attack) for budget, attack in grid if not self.cells.has(method, self.seed, budget, attack)]

    def trained(self, method: str) -> tuple[SegmentationModel, float]:
        """Return the network of a method and the CPU-minutes of its training."""
        order = recipe(self.given, METHODS[method], self.seed)
        return self.held.trained(order, folder_of(self.given.out, method, self.seed))

    def threshold(self, index: str) -> ThresholdNet:
        build = model_factory(MethodSection(name="threshold", settings={"index": index}))
        return cast(ThresholdNet, build(spec_of_chips(self.held.chips)))


def measure_attacks(bench: Bench) -> None:
    """Add the clean and the attacked cells of one seed: the indices, then every method."""
    given, chips, ids = bench.given, bench.held.chips, bench.held.split.test
    for index in INDICES:
        for budget, _ in bench.missing(index, [(b, "exact") for b in ("0%", *BUDGETS)]):
            counts = exact_counts(bench.threshold(index), chips, ids, f"linf {budget} reflectance")
            bench.add(index, budget, "exact", counts, 0.0)
    plain = bench.trained(PLAIN)[0] if given.transfer else None
    grid = [("0%", CLEAN), *((budget, label_of(given)) for budget in BUDGETS)]
    for name in given.methods:
        if (given.transfer and name == PLAIN) or not (todo := bench.missing(name, grid)):
            continue
        network, minutes = bench.trained(name)
        clean = attacked_counts(network, chips, ids, None, "")
        for budget, attack in todo:
            members = attacks_of(given, plain).values() if attack != CLEAN else ()
            parts = [attacked_counts(network, chips, ids, a, f"linf {budget} reflectance") for a in members]
            bench.add(name, budget, attack, worst_counts([clean, *parts]), minutes)


SEVERITIES = (0.5, 1.0)
REFERENCE_INDEX = "mndwi"
"""Corruption errors are relative to the threshold 0 of this index."""


def measure_corruptions(bench: Bench) -> None:
    """Add the cells of one seed under every natural perturbation: the index, then every method."""
    chips, ids = bench.held.chips, bench.held.split.test
    known = fitting_corruptions(ChipContext.of(chips, chips.ids))[0]
    grid = [(f"severity {severity:g}", name) for name in known for severity in SEVERITIES]
    for method in (REFERENCE_INDEX, *bench.given.methods):
        todo = bench.missing(method, grid)
        if not todo:
            continue
        network, minutes = (bench.threshold(method), 0.0) if method in INDICES else bench.trained(method)
        for budget, name in todo:
            counts = corrupted_counts(network, chips, ids, known[name], float(budget.split()[1]))
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
        fits = (CLEAN, "exact", attack or self.attack)
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
        weights = every_draw(Resamples.over(names))
        errors = []
        for corruption in dict.fromkeys(r["attack"] for r in rows):
            lost = []
            for method in (self.method, REFERENCE_INDEX):
                every = [
                    weighted_iou([r["groups"] for r in of[method] if (r["attack"], r["budget"]) == (corruption, budget)], names, weights)
                    for budget in (f"severity {severity:g}" for severity in SEVERITIES)
                ]  # fmt: skip
                lost.append(sum(1 - iou for iou in every))
            errors.append(lost[0] / lost[1])
        return value_text(figure_of(np.mean(errors, 0)))

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
        mine = [r for r in cells.rows if r["method"] == name and r["attack"] in (CLEAN, "exact", attack)]
        seeds = sorted({r["seed"] for r in mine})
        whole = [s for s in seeds if {r["budget"] for r in mine if r["seed"] == s} == {"0%", *BUDGETS}]
        if whole:
            yield FinishedSeeds(cells, attack, name, tuple(whole))


def table(cells: Cells, attack: str) -> Iterator[str]:
    """Yield the lines of the table: pooled over the seeds, with intervals over groups; ⚑ where the transfer attack does more."""
    yield "| method | seeds | " + " | ".join(("clean", *BUDGETS)) + " | mean CE | CPU-min |"
    yield "|---|" + "---|" * (len(BUDGETS) + 4)
    for done in finished(cells, attack):
        shown = " | ".join(
            value_text(pooled(done.parts(done.method, budget))) + done.flag(budget) for budget in ("0%", *BUDGETS)
        )
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
        shown = " | ".join(map(change_text, found))
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
        shown = " | ".join(change_text(difference(*pair)) for pair in pairs)
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
    ask = StudyParser(__doc__, "runs/hardening")
    ask.add_names("--methods", METHODS)
    ask.add_seeds()
    ask.add_training(passes=20, steps=30, width=16)
    ask.add_argument("--depth", type=int, default=3)
    ask.add_argument("--patch", type=int, default=96)
    ask.add_argument("--suite", default="", help='such as "seawall passes=30"; else PGD-20')
    ask.add_argument(
        "--transfer", action="store_true", help="attack the plain network of the seed instead of the method's"
    )
    ask.add_argument("--corruptions", action="store_true", help="measure natural perturbations instead of attacks")
    ask.add_table("table")
    ask.add_threads()
    return ask.parse_args()


if __name__ == "__main__":
    main()

"""Whether uncertainty notices attacks on held-out places, plain and adaptive, and whether scenes unlike the training ones raise the flag.

Trains plain networks and one with dropout on the real chips (SEAWALL_DATA) or on simulated scenes, split by group, and attacks the held-out
chips through the whole predictor: one pass, the eight symmetries, dropout at inference, an ensemble of three. Detectors are fitted to
clean chips of other groups (`seawall detect-attacks`). Every finished cell is a JSON line in `--out`; a run that was stopped goes on.

One pass: 2 minutes of one core per seed and budget for a U-Net of width 8 and 33 chips of 128 pixels, of which the attacks that know the
detector take 1.5. Several passes cost as many times as much: they get a chip per group, half the steps and the largest budget, and take 1 to 3
minutes per seed. With the trainings, 12 of half a minute, all of it is 45 minutes.

    python benchmarks/attack_detection.py --out runs/attack-detection                   # attacks
    python benchmarks/attack_detection.py --out runs/attack-detection --scenes          # scenes unlike the training scenes
    python benchmarks/attack_detection.py --out runs/attack-detection --table           # print what is there
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from study import (
    LOSS,
    JsonLines,
    SplitChips,
    StudyParser,
    folder_of,
    quiet_run,
    real_or_simulated,
    recipe_by_group,
    training_settings,
)

from seawall import registry
from seawall.attacks.undetected import UndetectedPGD
from seawall.chip_context import ChipContext
from seawall.corruptions.build import build_corruption
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.evaluation.case import Case
from seawall.evaluation.detection import (
    ChipReadings,
    DetectorAware,
    HeldOutDetectors,
    measure_detection,
    read_chips,
)
from seawall.metrics.detection import auroc, grouped_rate
from seawall.pipeline.data import load_chips
from seawall.pipeline.detect_attacks import named_detection_attacks
from seawall.recipe.recipe import Recipe, make_recipe
from seawall.rng import Keys
from seawall.threat.parser import parse_threat
from seawall.types import Batch, SegmentationModel
from seawall.uncertainty.attack_detection import ALL_FEATURES
from seawall.uncertainty.ensemble import mean_of_networks
from seawall.uncertainty.scene_statistics import (
    WINDOW_PIXELS,
    SceneStatistics,
    collect_windows,
    entry_names,
    fit_scene_statistics,
)

ALARMS = 0.05
MEMBERS = 3
DROPOUT = 0.2
PREDICTORS = {"softmax": "softmax", "tta": "tta", "mc-dropout": "mc-dropout passes=5", "ensemble": ""}
BUDGETS = ("0.5%", "1%", "2%")
SHOWN = (ALL_FEATURES, "entropy", "mutual information", "noise floor")
FEWER_STEPS: Mapping[str, int] = {"steps": 10}
"""Of the attacks through several passes."""


def recipe(given: argparse.Namespace, seed: int, member: int = 0, dropout: float = 0.0) -> Recipe:
    """Return what one network is trained by; a member of an ensemble has weights and patches of its own."""
    section = {
        "objective": {"name": "supervised", "settings": {"loss": LOSS}},
        "settings": training_settings(given, 64, 5),
    }
    return recipe_by_group(
        {
            "name": "attack-detection", "seed": seed + 100 * member, "training": section,
            "model": {"name": "unet", "settings": {"width": given.width, "dropout": dropout}},
        }
    )  # fmt: skip


def predictor_of(given: argparse.Namespace, held: SplitChips, seed: int, name: str) -> SegmentationModel:
    """Return a predictor of the networks of one seed."""

    def trained(what: str, member: int = 0, dropout: float = 0.0) -> SegmentationModel:
        return held.trained(recipe(given, seed, member, dropout), folder_of(given.out, what, seed))[0]

    if name == "ensemble":
        first, *others = (trained(f"plain-{member}", member) for member in range(MEMBERS))
        return cast(SegmentationModel, mean_of_networks(first, others).eval())
    inner = trained("dropout", dropout=DROPOUT) if name == "mc-dropout" else trained("plain-0")
    wrapper = registry.build("uncertainty", *registry.parse_settings("uncertainty", PREDICTORS[name]))
    return cast(SegmentationModel, wrapper(inner).eval())


class Study(JsonLines):
    """The finished cells: the scores and flags of every chip under one attack, by one detector each."""

    def has(self, **wanted: object) -> bool:
        return any(all(row.get(key) == value for key, value in wanted.items()) for row in self.rows)


def shortened(attack: object, several_passes: bool) -> object:
    """Return an attack with fewer steps where every step takes several passes."""
    if not several_passes:
        return attack
    if isinstance(attack, DetectorAware):
        return replace(attack, settings=UndetectedPGD(steps=2 * FEWER_STEPS["steps"], step=0.2))
    return replace(attack, **FEWER_STEPS)  # type: ignore[type-var]


def measure_attacks(given: argparse.Namespace, cells: Study, seed: int, name: str) -> None:
    """Add the cells of one predictor of one seed."""
    held = SplitChips.of(recipe(given, seed), given.out)
    model = predictor_of(given, held, seed, name)
    chips = held.chips.with_bands(model.spec.bands)
    groups = {id_: chips.row(id_).group for id_ in chips.ids}
    several = name != "softmax"
    clean = read_chips(model, whole_chips(chips, held.split.test), groups)
    more = read_chips(model, whole_chips(chips, held.split.val), groups)
    detectors = {each: HeldOutDetectors.of(clean, more, each, ALARMS) for each in (ALL_FEATURES, *clean.names)}
    attacked = one_per_group(held, given.chips) if several else held.split.test
    beside = clean if not several else read_chips(model, whole_chips(chips, attacked), groups)
    for budget in given.budgets[-1:] if several else given.budgets:
        threat = parse_threat(f"linf {budget} reflectance", model.spec)
        for attack, method in named_detection_attacks((), detectors, groups, True).items():
            if cells.has(predictor=name, seed=seed, budget=budget, attack=attack):
                continue
            began = time.process_time()
            case = Case(attack, shortened(method, several), threat)  # type: ignore[arg-type]
            found = read_chips(model, whole_chips(chips, attacked), groups, case, seed)
            for row in rows_of(detectors, beside, found):
                cells.append({"predictor": name, "seed": seed, "budget": budget, "attack": attack, **row})
            print(name, seed, budget, attack, f"{(time.process_time() - began) / 60:.1f} minutes", flush=True)


def one_per_group(held: SplitChips, most: int) -> tuple[str, ...]:
    """Return the first chip of each held-out group, and further ones up to a number."""
    first = list({group: id_ for id_, group in reversed(held.groups.items())}.values())
    rest = [id_ for id_ in held.split.test if id_ not in first]
    return tuple(sorted((first + rest)[: max(most, len(first))]))


def rows_of(
    detectors: Mapping[str, HeldOutDetectors], clean: ChipReadings, attacked: ChipReadings
) -> Iterator[dict[str, object]]:
    """Yield a row per detector, with what the tables need of every chip."""
    figures = {"iou_clean": clean.iou(1), "iou": attacked.iou(1), "ece_clean": clean.ece, "ece": attacked.ece}
    for name, one in detectors.items():
        found = measure_detection(one, clean, attacked)
        yield {
            "detector": name, "groups": list(clean.groups), "clean": one.scores(clean).tolist(), "attacked": one.scores(attacked).tolist(),
            "flagged": one.flags(attacked).tolist(), "alarms": one.flags(clean).tolist(),
            "harmed": (clean.accuracy - attacked.accuracy).tolist(), "success": found.success, "unnoticed": found.unnoticed, **figures,
        }  # fmt: skip


CHANGES: Mapping[str, Callable[[Batch], Batch]] = {
    "numbers times 10000": lambda batch: replace(batch, image=batch.image * 10000),
    "numbers times 2": lambda batch: replace(batch, image=batch.image * 2),
    "numbers times 0.5": lambda batch: replace(batch, image=batch.image * 0.5),
    "forgotten offset, +0.1": lambda batch: replace(batch, image=batch.image + 0.1),
    "infrared 40 % lower (B8A)": lambda batch: replace(batch, image=batch.image * band_factors(batch)),
}
CORRUPTIONS = {
    "haze": (0.25, 0.5, 1.0), "cirrus": (0.5, 1.0), "clouds": (0.25, 1.0), "glint": (0.5, 1.0), "ice": (0.5, 1.0), "snow": (0.25, 1.0),
    "shot-noise": (0.5, 1.0), "defocus": (0.5, 1.0),
}  # fmt: skip


def band_factors(batch: Batch) -> torch.Tensor:
    """Return a factor per band, 0.6 in the near infrared: vegetation in another season."""
    return torch.tensor([0.6 if band == "B8A" else 1.0 for band in batch.bands]).view(1, -1, 1, 1)


def measure_scenes(given: argparse.Namespace, cells: JsonLines, seed: int) -> None:
    """Add the scores and p-values of the held-out scenes of one seed, as they are and after each change."""
    held = SplitChips.of(recipe(given, seed), given.out)
    chips = held.chips
    groups = {id_: chips.row(id_).group for id_ in chips.ids}
    context = ChipContext(chips.gsd_m, chips.bands, chips.unit, chips.classes)
    learned = [id_ for part in ("train", "val") for id_ in held.split.parts()[part]]
    windows = collect_windows(whole_chips(chips, learned), groups, chips.bands, chips.unit, WINDOW_PIXELS)
    statistics = fit_scene_statistics(windows, entry_names(chips.bands, chips.unit), WINDOW_PIXELS, ALARMS)
    changes: dict[str, Callable[[Batch], Batch]] = {"as they are": lambda batch: batch, **CHANGES}
    for name, severities in CORRUPTIONS.items():
        corruption = build_corruption(name, {}, context)
        for severity in severities:
            changes[f"{name}, severity {severity:g} ({corruption.quantity} {corruption.level(severity):.3g})"] = (
                lambda batch, made=corruption, at=severity: made(batch, at, Keys(0, batch.chips))
            )
    found = {name: judged(statistics, chips, held.split.test, groups, change) for name, change in changes.items()}
    for name, others in other_sensors(given, chips.bands).items():
        own = {id_: others.row(id_).group for id_ in others.ids}
        found[f"Sentinel-2 at 10 m, {name}"] = judged(statistics, others, others.ids, own, changes["as they are"])
    for name, row in found.items():
        cells.append(
            {"seed": seed, "change": name, "training scenes": len(windows), "realized": statistics.realized, **row}
        )


def other_sensors(given: argparse.Namespace, bands: tuple[str, ...]) -> dict[str, ChipFolder]:
    """Return the real chips of Sentinel-2 at 10 m, by data set: another sensor than HLS at 30 m, other places and land cover."""
    if not os.environ.get("SEAWALL_DATA"):
        return {}
    found = {}
    for name in ("sen1floods11", "terramesh", "ssl4eo", "hydro"):
        data = {**real_or_simulated(f"{name}_"), "sensor": "s2", "bands": list(bands), "labels": "ndwi > 0"}
        run = quiet_run(make_recipe({"name": name, "data": data}), given.out / name)
        found[name] = load_chips(run, given.out / name / "chips")[0]
    return found


def judged(
    statistics: SceneStatistics, chips: ChipFolder, ids: tuple[str, ...], groups: Mapping[str, str], change: Callable[[Batch], Batch]
) -> dict[str, object]:  # fmt: skip
    """Return what the statistics say of the scenes of chips after a change."""
    batches = (change(replace(batch, bands=chips.bands)) for batch in whole_chips(chips, ids))
    windows = collect_windows(batches, groups, chips.bands, chips.unit, statistics.window)
    found = {scene: statistics.judge(windows[scene]) for scene in sorted(windows)}
    return {
        "scenes": list(found), "scores": [one.score for one in found.values()], "unusual": [one.unusual for one in found.values()],
        "cause": next((one.causes[0] for one in found.values() if one.unusual), ""),
    }  # fmt: skip


def attack_table(cells: Study) -> Iterator[str]:
    """Yield the lines of the table of attacks: means over the seeds, intervals over places that are redrawn in all seeds alike."""
    yield (
        "| predictor, budget | attack | IoU | ECE | harmed | unnoticed | "
        + " | ".join(f"{name}: AUROC (95 %), detected" for name in SHOWN)
        + " |"
    )
    yield "|---" * (6 + len(SHOWN)) + "|"
    found = dict.fromkeys((r["predictor"], r["budget"], r["attack"]) for r in cells.rows)
    for predictor, budget, attack in sorted(found, key=lambda at: ([*PREDICTORS].index(at[0]), BUDGETS.index(at[1]))):
        rows = [r for r in cells.rows if (r["predictor"], r["budget"], r["attack"]) == (predictor, budget, attack)]
        by_detector = {name: [r for r in rows if r["detector"] == name] for name in SHOWN}
        whole = by_detector[ALL_FEATURES]
        figures = [
            *(f"{mean_of(whole, name + '_clean'):.3f}, {mean_of(whole, name):.3f}" for name in ("iou", "ece")),
            *(f"{mean_of(whole, name):.2f}" for name in ("success", "unnoticed")),
            *(detection_text(own) for own in by_detector.values()),
        ]
        yield f"| {predictor}, {budget}, {len(whole)} seeds | {attack} | {' | '.join(figures)} |"


def alarm_lines(cells: Study) -> Iterator[str]:
    """Yield the false alarms of each predictor and detector, over the seeds, with their interval over places."""
    for predictor in dict.fromkeys(row["predictor"] for row in cells.rows):
        own = [row for row in cells.rows if row["predictor"] == predictor]
        once = [row for row in own if (row["budget"], row["attack"]) == (own[-1]["budget"], own[0]["attack"])]
        for name in SHOWN:
            rows = [row for row in once if row["detector"] == name]
            if rows:
                groups, alarms = joined(rows, "groups"), joined(rows, "alarms")
                rate = grouped_rate(alarms.astype(bool), groups.tolist())
                yield f"false alarms, {predictor}, {name}: {rate.value[0]:.3f} ({rate.low[0]:.2f} to {rate.high[0]:.2f})"


def mean_of(rows: list[dict[str, object]], key: str) -> float:
    return float(np.mean([cast(float, row[key]) for row in rows]))


def joined(rows: list[dict[str, object]], key: str) -> np.ndarray:
    """Return what the chips of all seeds have, one after the other."""
    return np.concatenate([np.asarray(row[key]) for row in rows])


def detection_text(rows: list[dict[str, object]]) -> str:
    """Return AUROC, the mean over seeds, with its interval, and the detected share."""
    if not rows:
        return ""
    groups, clean, attacked = (joined(rows, key) for key in ("groups", "clean", "attacked"))
    names, at = np.unique(groups, return_inverse=True)
    seed = np.concatenate([np.full(len(cast(list[str], row["groups"])), i) for i, row in enumerate(rows)])
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), 300)

    def mean_auroc(weights: np.ndarray) -> float:
        picked = (np.repeat(np.flatnonzero(seed == one), weights[at[seed == one]]) for one in range(len(rows)))
        return float(np.mean([auroc(attacked[own], clean[own]) or np.nan for own in picked if len(own)]))

    low, high = np.nanpercentile([mean_auroc(weights) for weights in draws], [2.5, 97.5])
    found = grouped_rate(joined(rows, "flagged").astype(bool), groups.tolist()).value[0]
    return f"{mean_auroc(np.ones(len(names), int)):.2f} ({low:.2f} to {high:.2f}), {found:.2f}"


def scene_table(cells: JsonLines) -> Iterator[str]:
    """Yield the lines of the table of scenes: AUROC against the same scenes as they are, and the flagged share with its interval over places."""
    yield "| held-out scenes | AUROC | flagged at 5 % (95 %) | first cause, of one scene |"
    yield "|---|---|---|---|"
    plain = {row["seed"]: row["scores"] for row in cells.rows if row["change"] == "as they are"}
    for name in dict.fromkeys(row["change"] for row in cells.rows):
        rows = [row for row in cells.rows if row["change"] == name]
        area = np.mean([auroc(np.array(row["scores"]), np.array(plain[row["seed"]])) or np.nan for row in rows])
        groups = [scene for row in rows for scene in row["scenes"]]
        rate = grouped_rate(np.concatenate([np.array(row["unusual"], bool) for row in rows]), groups)
        cause = next((row["cause"] for row in rows if row["cause"]), "")
        yield f"| {name} | {area:.2f} | {rate.value[0]:.2f} ({rate.low[0]:.2f} to {rate.high[0]:.2f}) | {cause} |"


def main() -> None:
    parser = StudyParser(__doc__, "runs/attack-detection")
    parser.add_names("--predictors", PREDICTORS)
    parser.add_names("--budgets", BUDGETS)
    parser.add_seeds()
    parser.add_training(20, 30)
    parser.add_argument("--chips", type=int, default=12, help="chips that are attacked through several passes")
    parser.add_argument(
        "--scenes", action="store_true", help="measure scenes unlike the training scenes instead of attacks"
    )
    parser.add_table()
    parser.add_threads()
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    attacks, scenes = Study(given.out / "attacks.jsonl"), JsonLines(given.out / "scenes.jsonl")
    if given.table:
        print("\n".join([*attack_table(attacks), "", *alarm_lines(attacks), "", *scene_table(scenes)]))
        return
    for seed in given.seeds:
        if given.scenes:
            measure_scenes(given, scenes, seed)
            continue
        for name in given.predictors:
            measure_attacks(given, attacks, seed, name)


if __name__ == "__main__":
    main()

"""Do guarantees and area intervals hold over places? Realized risks and coverage over resampled splits of places.

Every place is predicted by networks that were not trained on it (the folds of `cross_validation.py`, one network per fold and seed), and
scored as a scene. Then places are split a thousand times into calibration (three quarters) and new ones: a set or an interval is calibrated
on the first and measured on the others. Scores are kept in `--out`, and a run that was stopped goes on where it stopped.

- risks: the share that is missed, or wrongly held, on new places, against the nominal one, by probability and by distance
- areas: how often the interval holds the area of a new place, and how wide it is; also on quarters of chips, by intervals of whole places
- estimators: how far the mapped, the corrected and Olofsson's area are off on places that are left out
- shift: the same where new places are drawn with a probability that grows or falls with their water share, with and without weights
- scales: what the error of an area is relative to

    python benchmarks/coverage.py --out runs/coverage                 # about 30 minutes on one core, nearly all for the networks
    python benchmarks/coverage.py --out runs/coverage --table

SEAWALL_DATA names the folder of the real chips.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from cross_validation import DATA, CrossValidation
from study import JsonLines, StudyParser
from torch import nn

from seawall.arrays import DoubleArray
from seawall.data.loader import whole_chips
from seawall.errors import DataError
from seawall.types import Batch, ModelSpec, SegmentationModel
from seawall.uncertainty.area import DOUBT_FLOOR, AreaCalibration, AreaSums, area_interval, estimate_area
from seawall.uncertainty.conformal import Risk, SceneWeights, conformal_quantile, control_risk
from seawall.uncertainty.covariate_shift import CovariateShift
from seawall.uncertainty.scene_scores import SceneScores, score_scenes

VARIANT = "index inputs"
CALIBRATION_SHARE = 0.75
ALPHAS = (0.05, 0.1, 0.2)
LEVELS = (0.8, 0.9)
TILT = 3.0
"""New places are drawn with probabilities in proportion to exp(tilt x water share), with this tilt or its negative."""
WET = 0.01
"""Water share of the places of the second table of risks: elsewhere a few missed pixels are all of the water."""
CURVES = ("missed", "alarmed", "missed_beyond", "alarmed_beyond")

Column = DoubleArray
SCALES: Mapping[str, Callable[[Column, Column, Column], Column]] = {
    "seen area": lambda mapped, doubt, seen: seen,
    "mapped + 1 % of seen": lambda mapped, doubt, seen: mapped + 0.01 * seen,
    "doubt": lambda mapped, doubt, seen: doubt,
    "doubt + 1 % of seen": lambda mapped, doubt, seen: doubt + 0.01 * seen,
    "doubt + 5 % of mapped": lambda mapped, doubt, seen: doubt + 0.05 * mapped,
    "mapped x unmapped / seen + 1 % of seen": lambda mapped, doubt, seen: mapped * (1 - mapped / seen) + 0.01 * seen,
    "root of doubt x seen": lambda mapped, doubt, seen: np.sqrt(doubt * seen),
    "the same with the floor": lambda mapped, doubt, seen: np.sqrt((doubt + DOUBT_FLOOR * seen) * seen),
}  # fmt: skip
"""Scales of the error of an area, by the mapped area, the sum of p (1 - p) and the seen area."""


class GivenLogits(nn.Module):
    """A network whose image is the logits of another."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def quarters(model: SegmentationModel, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the quarters of every chip with the logits of the whole chip, as chips of their own."""
    for batch in batches:
        with torch.no_grad():
            logits = model(batch.image)
        half = (logits.shape[2] // 2, logits.shape[3] // 2)
        for at, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            part = (
                ...,
                slice(half[0], None) if down else slice(half[0]),
                slice(half[1], None) if right else slice(half[1]),
            )
            names = tuple(f"{chip}/{at}" for chip in batch.chips)
            yield Batch(logits[part], batch.label[part], batch.seen[part], batch.valid[part], names)


def as_row(score: SceneScores) -> dict[str, object]:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(score).items()}


def from_row(row: Mapping[str, Any]) -> SceneScores:
    curves = {name: None if row[name] is None else np.array(row[name]) for name in CURVES}
    return SceneScores(**{**row, **curves})


@dataclass(frozen=True)
class ScoredPlaces:
    """The scores of all places of a data set by networks of one seed that were not trained on them.

    Args:
        places: One score per place.
        parts: Scores of the quarters of their chips, without curves.
        gsd_m: Meters per pixel.
    """

    places: tuple[SceneScores, ...]
    parts: tuple[SceneScores, ...]
    gsd_m: float


def score_places(given: argparse.Namespace, data: str, seed: int) -> ScoredPlaces:
    """Return the scores, after training and scoring what is missing."""
    kept = JsonLines(given.out / f"scores-{data}-s{seed}.jsonl")
    found = {row["fold"]: row for row in kept.rows}
    if len(found) < given.folds:
        bench = CrossValidation.of(given, data)
        groups = {row.id: row.group for row in bench.chips.rows}
        for number, fold in enumerate(bench.folds()):
            if number in found:
                continue
            model, _ = bench.trained(VARIANT, seed, number, fold)
            chips = bench.chips.with_bands(model.spec.bands)
            places = score_scenes(model, whole_chips(chips, fold.test), groups, "water", chips.gsd_m)
            cut = quarters(model, whole_chips(chips, fold.test))
            inside = {f"{id_}/{at}": f"{groups[id_]}|{id_}/{at}" for id_ in fold.test for at in range(4)}
            parts = score_scenes(cast(SegmentationModel, GivenLogits(model.spec)), cut, inside, "water", chips.gsd_m)
            bare = [replace(part, missed=None, alarmed=None, missed_beyond=None, alarmed_beyond=None) for part in parts]
            kept.append(
                {
                    "fold": number,
                    "gsd_m": chips.gsd_m,
                    "places": [as_row(one) for one in places],
                    "parts": [as_row(one) for one in bare],
                }
            )
            print(f"{data} seed {seed} fold {number}", flush=True)
    rows = kept.rows
    return ScoredPlaces(
        tuple(from_row(one) for row in rows for one in row["places"]), tuple(from_row(one) for row in rows for one in row["parts"]), rows[0]["gsd_m"]
    )  # fmt: skip


def splits(count: int, given: argparse.Namespace) -> Iterator[tuple[list[int], list[int]]]:
    """Yield calibration and new places, by their numbers."""
    rng, size = np.random.default_rng(0), round(CALIBRATION_SHARE * count)
    for _ in range(given.splits):
        order = rng.permutation(count).tolist()
        yield order[:size], order[size:]


def realized(score: SceneScores, risk: Risk, at: float | None, gsd_m: float) -> float | None:
    """Return the share of a place that is wrong at a threshold or a distance; None without a pixel that it is a share of.

    Where the risk is infeasible nothing is told of any pixel, so that nothing is wrong.
    """
    name = {"miss": "missed", "false-alarm": "alarmed"}[risk.name] + ("_beyond" if risk.by_distance else "")
    curve = getattr(score, name)
    if curve is None or at is None:
        return None if curve is None else 0.0
    return float(curve[round(at / gsd_m) if risk.by_distance else round(at * 1000)])


def unsure_share(score: SceneScores, risk: Risk, at: float) -> float:
    """Return the share of a place between a threshold and 0.5, which cannot be told."""

    def above(step: int) -> float:
        hit = 0.0 if score.missed is None else score.true_km2 * float(1 - score.missed[step])
        return hit + (0.0 if score.alarmed is None else (score.valid_km2 - score.true_km2) * float(score.alarmed[step]))

    return abs(above(round(at * 1000)) - above(500)) / score.valid_km2


def draw_weights(scores: Sequence[SceneScores], tilt: float) -> DoubleArray:
    """Return how likely each place is as a new one."""
    return np.exp(tilt * np.array([score.true_km2 / score.valid_km2 for score in scores]))


def shift_of(scores: Sequence[SceneScores], likely: DoubleArray) -> CovariateShift:
    """Return what a user states: the mean mapped share of new places."""
    return CovariateShift(float(np.average([score.mapped_km2 / score.valid_km2 for score in scores], weights=likely)))


def stated_weights(shift: CovariateShift | None, scores: Sequence[SceneScores]) -> SceneWeights | None:
    """Return the weights by a stated shift; all of the weight on the new place, so that nothing is guaranteed, where it is out of reach."""
    try:
        return None if shift is None else shift.weights(scores)
    except DataError:
        return SceneWeights((1e-9,) * len(scores), 1.0)


@dataclass(frozen=True)
class RiskFigures:
    """What a risk came out as over splits.

    Args:
        mean: Realized share over all splits, 0 in those where the risk is infeasible; NaN where it always is.
        by_split: Realized share of each split where it is feasible.
        infeasible: Share of the splits where it is not.
        extra: Mean share of a new place that cannot be told, or the mean distance.
        effective: Mean effective number of calibration places.
    """

    mean: float
    by_split: DoubleArray
    infeasible: float
    extra: float
    effective: float


def risk_over_splits(
    given: argparse.Namespace, scored: ScoredPlaces, risk: Risk, tilt: float = 0.0, weighted: bool = False
) -> RiskFigures:
    """Return the realized risk on new places that are drawn with a tilt."""
    scores = scored.places
    likely = draw_weights(scores, tilt)
    shift = shift_of(scores, likely) if weighted else None
    sums, by_split, extra, effective, infeasible = np.zeros(2), [], [], [], 0
    for old, new in splits(len(scores), given):
        chosen = [scores[i] for i in old]
        found = control_risk(risk, chosen, scored.gsd_m, stated_weights(shift, chosen))
        effective.append(found.effective)
        shares = {i: share for i in new if (share := realized(scores[i], risk, found.at, scored.gsd_m)) is not None}
        mine, values = likely[list(shares)], np.array(list(shares.values()))
        sums += (mine @ values, mine.sum())
        if found.at is None:
            infeasible += 1
            continue
        if shares:
            by_split.append(float(np.average(values, weights=mine)))
        extra.append(
            found.at if risk.by_distance else float(np.mean([unsure_share(scores[i], risk, found.at) for i in new]))
        )
    mean = float(sums[0] / sums[1]) if infeasible < given.splits else float("nan")
    return RiskFigures(
        mean,
        np.array(by_split),
        infeasible / given.splits,
        float(np.mean(extra)) if extra else float("nan"),
        float(np.mean(effective)),
    )


def plain_risk(scored: ScoredPlaces, risk: Risk) -> float:
    """Return the mean share of all places that is wrong in the map itself."""
    at = 0.0 if risk.by_distance else 0.5
    return float(
        np.mean([share for score in scored.places if (share := realized(score, risk, at, scored.gsd_m)) is not None])
    )


@dataclass(frozen=True)
class AreaFigures:
    """How often intervals held the area of new places, their mean width over the mean area, of places and of quarters, and infeasible splits."""

    held: float
    width: float
    parts_held: float
    parts_width: float
    infeasible: float


def area_over_splits(
    given: argparse.Namespace, scored: ScoredPlaces, level: float, tilt: float = 0.0, weighted: bool = False
) -> AreaFigures:
    """Return coverage and width of area intervals of new places that are drawn with a tilt."""
    scores = scored.places
    likely = draw_weights(scores, tilt)
    shift = shift_of(scores, likely) if weighted else None
    number = {score.scene: at for at, score in enumerate(scores)}
    home = [(part, number[part.scene.split("|")[0]]) for part in scored.parts]
    found, parts_found, infeasible = [], [], 0
    for old, new in splits(len(scores), given):
        chosen, others = [scores[i] for i in old], set(new)
        calibration = AreaCalibration.of_scores(chosen, scored.gsd_m, stated_weights(shift, chosen))
        if (multiple := calibration.error_multiple(level)) is None:
            infeasible += 1
            continue
        found += [_held(scores[i], multiple, likely[i]) for i in new]
        parts_found += [_held(part, multiple, 1.0) for part, at in home if at in others]
    held, width = _summary(np.array(found))
    parts_held, parts_width = _summary(np.array(parts_found))
    return AreaFigures(held, width, parts_held, parts_width, infeasible / given.splits)


def _held(score: SceneScores, multiple: float, weight: float) -> tuple[float, float, float, float]:
    low, high = area_interval(AreaSums.of(score), multiple)
    return float(low - 1e-9 <= score.true_km2 <= high + 1e-9), high - low, score.true_km2, weight


def _summary(rows: DoubleArray) -> tuple[float, float]:
    if not len(rows):
        return float("nan"), float("nan")
    held, width, area, weight = rows.T
    return float(weight @ held / weight.sum()), float(weight @ width / (weight @ area))


def compare_scales(scored: Sequence[ScoredPlaces]) -> Iterator[str]:
    """Yield a table of the scales: coverage and width of intervals by the other places, each place left out once."""
    yield "| error relative to | interval | 80 %: held | width / area | median width / seen | 90 %: held | width / area | median width / seen |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, scale in SCALES.items():
        for kind in ("both sides alike", "each side"):
            cells = []
            for level in LEVELS:
                rows = np.concatenate([_left_out(one.places, scale, level, kind == "each side") for one in scored])
                held, width, true, seen = rows.T
                cells.append(f"{held.mean():.2f} | {width.sum() / true.sum():.2f} | {np.median(width / seen):.1%}")
            yield f"| {name} | {kind} | " + " | ".join(cells) + " |"


def _left_out(
    places: Sequence[SceneScores], scale: Callable[[Column, Column, Column], Column], level: float, sides: bool
) -> DoubleArray:
    """Return (n, 4): whether the interval holds the area, its width, the area and what was seen."""
    true, mapped, doubt, seen = (
        np.array([getattr(one, name) for one in places])
        for name in ("true_km2", "mapped_km2", "doubt_km2", "valid_km2")
    )
    unit = np.maximum(scale(mapped, doubt, seen), 1e-12)
    errors, rows = (true - mapped) / unit, []
    for i in range(len(places)):
        others = np.delete(errors, i)
        if sides:
            up, down = (conformal_quantile(sign * others, (1 + level) / 2) for sign in (1, -1))
        else:
            up = down = conformal_quantile(np.abs(others), level)
        low = 0.0 if down is None else float(np.clip(mapped[i] - down * unit[i], 0, seen[i]))
        high = float(seen[i]) if up is None else float(np.clip(mapped[i] + up * unit[i], 0, seen[i]))
        rows.append((low - 1e-9 <= true[i] <= high + 1e-9, high - low, true[i], seen[i]))
    return np.array(rows, np.float64)


def estimator_table(given: argparse.Namespace, scored: Sequence[ScoredPlaces], data: str) -> Iterator[str]:
    """Yield how far the estimates of an area are off on places that are left out, and how often 1.645 standard errors hold it."""
    yield f"| {data}: estimate | sum / true sum | mean error / mean area | held by 90 % of its standard error: pixels | scenes |"
    yield "|---|---|---|---|---|"
    pairs = [
        (
            place,
            estimate_area(
                AreaSums.of(place), AreaCalibration.of_scores([*one.places[:i], *one.places[i + 1 :]], one.gsd_m)
            ),
        )
        for one in scored
        for i, place in enumerate(one.places)
    ]
    true = np.array([place.true_km2 for place, _ in pairs])
    for name in ("mapped_km2", "expected_km2", "corrected_km2", "stratified_km2"):
        got = np.array([getattr(place if name == "expected_km2" else found, name) for place, found in pairs], float)
        cells = [f"{got.sum() / true.sum():.2f}", f"{np.abs(got - true).mean() / true.mean():.2f}", "", ""]
        if name == "stratified_km2":
            for at, error in ((2, "pixel_se_km2"), (3, "scene_se_km2")):
                near = np.array([getattr(found, error) for _, found in pairs], float) * 1.645
                cells[at] = f"{np.mean(np.abs(got - true) <= near):.0%}"
        yield f"| {name.removesuffix('_km2')} | " + " | ".join(cells) + " |"


def percent(values: Sequence[float]) -> str:
    """Return the mean over the seeds where it is defined."""
    return f"{finite_mean(values):.1%}" if np.isfinite(values).any() else "-"


def held_text(found: Sequence[AreaFigures]) -> str:
    """Return coverage and width over the seeds; "-" without an interval."""
    held, width = percent([one.held for one in found]), finite_mean([one.width for one in found])
    return f"{held} held, width {width:.2f}" if np.isfinite(width) else "-"


def finite_mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values; NaN without any."""
    shown = [value for value in values if np.isfinite(value)]
    return float(np.mean(shown)) if shown else float("nan")


def wet_places(scored: ScoredPlaces) -> ScoredPlaces:
    """Return the places of which at least a share is water, for a guarantee about such places alone."""
    return replace(scored, places=tuple(one for one in scored.places if one.true_km2 >= WET * one.valid_km2))


def wet_table(given: argparse.Namespace, scored: Sequence[ScoredPlaces], data: str) -> Iterator[str]:
    """Yield the risks of places with some water."""
    wet = [wet_places(one) for one in scored]
    yield from risk_table(given, wet, f"{data}, {len(wet[0].places)} places with {WET:.0%} water or more")


def risk_table(given: argparse.Namespace, scored: Sequence[ScoredPlaces], data: str) -> Iterator[str]:
    """Yield the realized risks beside the nominal ones."""
    yield f"| {data}: risk | of the map itself | realized on new places | 5 to 95 % of splits | cannot be told, or meters | infeasible |"
    yield "|---|---|---|---|---|---|"
    for by_distance in (False, True):
        for name in ("miss", "false-alarm"):
            for alpha in ALPHAS:
                risk = Risk(cast(Any, name), alpha, by_distance)
                found = [risk_over_splits(given, one, risk) for one in scored]
                every = np.concatenate([one.by_split for one in found])
                spread = "{:.1%} to {:.1%}".format(*np.quantile(every, (0.05, 0.95))) if len(every) else "-"
                extra = [one.extra for one in found]
                size = f"{finite_mean(extra):.0f} m" if by_distance and np.isfinite(extra).any() else percent(extra)
                yield (
                    f"| {risk} | {percent([plain_risk(one, risk) for one in scored])} | {percent([one.mean for one in found])} | {spread} | {size} | "
                    f"{np.mean([one.infeasible for one in found]):.0%} |"
                )


def area_table(given: argparse.Namespace, scored: Sequence[ScoredPlaces], data: str) -> Iterator[str]:
    """Yield how often intervals hold the area, of places and of quarters of chips."""
    yield f"| {data}: level | held on new places | mean width / mean area | held on quarters of chips | their width / area |"
    yield "|---|---|---|---|---|"
    for level in LEVELS:
        found = [area_over_splits(given, one, level) for one in scored]
        held, width, parts, parts_width = (
            [getattr(one, name) for one in found] for name in ("held", "width", "parts_held", "parts_width")
        )
        yield f"| {level:.0%} | {percent(held)} | {np.mean(width):.2f} | {percent(parts)} | {np.mean(parts_width):.2f} |"


def shift_table(given: argparse.Namespace, scored: Sequence[ScoredPlaces], data: str) -> Iterator[str]:
    """Yield risks and areas of new places that have another water share, with and without weights."""
    yield f"| {data}: new places | what | without weights | infeasible | with weights | infeasible | effective places |"
    yield "|---|---|---|---|---|---|---|"
    for tilt in (-TILT, TILT):
        shares = [
            tuple(
                np.average([s.mapped_km2 / s.valid_km2 for s in one.places], weights=draw_weights(one.places, t))
                for t in (0.0, tilt)
            )
            for one in scored
        ]
        drawn = "{:.0%} water instead of {:.0%}".format(*np.mean(shares, 0)[::-1])
        for risk in (Risk("miss", 0.1), Risk("miss", 0.2), Risk("false-alarm", 0.1), Risk("miss", 0.2, True)):
            plain, weighted = (
                [risk_over_splits(given, one, risk, tilt, use) for one in scored] for use in (False, True)
            )
            yield (
                f"| {drawn} | {risk} | {percent([one.mean for one in plain])} | {np.mean([one.infeasible for one in plain]):.0%} | "
                f"{percent([one.mean for one in weighted])} | {np.mean([one.infeasible for one in weighted]):.0%} | {np.mean([one.effective for one in weighted]):.1f} |"
            )
        for level in LEVELS:
            before, after = (
                [area_over_splits(given, one, level, tilt, use) for one in scored] for use in (False, True)
            )
            cells = [f"{held_text(each)} | {np.mean([one.infeasible for one in each]):.0%}" for each in (before, after)]
            yield f"| {drawn} | area at {level:.0%} | {' | '.join(cells)} | |"


def main() -> None:
    """Score what is missing, then print the tables."""
    ask = StudyParser(__doc__, "runs/coverage")
    ask.add_names("--data", [name for name in DATA if name in ("hls", "ombria")])
    ask.add_seeds()
    ask.add_argument("--folds", type=int, default=5)
    ask.add_argument("--splits", type=int, default=1000)
    ask.add_table()
    ask.add_threads()
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    for data in given.data:
        kept = [seed for seed in given.seeds if not given.table or complete(given, data, seed)]
        scored = [score_places(given, data, seed) for seed in kept]
        for table in (risk_table, wet_table, area_table, estimator_table, shift_table):
            print("\n".join(table(given, scored, data)), end="\n\n", flush=True)
        print("\n".join([f"{data}, scales:", *compare_scales(scored)]), end="\n\n", flush=True)


def complete(given: argparse.Namespace, data: str, seed: int) -> bool:
    """Return whether all folds of a seed are scored."""
    path = Path(given.out) / f"scores-{data}-s{seed}.jsonl"
    return path.exists() and len(path.read_text().splitlines()) == given.folds


if __name__ == "__main__":
    main()

"""`seawall calibrate`: fit what needs fitting on held-out chips, and store it beside the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from seawall.arrays import DoubleArray
from seawall.data.chips import ChipFolder, digest_chips
from seawall.data.loader import whole_chips
from seawall.data.selection import check_part, select_chips
from seawall.data.splits import recorded_parts
from seawall.errors import DataError, UsageError
from seawall.metrics.boundary import edge_band
from seawall.metrics.calibration import CalibrationCounts, calibration_counts, expected_calibration_error
from seawall.metrics.risk_coverage import area_under_risk_coverage, least_area, risk_coverage
from seawall.models.weights import spec_of, split_of, weights_digest
from seawall.modules import eval_mode, to_device_of
from seawall.pipeline.trained_model import bands_of_model, load_network
from seawall.report.calibration_facts import CalibrationPageFacts, JudgedSceneFacts
from seawall.report.page import write_calibration_page
from seawall.report.run_facts import RiskFacts
from seawall.result import Failed, MutableRow, Progress
from seawall.types import SegmentationModel
from seawall.uncertainty.area import AreaCalibration, AreaSums, estimate_area
from seawall.uncertainty.build import FittedEstimator, parse_uncertainty
from seawall.uncertainty.calibration import (
    Calibration,
    CalibrationFacts,
    calibration_path,
    fold_of_scenes,
    uncertainty_text,
)
from seawall.uncertainty.conformal import RiskControl, control_risk, exact_percent, parse_risk
from seawall.uncertainty.scene_scores import THRESHOLD_STEPS, SceneScores, score_scenes
from seawall.uncertainty.scene_statistics import (
    WINDOW_PIXELS,
    SceneStatistics,
    collect_windows,
    entry_names,
    fit_scene_statistics,
)
from seawall.uncertainty.temperature import (
    TEMPERATURE_KINDS,
    LogitDivisor,
    TemperatureKind,
    TemperatureScaled,
    fit_temperature,
)

SHOWN_RISKS = (
    "miss 5%", "miss 10%", "miss 10% from 1%", "miss 20%", "miss 20% from 1%", "false-alarm 1%", "false-alarm 5%", "false-alarm 10%",
    "miss 10% from 1% by distance", "miss 20% from 1% by distance", "false-alarm 5% by distance", "false-alarm 10% by distance",
)  # fmt: skip
"""Risks whose thresholds the verb prints; any other can be asked for when a scene is mapped."""


def calibrate_chips(
    weights: Path, chips: Path, *, uncertainty: str, temperature: TemperatureKind, klass: str, part: str, level: float, key: str, device: str,
    progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Calibrate a predictor on held-out chips, and write its calibration beside the weights.

    Scores and errors of every scene are by a temperature that was fitted on other scenes; the stored temperature is fitted
    on all of them.

    Raises:
        UsageError: The part is that of the training, or there is no such estimator or class.
        DataError: Chips of the training or of its groups are among them, there is one scene, or one class only.
        ModelError: The network does not fit the estimator.
    """
    check_part(part)
    folder = ChipFolder.open(chips).as_seen_by(bands_of_model(weights))
    net = load_network(weights, folder, device, key)
    klass = spec_of(net).mapped_class(klass)
    held_out, learned, text = calibration_chips(folder, net, part)
    method = parse_uncertainty(uncertainty, weights)
    state = fit_estimator(method, net, folder, learned)
    fitted = method.with_state(state) if isinstance(method, FittedEstimator) else method
    with eval_mode(net):
        plain = cast(SegmentationModel, fitted(cast(SegmentationModel, net)).eval())
        judged = judge_scenes(plain, folder, held_out, klass, temperature, progress)
        progress("temperature", 0, 1, temperature)
        divisor = fit_temperature(plain, whole_chips(folder, held_out), temperature)
        progress("temperature", 1, 1, temperature)
    check_both_classes(judged.scores, klass)
    statistics, without = scene_statistics(folder, (*learned, *held_out))
    facts = CalibrationFacts(
        digest_chips(folder, held_out), tuple(score.scene for score in judged.scores), len(held_out), text, temperature,
        *judged.errors,
    )  # fmt: skip
    made = Calibration(
        weights_digest(cast(nn.Module, plain)), uncertainty_text(method), klass, folder.gsd_m, judged.scores, facts, state,
        {} if divisor is None else divisor.state(), statistics, without,
    )  # fmt: skip
    path = calibration_path(weights, method)
    replaced: MutableRow = {"replaced": "the calibration that was there"} if path.exists() else {}
    made.save(path)
    page = write_calibration_page(page_facts(made, judged, level), path.with_suffix("").with_suffix(".html"))
    return (
        {"calibration": str(path), **replaced, **describe_calibration(made, level), "page": str(page)},
        risk_rows(made),
        (),
    )


def calibration_chips(folder: ChipFolder, net: nn.Module, part: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the held-out chips to calibrate on, those that the weights learned from, and in words which the first are.

    Raises:
        UsageError: The part is that of the training.
        DataError: A chip, or its group, is one of the training; or there are fewer than two groups.
    """
    record = split_of(net)
    if part == "train":
        raise UsageError(
            "part: expected held-out chips to calibrate on, got those of the training, where errors are too rare; use --part auto"
        )
    chosen = select_chips(folder, record, part)
    parts = {} if record is None else recorded_parts(folder, record)
    groups = {} if record is None else {group for name in record.learned_parts for group in record.groups.get(name, ())}
    ids = tuple(id_ for id_ in chosen.ids if folder.row(id_).valid_share > 0)
    wrong = [id_ for id_ in ids if id_ in chosen.seen or folder.row(id_).group in groups]
    if wrong:
        raise DataError(
            f"{folder.root}: expected chips of other places than the training to calibrate on, got {len(wrong)} of its places, such as "
            f"{wrong[0]} ({folder.row(wrong[0]).group}); use --part auto, other chips, or a network that was split by group"
        )
    found = {folder.row(id_).group for id_ in ids}
    if len(found) < 2:
        raise DataError(
            f"{folder.root}: expected labelled chips of at least 2 scenes (groups) to calibrate on, got {len(found)}; a miss rate of 10 % "
            "needs 9, one of 5 % needs 19"
        )
    return ids, parts.get("train", ()), chosen.part


def fit_estimator(
    method: object, net: nn.Module, folder: ChipFolder, learned: Sequence[str]
) -> Mapping[str, torch.Tensor]:
    """Return what an estimator learns from the training chips; nothing for those that learn nothing.

    Raises:
        DataError: The folder has none of the training chips.
    """
    if not isinstance(method, FittedEstimator):
        return {}
    if not learned:
        raise DataError(
            f"{folder.root}: expected chips that the weights learned from, which {uncertainty_text(method).split()[0]} is fitted to, got none; "
            "give the folder of the training"
        )
    return method.fit(cast(SegmentationModel, net), whole_chips(folder, learned))


def check_both_classes(scores: Sequence[SceneScores], klass: str) -> None:
    """Check that there are pixels of the class and others.

    Raises:
        DataError: There is one class only.
    """
    own, every = sum(score.true_km2 for score in scores), sum(score.valid_km2 for score in scores)
    if not 0 < own < every:
        raise DataError(
            f"calibrate: expected held-out pixels of {klass} and of other classes, got one of the two only; add chips of the other"
        )


@dataclass(frozen=True)
class JudgedScenes:
    """What held-out scenes say about a predictor, each by a temperature that was fitted on others.

    Args:
        scores: Scores of each scene.
        counts: Pixels by confidence before and after, then both near shores.
    """

    scores: tuple[SceneScores, ...]
    counts: tuple[CalibrationCounts, CalibrationCounts, CalibrationCounts, CalibrationCounts]

    @property
    def errors(self) -> tuple[float | None, float | None, float | None, float | None]:
        """Expected calibration error before and after, then both near shores; None without a valid pixel."""
        before, after, shore_before, shore_after = map(expected_calibration_error, self.counts)
        return before, after, shore_before, shore_after


def judge_scenes(
    plain: SegmentationModel, folder: ChipFolder, ids: Sequence[str], klass: str, kind: TemperatureKind, progress: Progress
) -> JudgedScenes:  # fmt: skip
    """Score scenes by a predictor whose temperature was fitted on scenes of other folds."""
    scene = {id_: folder.row(id_).group for id_ in ids}
    folds = fold_of_scenes(list(scene.values()), 1 if kind == "none" else 5)
    scores: list[SceneScores] = []
    counts: list[list[CalibrationCounts]] = [[], [], [], []]
    for fold in sorted(set(folds.values())):
        progress("scenes", fold, len(set(folds.values())), kind)
        own = [id_ for id_ in ids if folds[scene[id_]] == fold]
        others = [id_ for id_ in ids if folds[scene[id_]] != fold]
        divisor = None if kind == "none" else fit_temperature(plain, whole_chips(folder, others), kind)
        model = plain if divisor is None else cast(SegmentationModel, TemperatureScaled(plain, divisor).eval())
        scores += score_scenes(model, whole_chips(folder, own), scene, klass, folder.gsd_m)
        for kept, found in zip(counts, zip(*calibration_of(plain, divisor, folder, own), strict=True), strict=True):
            kept += found
    progress("scenes", 1, 1, kind)
    before, after, shore_before, shore_after = map(CalibrationCounts.joined, counts)
    return JudgedScenes(
        tuple(sorted(scores, key=lambda score: score.scene)), (before, after, shore_before, shore_after)
    )


def calibration_of(
    plain: SegmentationModel, divisor: LogitDivisor | None, folder: ChipFolder, ids: Sequence[str]
) -> Iterator[tuple[CalibrationCounts, ...]]:
    """Yield the counts of each batch: before and after a temperature, then both near shores."""
    for chips in whole_chips(folder, ids):
        batch = to_device_of(plain, chips)
        with torch.no_grad():
            before = plain(batch.image)
            after = before if divisor is None else before / divisor.divisor(before, batch.image)
        shore = edge_band(batch.label, batch.valid)
        yield tuple(
            calibration_counts(logits, batch.label, where)
            for where in (batch.valid, shore)
            for logits in (before, after)
        )


def scene_statistics(folder: ChipFolder, ids: Sequence[str]) -> tuple[SceneStatistics | None, str]:
    """Return how the scenes look that the network learned from or was calibrated on, and why there are none."""
    scenes = {id_: folder.row(id_).group for id_ in ids}
    window = min((WINDOW_PIXELS, *(min(folder.row(id_).height, folder.row(id_).width) for id_ in ids)))
    windows = collect_windows(whole_chips(folder, ids), scenes, folder.bands, folder.unit, window)
    try:
        return fit_scene_statistics(windows, entry_names(folder.bands, folder.unit), window), ""
    except UsageError as few:
        return None, str(few)


def describe_calibration(made: Calibration, level: float) -> MutableRow:
    """Return what a person should know about a calibration."""
    facts, known = made.facts, made.statistics
    found = made.divisor.get("temperature.class", torch.zeros(0)).tolist()
    values = ", ".join(f"{value:.3g}" for value in dict.fromkeys(found))
    area = made.area()
    unit = AreaSums(0.0, 0.0, 0.0, 1.0)
    width = None if area is None else estimate_area(unit, area, level)
    return {
        "uncertainty": made.uncertainty,
        "fitted on": f"{facts.count} chips of {len(facts.scenes)} scenes: {facts.part}",
        "temperature": f"{facts.temperature} {values}".strip(),
        "ece before": facts.ece_before,
        "ece after (other scenes)": facts.ece_after,
        "shore ece before": facts.shore_before,
        "shore ece after (other scenes)": facts.shore_after,
        "area interval": _interval_text(area, width.reason if width is not None else "one class only", level),
        "unlike-training": f"false-alarm rate {known.alarms:g}, {known.realized or 0.0:.3f} of the known scenes when left out"
        if known
        else made.without_statistics,
    }


def _interval_text(area: AreaCalibration | None, reason: str, level: float) -> str:
    if area is None or reason:
        return f"none: {reason}"
    return f"{exact_percent(level)} by {len(area.scenes)} scenes"


def shown_controls(made: Calibration) -> Iterator[RiskControl]:
    """Yield how the usual risks are controlled, by probability and by distance."""
    for text in SHOWN_RISKS:
        yield control_risk(parse_risk(text), made.scores, made.gsd_m)


def risk_rows(made: Calibration) -> list[MutableRow]:
    """Return one row per usual risk: its threshold, and the share on the held-out scenes; or why it is infeasible."""
    return [
        {
            "risk": str(control.risk), "at": control.at, "unit": "m" if control.risk.by_distance else "probability",
            "held-out": control.empirical, "scenes": control.scenes, "needed": control.needed, "infeasible": control.reason,
        }
        for control in shown_controls(made)
    ]  # fmt: skip


def page_facts(made: Calibration, judged: JudgedScenes, level: float) -> CalibrationPageFacts:
    """Return what the page of a calibration shows."""
    before, after, shore_before, shore_after = judged.counts
    curves = {"as it is": before} if made.facts.temperature == "none" else {"before": before, "after": after}
    shores = (
        {"as it is": shore_before}
        if made.facts.temperature == "none"
        else {"before": shore_before, "after": shore_after}
    )
    pixels, scenes = pixel_risk_coverage(made.scores), scene_risk_coverage(made.scores)
    areas = {
        name: value
        for name, (coverage, risk) in (("pixels", pixels), ("scenes", scenes))
        if (value := area_under_risk_coverage(coverage, risk)) is not None
    }
    if len(pixels[1]):
        areas["least possible for pixels"] = least_area(float(pixels[1][-1]))
    risks = tuple(RiskFacts.model_validate(control.plain()) for control in shown_controls(made))
    about = [(name, str(value)) for name, value in describe_calibration(made, level).items() if value is not None]
    return CalibrationPageFacts(
        title=f"How sure is it? {made.uncertainty}", about=tuple((name, _shorter(text)) for name, text in about), klass=made.klass,
        reliability={name: reliability_bins_of(counts) for name, counts in curves.items()},
        shore={name: reliability_bins_of(counts) for name, counts in shores.items()},
        coverage=thinned(*pixels), scene_coverage=thinned(*scenes), areas=areas, risks=risks, scenes=left_out_areas(made, level), level=level,
    )  # fmt: skip


def _shorter(text: str) -> str:
    """Return a number with three digits, any other text as it is."""
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text


def reliability_bins_of(counts: CalibrationCounts) -> tuple[tuple[float, float, float], ...]:
    """Return (confidence, accuracy, share of the pixels) of every bin that holds pixels."""
    n, right, sure = (part.sum(0) for part in (counts.count, counts.correct, counts.confidence))
    return tuple((float(s / c), float(r / c), float(c / n.sum())) for c, r, s in zip(n, right, sure, strict=True) if c)


def pixel_risk_coverage(scores: Sequence[SceneScores]) -> tuple[DoubleArray, DoubleArray]:
    """Return coverage and error of the pixels that the class is surest told of, by 1/1000ths of its probability."""
    own, other = (np.zeros(THRESHOLD_STEPS + 1) for _ in range(2))
    for score in scores:
        if score.missed is not None:
            own += score.true_km2 * np.diff(score.missed, append=1.0)
        if score.alarmed is not None:
            other += (score.valid_km2 - score.true_km2) * -np.diff(score.alarmed, append=0.0)
    p = np.arange(THRESHOLD_STEPS + 1) / THRESHOLD_STEPS
    return risk_coverage(np.maximum(p, 1 - p), own + other, np.where(p >= 0.5, other, own))


def scene_risk_coverage(scores: Sequence[SceneScores]) -> tuple[DoubleArray, DoubleArray]:
    """Return coverage and mean of one less the IoU of the scenes with the least doubt per expected area of the class."""
    kept = [s for s in scores if s.expected_km2 and s.true_km2 + s.alarms_km2]
    doubt = np.array([s.doubt_km2 / s.expected_km2 for s in kept])
    loss = np.array([1 - s.hits_km2 / (s.true_km2 + s.alarms_km2) for s in kept])
    return risk_coverage(-doubt, np.ones(len(kept)), loss)


def thinned(x: DoubleArray, y: DoubleArray, most: int = 200) -> tuple[tuple[float, float], ...]:
    """Return at most so many points of a curve, its ends among them."""
    at = np.unique(np.linspace(0, max(len(x) - 1, 0), min(most, len(x))).round().astype(int))
    return tuple((float(x[i]), float(y[i])) for i in at)


def left_out_areas(made: Calibration, level: float) -> tuple[JudgedSceneFacts, ...]:
    """Return the areas of each held-out scene with the interval that the other scenes give it."""
    found = []
    for i, score in enumerate(made.scores):
        others = [other for j, other in enumerate(made.scores) if j != i]
        sums = AreaSums.of(score)
        try:
            estimate = estimate_area(sums, AreaCalibration.of_scores(others, made.gsd_m), level)
        except DataError:  # the others lack the class, or have nothing else
            continue
        found.append(
            JudgedSceneFacts(
                scene=score.scene, true_km2=score.true_km2, mapped_km2=score.mapped_km2, low_km2=estimate.low_km2,
                high_km2=estimate.high_km2,
            )
        )  # fmt: skip
    return tuple(found)


def check_temperature(kind: str) -> TemperatureKind:
    """Return a kind of temperature.

    Raises:
        UsageError: There is no such kind.
    """
    if kind not in TEMPERATURE_KINDS:
        raise UsageError(f"temperature: expected one of {', '.join(TEMPERATURE_KINDS)}, got {kind!r}; global is usual")
    return cast(TemperatureKind, kind)

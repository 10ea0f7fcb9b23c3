"""Conformal risk control over scenes: sets of pixels that miss, or wrongly hold, at most a stated share on average over new scenes.

A guarantee is about the mean over new scenes that are exchangeable with the calibration scenes. It holds for no single scene, not
per pixel, and not for images that an adversary has changed. Pixels and tiles of one scene are not independent, so the number that counts is that of scenes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Literal, cast

import numpy as np

from seawall.arrays import DoubleArray
from seawall.errors import DataError, UsageError
from seawall.uncertainty.scene_scores import DISTANCE_PIXELS, THRESHOLD_STEPS, SceneScores

RiskName = Literal["miss", "false-alarm"]
RISK_PATTERN = re.compile(
    r"(?P<name>miss|false-alarm)\s+(?P<percent>[0-9]+(\.[0-9]+)?)\s*%(\s+from\s+(?P<least>[0-9]+(\.[0-9]+)?)\s*%)?"
    r"(?P<distance>\s+by\s+distance)?"
)


@dataclass(frozen=True)
class Risk:
    """A share of pixels that may be wrong, on average over new scenes.

    Args:
        name: "miss": the share of the pixels of the class that is outside of the set of pixels that may be of the class.
            "false-alarm": the share of the other pixels that is inside of the set of pixels that surely are of the class. It is a
            share of the other pixels, not of the mapped ones, which does not always fall with a more cautious set.
        alpha: The share that is allowed, inside (0, 1).
        by_distance: The sets are all pixels up to a distance from the map, instead of those with a probability.
        least: For a miss rate, the share of a scene's pixels that are of the class from which on a scene counts. Where a handful of
            pixels is all that a scene has, missing them is missing all of it.

    Raises:
        UsageError: alpha is not inside (0, 1), or `least` not inside [0, 1), or for false alarms.

    Example:
        >>> parse_risk("miss 5% by distance")
        Risk(name='miss', alpha=0.05, by_distance=True, least=0.0)
        >>> str(Risk("false-alarm", 0.01)), str(parse_risk("miss 10% from 1%"))
        ('false-alarm 1%', 'miss 10% from 1%')
    """

    name: RiskName
    alpha: float
    by_distance: bool = False
    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"risk: expected a share above 0% and below 100%, got {100 * self.alpha:g}%; 5% is usual")
        if not 0 <= self.least < 1 or (self.least and self.name != "miss"):
            raise UsageError(
                f"risk: expected 'from' a share below 100% for a miss rate alone, got from {100 * self.least:g}% for {self.name}; leave it out"
            )

    def __str__(self) -> str:
        least = f" from {exact_percent(self.least)}" if self.least else ""
        return f"{self.name} {exact_percent(self.alpha)}{least}{' by distance' if self.by_distance else ''}"

    def curve(self, score: SceneScores) -> DoubleArray | None:
        """Return the share of a scene at each threshold or distance; None where it has no pixel that it is a share of, or too few."""
        if self.least and score.true_km2 < self.least * score.valid_km2:
            return None
        if self.by_distance:
            return score.missed_beyond if self.name == "miss" else score.alarmed_beyond
        return score.missed if self.name == "miss" else score.alarmed


def parse_risk(text: str) -> Risk:
    """Return the risk of a text such as "miss 5%" or "false-alarm 1% by distance".

    Raises:
        UsageError: It is no such text.
    """
    found = RISK_PATTERN.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"risk: expected 'miss 5%', 'miss 5% from 1%' or 'false-alarm 1%', with ' by distance' after it for sets in meters, got {text!r}; "
            "write one of these"
        )
    least = parse_percent(found["least"]) if found["least"] else 0.0
    return Risk(cast(RiskName, found["name"]), parse_percent(found["percent"]), found["distance"] is not None, least)


def exact_percent(share: float) -> str:
    """Return a share as a percentage from which `parse_percent` returns the same number.

    Example:
        >>> exact_percent(0.07), parse_percent("7")
        ('7%', 0.07)
    """
    return f"{(Decimal(repr(share)) * 100).normalize():f}%"


def parse_percent(digits: str) -> float:
    """Return the share of the digits of a percentage; 0.07 of 7, where 7 times 0.01 is another number."""
    return float(Decimal(digits) / 100)


@dataclass(frozen=True)
class SceneWeights:
    """How likely scenes are where a map is made, relative to where the calibration scenes are from.

    Args:
        of_scenes: Weight of each calibration scene, in the order of its scores.
        new: Weight of a new scene. The largest one that a new scene may have keeps the guarantee for all of them.

    Raises:
        UsageError: A weight is negative or not finite, or that of a new scene is 0.
    """

    of_scenes: tuple[float, ...]
    new: float

    def __post_init__(self) -> None:
        every = (*self.of_scenes, self.new)
        if not all(math.isfinite(weight) and weight >= 0 for weight in every) or self.new == 0:
            raise UsageError(
                f"weights: expected finite ones from 0, and one above 0 for a new scene, got {min(every)} to {max(every)} and "
                f"{self.new}; correct them"
            )

    @property
    def effective(self) -> float:
        """Effective number of scenes, the squared sum over the sum of squares (Kish)."""
        return effective_number(np.array(self.of_scenes))

    def select(self, kept: Sequence[bool]) -> SceneWeights:
        """Return the weights of some scenes."""
        return SceneWeights(tuple(w for w, keep in zip(self.of_scenes, kept, strict=True) if keep), self.new)

    @staticmethod
    def equal(count: int) -> SceneWeights:
        """Return the weights of scenes that are as likely as the new one."""
        return SceneWeights((1.0,) * count, 1.0)


def check_weight_count(weights: SceneWeights | None, scenes: int) -> None:
    """Raise a UsageError unless there is one weight per calibration scene, or none at all."""
    if weights is not None and len(weights.of_scenes) != scenes:
        raise UsageError(
            f"weights: expected one per scene ({scenes}), got {len(weights.of_scenes)}; give them in the order of the scores"
        )


def effective_number(weights: DoubleArray) -> float:
    """Return the squared sum of weights over the sum of their squares; 0 without any.

    Example:
        >>> effective_number(np.array([1.0, 1.0, 0.0]))
        2.0
    """
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0


@dataclass(frozen=True)
class RiskControl:
    """How a risk is controlled, or why it cannot be.

    Args:
        risk: The risk.
        at: A probability, or for a risk by distance a distance in meters; None where it cannot be controlled. It is never bolder than
            the map itself: a more cautious set keeps the guarantee.
        scenes: Number of calibration scenes that have pixels which the risk is a share of.
        effective: Effective number of these scenes; `scenes` without weights.
        needed: Number of such scenes that the guarantee needs; None where no number is enough.
        empirical: Mean share of the calibration scenes at `at`, by their weights; None without `at`.
        least: Mean share at the most cautious set.
    """

    risk: Risk
    at: float | None
    scenes: int
    effective: float
    needed: int | None
    empirical: float | None
    least: float

    @property
    def missing(self) -> int | None:
        """Number of calibration scenes that are missing; None where more do not help."""
        return None if self.needed is None else max(0, self.needed - self.scenes)

    @property
    def valid_for(self) -> str:
        """What the guarantee is valid for."""
        some = f"at least {exact_percent(self.risk.least)}" if self.risk.least else "some"
        scenes = f"new scenes with {some} of the class" if self.risk.name == "miss" else "new scenes"
        return f"on average over {scenes}, exchangeable with the calibration scenes; not for each scene, and not under attack"

    @property
    def reason(self) -> str:
        """Why the risk cannot be controlled; "" where it can."""
        if self.at is not None:
            return ""
        kind = "pixels of the class" if self.risk.name == "miss" else "pixels of other classes"
        have = f"{self.scenes} scenes with {f'at least {exact_percent(self.risk.least)} ' if self.risk.least else ''}{kind}"
        if self.effective < self.scenes - 0.05:
            have += f" that count as {self.effective:.1f} by their weights"
        if self.needed is None:
            return f"{have}, and a mean share of {self.least:.1%} at the most cautious set: more scenes do not help"
        return f"{have}, {self.missing} fewer than the {self.needed} that it needs"

    def __str__(self) -> str:
        if self.at is None:
            return f"{self.risk}: infeasible with {self.reason}"
        unit = f"{self.at:g} m" if self.risk.by_distance else f"probability {self.at:g}"
        return f"{self.risk}: {unit}; {self.empirical:.1%} on {self.scenes} calibration scenes, of which it needs {self.needed}"

    def plain(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {**asdict(self), "risk": str(self.risk)}

    @staticmethod
    def of(plain: Mapping[str, object]) -> RiskControl:
        """Return what `plain` returned values of.

        Raises:
            DataError: The values are no result of `control_risk`.
        """
        try:
            return RiskControl(**{**plain, "risk": parse_risk(str(plain["risk"]))})  # type: ignore[arg-type]
        except (KeyError, TypeError, UsageError) as bad:
            raise DataError(f"risk: expected how a risk is controlled, got {bad}; calibrate again") from bad


@dataclass(frozen=True)
class ClassSets:
    """Which pixels surely are of the class, which may be, and which are not.

    Args:
        lower: Pixels with a lower probability are not of the class.
        upper: Pixels at or above this probability surely are of the class. Those between the two cannot be told.
        outer_m: Pixels farther from every mapped pixel are not of the class; None without a risk by distance.
        inner_m: Mapped pixels farther from every other pixel surely are of the class; None without a risk by distance.
    """

    lower: float = 0.5
    upper: float = 0.5
    outer_m: float | None = None
    inner_m: float | None = None


def control_risk(
    risk: Risk, scores: Sequence[SceneScores], gsd_m: float, weights: SceneWeights | None = None
) -> RiskControl:
    """Return how a risk is controlled by calibration scenes.

    Scenes without a pixel that the risk is a share of are left out: a miss rate is guaranteed for scenes that have some of the class.

    Args:
        risk: The risk.
        scores: Scores of the calibration scenes.
        gsd_m: Meters per pixel of their chips.
        weights: Weights of the scenes under a covariate shift; all the same if None.

    Raises:
        UsageError: There is not one weight per scene.

    Paper: Angelopoulos et al. 2022, arXiv:2208.02814, eq. 4; with weights proposition 3.
    """
    check_weight_count(weights, len(scores))
    weights = SceneWeights.equal(len(scores)) if weights is None else weights
    found = [risk.curve(score) for score in scores]
    weights = weights.select([curve is not None for curve in found])
    curves = np.array([curve for curve in found if curve is not None]).reshape(-1, _curve_size(risk))
    if risk.name == "miss" and not risk.by_distance:
        curves = curves[:, : THRESHOLD_STEPS // 2 + 1]  # thresholds up to 0.5, that of the map
    elif not risk.by_distance:
        curves = curves[:, : THRESHOLD_STEPS // 2 - 1 : -1]  # from 1 down to 0.5
    else:
        curves = curves[:, ::-1]  # from the largest distance down to 0
    at = conformal_threshold(curves, np.arange(curves.shape[1], dtype=np.float64), risk.alpha, weights=weights)
    mean = np.average(curves, 0, weights.of_scenes) if sum(weights.of_scenes) else np.zeros(curves.shape[1])
    return RiskControl(
        risk,
        None if at is None else _physical(risk, round(at), gsd_m),
        len(curves),
        weights.effective,
        needed_scenes(risk.alpha, weights, float(mean[0])),
        None if at is None else float(mean[round(at)]),
        float(mean[0]),
    )


def class_sets(controls: Sequence[RiskControl]) -> ClassSets:
    """Return the sets of all risks together; a side without a risk is that of the map.

    Raises:
        DataError: A risk cannot be controlled; the message says how many scenes are missing.
        UsageError: Two risks are about the same side.
    """
    found: dict[tuple[str, bool], float] = {}
    for control in controls:
        side = (control.risk.name, control.risk.by_distance)
        if control.at is None:
            advice = "raise the share" if control.needed is None else "calibrate on more scenes or raise the share"
            raise DataError(f"risk: expected enough scenes for {control.risk}, got {control.reason}; {advice}")
        if side in found:
            raise UsageError(
                f"risk: expected one {control.risk.name} risk, got another, {control.risk}; give one of them"
            )
        found[side] = control.at
    return ClassSets(
        found.get(("miss", False), 0.5),
        found.get(("false-alarm", False), 0.5),
        found.get(("miss", True)),
        found.get(("false-alarm", True)),
    )


def conformal_threshold(
    risks: DoubleArray,
    lambdas: DoubleArray,
    alpha: float,
    bound: float = 1.0,
    weights: SceneWeights | None = None,
) -> float | None:
    """Return the least conservative lambda whose expected risk on a new scene is at most alpha.

    Args:
        risks: (n, L) loss of each scene at each lambda, growing along L, at most `bound`.
        lambdas: (L,) growing.
        alpha: Risk that is allowed.
        bound: Largest possible loss.
        weights: Weights of the n scenes and of a new one under a covariate shift; all the same if None.

    Returns:
        The lambda, or None where none has the guarantee: too few scenes, or too much risk at every lambda.

    Raises:
        UsageError: alpha is not inside (0, bound), or the risks do not grow.

    Paper: Angelopoulos et al. 2022, arXiv:2208.02814, eq. 4; with weights proposition 3.

    Example:
        >>> risks = np.array([[0.0, 0.1, 0.6]] * 19)
        >>> conformal_threshold(risks, np.array([0.0, 0.5, 1.0]), 0.2)
        0.5
        >>> conformal_threshold(risks[:3], np.array([0.0, 0.5, 1.0]), 0.2) is None
        True
    """
    if not 0 < alpha < bound:
        raise UsageError(f"conformal: expected alpha inside (0, {bound:g}), got {alpha}; 0.1 is usual")
    if risks.ndim != 2 or risks.shape[1] != len(lambdas) or (np.diff(risks, axis=1) < -1e-12).any():
        raise UsageError(
            f"conformal: expected risks (n, {len(lambdas)}) that grow with lambda, got "
            f"{risks.shape}{'' if risks.ndim != 2 or risks.shape[1] != len(lambdas) else ' that fall'}; sort lambdas from cautious to bold"
        )
    weights = weights or SceneWeights.equal(len(risks))
    own = np.array(weights.of_scenes, np.float64)
    ok = (own @ risks + weights.new * bound) / (own.sum() + weights.new) <= alpha + 1e-12
    return float(lambdas[ok][-1]) if ok.any() else None


def conformal_quantile(values: DoubleArray, level: float, weights: SceneWeights | None = None) -> float | None:
    """Return the least of the values that a new one exceeds with a probability of at most 1 - level.

    Args:
        values: (n,) of the calibration scenes.
        level: Probability, inside (0, 1).
        weights: Weights of the scenes and of a new one; all the same if None.

    Returns:
        The value of rank ceil((n + 1) level), or None where there are too few scenes.

    Paper: Tibshirani et al. 2019, arXiv:1904.06019, eq. 7.

    Example:
        >>> conformal_quantile(np.arange(1.0, 10.0), 0.9)
        9.0
    """
    weights = weights or SceneWeights.equal(len(values))
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(np.array(weights.of_scenes, np.float64)[order])
    enough = reached >= level * (sum(weights.of_scenes) + weights.new) - 1e-9
    return float(values[order][np.argmax(enough)]) if enough.any() else None


def needed_scenes(alpha: float, weights: SceneWeights, least: float = 0.0) -> int | None:
    """Return how many calibration scenes of the mean weight a guarantee needs; None where no number is enough.

    Args:
        alpha: Share that is allowed.
        weights: Weights of the scenes that there are.
        least: Mean share at the most cautious set.

    Example:
        >>> needed_scenes(0.05, SceneWeights.equal(0))
        19
    """
    if least >= alpha - 1e-12:  # also a share that no number of scenes could show
        return None
    mean = sum(weights.of_scenes) / len(weights.of_scenes) if sum(weights.of_scenes) else weights.new
    return math.ceil(weights.new / mean * (1 - alpha) / (alpha - least) - 1e-9)


def _curve_size(risk: Risk) -> int:
    return DISTANCE_PIXELS + 1 if risk.by_distance else THRESHOLD_STEPS + 1


def _physical(risk: Risk, step: int, gsd_m: float) -> float:
    """Return the probability or the distance of a step from the most cautious set."""
    if risk.by_distance:
        return (DISTANCE_PIXELS - step) * gsd_m
    return (step if risk.name == "miss" else THRESHOLD_STEPS - step) / THRESHOLD_STEPS

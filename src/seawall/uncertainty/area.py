"""The area of a class in a region of a map: corrected for the errors on held-out scenes, and with an interval that holds over scenes.

Errors of neighboring pixels are alike, so the number of pixels says little about how sure an area is. The interval is that of
conformal prediction: in how many held-out scenes was the error of the whole scene as large?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from seawall.arrays import DoubleArray
from seawall.errors import DataError, UsageError
from seawall.metrics.bootstrap import Resamples
from seawall.uncertainty.conformal import (
    SceneWeights,
    check_weight_count,
    conformal_quantile,
    exact_percent,
    needed_scenes,
)
from seawall.uncertainty.scene_scores import SceneScores

DOUBT_FLOOR = 0.002
"""Added to the mean p (1 - p) of a region: what is lost, at most, where p is stored as whole 1/250ths."""
AREA_VALIDITY = (
    "of regions like the held-out scenes have their area in the interval, each alone; not sums of regions, and not images that an "
    "adversary changed"
)
"""What an interval of a level is valid for."""


@dataclass(frozen=True)
class AreaSums:
    """Sums over the seen pixels of a region of a map, in km2.

    Args:
        mapped_km2: Area that is mapped as the class.
        expected_km2: Sum of probability times area.
        doubt_km2: Sum of probability times one less probability times area.
        seen_km2: Area of all of them.
    """

    mapped_km2: float
    expected_km2: float
    doubt_km2: float
    seen_km2: float

    @staticmethod
    def of(score: SceneScores) -> AreaSums:
        """Return the sums over the valid pixels of a held-out scene."""
        return AreaSums(score.mapped_km2, score.expected_km2, score.doubt_km2, score.valid_km2)

    def __add__(self, other: AreaSums) -> AreaSums:
        return AreaSums(
            self.mapped_km2 + other.mapped_km2,
            self.expected_km2 + other.expected_km2,
            self.doubt_km2 + other.doubt_km2,
            self.seen_km2 + other.seen_km2,
        )

    @property
    def error_scale_km2(self) -> float:
        """The standard deviation of the area of the class if all pixels were wrong together, at most.

        It is the seen area times the root of the mean p (1 - p). Of all scales that were compared on real scenes it gives the
        narrowest intervals of equal coverage, see docs/measured.md.
        """
        return math.sqrt((self.doubt_km2 + DOUBT_FLOOR * self.seen_km2) * self.seen_km2)


@dataclass(frozen=True)
class AreaCalibration:
    """The areas of held-out scenes: what was mapped and what is true, one value per scene.

    Args:
        scenes: Names of the scenes.
        hits_km2: Area of the class that is mapped as the class.
        misses_km2: Area of the class that is not.
        alarms_km2: Area of other pixels that is mapped as the class.
        rejections_km2: Area of other pixels that is not.
        expected_km2: See `AreaSums`.
        doubt_km2: See `AreaSums`.
        gsd_m: Meters per pixel of the chips.
        weights: Weights of the scenes under a covariate shift; all the same if None.
    """

    scenes: tuple[str, ...]
    hits_km2: tuple[float, ...]
    misses_km2: tuple[float, ...]
    alarms_km2: tuple[float, ...]
    rejections_km2: tuple[float, ...]
    expected_km2: tuple[float, ...]
    doubt_km2: tuple[float, ...]
    gsd_m: float
    weights: SceneWeights | None = None

    @staticmethod
    def of_scores(scores: Sequence[SceneScores], gsd_m: float, weights: SceneWeights | None = None) -> AreaCalibration:
        """Return the calibration by the scores of held-out scenes.

        Raises:
            DataError: All held-out pixels are of the class, or none is.
            UsageError: There is not one weight per scene.
        """
        check_weight_count(weights, len(scores))
        columns = {
            name: tuple(float(getattr(score, name)) for score in scores)
            for name in ("hits_km2", "misses_km2", "alarms_km2", "rejections_km2", "expected_km2", "doubt_km2")
        }
        found = AreaCalibration(tuple(score.scene for score in scores), **columns, gsd_m=gsd_m, weights=weights)
        own, other = found.table[:, :2].sum(), found.table[:, 2:].sum()
        if not own or not other:
            raise DataError(
                f"area: expected held-out scenes with and without the class, got {own:g} km2 of it and {other:g} km2 of other "
                "pixels; calibrate on scenes with both"
            )
        return found

    @property
    def table(self) -> DoubleArray:
        """Hits, misses, alarms and rejections of each scene, (n, 4) in km2."""
        return np.array([self.hits_km2, self.misses_km2, self.alarms_km2, self.rejections_km2], np.float64).T

    @property
    def scene_weights(self) -> SceneWeights:
        """The weights; equal ones where there are none."""
        return SceneWeights.equal(len(self.scenes)) if self.weights is None else self.weights

    def relative_errors(self) -> DoubleArray:
        """Return the error of each scene's mapped area, without sign, in units of its error scale, (n,)."""
        found = []
        for (hits, misses, alarms, rejections), expected, doubt in zip(
            self.table, self.expected_km2, self.doubt_km2, strict=True
        ):
            sums = AreaSums(hits + alarms, expected, doubt, hits + misses + alarms + rejections)
            found.append(abs(misses - alarms) / sums.error_scale_km2)
        return np.array(found, np.float64)

    def error_multiple(self, level: float) -> float | None:
        """Return the multiple of its error scale within which the error of a new region is; None where there are too few scenes."""
        return conformal_quantile(self.relative_errors(), level, self.scene_weights)

    def plain(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)

    @staticmethod
    def of(plain: Mapping[str, object]) -> AreaCalibration:
        """Return what `plain` returned values of, also after they were written to and read from JSON.

        Raises:
            DataError: The values are no calibration.
        """
        try:
            values = {name: tuple(v) if isinstance(v, list | tuple) else v for name, v in plain.items()}
            if isinstance(given := values.get("weights"), Mapping):
                values["weights"] = SceneWeights(tuple(given["of_scenes"]), float(given["new"]))
            found = AreaCalibration(**values)  # type: ignore[arg-type]
            whole = found.table.shape == (len(found.scenes), 4) and np.isfinite(found.table).all()
        except (TypeError, ValueError, KeyError) as bad:
            raise DataError(f"area: expected the calibration of a map, got {bad}; map the scene again") from bad
        if not whole or not len(found.scenes) == len(found.doubt_km2) == len(found.expected_km2):
            raise DataError("area: expected one finite area per scene, got a calibration without; map the scene again")
        return found


@dataclass(frozen=True)
class AreaEstimate:
    """The area of a class in the seen part of a region, in km2.

    Args:
        mapped_km2: Area that is mapped as the class: pixels counted.
        low_km2: Lower end of the interval; None where there is none.
        high_km2: Upper end of the interval; None where there is none.
        level: How often the interval holds the area of the class, on average over regions like the held-out scenes.
        reason: Why there is no interval; "" where there is one.
        corrected_km2: Mapped area less false alarms and plus misses, at the rates of the held-out scenes (inverse confusion); None without
            a calibration.
        stratified_km2: Share of the class in each stratum of the held-out scenes (mapped as the class, or not) times the
            region's area of it: Olofsson's estimator; None where a stratum has no held-out pixel.
        pixel_se_km2: Its standard error if the held-out pixels were independent, as the published formula has it.
        scene_se_km2: Its standard error by resampling the held-out scenes.
        scenes: Number of held-out scenes.
        needed: Number that the interval needs.
    """

    mapped_km2: float
    low_km2: float | None
    high_km2: float | None
    level: float
    reason: str
    corrected_km2: float | None = None
    stratified_km2: float | None = None
    pixel_se_km2: float | None = None
    scene_se_km2: float | None = None
    scenes: int = 0
    needed: int = 0


def estimate_area(sums: AreaSums, calibration: AreaCalibration | None, level: float = 0.9) -> AreaEstimate:
    """Return the area of a class in a region, with an interval where the calibration has enough scenes.

    The interval is the mapped area and on both sides of it a multiple of the region's error scale, cut to what was seen. The multiple is
    the conformal quantile of the errors of the held-out scenes, so that it also covers the bias of the map.

    Args:
        sums: Sums over the region.
        calibration: The held-out scenes; None without any.
        level: How often the interval shall hold the area, inside (0, 1).

    Raises:
        UsageError: The level is not inside (0, 1).

    Paper: Vovk et al. 2005, Lei et al. 2018, arXiv:1604.04173, section 5.2 (locally weighted). The estimators: Olofsson et al. 2014,
    doi 10.1016/j.rse.2014.02.015, eq. 9 and 10.
    """
    check_interval_level(level)
    if not sums.seen_km2:
        return AreaEstimate(sums.mapped_km2, None, None, level, "nothing was seen")
    if calibration is None:
        return AreaEstimate(
            sums.mapped_km2, None, None, level, "the map was made without held-out scenes to calibrate by"
        )
    scenes, needed = len(calibration.scenes), needed_scenes(1 - level, calibration.scene_weights) or 0
    multiple = calibration.error_multiple(level)
    low, high = (None, None) if multiple is None else area_interval(sums, multiple)
    stratified = estimate_by_strata(sums, calibration)
    return AreaEstimate(
        sums.mapped_km2, low, high, level,
        "" if low is not None else f"{scenes} held-out scenes, {needed - scenes} fewer than the {needed} that an interval of {exact_percent(level)} needs",
        _corrected_area(sums, calibration), *stratified, scenes=scenes, needed=needed,
    )  # fmt: skip


def area_interval(sums: AreaSums, multiple: float) -> tuple[float, float]:
    """Return the ends of the interval that reaches a multiple of the region's error scale to both sides, in km2."""
    half = multiple * sums.error_scale_km2
    return max(0.0, sums.mapped_km2 - half), min(sums.seen_km2, sums.mapped_km2 + half)


def check_interval_level(level: float) -> None:
    """Raise a UsageError unless the level of an interval is a probability inside (0, 1)."""
    if not 0 < level < 1:
        raise UsageError(f"level: expected a probability inside (0, 1), got {level:g}; 0.9 is usual")


def correct_share(mapped: float, hit_rate: float, alarm_rate: float) -> float | None:
    """Return the true share of a class whose mapped share has misses and false alarms, cut to [0, 1].

    Args:
        mapped: Share of pixels that is mapped as the class.
        hit_rate: Share of the pixels of the class that is mapped as the class.
        alarm_rate: Share of the other pixels that is mapped as the class.

    Returns:
        The share, or None where the class is mapped as often where it is not as where it is.

    Example:
        >>> round(correct_share(0.08 * 0.92 + 0.92 * 0.02, 0.92, 0.02), 6)
        0.08
    """
    if hit_rate <= alarm_rate:
        return None
    return min(1.0, max(0.0, (mapped - alarm_rate) / (hit_rate - alarm_rate)))


def stratified_shares(areas: DoubleArray, counts: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Return the share of each class, and its standard error, from a sample in each stratum.

    Args:
        areas: (S,) area of each stratum, in any unit.
        counts: (S, K) sample units of each stratum that are of each class, at least two per stratum.

    Returns:
        (K,) shares and (K,) standard errors.

    Paper: Olofsson et al. 2014, doi 10.1016/j.rse.2014.02.015, eq. 9 and 10.

    Example:
        >>> share, error = stratified_shares(np.array([0.08, 0.92]), np.array([[276.0, 24.0], [9.0, 291.0]]))
        >>> round(float(share[0]), 4), round(float(error[0]), 4)
        (0.1012, 0.0092)
    """
    weights = areas / areas.sum()
    size = counts.sum(1, keepdims=True)
    share = counts / size
    variance = weights[:, None] ** 2 * share * (1 - share) / (size - 1)
    return weights @ share, np.sqrt(variance.sum(0))


def estimate_by_strata(sums: AreaSums, calibration: AreaCalibration) -> tuple[float | None, float | None, float | None]:
    """Return Olofsson's estimate of the area, its published standard error, and that by resampling scenes; None where undefined."""
    own = np.array(calibration.scene_weights.of_scenes)
    strata = np.array([sums.mapped_km2, max(0.0, sums.seen_km2 - sums.mapped_km2)])
    counts = (own @ calibration.table)[[[0, 2], [1, 3]]] / (calibration.gsd_m**2 / 1e6)
    if not sums.seen_km2 or (counts.sum(1) <= 1).any():
        return None, None, None
    share, error = stratified_shares(strata, counts)
    return (
        float(share[0]) * sums.seen_km2,
        float(error[0]) * sums.seen_km2,
        _resampled_error(strata, calibration.table * own[:, None]),
    )


def describe_area(estimate: AreaEstimate, klass: str, unsure_km2: float | None = None) -> str:
    """Return the sentence that a reader is told.

    Args:
        estimate: The estimate.
        klass: Name of the class.
        unsure_km2: Area of the pixels that cannot be told; not mentioned if None.

    Example:
        >>> describe_area(AreaEstimate(12.41, 11.09, 13.62, 0.9, ""), "water", 0.8)
        '12.4 km2 of water, 90 % interval 11.1 to 13.6; 0.8 km2 cannot be told'
    """
    numbers = [estimate.mapped_km2, *(v for v in (estimate.high_km2,) if v is not None)]
    digits = _decimals(max(numbers))
    text = f"{estimate.mapped_km2:.{digits}f} km2 of {klass}"
    if estimate.low_km2 is None or estimate.high_km2 is None:
        text += f", without an interval ({estimate.reason})"
    else:
        text += f", {100 * estimate.level:g} % interval {estimate.low_km2:.{digits}f} to {estimate.high_km2:.{digits}f}"
    return text if unsure_km2 is None else f"{text}; {unsure_km2:.{digits}f} km2 cannot be told"


def _decimals(largest: float) -> int:
    """Return the decimals with which the largest number has three digits, at most six."""
    return min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 1


def _corrected_area(sums: AreaSums, calibration: AreaCalibration) -> float | None:
    hits, misses, alarms, rejections = np.array(calibration.scene_weights.of_scenes) @ calibration.table
    if not sums.seen_km2 or not hits + misses or not alarms + rejections:
        return None
    share = correct_share(sums.mapped_km2 / sums.seen_km2, hits / (hits + misses), alarms / (alarms + rejections))
    return None if share is None else share * sums.seen_km2


def _resampled_error(strata: DoubleArray, table: DoubleArray) -> float | None:
    """Return the standard deviation of Olofsson's estimate over resamples of the scenes, (n, 4) areas; None for one scene."""
    draws = Resamples.over([str(i) for i in range(len(table))]).weights
    hits, misses, alarms, rejections = (draws @ table).T
    with np.errstate(invalid="ignore", divide="ignore"):
        found = strata[0] * hits / (hits + alarms) + strata[1] * misses / (misses + rejections)
    found = found[np.isfinite(found)]
    return float(found.std(ddof=1)) if len(found) > 1 else None

"""A stated covariate shift: new scenes have more or less of the class than the calibration scenes, and are else alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from seawall.arrays import DoubleArray
from seawall.errors import DataError, UsageError
from seawall.uncertainty.conformal import SceneWeights, exact_percent, parse_percent
from seawall.uncertainty.scene_scores import SceneScores

SHIFT_PATTERN = re.compile(r"share\s+(?P<percent>[0-9]+(\.[0-9]+)?)\s*%")


@dataclass(frozen=True)
class CovariateShift:
    """What the mean of a covariate is over new scenes.

    The covariate is the share of a scene's pixels that is mapped as the class. It can be seen in a map, as a covariate must: what
    the label says of a scene of that share is assumed to be as before.

    Args:
        share: Mean share over new scenes, inside (0, 1).

    Example:
        >>> parse_shift("share 2%")
        CovariateShift(share=0.02)
        >>> str(CovariateShift(0.02))
        'share 2%'
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"shift: expected a share above 0% and below 100%, got {100 * self.share:g}%; say another")

    def __str__(self) -> str:
        return f"share {exact_percent(self.share)}"

    def weights(self, scores: Sequence[SceneScores]) -> SceneWeights:
        """Return the weights of calibration scenes; that of a new scene is the largest among them.

        So the guarantee holds for new scenes with shares in the range of those of the calibration scenes.

        Raises:
            DataError: No weights of these scenes have this mean.
        """
        return tilted_weights(np.array([score.mapped_km2 / score.valid_km2 for score in scores]), self.share)


def parse_shift(text: str) -> CovariateShift:
    """Return the shift of a text such as "share 2%".

    Raises:
        UsageError: It is no such text.
    """
    found = SHIFT_PATTERN.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"shift: expected 'share 2%', the mean mapped share of new scenes, got {text!r}; write it so")
    return CovariateShift(parse_percent(found["percent"]))


def tilted_weights(covariate: DoubleArray, mean: float) -> SceneWeights:
    """Return the weights exp(t x), with the t that gives the covariate x a weighted mean.

    Of all distributions over the scenes with that mean this is the one closest to the calibration scenes (least relative entropy).

    Args:
        covariate: (n,) of each calibration scene.
        mean: Its mean over new scenes.

    Returns:
        Weights with a mean of 1; that of a new scene is the largest.

    Raises:
        DataError: The mean is not inside the range of the covariate.

    Paper: Tibshirani et al. 2019, arXiv:1904.06019, section 2.3, for weights by the density ratio, here of an exponential family.

    Example:
        >>> np.round(tilted_weights(np.array([0.0, 1.0]), 0.75).of_scenes, 9).tolist()
        [0.5, 1.5]
    """
    low, high = (float(covariate.min()), float(covariate.max())) if len(covariate) else (0.0, 0.0)
    if not low < mean < high:
        raise DataError(
            f"shift: expected a mean share inside that of the {len(covariate)} calibration scenes, {low:.1%} to {high:.1%}, got "
            f"{mean:.1%}; calibrate on scenes like the new ones"
        )
    scaled = (covariate - low) / (high - low)

    def weights(tilt: float) -> DoubleArray:
        raw = np.exp(tilt * scaled - max(tilt, 0.0))
        return np.asarray(raw / raw.mean(), np.float64)

    def excess(tilt: float) -> float:
        return float(np.average(scaled, weights=weights(tilt))) - (mean - low) / (high - low)

    bound = 1.0
    while excess(-bound) > 0 or excess(bound) < 0:
        bound *= 2
    found = weights(float(brentq(excess, -bound, bound, xtol=1e-12)))
    return SceneWeights(tuple(found.tolist()), float(found.max()))

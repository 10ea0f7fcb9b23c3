"""Made-up scores of scenes, for what is calibrated over scenes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seawall.uncertainty.scene_scores import DISTANCE_PIXELS, THRESHOLD_STEPS, SceneScores

LAMBDAS = np.arange(THRESHOLD_STEPS + 1) / THRESHOLD_STEPS
PIXELS = np.arange(DISTANCE_PIXELS + 1)


def scene(
    name: str, missed: NDArray[np.float64] | None, alarmed: NDArray[np.float64] | None,
    areas: Sequence[float] = (1.0, 0.1, 0.1, 8.8, 1.0, 0.2), beyond: NDArray[np.float64] | None = None,
) -> SceneScores:  # fmt: skip
    """Return the scores of a scene; the curves by distance are the same for both errors."""
    return SceneScores(name, 1, missed, alarmed, beyond, beyond, *areas)


def drawn_scenes(count: int, seed: int = 0) -> list[SceneScores]:
    """Return scenes that differ in how sure the network is of water, and in how far its shore is off."""
    rng = np.random.default_rng(seed)
    scenes = []
    for at in range(count):
        power, fall = rng.lognormal(0, 0.5), rng.uniform(0.3, 3)
        share, error = rng.uniform(0.05, 0.6), rng.normal(0, 0.05)
        misses, alarms = 0.3 + 10 * max(0, error), 0.3 + 10 * max(0, -error)  # errors that cancel, and some that do not
        areas = (10 * share, misses, alarms, 9.4 - 10 * share - 10 * abs(error), 10 * share, 0.5)
        scenes.append(
            scene(f"s{at}", LAMBDAS ** (2 * power), (1 - LAMBDAS) ** (3 * power), areas, np.exp(-PIXELS / fall) / 2)
        )
    return scenes

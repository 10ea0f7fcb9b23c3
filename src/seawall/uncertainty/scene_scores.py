"""What held-out scenes say about a predictor: errors of one class at every threshold and distance, and areas, scene by scene.

The unit is the scene (the group of a chip: one event or place). Pixels and tiles of one scene are not independent, so
guarantees and intervals are taken over scenes. Everything that is calibrated with a guarantee reads these scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from seawall.arrays import BoolArray, DoubleArray
from seawall.modules import to_device_of
from seawall.types import Batch, SegmentationModel
from seawall.uncertainty.distance import distance_pixels

THRESHOLD_STEPS = 1000
"""Thresholds of a probability are whole 1/1000ths."""
THRESHOLDS = (np.arange(THRESHOLD_STEPS + 1) / THRESHOLD_STEPS).astype(np.float32)
DISTANCE_PIXELS = 64
"""Largest distance from the border of the map, in pixels, at which errors are counted."""
ROUNDING = 1e-4
"""Distances are square roots of whole numbers in single precision; this much above a whole number is one."""


@dataclass(frozen=True)
class SceneScores:
    """Errors and areas of one class on one held-out scene, over its valid pixels.

    A curve is None where the scene has no pixel that it is a share of: without the class nothing can be missed.

    Args:
        scene: Name of the scene, the group of its chips.
        chips: Number of its chips.
        missed: (1001,) share of the pixels of the class whose probability is below i / 1000.
        alarmed: (1001,) share of the other pixels whose probability is at or above i / 1000.
        missed_beyond: (65,) share of the pixels of the class farther than d pixels from every pixel that is mapped as the class.
        alarmed_beyond: (65,) share of the other pixels mapped as the class and farther than d pixels from every other mapped pixel.
        hits_km2: Area of the class that is mapped as the class.
        misses_km2: Area of the class that is not.
        alarms_km2: Area of other pixels that is mapped as the class.
        rejections_km2: Area of other pixels that is not.
        expected_km2: Sum of probability times area.
        doubt_km2: Sum of probability times one less probability times area.
    """

    scene: str
    chips: int
    missed: DoubleArray | None
    alarmed: DoubleArray | None
    missed_beyond: DoubleArray | None
    alarmed_beyond: DoubleArray | None
    hits_km2: float
    misses_km2: float
    alarms_km2: float
    rejections_km2: float
    expected_km2: float
    doubt_km2: float

    @property
    def mapped_km2(self) -> float:
        """Area that is mapped as the class."""
        return self.hits_km2 + self.alarms_km2

    @property
    def true_km2(self) -> float:
        """Area of the class."""
        return self.hits_km2 + self.misses_km2

    @property
    def valid_km2(self) -> float:
        """Area of all valid pixels."""
        return self.true_km2 + self.alarms_km2 + self.rejections_km2


def score_scenes(
    model: SegmentationModel, batches: Iterable[Batch], scenes: Mapping[str, str], klass: str, gsd_m: float
) -> tuple[SceneScores, ...]:
    """Return the scores of each scene, by name; a scene without a valid pixel is left out.

    Args:
        model: In eval mode.
        batches: Chips that the model has not learned from.
        scenes: Scene of each chip; the chips of one scene are pooled, a chip without one is its own scene.
        klass: The class.
        gsd_m: Meters per pixel of the chips.
    """
    k = model.spec.klass(klass)
    counts: dict[str, _Counts] = {}
    for chips in batches:
        batch = to_device_of(model, chips)
        with torch.no_grad():
            logits = model(batch.image)
        probability = functional.softmax(logits.double(), 1)[:, k].cpu().numpy()
        winner = (logits.argmax(1) == k).cpu().numpy()
        label, valid, seen = (plane.cpu().numpy() for plane in (batch.label == k, batch.valid, batch.seen))
        for i, chip in enumerate(batch.chips):
            scene = scenes.get(chip, chip)
            counts.setdefault(scene, _Counts()).add(probability[i], winner[i] & seen[i], label[i], valid[i], seen[i])
    return tuple(counts[scene].scores(scene, gsd_m**2 / 1e6) for scene in sorted(counts) if counts[scene].pixels)


class _Counts:
    """Pixel counts of one scene, of the class and of the others."""

    def __init__(self) -> None:
        self.chips = 0
        self.of_class, self.of_others = (np.zeros(THRESHOLD_STEPS + 2, np.int64) for _ in range(2))
        self.missed_at, self.alarmed_at = (np.zeros(DISTANCE_PIXELS + 2, np.int64) for _ in range(2))
        self.hits = self.alarms = 0
        self.expected = self.doubt = 0.0

    @property
    def pixels(self) -> int:
        return int(self.of_class.sum() + self.of_others.sum())

    def add(self, p: DoubleArray, mapped: BoolArray, true: BoolArray, valid: BoolArray, seen: BoolArray) -> None:
        own, other = true & valid, ~true & valid
        self.chips += 1
        # A pixel of probability p is at or above thresholds up to p, and below all from the next step on; compared in single precision as in a map.
        step = np.searchsorted(THRESHOLDS, p.astype(np.float32).ravel(), side="right").reshape(p.shape)
        self.of_class += np.bincount(step[own], minlength=THRESHOLD_STEPS + 2)
        self.of_others += np.bincount(step[other], minlength=THRESHOLD_STEPS + 2)
        self.missed_at += _by_distance(mapped, own)
        self.alarmed_at += _by_distance(~mapped & seen, other)
        self.hits += int((mapped & own).sum())
        self.alarms += int((mapped & other).sum())
        self.expected += float(p[valid].sum())
        self.doubt += float((p * (1 - p))[valid].sum())

    def scores(self, scene: str, pixel_km2: float) -> SceneScores:
        own, other = int(self.of_class.sum()), int(self.of_others.sum())
        below, others_below = (np.cumsum(part)[: THRESHOLD_STEPS + 1] for part in (self.of_class, self.of_others))
        missed_within, alarmed_within = (np.cumsum(c)[: DISTANCE_PIXELS + 1] for c in (self.missed_at, self.alarmed_at))
        areas = (self.hits, own - self.hits, self.alarms, other - self.alarms, self.expected, self.doubt)
        return SceneScores(
            scene, self.chips,
            below / own if own else None,
            1 - others_below / other if other else None,
            1 - missed_within / own if own else None,
            1 - alarmed_within / other if other else None,
            *(count * pixel_km2 for count in areas),
        )  # fmt: skip


def _by_distance(targets: BoolArray, pixels: BoolArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Count pixels by their distance from the nearest target, rounded up; the last bin has what is farther or has no target."""
    if not pixels.any():
        return np.zeros(DISTANCE_PIXELS + 2, np.int64)
    far = np.ceil(distance_pixels(targets)[pixels] - ROUNDING)
    at = np.minimum(far, DISTANCE_PIXELS + 1).astype(np.int64)
    return np.bincount(at, minlength=DISTANCE_PIXELS + 2)

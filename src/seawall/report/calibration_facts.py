"""What the page of a calibration shows, as `seawall calibrate` gives it."""

from __future__ import annotations

from collections.abc import Mapping

from seawall.report.run_facts import RiskFacts, RunFile

ReliabilityBins = tuple[tuple[float, float, float], ...]
"""(confidence, accuracy, share of the pixels) per bin that holds pixels."""


class JudgedSceneFacts(RunFile):
    """The area of the class on one held-out scene, mapped and true, with the interval that other scenes give it."""

    scene: str
    true_km2: float
    mapped_km2: float
    low_km2: float | None = None
    high_km2: float | None = None


class CalibrationPageFacts(RunFile):
    """What `seawall calibrate` found, for its page.

    Args:
        title: Title of the page.
        about: (term, value) pairs of what was calibrated on what.
        klass: The class.
        reliability: Bins over all valid pixels, by curve.
        shore: Bins within three pixels of a shore, by curve.
        coverage: (coverage, error) of the surest pixels.
        scene_coverage: (coverage, mean of one less the IoU) of the surest scenes.
        areas: Area under both curves and the least that is possible, by name.
        risks: Risks at their thresholds.
        scenes: Areas of the held-out scenes.
        level: Of the intervals.
    """

    title: str
    about: tuple[tuple[str, str], ...]
    klass: str
    reliability: Mapping[str, ReliabilityBins]
    shore: Mapping[str, ReliabilityBins]
    coverage: tuple[tuple[float, float], ...]
    scene_coverage: tuple[tuple[float, float], ...]
    areas: Mapping[str, float]
    risks: tuple[RiskFacts, ...]
    scenes: tuple[JudgedSceneFacts, ...]
    level: float

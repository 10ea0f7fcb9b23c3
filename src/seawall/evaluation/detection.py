"""Whether attacked chips are noticed: what a model says of clean and of attacked chips, and detectors that never saw their group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from seawall.arrays import BoolArray, DoubleArray
from seawall.attacks.undetected import UndetectedPGD
from seawall.evaluation.case import CLEAN_CASE, Case
from seawall.metrics.bootstrap import IntervalEstimate
from seawall.metrics.calibration import CalibrationCounts, calibration_counts, expected_calibration_error
from seawall.metrics.counts import confusion
from seawall.metrics.detection import check_clean_groups, grouped_auroc, grouped_rate
from seawall.metrics.ratios import ConfusionCounts, compute_ratio
from seawall.modules import to_device_of
from seawall.records import finite_or_none
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel
from seawall.uncertainty.attack_detection import AttackDetector, fit_attack_detector
from seawall.uncertainty.chip_features import chip_features, feature_names, predict_with_gradients
from seawall.uncertainty.mahalanobis import group_folds

HARM = 0.05
"""An attack on a chip is a success where it makes this share of the valid pixels wrong, beside those that were wrong before."""


@dataclass(frozen=True)
class ChipReadings:
    """What a model says of chips.

    Args:
        chips: Ids.
        groups: Group of each chip.
        names: (F,) names of the features.
        features: (N, F), NaN where undefined.
        counts: Confusion counts of each chip.
        calibration: CalibrationCounts counts of each chip.
    """

    chips: tuple[str, ...]
    groups: tuple[str, ...]
    names: tuple[str, ...]
    features: DoubleArray
    counts: ConfusionCounts
    calibration: CalibrationCounts

    def by_group(self) -> dict[str, DoubleArray]:
        """Return group to the features of its chips."""
        groups = np.array(self.groups)
        return {group: self.features[groups == group] for group in dict.fromkeys(self.groups)}

    def select(self, kept: BoolArray) -> ChipReadings:
        """Return what it says of some of the chips (N,)."""
        chips, groups = (
            tuple(n for n, keep in zip(names, kept, strict=True) if keep) for names in (self.chips, self.groups)
        )
        return replace(
            self, chips=chips, groups=groups, features=self.features[kept], counts=self.counts.select(kept),
            calibration=self.calibration.select(kept),
        )  # fmt: skip

    def iou(self, klass: int) -> float | None:
        """Return the pooled IoU of a class."""
        return finite_or_none(float(compute_ratio("iou", self.counts.total())[klass]))

    @property
    def ece(self) -> float | None:
        """The pooled expected calibration error."""
        return expected_calibration_error(self.calibration)

    @property
    def accuracy(self) -> DoubleArray:
        """Share of right pixels of each chip (N,); NaN without a valid pixel."""
        return compute_ratio("accuracy", self.counts)[:, 0]


def read_chips(
    model: SegmentationModel,
    batches: Iterable[Batch],
    groups: Mapping[str, str],
    case: Case = CLEAN_CASE,
    seed: int = 0,
) -> ChipReadings:
    """Return what a model says of chips under a case.

    Args:
        model: In eval mode; a predictor of several passes has more features.
        batches: The chips.
        groups: Group of each chip; a chip without one is its own group.
        case: What is done to the images first.
        seed: Seed of the attack.
    """
    chips, features, tables, parts = list[str](), list[Tensor](), list[Tensor](), list[CalibrationCounts]()
    names: tuple[str, ...] = ()
    for clean in batches:
        batch = to_device_of(model, clean)
        image = case.image(model, batch, seed)
        with torch.no_grad():
            prediction = predict_with_gradients(model, image)
            features.append(chip_features(prediction, image, batch.image_seen).cpu())
        names = feature_names(model.spec.classes, prediction.passes > 1)
        logits = prediction.probability.clamp_min(torch.finfo(torch.float32).tiny).log()
        tables.append(confusion(logits.argmax(1), batch.label, batch.valid, logits.shape[1]).cpu())
        parts.append(calibration_counts(logits, batch.label, batch.valid))
        chips += batch.chips
    return ChipReadings(
        tuple(chips), tuple(groups.get(chip, chip) for chip in chips), names, torch.cat(features).numpy(),
        ConfusionCounts.of(torch.cat(tables).numpy()), CalibrationCounts.joined(parts),
    )  # fmt: skip


@dataclass(frozen=True)
class HeldOutDetectors:
    """For each group of the tested chips, a detector that was fitted to clean chips of other groups.

    Args:
        detectors: Group to its detector.
    """

    detectors: Mapping[str, AttackDetector]

    @staticmethod
    def of(clean: ChipReadings, others: ChipReadings | None, name: str, alarms: float) -> HeldOutDetectors:
        """Return the detectors of one feature, or of all.

        Args:
            clean: The tested chips as they are.
            others: Further clean chips, of groups that are not tested.
            name: A feature, or "all features".
            alarms: Share of clean chips of a new group that may be flagged.

        Raises:
            UsageError: There are too few groups for the rate, or there is no such feature.
        """
        own = clean.by_group()
        groups = sorted(own)
        every = {**({} if others is None else others.by_group()), **own}
        judged = [{groups[i] for i in out} for out, _ in group_folds(len(groups))]
        check_clean_groups("detect-attacks", len(every) - max(map(len, judged)), alarms)
        found: dict[str, AttackDetector] = {}
        for fold in judged:
            kept = {group: rows for group, rows in every.items() if group not in fold}
            found |= dict.fromkeys(fold, fit_attack_detector(kept, clean.names, name, alarms))
        return HeldOutDetectors(found)

    def scores(self, read: ChipReadings) -> DoubleArray:
        """Return the score of each chip in multiples of the cut-off of its detector, so that folds compare."""
        return np.array([score / detector.cut for score, detector in self._scored(read)])

    def flags(self, read: ChipReadings) -> BoolArray:
        """Return which chips are detected."""
        return np.array([bool(detector.flags(np.array([score]))[0]) for score, detector in self._scored(read)])

    def _scored(self, read: ChipReadings) -> Iterator[tuple[float, AttackDetector]]:
        for group, row in zip(read.groups, torch.from_numpy(read.features), strict=True):
            detector = self.detectors[group]
            yield float(detector.scores(row[None])[0]), detector


@dataclass(frozen=True)
class DetectorAware:
    """The attack of an adversary who knows the detector of each chip: `UndetectedPGD`, group by group.

    Args:
        detectors: Group to its detector.
        groups: Group of each chip; a chip without one is its own group.
        settings: Those of `UndetectedPGD`, whose detector is left open.
    """

    detectors: Mapping[str, AttackDetector]
    groups: Mapping[str, str]
    settings: UndetectedPGD = field(default_factory=UndetectedPGD)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        """Return the images (B, C, H, W)."""
        made = batch.image.detach().clone()
        names = [self.groups.get(chip, chip) for chip in batch.chips]
        for group in dict.fromkeys(names):
            at = [i for i, name in enumerate(names) if name == group]
            attack = replace(self.settings, detector=self.detectors[group])
            made[at] = attack(model, batch.select(at), threat, keys.select(at))
        return made


@dataclass(frozen=True)
class DetectionFigures:
    """How well a detector notices an attack.

    Args:
        auroc: Area under the ROC curve, with its interval over groups.
        detected: Share of attacked chips that are flagged, each group counted once, with its interval.
        alarms: The same of clean chips.
        success: Share of the chips that the attack does harm to.
        unnoticed: Share of the chips that the attack does harm to without being flagged.
    """

    auroc: IntervalEstimate
    detected: IntervalEstimate
    alarms: IntervalEstimate
    success: float
    unnoticed: float


def measure_detection(detectors: HeldOutDetectors, clean: ChipReadings, attacked: ChipReadings) -> DetectionFigures:
    """Return how well detectors notice an attack on chips, by the same chips as they are."""
    flagged = detectors.flags(attacked)
    harmed = clean.accuracy - attacked.accuracy >= HARM
    return DetectionFigures(
        grouped_auroc(detectors.scores(attacked), detectors.scores(clean), clean.groups),
        grouped_rate(flagged, clean.groups), grouped_rate(detectors.flags(clean), clean.groups),
        float(harmed.mean()), float((harmed & ~flagged).mean()),
    )  # fmt: skip

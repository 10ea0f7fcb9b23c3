"""Confident learning for masks: which pixels, and which chips, are probably labelled wrong.

Labels are compared with the predictions of a model that was not trained on them (out of sample). The chips are read
three times, one at a time; memory holds the counts and one histogram, whatever the number of chips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, DoubleArray
from seawall.errors import DataError, UsageError

MIN_CLASS_THRESHOLD = 2e-6
"""Least threshold of a class, so that a class that is never predicted does not turn every pixel into an issue."""
CONFIDENCE_TOLERANCE = 1e-6
HALF_WORDS = 1 << 16


@dataclass(frozen=True)
class OutOfSample:
    """A chip's label and the prediction of a model that was not trained on it.

    Args:
        chip: Id.
        probs: (K, H, W) probabilities of the classes, float32.
        label: (H, W) class indices, meaningless where not valid.
        valid: (H, W) pixels with a label that counts; the others are not counted and never an issue.
    """

    chip: str
    probs: NDArray[np.float32]
    label: NDArray[np.integer]
    valid: BoolArray

    def __post_init__(self) -> None:
        plane = self.probs.shape[1:]
        if self.probs.ndim != 3 or self.label.shape != plane or self.valid.shape != plane:
            raise DataError(
                f"prediction of {self.chip}: expected probabilities (K, H, W) over a label and valid of (H, W), got "
                f"{self.probs.shape}, {self.label.shape} and {self.valid.shape}; align them"
            )
        probs, labels = self.probs[:, self.valid], self.label[self.valid]
        if not np.isfinite(probs).all() or (probs.size and (probs.min() < 0 or probs.max() > 1 + 1e-5)):
            raise DataError(
                f"prediction of {self.chip}: expected probabilities in [0, 1], got others; pass softmax outputs"
            )
        if labels.size and (labels.min() < 0 or labels.max() >= len(self.probs)):
            raise DataError(
                f"prediction of {self.chip}: expected valid labels in 0..{len(self.probs) - 1}, got {labels.min()}..{labels.max()}; "
                "mark such pixels invalid"
            )

    @cached_property
    def given(self) -> NDArray[np.int64]:
        """Labels of the valid pixels, (N,)."""
        return self.label[self.valid].astype(np.int64)

    @cached_property
    def valid_probs(self) -> NDArray[np.float32]:
        """Probabilities of the valid pixels, (K, N)."""
        return self.probs[:, self.valid].astype(np.float32)

    @cached_property
    def quality(self) -> NDArray[np.float32]:
        """Probability of the given label of the valid pixels, (N,): the lower, the more suspect."""
        return np.asarray(np.take_along_axis(self.valid_probs, self.given[None], 0)[0], np.float32)

    @cached_property
    def guess(self) -> NDArray[np.int64]:
        """Most probable class of the valid pixels, (N,)."""
        return np.asarray(self.valid_probs.argmax(0), np.int64)


@dataclass(frozen=True)
class LabelIssues:
    """Confident learning over all chips: class thresholds, counts, and the cut below which a pixel is an issue.

    Args:
        thresholds: (K,) mean probability of a class over the pixels that are labelled so; NaN without any.
        joint: (K, K) pixels by (given label, class that the model is confident of); unsure pixels are not in it.
        labelled: (K,) valid pixels of each given label.
        issues: How many pixels are wrong, by the model's confident contradictions.
        cut: A pixel is an issue if the probability of its label is below this.
        ties: How many pixels at exactly that probability are issues as well, in the order in which they are read.
    """

    thresholds: DoubleArray
    joint: NDArray[np.int64]
    labelled: NDArray[np.int64]
    issues: int
    cut: float
    ties: int
    _taken: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def mask(self, sample: OutOfSample) -> BoolArray:
        """Return the pixels of a chip (H, W) that are probably labelled wrong; never one that is not valid."""
        low = sample.quality < self.cut
        if self.ties:
            low |= self._tied(sample)
        wrong = np.zeros(sample.valid.shape, bool)
        wrong[sample.valid] = low & (sample.guess != sample.given)
        return wrong

    def transition(self) -> DoubleArray:
        """Return the estimated probability of a given label (column) by true class (row); rows sum to 1.

        The confident counts are first scaled so that each given label weighs as many pixels as it has. A class that
        is never predicted with confidence keeps its labels.
        """
        total = self.joint.sum(1, keepdims=True)
        scaled = np.where(total > 0, self.joint / np.maximum(total, 1) * self.labelled[:, None], 0.0)
        scaled += np.diag(np.where(total[:, 0] == 0, self.labelled, 0)).astype(np.float64)
        by_truth = scaled.T
        mass = by_truth.sum(1, keepdims=True)
        return np.where(mass > 0, by_truth / np.maximum(mass, 1e-12), np.eye(len(mass)))

    def _tied(self, sample: OutOfSample) -> BoolArray:
        """Return the pixels at the cut that are issues: as many as are missing, chips in the order of their first call."""
        tied = sample.quality == np.float32(self.cut)
        count = int(np.count_nonzero(tied))
        if sample.chip not in self._taken:
            self._taken[sample.chip] = min(count, self.ties - sum(self._taken.values()))
        keep = np.flatnonzero(tied)[: self._taken[sample.chip]]
        chosen = np.zeros(len(tied), bool)
        chosen[keep] = True
        return chosen


def find_label_issues(samples: Callable[[], Iterable[OutOfSample]], classes: int) -> LabelIssues:
    """Find which pixels of all chips are probably labelled wrong.

    There are as many issues as confident contradictions: the pixels whose label is least probable, and of them only
    those where another class is predicted.

    Paper: Northcutt et al. 2021, arXiv:1911.00068, sections 3.1 and 3.2, with the pixels of all chips as examples.
    Differs: pixels without a label do not exist, and the cut comes from a histogram of the float bits, which is exact.

    Args:
        samples: Called three times at most; yields the chips in the same order each time.
        classes: K.

    Raises:
        DataError: A chip has another number of classes.

    Example:
        >>> probs = np.array([[[0.9, 0.9, 0.1]], [[0.1, 0.1, 0.9]]], np.float32)
        >>> chip = OutOfSample("a", probs, np.array([[0, 1, 1]]), np.ones((1, 3), bool))
        >>> found = find_label_issues(lambda: [chip], 2)
        >>> found.issues, found.mask(chip).tolist()
        (1, [[False, True, False]])
    """
    thresholds, labelled = _class_thresholds(samples, classes)
    joint, issues, high = _confident_joint(
        samples, np.maximum(np.nan_to_num(thresholds, nan=2.0), MIN_CLASS_THRESHOLD), classes
    )
    if issues == 0:
        return LabelIssues(thresholds, joint, labelled, 0, 0.0, 0)
    block = int(np.searchsorted(np.cumsum(high), issues))
    left = issues - int(high[:block].sum())
    low = np.zeros(HALF_WORDS, np.int64)
    for sample in samples():
        bits = _float_bits(sample.quality)
        low += np.bincount(bits[bits >> 16 == block] & 0xFFFF, minlength=HALF_WORDS)
    at = int(np.searchsorted(np.cumsum(low), left))
    cut = float(np.array([(block << 16) | at], np.uint32).view(np.float32)[0])
    return LabelIssues(thresholds, joint, labelled, issues, cut, left - int(low[:at].sum()))


def softmin(quality: NDArray[np.floating], temperature: float = 0.1) -> float | None:
    """Return a chip's label quality from its pixels': a mean that the worst pixels dominate; None without pixels.

    The sum of s softmax((1 - s) / temperature): near 0 if some pixels are surely wrong, 1 if none is.

    Example:
        >>> softmin(np.array([1.0, 1.0])), round(softmin(np.array([1.0, 0.0])), 4)
        (1.0, 0.0)
    """
    if quality.size == 0:
        return None
    scores = quality.astype(np.float64)
    weight = np.exp((scores.min() - scores) / temperature)
    return float((scores * weight).sum() / weight.sum())


def compare_second_source(
    sample: OutOfSample, other: BoolArray, defined: BoolArray, klass: int = 1
) -> tuple[float | None, BoolArray]:
    """Compare where a chip's label has a class with a second source, such as a water index.

    Args:
        sample: The chip.
        other: (H, W) bool: where the second source has the class.
        defined: (H, W) bool: where the second source is defined.
        klass: The class; the second source does not tell the other classes apart.

    Returns:
        The share of the pixels where both are defined on which they agree (None without any), and the pixels where
        the second source and the prediction both contradict the label.
    """
    both = sample.valid & defined
    given = sample.label == klass
    guess = np.zeros(sample.valid.shape, bool)
    guess[sample.valid] = sample.guess == klass
    against = both & (other != given) & (guess == other)
    count = int(np.count_nonzero(both))
    return (float(np.mean(other[both] == given[both])) if count else None), against


def precision_recall(found: Sequence[BoolArray], wrong: Sequence[BoolArray]) -> tuple[float | None, float | None]:
    """Return which share of the found pixels is wrong, and which share of the wrong ones was found; None where none are."""
    hit = sum(int(np.count_nonzero(f & w)) for f, w in zip(found, wrong, strict=True))
    issues, true = (sum(int(np.count_nonzero(plane)) for plane in planes) for planes in (found, wrong))
    return (hit / issues if issues else None), (hit / true if true else None)


def _class_thresholds(
    samples: Callable[[], Iterable[OutOfSample]], classes: int
) -> tuple[DoubleArray, NDArray[np.int64]]:
    total, count = np.zeros(classes), np.zeros(classes, np.int64)
    for sample in samples():
        if len(sample.probs) != classes:
            raise DataError(
                f"prediction of {sample.chip}: expected {classes} classes, got {len(sample.probs)}; use one model for all"
            )
        total += np.bincount(sample.given, weights=sample.quality.astype(np.float64), minlength=classes)
        count += np.bincount(sample.given, minlength=classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan), count


def _confident_joint(
    samples: Callable[[], Iterable[OutOfSample]], bar: DoubleArray, classes: int
) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
    """Return the confident joint, its contradictions, and the histogram of the upper bits of the quality."""
    joint, high = np.zeros((classes, classes), np.int64), np.zeros(HALF_WORDS, np.int64)
    for sample in samples():
        guess, given = sample.guess, sample.given
        sure = np.take_along_axis(sample.valid_probs, guess[None], 0)[0] >= bar[guess] - CONFIDENCE_TOLERANCE
        joint += np.bincount(given[sure] * classes + guess[sure], minlength=classes * classes).reshape(classes, classes)
        high += np.bincount(_float_bits(sample.quality) >> 16, minlength=HALF_WORDS)
    return joint, int(joint.sum() - np.trace(joint)), high


def _float_bits(quality: NDArray[np.float32]) -> NDArray[np.int64]:
    """Bits of numbers that are not negative, which sort as the numbers do."""
    # adding zero turns -0.0, whose bits would sort last, into 0.0
    return (quality + np.float32(0)).astype(np.float32).view(np.uint32).astype(np.int64)


def tail_evidence(values: Sequence[float | None]) -> list[float | None]:
    """Return how unusually high each value is among all: minus the decimal logarithm of its tail probability.

    The probability is estimated twice, and the smaller one counts. By counting: the share of the values that are at
    least as high, 1 / n at best. By size: the excess over the median falls off exponentially, with the median excess
    of the values above the median for scale, which is robust while fewer than half of the labels are wrong.

    Args:
        values: One per chip, the higher the more suspicious; None where there is none, which stays None.

    Raises:
        UsageError: A value is not finite.

    Example:
        >>> [None if e is None else round(e, 2) for e in tail_evidence([0.0, 0.0, None, 1.0, 2.0, 0.0, 20.0, 0.0])]
        [0.0, 0.0, None, 0.37, 0.54, 0.0, 3.01, 0.0]
    """
    there = np.array([value for value in values if value is not None], np.float64)
    if not np.isfinite(there).all():
        raise UsageError("evidence: expected finite numbers or None, got others; leave out what is not known")
    middle = float(np.median(there)) if there.size else 0.0
    above = there[there > middle] - middle
    scale = math.log10(2) / float(np.median(above)) if above.size else 0.0
    ordered = np.sort(there)

    def evidence(value: float) -> float:
        as_high = len(ordered) - int(np.searchsorted(ordered, value, "left"))
        return max(math.log10(len(ordered) / as_high), (value - middle) * scale)

    return [None if value is None else evidence(value) for value in values]


def combined_evidence(evidence: Sequence[float | None]) -> float | None:
    """Return the sum of the evidence of several tests against one chip; None if no test applies.

    Paper: Fisher 1932, Statistical Methods for Research Workers, section 21.1: tail probabilities are multiplied.
    Differs: the tests use the same prediction and are not independent, so the sum ranks chips and is no p-value.

    Example:
        >>> combined_evidence([2.0, 0.0, None]), combined_evidence([None])
        (2.0, None)
    """
    there = [value for value in evidence if value is not None]
    return sum(there) if there else None

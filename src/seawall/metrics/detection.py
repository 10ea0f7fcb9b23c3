"""Figures of detectors: the area under the ROC curve, and p-values and flags against scores of clean items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seawall.arrays import BoolArray, DoubleArray
from seawall.errors import UsageError
from seawall.metrics.bootstrap import IntervalEstimate, Resamples, estimate_quotient, percentile_interval
from seawall.metrics.ratios import divide_or_nan


def auroc(suspect: DoubleArray, clean: DoubleArray) -> float | None:
    """Return the probability that a suspect item has the higher score than a clean one, ties counted half; None without both.

    Example:
        >>> auroc(np.array([2.0, 1.0]), np.array([0.0, 1.0]))
        0.875
    """
    if not len(suspect) or not len(clean):
        return None
    return float(_wins(suspect, clean).mean())


def grouped_auroc(
    suspect: DoubleArray, clean: DoubleArray, groups: Sequence[str], draws: Resamples | None = None
) -> IntervalEstimate:
    """Return the AUROC of chips with its interval over groups.

    Args:
        suspect: (N,) scores of the chips after the attack.
        clean: (N,) scores of the same chips as they are.
        groups: Group of each chip; a group is redrawn with all its chips, clean and suspect.
        draws: Resamples over `groups`; 1000 by default.
    """
    draws = draws or Resamples.over(groups)
    wins = draws.member @ _wins(suspect, clean) @ draws.member.T
    pairs = np.outer(draws.member.sum(1), draws.member.sum(1))

    def drawn(weights: DoubleArray) -> DoubleArray:
        top, bottom = (np.einsum("rg,gh,rh->r", weights, table, weights) for table in (wins, pairs))
        return divide_or_nan(top, bottom)

    low, high = percentile_interval(drawn(draws.weights)[:, None])
    return IntervalEstimate(drawn(draws.once), low, high, np.array([len(draws.member)]))


def grouped_rate(flagged: BoolArray, groups: Sequence[str]) -> IntervalEstimate:
    """Return the share of flagged chips, the mean over groups of the share of each, with its interval over groups."""
    draws = Resamples.over(groups)
    share = divide_or_nan(draws.member @ flagged, draws.member.sum(1))
    each = Resamples(np.eye(len(share)), draws.weights)
    return estimate_quotient(share, np.ones(len(share)), len(share), each)


def conformal_p_values(scores: DoubleArray, clean: DoubleArray, groups: Sequence[str] = ()) -> DoubleArray:
    """Return the p-value of each score against clean scores: (1 + groups at least as high) / (groups + 1).

    A group counts by the share of its chips that are at least as high. For a random chip of a new group, exchangeable with the
    groups of the clean scores, the p-value is at most alpha with a probability of at most alpha, whatever the distribution
    of the scores and however alike the chips of a group are.

    Args:
        scores: (N,) higher is more suspect; NaN gives a p-value of 1.
        clean: (M,); NaN counts as higher than every score.
        groups: Group of each clean score; without it each is a group of its own.

    Paper: Lee, Barber, Willett 2023, arXiv:2306.06342, section 3; with groups of one the usual conformal p-value.

    Example:
        >>> conformal_p_values(np.array([3.0, 0.0]), np.array([1.0, 2.0, 2.5])).tolist()
        [0.25, 1.0]
        >>> conformal_p_values(np.array([2.0]), np.array([1.0, 2.0, 2.5]), ["a", "a", "b"]).tolist()
        [0.8333333333333334]
    """
    names = list(groups) or [str(i) for i in range(len(clean))]
    member = Resamples.over(names, samples=0).member
    weight = (member / member.sum(1, keepdims=True)).sum(0)
    order = np.argsort(clean := np.where(np.isnan(clean), np.inf, clean), kind="stable")
    above = np.append(np.cumsum(weight[order][::-1])[::-1], 0.0)
    counted = above[np.searchsorted(clean[order], scores, side="left")]
    return np.where(np.isnan(scores), 1.0, np.minimum((1 + counted) / (len(member) + 1), 1.0))


def conformal_flags(scores: DoubleArray, clean: DoubleArray, alarms: float, groups: Sequence[str] = ()) -> BoolArray:
    """Return which scores are too high for a clean item, by conformal p-values against clean ones.

    Args:
        scores: (N,) of the tested items.
        clean: (M,) of items known to be clean.
        alarms: False-alarm rate; `clean_groups_needed` says how many groups it takes, or nothing can be flagged.
        groups: Group of each clean item, as of `conformal_p_values`.

    Example:
        >>> conformal_flags(np.array([19.5, 18.5]), np.arange(20.0), 0.05)
        array([ True, False])
    """
    return np.asarray(conformal_p_values(scores, clean, groups) <= alarms + 1e-9)


def clean_groups_needed(alarms: float) -> int:
    """Return how many clean groups a false-alarm rate needs: with fewer no p-value is as small.

    Example:
        >>> clean_groups_needed(0.05), clean_groups_needed(0.1)
        (19, 9)
    """
    return math.ceil(1 / alarms - 1 - 1e-9)


def check_clean_groups(where: str, groups: int, alarms: float) -> None:
    """Check that there are enough clean groups for a false-alarm rate.

    Raises:
        UsageError: The rate is outside of (0, 1), or there are too few; the message says how many are missing.
    """
    if not 0 < alarms < 1:
        raise UsageError(f"{where}.alarms: expected a rate inside (0, 1), got {alarms:g}; 0.05 is usual")
    if (missing := clean_groups_needed(alarms) - groups) > 0:
        raise UsageError(
            f"{where}: expected at least {clean_groups_needed(alarms)} clean groups for a false-alarm rate of {alarms:g}, got "
            f"{groups}, {missing} too few; add groups or allow {math.ceil(1000 / (groups + 1)) / 1000:g}"
        )


def _wins(suspect: DoubleArray, clean: DoubleArray) -> DoubleArray:
    """Return (N, M): 1 where the suspect score is higher, 0.5 at a tie."""
    difference = np.asarray(suspect)[:, None] - np.asarray(clean)[None]
    return np.asarray((difference > 0) + 0.5 * (difference == 0), np.float64)

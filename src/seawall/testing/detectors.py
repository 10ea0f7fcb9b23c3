"""What every detector of poisoned chips must keep."""

from __future__ import annotations

import numpy as np

from seawall.arrays import DoubleArray
from seawall.poisoning.detection import PoisonDetector
from seawall.registry import Entry
from seawall.testing.assertions import made

CHIPS = tuple(f"c{i}" for i in range(40))
POISONED = CHIPS[:6]


def check_one_finite_score_per_chip(entry: Entry) -> None:
    """Every chip has a finite score and a flag, in the order of the chips, and the features are not written to."""
    features = _features()
    before = features.copy()
    found = made(entry, PoisonDetector)(CHIPS, features)
    assert found.chips == CHIPS and found.scores.shape == found.flagged.shape == (len(CHIPS),)
    assert bool(np.isfinite(found.scores).all()) and found.flagged.dtype == np.bool_
    assert np.array_equal(features, before), "the detector wrote to its features"


def check_a_group_apart_ranks_first(entry: Entry) -> None:
    """Chips that lie far from all others, together, have the highest scores."""
    auc = made(entry, PoisonDetector)(CHIPS, _features()).auc(POISONED)
    assert auc is not None and auc >= 0.95, f"expected chips that lie apart to rank first, got an AUC of {auc}"


def check_the_order_of_the_chips_means_nothing(entry: Entry) -> None:
    """Chips in another order have the same scores."""
    features, order = _features(), np.random.default_rng(1).permutation(len(CHIPS))
    usual = made(entry, PoisonDetector)(CHIPS, features)
    other = made(entry, PoisonDetector)([CHIPS[i] for i in order], features[order])
    assert np.allclose(other.scores, usual.scores[order], atol=1e-6), "a score depends on the order of the chips"


def check_trusted_chips_bound_false_alarms(entry: Entry) -> None:
    """On clean chips, with trusted chips of the same kind, the share that is flagged is near `alarms` on average or below."""
    shares = []
    for seed in range(30):
        draw = np.random.default_rng(seed)
        clean, trusted = draw.normal(size=(len(CHIPS), 6)), draw.normal(size=(60, 6))
        shares.append(float(made(entry, PoisonDetector)(CHIPS, clean, trusted).flagged.mean()))
    assert np.mean(shares) <= 0.1, f"5 % asked, {np.mean(shares):.3f} of the clean chips flagged"


def _features() -> DoubleArray:
    features = np.random.default_rng(0).normal(size=(len(CHIPS), 6))
    features[: len(POISONED)] += 8.0
    return features


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

"""Figures of detectors: AUROC, and p-values against clean scores of groups."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from seawall.metrics.bootstrap import Resamples
from seawall.metrics.detection import auroc, conformal_flags, conformal_p_values, grouped_auroc, grouped_rate


def test_auroc_agrees_with_scikit_learn_ties_included():
    draw = np.random.default_rng(0)
    suspect, clean = draw.integers(2, 9, 40).astype(float), draw.integers(0, 7, 60).astype(float)
    wanted = roc_auc_score([1] * 40 + [0] * 60, np.concatenate([suspect, clean]))
    assert auroc(suspect, clean) == pytest.approx(wanted)
    assert auroc(suspect, clean[:0]) is None and auroc(suspect[:0], clean) is None


def test_auroc_of_groups_redraws_a_group_with_its_clean_and_its_suspect_chips():
    draw = np.random.default_rng(0)
    groups = [f"g{i // 3}" for i in range(30)]
    clean = draw.normal(size=30)
    suspect = clean + 1
    draws = Resamples.over(groups, samples=50)
    found = grouped_auroc(suspect, clean, groups, draws)
    assert found.value[0] == pytest.approx(auroc(suspect, clean))
    chips = [np.repeat(np.arange(30), (weights @ draws.member).astype(int)) for weights in draws.weights]
    each = [auroc(suspect[at], clean[at]) for at in chips]
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(np.percentile(each, [2.5, 97.5])))


def test_p_values_keep_their_promise_for_a_new_group_however_alike_its_chips_are():
    draw = np.random.default_rng(0)
    raised, naive = [], []
    for _ in range(4000):
        sizes = draw.choice([1, 12], size=20)
        scores = [draw.normal() + 0.1 * draw.normal(size=size) for size in sizes]
        groups = [f"g{i}" for i, size in enumerate(sizes[1:]) for _ in range(size)]
        clean, new = np.concatenate(scores[1:]), scores[0]
        raised.append(np.mean(conformal_flags(new, clean, 0.1, groups)))
        naive.append(np.mean(conformal_flags(new, clean, 0.1)))
    assert 0.07 < np.mean(raised) <= 0.1 + 3 * np.std(raised) / 4000**0.5
    assert np.mean(naive) > np.mean(raised) + 0.02  # chips as if they were independent raise too many alarms


def test_undefined_scores_are_never_in_favor_of_an_alarm():
    clean = np.array([0.0, 1.0, np.nan])
    assert conformal_p_values(np.array([np.nan, 5.0]), clean).tolist() == [1.0, 0.5]


def test_a_rate_counts_each_group_once():
    found = grouped_rate(np.array([True, True, True, False]), ["a", "a", "a", "b"])
    assert found.value[0] == 0.5 and (found.low[0], found.high[0]) == (0.0, 1.0) and found.n[0] == 2

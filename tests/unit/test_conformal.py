"""Conformal risk control and quantiles over scenes, with and without weights."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.regression import SplitConformalRegressor
from scipy.stats import beta, kstest
from sklearn.base import BaseEstimator, RegressorMixin

from scene_numbers import LAMBDAS, drawn_scenes, scene
from seawall.errors import DataError, UsageError
from seawall.uncertainty.conformal import (
    ClassSets,
    Risk,
    RiskControl,
    SceneWeights,
    class_sets,
    conformal_quantile,
    conformal_threshold,
    control_risk,
    effective_number,
    parse_risk,
)
from seawall.uncertainty.covariate_shift import CovariateShift, parse_shift, tilted_weights


@given(st.sampled_from(["miss", "false-alarm"]), st.floats(0, 1, exclude_min=True, exclude_max=True), st.booleans())
def test_the_text_of_a_risk_is_read_back(name, alpha, by_distance):
    risk = Risk(name, alpha, by_distance)
    assert parse_risk(str(risk)) == risk
    assert parse_shift(str(CovariateShift(alpha))) == CovariateShift(alpha)


@pytest.mark.parametrize(
    "text", ["miss 5", "miss 0%", "miss 100%", "false alarm 1%", "miss 5% by meters", "miss 1.2.3%", ""]
)
def test_a_text_that_is_no_risk_is_refused(text):
    with pytest.raises(UsageError, match="risk: expected"):
        parse_risk(text)
    with pytest.raises(UsageError, match="shift: expected"):
        parse_shift(text)


def test_a_threshold_by_hand():
    """Four scenes that miss 0.1 from probability 0.3 on and 0.6 from 0.4 on: (4 * 0.1 + 1) / 5 = 0.28 is the risk before 0.4."""
    missed = np.where(LAMBDAS >= 0.4, 0.6, np.where(LAMBDAS >= 0.3, 0.1, 0.0))
    scores = [scene(str(i), missed, 1 - LAMBDAS) for i in range(4)]
    found = control_risk(Risk("miss", 0.28), scores, 10.0)
    assert found.at == 0.399 and found.scenes == 4 and found.needed == 3 and found.empirical == pytest.approx(0.1)
    assert control_risk(Risk("miss", 0.27), scores, 10.0).at == 0.299
    assert control_risk(Risk("miss", 0.9), scores, 10.0).at == 0.5  # never bolder than the map
    alarm = control_risk(Risk("false-alarm", 0.44), scores, 10.0)
    assert alarm.at == 0.7 and alarm.empirical == pytest.approx(0.3)  # (4 * 0.3 + 1) / 5
    assert class_sets([found, alarm]) == ClassSets(0.399, 0.7)


def test_distances_are_meters_from_the_map():
    beyond = np.where(np.arange(65) < 3, 0.5, 0.0)  # half of the missed pixels are farther than two pixels
    scores = [scene(str(i), LAMBDAS, 1 - LAMBDAS, beyond=beyond) for i in range(9)]
    outer, inner = (control_risk(Risk(name, 0.1, True), scores, 30.0) for name in ("miss", "false-alarm"))
    assert outer.at == 90.0 and inner.at == 90.0 and str(outer).startswith("miss 10% by distance: 90 m")
    assert class_sets([outer, inner]) == ClassSets(outer_m=90.0, inner_m=90.0)
    assert control_risk(Risk("miss", 0.6, True), scores, 30.0).at == 0.0
    assert RiskControl.of(json.loads(json.dumps(outer.plain()))) == outer
    with pytest.raises(DataError, match="calibrate again"):
        RiskControl.of({**outer.plain(), "risk": "all is well"})
    assert "with some of the class" in outer.valid_for and "with some" not in inner.valid_for


@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize("name", ["miss", "false-alarm"])
def test_the_risk_of_new_scenes_is_at_most_alpha_over_resampled_splits(name, by_distance):
    """The mean over 1000 splits, within three standard errors; and no more cautious than one scene costs, alpha - 2 / (n + 1)."""
    scores, alpha, n = drawn_scenes(300), 0.1, 25
    risk, rng, seen = Risk(name, alpha, by_distance), np.random.default_rng(1), []
    for _ in range(1000):
        order = rng.permutation(len(scores))
        at = control_risk(risk, [scores[i] for i in order[:n]], 10.0).at
        new = scores[order[n]]
        curve = {("miss", False): new.missed, ("false-alarm", False): new.alarmed}.get(
            (name, by_distance), new.missed_beyond
        )
        seen.append(curve[round(at / 10 if by_distance else at * 1000)])
    error = np.std(seen) / math.sqrt(1000)
    assert alpha - 2 / (n + 1) - 3 * error <= np.mean(seen) <= alpha + 3 * error


def test_too_few_scenes_name_how_many_are_missing():
    found = control_risk(Risk("miss", 0.05), drawn_scenes(8), 10.0)
    assert (found.at, found.scenes, found.needed, found.missing) == (None, 8, 19, 11)
    assert "11 fewer than the 19" in str(found)
    with pytest.raises(
        DataError, match=r"enough scenes for miss 5%, got 8 scenes with pixels of the class, 11 fewer than the 19"
    ):
        class_sets([found])
    assert control_risk(Risk("miss", 0.05), drawn_scenes(19), 10.0).at is not None


def test_scenes_without_the_class_promise_nothing_about_misses():
    scores = [scene(str(i), None, 1 - LAMBDAS) for i in range(30)]
    found = control_risk(Risk("miss", 0.1), scores, 10.0)
    assert (found.at, found.scenes, found.missing) == (None, 0, 9)
    assert control_risk(Risk("false-alarm", 0.1), scores, 10.0).scenes == 30
    one = control_risk(Risk("miss", 0.1), [*scores, scene("wet", LAMBDAS, None)], 10.0)
    assert (one.scenes, one.missing) == (1, 8)


def test_a_risk_that_no_set_keeps_says_that_more_scenes_do_not_help():
    unseen = [scene(str(i), LAMBDAS, 1 - LAMBDAS, beyond=np.full(65, 0.2)) for i in range(50)]  # empty maps
    found = control_risk(Risk("miss", 0.1, True), unseen, 10.0)
    assert found.at is None and found.needed is None and found.missing is None
    with pytest.raises(DataError, match=r"20\.0% at the most cautious set: more scenes do not help; raise the share"):
        class_sets([found])
    more = control_risk(Risk("miss", 0.21, True), unseen, 10.0)
    assert (more.needed, more.missing) == (79, 29)  # (n * 0.2 + 1) / (n + 1) <= 0.21
    many = [*unseen, *unseen[:29]]
    assert control_risk(Risk("miss", 0.21, True), many, 10.0).at is not None
    assert control_risk(Risk("miss", 0.21, True), many[:-1], 10.0).at is None


def test_a_share_that_no_number_of_scenes_shows():
    assert control_risk(Risk("miss", 1e-320), drawn_scenes(30), 10.0).needed is None


def test_two_risks_of_one_side_are_refused():
    controls = [control_risk(Risk("miss", alpha), drawn_scenes(50), 10.0) for alpha in (0.1, 0.2)]
    with pytest.raises(UsageError, match="one miss risk"):
        class_sets(controls)


def test_conformal_settings_are_checked():
    with pytest.raises(UsageError, match="alpha"):
        conformal_threshold(np.zeros((9, 2)), np.array([0.0, 1.0]), 1.5)
    with pytest.raises(UsageError, match="grow"):
        conformal_threshold(np.array([[1.0, 0.0]]), np.array([0.0, 1.0]), 0.5)
    with pytest.raises(UsageError, match=r"one per scene \(3\), got 2"):
        control_risk(Risk("miss", 0.1), drawn_scenes(3), 10.0, SceneWeights((1.0, 1.0), 1.0))
    for wrong in (((1.0, -1.0), 1.0), ((1.0, math.nan), 1.0), ((1.0,), 0.0), ((1.0,), math.inf)):
        with pytest.raises(UsageError, match="weights: expected finite"):
            SceneWeights(*wrong)


def test_equal_weights_change_nothing_and_double_weights_are_scenes_twice():
    scores, risk = drawn_scenes(40), Risk("miss", 0.1)
    plain = control_risk(risk, scores, 10.0)
    assert control_risk(risk, scores, 10.0, SceneWeights((2.0,) * 40, 2.0)) == plain
    twice = control_risk(risk, [*scores, *scores[:7]], 10.0)
    weighted = control_risk(risk, scores, 10.0, SceneWeights((2.0,) * 7 + (1.0,) * 33, 1.0))
    assert weighted.at == twice.at and weighted.empirical == pytest.approx(twice.empirical)
    assert (
        weighted.effective == pytest.approx(47**2 / (4 * 7 + 33)) and weighted.needed == 8
    )  # 9 scenes of mean weight 47 / 40
    heavy = control_risk(risk, scores, 10.0, SceneWeights((1.0,) * 40, 5.0))
    assert heavy.at is None and heavy.needed == 45 and heavy.missing == 5


class Zero(RegressorMixin, BaseEstimator):
    def fit(self, X, y):
        self.fitted_ = True
        return self

    def predict(self, X):
        return np.zeros(len(X))


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [20, 40, 101])
def test_the_quantile_is_that_of_mapie(n, level):
    values = np.random.default_rng(n).normal(size=n)
    features = np.zeros((n, 1))
    mapie = SplitConformalRegressor(Zero().fit(features, values), confidence_level=level, prefit=True)
    interval = mapie.conformalize(features, values).predict_interval(features[:1])[1]
    assert conformal_quantile(np.abs(values), level) == pytest.approx(float(interval[0, 1, 0]))


def test_coverage_given_the_calibration_scenes_is_beta_distributed():
    """Uniform values: the quantile itself is the coverage, Beta(k, n + 1 - k) with k = ceil((n + 1) level)."""
    rng, n, level = np.random.default_rng(0), 20, 0.9
    found = [conformal_quantile(rng.uniform(size=n), level) for _ in range(2000)]
    k = math.ceil((n + 1) * level)
    assert kstest(found, beta(k, n + 1 - k).cdf).pvalue > 0.01
    assert conformal_quantile(rng.uniform(size=8), level) is None and conformal_quantile(np.array([]), level) is None
    assert conformal_quantile(np.arange(9.0), level) == 8.0


def test_weights_restore_the_coverage_that_a_shift_takes():
    """From N(0, 1) to N(1, 1) with errors of scale exp(x / 2): 0.76 without weights, at least 0.9 with those of the density ratio."""
    rng, plain, weighted = np.random.default_rng(0), [], []
    for _ in range(2000):
        x, new = rng.normal(size=100), rng.normal(1)
        errors, error = np.abs(rng.normal(size=100)) * np.exp(x / 2), abs(rng.normal()) * math.exp(new / 2)
        weights = SceneWeights(tuple(np.exp(x - 0.5)), math.exp(new - 0.5))
        plain.append(error <= conformal_quantile(errors, 0.9))
        found = conformal_quantile(errors, 0.9, weights)
        weighted.append(found is None or error <= found)
    assert np.mean(plain) == pytest.approx(0.76, abs=0.03)
    assert 0.885 <= np.mean(weighted) <= 0.96


def test_tilted_weights_have_the_stated_mean_and_their_own_effective_number():
    x = np.random.default_rng(0).beta(0.5, 2, 200)
    for mean in (0.02, float(x.mean()), 0.6):
        weights = tilted_weights(x, mean)
        own = np.array(weights.of_scenes)
        assert np.average(x, weights=own) == pytest.approx(mean, abs=1e-9) and weights.new == own.max()
        log = np.log(own)
        assert (
            np.corrcoef(log, x)[0, 1] ** 2 == pytest.approx(1)
            if mean != x.mean()
            else weights.effective == pytest.approx(200)
        )
    assert effective_number(np.array([2.0, 1.0, 1.0])) == pytest.approx(16 / 6)


def test_a_shift_that_no_weights_reach_is_refused():
    scores = drawn_scenes(20)
    shares = [score.mapped_km2 / score.valid_km2 for score in scores]
    weights = CovariateShift(0.3).weights(scores)
    assert np.average(shares, weights=weights.of_scenes) == pytest.approx(0.3)
    with pytest.raises(DataError, match=r"mean share inside that of the 20 calibration scenes, .* got 99.0%"):
        CovariateShift(0.99).weights(scores)
    with pytest.raises(DataError, match="0 calibration scenes"):
        CovariateShift(0.5).weights([])
    assert tilted_weights(np.array([0.0, 0.001, 1.0]), 1e-5).effective < 1.1
    found = control_risk(Risk("miss", 0.05), scores, 10.0, CovariateShift(min(shares) + 0.01).weights(scores))
    assert found.at is None and found.effective < 8 and "that count as" in found.reason


def test_scenes_with_less_of_the_class_than_asked_for_do_not_count() -> None:
    """The promise is for scenes with at least so much: a scene of a few missed pixels is left out, and the threshold rises."""
    scores = drawn_scenes(40)
    shares = np.array([score.true_km2 / score.valid_km2 for score in scores])
    least = float(np.round(np.median(shares), 3))
    kept = [score for score, share in zip(scores, shares, strict=True) if share >= least]
    assert 15 < len(kept) < 30
    asked = parse_risk(f"miss 20% from {100 * least:.1f}%")
    assert asked.least == pytest.approx(least) and parse_risk(str(asked)) == asked
    control = control_risk(asked, scores, 10.0)
    plain = control_risk(parse_risk("miss 20%"), kept, 10.0)
    assert (control.scenes, control.at, control.empirical) == (len(kept), plain.at, plain.empirical)
    assert "new scenes with at least" in control.valid_for
    few = control_risk(parse_risk("miss 1% from 50%"), scores, 10.0)
    assert few.at is None and "scenes with at least 50% pixels of the class" in few.reason
    for text in ("false-alarm 5% from 1%", "miss 5% from 100%"):
        with pytest.raises(UsageError, match="'from' a share below 100% for a miss rate alone"):
            parse_risk(text)

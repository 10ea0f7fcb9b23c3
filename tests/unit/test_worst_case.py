"""The worst case of a suite: exact where it can be, greedy where it must be."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.worst_case import WORST, Candidates, worst_case, worst_each, worst_pooled, worst_ratio
from seawall.records import Record

CLASSES = ("land", "water")


def candidates(seed: int, attacks: int = 3, images: int = 8, classes: int = 2) -> Candidates:
    rng = np.random.default_rng(seed)
    union = rng.integers(0, 60, (attacks, images, classes)).astype(float)
    overlap = np.floor(union * rng.random(union.shape))
    return Candidates(overlap, union, np.ones((attacks, images), bool))


def enumerate_all(c: Candidates) -> float:
    attacks, images, _ = c.overlap.shape
    return min(
        c.pooled(np.array(choice))
        for choice in itertools.product(range(attacks), repeat=images)
        if all(c.there[a, i] for i, a in enumerate(choice))
    )


@pytest.mark.parametrize("seed", range(6))
def test_greedy_reaches_the_optimum_of_full_enumeration(seed: int) -> None:
    c = candidates(seed, attacks=2 + seed % 2, classes=2 + seed % 3)
    value, chosen = worst_pooled(c)
    assert value == pytest.approx(c.pooled(chosen), abs=1e-12)
    assert value == pytest.approx(enumerate_all(c), abs=1e-12)


def test_class_that_is_nowhere_does_not_shift_the_others() -> None:
    c = candidates(1, classes=3)
    c.union[..., 1] = c.overlap[..., 1] = 0
    two = Candidates(c.overlap[..., [0, 2]], c.union[..., [0, 2]], c.there)
    assert worst_pooled(c)[0] == pytest.approx(worst_pooled(two)[0]) == pytest.approx(enumerate_all(c))


def test_best_candidate_wins_not_the_last_that_improves() -> None:
    overlap = np.array([[[9.0, 9.0]], [[1.0, 1.0]], [[5.0, 5.0]]])
    c = Candidates(overlap, np.full_like(overlap, 10.0), np.ones((3, 1), bool))
    assert worst_pooled(c, restarts=0) == (pytest.approx(0.1), np.array([1]))


def test_missing_runs_are_no_candidates() -> None:
    c = candidates(3)
    c.there[2, :] = False
    c.there[0, 4] = False
    value, chosen = worst_pooled(c)
    assert (chosen != 2).all() and chosen[4] == 1
    assert value == pytest.approx(enumerate_all(c), abs=1e-12)


def test_worst_of_nothing_is_undefined() -> None:
    c = Candidates(np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), np.ones((2, 3), bool))
    assert np.isnan(worst_pooled(c)[0]) and np.isnan(worst_ratio(c.overlap[..., 0], c.union[..., 0], c.there)[0])
    assert np.isnan(worst_each(np.full((2, 3), np.nan), c.there)[0]).all()


@pytest.mark.parametrize("seed", range(20))
def test_worst_ratio_is_exact(seed: int) -> None:
    c = candidates(seed, attacks=3, images=6)
    top, bottom = c.overlap[..., 0], c.union[..., 0]
    every = np.array(list(itertools.product(range(3), repeat=6)))
    at = np.arange(6)
    best = (top[every, at].sum(1) / bottom[every, at].sum(1)).min()
    value, chosen = worst_ratio(top, bottom, c.there)
    assert value == pytest.approx(best, abs=1e-12)
    assert top[chosen, at].sum() / bottom[chosen, at].sum() == pytest.approx(best, abs=1e-12)


def chip(
    method: str, name: str, tp: int, fp: int, fn: int, pixels: int = 100, flags: tuple[str, ...] = ()
) -> list[Record]:
    threat = "" if method == "clean" else "linf 1% reflectance"
    key = ("r", "unet", method, threat, name, name[0])
    rows = [Record(*key, m, "water", v, pixels, flags) for m, v in (("tp", tp), ("fp", fp), ("fn", fn))]
    land = pixels - tp - fp - fn
    rows += [Record(*key, m, "land", v, pixels) for m, v in (("tp", land), ("fp", fn), ("fn", fp))]
    return [*rows, Record(*key, "pixels", "", pixels, pixels)]


SUITE = [
    *chip("clean", "a1", 40, 0, 0), *chip("clean", "a2", 10, 0, 0), *chip("clean", "b1", 30, 5, 5),
    *chip("pgd", "a1", 10, 0, 30), *chip("pgd", "a2", 9, 0, 1), *chip("pgd", "b1", 30, 5, 5),
    *chip("cosine", "a1", 30, 0, 10, flags=("vanishing gradients",)), *chip("cosine", "a2", 0, 50, 10), *chip("cosine", "b1", 40, 60, 0),
]  # fmt: skip


def test_rows_of_the_worst_case_by_hand() -> None:
    rows = worst_case(SUITE)
    got = {(r.metric, r.klass): r for r in rows if not r.chip}
    assert {r.method for r in rows} == {WORST} and {r.threat for r in rows} == {"linf 1% reflectance"}
    assert got["accuracy.per_chip", ""].value == pytest.approx((0.7 + 0.4 + 0.4) / 3)
    assert got["iou.per_chip", "water"].value == pytest.approx((10 / 40 + 0 + 0.4) / 3)
    assert got["iou.pooled", "water"].value == pytest.approx((10 + 0 + 40) / (40 + 60 + 100))
    assert got["won.pgd", ""].value == pytest.approx(1 / 3) and got["won.cosine", ""].value == pytest.approx(2 / 3)
    assert {r.chip: r.metric for r in rows if r.chip} == {"a1": "won.pgd", "a2": "won.cosine", "b1": "won.cosine"}
    assert "vanishing gradients" in got["miou.pooled", ""].flags


def test_worst_case_is_never_above_a_member_and_grows_with_the_suite() -> None:
    all_rows = {(r.metric, r.klass): r.value for r in worst_case(SUITE) if not r.chip}
    one = {(r.metric, r.klass): r.value for r in worst_case(SUITE, ["pgd"]) if not r.chip}
    members = [r for r in aggregate_records(SUITE) if not r.group and (r.metric, r.klass) in all_rows]
    for r in members:
        if r.metric.endswith((".pooled", ".per_chip")) and not r.metric.startswith("won"):
            assert all_rows[r.metric, r.klass] <= r.value + 1e-12
            assert all_rows[r.metric, r.klass] <= one[r.metric, r.klass] + 1e-12


def test_partial_suite_says_so() -> None:
    rows = worst_case([r for r in SUITE if not (r.method == "pgd" and r.chip == "a1")])
    assert any("partial suite: 1 of 9 missing" in r.flags for r in rows)
    assert worst_case([r for r in SUITE if r.method == "clean"]) == []


@pytest.mark.parametrize("classes", [("water", "land"), ("land", "water")])
def test_the_winner_is_judged_by_water_whatever_the_order_of_the_classes(classes: tuple[str, str]) -> None:
    # "few" leaves the lower water IoU (.5 against .56), "many" the lower land IoU (.91 against .95)
    held = [*chip("clean", "a1", 10, 0, 0), *chip("few", "a1", 5, 0, 5), *chip("many", "a1", 10, 8, 0)]
    held.sort(key=lambda row: classes.index(row.klass) if row.klass else 2)
    assert {r.metric for r in worst_case(held) if r.chip} == {"won.few"}
    assert {r.metric for r in worst_case(held, klass="land") if r.chip} == {"won.many"}
    renamed = [replace(row, klass={"water": "forest", "land": "other"}.get(row.klass, "")) for row in held]
    last = {"water": "won.few", "land": "won.many"}[classes[1]]
    assert {r.metric for r in worst_case(renamed) if r.chip} == {last}


def test_figures_and_worst_case_hold_the_threat_as_values() -> None:
    threat = {"norm": "linf", "eps": (0.01,), "unit": "reflectance", "bands": ("B03",)}
    held = [replace(row, **threat) if row.threat else row for row in SUITE]
    made = [*aggregate_records(held), *worst_case(held)]
    assert {(r.norm, r.eps, r.unit, r.bands) for r in made if r.threat} == {("linf", (0.01,), "reflectance", ("B03",))}
    assert {r.norm for r in made if not r.threat} == {""}

"""Certificates by draws: SciPy and enumeration as oracles, published counts, and false certificates where the truth is known."""

from collections.abc import Callable
from itertools import pairwise, product
from math import ceil, comb, factorial, log, prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from seawall.errors import ModelError, UsageError
from seawall.rng import Keys
from seawall.testing.fixtures import TWO_SOURCE_SPEC, ground_batch, linear_model, two_source_batch, two_source_model
from seawall.training.objectives.gaussian_noise import GaussianNoise
from seawall.types import ModelSpec
from seawall.uncertainty.certification import (
    ABSTAIN,
    Certification,
    certified_classes,
    needed_votes,
    run_looks,
    top_votes,
)
from seawall.uncertainty.gaussian_smoothing import with_gaussian_noise
from seawall.uncertainty.smoothed_votes import NOISE_BLOCK, PositionNoise, count_votes, noise_scale

PIXELS = 65536
TAU, ALPHA = 0.75, 1e-3
SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)


def unanimous(draws: int, pixels: int = PIXELS) -> np.ndarray:
    votes = np.zeros(draws + 1, np.int64)
    votes[draws] = pixels
    return votes


@pytest.mark.parametrize(("needed", "draws"), [(97, 100), (182, 200), (265, 300), (427, 500), (824, 1000)])
def test_votes_at_a_fixed_number_of_draws(needed: int, draws: int) -> None:
    assert needed_votes(unanimous(draws), TAU, ALPHA, "bonferroni") == needed
    # SciPy's exact test, and the sum that the choice of the class adds
    p = [stats.binomtest(k, draws, TAU, alternative="greater").pvalue for k in (needed - 1, needed)]
    assert p[1] <= ALPHA / PIXELS < p[0]


def test_votes_at_each_look_of_the_schedule() -> None:
    settings = Certification(sigma=0.01, correction="bonferroni")
    looks = settings.schedule(PIXELS)
    assert looks == (80, 160, 320, 640, 1000)
    assert [settings.judge(unanimous(n)).needed for n in looks] == [79, 149, 283, 542, 828]
    assert Certification(sigma=0.01, samples=70).schedule(PIXELS) == (70,), "no look before the last can certify"
    with pytest.raises(UsageError, match=r"samples: expected about 63 or more .* got 62, with which no pixel"):
        Certification(sigma=0.01, samples=62).schedule(PIXELS)


@pytest.mark.parametrize(("side", "least"), [(256, 63), (512, 68)])
def test_draws_without_which_no_pixel_can_be_certified(side: int, least: int) -> None:
    assert ceil(log(ALPHA / side**2) / log(TAU)) == least
    assert needed_votes(unanimous(least - 1, side**2), TAU, ALPHA, "bonferroni") is None
    assert needed_votes(unanimous(least, side**2), TAU, ALPHA, "bonferroni") == least


def exact_most(p: tuple[float, ...], draws: int) -> dict[int, float]:
    """Return P(some class has at least m votes) by enumeration of all counts."""
    found = dict.fromkeys(range(draws + 1), 0.0)
    for counts in product(range(draws + 1), repeat=len(p) - 1):
        last = draws - sum(counts)
        if last >= 0:
            every = (*counts, last)
            chance = (
                factorial(draws) / prod(factorial(c) for c in every) * prod(q**c for q, c in zip(p, every, strict=True))
            )
            for m in range(max(every) + 1):
                found[m] += chance
    return found


@pytest.mark.parametrize("classes", [2, 3])
def test_no_first_draws_are_needed_to_choose_among_classes(classes: int) -> None:
    """Whatever the probabilities up to tau are, the most frequent class has m votes no more often than the bound says."""
    draws, tau, met = 14, 0.6, 0.0
    grid = [i / 20 for i in range(13)]
    for some in product(grid, repeat=classes - 1):
        p = (*some, 1 - sum(some))
        if not -1e-9 <= p[-1] <= tau + 1e-9:
            continue
        exact = exact_most(tuple(max(q, 0.0) for q in p), draws)
        for m in range(ceil(tau * (draws - 1) + 1), draws + 1):
            bound = stats.binom.sf(m - 1, draws, tau) + stats.binom.cdf(draws - m, draws, tau)
            assert exact[m] <= bound + 1e-12, (p, m)
            met = max(met, exact[m] / bound)
    assert met == pytest.approx(1, abs=1e-9), "the bound is reached at (tau, 1 - tau)"


def slow_holm(tops: list[int], draws: int, tau: float, level: float) -> set[int]:
    """Return the certified pixels by the step-down rule, one number of votes after the other."""

    def chance(where: range) -> float:
        return sum(comb(draws, x) * tau**x * (1 - tau) ** (draws - x) for x in where)

    certified: set[int] = set()
    for m in sorted(set(tops), reverse=True):
        bound = (len(tops) - len(certified)) * chance(range(m, draws + 1)) + len(tops) * chance(range(draws - m + 1))
        if bound > level or m - 1 < tau * (draws - 1):
            break
        certified |= {i for i, top in enumerate(tops) if top == m}
    return certified


@given(st.integers(0, 10**6), st.sampled_from([0.6, 0.75, 0.9]), st.sampled_from([0.3, 0.05, 0.001]))
def test_holm_is_the_step_down_rule_and_certifies_all_that_bonferroni_does(seed: int, tau: float, level: float) -> None:
    draws, random = 40, np.random.default_rng(seed)
    counts = random.binomial(draws, random.choice([tau, 0.95, 0.999], 30))
    tops = [int(max(c, draws - c)) for c in counts]
    votes = np.bincount(tops, minlength=draws + 1)
    holm, bonferroni = (needed_votes(votes, tau, level, rule) for rule in ("holm", "bonferroni"))
    certified = {i for i, top in enumerate(tops) if holm is not None and top >= holm}
    assert certified == slow_holm(tops, draws, tau, level)
    assert bonferroni is None or certified >= {i for i, top in enumerate(tops) if top >= bonferroni}


def test_any_pixel_may_be_certified_as_its_less_probable_class() -> None:
    """A thousand pixels are certified, and one is left, for which Holm's correction leaves the whole level; they all stay in it."""
    tau, draws, level, m = 0.55, 40, 0.05, 29
    votes = unanimous(draws, 1000)
    votes[m] = 1
    upper, lower = stats.binom.sf(m - 1, draws, tau), stats.binom.cdf(draws - m, draws, tau)
    assert upper <= level < upper + 1001 * lower
    assert (needed_votes(votes, tau, level) or 0) > m
    assert slow_holm([40] * 1000 + [m], draws, tau, level) == set(range(1000))


def test_all_looks_together_cross_by_chance_two_thirds_of_what_is_allowed() -> None:
    """Exact, by the distribution of counts that have not crossed at any look before."""
    settings = Certification(sigma=0.01, correction="bonferroni")
    looks = settings.schedule(PIXELS)
    alive, before, crossed = np.ones(1), 0, 0.0
    for draws in looks:
        alive = np.convolve(alive, stats.binom.pmf(np.arange(draws - before + 1), draws - before, TAU))
        needed = settings.judge(unanimous(draws)).needed
        assert needed is not None
        crossed += alive[needed:].sum()
        alive[needed:] = 0
        before = draws
    assert crossed / (ALPHA / PIXELS) == pytest.approx(0.67, abs=0.01)


def coins(probability: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
    """Return draws of pixels that vote for water with these probabilities, as `run_looks` wants them."""
    random, water, held = np.random.default_rng(seed), np.zeros(len(probability), np.int64), [0]

    def draw(until: int) -> np.ndarray:
        water[:] += random.binomial(until - held[0], probability)
        held[0] = until
        return np.bincount(np.maximum(water, until - water), minlength=until + 1)

    return draw


def test_few_draws_certify_nearly_all_that_a_thousand_do() -> None:
    random = np.random.default_rng(0)
    kind = random.random(PIXELS)
    p = np.where(
        kind < 0.95, 0.995, np.where(kind < 0.98, random.uniform(0.8, 0.99, PIXELS), random.uniform(0.5, 0.8, PIXELS))
    )
    fixed = Certification(sigma=0.01, correction="bonferroni", looks=(1000,))
    published = run_looks(fixed, PIXELS, coins(p, 1))
    for correction in ("bonferroni", "holm"):
        found = run_looks(Certification(sigma=0.01, correction=correction), PIXELS, coins(p, 1))
        assert found.draws == 160, "it ends by itself, far below half of the published draws"
        assert found.certified > 0.98 * published.certified
    assert run_looks(Certification(sigma=0.01, gain=0.0), PIXELS, coins(p, 1)).draws > 160


def test_an_earlier_runs_looks_are_passed_over_and_nothing_seen_needs_no_draw() -> None:
    p = np.full(PIXELS, 0.93)
    whole, again = coins(p, 3), coins(p, 3)
    found = run_looks(Certification(sigma=0.01), PIXELS, whole)
    assert found.draws > 80
    again(80)
    resumed = run_looks(Certification(sigma=0.01), PIXELS, lambda until: None if until == 80 else again(until))
    assert resumed == found

    def never(until: int) -> np.ndarray:
        raise AssertionError("drawn")

    assert run_looks(Certification(sigma=0.01), 0, never).certified == 0


SIDE, FAMILY = 128, 128
"""Pixels of an image whose rows are families of their own."""


def linear_predictor(probability: np.ndarray, sigma: float) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return an image (2, H, W) and a linear score that is positive under noise with these probabilities: Phi(score / (sigma |w|))."""
    weight = np.array([3.0, -4.0], np.float32)
    image = np.stack([stats.norm.ppf(probability) * sigma * 5 / 3, np.zeros_like(probability)]).astype(np.float32)

    def predict(images: np.ndarray) -> np.ndarray:
        score = np.einsum("c,bchw->bhw", weight, images)
        return np.stack([-score, score], 1)

    return image, predict


@pytest.mark.parametrize("correction", ["bonferroni", "holm"])
@pytest.mark.parametrize("mixed", [False, True])
def test_false_certificates_are_as_rare_as_stated(correction: str, mixed: bool) -> None:
    """At the boundary, p = tau for land or for water, beside pixels whose class is nearly sure.

    With this gain the draws end at the first look that certifies anything: the worst time to look, for the test.
    """
    alpha, sigma, looks, images = 0.2, 0.05, (30, 50, 80, 120), 4
    settings = Certification(
        sigma=sigma, tau=0.6, alpha=alpha, samples=120, correction=correction, looks=looks, gain=1e-9
    )
    at = np.where(np.arange(SIDE) % 2 == 0, 0.6, 0.4)
    p = np.tile(np.where(np.arange(SIDE) % 4 < 3, np.where(at > 0.5, 0.999, 0.001), at) if mixed else at, (SIDE, 1))
    truth = np.where(p[0] > 0.6, 1, np.where(p[0] < 0.4, 0, -1))  # at the boundary no class may be certified
    image, predict = linear_predictor(p, sigma)
    rows = cols = np.arange(SIDE)
    false = 0
    for seed in range(images):
        noise = PositionNoise(seed, 2)
        parts = [
            count_votes(predict, image, np.full_like(image, sigma), lambda n, own=noise: own.draw(n, rows, cols), range(*part), 30)
            for part in pairwise((0, *looks))
        ]  # fmt: skip
        counts = dict(zip(looks, np.cumsum(np.stack(parts), 0), strict=True))
        for row in range(SIDE):
            of_row = {draws: votes[:, row : row + 1] for draws, votes in counts.items()}
            look = run_looks(settings, FAMILY, lambda n, own=of_row: top_votes(own[n], np.ones((1, SIDE), bool), n))
            classes = certified_classes(of_row[look.draws], look.needed)[0]
            false += bool(((classes != ABSTAIN) & (classes != truth)).any())
    families = images * SIDE
    assert 0 < false <= alpha * families + 3 * (alpha * (1 - alpha) * families) ** 0.5


def test_noise_belongs_to_the_position() -> None:
    noise, everywhere = PositionNoise(5, 3), np.arange(2 * NOISE_BLOCK + 9)
    whole = noise.draw(7, everywhere, everywhere)
    rows, cols = np.arange(NOISE_BLOCK - 3, NOISE_BLOCK + 20), np.arange(100, 2 * NOISE_BLOCK + 5)
    assert (noise.draw(7, rows, cols) == whole[:, rows][:, :, cols]).all()
    mirrored = np.array([4, 5, 6, 5, 4])
    assert (noise.draw(7, mirrored, cols) == whole[:, mirrored][:, :, cols]).all()
    assert stats.kstest(whole.ravel(), "norm").pvalue > 1e-3
    others = [
        PositionNoise(6, 3).draw(7, rows, cols),
        noise.draw(8, rows, cols),
        noise.draw(7, rows + NOISE_BLOCK, cols),
    ]
    here = noise.draw(7, rows, cols)
    for other in (*others, here[[1, 2, 0]]):
        assert abs(np.corrcoef(here.ravel(), other.ravel())[0, 1]) < 4 / here.size**0.5


def test_only_what_is_seen_gets_noise() -> None:
    batch = ground_batch(size=32)
    image, seen = batch.image[0].numpy(), batch.seen[0].numpy()
    scale = noise_scale(image, seen, (0.01, 0.02), linear_model().spec)
    assert (scale[0] == np.float32(0.01) * seen).all() and (scale[1] == np.float32(0.02) * seen).all()
    joint = two_source_batch(size=32)
    own = noise_scale(joint.image[0].numpy(), joint.seen[0].numpy(), (1.0, 0.01), TWO_SOURCE_SPEC)
    assert ((own > 0) == joint.image_seen[0].numpy()).all(), "a source without an image gets none"
    noisy = with_gaussian_noise(joint.image, joint.image_seen, (1.0, 0.01), Keys(0, joint.chips))
    moved = noisy != joint.image
    assert (moved == joint.image_seen).all()
    assert float((noisy - joint.image)[:, 0][moved[:, 0]].std()) == pytest.approx(1.0, rel=0.1)


def test_training_adds_noise_of_the_stated_deviation() -> None:
    batch, given = ground_batch(size=32), []
    model = linear_model()
    model.register_forward_pre_hook(lambda module, images: given.append(images[0]))
    GaussianNoise(sigma=(0.01, 0.05))(model, batch, Keys(0, batch.chips))
    change = (given[0] - batch.image).detach()
    for band, sigma in enumerate((0.01, 0.05)):
        assert float(change[:, band][batch.seen].std()) == pytest.approx(sigma, rel=0.05)
    assert not change.masked_select(~batch.seen[:, None].expand_as(change)).any()
    with pytest.raises(UsageError, match="one number per band"):
        GaussianNoise(sigma=0.01)(two_source_model(), two_source_batch(), Keys(0, two_source_batch().chips))


def test_a_radius_is_said_in_the_unit_of_the_image() -> None:
    seven = ModelSpec(tuple(f"B{i}" for i in range(7)), ("land", "water"), "reflectance", 30.0)
    text = Certification(sigma=0.01).radius_text(seven, 51)
    assert "below 0.006745 reflectance within 103 x 103 pixels" in text
    assert (
        "1 x 1 pixels by 0.0025 reflectance" in text
        and "5 x 5 pixels by 0.00051" in text
        and "32 x 32 pixels by 8e-05" in text
    )
    uneven = Certification(sigma=(0.01, 0.02)).radius_text(SPEC, None)
    assert "below 0.6745 standard deviations;" in uneven and "by 0.48 standard deviations" in uneven


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "certify.sigma: .*above 0"),
        ({"sigma": (0.01, float("nan"))}, "certify.sigma: .*above 0"),
        ({"sigma": 0.01, "tau": 0.5}, "certify.tau: .*above 0.5"),
        ({"sigma": 0.01, "alpha": 1.0}, "certify.alpha: .*below 1"),
        ({"sigma": 0.01, "samples": 10**6}, "at most 60000"),
        ({"sigma": 0.01, "looks": (200, 100, 1000)}, "rising numbers"),
        ({"sigma": 0.01, "looks": (100, 200)}, "end with samples"),
        ({"sigma": 0.01, "correction": "none"}, "certify.correction"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Certification(**settings)  # type: ignore[arg-type]


def test_votes_for_nothing_finite_are_refused() -> None:
    image = torch.zeros(2, 4, 4).numpy()
    with pytest.raises(ModelError, match="finite probabilities under noise"):
        count_votes(lambda x: x * np.float32("nan"), image, image + 1, lambda n: image, range(3))

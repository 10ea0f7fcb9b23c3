"""Certificates by randomized smoothing: at which pixels a class holds for every l2 perturbation within a radius.

The smoothed network gives a pixel the class that the network gives it most often under Gaussian noise on the whole image. A class
with a probability above tau stays the most frequent one for every perturbation whose length in standard deviations of the noise is
below the radius. The probability is not known, so it is tested by draws, jointly for all pixels of a scene: with probability 1 - alpha
no pixel of the scene is certified whose probability is at most tau.

The most frequent of all draws is tested on these same draws. A pixel none of whose K classes is more probable than tau >= 1/2 has m of n
votes for some class with a probability of at most P(Bin(n, tau) >= m) + P(Bin(n, tau) <= n - m): the sum over its classes is convex in
their probabilities, so it is largest where one has tau and another one the rest. The first draws of the paper, which only choose a
class, are not needed, and the second term is all that the choice costs.

Paper: Fischer, Baader, Vechev 2021 (SegCertify), arXiv 2107.00228; Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918; for several
deviations Eiras et al. 2021, arXiv:2107.04570.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator
from scipy import stats

from seawall.arrays import ByteArray, DoubleArray
from seawall.errors import UsageError
from seawall.settings import settings
from seawall.threat.model import UNIT_NAMES
from seawall.types import ModelSpec, units_of

ABSTAIN = 254
"""Value of a pixel without a certificate in a map of certified classes."""
MOST_DRAWS = 60000
"""Votes are stored in two bytes."""

VoteHistogram = NDArray[np.int64]
"""(n + 1,) number of pixels whose most frequent class has m of n votes, at index m."""


@settings("certify", "see `seawall certify --help`")
class Certification:
    """What is certified, and how many draws may be spent on it.

    Args:
        sigma: Standard deviation of the noise in the unit of the image: one number, or one per band.
        tau: Least probability of a certified class; the radius is the normal quantile of it.
        alpha: Probability, over the draws, that any pixel of a scene is certified wrongly.
        samples: The most draws, each a pass of the network over all pixels.
        correction: How alpha is shared among the pixels: "holm", which certifies all that "bonferroni" does and more.
        looks: Rising numbers of draws, the last one `samples`, after which the draws may end; alpha is shared equally among them. Empty
            chooses them: the first at which one draw for another class leaves a certificate, and each further one twice as late.
        gain: The draws end when the next look is expected to certify fewer further pixels than this share of all.
        seed: Seed of the noise.

    Raises:
        UsageError: A setting is out of its range.

    Example:
        >>> Certification(sigma=0.01).schedule(65536)
        (80, 160, 320, 640, 1000)
        >>> round(Certification(sigma=0.01).radius, 4)
        0.6745
    """

    sigma: float | tuple[float, ...]
    tau: float = 0.75
    alpha: float = 0.001
    samples: PositiveInt = 1000
    correction: Literal["holm", "bonferroni"] = "holm"
    looks: tuple[PositiveInt, ...] = ()
    gain: NonNegativeFloat = 0.01
    seed: NonNegativeInt = 0

    @field_validator("sigma")
    @classmethod
    def _check_sigma(cls, sigma: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not _is_sigma(sigma):
            raise ValueError("finite numbers above 0, in the unit of the image")
        return sigma

    @field_validator("tau")
    @classmethod
    def _check_tau(cls, tau: float) -> float:
        if not 0.5 < tau < 1:
            raise ValueError("a probability above 0.5 and below 1, such as 0.75")
        return tau

    @field_validator("alpha")
    @classmethod
    def _check_alpha(cls, alpha: float) -> float:
        if not 0 < alpha < 1:
            raise ValueError("a probability above 0 and below 1, such as 0.001")
        return alpha

    def __post_init__(self) -> None:
        if self.samples > MOST_DRAWS:
            raise UsageError(f"certify.samples: expected at most {MOST_DRAWS}, got {self.samples}; 1000 are usual")
        if self.looks and (sorted(set(self.looks)) != list(self.looks) or self.looks[-1] != self.samples):
            raise UsageError(
                f"certify.looks: expected rising numbers of draws that end with samples ({self.samples}), got {self.looks}; such as "
                f"({self.samples},) for a fixed number"
            )

    @property
    def radius(self) -> float:
        """Length below which no perturbation changes a certified class, in standard deviations of the noise."""
        return float(stats.norm.ppf(self.tau))

    def sigma_of(self, spec: ModelSpec) -> tuple[float, ...]:
        """Return the standard deviation of every band of a model.

        Raises:
            UsageError: There is another number of them than of bands, or one for bands in several units.
        """
        return sigma_per_band("certify.sigma", self.sigma, spec)

    def local_change(self, bands: int, pixels: int) -> float:
        """Return by how many standard deviations of its band each of so many pixels may change in every band at once.

        Example:
            >>> certified = Certification(sigma=0.01)
            >>> [round(certified.local_change(7, pixels), 4) for pixels in (1, 25, 1024, 262144)]
            [0.2549, 0.051, 0.008, 0.0005]
        """
        return self.radius / math.sqrt(bands * pixels)

    def radius_text(self, spec: ModelSpec, reach: int | None) -> str:
        """Return in words what a perturbation may be.

        Args:
            spec: Specification of the model.
            reach: Radius of its receptive field in pixels: what is farther from a pixel does not count for it. None without a bound.

        Example:
            >>> spec = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
            >>> Certification(sigma=0.01).radius_text(spec, 1)
            'changes of seen pixels with an l2 norm below 0.006745 reflectance within 3 x 3 pixels; as 1 x 1 pixels by 0.0048 reflectance, 5 x 5 pixels by 0.00095 reflectance or 32 x 32 pixels by 0.00015 reflectance in each of 2 bands'
        """
        sigma = self.sigma_of(spec)
        alike = len(set(sigma)) == 1 and not isinstance(spec.unit, tuple)
        unit, factor = (UNIT_NAMES[units_of(spec.unit, 1)[0]], sigma[0]) if alike else ("standard deviations", 1.0)
        where = "" if reach is None else f" within {2 * reach + 1} x {2 * reach + 1} pixels"
        parts = [
            f"{side} x {side} pixels by {factor * self.local_change(len(sigma), side * side):.2g} {unit}"
            for side in (1, 5, 32)
        ]
        return (
            f"changes of seen pixels with an l2 norm below {factor * self.radius:.4g} {unit}{where}; as {parts[0]}, {parts[1]} or "
            f"{parts[2]} in each of {len(sigma)} bands"
        )

    def schedule(self, pixels: int) -> tuple[int, ...]:
        """Return the looks over so many pixels.

        Raises:
            UsageError: Even a pixel whose votes agree could not be certified at the last one.
        """
        looks: tuple[int, ...] = self.looks or self._chosen_looks(pixels)
        level = self.alpha / len(looks) / pixels
        if self.tau**self.samples + (1 - self.tau) ** self.samples > level:
            least = math.ceil(math.log(level) / math.log(self.tau))
            raise UsageError(
                f"certify.samples: expected about {least} or more for {pixels} pixels, tau {self.tau:g} and alpha {self.alpha:g} over "
                f"{len(looks)} looks, got {self.samples}, with which no pixel can be certified; raise samples"
            )
        return looks

    def _chosen_looks(self, pixels: int) -> tuple[int, ...]:
        looks: tuple[int, ...] = (self.samples,)
        for count in range(1, 32):
            first = _first_look(self.tau, self.alpha / count, pixels, self.samples)
            looks = (*(n for n in (first << i for i in range(32)) if n < self.samples), self.samples)
            if len(looks) <= count:
                break
        return looks

    def judge(self, votes: VoteHistogram, following: int | None = None) -> LookResult:
        """Return what one of the looks certifies.

        Args:
            votes: Histogram over all pixels of the scene.
            following: Draws at the next look; None at the last one.
        """
        pixels = int(votes.sum())
        level = self.alpha / len(self.schedule(pixels))
        needed = needed_votes(votes, self.tau, level, self.correction)
        certified = 0 if needed is None else int(votes[needed:].sum())
        expected = 0.0 if following is None else _expected_pixels(votes, self.tau, level, following) - certified
        return LookResult(len(votes) - 1, pixels, needed, certified, expected)


@dataclass(frozen=True)
class LookResult:
    """What is certified after some draws.

    Args:
        draws: Number of draws.
        pixels: Seen pixels of the scene.
        needed: Least number of votes of a certified pixel; None where no number is enough.
        certified: Pixels with as many.
        expected: Further pixels that the next look is expected to certify.
    """

    draws: int
    pixels: int
    needed: int | None
    certified: int
    expected: float = 0.0


def run_looks(certification: Certification, pixels: int, draw: Callable[[int], VoteHistogram | None]) -> LookResult:
    """Draw until the last look, or until the next one is not expected to be worth its draws.

    Only the look at which the draws end gives certificates. Each look has its own share of alpha, so it may depend on the votes which
    one that is.

    Args:
        certification: What is certified.
        pixels: Seen pixels of the scene.
        draw: Adds draws up to a number and returns the histogram; None for a look after which an earlier run went on.
    """
    looks = certification.schedule(pixels) if pixels else ()
    found = LookResult(0, pixels, None, 0)
    for at, draws in enumerate(looks):
        votes = draw(draws)
        if votes is None:
            continue
        following = looks[at + 1] if at + 1 < len(looks) else None
        found = certification.judge(votes, following)
        if following is None or found.expected < certification.gain * pixels:
            break
    return found


def needed_votes(votes: VoteHistogram, tau: float, level: float, correction: str = "holm") -> int | None:
    """Return the least number of votes with which a class is certified, jointly for all pixels at a level; None without one.

    With Bonferroni's correction m of n votes are enough where K (P(X >= m) + P(X <= n - m)) is at most the level, with X of Bin(n, tau)
    and K pixels. Holm's goes down from the most votes and replaces the first K by the number of pixels that are not certified yet: up
    to the first false certificate all those certified before it were right, so at most that many pixels have no class above tau. The
    second K stays, for any pixel may be certified as a class that is not its most probable one.

    Args:
        votes: (n + 1,) pixels by the votes of their most frequent class.
        tau: Probability that a certified class exceeds.
        level: Probability of any false certificate.
        correction: "holm" or "bonferroni".

    Example:
        >>> unanimous = np.zeros(101, np.int64)
        >>> unanimous[100] = 65536
        >>> needed_votes(unanimous, 0.75, 0.001, "bonferroni")
        97
    """
    draws, pixels = len(votes) - 1, int(votes.sum())
    upper, lower = _tails(draws, tau)
    left = np.cumsum(votes) if correction == "holm" else np.full(draws + 1, pixels)
    # below the mean the sum over the classes is not convex
    enough = (left * upper + pixels * lower <= level) & (np.arange(draws + 1) - 1 >= tau * (draws - 1))
    failing = ~enough & (votes > 0) if correction == "holm" else ~enough
    start = int(np.flatnonzero(failing)[-1]) + 1 if failing.any() else 0
    found = np.flatnonzero(enough[start:])
    return start + int(found[0]) if len(found) else None


def top_votes(votes: NDArray[np.uint16], seen: NDArray[np.bool_], draws: int) -> VoteHistogram:
    """Return the histogram (n + 1,) of the votes (K, H, W) that the most frequent class of each seen pixel has."""
    return np.bincount(votes.max(0)[seen], minlength=draws + 1).astype(np.int64)


def certified_classes(votes: NDArray[np.uint16], needed: int | None) -> ByteArray:
    """Return the certified class (H, W) of votes (K, H, W); `ABSTAIN` where none has as many as are needed."""
    enough = np.zeros(votes.shape[1:], np.bool_) if needed is None else votes.max(0) >= needed
    return np.where(enough, votes.argmax(0), ABSTAIN).astype(np.uint8)


def check_sigma(where: str, sigma: float | Sequence[float]) -> None:
    """Check a standard deviation, or one per band.

    Raises:
        UsageError: It is not a finite number above 0.
    """
    if not _is_sigma(sigma):
        raise UsageError(
            f"{where}: expected finite numbers above 0, in the unit of the image, got {sigma}; such as 0.01"
        )


def _is_sigma(sigma: float | Sequence[float]) -> bool:
    each = (sigma,) if isinstance(sigma, int | float) else tuple(sigma)
    return bool(each) and all(math.isfinite(one) and one > 0 for one in each)


def sigma_per_band(where: str, sigma: float | Sequence[float], spec: ModelSpec) -> tuple[float, ...]:
    """Return a standard deviation for each band of a model.

    Raises:
        UsageError: There is another number of them than of bands, or one for bands in several units.
    """
    bands = len(spec.bands)
    each = (sigma,) if isinstance(sigma, int | float) else tuple(sigma)
    if len(each) == 1 and not isinstance(spec.unit, tuple):
        each *= bands
    if len(each) != bands:
        raise UsageError(
            f"{where}: expected one number per band ({', '.join(spec.bands)}), got {len(each)}; one for all will do where they share a unit"
        )
    return each


@lru_cache(maxsize=64)
def _tails(draws: int, tau: float) -> tuple[DoubleArray, DoubleArray]:
    """Return P(X >= m) and P(X <= n - m) for m = 0 ... n, with X of Bin(n, tau)."""
    m = np.arange(draws + 1)
    return stats.binom.sf(m - 1, draws, tau), stats.binom.cdf(draws - m, draws, tau)


def _first_look(tau: float, level: float, pixels: int, most: int) -> int:
    """Return the least number of draws at which a pixel with one vote for another class is certified, or the most."""
    start = max(2, math.floor(math.log(level / pixels) / math.log(tau)))
    for draws in range(start, most):
        if pixels * (stats.binom.sf(draws - 2, draws, tau) + stats.binom.cdf(1, draws, tau)) <= level:
            return draws
    return most


def _expected_pixels(votes: VoteHistogram, tau: float, level: float, following: int) -> float:
    """Return how many pixels the next look is expected to certify, with a uniform prior on each probability."""
    draws = len(votes) - 1
    sure = np.zeros(following + 1, np.int64)
    sure[following] = votes.sum()
    needed = needed_votes(sure, tau, level, "bonferroni")
    if needed is None:
        return 0.0
    m = np.flatnonzero(votes)
    chance = stats.betabinom.sf(needed - m - 1, following - draws, m + 1, draws - m + 1)
    return float(votes[m] @ np.clip(chance, 0, 1))

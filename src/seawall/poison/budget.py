"""How much of a label may change: shares of pixels, or meters of shoreline, counted to the pixel."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

from seawall.errors import UsageError

Of = Literal["valid", "class", "meters"]
"""What a budget is a share of: all valid pixels, the pixels of the class, or a distance the shoreline may move."""


def allowance(share: float, pixels: int) -> int:
    """Return the largest number of pixels whose share is not above a budget.

    Example:
        >>> int(0.29 * 100), allowance(0.29, 100)
        (28, 29)
    """
    if pixels == 0:
        return 0
    near = int(share * pixels)
    return max(n for n in (0, near - 1, near, near + 1) if n / pixels <= share)


def meters_of(rings: float, gsd_m: float) -> float:
    """Return how far a ring of so many pixels moves the shoreline, in meters.

    Example:
        >>> meters_of(3, 10.0)
        30.0
    """
    return rings * gsd_m


def rings_of(meters: float, gsd_m: float) -> Fraction:
    """Return how many rings of pixels fit into a shoreline shift, as the exact fraction of the decimals given.

    Example:
        >>> rings_of(25, 10.0)
        Fraction(5, 2)
    """
    return Fraction(repr(float(meters))) / Fraction(repr(float(gsd_m)))


def check_budget(name: str, budget: float, of: Of = "valid", gsd_m: float | None = None) -> None:
    """Refuse a budget that cannot be.

    Raises:
        UsageError: It is negative, not finite or over 100 %, or meters come without a ground sampling distance.
    """
    if not math.isfinite(budget) or budget < 0:
        raise UsageError(f"{name}.budget: expected a number from 0 up, got {budget}; 0.1 means 10 %")
    if of == "meters":
        if gsd_m is None:
            raise UsageError(f"{name}.gsd_m: expected meters per pixel with of='meters', got none; set gsd_m=10")
    elif of not in ("valid", "class"):
        raise UsageError(f"{name}.of: expected 'valid', 'class' or 'meters', got {of!r}; choose one")
    elif budget > 1:
        raise UsageError(f"{name}.budget: expected a share of at most 1 (100 %), got {budget}; 0.1 means 10 %")
    elif gsd_m is not None:
        raise UsageError(f"{name}.gsd_m: expected it only with of='meters', got {gsd_m}; leave it out")
    if gsd_m is not None:
        check_gsd(name, gsd_m)


def check_gsd(name: str, gsd_m: float) -> None:
    """Refuse a ground sampling distance that is not a positive length.

    Raises:
        UsageError: It is zero, negative or not finite.
    """
    if not math.isfinite(gsd_m) or gsd_m <= 0:
        raise UsageError(f"{name}.gsd_m: expected meters per pixel above 0, got {gsd_m}; Sentinel-2 has 10")


def check_class(name: str, klass: int) -> None:
    """Refuse a class index that no label can hold.

    Raises:
        UsageError: It is negative.
    """
    if klass < 0:
        raise UsageError(f"{name}.klass: expected a class index from 0 up, got {klass}; water is 1")

"""Several witnesses against a chip's label made one rank: how rare each finding is, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seawall.errors import UsageError


def tail_shares(values: Sequence[float | None]) -> list[float | None]:
    """Return for each value which share of the values is at least as high: 1 / n for the highest of n, 1 for the lowest.

    It is an empirical p-value: how often a chip of this folder looks as suspicious by chance, if most labels are right.

    Args:
        values: One per chip, the higher the more suspicious; None where there is none, which stays None.

    Raises:
        UsageError: A value is not a number.

    Example:
        >>> tail_shares([0.0, 5.0, None, 0.0, 1.0])
        [1.0, 0.25, None, 1.0, 0.5]
    """
    there = np.sort([value for value in values if value is not None])
    if np.isnan(there).any():
        raise UsageError("evidence: expected numbers or None, got NaN; leave out what is not known")
    return [
        None if value is None else float((len(there) - np.searchsorted(there, value, "left")) / len(there))
        for value in values
    ]


def combined(shares: Sequence[float | None]) -> float | None:
    """Return the evidence of several witnesses against one chip: minus the sum of the decimal logarithms of their shares.

    A witness that finds nothing unusual adds nothing, and each factor of ten in rarity adds 1, whoever finds it.

    Paper: Fisher 1932, Statistical Methods for Research Workers, section 21.1. Differs: the witnesses look at the same
    prediction and are not independent, so that the sum ranks chips and is no test.

    Args:
        shares: Tail share of the chip by each witness; None where a witness knows nothing.

    Returns:
        From 0 up; None if no witness knows anything.

    Example:
        >>> combined([0.01, 1.0, None]), combined([0.1, 0.1]), combined([None])
        (2.0, 2.0, None)
    """
    there = [share for share in shares if share is not None]
    return -sum(math.log10(share) for share in there) + 0.0 if there else None

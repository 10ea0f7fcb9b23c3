"""Several witnesses against a chip's label made one rank: how unusual each finding is, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seawall.errors import UsageError


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


def combined(evidence: Sequence[float | None]) -> float | None:
    """Return the evidence of several witnesses against one chip, their sum; None if no witness knows anything.

    Paper: Fisher 1932, Statistical Methods for Research Workers, section 21.1: tail probabilities are multiplied.
    Differs: the witnesses look at the same prediction and are not independent, so the sum ranks chips and is no test.

    Example:
        >>> combined([2.0, 0.0, None]), combined([None])
        (2.0, None)
    """
    there = [value for value in evidence if value is not None]
    return sum(there) if there else None

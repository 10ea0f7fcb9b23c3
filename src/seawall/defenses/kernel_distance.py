"""How far two sets of features lie apart: the squared maximum mean discrepancy of a polynomial kernel, without bias."""

from __future__ import annotations

import numpy as np

from seawall.arrays import DoubleArray
from seawall.errors import DataError


def kernel_distance(x: DoubleArray, y: DoubleArray, *, paired: bool = False, degree: int = 3) -> float:
    """Return the unbiased estimate of MMD^2 under the kernel (x.y / D + 1)^degree; it may be below 0.

    With Inception features this is the kernel inception distance (KID).

    Args:
        x: (N, D).
        y: (M, D).
        paired: Row i of y is row i of x changed, so that the two depend on each other: the pairs (i, i) are then left out
            between the sets too. Without this the estimate has a bias; with it, equal sets have exactly 0.
        degree: Exponent of the kernel.

    Raises:
        DataError: A set has fewer than 2 rows, the dimensions differ, or paired sets have different sizes.

    Paper: Gretton et al. 2012, JMLR 13, lemma 6 (paired: eq. 4); the kernel of Binkowski et al. 2018, arXiv:1801.01401.

    Example:
        >>> kernel_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [1.0]]))  # 1 + 8 - (1 + 27)
        -19.0
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise DataError(
            f"kernel distance: expected two sets (N, D) of at least 2, got {x.shape} and {y.shape}; use more chips"
        )
    if paired and len(x) != len(y):
        raise DataError(f"kernel distance: expected pairs, got {len(x)} and {len(y)} rows; leave out paired")

    def kernel(a: DoubleArray, b: DoubleArray) -> DoubleArray:
        found: DoubleArray = (a @ b.T / a.shape[1] + 1) ** degree
        return found

    def off_diagonal(k: DoubleArray) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    between = kernel(x, y)
    if paired:
        # one sum of one matrix: equal sets give 0 and not a rounding error
        return off_diagonal(kernel(x, x) + kernel(y, y) - between - between.T)
    return off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * float(between.mean())

"""Scribbles: thin curves inside each class, as an annotator draws them with a pen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import final

import numpy as np

from seawall.arrays import BoolArray, FloatArray
from seawall.label_noise.label_view import LabelView
from seawall.label_noise.morphology import distance_to
from seawall.registry import register
from seawall.rng import Keys
from seawall.supervision.known_pixels import check_count, keep_known
from seawall.types import Batch

STEPS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""Row and column of the 8 neighbors, by angle in steps of 45 degrees."""
BEND = 0.2
"""Standard deviation of the change of the direction per pixel, in radians."""
CENTERING = 0.25
"""Weight of a pixel more of distance to the border, against the cosine to the direction."""
SPACING = 2
"""Pixels that a curve keeps from earlier ones."""

Pixel = tuple[int, int]


@register("supervision", "scribbles", paper="arXiv:1604.05144", smoke={"count": 8})
@final
@dataclass(frozen=True)
class Scribbles:
    """Curves one pixel wide inside each class of each chip are known; a larger count continues those of a smaller one.

    A curve is a random walk of slowly changing direction that keeps away from the border of its class and of the chip. Where it
    cannot go on without a sharp turn the next one begins, preferably in the wide parts of the class.

    Args:
        count: Known pixels per class and chip; all of them where a class has fewer.

    Paper: Lin et al. 2016 (ScribbleSup). Differs: the curves are drawn from dense labels instead of by hand.
    """

    count: int = 100

    def __post_init__(self) -> None:
        check_count("scribbles", self.count)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with its scribbles valid."""
        return keep_known(batch, keys.fold("scribbles"), self._choose)

    def _choose(self, view: LabelView) -> BoolArray:
        known = np.zeros(view.mask.shape, bool)
        for pixel in islice((pixel for curve in curves(view) for pixel in curve), self.count):
            known[pixel] = True
        return known


def curves(view: LabelView) -> Iterator[list[Pixel]]:
    """Yield curves inside a class until every pixel of it is on one: each a path over the 8 neighbors, none twice on a pixel.

    Curves keep apart as long as there is room. They do not depend on how many are taken.
    """
    rng = view.rng("curves")
    # the edge of the chip is a border too: along it the distance to the other classes is largest
    away = distance_to(np.pad(view.rest, 1, constant_values=True), "euclidean")[1:-1, 1:-1]
    starts, left = list(_starts(view.mask, away, rng)), view.mask.copy()
    for apart in (SPACING, 0):
        free = left.copy()
        for start in starts:
            if not free[start]:
                continue
            curve = _draw_curve(start, free, away, rng)
            for row, col in curve:
                left[row, col] = False
                free[max(0, row - apart) : row + apart + 1, max(0, col - apart) : col + apart + 1] = False
            yield curve


def _starts(mask: BoolArray, away: FloatArray, rng: np.random.Generator) -> Iterator[Pixel]:
    """Yield every pixel of a class in random order, drawn without replacement by the square of the distance to the border.

    Paper: Efraimidis and Spirakis 2006: the order of -log(u) / weight.
    """
    at = np.flatnonzero(mask)
    order = np.argsort(rng.exponential(size=len(at)) / away.ravel()[at].astype(np.float64) ** 2, kind="stable")
    for flat in at[order].tolist():
        yield divmod(flat, mask.shape[1])


def _draw_curve(start: Pixel, free: BoolArray, away: FloatArray, rng: np.random.Generator) -> list[Pixel]:
    """Return a curve over free pixels, which are taken."""
    curve, at, angle = [start], start, float(rng.uniform(0, 2 * math.pi))
    free[start] = False
    while (step := _next_step(at, angle, free, away)) is not None:
        turn = (step * math.pi / 4 - angle + math.pi) % (2 * math.pi) - math.pi
        angle += 0.5 * turn + BEND * float(rng.standard_normal())
        at = (at[0] + STEPS[step][0], at[1] + STEPS[step][1])
        free[at] = False
        curve.append(at)
    return curve


def _next_step(at: Pixel, angle: float, free: BoolArray, away: FloatArray) -> int | None:
    """Return the neighbor that lies ahead and away from the border, or None where all free ones lie behind."""
    best, found = -math.inf, None
    for i, (down, right) in enumerate(STEPS):
        row, col = at[0] + down, at[1] + right
        ahead = math.cos(i * math.pi / 4 - angle)
        if ahead < 0.3 or not (0 <= row < free.shape[0] and 0 <= col < free.shape[1]) or not free[row, col]:
            continue
        if (score := ahead + CENTERING * float(away[row, col] - away[at])) > best:
            best, found = score, i
    return found

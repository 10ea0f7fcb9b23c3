"""Whole objects go wrong: ponds that the annotator missed, and water bodies drawn as one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import cv2
import numpy as np
from numpy.typing import NDArray

from seawall.errors import UsageError
from seawall.poison.budget import allowance, check_budget, check_class
from seawall.poison.ground import Ground, Label, Mask, relabel
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

Order = Literal["keyed", "small", "large"]
Cells = NDArray[np.int32]


def objects(mask: Mask) -> tuple[Cells, NDArray[np.int64]]:
    """Return the 8-connected objects of a mask, numbered from 1, and the pixels of each, [0] being the background."""
    _, cells, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return np.asarray(cells, np.int32), np.asarray(stats[:, cv2.CC_STAT_AREA], np.int64)


@register("noise", "drop-objects", smoke={"budget": 0.2})
@final
@dataclass(frozen=True)
class DropObjects:
    """Whole objects of the class are missing.

    Objects go one after the other as long as they fit into the budget; one that does not fit is passed over.
    An object cut by pixels without a label counts as two.

    Args:
        budget: Share that may go.
        of: Share of all "valid" pixels, of the pixels of the "class", or of the "objects" by number.
        order: "keyed", or the "small" or the "large" ones first.
        klass: The class index.
    """

    budget: float
    of: Literal["valid", "class", "objects"] = "valid"
    order: Order = "keyed"
    klass: int = 1

    def __post_init__(self) -> None:
        check_budget("drop-objects", self.budget, "class" if self.of == "objects" else self.of)
        check_class("drop-objects", self.klass)
        if self.order not in ("keyed", "small", "large"):
            raise UsageError(
                f"drop-objects.order: expected 'keyed', 'small' or 'large', got {self.order!r}; choose one"
            )

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with objects missing."""
        return relabel(batch, keys.fold("drop-objects"), self.klass, self.change)

    def change(self, ground: Ground) -> Label:
        """Return one chip's new label."""
        cells, sizes = objects(ground.mask)
        number = len(sizes) - 1
        queue = ground.rng("order").permutation(number) + 1
        if self.order != "keyed":
            queue = queue[np.argsort(sizes[queue] * (1 if self.order == "small" else -1), kind="stable")]
        whole = self.of == "objects"
        gone = queue[: allowance(self.budget, number)] if whole else self._fitting(queue, sizes, ground)
        picked = np.zeros(number + 1, bool)
        picked[gone] = True
        return ground.flip(picked[cells])

    def _fitting(self, queue: NDArray[np.int64], sizes: NDArray[np.int64], ground: Ground) -> NDArray[np.int64]:
        room = allowance(self.budget, int(sizes[1:].sum()) if self.of == "class" else ground.pixels)
        gone = []
        for i in queue:
            if sizes[i] <= room:
                gone.append(i)
                room -= int(sizes[i])
        return np.asarray(gone, np.int64)


@register("noise", "merge-objects", smoke={"budget": 0.1})
@final
@dataclass(frozen=True)
class MergeObjects:
    """Neighboring objects of the class are drawn as one: bridges fill the narrowest gaps.

    Bridges are built from the narrowest gap up while they fit into the budget; one that does not fit is passed over,
    and objects that are already one get no second bridge.

    Args:
        budget: Share of the valid pixels that may join the class.
        reach_px: Widest gap that is bridged, in pixels.
        width_px: Width of a bridge, in pixels.
        klass: The class index.
    """

    budget: float
    reach_px: float = 16.0
    width_px: int = 3
    klass: int = 1

    def __post_init__(self) -> None:
        check_budget("merge-objects", self.budget)
        check_class("merge-objects", self.klass)
        if not math.isfinite(self.reach_px) or self.reach_px <= 0 or self.width_px < 1:
            raise UsageError(
                f"merge-objects: expected reach_px above 0 and width_px from 1, got {self.reach_px} and {self.width_px}; "
                "give lengths in pixels"
            )

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with objects joined."""
        return relabel(batch, keys.fold("merge-objects"), self.klass, self.change)

    def change(self, ground: Ground) -> Label:
        """Return one chip's new label."""
        room = allowance(self.budget, ground.pixels)
        cells, sizes = objects(ground.mask)
        if room == 0 or len(sizes) < 3:
            return ground.label
        added = np.zeros_like(ground.mask)
        owner = list(range(len(sizes)))
        for one, two, start, end in _gaps(cells, self.reach_px):
            if _root(owner, one) == _root(owner, two):
                continue
            plane = np.zeros(added.shape, np.uint8)
            cv2.line(plane, start, end, 1, self.width_px)
            bridge = (plane > 0) & ground.rest & ~added
            cost = int(np.count_nonzero(bridge))
            if cost <= room:
                room -= cost
                added |= bridge
                owner[_root(owner, one)] = _root(owner, two)
        return ground.flip(added)


Gap = tuple[int, int, tuple[int, int], tuple[int, int]]
"""The two objects, and the (column, row) of the nearest pixel of each."""


def _gaps(cells: Cells, reach_px: float) -> Iterator[Gap]:
    """Yield neighboring objects by the width of the gap: where their zones of influence touch."""
    _, zones = cv2.distanceTransformWithLabels(
        (cells == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, cols = np.nonzero(cells)
    home = np.zeros((int(zones.max()) + 1, 3), np.int64)
    home[zones[rows, cols]] = np.stack([cells[rows, cols], rows, cols], 1)
    sides = [(zones[:, :-1], zones[:, 1:]), (zones[:-1], zones[1:])]
    touching = np.concatenate([np.stack([a[a != b], b[a != b]], 1) for a, b in sides])
    one, two = home[touching[:, 0]], home[touching[:, 1]]
    width = np.hypot(one[:, 1] - two[:, 1], one[:, 2] - two[:, 2]) - 1
    near = (one[:, 0] != two[:, 0]) & (width <= reach_px)
    swap = one[:, 0] > two[:, 0]
    ends = np.where(swap[:, None], np.hstack([two, one]), np.hstack([one, two]))[near]
    # the narrowest place of each pair, then the pairs from the narrowest up; places of one width by position
    ends = ends[np.lexsort((*ends.T[::-1], width[near]))]
    _, first = np.unique(ends[:, [0, 3]], axis=0, return_index=True)
    for one_id, row, col, two_id, other_row, other_col in ends[np.sort(first)].tolist():
        yield one_id, two_id, (col, row), (other_col, other_row)


def _root(owner: list[int], i: int) -> int:
    while owner[i] != i:
        i = owner[i]
    return i

"""Geometric label noise: a jittered shoreline, a registration error, and missing or merged objects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import cv2
import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray
from seawall.errors import UsageError
from seawall.label_noise.label_view import (
    BudgetOf,
    Label,
    LabelView,
    allowance,
    change_labels,
    check_budget,
    check_class,
    check_gsd,
    meters_to_pixels,
)
from seawall.label_noise.morphology import shoreline_distance
from seawall.label_noise.pixels import correlated_field
from seawall.registry import register
from seawall.result import ResultRow
from seawall.rng import Keys
from seawall.types import Batch


@register("noise", "jitter", smoke={"budget": 0.05, "length_px": 3.0})
@final
@dataclass(frozen=True)
class Jitter:
    """The shoreline is jittered: smooth random stretches of it move outward, others inward.

    Args:
        budget: What may change: a share, exact to the pixel while the shoreline allows it, or with `of="meters"` the
            farthest that any stretch of the shoreline moves.
        of: Share of all "valid" pixels, share of the pixels of the "class", or shoreline "meters".
        length_px: Correlation length of the jitter along the shoreline, in pixels.
        reach_px: With a share as budget, no pixel farther than this from the shoreline flips.
        klass: The class index that the shoreline is of.
        gsd_m: Meters per pixel, needed for `of="meters"`.
    """

    budget: float
    of: BudgetOf = "valid"
    length_px: float = 6.0
    reach_px: float = 16.0
    klass: int = 1
    gsd_m: float | None = None

    def __post_init__(self) -> None:
        check_budget("jitter", self.budget, self.of, self.gsd_m)
        check_class("jitter", self.klass)
        for name, value in (("length_px", self.length_px), ("reach_px", self.reach_px)):
            if not math.isfinite(value) or value <= 0:
                raise UsageError(f"jitter.{name}: expected pixels above 0, got {value}; give a length")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with jittered shorelines."""
        return change_labels(batch, keys.fold("jitter"), self.klass, self.change)

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        if self.budget == 0 or not view.mask.any() or not view.rest.any():
            return view.label
        away = shoreline_distance(view, "euclidean") - 0.5
        push = correlated_field(view, self.length_px, "field")
        inward = view.mask == (push < 0)  # pushed inward, the class loses pixels; pushed outward, it gains them
        if self.of == "meters" and self.gsd_m is not None:
            reach = float(meters_to_pixels(self.budget, self.gsd_m))
            strength = np.abs(push) / max(float(np.abs(push[view.valid]).max()), 1e-12)
            return view.flip(view.valid & inward & (away < reach * strength))
        water = int(np.count_nonzero(view.mask))
        cap = allowance(self.budget, water if self.of == "class" else view.pixels)
        # a pixel flips once the field is scaled up to its distance: rank by that scale
        rank = away / np.maximum(np.abs(push), 1e-12)
        return view.flip(view.lowest(view.valid & inward & (away < self.reach_px), rank, cap))


@register("noise", "shift", smoke={"budget": 20.0, "gsd_m": 10.0})
@final
@dataclass(frozen=True)
class Shift:
    """The whole label is shifted against its image, as by a registration error.

    The label moves by whole pixels, never farther than the budget. With a drawn direction the candidates are the moves
    within half a pixel of the budget (the farthest ones if there is none), and the one nearest to the direction is
    taken; with a given direction it is the move nearest to the exact displacement.
    Pixels whose new label would come from outside the image or from a pixel without a label keep their own.

    Args:
        budget: Length of the shift in meters, at least one pixel, or 0 for none.
        gsd_m: Meters per pixel; 1 makes the budget pixels.
        bearing_deg: Direction, clockwise from up (north in a north-up chip); None draws one per chip.
    """

    budget: float
    gsd_m: float
    bearing_deg: float | None = None

    def __post_init__(self) -> None:
        check_gsd("shift", self.gsd_m)
        check_budget("shift", self.budget, "meters", self.gsd_m)
        if 0 < self.budget < self.gsd_m * (1 - 1e-9):
            raise UsageError(
                f"shift.budget: expected at least one pixel of {self.gsd_m:g} m, got {self.budget:g} m; labels move by whole pixels"
            )
        if self.bearing_deg is not None and not math.isfinite(self.bearing_deg):
            raise UsageError(f"shift.bearing_deg: expected degrees, got {self.bearing_deg}; leave it out to draw it")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with shifted labels."""
        return change_labels(batch, keys.fold("shift"), 0, self.change)

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        rows, cols = self.step(view)
        height, width = view.label.shape
        new = view.label.copy()
        if abs(rows) >= height or abs(cols) >= width:
            return new
        to = (_overlap(rows, height), _overlap(cols, width))
        source = (_overlap(-rows, height), _overlap(-cols, width))
        new[to] = np.where(view.valid[source], view.label[source], new[to])
        return new

    def step(self, view: LabelView) -> tuple[int, int]:
        """Return how far a chip's label moves, in (rows down, columns right)."""
        reach = float(meters_to_pixels(self.budget, self.gsd_m))
        bearing = view.rng("bearing").uniform(0, 360) if self.bearing_deg is None else self.bearing_deg
        down, right = -reach * math.cos(math.radians(bearing)), reach * math.sin(math.radians(bearing))
        near = [
            (r, c)
            for r in _near_integers(down)
            for c in _near_integers(right)
            if math.hypot(r, c) <= reach * (1 + 1e-12)
        ]
        if self.bearing_deg is None and near:
            longest = max(math.hypot(*step) for step in near)
            long = [step for step in near if math.hypot(*step) >= min(reach - 0.5, longest) - 1e-9]
            return max(long, key=lambda step: ((step[0] * down + step[1] * right) / (math.hypot(*step) or 1), step))
        return min(near, key=lambda step: (math.hypot(step[0] - down, step[1] - right), step), default=(0, 0))

    def moves(self, batch: Batch, keys: Keys) -> tuple[tuple[int, int], ...]:
        """Return how far the label of each chip of a batch moves, in (rows down, columns right)."""
        own = keys.fold("shift")
        nothing = np.zeros((1, 1), np.int64)  # a step depends on the keys alone
        return tuple(self.step(LabelView(nothing, nothing == 0, 0, own, i)) for i in range(len(batch)))

    def describe(self, batch: Batch, keys: Keys) -> tuple[ResultRow, ...]:
        """Return how far the label of each chip moves, in pixels down and right and in meters."""
        return tuple(
            {"shift_rows": rows, "shift_cols": cols, "shift_m": math.hypot(rows, cols) * self.gsd_m}
            for rows, cols in self.moves(batch, keys)
        )

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return None for every chip: the budget is a length, not a share of pixels."""
        return (None,) * len(batch)


def _near_integers(x: float) -> range:
    """Return the integers near a number, among which are all moves of a short length."""
    return range(math.floor(x) - 3, math.ceil(x) + 4)


def _overlap(step: int, size: int) -> slice:
    return slice(max(step, 0), size + min(step, 0))


ObjectOrder = Literal["keyed", "small", "large"]
ObjectIds = NDArray[np.int32]


def connected_objects(mask: BoolArray) -> tuple[ObjectIds, NDArray[np.int64]]:
    """Return the 8-connected objects of a mask, numbered from 1, and the pixels of each, [0] being the background."""
    _, cells, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return np.asarray(cells, np.int32), np.asarray(stats[:, cv2.CC_STAT_AREA], np.int64)


@register("noise", "drop-objects", smoke={"budget": 0.2})
@final
@dataclass(frozen=True)
class DropObjects:
    """Whole objects of the class are missing.

    Objects are removed one by one while they fit into the budget; one that does not fit is skipped.
    An object cut by pixels without a label counts as two.

    Args:
        budget: Share that may be removed.
        of: Share of all "valid" pixels, of the pixels of the "class", or of the "objects" by number.
        order: "keyed", or the "small" or the "large" ones first.
        klass: The class index.
    """

    budget: float
    of: Literal["valid", "class", "objects"] = "valid"
    order: ObjectOrder = "keyed"
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
        return change_labels(batch, keys.fold("drop-objects"), self.klass, self.change)

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        cells, sizes = connected_objects(view.mask)
        number = len(sizes) - 1
        order = view.rng("order").permutation(number) + 1
        if self.order != "keyed":
            order = order[np.argsort(sizes[order] * (1 if self.order == "small" else -1), kind="stable")]
        whole = self.of == "objects"
        dropped = order[: allowance(self.budget, number)] if whole else self._fitting(order, sizes, view)
        picked = np.zeros(number + 1, bool)
        picked[dropped] = True
        return view.flip(picked[cells])

    def _fitting(self, order: NDArray[np.int64], sizes: NDArray[np.int64], view: LabelView) -> NDArray[np.int64]:
        remaining = allowance(self.budget, int(sizes[1:].sum()) if self.of == "class" else view.pixels)
        dropped = []
        for i in order:
            if sizes[i] <= remaining:
                dropped.append(i)
                remaining -= int(sizes[i])
        return np.asarray(dropped, np.int64)


@register("noise", "merge-objects", smoke={"budget": 0.1})
@final
@dataclass(frozen=True)
class MergeObjects:
    """Neighboring objects of the class are merged: strips of the class fill the narrowest gaps.

    Strips are added from the narrowest gap up while they fit into the budget; one that does not fit is skipped,
    and objects that are merged already get no second strip.

    Args:
        budget: Share of the valid pixels that may join the class.
        reach_px: Widest gap that is filled, in pixels.
        width_px: Width of a strip, in pixels.
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
        return change_labels(batch, keys.fold("merge-objects"), self.klass, self.change)

    def change(self, view: LabelView) -> Label:
        """Return one chip's new label."""
        remaining = allowance(self.budget, view.pixels)
        cells, sizes = connected_objects(view.mask)
        if remaining == 0 or len(sizes) < 3:
            return view.label
        added = np.zeros_like(view.mask)
        owner = list(range(len(sizes)))
        for one, two, start, end in _gaps(cells, self.reach_px):
            if _merged_into(owner, one) == _merged_into(owner, two):
                continue
            plane = np.zeros(added.shape, np.uint8)
            cv2.line(plane, start, end, 1, self.width_px)
            strip = (plane > 0) & view.rest & ~added
            cost = int(np.count_nonzero(strip))
            if cost <= remaining:
                remaining -= cost
                added |= strip
                owner[_merged_into(owner, one)] = _merged_into(owner, two)
        return view.flip(added)


Gap = tuple[int, int, tuple[int, int], tuple[int, int]]
"""The two objects, and the (column, row) of the nearest pixel of each."""


def _gaps(cells: ObjectIds, reach_px: float) -> Iterator[Gap]:
    """Yield pairs of neighboring objects, whose zones of influence touch, by the width of the gap."""
    _, zones = cv2.distanceTransformWithLabels(
        (cells == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, cols = np.nonzero(cells)
    nearest = np.zeros((int(zones.max()) + 1, 3), np.int64)
    nearest[zones[rows, cols]] = np.stack([cells[rows, cols], rows, cols], 1)
    sides = [(zones[:, :-1], zones[:, 1:]), (zones[:-1], zones[1:])]
    touching = np.concatenate([np.stack([a[a != b], b[a != b]], 1) for a, b in sides])
    one, two = nearest[touching[:, 0]], nearest[touching[:, 1]]
    width = np.hypot(one[:, 1] - two[:, 1], one[:, 2] - two[:, 2]) - 1
    near = (one[:, 0] != two[:, 0]) & (width <= reach_px)
    swap = one[:, 0] > two[:, 0]
    ends = np.where(swap[:, None], np.hstack([two, one]), np.hstack([one, two]))[near]
    # the narrowest place of each pair, then the pairs from the narrowest up; places of one width by position
    ends = ends[np.lexsort((*ends.T[::-1], width[near]))]
    _, first = np.unique(ends[:, [0, 3]], axis=0, return_index=True)
    for one_id, row, col, two_id, other_row, other_col in ends[np.sort(first)].tolist():
        yield one_id, two_id, (col, row), (other_col, other_row)


def _merged_into(owner: list[int], i: int) -> int:
    while owner[i] != i:
        i = owner[i]
    return i

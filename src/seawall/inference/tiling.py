"""Tiles over a scene: their positions, their blending, and the prediction that keeps only some rows in memory.

A network sees a scene tile by tile. The outermost pixels of a tile on the sides where it has neighbors have too
little context, so they get no weight (`margin`); next to them the weights follow a squared sine. The
weights of all tiles at a pixel add up to one, so blending needs no second accumulator, and a network whose receptive
field reaches no further than the margin gives the same map tiled as whole. That holds at the scene's borders too:
there a tile ends where the scene ends, and the network pads it as it would pad the whole. Tiles start at multiples of
`align`, because a network that pools is only equivariant to shifts by its total stride. A network with global context
(attention over the tile, global pooling, normalization by the tile's statistics) depends on the whole tile, so no
blending can make its tiled map equal to its whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import lcm

import numpy as np
from numpy.typing import NDArray
from torch import nn

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import UsageError
from seawall.models.receptive_field import ReceptiveField, receptive_field

TILE_ALIGN = 32
"""Tile and overlap are multiples of this many pixels: the total stride of networks that pool five times."""

Fetch = Callable[[int, int, int, int], tuple[FloatArray, BoolArray]]
"""Called as fetch(row, col, height, width); returns data (C, H, W) and seen (H, W)."""
Predict = Callable[[FloatArray], FloatArray]
"""Images (B, C, H, W) in data units to probabilities (B, K, H, W), which further channels may follow."""


@dataclass(frozen=True)
class TileAxis:
    """Positions and weights of the tiles along one side of a scene.

    Args:
        size: Pixels of the scene along this side.
        tile: Pixels of a tile; a small scene gets a smaller one.
        overlap: Pixels that neighbors share.
        margin: Outermost pixels of a tile that get no weight where it has a neighbor, at most half of the overlap; a
            quarter of the overlap where negative. A network whose receptive field reaches at most that far gives the same map as on the whole scene.
        align: Tiles start and end at multiples of this; the total stride of the network.

    Raises:
        UsageError: Tile, overlap and margin do not fit together.

    Example:
        >>> TileAxis(1000, 512, 64, align=8).starts
        (0, 448, 488)
    """

    size: int
    tile: int
    overlap: int
    margin: int = -1
    align: int = TILE_ALIGN

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"tiles: expected a scene with pixels, got {self.size}; check the raster")
        step = lcm(TILE_ALIGN, self.align)
        for name in ("tile", "overlap"):
            got = getattr(self, name)
            if got % step or got < 0:
                raise UsageError(
                    f"{name}: expected a multiple of {step} pixels, got {got}; use {round_up(max(got, 0), step)}"
                )
        if self.tile < max(2 * self.overlap, step):
            raise UsageError(
                f"tile: expected at least {max(2 * self.overlap, step)} pixels for an overlap of {self.overlap}, "
                f"got {self.tile}; make the tile larger or the overlap smaller"
            )
        if 2 * self.margin > self.overlap:
            raise UsageError(
                f"overlap: expected at least {2 * self.margin} pixels, twice the margin of a tile, got {self.overlap}; "
                f"use {round_up(2 * self.margin, step)}"
            )

    @property
    def length(self) -> int:
        """Pixels of a tile, or fewer where the whole scene fits into less."""
        return min(self.tile, round_up(self.size, self.align))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each tile; the last one is moved back so that it ends where the scene ends."""
        last = round_up(self.size, self.align) - self.length
        return (*range(0, last, self.tile - self.overlap), last)

    @cached_property
    def _totals(self) -> NDArray[np.float64]:
        total = np.zeros(self.size)
        for index in range(len(self.starts)):
            low, high = self.support(index)
            total[low:high] += self._window(index)
        return total

    @property
    def _margin(self) -> int:
        return self.overlap // 4 if self.margin < 0 else self.margin

    def _window(self, index: int) -> NDArray[np.float64]:
        """Return the window function over a tile's support, before normalization to a sum of one."""
        ramp = self.overlap - 2 * self._margin
        rise = np.sin(np.pi / 2 * (np.arange(ramp) + 0.5) / max(ramp, 1)) ** 2
        window = np.ones(self.length)
        if index > 0:
            window[self._margin : self._margin + ramp] = rise
        if index < len(self.starts) - 1:
            end = self.length - self._margin
            window[end - ramp : end] = np.minimum(window[end - ramp : end], rise[::-1])
        low, high = self.support(index)
        return window[low - self.starts[index] : high - self.starts[index]]

    def support(self, index: int) -> tuple[int, int]:
        """Return the scene's pixels, from and up to, in which a tile has weight."""
        start, last = self.starts[index], index == len(self.starts) - 1
        low = start + self._margin if index else 0
        return low, self.size if last else min(start + self.length - self._margin, self.size)

    def core(self, index: int) -> tuple[int, int]:
        """Return the scene's pixels, from and up to, that a tile alone decides where tiles are not blended.

        Neighboring cores meet in the middle of where both tiles have weight, so the cores cover the side once.

        Example:
            >>> axis = TileAxis(1000, 512, 64, align=8)
            >>> [axis.core(index) for index in range(3)]
            [(0, 480), (480, 724), (724, 1000)]
        """
        last = len(self.starts) - 1
        low = (self.support(index - 1)[1] + self.support(index)[0]) // 2 if index else 0
        return low, (self.support(index)[1] + self.support(index + 1)[0]) // 2 if index < last else self.size

    def weights(self, index: int) -> FloatArray:
        """Return a tile's weights over its support; over all tiles they add up to one at every pixel."""
        low, high = self.support(index)
        return (self._window(index) / self._totals[low:high]).astype(np.float32)

    def take(self, index: int) -> NDArray[np.intp]:
        """Return the scene's pixels that a tile reads; past the scene's end they are mirrored, as `pad_to` pads."""
        at = np.arange(self.starts[index], self.starts[index] + self.length)
        last = self.size - 1
        if round_up(self.size, self.align) - self.size > last:  # too short to be mirrored
            return np.minimum(at, last)
        return np.minimum(at, 2 * last - at)

    def touching(self, low: int, high: int) -> list[int]:
        """Return the tiles that have weight somewhere in [low, high)."""
        supports = [self.support(k) for k in range(len(self.starts))]
        return [k for k, (first, end) in enumerate(supports) if first < high and end > low]


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a scene.

    Args:
        rows: Tiles from top to bottom.
        cols: Tiles from left to right.
    """

    rows: TileAxis
    cols: TileAxis

    @staticmethod
    def of(
        height: int, width: int, tile: int = 512, overlap: int = 64, margin: int = -1, align: int = TILE_ALIGN
    ) -> TilePlan:
        """Plan square tiles over a scene; see `Axis`."""
        return TilePlan(TileAxis(height, tile, overlap, margin, align), TileAxis(width, tile, overlap, margin, align))

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows.starts) * len(self.cols.starts)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a tile in pixels."""
        return self.rows.length, self.cols.length


@dataclass(frozen=True)
class Strip:
    """Finished rows of a scene.

    Args:
        row: First row in the scene.
        col: First column in the scene.
        channels: (K, H, W) blended class probabilities, and whatever further channels were predicted; zero where not seen.
        seen: (H, W) bool.
    """

    row: int
    col: int
    channels: FloatArray
    seen: BoolArray


def blend_tiles(
    plan: TilePlan,
    fetch: Fetch,
    predict: Predict,
    channels: int,
    rows: tuple[int, int] | None = None,
    cols: tuple[int, int] | None = None,
    *,
    chunk: int = 512,
    step: int = 512,
    batch: int = 1,
    tick: Callable[[int], None] = lambda tiles: None,
) -> Iterator[Strip]:
    """Predict a window of a scene and yield its rows from top to bottom as they are finished.

    Each pixel is fetched once; in memory are about tile + chunk rows of input and tile + step rows of output. The
    result at a pixel does not depend on the window, on chunk or on step.

    Args:
        plan: The tiles of the whole scene.
        fetch: Reads a window of the scene.
        predict: The network; it is not called for tiles without a seen pixel.
        channels: Number of channels that it gives.
        rows: From and up to which row; all by default.
        cols: From and up to which column; all by default.
        chunk: Rows per fetch; a multiple of the raster's block height decodes each block once.
        step: Rows per strip: strips end at multiples of it.
        batch: Tiles per call of the network.
        tick: Called with the number of tiles that were just done, skipped ones included.
    """
    first, end = rows or (0, plan.rows.size)
    left, right = cols or (0, plan.cols.size)
    across = plan.cols.touching(left, right)
    down = plan.rows.touching(first, end)
    source = _RowReader(plan, fetch, down, across, chunk)
    accumulator = _RowAccumulator(channels, first, left, plan.rows.length + step, right - left)
    for at, k in enumerate(down):
        source.advance(at)
        low, high = plan.rows.support(k)
        low, high = max(low, first), min(high, end)
        accumulator.seen[low - accumulator.top : high - accumulator.top] = source.seen_at(low, high, left, right)
        wanted = [j for j in across if _any_seen(accumulator, plan.cols.support(j), (low, high))]
        for some in (wanted[i : i + batch] for i in range(0, len(wanted), batch)):
            tiles = np.stack([source.tile(plan.rows.take(k), plan.cols.take(j)) for j in some])
            for j, predicted in zip(some, predict(tiles), strict=True):
                accumulator.add(plan, k, j, predicted, (low, high))
            tick(len(some))
        tick(len(across) - len(wanted))
        ready = plan.rows.support(down[at + 1])[0] if at + 1 < len(down) else end
        yield from accumulator.finish(ready, step, last=ready == end)


class _RowReader:
    """Reads the rows of a scene from top to bottom, each once, and keeps those that tiles still need."""

    def __init__(self, plan: TilePlan, fetch: Fetch, down: list[int], across: list[int], chunk: int) -> None:
        cols = [plan.cols.take(j) for j in across]
        rows = [plan.rows.take(k) for k in down]
        self.left = min(int(t.min()) for t in cols)
        self.right = max(int(t.max()) for t in cols) + 1
        # The last tile's mirrored rows may be above those of the tile before it: keep what any later tile needs.
        tops = np.minimum.accumulate([int(t.min()) for t in rows[::-1]])[::-1]
        self._spans = [(int(top), int(t.max()) + 1) for top, t in zip(tops, rows, strict=True)]
        self._height, self._fetch, self._chunk = plan.rows.size, fetch, chunk
        self._room = max(high - low for low, high in self._spans) + chunk
        self._data = np.empty((0, 0, 0), np.float32)
        self._seen = np.empty((0, 0), np.bool_)
        self.top = self.bottom = self._spans[0][0]

    def advance(self, at: int) -> None:
        """Drop rows that no tile from the at-th on needs, and read the rows below that are missing."""
        low, high = self._spans[at]
        if low > self.top:
            old = slice(low - self.top, self.bottom - self.top)
            for layer in (*self._data, self._seen):  # layer by layer: NumPy copies what overlaps
                layer[: self.bottom - low] = layer[old]
            self.top = low
        while self.bottom < high:
            until = min((self.bottom // self._chunk + 1) * self._chunk, self._height)
            data, seen = self._fetch(self.bottom, self.left, until - self.bottom, self.right - self.left)
            if not len(self._data):
                self._data = np.empty((len(data), self._room, data.shape[2]), np.float32)
                self._seen = np.empty((self._room, data.shape[2]), np.bool_)
            to = slice(self.bottom - self.top, until - self.top)
            self._data[:, to], self._seen[to] = data, seen
            self.bottom = until

    def seen_at(self, low: int, high: int, left: int, right: int) -> BoolArray:
        return self._seen[low - self.top : high - self.top, left - self.left : right - self.left]

    def tile(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> FloatArray:
        rows, cols = rows - self.top, cols - self.left
        top, left = int(rows.min()), int(cols.min())
        box = self._data[:, top : int(rows.max()) + 1, left : int(cols.max()) + 1]
        if rows[-1] - rows[0] == len(rows) - 1 and cols[-1] - cols[0] == len(cols) - 1:
            return np.ascontiguousarray(box)
        return np.ascontiguousarray(box[:, rows - top][:, :, cols - left])  # mirrored at a border


class _RowAccumulator:
    """Sums of weighted channels over rows that are not finished yet."""

    def __init__(self, channels: int, top: int, left: int, height: int, width: int) -> None:
        self.top, self.left, self.width = top, left, width
        self.sum = np.zeros((channels, height, width), np.float32)
        self.seen = np.zeros((height, width), np.bool_)

    def add(self, plan: TilePlan, k: int, j: int, predicted: FloatArray, rows: tuple[int, int]) -> None:
        """Add a tile's weighted channels, clipped to the rows and columns of the window."""
        low, high = rows
        left, right = plan.cols.support(j)
        left, right = max(left, self.left), min(right, self.left + self.width)
        down = plan.rows.weights(k)[low - plan.rows.support(k)[0] :][: high - low]
        over = plan.cols.weights(j)[left - plan.cols.support(j)[0] :][: right - left]
        y, x = low - plan.rows.starts[k], left - plan.cols.starts[j]
        piece = predicted[:, y : y + high - low, x : x + right - left]
        to = (slice(low - self.top, high - self.top), slice(left - self.left, right - self.left))
        self.sum[(slice(None), *to)] += piece * (down[:, None] * over)

    def finish(self, ready: int, step: int, *, last: bool) -> Iterator[Strip]:
        """Yield the strips that end at or above `ready` and move the rest up."""
        while self.top < ready:
            until = min((self.top // step + 1) * step, ready)
            if until % step and not last:
                return
            rows = until - self.top
            seen = self.seen[:rows].copy()
            yield Strip(self.top, self.left, self.sum[:, :rows] * seen, seen)
            for layer in (*self.sum, self.seen):
                layer[:-rows] = layer[rows:]
                layer[-rows:] = 0
            self.top = until


def _any_seen(accumulator: _RowAccumulator, cols: tuple[int, int], rows: tuple[int, int]) -> bool:
    left, right = max(cols[0] - accumulator.left, 0), cols[1] - accumulator.left
    return bool(accumulator.seen[rows[0] - accumulator.top : rows[1] - accumulator.top, left:right].any())


def round_up(pixels: int, step: int) -> int:
    """Return the next multiple of a step.

    Example:
        >>> round_up(100, 32)
        128
    """
    return -(-pixels // step) * step


TILE = 512
"""Side of a tile unless the receptive field requires a larger one."""
UNBOUNDED_OVERLAP = 128
"""Overlap for a network without a bound: its map depends on the tiles for any overlap, which is flagged."""
LARGE_TILE = 1024
"""Side up to which a tile grows to hold six overlaps, so that a pixel is predicted 1.44 times on average; beyond it
three are enough (2.25 times), because the features of a tile must fit into memory."""


def plan_tiles(
    model: nn.Module, height: int, width: int, tile: int | None, overlap: int | None
) -> tuple[TilePlan, tuple[str, ...]]:
    """Plan the tiles of a scene for a network.

    Args:
        model: Any module with a `spec`.
        height: Rows of the scene.
        width: Columns of the scene.
        tile: Side of a tile; chosen for the receptive field where None.
        overlap: Pixels that neighbors share; twice the receptive field, rounded up, where None.

    Returns:
        The tiles, and flags where the map may differ from that of the whole scene.

    Raises:
        UsageError: Tile and overlap are no multiples of what the network can be shifted by, or the tile is too small.
    """
    field = receptive_field(model)
    step = lcm(TILE_ALIGN, field.stride)
    if overlap is None:
        overlap = round_up(UNBOUNDED_OVERLAP if field.reach is None else 2 * field.reach, step)
        if tile is not None and 2 * overlap > tile:  # the tile is given: the largest overlap that fits
            overlap = tile // 2 // step * step
    if tile is None:
        tile = round_up(max(TILE, min(6 * overlap, LARGE_TILE), 3 * overlap), step)
    enough = field.reach is not None and 2 * field.reach <= overlap
    margin = max(field.reach or 0, overlap // 4) if enough else overlap // 4
    plan = TilePlan.of(height, width, tile, overlap, margin, field.stride)
    return plan, () if plan.count == 1 else _overlap_flags(field, overlap)


def _overlap_flags(field: ReceptiveField, overlap: int) -> tuple[str, ...]:
    if field.reach is None:
        return ("receptive field unknown: how far the network looks has no bound, so other tiles give another map",)
    if 2 * field.reach > overlap:
        return (
            f"overlap below receptive field: tiles share {overlap} pixels and the network looks {field.reach} pixels "
            f"far, so other tiles give another map; from {2 * field.reach} pixels on it is that of the whole scene",
        )
    return ()

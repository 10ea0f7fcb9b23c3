"""Votes under noise for every pixel of a scene: tile by tile, on the disk, look by look, and the same whatever the tiles are.

Every pixel is decided by the core of one tile, and the noise belongs to the position in the scene, so tiles that hold the receptive
field of their cores give the votes of the whole scene.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, FloatArray
from seawall.geo.raster import Window
from seawall.inference.output_buffer import OutputBuffer
from seawall.inference.scene import OpenScene
from seawall.inference.tiling import Predict, TilePlan
from seawall.io import write_atomic
from seawall.models.checksums import WeightGuard
from seawall.uncertainty.certification import Certification, VoteHistogram, top_votes
from seawall.uncertainty.smoothed_votes import PositionNoise, count_votes, noise_scale

UNSEEN_VOTES = 65535
"""Stored instead of votes where no pixel is seen."""


class SceneVotes:
    """The votes of a scene on the disk: two bytes per pixel for each class but the first, which has the rest of the draws.

    Args:
        scene: The open scene.
        buffer: Where the votes are; it is opened, and what an earlier run finished is kept.
        plan: The tiles.
        certification: Sigma and seed of the noise.
        guard: Compares the weights before votes are kept.
    """

    def __init__(
        self, scene: OpenScene, buffer: OutputBuffer, plan: TilePlan, certification: Certification, guard: WeightGuard
    ) -> None:
        self.scene, self.buffer, self.plan, self.guard = scene, buffer, plan, guard
        self.sigma = certification.sigma_of(scene.spec)
        self.noise = PositionNoise(certification.seed, len(scene.bands))
        self._tiles = [(k, j) for k in range(len(plan.rows.starts)) for j in range(len(plan.cols.starts))]
        self._draws: dict[Window, int] = {window: int(str(facts["draws"])) for window, facts in buffer.open().items()}
        if any(draws > self._look() for draws in self._draws.values()):  # which looks an earlier run passed is lost
            buffer.remove()
            buffer.open()
            self._draws = {}

    def seen_pixels(self) -> int:
        """Return the number of seen pixels."""
        return sum(int(self._read(k, j)[1][self._core(k, j)].sum()) for k, j in self._tiles)

    def draw(self, until: int, predict: Predict, batch: int, tick: Callable[[int, int], None]) -> VoteHistogram | None:
        """Add draws up to a number to every tile and return the histogram; None where an earlier run went on after that many."""
        if until < self._look():
            return None
        write_atomic(self.buffer.folder / "look.json", json.dumps(until))
        for done, (k, j) in enumerate(self._tiles, 1):
            self._add(k, j, until, predict, batch)
            tick(done, len(self._tiles))
        total = np.zeros(until + 1, np.int64)
        for _, votes, seen in stored_votes(self.buffer, until):
            total += top_votes(votes, seen, until)
        return total

    def _look(self) -> int:
        """Return the draws of the look that an earlier run worked on."""
        try:
            return int(json.loads((self.buffer.folder / "look.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return 0

    def _add(self, k: int, j: int, until: int, predict: Predict, batch: int) -> None:
        """Write the votes of a tile's core after so many draws."""
        (top, bottom), (left, right) = self.plan.rows.core(k), self.plan.cols.core(j)
        window = (top, left, bottom - top, right - left)
        if self._draws.get(window) == until:
            return
        held = self._draws.get(window, 0)
        data, seen = self._read(k, j)
        core = self._core(k, j)
        votes = np.full((len(self.buffer.layers), *window[2:]), UNSEEN_VOTES, np.uint16)
        if seen[core].any():
            scale = noise_scale(data, seen, self.sigma, self.scene.spec)
            rows, cols = self.plan.rows.take(k), self.plan.cols.take(j)
            new = count_votes(
                predict, data, scale, lambda number: self.noise.draw(number, rows, cols), range(held, until), batch
            )
            new = new[1:][(slice(None), *core)]
            if held:
                new = new + np.stack(
                    [self.buffer.read(layer, window).astype(np.uint16) for layer in self.buffer.layers]
                )
            votes = np.where(seen[core], new, np.uint16(UNSEEN_VOTES))
        self.guard.verify()
        self.buffer.write(window, dict(zip(self.buffer.layers, votes, strict=True)), {"draws": until})
        self._draws[window] = until

    def _core(self, k: int, j: int) -> tuple[slice, slice]:
        """Return where the core of a tile is in the tile."""
        pairs = ((axis, axis.core(at), axis.starts[at]) for axis, at in ((self.plan.rows, k), (self.plan.cols, j)))
        down, across = (slice(low - start, high - start) for _, (low, high), start in pairs)
        return down, across

    def _read(self, k: int, j: int) -> tuple[FloatArray, BoolArray]:
        """Read a tile; past the scene's end it is mirrored, and so is its noise."""
        rows, cols = self.plan.rows.take(k), self.plan.cols.take(j)
        top, left = int(rows.min()), int(cols.min())
        data, seen = self.scene.fetch(top, left, int(rows.max()) + 1 - top, int(cols.max()) + 1 - left)
        return data[:, rows - top][:, :, cols - left], seen[rows - top][:, cols - left]


def stored_votes(buffer: OutputBuffer, draws: int) -> Iterator[tuple[int, NDArray[np.uint16], BoolArray]]:
    """Yield the votes of every class from top to bottom, as (first row, votes (K, H, W), seen (H, W))."""
    for rows in zip(*(buffer.rows(layer) for layer in buffer.layers), strict=True):
        others = np.stack([pixels for _, pixels in rows]).astype(np.uint16, copy=False)
        seen = others[0] != UNSEEN_VOTES
        others = np.where(seen, others, np.uint16(0))
        first = (draws - others.sum(0, dtype=np.uint16)).astype(np.uint16)
        yield rows[0][0], np.concatenate([first[None], others]), seen

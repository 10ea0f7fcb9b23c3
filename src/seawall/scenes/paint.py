"""From an open scene to a full canvas: panels of columns, rows from top to bottom, and what was counted on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add

import numpy as np
from torch import nn

from seawall.errors import ModelError, RunError
from seawall.runtime import find_device, open_runtime, out_of_memory
from seawall.scenes.canvas import Canvas, Window
from seawall.scenes.product import Question, Totals, encode, tally
from seawall.scenes.source import Scene
from seawall.scenes.survey import Survey
from seawall.scenes.tiles import Floats, Plan, Predict, blend

STEP = 512
"""Rows per window of the canvas, and the block size of the products."""
MIB = 2**20


def paint(
    model: nn.Module,
    scene: Scene,
    canvas: Canvas,
    question: Question,
    survey: Survey,
    plan: Plan,
    device: str,
    progress: Callable[[int, int], None],
) -> Totals:
    """Fill the canvas where it is not whole yet; return what was counted."""
    grid, classes = scene.source.grid, len(scene.spec.classes)
    areas = grid.row_areas_m2()
    counted = {window: Totals.of(facts) for window, facts in canvas.open().items()}
    layout = panels(plan, len(scene.bands), classes, scene.chunk, survey.memory_mib * MIB)
    todo = [(rows, cols) for cols in layout for rows in _missing(grid.height, cols, counted)]
    total = sum(len(plan.rows.touching(*rows)) * len(plan.cols.touching(*cols)) for rows, cols in todo)
    done = 0

    def tick(tiles: int) -> None:
        nonlocal done
        done += tiles
        progress(done, total)

    batch = survey.batch or (1 if find_device(device).type == "cpu" or survey.runtime != "torch" else 8)
    with open_runtime(model, survey.runtime, device=device, temperature=survey.temperature) as predict:
        patient = _Patient(predict, batch)
        for rows, cols in todo:
            for strip in blend(
                plan, scene.fetch, patient, classes, rows, cols, chunk=scene.chunk, step=STEP, batch=batch, tick=tick
            ):
                height, width = strip.seen.shape
                part = tally(strip, question, None if areas is None else areas[strip.row : strip.row + height])
                window = (strip.row, strip.col, height, width)
                canvas.paint(window, encode(strip, question), part.plain())
                counted[window] = part
    return reduce(add, [counted[window] for cols in layout for window in _windows(grid.height, cols)])


class _Patient:
    """Runs the network and, when memory is used up, once more with half the batch."""

    def __init__(self, predict: Predict, batch: int) -> None:
        self._predict, self._batch, self._halved = predict, batch, False

    def __call__(self, images: Floats) -> Floats:
        try:
            made = [self._predict(images[i : i + self._batch]) for i in range(0, len(images), self._batch)]
        except (MemoryError, RuntimeError) as bad:
            if not out_of_memory(bad):
                raise
            made = []
        if not made:
            return self._again(images)
        whole = made[0] if len(made) == 1 else np.concatenate(made)
        if not np.isfinite(whole.sum()):
            raise ModelError(
                f"model: expected finite probabilities, got NaN for data between {images.min():.4g} and {images.max():.4g}; "
                "the weights are damaged or the data is out of range"
            )
        return whole

    def _again(self, images: Floats) -> Floats:
        if self._halved or self._batch == 1:
            raise RunError(
                f"tile: expected a batch of {self._batch} tiles of {images.shape[-2]}x{images.shape[-1]} pixels to fit into "
                "memory, got out of memory; use a smaller --tile or --batch (what is finished is kept)"
            )
        self._batch, self._halved = self._batch // 2, True
        return self(images)


def panels(plan: Plan, bands: int, classes: int, chunk: int, room: int) -> tuple[tuple[int, int], ...]:
    """Cut the columns of a scene so that the rows in memory take about `room` bytes (but one tile always fits).

    Example:
        >>> panels(Plan.of(10980, 10980), 6, 2, 512, 512 * 2**20)
        ((0, 10980),)
        >>> len(panels(Plan.of(10980, 200000), 6, 2, 512, 512 * 2**20))
        14
    """
    width, tile = plan.cols.size, plan.rows.length
    column = (tile + chunk) * (4 * bands + 1) + (tile + STEP) * (4 * classes + 1)
    most = max(room // column - 2 * plan.cols.length, plan.cols.length, STEP)
    even = -(-width // -(-width // most))  # no sliver at the end: its tiles would be predicted for a few columns
    wide = max(-(-even // STEP) * STEP, STEP)
    return tuple((left, min(left + wide, width)) for left in range(0, width, wide))


def _windows(height: int, cols: tuple[int, int]) -> list[Window]:
    return [(row, cols[0], min(STEP, height - row), cols[1] - cols[0]) for row in range(0, height, STEP)]


def _missing(height: int, cols: tuple[int, int], done: Mapping[Window, Totals]) -> list[tuple[int, int]]:
    """Return the runs of rows of a panel that are not painted."""
    runs: list[tuple[int, int]] = []
    for window in _windows(height, cols):
        if window in done:
            continue
        first, end = window[0], window[0] + window[2]
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((first, end))
    return runs

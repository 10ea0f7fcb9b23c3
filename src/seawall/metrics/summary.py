"""Counts as rows, and their figures at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seawall.errors import DataError
from seawall.figures.aggregate import figures
from seawall.figures.ratios import CLASSWISE, OVERALL, Tally, measure, plain
from seawall.records import Record

Counts = NDArray[np.int64] | Tensor


def count_rows(row: Record, counts: Counts, classes: Sequence[str]) -> Iterator[Record]:
    """Yield tp, fp, fn per class and the valid pixels of one chip.

    Args:
        row: A row of the chip; metric, class, value and n are replaced.
        counts: (K, K) confusion counts, rows labels, columns predictions.
        classes: Names of the classes.
    """
    t = Tally.of(_numpy(counts))
    pixels = int(t.pixels)
    for k, klass in enumerate(classes):
        for name, value in (("tp", t.tp[k]), ("fp", t.fp[k]), ("fn", t.fn[k])):
            yield row.measured(name, float(value), pixels, klass)
    yield row.measured("pixels", float(pixels), pixels, seconds=row.seconds)


def summarize(
    counts: Counts,
    classes: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> list[Record]:
    """Return pooled, per-chip and per-group figures of confusion counts, with intervals over groups.

    Args:
        counts: (N, K, K) as `confusion` gives them.
        classes: Names of the K classes.
        groups: Group of each chip; without them every chip is a group of its own.
        samples: Resamples of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        DataError: Shapes do not fit together.

    Example:
        >>> rows = summarize(np.array([[[5, 1], [2, 2]]]), ("land", "water"))
        >>> next(r.value for r in rows if r.metric == "iou.pooled" and r.klass == "water")
        0.4
    """
    table = _numpy(counts)
    width = len(classes)
    if table.ndim != 3 or table.shape[1:] != (width, width) or (groups is not None and len(groups) != len(table)):
        raise DataError(
            f"summarize: expected counts (N, {width}, {width}) and a group per chip, got {table.shape} and "
            f"{'none' if groups is None else len(groups)}; pass what confusion() returns"
        )
    names = [f"{i:09d}" for i in range(len(table))]
    rows: list[Record] = []
    for chip, group, one in zip(names, groups if groups is not None else names, table, strict=True):
        rows += count_rows(Record("", "", "clean", "", chip, group, "", "", None, 0), one, classes)
    return figures(rows, samples=samples, seed=seed)


def pooled(counts: Counts, classes: Sequence[str]) -> Mapping[str, float | None]:
    """Return every pooled ratio as plain numbers, such as `iou.water` and `miou`; None where undefined.

    Args:
        counts: (N, K, K) or (K, K).
        classes: Names of the K classes.

    Example:
        >>> pooled(np.array([[5, 1], [2, 2]]), ("land", "water"))["iou.water"]
        0.4
    """
    t = Tally.of(_numpy(counts).reshape(-1, len(classes), len(classes)).sum(0))
    found = {name: plain(measure(name, t)[0]) for name in OVERALL}
    for name in CLASSWISE:
        found |= {f"{name}.{klass}": plain(value) for klass, value in zip(classes, measure(name, t), strict=True)}
    return found


def _numpy(counts: Counts) -> NDArray[np.int64]:
    return counts.detach().cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)

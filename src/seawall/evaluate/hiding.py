"""What an attack that hides a class achieves: how much of the class is gone, how much else is as it was."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from seawall.records import Record
from seawall.types import Batch, SegmentationModel


def fooled_and_preserved(before: Tensor, after: Tensor, valid: Tensor, klass: int) -> list[tuple[int, int, int, int]]:
    """Return per image: pixels of the class that were fooled, all of the class, others preserved, all others.

    Predictions alone count: a pixel is of the class where the clean image was predicted so.

    Example:
        >>> row = lambda *values: torch.tensor([[list(values)]])
        >>> fooled_and_preserved(row(1, 1, 0, 0), row(1, 0, 0, 1), row(1, 1, 1, 1).bool(), 1)
        [(1, 2, 1, 2)]
    """
    own, other = (before == klass) & valid, (before != klass) & valid
    parts = (own & (after != klass), own, other & (after == before), other)
    sums = torch.stack([part.flatten(1).sum(1) for part in parts], 1).tolist()
    return [(a, b, c, d) for a, b, c, d in sums]


def hiding_rows(
    model: SegmentationModel, batch: Batch, pred: Tensor, klass: str
) -> list[tuple[tuple[str, str, float | None, int], ...]]:
    """Return per image what its rows say: metric, class, value, n. A chip without the class has no shares."""
    with torch.no_grad():
        before = model(batch.image).argmax(1)
    found: list[tuple[tuple[str, str, float | None, int], ...]] = []
    for fooled, own, kept, others in fooled_and_preserved(before, pred, batch.valid, model.spec.klass(klass)):
        found.append(
            (
                ("fooled", klass, fooled / own if own else None, own),
                ("preserved", klass, kept / others if own and others else None, others if own else 0),
                ("hiding.pixels", "", float(own + others), own + others),
            )
        )
    return found


def hiding_records(base: Record, said: tuple[tuple[str, str, float | None, int], ...]) -> Iterator[Record]:
    """Yield the rows of one chip."""
    for metric, klass, value, n in said:
        yield base.measured(metric, value, n, klass)

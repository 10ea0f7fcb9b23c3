"""Confusion counts against torchmetrics' JaccardIndex with default arguments: same numbers, and the ratio of times.

    python benchmarks/metrics.py [--threads N] [--repeat N]

Both get the same int64 predictions and labels of 16 x 512 x 512 pixels, every pixel valid, in one process. Each time
is the smallest of the repeats, and repeats alternate, so that a busy machine slows both. Ours makes the per-chip counts
and the pooled IoU of every class from them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import JaccardIndex

from seawall.metrics.counts import confusion
from seawall.metrics.ratios import ConfusionCounts, iou

GOAL = 50


def scene(classes: int, *, junk: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return predictions that are right on four pixels of five, labels, and valid pixels."""
    g = torch.Generator().manual_seed(0)
    shape = (16, 512, 512)
    label = torch.randint(0, classes, shape, generator=g)
    pred = torch.where(torch.rand(shape, generator=g) < 0.8, label, torch.randint(0, classes, shape, generator=g))
    valid = torch.rand(shape, generator=g) > 0.2 if junk else torch.ones(shape, dtype=torch.bool)
    return pred, label.masked_fill(~valid, -1), valid


def fastest(calls: list[Callable[[], object]], repeat: int) -> list[float]:
    """Return the smallest time of each call in seconds, taking turns."""
    best = [float("inf")] * len(calls)
    for _ in range(repeat):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def compare(classes: int, repeat: int, *, junk: bool = False) -> float:
    """Print one line and return how many times faster ours is."""
    pred, label, valid = scene(classes, junk=junk)
    ignore = -1 if junk else None

    def theirs() -> Tensor:
        metric = JaccardIndex(task="multiclass", num_classes=classes, ignore_index=ignore)
        metric.update(pred, label)
        return metric.compute()

    def ours() -> np.ndarray:
        return iou(ConfusionCounts.of(confusion(pred, label, valid, classes).sum(0).numpy()))

    if abs(float(theirs()) - ours().mean()) > 1e-6:
        raise SystemExit(f"{classes} classes: numbers differ, {float(theirs())} and {ours().mean()}")
    slow, fast = fastest([theirs, ours], repeat)
    void = ", a fifth void" if junk else ""
    print(
        f"{classes:3d} classes{void}: torchmetrics {1e3 * slow:7.1f} ms, seawall {1e3 * fast:6.2f} ms, ratio {slow / fast:5.1f}"
    )
    return slow / fast


def main() -> None:
    """Measure two classes (the goal), more classes, and void pixels."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads, 16 x 512 x 512 pixels")
    ratio = compare(2, given.repeat)
    for classes, junk in ((2, True), (3, False), (11, False), (20, False)):
        compare(classes, given.repeat, junk=junk)
    print(f"goal {GOAL} at two classes: {'met' if ratio >= GOAL else 'NOT met'}")


if __name__ == "__main__":
    main()

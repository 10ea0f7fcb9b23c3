"""Confusion matrices and object sizes of chips as counts, with their records, aggregates and ratios."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as components
from torch import Tensor

from seawall.errors import DataError
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.ratios import CLASSWISE, OVERALL, ConfusionCounts, compute_ratio
from seawall.records import Record, finite_or_none

MOST_BYTE_CLASSES = 15  # K * K + 1 codes fit one byte, which is eight times less memory traffic than int64
BLOCK_PIXELS = 1 << 16  # pixels whose int64 label and prediction stay in the cache between two looks at them


def confusion(pred: Tensor, label: Tensor, valid: Tensor, classes: int) -> Tensor:
    """Count label against prediction over valid pixels, chip by chip.

    What invalid pixels hold, in `label` or in `pred`, means nothing.

    Args:
        pred: (B, H, W) predicted class.
        label: (B, H, W) true class.
        valid: (B, H, W) bool.
        classes: Number of classes K.

    Returns:
        (B, K, K) int64, rows are labels and columns predictions, on the device of the input.

    Raises:
        DataError: The shapes differ, or a valid pixel holds a value outside 0..K-1.

    Example:
        >>> label = torch.tensor([[[0, 1, 1]]])
        >>> confusion(torch.tensor([[[0, 1, 0]]]), label, label >= 0, 2).tolist()
        [[[1, 0], [1, 1]]]
    """
    if not pred.shape == label.shape == valid.shape or label.ndim != 3:
        raise DataError(
            f"confusion: expected pred, label and valid of one shape (B, H, W), got {tuple(pred.shape)}, "
            f"{tuple(label.shape)}, {tuple(valid.shape)}; align them"
        )
    if classes < 1:
        raise DataError(f"confusion: expected at least one class, got {classes}; name the classes")
    if label.numel() == 0:
        return torch.zeros(len(label), classes, classes, dtype=torch.int64, device=label.device)
    valid = valid.bool()
    if label.device.type == "cpu" and classes <= MOST_BYTE_CLASSES:
        return _count_bytes(pred, label, valid, classes)
    return _count_wide(pred, label, valid, classes)


def _count_wide(pred: Tensor, label: Tensor, valid: Tensor, classes: int) -> Tensor:
    """Return the counts by one bincount for the whole batch, on any device and for any number of classes."""
    pred, label = _within(pred.long(), valid, classes, "pred"), _within(label.long(), valid, classes, "label")
    cells = classes * classes
    chip = torch.arange(len(label), device=label.device).view(-1, 1, 1) * (cells + 1)
    code = torch.where(valid, label * classes + pred, cells) + chip
    counts = torch.bincount(code.flatten(), minlength=len(label) * (cells + 1))
    return counts.view(len(label), cells + 1)[:, :cells].reshape(-1, classes, classes)


def _within(values: Tensor, valid: Tensor, classes: int, name: str) -> Tensor:
    """Return the values with zero where invalid, after a check that valid ones are classes."""
    values = values.masked_fill(~valid, 0)
    wrong = (values < 0) | (values >= classes)
    if bool(wrong.any()):
        image = int(wrong.flatten(1).any(1).nonzero()[0])
        raise _no_class_error(name, classes, int(values[image][wrong[image]][0]), image)
    return values


def _count_bytes(pred: Tensor, label: Tensor, valid: Tensor, classes: int) -> Tensor:
    """Return the same counts on the CPU, by bytes and block by block, because reading int64 from memory takes most of the time."""
    flat = [x.reshape(len(label), -1).numpy() for x in (pred, label, valid)]

    def count(image: int) -> NDArray[np.int64]:
        total = np.zeros(classes * classes, np.int64)
        for start in range(0, flat[0].shape[1], BLOCK_PIXELS):
            guess, truth, counted = (x[image, start : start + BLOCK_PIXELS] for x in flat)
            g = _narrow(guess, counted, classes, "pred", image)
            t = _narrow(truth, counted, classes, "label", image)
            total += _count_two(g, t, counted) if classes == 2 else _count_codes(g, t, counted, classes)
        return total

    images = range(len(label))
    threads = torch.get_num_threads()
    busy = threads > 1 and len(label) > 1 and label.numel() > BLOCK_PIXELS
    table = np.stack(list(_pool(threads).map(count, images) if busy else map(count, images)))
    return torch.from_numpy(table).view(-1, classes, classes)


def _count_two(guess: NDArray[np.uint8], truth: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Four counts from three sums: sums of bytes that hold one bit are the fastest there are."""
    g, t = guess.view(np.bool_), truth.view(np.bool_)
    total = np.count_nonzero(valid)
    if total < valid.size:
        g, t = g & valid, t & valid
    predicted, true = np.count_nonzero(g), np.count_nonzero(t)
    both = np.count_nonzero(g & t)
    return np.array([total - predicted - true + both, predicted - both, true - both, both], np.int64)


def _count_codes(
    guess: NDArray[np.uint8], truth: NDArray[np.uint8], valid: NDArray[np.bool_], classes: int
) -> NDArray[np.int64]:
    code = truth * np.uint8(classes)
    code += guess
    code += np.uint8(1)
    code *= valid.view(np.uint8)  # 0 where invalid
    counts: NDArray[np.int64] = torch.bincount(torch.from_numpy(code), minlength=classes * classes + 1)[1:].numpy()
    return counts


def _narrow(
    values: NDArray[np.generic], valid: NDArray[np.bool_], classes: int, name: str, image: int
) -> NDArray[np.uint8]:
    """Return the values as bytes, proven to be classes where valid, and zero elsewhere if they are none."""
    bits = int(np.bitwise_or.reduce(values))  # no value is larger, and a negative one makes it negative
    small = values.astype(np.uint8)
    if 0 <= bits < classes or (0 <= bits < 256 and int(small.max()) < classes):
        return small
    numbers = values.astype(np.int64, copy=False)
    wrong = (numbers.view(np.uint64) >= classes) & valid  # a negative number is a huge one there
    if wrong.any():
        raise _no_class_error(name, classes, int(numbers[wrong][0]), image)
    return small * valid.view(np.uint8)


def _no_class_error(name: str, classes: int, value: int, image: int) -> DataError:
    return DataError(
        f"confusion: expected {name} in 0..{classes - 1} at valid pixels, got {value} in image {image} of the batch; "
        f"mark such pixels invalid or add the class"
    )


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="seawall-counts")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has the pool, but none of its threads


Counts = NDArray[np.int64] | Tensor


def count_records(row: Record, counts: Counts, classes: Sequence[str]) -> Iterator[Record]:
    """Yield tp, fp, fn per class and the valid pixels of one chip.

    Args:
        row: A row of the chip; metric, class, value and n are replaced.
        counts: (K, K) confusion counts, rows labels, columns predictions.
        classes: Names of the classes.
    """
    t = ConfusionCounts.of(_numpy(counts))
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
        rows += count_records(Record("", "", "clean", "", chip, group, "", "", None, 0), one, classes)
    return aggregate_records(rows, samples=samples, seed=seed)


def pooled_ratios(counts: Counts, classes: Sequence[str]) -> Mapping[str, float | None]:
    """Return every pooled ratio as plain numbers, such as `iou.water` and `miou`; None where undefined.

    Args:
        counts: (N, K, K) or (K, K).
        classes: Names of the K classes.

    Example:
        >>> pooled_ratios(np.array([[5, 1], [2, 2]]), ("land", "water"))["iou.water"]
        0.4
    """
    t = ConfusionCounts.of(_numpy(counts).reshape(-1, len(classes), len(classes)).sum(0))
    found = {name: finite_or_none(compute_ratio(name, t)[0]) for name in OVERALL}
    for name in CLASSWISE:
        found |= {
            f"{name}.{klass}": finite_or_none(value)
            for klass, value in zip(classes, compute_ratio(name, t), strict=True)
        }
    return found


def _numpy(counts: Counts) -> NDArray[np.int64]:
    return counts.detach().cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)


SIZE_BIN_EDGES = (10, 100, 1000, 10000)
"""Object sizes in pixels where one bin ends and the next begins."""

SIZE_BINS = ("1-9", "10-99", "100-999", "1000-9999", "10000+", "none")
"""Names of the bins; "none" holds what is predicted on a chip without any object."""


@dataclass(frozen=True)
class SizedObjects:
    """The 8-connected objects of a class on one chip, and the pixels nearest to each.

    Sizes are of the part within the chip. Every pixel belongs to the bin of the nearest object: a false positive counts
    in the bin of the object next to it, and the bins add up to the counts of the chip.

    Args:
        truth: (H, W) bool, valid pixels of the class.
        valid: (H, W) bool.
        bin: (H, W) index into `NAMES`.
        per_bin: Number of objects per bin.
    """

    truth: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    bin: NDArray[np.uint8]
    per_bin: NDArray[np.int64]

    @staticmethod
    def of(truth: NDArray[np.bool_], valid: NDArray[np.bool_]) -> SizedObjects:
        """Find the objects of a class in a label."""
        truth = truth & valid
        none = len(SIZE_BINS) - 1
        index, found = components(truth, np.ones((3, 3)))
        if not found:
            return SizedObjects(truth, valid, np.full(truth.shape, none, np.uint8), np.zeros(len(SIZE_BINS), np.int64))
        sizes = np.bincount(index.ravel())[1:]
        kinds = np.digitize(sizes, SIZE_BIN_EDGES).astype(np.uint8)
        nearest = distance_transform_edt(~truth, return_distances=False, return_indices=True)
        zone = kinds[index[tuple(nearest)] - 1]
        return SizedObjects(truth, valid, zone, np.bincount(kinds, minlength=len(SIZE_BINS)))

    def counts(self, predicted: NDArray[np.bool_]) -> Mapping[str, NDArray[np.int64]]:
        """Count pixels of a prediction per bin.

        Args:
            predicted: (H, W) bool, where the class is predicted.

        Returns:
            tp, fp and fn, each (bins,).
        """
        predicted = predicted & self.valid
        parts = {"tp": predicted & self.truth, "fp": predicted & ~self.truth, "fn": self.truth & ~predicted}
        return {name: np.bincount(self.bin[part], minlength=len(SIZE_BINS)) for name, part in parts.items()}

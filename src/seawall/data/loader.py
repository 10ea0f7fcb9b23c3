"""Batches from a chip folder: random patches for training, whole chips for evaluation."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from seawall.data.chip_format import IGNORE
from seawall.data.chips import Chip, ChipFolder
from seawall.errors import DataError, UsageError, did_you_mean
from seawall.rng import Keys
from seawall.types import Batch, fill_of

ChipEdit = Callable[[Chip], Chip]
"""Changes a whole chip before patches are cut from it, such as by corrupting its label; a pure function of the chip."""

LabelPlanes = Callable[[str], NDArray[np.uint8]]
"""Maps a chip id to a label plane (H, W) used instead of the stored one; 255 where the label does not count."""


class CountedLabels(Protocol):
    """Label planes whose pixels of each class are counted."""

    def __call__(self, id_: str, /) -> NDArray[np.uint8]: ...
    def class_counts(self, id_: str, /) -> Sequence[int] | NDArray[np.int64]: ...


@dataclass(frozen=True)
class StoredLabels:
    """The labels of a folder as they are, with the counts of its index."""

    folder: ChipFolder

    def __call__(self, id_: str, /) -> NDArray[np.uint8]:
        """Return the label (H, W) of a chip."""
        return self.folder.stored(id_)[1]

    def class_counts(self, id_: str, /) -> Sequence[int]:
        """Return the valid pixels of each class in a chip."""
        return self.folder.row(id_).class_counts


BALANCES = ("area", "classes")

MAX_EDITED_BYTES = 512 * 2**20
"""Bytes of edited chips kept in memory; unedited ones are memory-mapped and need no cache."""

LoadJob = TypeVar("LoadJob")
EditedPixels = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]
"""Image (C, H, W), label (H, W) with 255 where it does not count, and where each source is seen (S, H, W)."""


def patches(
    folder: ChipFolder,
    ids: Sequence[str],
    *,
    patch: int,
    batch: int,
    epoch: int = 0,
    seed: int = 0,
    count: int | None = None,
    start: int = 0,
    balance: str | None = None,
    workers: int = 0,
    augment: str = "none",
    edit: ChipEdit | None = None,
    labels: LabelPlanes | None = None,
    balance_labels: CountedLabels | None = None,
) -> Iterator[Batch]:
    """Yield batches of random patches; the i-th patch depends on (seed, epoch, i) alone.

    A chip smaller than the patch is centered in it, with unseen pixels around. Chip ids are
    "<chip>@<epoch>.<index>".

    Args:
        folder: The chips.
        ids: Chips to draw from.
        patch: Side in pixels.
        batch: Patches per batch; the last batch may have fewer.
        epoch: Number of the pass.
        seed: Seed of the experiment.
        count: Patches of this epoch; as many as cover the chips' pixels once if None.
        start: First index, to resume in the middle of an epoch.
        balance: None or "area": chips by their pixels; "classes": patch centers balanced over classes.
        workers: Threads that read ahead; the batches are the same whatever their number.
        augment: "none" or "d4": one of the eight turns and flips, by the patch's own key.
        edit: Changes each chip before it is cut.
        labels: Label planes instead of the stored ones, cheaper than an edit where the images stay.
        balance_labels: Labels by which classes are balanced; by default the stored ones, neither edited nor replaced.

    Raises:
        UsageError: A setting is unknown or out of range, or both edit and labels are given.
        DataError: There are no chips, a label plane has another shape than its chip, or a file is not what the index says.
    """
    sampler = Sampler(
        folder, ids, patch=patch, seed=seed, balance=balance, augment=augment, balance_labels=balance_labels
    )
    total = len(sampler) if count is None else count
    if batch < 1 or total < 0 or workers < 0 or start < 0:
        raise UsageError(
            f"loader: expected batch >= 1, count, start and workers >= 0, got {batch}, {total}, {start}, {workers}; fix them"
        )
    if edit is not None and labels is not None:
        raise UsageError("loader: expected edit or labels, got both; let the edit change the label as well")
    cutter = _PatchReader(folder, patch, edit, labels)

    def make(first: int) -> Batch:
        return cutter.batch([sampler.draw(epoch, i) for i in range(first, min(first + batch, total))])

    return _in_order(make, range(start, total, batch), workers)


@dataclass(frozen=True)
class PatchFeed:
    """The patches of every epoch of a training, from any batch on: a pure function of its fields.

    Args:
        folder: The chips.
        ids: Chips to draw from.
        patch: Side in pixels.
        batch: Patches per batch.
        count: Patches per epoch.
        seed: Seed of the experiment.
        balance: As of `patches`.
        augment: As of `patches`.
        workers: Threads that read ahead; the batches are the same whatever their number.
        labels: Label planes instead of the stored ones.
        balance_labels: As of `patches`.
    """

    folder: ChipFolder
    ids: tuple[str, ...]
    patch: int
    batch: int
    count: int
    seed: int = 0
    balance: str | None = None
    augment: str = "none"
    workers: int = 0
    labels: LabelPlanes | None = None
    balance_labels: CountedLabels | None = None

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        return self.starting_at(epoch, 0)

    def starting_at(self, epoch: int, batch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from this one on; those before are not read."""
        return patches(
            self.folder, self.ids, patch=self.patch, batch=self.batch, count=self.count, epoch=epoch, seed=self.seed,
            start=batch * self.batch, balance=self.balance, augment=self.augment, workers=self.workers, labels=self.labels,
            balance_labels=self.balance_labels,
        )  # fmt: skip


def whole_chips(
    folder: ChipFolder,
    ids: Sequence[str],
    batch: int = 8,
    *,
    multiple: int = 1,
    workers: int = 0,
    edit: ChipEdit | None = None,
) -> Iterator[Batch]:
    """Yield batches of whole chips, each batch of one size.

    Chips of different size never share a batch: padding that depends on the other chips of a batch would change
    a chip's prediction. The order is that of the ids within each size.

    Args:
        folder: The chips.
        ids: Chips to read.
        batch: Chips per batch at most.
        multiple: Pad each side (below, right) with unseen pixels to a multiple of this.
        workers: Threads that read ahead.
        edit: Changes each chip.

    Raises:
        UsageError: A setting is out of range.
        DataError: A file is not what the index says.
    """
    if batch < 1 or multiple < 1 or workers < 0:
        raise UsageError(
            f"loader: expected batch and multiple >= 1 and workers >= 0, got {batch}, {multiple}, {workers}; fix them"
        )
    sizes: dict[tuple[int, int], list[str]] = {}
    for id_ in ids:
        row = folder.row(id_)
        sizes.setdefault((row.height, row.width), []).append(id_)
    jobs = [same[i : i + batch] for same in sizes.values() for i in range(0, len(same), batch)]

    def make(job: list[str]) -> Batch:
        return _pad_and_stack([_read_edited(folder, id_, edit) for id_ in job], multiple, folder)

    return _in_order(make, jobs, workers)


class _PatchReader:
    """Cuts patches out of mapped chips, or out of edited ones in a bounded cache."""

    def __init__(self, folder: ChipFolder, patch: int, edit: ChipEdit | None, labels: LabelPlanes | None) -> None:
        self.folder, self.patch, self.edit, self.labels = folder, patch, edit, labels
        self._kept: OrderedDict[str, EditedPixels] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def batch(self, draws: Sequence[PatchDraw]) -> Batch:
        n, p, bands = len(draws), self.patch, len(self.folder.bands)
        image = np.empty((n, bands, p, p), np.float32)
        label = np.empty((n, p, p), np.int64)
        known = np.empty((n, len(self.folder.header.sources), p, p), bool)
        valid = np.empty((n, p, p), bool)
        for i, draw in enumerate(draws):
            marks, sight = np.full((p, p), IGNORE, np.uint8), np.zeros(known.shape[1:], bool)
            flat = np.empty((bands, p, p), np.float32) if draw.turn else image[i]
            self._cut(draw, flat, marks, sight)
            if draw.turn:
                image[i] = turn_d4(flat, draw.turn)
                marks, sight = turn_d4(marks, draw.turn), turn_d4(sight, draw.turn)  # type: ignore[assignment]
            known[i] = sight
            np.logical_and(sight.any(0), marks != IGNORE, out=valid[i])
            label[i] = marks
            label[i] *= valid[i]
        return _to_batch(self.folder, image, label, known, valid, tuple(draw.key for draw in draws))

    def _cut(
        self, draw: PatchDraw, image: NDArray[np.float32], marks: NDArray[np.uint8], known: NDArray[np.bool_]
    ) -> None:
        row = self.folder.row(draw.chip)
        low = (max(0, draw.row), max(0, draw.col))
        high = (min(row.height, draw.row + self.patch), min(row.width, draw.col + self.patch))
        into = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, (draw.row, draw.col), strict=True))
        out = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        if (high[0] - low[0], high[1] - low[1]) != (self.patch, self.patch):
            image[...] = _fill_column(self.folder)
        if self.edit is None:
            stored, label = self.folder.stored(draw.chip)
            label = label if self.labels is None else self._plane(draw.chip, self.labels)
            known[:, *into] = self.folder.decode(row, stored[:, *out], image[:, *into])
            marks[into] = label[out]
        else:
            pixels, label, sight = self._edit(draw.chip, self.edit)
            image[:, *into], marks[into], known[:, *into] = pixels[:, *out], label[out], sight[:, *out]

    def _plane(self, id_: str, labels: LabelPlanes) -> NDArray[np.uint8]:
        plane, row = labels(id_), self.folder.row(id_)
        if plane.shape != (row.height, row.width):
            raise DataError(f"{id_}: expected a label of {row.height}x{row.width}, got {plane.shape}; fix the labels")
        return plane

    def _edit(self, id_: str, edit: ChipEdit) -> EditedPixels:
        with self._lock:
            if id_ in self._kept:
                self._kept.move_to_end(id_)
                return self._kept[id_]
        chip = _read_edited(self.folder, id_, edit)
        marks = np.where(chip.valid, chip.label, IGNORE).astype(np.uint8)
        edited = (chip.image, marks, _seen_by_source(chip, self.folder))
        size = sum(array.nbytes for array in edited)
        with self._lock:
            if id_ not in self._kept:
                self._kept[id_] = edited
                self._bytes += size
            while self._bytes > MAX_EDITED_BYTES and len(self._kept) > 1:
                self._bytes -= sum(array.nbytes for array in self._kept.popitem(last=False)[1])
        return edited


def _read_edited(folder: ChipFolder, id_: str, edit: ChipEdit | None) -> Chip:
    chip = folder.read(id_)
    if edit is None:
        return chip
    new = edit(chip)
    if new.id != chip.id or new.image.shape != chip.image.shape or new.label.shape != chip.label.shape:
        raise DataError(
            f"{id_}: expected an edited chip of the same id and shape, got {new.id} {new.image.shape}; fix edit"
        )
    if (new.valid & ~new.seen).any():
        raise DataError(f"{id_}: expected valid pixels to be seen, got an edit that broke it; fix edit")
    return new


def _seen_by_source(chip: Chip, folder: ChipFolder) -> NDArray[np.bool_]:
    """Return where each source of a chip is seen, (S, H, W)."""
    if chip.seen_bands is None:
        return chip.seen[None]
    return chip.seen_bands[[channels[0] for channels in folder.header.sources.values()]] & chip.seen


def _fill_column(folder: ChipFolder) -> NDArray[np.float32]:
    """Return what unseen pixels hold, (C, 1, 1)."""
    return np.array(fill_of(folder.unit, len(folder.bands)), np.float32)[:, None, None]


def _pad_and_stack(chips: Sequence[Chip], multiple: int, folder: ChipFolder) -> Batch:
    height, width = chips[0].label.shape
    tall, wide = (-(-n // multiple) * multiple for n in (height, width))
    image = np.empty((len(chips), len(chips[0].image), tall, wide), np.float32)
    image[...] = _fill_column(folder)
    label, valid = np.zeros((len(chips), tall, wide), np.int64), np.zeros((len(chips), tall, wide), bool)
    known = np.zeros((len(chips), len(folder.header.sources), tall, wide), bool)
    for i, chip in enumerate(chips):
        image[i, :, :height, :width] = chip.image
        known[i, :, :height, :width] = _seen_by_source(chip, folder)
        for into, values in ((label, chip.label), (valid, chip.valid)):
            into[i, :height, :width] = values
    return _to_batch(folder, image, label, known, valid, tuple(chip.id for chip in chips))


def _to_batch(
    folder: ChipFolder,
    image: NDArray[np.float32],
    label: NDArray[np.int64],
    known: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    names: tuple[str, ...],
) -> Batch:
    """Return the batch; `known` is where each source is seen, (B, S, H, W)."""
    as_tensor = torch.from_numpy
    by_band = folder.bandwise(known.swapaxes(0, 1))
    seen_bands = None if by_band is None else as_tensor(np.ascontiguousarray(by_band.swapaxes(0, 1)))
    seen = as_tensor(known.any(1))
    return Batch(as_tensor(image), as_tensor(label), seen, as_tensor(valid), names, seen_bands, folder.bands)


def _in_order(make: Callable[[LoadJob], Batch], jobs: Sequence[LoadJob], workers: int) -> Iterator[Batch]:
    """Yield the results of jobs in order; threads work a bounded number of jobs ahead."""
    if workers == 0:
        for job in jobs:
            yield make(job)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    ahead: deque[Future[Batch]] = deque()
    try:
        for job in jobs:
            ahead.append(pool.submit(make, job))
            if len(ahead) > workers + 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        # A consumer that stops early, or a bad chip: jobs that have not begun are dropped.
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class PatchDraw:
    """One patch to cut.

    Args:
        chip: Id of the chip it comes from.
        key: Id of the patch: seed of its randomness and record key.
        row: First row in the chip; the patch may reach over the border where the chip is smaller.
        col: First column.
        center: The drawn pixel (row, column): the center of the patch, unless the patch was moved inside the chip.
        turn: 0 to 7: quarter turns, and a flip from 4 on.
    """

    chip: str
    key: str
    row: int
    col: int
    center: tuple[int, int]
    turn: int = 0


class Sampler:
    """Draws random patches from chips.

    `balance="area"`: every chip in proportion to its pixels, without repetition until all were drawn.
    `balance="classes"`: a class uniformly among those present, then a valid pixel of that class uniformly over
    all chips, then the patch around it (moved inside at borders), so that rare classes are seen as often as
    common ones.

    Args:
        folder: The chips.
        ids: Chips to draw from.
        patch: Side in pixels.
        seed: Seed of the experiment.
        balance: "area" (also None) or "classes".
        augment: "none" or "d4": one of the eight turns and flips.
        balance_labels: Labels by which classes are balanced; the stored ones if None.

    Raises:
        UsageError: A setting is unknown or out of range.
        DataError: There is no chip, or no valid pixel to balance over.

    Paper: Volpi and Tuia 2017 (class-balanced patch centers).
    """

    def __init__(
        self,
        folder: ChipFolder,
        ids: Sequence[str],
        *,
        patch: int,
        seed: int,
        balance: str | None = None,
        augment: str = "none",
        balance_labels: CountedLabels | None = None,
    ) -> None:
        if patch < 1:
            raise UsageError(f"loader: expected a patch of at least 1 pixel, got {patch}; raise it")
        if (balance or "area") not in BALANCES:
            raise UsageError(f"loader: unknown balance {balance!r}; {did_you_mean(str(balance), BALANCES)}")
        if augment not in ("none", "d4"):
            raise UsageError(f"loader: unknown augment {augment!r}; {did_you_mean(augment, ('none', 'd4'))}")
        if not ids:
            raise DataError(f"{folder.root}: expected chips to draw from, got none; choose another part of the split")
        self.folder, self.ids, self.patch, self.seed, self.augment = folder, tuple(ids), patch, seed, augment
        self.balance = balance or "area"
        self._shapes = np.array([(folder.row(id_).height, folder.row(id_).width) for id_ in self.ids])
        areas = self._shapes.prod(1) / patch**2
        self._slots = np.repeat(np.arange(len(self.ids)), np.maximum(1, np.floor(areas)).astype(int))
        self._labels = StoredLabels(folder) if balance_labels is None else balance_labels
        counts = [self._labels.class_counts(id_) for id_ in self.ids] if self.balance == "classes" else []
        self._counts = np.array(counts, np.float64).reshape(len(counts), len(folder.classes))
        self._present = np.flatnonzero(self._counts.sum(0))
        if self.balance == "classes" and not len(self._present):
            raise DataError(f"{folder.root}: expected valid pixels to balance over, got none; use balance area")
        self._order: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Patches of one epoch: as many as cover the chips' pixels once."""
        return len(self._slots)

    def draw(self, epoch: int, index: int) -> PatchDraw:
        """Return the patch with this index in this epoch."""
        rng = Keys(self.seed, (f"{epoch}.{index}",), ("patches",)).numpy(0)
        if self.balance == "classes":
            at, center = self._by_class(rng)
            row, col = (int(c) - self.patch // 2 for c in center)
            row, col = (self._inside(v, n) for v, n in zip((row, col), self._shapes[at], strict=True))
        else:
            at = self._by_area(epoch, index)
            row, col = (int(rng.integers(0, max(1, n - self.patch + 1))) for n in self._shapes[at])
            row, col = (
                v if n >= self.patch else -((self.patch - int(n)) // 2)
                for v, n in zip((row, col), self._shapes[at], strict=True)
            )
            center = (row + self.patch // 2, col + self.patch // 2)
        key = f"{self.ids[at]}@{epoch}.{index}"
        turn = int(Keys(self.seed, (key,), ("d4",)).numpy(0).integers(8)) if self.augment == "d4" else 0
        return PatchDraw(self.ids[at], key, row, col, center, turn)

    def _by_area(self, epoch: int, index: int) -> int:
        lap, place = divmod(index, len(self._slots))
        if (epoch, lap) not in self._order:
            rng = Keys(self.seed, (f"{epoch}.{lap}",), ("order",)).numpy(0)
            self._order = {(epoch, lap): rng.permutation(self._slots), **dict(list(self._order.items())[:3])}
        return int(self._order[epoch, lap][place])

    def _by_class(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        klass = int(self._present[rng.integers(len(self._present))])
        share = np.cumsum(self._counts[:, klass])
        at = int(np.searchsorted(share, rng.integers(int(share[-1])), side="right"))
        found = np.flatnonzero(self._labels(self.ids[at]).ravel() == klass)
        if len(found) != int(self._counts[at, klass]):
            raise DataError(
                f"{self.ids[at]}: expected {self._counts[at, klass]:.0f} pixels of {self.folder.classes[klass]!r}, got {len(found)}; curate the folder again"
            )
        row, col = divmod(int(found[rng.integers(len(found))]), int(self._shapes[at][1]))
        return at, (row, col)

    def _inside(self, start: int, size: int) -> int:
        if size < self.patch:
            return -((self.patch - int(size)) // 2)
        return min(max(start, 0), int(size) - self.patch)


def turn_d4(array: NDArray[np.generic], turn: int) -> NDArray[np.generic]:
    """Return one of the eight turns and flips of the last two axes.

    Example:
        >>> turn_d4(np.array([[1, 2], [3, 4]]), 1).tolist()
        [[2, 4], [1, 3]]
    """
    turned = np.rot90(array, turn % 4, axes=(-2, -1))
    return turned[..., ::-1] if turn >= 4 else turned


def class_shares(folder: ChipFolder, ids: Sequence[str]) -> Mapping[str, float | None]:
    """Return the share of each class among the valid pixels of these chips; None if no pixel is valid."""
    counts = np.array([folder.row(id_).class_counts for id_ in ids], np.int64).reshape(-1, len(folder.classes)).sum(0)
    total = int(counts.sum())
    return {name: int(n) / total if total else None for name, n in zip(folder.classes, counts, strict=True)}

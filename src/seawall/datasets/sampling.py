"""Which patch comes next: a pure function of (seed, epoch, index), so workers and resume cannot change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.datasets.chips import ChipFolder
from seawall.errors import DataError, UsageError, did_you_mean
from seawall.rng import Keys

BALANCES = ("area", "classes")


@dataclass(frozen=True)
class Draw:
    """One patch to cut.

    Args:
        chip: Id of the chip it comes from.
        key: Id of the patch: seed of its randomness and record key.
        row: First row in the chip; the patch may reach over the border where the chip is smaller.
        col: First column.
        center: The drawn pixel (row, column); the center of the patch unless the border moved the patch.
        turn: 0 to 7: quarter turns, and a flip from 4 on.
    """

    chip: str
    key: str
    row: int
    col: int
    center: tuple[int, int]
    turn: int = 0


class Sampler:
    """Draws patches from chips.

    `balance="area"`: every chip in proportion to its pixels, without repetition until all had their turn.
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
        self._counts = np.array([folder.row(id_).class_counts for id_ in self.ids], np.float64)
        self._present = np.flatnonzero(self._counts.sum(0))
        if self.balance == "classes" and not len(self._present):
            raise DataError(f"{folder.root}: expected valid pixels to balance over, got none; use balance area")
        self._order: dict[tuple[int, int], NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Patches of one epoch: as many as cover the chips' pixels once."""
        return len(self._slots)

    def draw(self, epoch: int, index: int) -> Draw:
        """Return the patch of this place in this epoch."""
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
        return Draw(self.ids[at], key, row, col, center, turn)

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
        found = np.flatnonzero(self.folder.stored(self.ids[at])[1].ravel() == klass)
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

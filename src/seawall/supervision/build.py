"""The known part of the labels of a chip folder: build its kinds, apply them to the training chips, count what is left."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from seawall.chip_context import ChipContext, build_with_context
from seawall.data.chips import Chip, ChipFolder
from seawall.data.label_planes import ComputedLabels, plane_class_counts, stored_label
from seawall.errors import DataError, UsageError
from seawall.label_noise.build import CorruptedLabels, chip_batch
from seawall.registry import find
from seawall.rng import Keys
from seawall.types import ChipSelection, LabelledChip, Setting, Supervision


def build_supervision(name: str, settings: dict[str, Setting], context: ChipContext) -> Supervision:
    """Build a registered supervision with the properties of the chips.

    Raises:
        UsageError: There is no such supervision, or a setting is wrong or contradicts the chips.
    """
    return cast(Supervision, build_with_context("supervision", name, settings, context))


def check_combination(names: Sequence[str]) -> None:
    """Check kinds of supervision that are applied one after the other.

    Raises:
        UsageError: Image-level labels stand beside labels of pixels, which they would contradict.
    """
    whole = [name for name in names if "image-level" in find("supervision", name).traits]
    pixels = [
        name for name in names if name not in whole and not issubclass(find("supervision", name).make, ChipSelection)
    ]
    if whole and (other := [*pixels, *whole[1:]]):
        raise UsageError(
            f"supervision: expected {whole[0]} with labels of no other kind, got {other[0]} beside it; the label of an image would "
            "contradict those of its pixels: leave one of them out"
        )


@dataclass(frozen=True)
class KnownCounts:
    """How much of the labels of the training chips is known.

    Args:
        pixels: Known pixels of each class.
        chips: Chips with a known pixel.
        labelled_pixels: Pixels of each class in the labels as they are.
        training_chips: All chips of the training part.
    """

    pixels: tuple[int, ...]
    chips: int
    labelled_pixels: tuple[int, ...]
    training_chips: int

    def facts(self) -> dict[str, int]:
        """Return plain values for a record, over all classes."""
        return {
            "pixels": sum(self.pixels),
            "of_pixels": sum(self.labelled_pixels),
            "chips": self.chips,
            "of_chips": self.training_chips,
        }


class KnownLabels(ComputedLabels):
    """The labels of training chips of which a part is known; 255 where unknown.

    Args:
        folder: The chips.
        ids: The training chips.
        supervisions: Applied to whole chips, each to what the one before left.
        seed: Seed of their randomness.
        cache: Folder of the labels.
        noisy: Labels after a noise, of which a part is known; the stored ones if None.

    Raises:
        UsageError: More chips are asked for than there are.
    """

    def __init__(
        self,
        folder: ChipFolder,
        ids: Sequence[str],
        supervisions: Sequence[Supervision],
        seed: int,
        cache: Path,
        noisy: CorruptedLabels | None = None,
    ) -> None:
        super().__init__(folder, cache)
        self.ids, self.seed, self.noisy = tuple(ids), seed, noisy
        self.supervisions: tuple[Supervision, ...] = ()
        self._counts: dict[str, NDArray[np.int64]] = {}
        for number, one in enumerate(supervisions):
            if isinstance(one, ChipSelection):
                one = one.chosen_from([self._labelled_chip(id_) for id_ in self.ids], self._keys(number, self.ids))
            self.supervisions = (*self.supervisions, one)

    def class_counts(self, id_: str) -> NDArray[np.int64]:
        """Return the known pixels of each class in a chip, counted once."""
        if id_ not in self._counts:
            self._counts[id_] = plane_class_counts(self(id_), len(self.folder.classes))
        return self._counts[id_]

    @property
    def identity(self) -> str:
        """Names and digest of what decides the labels besides the chips, for messages."""
        noise = [] if self.noisy is None else [self.noisy.identity]
        return " + ".join([*noise, *(type(one).__name__ for one in self.supervisions), self._digest])

    @property
    def labelled(self) -> tuple[str, ...]:
        """The training chips with a known pixel."""
        return tuple(id_ for id_ in self.ids if self.class_counts(id_).any())

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """The training chips without one."""
        return tuple(id_ for id_ in self.ids if not self.class_counts(id_).any())

    def counts(self) -> KnownCounts:
        """Return how much is known.

        Raises:
            DataError: A class of the training labels has no known pixel.
        """
        known = np.sum([self.class_counts(id_) for id_ in self.ids], 0)
        there = np.sum([self.folder.row(id_).class_counts for id_ in self.ids], 0)
        for name, left, all_ in zip(self.folder.classes, known, there, strict=True):
            if all_ and not left:
                raise DataError(
                    f"supervision: expected known labels of every class, got none of {name!r}, which {all_} pixels of the "
                    f"{len(self.ids)} training chips have; let more be known, by more chips, pixels or another share"
                )
        return KnownCounts(tuple(known.tolist()), len(self.labelled), tuple(there.tolist()), len(self.ids))

    @cached_property
    def _digest(self) -> str:
        return hashlib.blake2b(f"{self.supervisions!r}{self.seed}".encode(), digest_size=8).hexdigest()

    def settings(self, id_: str) -> str:
        """Return the text of the supervisions, of the noise before them and of the seed."""
        return "\0".join((self._digest, "" if self.noisy is None else self.noisy.settings(id_)))

    def _keys(self, number: int, ids: Sequence[str]) -> Keys:
        return Keys(self.seed, tuple(ids), ("supervision",) if number == 0 else ("supervision", str(number)))

    def label_of(self, chip: Chip) -> Chip:
        """Return a whole chip with the labels that the supervisions so far leave."""
        batch = chip_batch(chip if self.noisy is None else self.noisy.relabelled(chip))
        for number, one in enumerate(self.supervisions):
            batch = one(batch, self._keys(number, batch.chips))
        return replace(chip, label=batch.label[0].numpy(), valid=batch.valid[0].numpy())

    def _labelled_chip(self, id_: str) -> LabelledChip:
        row = self.folder.row(id_)
        counts = row.class_counts
        if self.supervisions or self.noisy is not None:
            plane = stored_label(self.label_of(self.folder.read(id_)))
            counts = tuple(plane_class_counts(plane, len(self.folder.classes)).tolist())
        return LabelledChip(id_, row.group, counts)

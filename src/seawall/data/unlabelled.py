"""Training chips without labels: which ones they are, and batches that hold labelled and unlabelled patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder
from seawall.data.loader import CountedLabels, LabelPlanes, PatchFeed
from seawall.data.splits import Split
from seawall.errors import DataError
from seawall.types import Batch


@dataclass(frozen=True)
class TrainingLabels:
    """The labels that a network is trained on.

    Args:
        labelled: Chips with a known label.
        unlabelled: Chips without any, which nothing holds out.
        planes: Their label planes; None for those of the folder.
        counted: Labels by which classes are balanced; None for those of the folder.
        identity: What decides the planes, for messages and for resuming.
    """

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    planes: LabelPlanes | None = None
    counted: CountedLabels | None = None
    identity: str = "as they are"


def chips_without_labels(folder: ChipFolder, split: Split) -> tuple[str, ...]:
    """Return the chips of a folder without a valid pixel that may be looked at in training, whatever part knows them.

    Chips of a place of the validation or test part are left out, and copies of their images: learning from the very
    images or places that figures are of would be transductive.
    """
    held_out = [folder.row(id_) for id_ in (*split.val, *split.test)]
    groups, images = {row.group for row in held_out}, {row.sha256 for row in held_out}
    bare = (row for row in folder.rows if not row.valid_share)
    return tuple(row.id for row in bare if row.group not in groups and row.sha256 not in images)


@dataclass(frozen=True)
class UnknownLabels:
    """Label planes of chips of which no label is known."""

    folder: ChipFolder

    def __call__(self, id_: str) -> NDArray[np.uint8]:
        """Return the plane (H, W), 255 everywhere."""
        row = self.folder.row(id_)
        return np.full((row.height, row.width), IGNORE, np.uint8)


@dataclass(frozen=True)
class SemiSupervisedFeed:
    """Batches of labelled patches, each followed by patches of unlabelled chips, from any batch on.

    Args:
        labelled: The labelled patches.
        ids: Chips without labels.
        ratio: Patches of these for each labelled one.

    Raises:
        DataError: There is no chip without labels.
    """

    labelled: PatchFeed
    ids: tuple[str, ...]
    ratio: int = 1

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(
                "training.unlabelled: expected training chips without labels, got none; leave it out, or let training.supervision know "
                "fewer labels, or curate images without labels into the folder"
            )

    @property
    def unlabelled(self) -> PatchFeed:
        """The patches without labels, drawn evenly over the area."""
        one = self.labelled
        return replace(
            one, ids=self.ids, batch=self.ratio * one.batch, count=self.ratio * one.count, balance="area",
            labels=UnknownLabels(one.folder), balance_labels=None,
        )  # fmt: skip

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        return self.starting_at(epoch, 0)

    def starting_at(self, epoch: int, batch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from this one on; those before are not read."""
        both = (feed.starting_at(epoch, batch) for feed in (self.labelled, self.unlabelled))
        for one, other in zip(*both, strict=True):
            yield Batch.concatenated([one, other])

"""Training in rounds: which labels follow from the predictions of the round before.

Training chips alone get new labels, chips of the validation and test parts never.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, FloatArray
from seawall.data.chip_format import IGNORE
from seawall.data.label_planes import plane_class_counts
from seawall.rng import Keys
from seawall.supervision.image_labels import ImageLabels, tiles_of
from seawall.training.round_settings import PaulGanju

LabelPlane = NDArray[np.uint8]


@dataclass(frozen=True)
class AcceptedTile:
    """A tile with its pseudo-labels.

    Args:
        chip: Id of its chip.
        rows: Its rows.
        cols: Its columns.
        label: (h, w), 255 where unseen.
    """

    chip: str
    rows: slice
    cols: slice
    label: LabelPlane

    def pixels(self, klass: int) -> tuple[int, int]:
        """Return its pixels of a class, and all that are labelled."""
        return int((self.label == klass).sum()), int((self.label != IGNORE).sum())


def accepted_tiles(method: PaulGanju, chip: str, probability: FloatArray, seen: BoolArray) -> Iterator[AcceptedTile]:
    """Yield the tiles of a chip that the ensemble is sure enough of.

    Args:
        method: Confidence, share of the pixels, and side of a tile.
        chip: Id of the chip.
        probability: (K, H, W).
        seen: (H, W).
    """
    sure = (probability.max(0) > method.confidence) & seen
    label = np.where(seen, probability.argmax(0), IGNORE).astype(np.uint8)
    for rows, cols in tiles_of(seen.shape[0], seen.shape[1], method.tile):
        count = int(seen[rows, cols].sum())
        if count and int(sure[rows, cols].sum()) > method.pixels * count:
            yield AcceptedTile(chip, rows, cols, label[rows, cols])


def share_of_class(tiles: Sequence[AcceptedTile], klass: int) -> float:
    """Return the share of a class among the labelled pixels of tiles; 0 without any."""
    counts = np.array([tile.pixels(klass) for tile in tiles]).reshape(-1, 2).sum(0)
    return float(counts[0] / counts[1]) if counts[1] else 0.0


def thin_tiles(tiles: Sequence[AcceptedTile], klass: int, share: float, seed: int) -> list[AcceptedTile]:
    """Return the tiles without some of those that lack a class, so that it has at least a share, if enough of them lack it.

    As few are left out as that takes, in an order that goes by the seed and the place of a tile alone.
    """
    mine, all_ = np.array([tile.pixels(klass) for tile in tiles]).reshape(-1, 2).sum(0).tolist()
    without = [i for i, tile in enumerate(tiles) if not tile.pixels(klass)[0]]

    def turn(i: int) -> int:
        place = f"{tiles[i].chip}.{tiles[i].rows.start}.{tiles[i].cols.start}"
        return Keys(seed, (place,), ("thin",)).number(0)

    left_out: set[int] = set()
    for i in sorted(without, key=turn):
        if mine >= share * all_:
            break
        left_out.add(i)
        all_ -= tiles[i].pixels(klass)[1]
    return [tile for i, tile in enumerate(tiles) if i not in left_out]


def relabel_within(given: LabelPlane, probability: FloatArray, image: ImageLabels) -> LabelPlane:
    """Return the most probable labels that do not contradict image-level labels.

    Args:
        given: (H, W) image-level labels of all pixels, 255 where there is none.
        probability: (K, H, W).
        image: How the image-level labels came about.
    """
    found = given.copy()
    klass = image.klass
    for rows, cols in tiles_of(given.shape[0], given.shape[1], image.tile):
        plane, own = given[rows, cols], probability[:, rows, cols]
        known = plane != IGNORE
        of_it, bound = bool((plane == klass).any()), int(image.share * int(known.sum()))
        asked = known & (own.argmax(0) == klass)
        if of_it and int(asked.sum()) <= bound:
            asked = highest_pixels(own[klass], known, bound + 1)
        elif not of_it and int(asked.sum()) > bound:
            asked = highest_pixels(own[klass], known, bound)
        others = own.copy()
        others[klass] = -1.0
        rest = others.argmax(0) if of_it else plane
        found[rows, cols] = np.where(known, np.where(asked, klass, rest), IGNORE)
    return found


def highest_pixels(values: FloatArray, among: BoolArray, count: int) -> BoolArray:
    """Return the pixels (H, W) with the highest values; of equal ones the first."""
    ranked = np.argsort(np.where(among, -values, np.inf), axis=None, kind="stable")[: min(count, int(among.sum()))]
    chosen = np.zeros(among.size, bool)
    chosen[ranked] = True
    return chosen.reshape(among.shape)


def changed_share(before: Sequence[LabelPlane], after: Sequence[LabelPlane]) -> float:
    """Return the share of labelled pixels whose label is another one."""
    changed = sum(int(((one != two) & (one != IGNORE)).sum()) for one, two in zip(before, after, strict=True))
    labelled = sum(int((one != IGNORE).sum()) for one in before)
    return changed / labelled if labelled else 0.0


def class_share(planes: Sequence[LabelPlane], klass: int, classes: int) -> float:
    """Return the share of a class among the labelled pixels of planes; 0 without any."""
    counts = np.sum([plane_class_counts(plane, classes) for plane in planes], 0) if planes else np.zeros(classes)
    return float(counts[klass] / counts.sum()) if counts.sum() else 0.0

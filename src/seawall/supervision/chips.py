"""Few labelled chips: the labels of some training chips are known, and none of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from seawall.errors import UsageError
from seawall.label_noise.label_view import allowance
from seawall.registry import register
from seawall.rng import Keys
from seawall.supervision.known_pixels import check_count, check_keys
from seawall.types import Batch, LabelledChip


@register("supervision", "chips", smoke={"count": 2})
@final
@dataclass(frozen=True)
class LabelledChips:
    """All labels of some training chips are known, and none of the others; more chips keep those of fewer.

    Chips are taken group by group in random order, so that the labels are of few places as they are in practice. The first
    ones are such that every class is among them as early as possible.

    Args:
        share: Share of the training chips, rounded down, and one at least.
        count: Number of training chips, instead of a share.
        chosen: Ids of the chips; None until `chosen_from` has seen the training chips.
    """

    share: float | None = None
    count: int | None = None
    chosen: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.count is None):
            got = "neither" if self.share is None else "both"
            raise UsageError(f"chips: expected share or count, got {got}; such as share = 0.1")
        if self.share is not None and not 0 < self.share <= 1:
            raise UsageError(f"chips.share: expected a share above 0 and at most 1, got {self.share}; 0.1 means 10 %")
        if self.count is not None:
            check_count("chips", self.count)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with nothing valid in chips that were not chosen.

        Raises:
            UsageError: The chips are not chosen yet.
        """
        check_keys(batch, keys)
        if self.chosen is None:
            raise UsageError(
                "chips: expected chosen chips, got none yet; call chosen_from with the training chips first"
            )
        known = torch.tensor([id_ in self.chosen for id_ in batch.chips], device=batch.valid.device)
        return replace(batch, valid=batch.valid & known[:, None, None])

    def chosen_from(self, chips: Sequence[LabelledChip], keys: Keys) -> LabelledChips:
        """Return the same supervision with its chips chosen."""
        if self.count is not None and self.count > len(chips):
            raise UsageError(
                f"chips.count: expected at most the {len(chips)} training chips, got {self.count}; lower it"
            )
        asked = max(1, allowance(self.share, len(chips))) if self.share is not None else self.count
        return replace(self, chosen=labelling_order(chips, keys.fold("chips"))[:asked])


def labelling_order(chips: Sequence[LabelledChip], keys: Keys) -> tuple[str, ...]:
    """Return all chips in the order in which they are labelled: first those that bring missing classes, then group by group.

    Args:
        chips: All training chips.
        keys: One stream per chip, in the same order.
    """
    groups = sorted({chip.group for chip in chips})
    turn = {group: Keys(keys.seed, (group,), (*keys.path, "group")).number(0) for group in groups}
    number = {chip.id: keys.number(i) for i, chip in enumerate(chips)}
    drawn = sorted(chips, key=lambda chip: (turn[chip.group], number[chip.id]))
    first, missing = [], {k for chip in chips for k in _classes(chip)}
    while missing:  # greedy set cover; max takes the first of equals
        best = max(drawn, key=lambda chip: len(_classes(chip) & missing))
        first.append(best)
        missing -= _classes(best)
    begun = {chip.group: i for i, chip in reversed(list(enumerate(first)))}
    rest = sorted(
        (chip for chip in drawn if chip not in first), key=lambda chip: begun.get(chip.group, len(first))
    )  # stable: the groups of the first chips are finished before others begin
    return tuple(chip.id for chip in (*first, *rest))


def _classes(chip: LabelledChip) -> set[int]:
    return {k for k, count in enumerate(chip.class_counts) if count}

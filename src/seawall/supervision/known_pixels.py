"""The pixels of each class that stay known, chip by chip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from seawall.arrays import BoolArray
from seawall.errors import UsageError
from seawall.label_noise.label_view import LabelView
from seawall.rng import Keys
from seawall.types import Batch


def keep_known(batch: Batch, keys: Keys, choose: Callable[[LabelView], BoolArray]) -> Batch:
    """Return the batch with few of its labels: those that are chosen, class by class of each chip.

    Args:
        batch: Whole chips; not modified.
        keys: One stream per chip; each class gets a stream of its own, so that one class does not move another.
        choose: Maps the view of one class of a chip to the pixels (H, W) that stay known.

    Raises:
        UsageError: There are not as many keys as chips.
    """
    check_keys(batch, keys)
    label, valid = batch.label.detach().cpu().numpy(), (batch.valid & batch.seen).cpu().numpy()
    known = np.zeros_like(valid)
    for i in range(len(batch)):
        for klass in map(int, np.unique(label[i][valid[i]])):
            view = LabelView(label[i], valid[i], klass, keys.fold(klass), i)
            known[i] |= choose(view) & view.mask
    return replace(batch, valid=torch.from_numpy(known).to(batch.valid.device))


def check_keys(batch: Batch, keys: Keys) -> None:
    """Check that there is a stream per chip.

    Raises:
        UsageError: There is not.
    """
    if len(keys.chips) != len(batch):
        raise UsageError(f"supervision: expected {len(batch)} keys, got {len(keys.chips)}; make them from batch.chips")


def check_count(name: str, count: int) -> None:
    """Check a number of known pixels or chips.

    Raises:
        UsageError: It is below 1.
    """
    if count < 1:
        raise UsageError(f"{name}.count: expected at least 1, got {count}; raise it")

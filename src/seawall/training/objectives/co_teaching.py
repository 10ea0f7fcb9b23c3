"""Co-teaching: each of two networks is trained on the pixels where the other has a small loss."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, final

import torch
from torch import Tensor

from seawall.errors import UsageError
from seawall.losses.segmentation import check_input, masked_mean, pixel_cross_entropy
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel

_PATCH_EPOCH = re.compile(r"@(\d+)\.\d+$")


@register("objective", "co-teaching", paper="arXiv:1804.06872", smoke={"rate": 0.1}, traits=("peers",))
@final
@dataclass(frozen=True)
class CoTeaching:
    """Two networks select the pixels of small loss for each other; pixels of large loss are left out, increasingly.

    The model must be "twins", which holds both networks. An objective has no state: the epoch is read from the
    ids of the patches, "<chip>@<epoch>.<index>", so that a resume changes nothing.

    Paper: Han et al. 2018, arXiv:1804.06872, algorithm 1, keep rate 1 - rate * min(epoch / ramp, 1). Differs: pixels
    instead of images, and the keep rate holds within each given class, so that a rare class is not left out completely.

    Args:
        rate: Expected share of wrong labels; this share is left out after the ramp.
        ramp: Epochs until then.
        within: "class" keeps the share within each given class, "batch" over all pixels of the batch.
    """

    rate: float = 0.2
    ramp: int = 10
    within: Literal["class", "batch"] = "class"

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1 or self.ramp < 1:
            raise UsageError(
                f"co-teaching: expected rate in [0, 1) and ramp of at least 1, got {self.rate} and {self.ramp}; fix them"
            )
        if self.within not in ("class", "batch"):
            raise UsageError(f"co-teaching.within: expected class or batch, got {self.within!r}; choose one")

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        members = getattr(model, "members", None)
        if members is None:
            raise UsageError(
                f"co-teaching: expected the model 'twins', got {type(model).__name__}; set model.name = \"twins\""
            )
        one, two = cast(Callable[[Tensor], tuple[Tensor, Tensor]], members)(batch.image)
        classes = check_input(one, batch.label, batch.valid)
        losses = [pixel_cross_entropy(logits, batch.label) for logits in (one, two)]
        keep = self.keep(batch.chips)
        selected = [
            small_loss_pixels(loss.detach(), batch.label, batch.valid, keep, classes, self.within) for loss in losses
        ]
        return masked_mean(losses[0], selected[1]) + masked_mean(losses[1], selected[0])

    def keep(self, chips: tuple[str, ...]) -> float:
        """Return the share of the pixels to train on, by the epoch in the ids; without one, that after the ramp.

        Example:
            >>> CoTeaching(0.2, ramp=10).keep(("a@5.0",)), CoTeaching(0.2).keep(("a",))
            (0.9, 0.8)
        """
        epochs = [int(found[1]) for chip in chips if (found := _PATCH_EPOCH.search(chip))]
        return 1 - self.rate * min((max(epochs) if epochs else self.ramp) / self.ramp, 1.0)


def small_loss_pixels(loss: Tensor, label: Tensor, valid: Tensor, keep: float, classes: int, within: str) -> Tensor:
    """Return the share `keep` of the valid pixels with the smallest loss, in each class or over all: bool (B, H, W)."""
    parts = [valid] if within == "batch" else [valid & (label == k) for k in range(classes)]
    chosen = torch.zeros_like(valid)
    for part in parts:
        count = int(part.sum())
        if count:
            highest = loss[part].kthvalue(max(1, round(keep * count))).values
            chosen |= part & (loss <= highest)
    return chosen

"""Co-teaching: of two networks, each learns only from the pixels that the other finds easy."""

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

_EPOCH = re.compile(r"@(\d+)\.\d+$")


@register("objective", "co-teaching", paper="arXiv:1804.06872", smoke={"rate": 0.1}, traits=("peers",))
@final
@dataclass(frozen=True)
class CoTeaching:
    """Two networks hand each other the pixels of small loss; what both find hard is left out, late in training.

    The model must be "twins", which holds both networks. An objective has no state: how far training is comes from
    the ids of the patches, "<chip>@<epoch>.<index>", so that a resumed training goes on as it was.

    Paper: Han et al. 2018, arXiv:1804.06872, algorithm 1, keep rate 1 - rate * min(epoch / ramp, 1). Differs: pixels
    instead of images, and the keep rate holds within each given class, so that a rare class is not left out whole.

    Args:
        rate: Share of wrong labels that is expected, which is left out in the end.
        ramp: Epochs until it is.
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
        easy = [small(loss.detach(), batch.label, batch.valid, keep, classes, self.within) for loss in losses]
        return masked_mean(losses[0], easy[1]) + masked_mean(losses[1], easy[0])

    def keep(self, chips: tuple[str, ...]) -> float:
        """Return the share of the pixels to learn from, by the epoch in the ids; without one training is far.

        Example:
            >>> CoTeaching(0.2, ramp=10).keep(("a@5.0",)), CoTeaching(0.2).keep(("a",))
            (0.9, 0.8)
        """
        epochs = [int(found[1]) for chip in chips if (found := _EPOCH.search(chip))]
        return 1 - self.rate * min((max(epochs) if epochs else self.ramp) / self.ramp, 1.0)


def small(loss: Tensor, label: Tensor, valid: Tensor, keep: float, classes: int, within: str) -> Tensor:
    """Return the share `keep` of the valid pixels with the smallest loss, in each class or over all: bool (B, H, W)."""
    parts = [valid] if within == "batch" else [valid & (label == k) for k in range(classes)]
    chosen = torch.zeros_like(valid)
    for part in parts:
        count = int(part.sum())
        if count:
            highest = loss[part].kthvalue(max(1, round(keep * count))).values
            chosen |= part & (loss <= highest)
    return chosen

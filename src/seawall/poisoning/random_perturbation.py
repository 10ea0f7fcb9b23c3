"""Random noise of the size of a poison, the control of every poison that changes images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from seawall.poisoning.target import eps_per_band, random_control
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch


@register("poison", "noise", smoke={"eps": 0.02}, traits=("clean-label",))
@final
@dataclass(frozen=True)
class RandomPerturbation:
    """Random noise of the size of a poison: the control of every clean-label poison.

    Args:
        eps: Every value moves by this, up or down, in data units.
    """

    eps: float = 0.02

    def __post_init__(self) -> None:
        eps_per_band(self.eps, torch.zeros(1, 1, 1, 1))

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with noise; labels stay."""
        return random_control(batch, self.eps, keys)

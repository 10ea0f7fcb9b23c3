"""Random numbers per chip: batch size, order, sharding and resume do not change a draw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Keys:
    """One random stream per chip, seeded by (seed, path, chip).

    Args:
        seed: Seed of the experiment.
        chips: Ids of the images, one stream each.
        path: Purpose of the random numbers; `fold` appends to it, so that two purposes never share a stream.

    Example:
        >>> keys = Keys(0, ("a", "b"))
        >>> bool((keys.uniform((2,)) == Keys(0, ("b", "a")).uniform((2,)).flip(0)).all())
        True
    """

    seed: int
    chips: tuple[str, ...]
    path: tuple[str, ...] = ()

    def fold(self, *names: str | int) -> Keys:
        """Return keys for a sub-purpose, such as `keys.fold("restart", 2)`."""
        return Keys(self.seed, self.chips, (*self.path, *map(str, names)))

    def select(self, indices: Sequence[int]) -> Keys:
        """Return the keys of the chips at these indices."""
        return Keys(self.seed, tuple(self.chips[i] for i in indices), self.path)

    def number(self, index: int) -> int:
        """Return the 63-bit seed of one chip's stream."""
        text = "\x1f".join((str(self.seed), *self.path, self.chips[index]))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def generator(self, index: int) -> torch.Generator:
        """Return a fresh CPU generator for one chip."""
        return torch.Generator().manual_seed(self.number(index))

    def numpy(self, index: int) -> np.random.Generator:
        """Return a fresh NumPy generator for one chip."""
        return np.random.default_rng(self.number(index))

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw (B, *shape) float32 from U(low, high), each chip from its own stream."""
        draws = [torch.rand(*shape, generator=self.generator(i)) for i in range(len(self.chips))]
        return torch.stack(draws) * (high - low) + low

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw (B, *shape) float32 from N(0, 1), each chip from its own stream."""
        return torch.stack([torch.randn(*shape, generator=self.generator(i)) for i in range(len(self.chips))])

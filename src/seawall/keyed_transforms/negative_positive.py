"""Negative-positive transform: half of the values of every block are reversed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.keyed_transforms.blocks import BlockTransform, block_subkey, check_block
from seawall.keyed_transforms.keys import SecretKey, keyed_half
from seawall.registry import register


@register("keyed-transform", "negative-positive", paper="arXiv:2010.00801", smoke={"block": 2})
@dataclass(frozen=True)
class NegativePositive:
    """1 - v at the keyed half of the positions of every block, v at the others; twice is the identity.

    It is affine and keeps every distance between images, so whoever has the key attacks through it as without it.

    Args:
        block: Side M of a block in pixels.

    Paper: AprilPyone and Kiya 2021, arXiv:2010.00801, "bit flipping". Differs: exactly half of the positions, where the
    released code takes 23 of 48.
    """

    block: int = 4
    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_block("negative-positive", self.block)

    def __call__(self, key: SecretKey, bands: int) -> BlockTransform:
        return ReversedBlocks(self.block, bands, block_subkey(key, "negative-positive", self.block))


@final
class ReversedBlocks(BlockTransform):
    """The reversed positions of one key."""

    chosen: Tensor

    def __init__(self, block: int, bands: int, subkey: bytes) -> None:
        super().__init__(block, bands)
        self.register_buffer("chosen", torch.tensor(keyed_half(subkey, block * block * bands)), persistent=False)

    def encrypt_blocks(self, blocks: Tensor) -> Tensor:
        """Return the values with the keyed half reversed."""
        return torch.where(self.chosen, 1 - blocks, blocks)

    def decrypt_blocks(self, blocks: Tensor) -> Tensor:
        """Return the values with the keyed half reversed again."""
        return self.encrypt_blocks(blocks)

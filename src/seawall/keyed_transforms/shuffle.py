"""Shuffle: the values of every block in another order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.keyed_transforms.blocks import BlockTransform, block_subkey, check_block
from seawall.keyed_transforms.keys import SecretKey, keyed_order
from seawall.registry import register


@register("keyed-transform", "shuffle", paper="arXiv:2010.00801", smoke={"block": 2})
@dataclass(frozen=True)
class Shuffle:
    """One fixed permutation of the M x M x C values of every block, across pixels and bands.

    It is linear and keeps every distance between images, so whoever has the key attacks through it as without it.

    Args:
        block: Side M of a block in pixels.

    Paper: AprilPyone and Kiya 2021, arXiv:2010.00801, "pixel shuffling". Differs: the permutation follows from a key by
    HMAC-SHA256, not from a seed of a random number generator.
    """

    block: int = 4
    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_block("shuffle", self.block)

    def __call__(self, key: SecretKey, bands: int) -> BlockTransform:
        return ShuffledBlocks(self.block, bands, block_subkey(key, "shuffle", self.block))


@final
class ShuffledBlocks(BlockTransform):
    """The permutation of one key: value i of a transformed block is value `order[i]` of the block."""

    order: Tensor
    inverse: Tensor

    def __init__(self, block: int, bands: int, subkey: bytes) -> None:
        super().__init__(block, bands)
        order = torch.tensor(keyed_order(subkey, block * block * bands))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)

    def encrypt_blocks(self, blocks: Tensor) -> Tensor:
        """Return the permuted values."""
        return blocks[..., self.order]

    def decrypt_blocks(self, blocks: Tensor) -> Tensor:
        """Return the values in their own order."""
        return blocks[..., self.inverse]

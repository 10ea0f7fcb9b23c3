"""Blocks of an image, and what every keyed transform of them is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from seawall.errors import DataError, UsageError
from seawall.keyed_transforms.keys import SecretKey

LARGEST_BLOCK = 64


class BlockTransform(nn.Module, ABC):
    """A transform under one key, of blocks (..., M * M * C) of values in [0, 1], ordered by row, column and band.

    What follows from the key is in buffers that are no part of the state, so no weights file or checkpoint has it.

    Args:
        block: Side M of a block in pixels.
        bands: Number of bands C.
    """

    def __init__(self, block: int, bands: int) -> None:
        super().__init__()
        self.block, self.bands = block, bands

    @abstractmethod
    def encrypt_blocks(self, blocks: Tensor) -> Tensor:
        """Return the transformed blocks, with a gradient to the blocks."""

    @abstractmethod
    def decrypt_blocks(self, blocks: Tensor) -> Tensor:
        """Return the blocks that were transformed."""

    def for_attacks(self) -> BlockTransform:
        """Return the same transform with the most useful gradient for whoever has the key; itself where that is its own."""
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return the transformed image; see `encrypt`."""
        return self.encrypt(image)

    def encrypt(self, image: Tensor) -> Tensor:
        """Return the transformed image, every block by the same key.

        Args:
            image: (B, C, H, W), scaled so that the valid range of a band is [0, 1]; sides are multiples of `block`.

        Raises:
            DataError: It has other bands or sides.
        """
        return blocks_to_image(self.encrypt_blocks(image_to_blocks(image, self.block, self.bands)), self.block)

    def decrypt(self, image: Tensor) -> Tensor:
        """Return the image that was transformed; for 8-bit values v / 255 exactly, after rounding to 8 bit.

        Args:
            image: (B, C, H, W), as `encrypt` returns it.

        Raises:
            DataError: It has other bands or sides.
        """
        return blocks_to_image(self.decrypt_blocks(image_to_blocks(image, self.block, self.bands)), self.block)


@runtime_checkable
class KeyedTransform(Protocol):
    """A way of transforming blocks; called with a key and a number of bands it gives the transform of images.

    `differentiable`: the gradient is that of the transform; where it is not, the gradient passes straight through.
    """

    differentiable: ClassVar[bool]

    @property
    def block(self) -> int: ...
    def __call__(self, key: SecretKey, bands: int) -> BlockTransform: ...


def check_block(name: str, block: int) -> None:
    """Check the side of a block.

    Raises:
        UsageError: It is below 1 or above `LARGEST_BLOCK`.
    """
    if not 1 <= block <= LARGEST_BLOCK:
        raise UsageError(f"{name}.block: expected a side of 1 to {LARGEST_BLOCK} pixels, got {block}; 4 is common")


def block_subkey(key: SecretKey, name: str, block: int) -> bytes:
    """Return the subkey of a transform and block size."""
    return key.subkey(f"{name} {block}")


def image_to_blocks(image: Tensor, block: int, bands: int) -> Tensor:
    """Return the blocks (B, H / M, W / M, M * M * C) of an image (B, C, H, W).

    Raises:
        DataError: The image has other bands, or a side is no multiple of the block.
    """
    count, channels, height, width = image.shape
    if channels != bands or height % block or width % block or not height or not width:
        raise DataError(
            f"keyed transform: expected {bands} bands and sides that are multiples of {block}, got {tuple(image.shape)}; pad the image"
        )
    cells = image.reshape(count, channels, height // block, block, width // block, block)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3)


def blocks_to_image(blocks: Tensor, block: int) -> Tensor:
    """Return the image (B, C, H, W) of blocks (B, H / M, W / M, M * M * C)."""
    count, rows, cols, _ = blocks.shape
    cells = blocks.reshape(count, rows, cols, block, block, -1).permute(0, 5, 1, 3, 2, 4)
    return cells.reshape(count, -1, rows * block, cols * block)

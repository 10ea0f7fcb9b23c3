"""Format-preserving encryption of 8-bit values into three decimal digits."""

from __future__ import annotations

import copy
import hmac
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from seawall.keyed_transforms.blocks import BlockTransform, block_subkey, check_block
from seawall.keyed_transforms.keys import SecretKey, keyed_half
from seawall.registry import register

CODES = 1000
"""Codes of three decimal digits."""
LEVELS = 256
HALF_BITS = 5
FEISTEL_ROUNDS = 10
"""Rounds of the Feistel network, as many as NIST SP 800-38G prescribes for FF1."""


@register("keyed-transform", "format-preserving", paper="arXiv:2010.00801", smoke={"block": 2})
@dataclass(frozen=True)
class FormatPreserving:
    """Values at the keyed half of the positions of every block, rounded to 8 bit, are encrypted to 0 .. 999.

    Codes are divided by 999; values at the other positions stay. Values outside [0, 1] count as 0 or 1 where they are
    encrypted. The gradient passes straight through, as that of the identity.

    Args:
        block: Side M of a block in pixels.

    Paper: AprilPyone and Kiya 2021, arXiv:2010.00801, "FFX". Differs: exactly half of the positions; the cipher is a balanced
    Feistel network on ten bits with cycle walking and HMAC-SHA256 as round function. NIST SP 800-38G permits such ciphers
    from a million values on; with 1000, known pairs of values and codes give the table away.
    """

    block: int = 4
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_block("format-preserving", self.block)

    def __call__(self, key: SecretKey, bands: int) -> BlockTransform:
        return EncryptedBlocks(self.block, bands, block_subkey(key, "format-preserving", self.block))


@final
class EncryptedBlocks(BlockTransform):
    """The encrypted positions and the code table of one key; the gradient passes straight through unless it is `sloped`."""

    chosen: Tensor
    codes: Tensor
    levels: Tensor

    def __init__(self, block: int, bands: int, subkey: bytes) -> None:
        super().__init__(block, bands)
        self.sloped = False
        half = keyed_half(hmac.digest(subkey, b"positions", "sha256"), block * block * bands)
        cipher = hmac.digest(subkey, b"cipher", "sha256")
        codes = torch.tensor([encrypt_number(cipher, value) for value in range(CODES)])
        self.register_buffer("chosen", torch.tensor(half), persistent=False)
        self.register_buffer("codes", codes[:LEVELS].float() / (CODES - 1), persistent=False)
        self.register_buffer("levels", codes.argsort().clamp_max(LEVELS - 1).float() / (LEVELS - 1), persistent=False)

    def for_attacks(self) -> BlockTransform:
        """Return the same encryption whose gradient is the slope of the code table from one level to the next but one.

        A step of PGD changes a value by about a level, and the code by whatever the table says: the slope knows which way the
        code goes, which the identity does not.
        """
        other = copy.copy(self)
        other.sloped = True
        return other

    def encrypt_blocks(self, blocks: Tensor) -> Tensor:
        """Return the values with the keyed half encrypted."""
        at = (blocks.detach() * (LEVELS - 1)).round().clamp(0, LEVELS - 1).long()
        codes = self.codes.to(blocks.dtype)
        made = torch.where(self.chosen, codes[at], blocks.detach())
        slope = torch.ones_like(made)
        if self.sloped:
            above, below = (at + 1).clamp_max(LEVELS - 1), (at - 1).clamp_min(0)
            rise = (codes[above] - codes[below]) * (LEVELS - 1) / (above - below)
            slope = torch.where(self.chosen, rise, slope)
        return _GivenSlope.apply(blocks, made, slope)  # type: ignore[no-any-return, no-untyped-call]

    def decrypt_blocks(self, blocks: Tensor) -> Tensor:
        """Return the values with the keyed half decrypted; a code that no 8-bit value has counts as that of 255."""
        at = (blocks * (CODES - 1)).round().clamp(0, CODES - 1).long()
        return torch.where(self.chosen, self.levels.to(blocks.dtype)[at], blocks)


def encrypt_number(cipher: bytes, value: int) -> int:
    """Return the code in 0 .. 999 of a number in 0 .. 999: a permutation of them, drawn from a key.

    Args:
        cipher: The key.
        value: The number.
    """
    while True:  # cycle walking: codes above 999 are encrypted again, until one is not
        left, right = divmod(value, 2**HALF_BITS)
        for number in range(FEISTEL_ROUNDS):
            drawn = hmac.digest(cipher, bytes((number, right)), "sha256")[0]
            left, right = right, left ^ (drawn % 2**HALF_BITS)
        value = left * 2**HALF_BITS + right
        if value < CODES:
            return value


class _GivenSlope(torch.autograd.Function):
    """The second value forward, with the third as its slope in the first."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, made: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return made.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None, None

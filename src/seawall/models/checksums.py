"""Checksums of groups of bytes of weights: which layer and group a flipped bit is in, in a file and in memory.

A checksum is the first 64 bits of the SHA-256 of a group of 4096 bytes. A change goes unnoticed with a chance of 2**-64,
and nobody can compute flips that leave it as it is, as is possible for a CRC, which is linear. A CRC-32 would notice
every change of up to three bits of such a group and every burst of up to 32 bits, and miss one of 2**32 others.
Checksums detect faults. Whoever can write the file can write its checksums too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from seawall.errors import ModelError

GROUP_BYTES = 4096
HASH_NAME = "sha256/64"
DIGITS = 16
"""Hexadecimal digits of a checksum."""


@dataclass(frozen=True)
class ChangedGroup:
    """A group of bytes that are not what they were.

    Args:
        tensor: Name of the weight or buffer.
        group: Number of the group in it, from 0.
        first: Its first byte within the tensor.
        size: Its bytes.
    """

    tensor: str
    group: int
    first: int
    size: int

    def holds(self, tensor: str, index: int, itemsize: int) -> bool:
        """Return whether a number of a tensor lies in this group."""
        return tensor == self.tensor and self.first <= index * itemsize < self.first + self.size

    def __str__(self) -> str:
        return f"{self.tensor!r}, group {self.group} (bytes {self.first} to {self.first + self.size - 1})"


@dataclass(frozen=True)
class WeightChecksums:
    """The checksums of all groups of some tensors.

    Args:
        tensors: Checksums of each tensor's groups, as hexadecimal digits in one text.
        group: Bytes per group.
    """

    tensors: Mapping[str, str]
    group: int = GROUP_BYTES

    @staticmethod
    def of(tensors: Mapping[str, Tensor], group: int = GROUP_BYTES) -> WeightChecksums:
        """Return the checksums of tensors, whose numbers are taken in row-major order."""
        return WeightChecksums({name: "".join(_digests(tensor, group)) for name, tensor in tensors.items()}, group)

    def changed_groups(self, tensors: Mapping[str, Tensor]) -> tuple[ChangedGroup, ...]:
        """Return the groups of tensors whose checksums differ; for a missing tensor, or one of another size, all of it."""
        return tuple(
            found
            for name, digits in self.tensors.items()
            for found in self._changed_in(name, digits, tensors.get(name))
        )

    def to_json(self) -> str:
        """Return the checksums as text, for the metadata of a weights file."""
        return json.dumps({"hash": HASH_NAME, "group": self.group, "tensors": dict(self.tensors)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> WeightChecksums:
        """Read what `to_json` wrote.

        Raises:
            ValueError: The text is none, or of another hash.
        """
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("hash") != HASH_NAME or not isinstance(found.get("tensors"), dict):
            raise ValueError(f"checksums that are not {HASH_NAME}")
        group = found.get("group")
        if not isinstance(group, int) or group < 1:
            raise ValueError(f"groups of {group!r} bytes")
        return WeightChecksums({str(name): str(digits) for name, digits in found["tensors"].items()}, group)

    def _changed_in(self, name: str, digits: str, tensor: Tensor | None) -> Iterator[ChangedGroup]:
        now = "" if tensor is None else "".join(_digests(tensor, self.group))
        if now == digits:
            return
        nbytes = 0 if tensor is None else tensor.numel() * tensor.element_size()
        for number in range(max(len(now), len(digits)) // DIGITS):
            at = slice(number * DIGITS, (number + 1) * DIGITS)
            if now[at] != digits[at]:
                first = number * self.group
                yield ChangedGroup(name, number, first, max(1, min(self.group, nbytes - first)))


@dataclass(frozen=True)
class WeightGuard:
    """Compares the weights of a network in memory with checksums, as often as it is asked.

    Args:
        model: The network.
        checksums: Those of its weights and buffers.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> WeightGuard.of(layer).verify()
    """

    model: nn.Module
    checksums: WeightChecksums

    @staticmethod
    def of(model: nn.Module, stored: WeightChecksums | None = None) -> WeightGuard:
        """Return a guard of a network.

        Args:
            model: The network.
            stored: Checksums of the file that it was loaded from; they are taken where they are of the same tensors,
                and those of the memory as it is now otherwise.
        """
        state = _state(model)
        if stored is None or set(stored.tensors) != set(state):
            stored = WeightChecksums.of(state)
        return WeightGuard(model, stored)

    def verify(self) -> None:
        """Compare weights and buffers in memory with the checksums.

        Raises:
            ModelError: Some differ; names the layer and the group of the first.
        """
        changed = self.checksums.changed_groups(_state(self.model))
        if changed:
            raise ModelError(
                f"model: expected weights as they were loaded, got others in {describe_groups(changed)}; the memory is damaged "
                "or the network changes itself: load the weights again"
            )


def describe_groups(changed: tuple[ChangedGroup, ...]) -> str:
    """Return the first changed group and how many more there are."""
    more = len(changed) - 1
    return str(changed[0]) + (f", and {more} more group{'s' if more > 1 else ''}" if more else "")


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's numbers in row-major order, on the CPU; they are shared where that needs no copy."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _digests(tensor: Tensor, group: int) -> Iterator[str]:
    data = tensor_bytes(tensor)
    for first in range(0, len(data), group):
        yield hashlib.sha256(data[first : first + group]).hexdigest()[:DIGITS]


def _state(model: nn.Module) -> Mapping[str, Tensor]:
    return cast(Mapping[str, Tensor], model.state_dict())

"""What a split was: its settings, and which chips and groups were in which part; it travels with weights and folders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

PREFIX = 16
"""Hexadecimal digits of an image's sha256 that a record keeps; 64 bits tell millions of images apart."""

PARTS = ("train", "val", "test")

ATTRIBUTE = "training_split"
"""Attribute of a module that holds the record of its training; it changes nothing that the module computes."""


@dataclass(frozen=True)
class SplitSettings:
    """How labelled chips are split.

    Args:
        by: "group" keeps events or places together, "block" keeps squares of ground together.
        block_m: Side of a block in meters; without effect where `by` is "group".
        val: Share of the chips to choose weights by.
        test: Share of the chips to report on.
        seed: Chooses among equally balanced splits.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    by: Literal["group", "block"] = "group"
    block_m: float = 2560.0
    val: float = 0.2
    test: float = 0.3
    seed: int = 0

    def __str__(self) -> str:
        block = f" of {self.block_m:g} m" if self.by == "block" else ""
        return f"by {self.by}{block}, val {self.val:g}, test {self.test:g}, seed {self.seed}"


@dataclass(frozen=True)
class SplitRecord:
    """Which images and groups were in which part of a split, by content and not by name.

    Args:
        chips: First digits of each image file's sha256, by part.
        groups: Group names, by part; a split by block may have one group in several parts.
        settings: How the split was made; None where it was made by hand.

    Example:
        >>> record = SplitRecord({"train": ("aa",), "test": ("bb",)}, {"train": ("river",), "test": ("lake",)})
        >>> record.part("bb", "lake"), record.part("cc", "river"), record.part("cc", "sea")
        ('test', 'train', '')
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    chips: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, tuple[str, ...]]
    settings: SplitSettings | None = None

    def part(self, sha256: str, group: str) -> str:
        """Return the part of a chip; "" where neither the image nor its group was split.

        The image decides. Another image of a known group belongs to the group's part; to the one that is learned from
        first, where a split by block has the group in several.
        """
        return self._part_of_chip.get(sha256[:PREFIX]) or self._part_of_group.get(group, "")

    def has_image(self, sha256: str) -> bool:
        """Tell whether this very image was split."""
        return sha256[:PREFIX] in self._part_of_chip

    @property
    def digest(self) -> str:
        """Hash of settings and content, 16 hexadecimal digits."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """Return the record as JSON."""
        return _RECORD.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> SplitRecord:
        """Read a record.

        Raises:
            ValueError: A field is missing, unknown or of the wrong type.
        """
        try:
            return _RECORD.validate_json(text)
        except ValidationError as bad:
            first = bad.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from bad

    @cached_property
    def _part_of_chip(self) -> dict[str, str]:
        return _first_part(self.chips)

    @cached_property
    def _part_of_group(self) -> dict[str, str]:
        return _first_part(self.groups)


def _first_part(members: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: part for part in reversed(PARTS) for name in members.get(part, ())}


_RECORD = TypeAdapter(SplitRecord)

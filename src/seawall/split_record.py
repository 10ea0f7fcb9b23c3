"""Record of a split, kept with weights and chip folders: its settings, and the chips and groups of each part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, PositiveFloat, TypeAdapter, ValidationError, ValidationInfo, field_validator

from seawall.errors import first_error
from seawall.settings import settings

SHA256_PREFIX = 16
"""Hexadecimal digits of an image's SHA-256 that a record keeps; 64 bits identify millions of images."""

SPLIT_PARTS = ("train", "val", "test")

SPLIT_ATTRIBUTE = "training_split"
"""Name of the module attribute with the split record of its training; it does not change the module's output."""


Share = Annotated[float, Field(ge=0, lt=1)]


@settings("split", "see docs/recipes.md")
class SplitSettings:
    """Settings of the split of labelled chips into train, val and test.

    Args:
        by: "group" keeps events or places together, "block" keeps squares on the ground together.
        block_m: Side of a block in meters; without effect where `by` is "group".
        val: Share of the chips that weights are selected on.
        test: Share of the chips that results are reported on.
        seed: Selects one of the equally balanced splits.

    Raises:
        UsageError: A setting is out of its range, or the shares leave nothing to train on.
    """

    by: Literal["group", "block"] = "group"
    block_m: PositiveFloat = 2560.0
    val: Share = 0.2
    test: Share = 0.3
    seed: int = 0

    @field_validator("test")
    @classmethod
    def _check_shares(cls, test: float, before: ValidationInfo) -> float:
        if test + (val := before.data.get("val", 0.0)) >= 1:
            raise ValueError(f"a share that with val = {val:g} leaves some to train on")
        return test

    def __str__(self) -> str:
        block = f" of {self.block_m:g} m" if self.by == "block" else ""
        return f"by {self.by}{block}, val {self.val:g}, test {self.test:g}, seed {self.seed}"


@dataclass(frozen=True)
class SplitRecord:
    """Images, by content, and groups of each part of a split.

    Args:
        chips: First digits of each image file's SHA-256, by part.
        groups: Group names, by part; in a split by block a group may be in several parts.
        settings: Settings of the split; None for a split made by hand.
        selected: Whether the weights were chosen by the val part; False where a fixed length of training keeps the last ones.

    Example:
        >>> record = SplitRecord({"train": ("aa",), "test": ("bb",)}, {"train": ("river",), "test": ("lake",)})
        >>> record.part("bb", "lake"), record.part("cc", "river"), record.part("cc", "sea")
        ('test', 'train', '')
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    chips: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, tuple[str, ...]]
    settings: SplitSettings | None = None
    selected: bool = True

    @property
    def learned_parts(self) -> tuple[str, ...]:
        """The parts that the weights learned from or were chosen by."""
        return ("train", "val") if self.selected else ("train",)

    def part(self, sha256: str, group: str) -> str:
        """Return the part of a chip; "" where neither the image nor its group is in the record.

        The image takes precedence over its group. A group in several parts counts as train, then as val, then as test.
        """
        return self._part_of_chip.get(sha256[:SHA256_PREFIX]) or self._part_of_group.get(group, "")

    def has_image(self, sha256: str) -> bool:
        """Return whether this image is in the record."""
        return sha256[:SHA256_PREFIX] in self._part_of_chip

    @property
    def digest(self) -> str:
        """Hash of settings and content, 16 hexadecimal digits."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """Return the record as JSON."""
        later = {"selected"} if self.selected else set()  # files of earlier versions lack it, and digests stay
        return _RECORD.dump_json(self, exclude=later).decode()

    @staticmethod
    def from_json(text: str) -> SplitRecord:
        """Read a record.

        Raises:
            ValueError: A field is missing, unknown or of the wrong type.
        """
        try:
            return _RECORD.validate_json(text)
        except ValidationError as bad:
            raise ValueError(first_error(bad)) from bad

    @cached_property
    def _part_of_chip(self) -> dict[str, str]:
        return _first_part(self.chips)

    @cached_property
    def _part_of_group(self) -> dict[str, str]:
        return _first_part(self.groups)


def _first_part(members: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: part for part in reversed(SPLIT_PARTS) for name in members.get(part, ())}


_RECORD = TypeAdapter(SplitRecord)

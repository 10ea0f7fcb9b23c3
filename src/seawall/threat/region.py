"""Regions that an adversary may change; they depend on the clean image alone, so they stay fixed during an attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seawall.bands import short_band
from seawall.errors import UsageError, did_you_mean
from seawall.types import ModelSpec, unit_text, units_of

VISIBLE_BANDS = ("B02", "B03", "B04")


class Region(Protocol):
    """Pixels that may be touched: image (B, C, H, W) and seen (B, H, W) to bool (B, H, W).

    Each image of a batch is treated alone. Its `str` is its text form in a threat.
    """

    def __call__(self, image: Tensor, seen: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Everywhere:
    """Every seen pixel.

    Example:
        >>> str(Everywhere())
        'everywhere'
    """

    def __call__(self, image: Tensor, seen: Tensor) -> Tensor:
        return seen

    def __str__(self) -> str:
        return "everywhere"


@dataclass(frozen=True)
class Patch:
    """A rectangle of pixels, such as an object placed in the scene.

    Args:
        row: First row.
        col: First column.
        height: Rows.
        width: Columns.
    """

    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.row, self.col) < 0 or min(self.height, self.width) < 1:
            raise UsageError(
                f"region patch: expected row, col >= 0 and height, width >= 1, got {self}; give pixels inside the chip"
            )

    def __call__(self, image: Tensor, seen: Tensor) -> Tensor:
        mask = torch.zeros_like(seen)
        mask[:, self.row : self.row + self.height, self.col : self.col + self.width] = True
        return mask & seen

    def __str__(self) -> str:
        return f"patch:{self.row},{self.col},{self.height},{self.width}"


@dataclass(frozen=True)
class Clouds:
    """Pixels brighter than a threshold, as clouds are.

    Args:
        above: Mean of the bands from which a pixel counts as cloud, in data units.
        bands: Indices of the bands to average; empty for all of them.
    """

    above: float = 0.3
    bands: tuple[int, ...] = ()

    def __call__(self, image: Tensor, seen: Tensor) -> Tensor:
        chosen = image[:, list(self.bands)] if self.bands else image
        return (chosen.mean(1) > self.above) & seen

    def __str__(self) -> str:
        return f"clouds:{self.above:g}" + "".join(f",#{band}" for band in self.bands)


def parse_region(text: str, spec: ModelSpec) -> Region:
    """Return the region of a text such as `patch:10,20,32,32`, `clouds`, `clouds:0.25` or `everywhere`.

    Raises:
        UsageError: No region of that name, or its numbers don't fit.
    """
    name, _, rest = text.partition(":")
    parts = [part for part in rest.split(",") if part]
    try:
        if name == "everywhere" and not parts:
            return Everywhere()
        if name == "patch":
            row, col, height, width = map(int, parts)
            return Patch(row, col, height, width)
        if name == "clouds":
            return _parse_clouds(parts, spec)
    except ValueError as bad:
        raise UsageError(f"region {name}: expected numbers, got {rest!r}; write patch:row,col,height,width") from bad
    known = ("clouds", "everywhere", "patch")
    raise UsageError(f"region: expected a known region, got {text!r}; {did_you_mean(name, known)}")


def _parse_clouds(parts: list[str], spec: ModelSpec) -> Clouds:
    units = units_of(spec.unit, len(spec.bands))
    optical = tuple(i for i, unit in enumerate(units) if unit == "reflectance")
    if not optical:
        raise UsageError(
            f"region clouds: expected reflectance, got a model in {unit_text(spec.unit)}; clouds are not bright in this unit"
        )
    named = tuple(int(part[1:]) for part in parts if part.startswith("#"))
    bare = [float(part) for part in parts if not part.startswith("#")]
    visible = tuple(i for i in optical if short_band(spec.bands[i]) in VISIBLE_BANDS)
    return Clouds(
        bare[0] if bare else Clouds.above, named or visible or (() if len(optical) == len(units) else optical)
    )

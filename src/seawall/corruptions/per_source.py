"""Corruptions of chips of several sources: a corruption acts on the images of its sensor and leaves the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast, final

import torch

from seawall.bands import channels_of_sources
from seawall.chip_context import ChipContext
from seawall.corruptions.severity import hide_bands
from seawall.errors import UsageError, did_you_mean
from seawall.rng import Keys
from seawall.types import Batch, Corruption


@dataclass(frozen=True)
class SourcePart:
    """The bands of one source, and what is done to them.

    Args:
        source: Name of the source.
        channels: Its channels.
        corruption: What acts on them; None for a source that stays.
    """

    source: str
    channels: tuple[int, ...]
    corruption: Corruption | None


@final
@dataclass(frozen=True)
class PerSource:
    """A corruption of each source that it is of, apart from the others.

    A source is given as a batch of its own: its bands, where it is seen, and the labels that count there. Afterwards a pixel is seen where
    any source is, and it counts where it counts for any of them.

    Args:
        parts: All sources of the chips.
        together: One draw for all sources, as where the ground itself moves under the images and the label; else each draws for
            itself, as images that were taken apart.
    """

    parts: tuple[SourcePart, ...]
    together: bool

    @property
    def first(self) -> Corruption:
        """The corruption of the first source that has one; all have the same name and settings."""
        return next(part.corruption for part in self.parts if part.corruption is not None)

    @property
    def quantity(self) -> str:
        """As of the corruption of each source."""
        return self.first.quantity

    @property
    def unit(self) -> str:
        """As of the corruption of each source."""
        return self.first.unit

    @property
    def stage(self) -> str:
        """As of the corruption of each source."""
        return self.first.stage

    def level(self, severity: float) -> float:
        """Return the quantity at a severity."""
        return self.first.level(severity)

    def __call__(self, batch: Batch, severity: float, keys: Keys) -> Batch:
        """Return the batch with the sources corrupted."""
        self.level(severity)
        if severity == 0:
            return batch
        image = torch.empty_like(batch.image)
        known = torch.empty_like(batch.image, dtype=torch.bool)
        valid, label = torch.zeros_like(batch.valid), batch.label
        for part in self.parts:
            made = own = _batch_of(part, batch)
            if part.corruption is not None:
                made = part.corruption(own, severity, keys if self.together else keys.fold(part.source))
                label = made.label
            at = list(part.channels)
            image[:, at], known[:, at] = made.image, made.seen[:, None]
            valid |= made.valid
        return replace(batch, image=image, label=label, seen=known.any(1), valid=valid, seen_bands=known)


def _batch_of(part: SourcePart, batch: Batch) -> Batch:
    at = list(part.channels)
    seen = batch.seen if batch.seen_bands is None else batch.image_seen[:, at[0]]
    return Batch(batch.image[:, at], batch.label, seen, batch.valid & seen, batch.chips)


def on_each_source(
    build: Callable[[ChipContext], Corruption], context: ChipContext, *, only: str = "", together: bool = False
) -> Corruption:
    """Return a corruption for chips of one or several sources.

    Args:
        build: Makes the corruption for the chips of one source; raises a UsageError where it is not of that sensor.
        context: The chips.
        only: The source that it is for; "" for each that it is of.
        together: As of `PerSource`.

    Raises:
        UsageError: The chips have no such source, or it is of none of them.
    """
    sources = channels_of_sources(context.bands)
    if only and (only not in sources or len(sources) == 1):
        raise UsageError(
            f"source: expected one of the chips' sources, got {only!r}; {did_you_mean(only, [name for name in sources if name])}"
        )
    if len(sources) == 1:
        return build(context.of_channels(range(len(context.bands))))
    parts, refused = [], ""
    for source, channels in sources.items():
        found: Corruption | None = None
        if only in ("", source):
            try:
                found = build(context.of_channels(channels))
            except UsageError as bad:
                refused = refused or str(bad)
        parts.append(SourcePart(source, channels, found))
    if all(part.corruption is None for part in parts):
        raise UsageError(refused)
    # `quantity`, `unit` and `stage` are of the class in a corruption of one source, and of the object here
    return cast(Corruption, PerSource(tuple(parts), together))


def drop_source(batch: Batch, channels: tuple[int, ...], gone: torch.Tensor, fill: tuple[float, ...]) -> Batch:
    """Return the batch without the image of a source where `gone` (B,) says so, as of a chip that never had it.

    Args:
        batch: The batch.
        channels: Bands of the source.
        gone: (B,) bool.
        fill: What an unseen pixel holds, per band.
    """
    bands = torch.zeros(batch.image.shape[1], dtype=torch.bool, device=batch.image.device)
    bands[list(channels)] = True
    return hide_bands(batch, gone.to(bands.device)[:, None, None, None] & bands[None, :, None, None], fill)

"""Chips that lack the image of one of their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from seawall.bands import channels_of, channels_of_sources
from seawall.corruptions.per_source import drop_source
from seawall.corruptions.severity import PhysicalCorruption, check_worst
from seawall.errors import UsageError, did_you_mean
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Units, fill_of


@register("corruption", "missing-source", smoke={"source": "s2"}, traits=("joint",))
@final
@dataclass(frozen=True)
class MissingSource(PhysicalCorruption):
    """Some chips lack the image of a source, or of several: an overpass without an acquisition, or a scene under clouds that nobody ordered.

    Quantity: share of the chips without the image, 0 to 1; a chip that lacks it at one severity lacks it at every higher one. At 1 the model has the other
    sources alone. The bands hold their fill and are unseen; label, and valid where another source is seen, stay.

    Args:
        source: The source that is missing, or several that are missing together, as "s2,s2.pre".
        bands: Names of the channels.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    source: str
    bands: tuple[str, ...]
    image_unit: Units = "reflectance"
    worst: float = 1.0

    name: ClassVar[str] = "missing-source"
    quantity: ClassVar[str] = "share of chips without the image"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        check_worst(self.name, self.worst, 0.0, 1.0)
        known = [source for source in channels_of_sources(self.bands) if source]
        if len(known) < 2:
            raise UsageError(
                f"{self.name}: expected chips of several sources, got bands {', '.join(self.bands)}; curate two"
            )
        if unknown := [source for source in self.missing if source not in known]:
            raise UsageError(f"{self.name}.source: unknown source {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
        if set(self.missing) == set(known):
            raise UsageError(f"{self.name}.source: expected a source that is left, got all of them; name fewer")

    @property
    def missing(self) -> tuple[str, ...]:
        """The sources that chips lack."""
        return tuple(self.source.split(","))

    def corrupted(self, batch: Batch, share: float, keys: Keys) -> Batch:
        """Return the batch in which some chips lack the source."""
        gone = keys.fold(self.name).uniform((1,))[:, 0] < share
        channels = channels_of(self.missing, self.bands, self.name)
        return drop_source(batch, channels, gone, fill_of(self.image_unit, len(self.bands)))

"""Training for images that may be missing: a source of a patch is left out at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from seawall.bands import channels_of_sources
from seawall.corruptions.per_source import drop_source
from seawall.errors import UsageError, did_you_mean
from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.augmentation import ChangedImages
from seawall.types import Batch, SegmentationModel, fill_of


@register("objective", "source-dropout", smoke={"rate": 0.2}, traits=("joint",))
@final
@dataclass(frozen=True)
class SourceDropout(ChangedImages):
    """Each chip loses one of its sources with a probability; its bands hold their fill, as those of a chip without that image.

    The only source that a chip is seen in stays. What the network meets is what the corruption "missing-source" measures.

    Args:
        rate: Probability that a chip loses a source.
        sources: Those that may be lost, each with equal probability; empty for all.

    Source: modality dropout as in Neverova et al. 2016, arXiv:1501.00102, section 3. Differs: whole images of a chip, one at most, unseen instead of 0.
    """

    rate: float = 0.5
    sources: tuple[str, ...] = ()
    name: ClassVar[str] = "source-dropout"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate <= 1:
            raise UsageError(f"{self.name}.rate: expected above 0 and at most 1, got {self.rate}; 0.5 is common")

    def changed(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Batch:
        """Return the batch in which some chips lack a source."""
        channels = self._channels(model.spec.bands)
        lost, which = keys.fold("source").uniform((2,)).unbind(1)
        chosen = torch.where(lost < self.rate, (which * len(channels)).long(), -1)
        fill = fill_of(model.spec.unit, len(model.spec.bands))
        for number, own in enumerate(channels.values()):
            rest = [band for band in range(len(fill)) if band not in own]
            another = batch.image_seen.expand_as(batch.image)[:, rest].flatten(1).any(1).to(chosen.device)
            batch = drop_source(batch, own, (chosen == number) & another, fill)
        return batch

    def _channels(self, bands: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        known = channels_of_sources(bands)
        if len(known) < 2:
            raise UsageError(
                f"{self.name}: expected a model of several sources, got bands {', '.join(bands)}; train without it"
            )
        if unknown := [source for source in self.sources if source not in known]:
            raise UsageError(f"{self.name}.sources: unknown source {unknown[0]!r}; {did_you_mean(unknown[0], known)}")
        return {source: known[source] for source in self.sources or known}

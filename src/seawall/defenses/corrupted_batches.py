"""Batches in which every chip has corruptions and severities of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from seawall.chip_context import ChipContext
from seawall.corruptions.build import parse_corruption
from seawall.rng import Keys
from seawall.types import Batch, Corruption, ModelSpec, Unit

GEOMETRIC = ("shift", "rotation", "elastic")
OPTICAL = ("turbid-water", "wet-soil", "haze", "clouds", "offset", "shot-noise", "missing-band", "rotation")
RADAR = ("wind", "incidence-angle", "speckle", "radar-gain", "rotation")
TRAINING_CORRUPTIONS: Mapping[Unit, tuple[str, ...]] = {
    "reflectance": OPTICAL,
    "sigma0_db": RADAR,
    "gamma0_db": RADAR,
    "stretched": GEOMETRIC,
}
"""Corruptions to train on unless others are named, one or two of each stage, harmful ones where a stage has them; the rest are
held out, for a test of what carries over to corruptions that the network never saw."""


def training_corruptions(named: Sequence[str], spec: ModelSpec) -> Mapping[str, Corruption]:
    """Return the corruptions to train on by their text: those named, or those of the sensor.

    Raises:
        UsageError: One is unknown, or of another sensor or band than the model.
    """
    texts = tuple(named) or TRAINING_CORRUPTIONS[spec.unit]
    return _built(texts, ChipContext(spec.gsd_m, spec.bands, spec.unit, spec.classes))


@functools.lru_cache(maxsize=16)
def _built(texts: tuple[str, ...], context: ChipContext) -> Mapping[str, Corruption]:
    return {text: parse_corruption(text, context) for text in texts}


Chain = Sequence[tuple[Corruption, float]]
"""Corruptions with their severities, in the order in which they act."""


def corrupt_each(batch: Batch, chains: Iterable[Chain], keys: Keys) -> Batch:
    """Return the batch with every chip after its own chain; a chip with an empty one stays bit for bit."""
    image, label, seen, valid = batch.image.clone(), batch.label.clone(), batch.seen.clone(), batch.valid.clone()
    for i, chain in enumerate(chains):
        chip = batch.select([i])
        for step, (corruption, severity) in enumerate(chain):
            chip = corruption(chip, severity, keys.select([i]).fold(step))
        image[i], label[i], seen[i], valid[i] = chip.image[0], chip.label[0], chip.seen[0], chip.valid[0]
    return replace(batch, image=image, label=label, seen=seen, valid=valid)

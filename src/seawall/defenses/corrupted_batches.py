"""Batches in which every chip has corruptions and severities of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

from seawall.chip_context import ChipContext
from seawall.corruptions.build import parse_corruption
from seawall.rng import Keys
from seawall.types import Batch, Corruption, ModelSpec, Unit, units_of

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
    units = dict.fromkeys(units_of(spec.unit, 1))
    texts = tuple(named) or tuple(dict.fromkeys(text for unit in units for text in TRAINING_CORRUPTIONS[unit]))
    return _built(texts, ChipContext.of_model(spec))


@functools.lru_cache(maxsize=16)
def _built(texts: tuple[str, ...], context: ChipContext) -> Mapping[str, Corruption]:
    return {text: parse_corruption(text, context) for text in texts}


Chain = Sequence[tuple[Corruption, float]]
"""Corruptions with their severities, in the order in which they act."""


def corrupt_each(batch: Batch, chains: Iterable[Chain], keys: Keys) -> Batch:
    """Return the batch with every chip after its own chain; a chip with an empty one stays bit for bit."""
    made = []
    for i, chain in enumerate(chains):
        chip = batch.select([i])
        for step, (corruption, severity) in enumerate(chain):
            chip = corruption(chip, severity, keys.select([i]).fold(step))
        made.append(chip)
    return Batch.concatenated(made) if made else batch

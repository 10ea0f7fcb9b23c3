"""The chips of a recipe, and their split."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from seawall.bands import parse_sources
from seawall.data.chips import ChipFolder
from seawall.data.curate import curate_chips
from seawall.data.joint import bands_of_source
from seawall.data.raw_chips import ImageSource, known_hints
from seawall.data.source_detection import make_source, source_fields
from seawall.data.splits import Split, split_chips
from seawall.errors import RecipeError
from seawall.geo.radiometry import Hints
from seawall.labels.rules import parse_rule
from seawall.pipeline.context import RunContext
from seawall.pipeline.validate import CHIP_FOLDER, OWN_LABELS, SIMULATED, source_kind, validate_data
from seawall.recipe.sections import DataSection
from seawall.types import Setting


def load_chips(run: RunContext, folder: Path) -> tuple[ChipFolder, tuple[tuple[str, str], ...]]:
    """Return the chips of a recipe and (item, reason) of those that failed.

    Chips are curated once and shared by every run with the same data section. Those of a source with a field `seed`, such
    as simulated scenes, depend on the seed as well; files do not.
    """
    data = run.recipe.data
    place = os.path.expandvars(data.source)
    if "$" in place:
        raise RecipeError(
            f"data.source: expected {place} to be set in the environment, got nothing; export it or write the path"
        )
    kind = source_kind(data, place)
    validate_data(data, kind)
    if kind == CHIP_FOLDER:
        return ChipFolder.open(Path(place)), ()
    seed = run.recipe.seed if "seed" in source_fields(kind) else None
    text = json.dumps([data.deciding, place, seed], sort_keys=True)
    chip_folder = (
        folder / f"{data.sensor.replace(',', '+')}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
    )
    made = curate_chips(
        _recipe_sources(data, place, kind, run.recipe.seed), chip_folder, bands=data.bands, gsd_m=data.gsd_m, unpaired=data.unpaired,
        labeler=None if data.labels in OWN_LABELS else parse_rule(data.labels), progress=run.stage_progress("chips"),
    )  # fmt: skip
    return made.folder, made.failed


def _recipe_sources(data: DataSection, place: str, kind: str, seed: int) -> ImageSource | dict[str, ImageSource]:
    names = parse_sources(data.sensor)
    if len(names) == 1:
        return _recipe_source(data, place, kind, seed, data.sensor, data.bands)
    return {
        name: _recipe_source(data, place, kind, seed, name, bands_of_source(data.bands, name, names)) for name in names
    }


def _recipe_source(
    data: DataSection, place: str, kind: str, seed: int, sensor: str, bands: tuple[str, ...]
) -> ImageSource:
    offered: dict[str, Setting] = {
        "sensor": sensor, "select": data.select, "names": data.names, "group": data.group, "bands": bands,
        "hints": known_hints(Hints(gain=data.gain, offset=data.offset)), "size": data.size, "frame": data.frame,
        "clouds": data.clouds, "seed": seed, "cover": data.labels == "cover", "labelled": data.labels in OWN_LABELS,
    }  # fmt: skip
    if data.gsd_m is not None:
        offered["gsd_m"] = data.gsd_m
    if data.label_map:
        offered["label_map"] = {str(raw): value for raw, value in data.label_map.items()}
    _, *settings = data.kind.split()  # checked before this: the source's own settings
    return make_source(str(data.count) if place == SIMULATED else place, " ".join([kind, *settings]), {}, offered)


def make_split(run: RunContext, chips: ChipFolder) -> Split:
    """Return the split of the recipe, or the one stored in a corrupted chip folder."""
    return split_chips(chips, run.recipe.split_settings)

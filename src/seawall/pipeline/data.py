"""The chips of a recipe, and their split."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from seawall.data.chips import ChipFolder
from seawall.data.curate import curate_chips
from seawall.data.index import is_chip_folder
from seawall.data.simulated import Simulated
from seawall.data.splits import Split, split_chips
from seawall.errors import RecipeError
from seawall.geo.radiometry import Hints
from seawall.labels.rules import parse_rule
from seawall.pipeline.context import RunContext
from seawall.pipeline.validate import validate_data


def load_chips(run: RunContext, folder: Path) -> tuple[ChipFolder, tuple[tuple[str, str], ...]]:
    """Return the chips of a recipe and (item, reason) of those that failed.

    Chips are curated once and shared by every run with the same data section. Simulated scenes depend on the seed as
    well; files do not.
    """
    data = run.recipe.data
    source = os.path.expandvars(data.source)
    if "$" in source:
        raise RecipeError(
            f"data.source: expected {source} to be set in the environment, got nothing; export it or write the path"
        )
    if data.kind == "chips" or (data.kind == "auto" and is_chip_folder(Path(source))):
        validate_data(data, "chips")
        return ChipFolder.open(Path(source)), ()
    validate_data(data, "simulated" if source == "simulated" else "files")
    seed = run.recipe.seed if source == "simulated" else None  # files do not depend on the seed
    text = json.dumps([data.model_dump(mode="json"), source, seed], sort_keys=True)
    chip_folder = folder / f"{data.sensor}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
    cover = data.labels == "cover"
    scenes = Simulated(
        data.count, data.size, data.sensor, data.bands, 10.0, run.recipe.seed, data.clouds, cover, frame=data.frame
    )
    made = curate_chips(
        scenes if source == "simulated" else source, chip_folder,
        kind="auto" if source == "simulated" else data.kind, sensor=data.sensor, select=data.select, bands=data.bands,
        names=data.names, group=data.group, gsd_m=data.gsd_m, hints=Hints(gain=data.gain, offset=data.offset),
        label_map=data.label_map or None, labeler=None if data.labels in ("truth", "cover") else parse_rule(data.labels),
        progress=run.stage_progress("chips"),
    )  # fmt: skip
    return made.folder, made.failed


def make_split(run: RunContext, chips: ChipFolder) -> Split:
    """Return the split of the recipe, or the one stored in a corrupted chip folder."""
    return split_chips(chips, run.recipe.split_settings)

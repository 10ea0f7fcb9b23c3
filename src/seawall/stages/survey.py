"""The map of a whole scene, and how far it is from the truth where the scene is a simulated one."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import rasterio
from torch import nn

from seawall.datasets.chips import ChipFolder
from seawall.files import write_atomic
from seawall.imagery.raster import open_raster, write_cog
from seawall.imagery.simulate import simulate_s1, simulate_s2
from seawall.infer import predict_scene
from seawall.scenes.product import NODATA, SceneResult
from seawall.stages.run import Run

INPUT, TRUTH = "input.tif", "input.truth.tif"
ROWS = 512
"""Rows that are compared at once."""


def survey(run: Run, chips: ChipFolder, model: nn.Module, weights: Path | None = None) -> dict[str, str]:
    """Map the recipe's scene with the clean network and return the paths of the maps.

    The truth of a simulated scene is compared with the map in `scenes/scene.truth.json`.

    Args:
        run: The run; the maps go into its folder `scenes`.
        chips: The chips that the network learned from.
        model: The clean network.
        weights: File that it was read from; a copy is written beside the maps where None.
    """
    scene = run.recipe.scene
    if scene is None:
        return {}
    home = run.folder / "scenes"
    source = Path(os.path.expandvars(scene.source))
    simulated = scene.source == "simulated"
    if simulated:
        source = simulate_input(chips, scene.size, run.recipe.seed, home)
    result = predict_scene(
        model, source, home, name="scene", device=run.device, resume=run.resume, progress=run.say("scene"),
        weights=weights,
    )  # fmt: skip
    if simulated and result.klass == "water":  # the only class that the truth is of
        facts = compare_with_truth(result, home / result.files["class"], home / TRUTH)
        write_atomic(home / "scene.truth.json", json.dumps(facts, indent=1))
    return {layer: str(home / file) for layer, file in result.files.items()}


def simulate_input(chips: ChipFolder, size: int, seed: int, home: Path) -> Path:
    """Simulate the scene to map and its water mask, unless both are there; remove what a killed run left of them.

    Args:
        chips: The bands come from them.
        size: Side of the scene in pixels.
        seed: Seed of the experiment.
        home: Folder for input.tif and input.truth.tif.
    """
    for name in (INPUT, TRUTH):
        for stale in (*home.glob(f".{name}.*.part"), *home.glob(f".{name}.*.stage")):
            stale.unlink()
    path, truth = home / INPUT, home / TRUTH
    if path.exists() and truth.exists():  # whole, and of this very recipe: the folder is named by its content
        return path
    make = simulate_s1 if "VV" in chips.bands or "VH" in chips.bands else simulate_s2
    made = make("scene", size, chips.bands, seed=seed)
    mask = np.where(made.water, 1, 0).astype(np.uint8)
    write_cog(truth, mask, made.grid, bands=("water",), tags={"QUANTITY": "1 where at least half of a pixel is water"})
    write_cog(
        path,
        np.where(made.seen, made.image, np.nan),
        made.grid,
        bands=made.bands,
        nodata=math.nan,
        tags={"SEAWALL_UNIT": made.unit},
    )
    return path


def compare_with_truth(result: SceneResult, classes: Path, truth: Path) -> dict[str, object]:
    """Compare a map with the exact mask of its class, over all pixels that were seen.

    Args:
        result: The map.
        classes: Its class product.
        truth: Raster on the same grid: 1 where the class is.

    Returns:
        klass, iou, precision, recall (each None where undefined), true_km2, mapped_km2, expected_km2 (None without
        georeference), pixels and a note.
    """
    index = result.classes.index(result.klass)
    both = mapped = there = seen = 0
    true_m2 = 0.0
    with open_raster(truth) as source, rasterio.open(classes) as layer:
        areas = source.grid.row_areas_m2()
        for row in range(0, source.grid.height, ROWS):
            height = min(ROWS, source.grid.height - row)
            window = rasterio.windows.Window(0, row, source.grid.width, height)
            got = layer.read(1, window=window)
            known = got != NODATA
            says = got == index
            wet = (source.read((row, 0, height, source.grid.width), source.bands)[0][0] == 1) & known
            both += int((says & wet).sum())
            mapped, there, seen = mapped + int(says.sum()), there + int(wet.sum()), seen + int(known.sum())
            if areas is not None:
                true_m2 += float(wet.sum(1) @ areas[row : row + height])
    return {
        "klass": result.klass,
        "iou": _ratio(both, mapped + there - both),
        "precision": _ratio(both, mapped),
        "recall": _ratio(both, there),
        "true_km2": None if areas is None else true_m2 / 1e6,
        "mapped_km2": result.area_km2,
        "expected_km2": result.expected_km2,
        "pixels": seen,
        "note": "exact truth of the simulated scene, over all pixels that were seen, also under clouds and their shadows",
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None

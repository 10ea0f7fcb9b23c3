"""The map of a whole scene, and its agreement with the truth of a simulated scene."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from torch import nn

from seawall.arrays import BoolArray
from seawall.data.chips import ChipFolder
from seawall.geo.preview import write_preview
from seawall.geo.raster import open_raster, write_cog
from seawall.inference.layers import NODATA
from seawall.inference.predict import predict_scene
from seawall.inference.products import SceneResult
from seawall.inference.scene import is_safe
from seawall.io import write_atomic
from seawall.pipeline.context import RunContext
from seawall.simulate.scene import simulate_s1, simulate_s2

COMPARED_ROWS = 512
"""Rows that are compared at once."""


def map_scene(run: RunContext, chips: ChipFolder, model: nn.Module, weights: Path | None = None) -> dict[str, str]:
    """Map the recipe's scene with the clean network and return the paths of the maps.

    The truth of a simulated scene is compared with the map in `scenes/scene.truth.json`.

    Args:
        run: The run; the maps go into its folder `scenes`.
        chips: The chips that the network was trained on.
        model: The clean network.
        weights: File of the network; if None, a copy is written beside the maps.
    """
    scene = run.recipe.scene
    if scene is None:
        return {}
    home = run.folder / "scenes"
    source = Path(os.path.expandvars(scene.source))
    truth: Path | None = None
    if scene.source == "simulated":
        source, truth = simulate_input(chips, scene.size, run.recipe.seed, home)
    result = predict_scene(
        model, source, home, name="scene", device=run.device, resume=run.resume, progress=run.stage_progress("scene"),
        weights=weights,
    )  # fmt: skip
    if not is_safe(source):  # previews are of raster files
        write_preview(source, home / "scene.preview.npz", digest=result.scene)
    if truth is not None and result.klass == "water":  # the truth is of water
        agreement = compare_with_truth(result, home / result.files["class"], truth)
        write_atomic(home / "scene.truth.json", json.dumps(agreement, indent=1))
    return {layer: str(home / file) for layer, file in result.files.items()}


def simulate_input(chips: ChipFolder, size: int, seed: int, home: Path) -> tuple[Path, Path]:
    """Simulate the scene to map and its water mask, unless both exist; remove unfinished files of a killed run.

    The size is in the file names, because the recipe's id, which names the run folder, does not depend on it.

    Args:
        chips: Chips with the bands of the scene.
        size: Side of the scene in pixels.
        seed: Seed of the experiment.
        home: Folder for the two rasters.

    Returns:
        The scene, input-<size>.tif, and its truth, input-<size>.truth.tif.
    """
    path, truth = home / f"input-{size}.tif", home / f"input-{size}.truth.tif"
    for name in (path.name, truth.name):
        for stale in (*home.glob(f".{name}.*.part"), *home.glob(f".{name}.*.stage")):
            stale.unlink()
    if path.exists() and truth.exists():  # complete: they are renamed when finished
        return path, truth
    make = simulate_s1 if "VV" in chips.bands or "VH" in chips.bands else simulate_s2
    made = make("scene", size, chips.bands, seed=seed)
    mask = np.stack([made.water, made.clear]).astype(np.uint8)
    tags = {
        "QUANTITY": "1 where at least half of a pixel is water; 1 where neither cloud nor its shadow hides the ground"
    }
    write_cog(truth, mask, made.grid, bands=("water", "clear"), tags=tags)
    write_cog(
        path,
        np.where(made.seen, made.image, np.nan),
        made.grid,
        bands=made.bands,
        nodata=math.nan,
        tags={"SEAWALL_UNIT": made.unit},
    )
    return path, truth


@dataclass(frozen=True)
class _PixelCounts:
    """Pixel counts of a map against the truth: in both, in the map, in the truth, and compared."""

    both: int = 0
    mapped: int = 0
    true: int = 0
    pixels: int = 0

    def add(self, mapped: BoolArray, true: BoolArray, where: BoolArray) -> _PixelCounts:
        mapped, true = mapped & where, true & where
        return _PixelCounts(
            self.both + int((mapped & true).sum()),
            self.mapped + int(mapped.sum()),
            self.true + int(true.sum()),
            self.pixels + int(where.sum()),
        )

    @property
    def iou(self) -> float | None:
        return _quotient(self.both, self.mapped + self.true - self.both)


def compare_with_truth(result: SceneResult, classes: Path, truth: Path) -> dict[str, str | int | float | None]:
    """Compare a map with the exact mask of its class, over all pixels that were seen.

    Args:
        result: The map.
        classes: Its class product.
        truth: Raster on the same grid with the bands water, 1 where the class is, and clear, 1 where no cloud or shadow
            of a cloud hides the ground.

    Returns:
        klass, iou, precision, recall (each None where undefined), true_km2, mapped_km2, expected_km2 (None without
        georeference), pixels, clear_iou and clear_pixels for the pixels that no cloud hides, and a note.
    """
    index = result.classes.index(result.klass)
    seen, clear, true_m2 = _PixelCounts(), _PixelCounts(), 0.0
    with open_raster(truth) as source, rasterio.open(classes) as layer:
        areas = source.grid.row_areas_m2()
        for row in range(0, source.grid.height, COMPARED_ROWS):
            height = min(COMPARED_ROWS, source.grid.height - row)
            got = layer.read(1, window=rasterio.windows.Window(0, row, source.grid.width, height))
            wet, bare = source.read((row, 0, height, source.grid.width), source.bands)[0] == 1
            known = got != NODATA
            seen = seen.add(got == index, wet, known)
            clear = clear.add(got == index, wet, known & bare)
            if areas is not None:
                true_m2 += float((wet & known).sum(1) @ areas[row : row + height])
    return {
        "klass": result.klass,
        "iou": seen.iou,
        "precision": _quotient(seen.both, seen.mapped),
        "recall": _quotient(seen.both, seen.true),
        "true_km2": None if areas is None else true_m2 / 1e6,
        "mapped_km2": result.area_km2,
        "expected_km2": result.expected_km2,
        "pixels": seen.pixels,
        "clear_iou": clear.iou,
        "clear_pixels": clear.pixels,
        "note": _truth_note(seen, clear),
    }


def _truth_note(seen: _PixelCounts, clear: _PixelCounts) -> str:
    text = "The truth is exact, also where a cloud or its shadow hides the ground"
    hidden = _quotient(seen.pixels - clear.pixels, seen.pixels)
    if not hidden or clear.iou is None:
        return f"{text}."
    return (
        f"{text}, which is on {hidden:.0%} of the pixels; over the others, which are the ones that count on chips, "
        f"the IoU is {clear.iou:.2f}."
    )


def _quotient(part: int, whole: int) -> float | None:
    return part / whole if whole else None

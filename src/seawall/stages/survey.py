"""The map of a whole scene."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from torch import nn

from seawall.datasets.chips import ChipFolder
from seawall.imagery.preview import write_preview
from seawall.imagery.raster import write_cog
from seawall.imagery.simulate import simulate_s1, simulate_s2
from seawall.infer import predict_scene
from seawall.stages.run import Run


def survey(run: Run, chips: ChipFolder, model: nn.Module) -> dict[str, str]:
    """Map the recipe's scene with the clean network and return the paths of the maps."""
    scene = run.recipe.scene
    if scene is None:
        return {}
    home = run.folder / "scenes"
    source = Path(os.path.expandvars(scene.source))
    if scene.source == "simulated":
        source = _simulated(chips, scene.size, run.recipe.seed, home)
    result = predict_scene(
        model, source, home, name="scene", device=run.device, resume=run.resume, progress=run.say("scene")
    )
    write_preview(source, home / "scene.preview.npz", digest=result.scene)
    return {layer: str(home / file) for layer, file in result.files.items()}


def _simulated(chips: ChipFolder, size: int, seed: int, home: Path) -> Path:
    path = home / "input.tif"
    if path.exists():  # whole, and of this very recipe: the folder is named by its content
        return path
    make = simulate_s1 if "VV" in chips.bands or "VH" in chips.bands else simulate_s2
    made = make("scene", size, chips.bands, seed=seed)
    write_cog(
        path,
        np.where(made.seen, made.image, np.nan),
        made.grid,
        bands=made.bands,
        nodata=math.nan,
        tags={"SEAWALL_UNIT": made.unit},
    )
    return path

"""From a full canvas to products under their final names: written and looked at beside, renamed when all are whole."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import nn

from seawall.errors import RunError
from seawall.files import write_atomic
from seawall.imagery.raster import CogWriter
from seawall.scenes.canvas import Canvas, no_room
from seawall.scenes.catalog import acquired, model_item, scene_item
from seawall.scenes.product import LAYERS, NODATA, SCALE, SceneResult, palette
from seawall.scenes.source import Scene, digest_file


def finished(out: Path, name: str, key: str) -> SceneResult | None:
    """Return the map that is in a folder, if it was made with this key and every file of it is whole."""
    try:
        said = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["result"]
        result = TypeAdapter(SceneResult).validate_python(said)
        whole = all(digest_file(out / file) == result.digests[layer] for layer, file in result.files.items())
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
    return result if whole and result.key == key and set(result.files) == set(LAYERS) else None


def publish(
    model: nn.Module, result: SceneResult, scene: Scene, canvas: Canvas, out: Path, when: str, begin: float
) -> SceneResult:
    """Turn the canvas into products: written and looked at beside, renamed when all of them are whole."""
    grid = scene.source.grid
    tags = {"SEAWALL_KEY": result.key, "SOURCE": result.source, "CLASSES": json.dumps(result.classes)}
    said = {
        "class": "index of the most probable class",
        "water": f"probability of {result.klass}; value = stored * {SCALE}",
        "uncertainty": f"entropy of the class probabilities over ln {len(result.classes)}; value = stored * {SCALE}",
    }
    try:
        for layer in LAYERS:
            with CogWriter(
                canvas.folder / result.files[layer],
                grid,
                "uint8",
                bands=(layer if layer != "water" else result.klass,),
                nodata=NODATA,
                tags={**tags, "QUANTITY": said[layer]},
                scales=None if layer == "class" else (SCALE,),
                offsets=None if layer == "class" else (0.0,),
                colormap={**palette(result.classes), NODATA: (0, 0, 0, 0)} if layer == "class" else None,
            ) as writer:
                for row, pixels in canvas.rows(layer):
                    writer.write(pixels, row)
            _compare(canvas, layer, canvas.folder / result.files[layer])
        result = replace(
            result, digests={layer: digest_file(canvas.folder / file) for layer, file in result.files.items()}
        )
        model_file = f"models/model-{result.model[:12]}.json"
        taken = acquired(result.source, scene.source.tags, when)
        if taken is None:
            result = replace(result, flags=(*result.flags, "the acquisition time is unknown"))
        result = replace(result, seconds=time.monotonic() - begin)
        item = scene_item(result, grid, taken, canvas.folder, model_file)
        for file in result.files.values():
            (canvas.folder / file).replace(out / file)
        write_atomic(out / model_file, json.dumps(model_item(model, result.model), indent=1))
        write_atomic(out / f"{result.name}.json", json.dumps(item, indent=1))
    except OSError as bad:
        canvas.remove()
        raise no_room(out, bad) from bad
    canvas.remove()
    return result


def _compare(canvas: Canvas, layer: str, file: Path) -> None:
    with rasterio.open(file) as back:
        for row, pixels in canvas.rows(layer):
            got: NDArray[np.uint8] = back.read(1, window=rasterio.windows.Window(0, row, canvas.width, len(pixels)))
            if not np.array_equal(got, pixels):
                raise RunError(
                    f"{file.name}: expected the pixels that were written, got others in rows {row} to {row + len(pixels)}; check the disk"
                )

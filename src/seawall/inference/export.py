"""From a full canvas to products under their final names: written and looked at beside, renamed when all are whole.

The JSON of a map is the last file to appear and the first to go, so a folder never presents layers of two maps as
one: without `<name>.json` there is no map, whatever layers lie there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import nn

from seawall.errors import ImageryError, RunError
from seawall.geo.cog import FULL_DISK
from seawall.geo.raster import CogWriter
from seawall.inference.output_buffer import Canvas, no_room
from seawall.inference.products import NODATA, SCALE, SceneResult, layer_names, palette
from seawall.inference.scene import Scene, digest_file
from seawall.inference.stac_items import acquired, model_item, scene_item
from seawall.io import write_atomic
from seawall.models.weights import save_model

STAGING = 2.7
"""Bytes per pixel of a layer while it is written: the plain copy, the finished file and its overviews."""


def finished(out: Path, name: str, key: str) -> SceneResult | None:
    """Return the map that is in a folder, if it was made with this key and every file of it is whole."""
    try:
        said = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["result"]
        result = TypeAdapter(SceneResult).validate_python(said)
        whole = all(digest_file(out / file) == result.digests[layer] for layer, file in result.files.items())
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
    return (
        result if whole and result.key == key and set(result.files) == set(layer_names(result.klass).values()) else None
    )


def publish(
    model: nn.Module,
    result: SceneResult,
    scene: Scene,
    canvas: Canvas,
    out: Path,
    when: str,
    begin: float,
    weights: Path | None = None,
) -> SceneResult:
    """Turn the canvas into products: written and looked at beside, renamed when all of them are whole.

    Args:
        model: The network, for its STAC Item.
        result: What was counted.
        scene: The open scene.
        canvas: All of the layers; removed at the end.
        out: Where the products go.
        when: Acquisition time as the user stated it.
        begin: Monotonic time at which the work began.
        weights: File of the weights, for the link in the model's Item; a copy is written beside it where None.

    Raises:
        RunError: The disk is full or the folder cannot be written. The canvas stays, so that nothing is predicted again.
    """
    staged = canvas.folder / "products"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        result = _write_layers(result, scene, canvas, staged)
        model_file = f"models/model-{result.model[:12]}.json"
        taken = acquired(result.source, scene.source.tags, when)
        if taken is None:
            result = replace(result, flags=(*result.flags, "the acquisition time is unknown"))
        result = replace(result, seconds=time.monotonic() - begin)
        item = scene_item(result, scene.source.grid, taken, staged, model_file, os.path.relpath(scene.source.path, out))
        _write_model(model, result.model, out / model_file, weights)
        write_atomic(staged / f"{result.name}.json", json.dumps(item, indent=1))
        exchange(staged, out, result)
    except (ImageryError, OSError) as bad:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(bad, ImageryError) and not str(bad).endswith(FULL_DISK):
            raise RunError(f"{bad} (what is painted is kept, so that the same command goes on)") from bad
        cause = bad if isinstance(bad, OSError) else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        need = round(STAGING * len(result.files) * result.height * result.width)
        raise no_room(out, cause, need, kept=True) from bad
    canvas.remove()
    return result


def exchange(staged: Path, out: Path, result: SceneResult) -> None:
    """Put the products of a folder in the place of an older map of the same name.

    The older JSON leaves first and the new one comes last: whenever this is cut short, no JSON lies beside layers
    that are not its own. An error puts the older map back.

    Args:
        staged: Folder with all files of the new map, whole.
        out: Where they go.
        result: The new map.
    """
    mark = f"{result.name}.json"
    old = staged / "old"
    old.mkdir()
    layers = dict.fromkeys((*_layers_of(out / mark), *result.files.values()))
    moved: list[str] = []
    try:
        for name in (mark, *layers):
            if (out / name).exists() or (out / name).is_symlink():
                (out / name).replace(old / name)
                moved.append(name)
        _sync(out)
        for name in result.files.values():
            (staged / name).replace(out / name)
        _sync(out)
        (staged / mark).replace(out / mark)
        _sync(out)
    except OSError:
        for name in result.files.values():
            (out / name).unlink(missing_ok=True)
        for name in reversed(moved):  # the JSON, which was the first to leave, is the last to come back
            (old / name).replace(out / name)
        raise


def _write_layers(result: SceneResult, scene: Scene, canvas: Canvas, staged: Path) -> SceneResult:
    tags = {"SEAWALL_KEY": result.key, "SOURCE": result.source, "CLASSES": json.dumps(result.classes)}
    said = {
        "class": "index of the most probable class",
        "probability": f"probability of {result.klass}; value = stored * {SCALE}",
        "uncertainty": f"entropy of the class probabilities over ln {len(result.classes)}; value = stored * {SCALE}",
    }
    for layer, name in layer_names(result.klass).items():
        path = staged / result.files[name]
        with CogWriter(
            path,
            scene.source.grid,
            "uint8",
            bands=(layer if layer != "probability" else result.klass,),
            nodata=NODATA,
            tags={**tags, "QUANTITY": said[layer]},
            scales=None if layer == "class" else (SCALE,),
            offsets=None if layer == "class" else (0.0,),
            colormap={**palette(result.classes), NODATA: (0, 0, 0, 0)} if layer == "class" else None,
        ) as writer:
            for row, pixels in canvas.rows(layer):
                writer.write(pixels, row)
        _compare(canvas, layer, path)
    return replace(result, digests={layer: digest_file(staged / file) for layer, file in result.files.items()})


def _write_model(model: nn.Module, digest: str, path: Path, weights: Path | None) -> None:
    if weights is None:
        weights = path.with_suffix(".safetensors")
        if not weights.exists():
            save_model(weights, model)
    write_atomic(path, json.dumps(model_item(model, digest, weights, path.parent), indent=1))


def _layers_of(mark: Path) -> tuple[str, ...]:
    """Return the layers that an older map's JSON names, as far as it can be read."""
    try:
        files = json.loads(mark.read_text(encoding="utf-8"))["result"]["files"]
        return tuple(Path(str(file)).name for file in dict(files).values())
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _compare(canvas: Canvas, layer: str, file: Path) -> None:
    with rasterio.open(file) as back:
        for row, pixels in canvas.rows(layer):
            got: NDArray[np.uint8] = back.read(1, window=rasterio.windows.Window(0, row, canvas.width, len(pixels)))
            if not np.array_equal(got, pixels):
                raise RunError(
                    f"{file.name}: expected the pixels that were written, got others in rows {row} to {row + len(pixels)}; check the disk"
                )

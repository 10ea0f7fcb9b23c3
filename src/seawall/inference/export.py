"""Export of the output buffer: products are written and verified in a staging folder, then renamed together.

The JSON of a map is the last file to appear and the first to be removed, so a folder never shows layers of two maps as
one: without `<name>.json` there is no map, whatever layers are there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import nn

from seawall.arrays import ByteArray
from seawall.errors import ImageryError, RunError
from seawall.geo.cog import FULL_DISK
from seawall.geo.raster import CogWriter
from seawall.inference.guarantee import Guarantee, set_rows
from seawall.inference.layers import LAYERS, NODATA, SCALE, index_labels, layer_names
from seawall.inference.output_buffer import OutputBuffer, byte_rows, write_error
from seawall.inference.products import SceneResult
from seawall.inference.scene import OpenScene
from seawall.inference.stac_items import acquisition_time, model_item, scene_item
from seawall.inference.styles import layer_style
from seawall.io import file_sha256, flush_to_disk, write_atomic
from seawall.models.weights import save_model

STYLE_SUFFIX = ".qml"
"""Ending of the QGIS style beside a layer."""
STAGED_BYTES_PER_PIXEL = 2.7
"""Bytes per pixel of a layer while it is written: the uncompressed copy, the finished file and its overviews."""


def read_finished(out: Path, name: str, key: str) -> SceneResult | None:
    """Return the map that is in a folder, if it was made with this key and every file of it is whole."""
    try:
        stored = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["result"]
        result = TypeAdapter(SceneResult).validate_python(stored)
        whole = all(file_sha256(out / file) == result.digests[layer] for layer, file in result.files.items())
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
    return result if whole and result.files and result.key == key else None  # the key is of the layers, too


def export_products(
    model: nn.Module,
    result: SceneResult,
    scene: OpenScene,
    buffer: OutputBuffer,
    out: Path,
    when: str,
    begin: float,
    weights: Path | None = None,
    guarantee: Guarantee = Guarantee(),
) -> SceneResult:
    """Write the buffer as products: in a staging folder first, renamed when all of them are verified.

    Args:
        model: The network, for its STAC Item.
        result: The counts and settings of the map.
        scene: The open scene.
        buffer: The complete layers; removed at the end.
        out: Where the products go.
        when: Acquisition time as the user stated it.
        begin: Monotonic time at which the work began.
        weights: File of the weights, for the link in the model's Item; a copy is written beside it where None.
        guarantee: What the map promises.

    Raises:
        RunError: The disk is full or the folder cannot be written. The buffer stays, so that nothing is predicted again.
    """
    staged = buffer.folder / "products"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        result = _write_layers(result, scene, buffer, staged, guarantee)
        model_file = f"models/model-{result.model[:12]}.json"
        taken = acquisition_time(result.source, scene.source.tags, when)
        if taken is None:
            result = replace(result, flags=(*result.flags, "acquisition-time-unknown"))
        result = replace(result, seconds=time.monotonic() - begin)
        item = scene_item(result, scene.source.grid, taken, staged, model_file, os.path.relpath(scene.source.path, out))
        _write_model(model, result.model, out / model_file, weights)
        item["calibration"] = guarantee.plain()
        write_atomic(staged / f"{result.name}.json", json.dumps(item, indent=1))
        replace_products(staged, out, result)
    except (ImageryError, OSError) as bad:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(bad, ImageryError) and not str(bad).endswith(FULL_DISK):
            raise RunError(f"{bad} (what is finished is kept, so that the same command goes on)") from bad
        cause = bad if isinstance(bad, OSError) else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        need = round(STAGED_BYTES_PER_PIXEL * len(result.files) * result.height * result.width)
        raise write_error(out, cause, need, kept=True) from bad
    buffer.remove()
    return result


def replace_products(staged: Path, out: Path, result: SceneResult) -> None:
    """Replace the products of an older map of the same name.

    The older JSON is moved away first and the new one comes last: wherever this is interrupted, no JSON is beside
    layers of another map. An error restores the older map.

    Args:
        staged: Folder with all files of the new map.
        out: Folder of the products.
        result: The new map.
    """
    json_name = f"{result.name}.json"
    old = staged / "old"
    old.mkdir()
    new = _with_styles(result.files.values())
    layers = dict.fromkeys((*_with_styles(_listed_layers(out / json_name)), *new))
    moved: list[str] = []
    try:
        for name in (json_name, *layers):
            if (out / name).exists() or (out / name).is_symlink():
                (out / name).replace(old / name)
                moved.append(name)
        flush_to_disk(out)
        for name in new:
            (staged / name).replace(out / name)
        flush_to_disk(out)
        (staged / json_name).replace(out / json_name)
        flush_to_disk(out)
    except OSError:
        for name in new:
            (out / name).unlink(missing_ok=True)
        for name in reversed(moved):  # in reverse order, so that the JSON comes back last
            (old / name).replace(out / name)
        raise


def _with_styles(files: Iterable[str]) -> tuple[str, ...]:
    """Return files of layers, each followed by the file of its style."""
    return tuple(name for file in files for name in (file, str(Path(file).with_suffix(STYLE_SUFFIX))))


def _write_layers(
    result: SceneResult, scene: OpenScene, buffer: OutputBuffer, staged: Path, guarantee: Guarantee
) -> SceneResult:
    klass = result.classes.index(result.klass)

    def rows(layer: str) -> Iterator[tuple[int, ByteArray]]:
        return set_rows(scene, buffer, guarantee, klass) if layer == "sets" else byte_rows(buffer, layer)

    tags = {"SEAWALL_KEY": result.key, "SOURCE": result.source, "CLASSES": json.dumps(result.classes)}
    for layer, name in layer_names(result.klass, buffer.layers).items():
        path, made = staged / result.files[name], LAYERS[layer]
        quantity = made.quantity.format(klass=result.klass, classes=len(result.classes))
        indices = index_labels(layer, result.classes, result.klass) if made.stored == "index" else {}
        with CogWriter(
            path,
            scene.source.grid,
            "uint8",
            bands=(layer if layer != "probability" else result.klass,),
            nodata=NODATA,
            tags={**tags, "QUANTITY": quantity if indices else f"{quantity}; value = stored * {SCALE}"},
            scales=None if indices else (SCALE,),
            offsets=None if indices else (0.0,),
            colormap={**{k: color for k, (_, color) in indices.items()}, NODATA: (0, 0, 0, 0)} if indices else None,
        ) as writer:
            for row, pixels in rows(layer):
                writer.write(pixels, row)
        _verify_layer(rows(layer), path)
        write_atomic(path.with_suffix(STYLE_SUFFIX), layer_style(layer, result.classes, result.klass))
    return replace(result, digests={layer: file_sha256(staged / file) for layer, file in result.files.items()})


def _write_model(model: nn.Module, digest: str, path: Path, weights: Path | None) -> None:
    if weights is None:
        weights = path.with_suffix(".safetensors")
        if not weights.exists():
            save_model(weights, model)
    write_atomic(path, json.dumps(model_item(model, digest, weights, path.parent), indent=1))


def _listed_layers(path: Path) -> tuple[str, ...]:
    """Return the file names of the layers in a map's JSON; none where it cannot be read."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["result"]["files"]
        return tuple(Path(str(file)).name for file in dict(files).values())
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _verify_layer(rows: Iterator[tuple[int, ByteArray]], file: Path) -> None:
    with rasterio.open(file) as back:
        for row, pixels in rows:
            got: NDArray[np.uint8] = back.read(1, window=rasterio.windows.Window(0, row, back.width, len(pixels)))
            if not np.array_equal(got, pixels):
                raise RunError(
                    f"{file.name}: expected the pixels that were written, got others in rows {row} to {row + len(pixels)}; check the disk"
                )

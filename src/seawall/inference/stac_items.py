"""STAC Items: one for the map of a scene, and one with MLM metadata for the model that made it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pystac
import torch
from pyproj import CRS, Transformer
from pystac.extensions.classification import Classification
from pystac.extensions.mlm import (
    Hyperparameters,
    InputStructure,
    MLMExtension,
    ModelInput,
    ModelOutput,
    ProcessingExpression,
    ResultStructure,
    TaskType,
)
from pystac.extensions.raster import DataType
from torch import nn

from seawall import __version__
from seawall.errors import UsageError
from seawall.geo.grid import Grid
from seawall.inference.layers import LAYERS, NODATA, SCALE, index_labels, layer_names, slug_of
from seawall.inference.products import SceneResult
from seawall.io import file_sha256
from seawall.models.blocks import Standardize
from seawall.models.weights import spec_of
from seawall.types import ModelSpec

FILE_EXTENSION = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    FILE_EXTENSION,
    "https://stac-extensions.github.io/processing/v1.1.0/schema.json",
)
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
SENTINEL1_LAUNCH = datetime(2014, 4, 3, tzinfo=UTC)
"""Launch of Sentinel-1A: the earliest time of an image whose time is unknown."""

_SEMANTIC = re.compile(r"\d+\.\d+\.\d+([+-][0-9A-Za-z.+-]+)?")
_STAMP = re.compile(r"(?<!\d)(20\d{6})T(\d{6})(?!\d)")
_TIME_TAGS = ("ACQUISITION_DATETIME", "SENSING_TIME", "PRODUCT_START_TIME", "datetime", "DATETIME")


def acquisition_time(name: str, tags: Mapping[str, str], when: str = "") -> datetime | None:
    """Return the acquisition time of a scene: as stated, else from its tags, else from the date in its name.

    Args:
        name: File name, such as "S2A_MSIL2A_20230815T101031_....tif".
        tags: Metadata of the file.
        when: The time as stated by the user, ISO 8601.

    Raises:
        UsageError: The stated time is not in ISO 8601.

    Example:
        >>> acquisition_time("S2A_MSIL2A_20230815T101031_N0509.tif", {}).isoformat()
        '2023-08-15T10:10:31+00:00'
    """
    if when:
        try:
            return _utc(datetime.fromisoformat(when))
        except ValueError as bad:
            raise UsageError(f"when: expected a time such as 2023-08-15T10:10:31Z, got {when!r}; write it so") from bad
    for tag in _TIME_TAGS:
        try:
            return _utc(datetime.fromisoformat(tags[tag].strip()))
        except (KeyError, ValueError):
            continue
    if found := _STAMP.search(name):
        try:
            return datetime.strptime("".join(found.groups()), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            return None
    return None


def scene_item(
    result: SceneResult, grid: Grid, when: datetime | None, folder: Path, model_file: str, source: str
) -> dict[str, object]:
    """Return the STAC Item of a map, with the result itself under "result".

    Args:
        result: The map.
        grid: Its grid.
        when: Acquisition time; unknown if None.
        folder: Where the product files are.
        model_file: File name of the model's Item, which is linked.
        source: Path of the scene or SAFE folder relative to the Item's folder, for the link `derived_from`.
    """
    now = datetime.now(UTC)
    outline = _grid_ring(grid)
    item = pystac.Item(
        id=result.name,
        geometry=None if outline is None else {"type": "Polygon", "coordinates": [outline]},
        bbox=None if outline is None else _bounding_box(outline, grid),
        datetime=when,
        start_datetime=None if when else SENTINEL1_LAUNCH,
        end_datetime=None if when else now,
        properties={
            "created": _timestamp(now),
            "title": f"{result.klass} map of {result.source}",
            "processing:software": {"seawall": __version__, "torch": torch.__version__},
            "processing:lineage": f"{result.source} (sha256 {result.scene}) through model {result.model}",
            "processing:level": "L3",
            **_projection_properties(grid),
        },
        stac_extensions=list(EXTENSIONS),
    )
    for layer, name in layer_names(result.klass).items():
        if name in result.files:
            item.add_asset(name, _layer_asset(result, layer, name, folder))
    item.add_link(pystac.Link("derived_from", quote(source), _media_type(source), "The scene"))
    item.add_link(pystac.Link("mlm:model", f"./{model_file}", "application/geo+json", "The model, as a STAC MLM Item"))
    made = item.to_dict(include_self_link=False, transform_hrefs=False)
    return {**made, "result": result.plain()}


def model_item(model: nn.Module, digest: str, weights: Path, folder: Path) -> dict[str, object]:
    """Return the STAC Item with MLM metadata of a model.

    Its time is that of the item: when the training data were acquired is not known here.

    Args:
        model: A module with a `spec`.
        digest: Digest of the model.
        weights: File of the weights.
        folder: Where the item goes; the weights are linked relative to it.
    """
    spec = spec_of(model)
    now = datetime.now(UTC)
    item = pystac.Item(
        id=f"model-{digest[:12]}",
        geometry=None,
        bbox=None,
        datetime=now,
        properties={
            "created": _timestamp(now),
            "title": spec.note or f"{spec.architecture} for {', '.join(spec.classes)}",
            "gsd": spec.gsd_m,
            "bands": _band_objects(
                spec
            ),  # the model extension reads them here; the core schema requires them in an asset too
            "seawall:unit": spec.unit,
            "seawall:digest": digest,
        },
        stac_extensions=[FILE_EXTENSION],
    )
    memory = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=f"{slug_of(spec.architecture)}-{digest[:12]}",
        architecture=spec.architecture,
        tasks=[TaskType.SEMANTIC_SEGMENTATION],
        framework="PyTorch",
        framework_version=torch.__version__ if _SEMANTIC.fullmatch(torch.__version__) else None,
        memory_size=memory,
        total_parameters=sum(tensor.numel() for tensor in model.parameters()),
        pretrained=True,
        input=[_model_input(model)],
        output=[_model_output(model)],
        hyperparameters=Hyperparameters.create(**{str(k): v for k, v in spec.settings.items()})
        if spec.settings
        else None,
    )
    item.add_asset("weights", _weights_asset(model, weights, folder))
    made: dict[str, object] = item.to_dict(include_self_link=False, transform_hrefs=False)
    return made


def _model_input(model: nn.Module) -> ModelInput:
    spec = spec_of(model)
    size = len(spec.bands)
    layer = next((m for m in model.modules() if isinstance(m, Standardize) and len(m.mean) == size), None)
    scaling: list[dict[str, object]] | None = None
    if layer is not None and bool(layer.fitted):
        scaling = [
            {"type": "z-score", "mean": float(mean), "stddev": float(std)}
            for mean, std in zip(layer.mean, layer.std, strict=True)
        ]
    made = ModelInput.create(
        name="image",
        bands=list(spec.bands),
        input=InputStructure.create([-1, size, -1, -1], ["batch", "bands", "height", "width"], DataType.FLOAT32),
        description=f"{spec.unit}, unseen pixels filled; value_scaling is the first layer of the network itself",
    )
    made.properties["value_scaling"] = scaling  # a list, which the schema requires and pystac does not accept
    return made


def _model_output(model: nn.Module) -> ModelOutput:
    classes = spec_of(model).classes
    return ModelOutput.create(
        name="logits",
        tasks=[TaskType.SEMANTIC_SEGMENTATION],
        result=ResultStructure.create(
            [-1, len(classes), -1, -1], ["batch", "class", "height", "width"], DataType.FLOAT32
        ),
        classes=[Classification.create(value=k, name=slug_of(name), title=name) for k, name in enumerate(classes)],
        post_processing_function=ProcessingExpression.create("python", "torch:softmax"),
    )


def _band_objects(spec: ModelSpec) -> list[dict[str, str]]:
    return [{"name": name} for name in spec.bands]


def _weights_asset(model: nn.Module, file: Path, folder: Path) -> pystac.Asset:
    extra: dict[str, object] = {
        "mlm:artifact_type": "safetensors",
        "bands": _band_objects(spec_of(model)),
        "file:size": file.stat().st_size,
        "file:checksum": "1220" + file_sha256(file),  # multihash: sha2-256, 32 bytes
    }
    return pystac.Asset(
        quote(os.path.relpath(file, folder).replace(os.sep, "/")),
        title="Weights",
        media_type="application/octet-stream; application=safetensors",
        roles=["mlm:model", "mlm:weights", "data"],
        extra_fields=extra,
    )


def _layer_asset(result: SceneResult, layer: str, name: str, folder: Path) -> pystac.Asset:
    file, made = result.files[name], LAYERS[layer]
    extra: dict[str, object] = {
        "data_type": "uint8",
        "nodata": NODATA,
        "file:size": (folder / file).stat().st_size,
        "file:checksum": "1220" + result.digests[name],  # multihash: sha2-256, 32 bytes
    }
    if made.stored == "index":
        extra["classification:classes"] = [
            {"value": k, "name": slug_of(name), "title": name, "color_hint": "{:02X}{:02X}{:02X}".format(*color)}
            for k, (name, color) in index_labels(layer, result.classes, result.klass).items()
        ]
    else:
        extra |= {"raster:scale": SCALE, "raster:offset": 0.0, "unit": "1"}
    return pystac.Asset(
        f"./{file}",
        title=made.title.format(klass=result.klass),
        description=made.quantity.format(klass=result.klass, classes=len(result.classes)),
        media_type=COG,
        roles=["data"],
        extra_fields=extra,
    )


def _projection_properties(grid: Grid) -> dict[str, object]:
    facts: dict[str, object] = {"proj:shape": [grid.height, grid.width]}
    if grid.transform is None or grid.crs is None:
        return facts
    crs = CRS.from_user_input(grid.crs)
    authority = crs.to_authority()
    facts["proj:transform"] = list(grid.transform)[:6]
    if authority:
        facts["proj:code"] = ":".join(authority)
    else:
        facts["proj:wkt2"] = crs.to_wkt()
    return facts


def _grid_ring(grid: Grid, steps: int = 8) -> list[list[float]] | None:
    """Return the ring around a grid in longitude and latitude, counter-clockwise, or None without georeference."""
    if grid.transform is None or grid.crs is None:
        return None
    h, w = grid.height, grid.width
    share = [i / steps for i in range(steps)]
    ring = [(h * s, 0.0) for s in share] + [(float(h), w * s) for s in share]
    ring += [(h * (1 - s), float(w)) for s in share] + [(0.0, w * (1 - s)) for s in share]
    xs, ys = zip(*(grid.point(row, col) for row, col in ring), strict=True)
    lon, lat = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(xs, ys)
    points = [[round(float(x), 7), round(float(y), 7)] for x, y in zip(lon, lat, strict=True)]
    if not all(abs(x) <= 360 and abs(y) <= 90 for x, y in points):
        return None
    return [*points, points[0]]


def _bounding_box(ring: list[list[float]], grid: Grid) -> list[float]:
    """Return west, south, east, north; around a pole all longitudes, up to the pole itself."""
    xs, ys = [x for x, _ in ring], [y for _, y in ring]
    north, south = grid.poles()
    west, east = (-180.0, 180.0) if north or south else (min(xs), max(xs))
    return [west, -90.0 if south else min(ys), east, 90.0 if north else max(ys)]


def _media_type(source: str) -> str | None:
    """Return the media type of a scene; None for a SAFE product, which is a folder."""
    return None if source.endswith(".SAFE") else "image/tiff"


def _timestamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _utc(when: datetime) -> datetime:
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)

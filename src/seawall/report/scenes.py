"""The scene map: water, probability and doubt of a whole scene, read in thinned-out windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seawall.report import pictures
from seawall.report.blocks import Block, Facts, Layer, Prose, Section, Swipe, Swipes
from seawall.report.folder import Run, number
from seawall.report.words import area, percent, seconds

SIDE = 900
"""A single scene is shown at most this large, in pixels; several share the room."""
MOST = 9
"""Maps of scenes on one page; of further scenes only the numbers."""
LEVELS = 12
SEEN = NDArray[np.bool_]


def scene_maps(run: Run, faults: list[str]) -> Section | None:
    """Show every mapped scene with its water area and the share that the model is unsure of.

    Args:
        run: The run folder.
        faults: Takes the scenes that could not be read, with the reason.
    """
    blocks: list[Block] = []
    for i, (name, told) in enumerate(run.scenes.items()):
        items = _facts(told)
        try:
            if i < MOST:
                blocks.append(_map(run, name, i, told))
            else:
                blocks.append(Prose(((f"Scene {name}: {_sentence(told, run.klass)}",),)))
        except (OSError, ValueError, KeyError, ImportError) as bad:
            faults.append(f"scenes/{name}: {bad or type(bad).__name__}; map left out")
        if items:
            blocks.append(Facts(items))
    lead = "The same network over a whole scene, tile by tile, blended where tiles overlap. Every value is in the GeoTIFFs of the run folder."
    return Section("scene", "The map", lead, blocks) if blocks else None


def result(told: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a scene's result, wherever the file keeps it."""
    for branch in (told, told.get("result"), told.get("properties")):
        if isinstance(branch, Mapping):
            for key in (name, f"seawall:{name}"):
                value = number(branch.get(key))
                if value is not None:
                    return value
    return None


def _facts(told: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    items = [
        ("Water area", area(result(told, "water_km2"))),
        ("Unsure", _of(percent(result(told, "unsure_share"), 1), "of the seen pixels are close to the decision")),
        ("Surely and possibly water", _range(result(told, "low_km2"), result(told, "high_km2"))),
        ("Expected area", _of(area(result(told, "expected_km2")), "if the probabilities are calibrated")),
        ("Seen", _of(percent(result(told, "seen_share"), 1), "of the scene")),
        ("Time", seconds(result(told, "seconds"))),
    ]
    return tuple((term, what) for term, what in items if not what.startswith("–"))


def _range(low: float | None, high: float | None) -> str:
    return f"{area(low)} to {area(high)}" if low is not None and high is not None else "–"


def _of(amount: str, of: str) -> str:
    return f"{amount} {of}"


def _map(run: Run, name: str, index: int, told: Mapping[str, Any]) -> Swipes:
    folder = run.path / "scenes"
    side = round(SIDE / min(len(run.scenes), MOST) ** 0.5)
    classes, meters = _read(folder / f"{name}.class.tif", side)
    seen = classes != 255
    colors = (*pictures.CLASSES, pictures.CLEAR)
    index_ = np.where(seen, classes % len(pictures.CLASSES), len(pictures.CLASSES)).astype(np.uint8)
    height, width = classes.shape
    base = Layer(f"{run.klass} map", pictures.address(index_, colors))
    photo = _preview(folder / f"{name}.preview.npz", classes.shape)
    left = Layer("satellite image", pictures.address(photo)) if photo is not None else base
    doubt = _doubt(folder / f"{name}.uncertainty.tif", seen)
    right = base if photo is not None else Layer("where it is unsure", doubt)
    keys = [("water", run.klass), ("land", "other")] if len(run.classes) == 2 else []
    if photo is None:
        keys.append(("unsure", "unsure"))
    if not seen.all():
        keys.append(("unseen", "not seen"))
    pair = Swipe(
        f"scene-{index}", name, left, right, width, height, (_sentence(told, run.klass),), _small(folder, name, seen, doubt, photo is not None),
        tuple(keys), _scale(meters, width), shown=0,
    )  # fmt: skip
    return Swipes(f"Scene {name}", (pair,), large=True)


def _sentence(told: Mapping[str, Any], klass: str) -> str:
    water, unsure = result(told, "water_km2"), result(told, "unsure_share")
    if water is None:
        return f"{klass.capitalize()} as the model maps it."
    doubt = f"; the model is unsure of {percent(unsure, 1)} of the scene" if unsure is not None else ""
    return f"{area(water)} of {klass}{doubt}."


def _read(path: Path, side: int) -> tuple[NDArray[np.uint8], float | None]:
    """Read a thinned-out band and the ground size of its pixels in meters; nodata becomes 255."""
    import rasterio
    from rasterio.enums import Resampling

    if not path.is_file():
        raise OSError(f"{path.name} is missing")
    with rasterio.open(path, driver="GTiff") as source:
        step = max(1, -(-max(source.height, source.width) // side))
        shape = (-(-source.height // step), -(-source.width // step))
        data = source.read(1, out_shape=shape, resampling=Resampling.nearest, masked=True)
        size = abs(source.transform.a)
        meters = None
        if source.crs and source.crs.is_projected:
            meters = size * source.width / shape[1]
        elif source.crs and source.crs.is_geographic:
            middle = np.radians((source.bounds.top + source.bounds.bottom) / 2)
            meters = float(size * 111_320 * np.cos(middle)) * source.width / shape[1]
        raw = np.ma.filled(data, 255 if data.dtype == np.uint8 else data.fill_value)
        if data.dtype != np.uint8:
            raise ValueError(f"{path.name}: expected uint8 classes, got {data.dtype}")
    return raw.astype(np.uint8), meters


def _share(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], SEEN] | None:
    """Read a scaled share in [0, 1], thinned out to a shape; None where the file is not there."""
    import rasterio
    from rasterio.enums import Resampling

    if not path.is_file():
        return None
    with rasterio.open(path, driver="GTiff") as source:
        data = source.read(1, out_shape=shape[:2], resampling=Resampling.nearest, masked=True)
        value = data.astype(np.float32) * source.scales[0] + source.offsets[0]
    seen = ~np.ma.getmaskarray(data)
    return np.ma.filled(value, 0).astype(np.float32), seen & np.isfinite(np.ma.filled(value, 0))


def _doubt(path: Path, seen: SEEN) -> str:
    held = _share(path, seen.shape)
    if held is None:
        raise OSError(f"{path.name} is missing")
    value, there = held
    colors = pictures.ramp((246, 242, 233), (176, 62, 14), LEVELS)
    return pictures.address(pictures.levels(value, there & seen, LEVELS, 0.0, 1.0), colors)


def _small(folder: Path, name: str, seen: SEEN, doubt: str, with_doubt: bool) -> tuple[tuple[str, str], ...]:
    panels = []
    held = _share(folder / f"{name}.water.tif", seen.shape)
    if held is not None:
        colors = pictures.ramp((240, 236, 226), (16, 78, 139), LEVELS)
        panels.append(
            ("probability", pictures.address(pictures.levels(held[0], held[1] & seen, LEVELS, 0.0, 1.0), colors))
        )
    if with_doubt:
        panels.append(("where it is unsure", doubt))
    return tuple(panels)


def _preview(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Read a picture of the scene where the run kept one, thinned out like the map."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as held:
        picture = held["rgb"]
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"{path.name}: expected uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    rows = np.linspace(0, picture.shape[0] - 1, shape[0]).round().astype(int)
    columns = np.linspace(0, picture.shape[1] - 1, shape[1]).round().astype(int)
    return np.asarray(picture[rows][:, columns], np.uint8)


def _scale(meters: float | None, width: int) -> tuple[float, str] | None:
    """Return a scale bar: its share of the map's width, and its length in words."""
    if not meters:
        return None
    whole = meters * width
    for length in (100_000, 50_000, 20_000, 10_000, 5_000, 2_000, 1_000, 500, 200, 100):
        if length <= whole / 3:
            return length / whole, f"{length // 1000} km" if length >= 1000 else f"{length} m"
    return None

"""The scene map: the scene itself, the map, its truth where that is known, probability and doubt, in thinned-out windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.report import images
from seawall.report.elements import Block, Facts, Layer, Panel, Prose, Ramp, Section, Swipe, Swipes, Table, line
from seawall.report.flags import doubtful
from seawall.report.formatting import DASH, area, count, percent, ratio, seconds
from seawall.report.record_index import Cell
from seawall.report.run_reader import TRUTH, Run, Scene, finite

SIDE = 900
"""A single scene is shown at most this large, in pixels; several share the room."""
MOST = 9
"""Maps of scenes on one page; of further scenes only the numbers."""
LEVELS = 12
SHIFT = 0.1
"""Difference of the water shares of chips and scene from which on the page says that they differ."""
SEEN = NDArray[np.bool_]


def scene_maps(run: Run, faults: list[str]) -> Section | None:
    """Show every mapped scene with its water area, the share that the model is unsure of, and the truth where it is known.

    Args:
        run: The run folder.
        faults: Takes the scenes that could not be read, with the reason.
    """
    blocks: list[Block] = []
    for i, (name, scene) in enumerate(run.scenes.items()):
        try:
            if i < MOST:
                blocks.append(_map(run, name, i, scene))
            else:
                blocks.append(Prose(((f"{title(run, name, scene)}. ", *_sentence(scene, name)),)))
        except (OSError, ValueError, KeyError, ImportError) as bad:
            faults.append(f"scenes/{name}: {bad or type(bad).__name__}; map left out")
        blocks += _truth_table(run, name, scene)
        if shift := shifted(run, scene):
            blocks.append(Prose(tuple((text,) for text in shift)))
        if items := _facts(run, scene):
            blocks.append(Facts(items))
    lead = "The same network over a whole scene, tile by tile, blended where tiles overlap. Every value is in the GeoTIFFs of the run folder."
    return Section("scene", "The map", lead, blocks) if blocks else None


def title(run: Run, name: str, scene: Scene) -> str:
    """Return what the page calls a scene: its source, and its size."""
    size = f", {count(scene.result.height)} × {count(scene.result.width)} pixels" if scene.result.height else ""
    return ("Simulated scene" if _simulated(run) else f"Scene {scene.result.source or name}") + size


def _simulated(run: Run) -> bool:
    return run.recipe is not None and run.recipe.scene is not None and run.recipe.scene.source == "simulated"


def value(scene: Scene, name: str, key: str, text: str) -> Cell:
    """Return a number of a scene as a cell that names its file and carries what speaks against the scene."""
    file = f"scenes/{name}{TRUTH}" if key.startswith("truth.") else f"scenes/{name}.json"
    key = key.removeprefix("truth.")
    return Cell(text, f"{key} of {file}", f"{file}|{key}", flags=doubtful(scene.result.flags))


def against_truth(scene: Scene, name: str) -> list[str | Cell]:
    """Return the middle of a sentence: what the truth is, where it is known."""
    truth = scene.truth
    if truth is None:
        return []
    true = value(scene, name, "truth.true_km2", area(truth.true_km2))
    scores = [(words, value(scene, name, f"truth.{key}", text)) for words, key, text in (
        ("IoU ", "iou", ratio(truth.iou)), ("precision ", "precision", ratio(truth.precision)), ("recall ", "recall", ratio(truth.recall)),
    )]  # fmt: skip
    parts: list[str | Cell] = [
        ", where ",
        true,
        f" is the known truth ({_over(truth.mapped_km2, truth.true_km2)} area): ",
    ]
    for i, (words, cell) in enumerate(scores):
        parts += [("" if i == 0 else ", ") + words, cell]
    return parts


def _over(mapped: float | None, true: float | None) -> str:
    """Say by how much an area is larger than the true one."""
    if mapped is None or not true:
        return DASH
    over = (mapped - true) / true
    return f"{'+' if over >= 0 else ''}{percent(over)}"


def true_share(scene: Scene) -> float | None:
    """Return the share of the seen area that truly is of the class; None where the truth is not known."""
    known = [finite(km2) for km2 in scene.result.class_km2.values()]
    whole = sum(km2 for km2 in known if km2 is not None)
    truth = scene.truth.true_km2 if scene.truth else None
    return truth / whole if truth is not None and whole and None not in known else None


def shifted(run: Run, scene: Scene) -> list[str]:
    """Say that the scene holds another share of the class than the chips that the network learned from, where it does."""
    learned, true = run.data.water_share.get("train"), true_share(scene)
    there = scene.result.share if true is None else true
    if learned is None or there is None or scene.result.klass != run.klass or abs(learned - there) < SHIFT:
        return []
    known = "is" if true is not None else "is, as mapped,"
    return [
        f"The chips that the network learned from are {percent(learned)} {run.klass}; the scene {known} {percent(there)}. "
        f"A network expects the share that it learned, so accuracy on chips does not carry over to such a scene."
    ]


def _truth_table(run: Run, name: str, scene: Scene) -> list[Block]:
    truth = scene.truth
    if truth is None:
        return []
    head = (
        (f"{truth.klass.capitalize()} of the whole scene", ""), ("Area", ""), ("Against the truth", "difference as a share of the true area"),
        ("IoU", "intersection over union with the truth"), ("Precision", "share of what is marked that is right"), ("Recall", "share of the truth that is found"),
    )  # fmt: skip
    scores = [value(scene, name, f"truth.{key}", ratio(number)) for key, number in
              (("iou", truth.iou), ("precision", truth.precision), ("recall", truth.recall))]  # fmt: skip
    rows = [line("true", value(scene, name, "truth.true_km2", area(truth.true_km2)), "", "", "", "")]
    for words, key, km2, beside in (
        ("mapped", "mapped_km2", truth.mapped_km2, scores),
        ("expected from probabilities", "expected_km2", truth.expected_km2, ["", "", ""]),
    ):
        rows.append(line(words, value(scene, name, f"truth.{key}", area(km2)), _over(km2, truth.true_km2), *beside))
    note = " ".join(
        part for part in (f"Over {count(truth.pixels)} seen pixels." if truth.pixels else "", truth.note) if part
    )
    return [Table(f"{title(run, name, scene)}: the map against the known truth", head, tuple(rows), note)]


def _facts(run: Run, scene: Scene) -> tuple[tuple[str, str], ...]:
    held = scene.result
    items = [
        (f"{held.klass.capitalize()} area", area(held.area_km2)),
        ("Unsure", _of(percent(held.unsure_share, 1), "of the seen pixels are close to the decision")),
        (f"Surely and possibly {held.klass}", _range(held.low_km2, held.high_km2)),
        ("Expected area", _of(area(held.expected_km2), "if the probabilities are calibrated")),
        ("Seen", _of(percent(held.seen_share, 1), "of the scene")),
        ("Source", f"{held.source} (simulated)" if _simulated(run) else held.source),
        ("Where", _where(scene.bbox) + (" (made up)" if _simulated(run) and scene.bbox else "")),
        ("When", scene.properties.datetime or ("made up, at no time" if _simulated(run) else "not known")),
        ("To know", "; ".join(held.flags)),
        ("Time to map", seconds(finite(held.seconds))),
    ]
    return tuple((term, what) for term, what in items if what and not what.startswith(DASH))


def _where(bbox: tuple[float, ...]) -> str:
    """Say the corners of a scene in degrees.

    Example:
        >>> _where((-61.02, -3.31, -60.9, -3.2))
        '61.020° W, 3.310° S to 60.900° W, 3.200° S'
    """
    if len(bbox) != 4:
        return ""
    west, south, east, north = bbox
    corners = [
        f"{abs(x):.3f}° {'W' if x < 0 else 'E'}, {abs(y):.3f}° {'S' if y < 0 else 'N'}"
        for x, y in ((west, south), (east, north))
    ]
    return " to ".join(corners)


def _range(low: float | None, high: float | None) -> str:
    return f"{area(low)} to {area(high)}" if low is not None and high is not None else DASH


def _of(amount: str, of: str) -> str:
    return f"{amount} {of}"


def _map(run: Run, name: str, index: int, scene: Scene) -> Swipes:
    folder = run.path / "scenes"
    side = round(SIDE / min(len(run.scenes), MOST) ** 0.5)
    classes, meters = _read(folder / _file(scene, name, "class"), side)
    seen = classes != 255
    colors = (*images.CLASSES, images.CLEAR)
    height, width = classes.shape
    shown = np.where(seen, classes % len(images.CLASSES), len(images.CLASSES)).astype(np.uint8)
    base = images.address(shown, colors)
    photo = _preview(folder / f"{name}.preview.npz", classes.shape)
    over, keys = _overlays(folder, scene, classes, side)
    doubt = _doubt(folder / _file(scene, name, "uncertainty"), seen)
    if photo is not None:
        left, right = (
            Layer("satellite image", images.address(photo), over),
            Layer(f"{scene.result.klass} map", base, over),
        )
    else:
        left, right = Layer(f"{scene.result.klass} map", base, over), Layer("where it is unsure", doubt, over)
    keys = [*([("water", scene.result.klass), ("land", "other")] if len(run.classes) == 2 else []), *keys]
    keys += [("unseen", "not seen")] if not seen.all() else []
    called = title(run, name, scene)
    pair = Swipe(
        f"scene-{index}", called, left, right, width, height, _sentence(scene, name), _small(folder, name, scene, seen, doubt),
        tuple(keys), _scale(meters, width), shown=0,
    )  # fmt: skip
    return Swipes(called, (pair,), large=True)


def _file(scene: Scene, name: str, layer: str) -> str:
    """Return the file of a layer; that of the probability is named by its class."""
    files = scene.result.files
    if layer == "probability":
        layer = next((key for key in files if key not in ("class", "uncertainty")), layer)
    return Path(files.get(layer, f"{name}.{layer}.tif")).name


def _overlays(
    folder: Path, scene: Scene, classes: NDArray[np.uint8], side: int
) -> tuple[tuple[tuple[str, str], ...], list[tuple[str, str]]]:
    """Return the mistakes of a map against its truth, and the truth itself, as overlays with their keys."""
    path = folder / f"{Path(scene.result.source).stem}.truth.tif"
    klass = scene.result.klass
    if scene.truth is None or not path.is_file() or klass not in scene.result.classes:
        return (), []
    truth, _ = _read(path, side)
    if truth.shape != classes.shape:
        raise ValueError(f"{path.name}: expected {classes.shape} pixels like the map, got {truth.shape}")
    valid = (truth != 255) & (classes != 255)
    said = (classes == scene.result.classes.index(klass)).astype(np.uint8)
    overlays = (("Mistakes", images.mistakes(said, truth, 1, valid)), ("Truth", images.found(truth, 1, valid)))
    return overlays, [("missed", f"{klass} missed"), ("invented", f"{klass} invented"), ("found", f"true {klass}")]


def _sentence(scene: Scene, name: str) -> tuple[str | Cell, ...]:
    klass, mapped, unsure = scene.result.klass, scene.result.area_km2, scene.result.unsure_share
    if mapped is None:
        return (f"{klass.capitalize()} as the model maps it; without a georeference there is no area.",)
    parts: list[str | Cell] = [
        "Mapped: ",
        value(scene, name, "area_km2", area(mapped)),
        f" of {klass}",
        *against_truth(scene, name),
    ]
    if unsure is not None:
        parts += ["; the model is unsure of ", value(scene, name, "unsure_share", percent(unsure, 1)), " of the scene"]
    return (*parts, ".")


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


PALE, DEEP = (240, 236, 226), (16, 78, 139)
CALM, ALARM = (246, 242, 233), (176, 62, 14)


def _doubt(path: Path, seen: SEEN) -> str:
    held = _share(path, seen.shape)
    if held is None:
        raise OSError(f"{path.name} is missing")
    value, there = held
    return images.address(images.levels(value, there & seen, LEVELS, 0.0, 1.0), images.ramp(CALM, ALARM, LEVELS))


def _small(folder: Path, name: str, scene: Scene, seen: SEEN, doubt: str) -> tuple[Panel, ...]:
    """Return probability and uncertainty beside the map, each with its scale."""
    panels = []
    held = _share(folder / _file(scene, name, "probability"), seen.shape)
    if held is not None:
        index = images.levels(held[0], held[1] & seen, LEVELS, 0.0, 1.0)
        picture = images.address(index, images.ramp(PALE, DEEP, LEVELS))
        panels.append(Panel(f"probability of {scene.result.klass}", picture, Ramp("0", "1", (PALE, DEEP))))
    panels.append(Panel("where it is unsure (entropy)", doubt, Ramp("0, sure", "1, no idea", (CALM, ALARM))))
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

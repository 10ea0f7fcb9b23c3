"""The section on mapped scenes: the scene, its map, the truth where it is known, probability and uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray
from seawall.records import finite_or_none
from seawall.report import images
from seawall.report.elements import (
    ColorScale,
    DefinitionList,
    ImageLayer,
    ImagePair,
    ImagePairs,
    PageBlock,
    Paragraphs,
    Section,
    SmallImage,
    Table,
    table_row,
)
from seawall.report.flags import find_flag, warning_flags
from seawall.report.formatting import DASH, area_text, count_text, duration_text, percent_text, ratio_text
from seawall.report.record_index import TableCell
from seawall.report.run_facts import MappedScene
from seawall.report.run_reader import TRUTH_SUFFIX, RunFolder

MAP_SIDE = 900
"""Longest side of a shown map, in pixels; with several maps, of all together."""
MAX_MAPS = 9
"""Maps on one page; of further scenes only the numbers are shown."""
COLOR_LEVELS = 12
OTHER_LAYERS = ("class", "uncertainty", "sets", "mutual-information", "margin", "variation-ratio")
"""Layers of a map other than the probability, which is named by its class."""
MIN_SHARE_DIFFERENCE = 0.1
"""Smallest difference between the class shares of chips and scene that the page mentions."""


def scene_section(run: RunFolder, unreadable: list[str]) -> Section | None:
    """Show every mapped scene with its area, the share that the model is unsure of, and the truth where it is known.

    Args:
        run: The run folder.
        unreadable: List to which scenes that cannot be read are added, with the reason.
    """
    blocks: list[PageBlock] = []
    for i, (name, scene) in enumerate(run.scenes.items()):
        try:
            if i < MAX_MAPS:
                blocks.append(_map_pair(run, name, i, scene))
            else:
                blocks.append(Paragraphs(((f"{scene_title(run, name, scene)}. ", *_scene_caption(scene, name)),)))
        except (OSError, ValueError, KeyError, ImportError) as bad:
            unreadable.append(f"scenes/{name}: {bad or type(bad).__name__}; map left out")
        blocks += _truth_table(run, name, scene)
        if shift := share_difference(run, scene):
            blocks.append(Paragraphs(tuple((text,) for text in shift)))
        if items := _scene_facts(run, scene):
            blocks.append(DefinitionList(items))
    lead = "The same network over a whole scene, tile by tile, blended where tiles overlap. Every value is in the GeoTIFFs of the run folder."
    return Section("scene", "The map", lead, blocks) if blocks else None


def scene_title(run: RunFolder, name: str, scene: MappedScene) -> str:
    """Return the title of a scene: its source and its size in pixels."""
    size = (
        f", {count_text(scene.result.height)} × {count_text(scene.result.width)} pixels" if scene.result.height else ""
    )
    return ("Simulated scene" if _is_simulated(run) else f"Scene {scene.result.source or name}") + size


def _is_simulated(run: RunFolder) -> bool:
    return run.recipe is not None and run.recipe.scene is not None and run.recipe.scene.source == "simulated"


def scene_cell(scene: MappedScene, name: str, key: str, text: str) -> TableCell:
    """Return a number of a scene as a cell with its file and key, and with the warnings of the scene."""
    file = f"scenes/{name}{TRUTH_SUFFIX}" if key.startswith("truth.") else f"scenes/{name}.json"
    key = key.removeprefix("truth.")
    return TableCell(text, f"{key} of {file}", f"{file}|{key}", flags=warning_flags(scene.result.flags))


def truth_words(scene: MappedScene, name: str) -> list[str | TableCell]:
    """Return the part of a sentence that compares the map with the known truth; empty where it is not known."""
    truth = scene.truth
    if truth is None:
        return []
    true = scene_cell(scene, name, "truth.true_km2", area_text(truth.true_km2))
    scores = [(words, scene_cell(scene, name, f"truth.{key}", text)) for words, key, text in (
        ("IoU ", "iou", ratio_text(truth.iou)), ("precision ", "precision", ratio_text(truth.precision)), ("recall ", "recall", ratio_text(truth.recall)),
    )]  # fmt: skip
    parts: list[str | TableCell] = [
        ", where ",
        true,
        f" is the known truth ({_excess_text(truth.mapped_km2, truth.true_km2)} area): ",
    ]
    for i, (words, cell) in enumerate(scores):
        parts += [("" if i == 0 else ", ") + words, cell]
    return parts


def _excess_text(mapped: float | None, true: float | None) -> str:
    """Format how much larger an area is than the true one, as a percentage."""
    if mapped is None or not true:
        return DASH
    over = (mapped - true) / true
    return f"{'+' if over >= 0 else ''}{percent_text(over)}"


def true_class_share(scene: MappedScene) -> float | None:
    """Return the true share of the class in the seen area; None where it is not known."""
    known = [finite_or_none(km2) for km2 in scene.result.class_km2.values()]
    whole = sum(km2 for km2 in known if km2 is not None)
    truth = scene.truth.true_km2 if scene.truth else None
    return truth / whole if truth is not None and whole and None not in known else None


def share_difference(run: RunFolder, scene: MappedScene) -> list[str]:
    """Return a sentence where the share of the class differs between the training chips and the scene, else nothing."""
    learned, true = run.data.water_share.get("train"), true_class_share(scene)
    there = scene.result.share if true is None else true
    if (
        learned is None
        or there is None
        or scene.result.klass != run.klass
        or abs(learned - there) < MIN_SHARE_DIFFERENCE
    ):
        return []
    known = "is" if true is not None else "is, as mapped,"
    return [
        f"The chips that the network learned from are {percent_text(learned)} {run.klass}; the scene {known} {percent_text(there)}. "
        f"A network expects the share that it learned, so accuracy on chips does not carry over to such a scene."
    ]


def _truth_table(run: RunFolder, name: str, scene: MappedScene) -> list[PageBlock]:
    truth = scene.truth
    if truth is None:
        return []
    head = (
        (f"{truth.klass.capitalize()} of the whole scene", ""), ("Area", ""), ("Against the truth", "difference as a share of the true area"),
        ("IoU", "intersection over union with the truth"), ("Precision", "share of what is marked that is right"), ("Recall", "share of the truth that is found"),
    )  # fmt: skip
    scores = [scene_cell(scene, name, f"truth.{key}", ratio_text(number)) for key, number in
              (("iou", truth.iou), ("precision", truth.precision), ("recall", truth.recall))]  # fmt: skip
    rows = [table_row("true", scene_cell(scene, name, "truth.true_km2", area_text(truth.true_km2)), "", "", "", "")]
    for words, key, km2, beside in (
        ("mapped", "mapped_km2", truth.mapped_km2, scores),
        ("expected from probabilities", "expected_km2", truth.expected_km2, ["", "", ""]),
    ):
        rows.append(
            table_row(
                words,
                scene_cell(scene, name, f"truth.{key}", area_text(km2)),
                _excess_text(km2, truth.true_km2),
                *beside,
            )
        )
    note = " ".join(
        part for part in (f"Over {count_text(truth.pixels)} seen pixels." if truth.pixels else "", truth.note) if part
    )
    return [Table(f"{scene_title(run, name, scene)}: the map against the known truth", head, tuple(rows), note)]


def _scene_facts(run: RunFolder, scene: MappedScene) -> tuple[tuple[str, str], ...]:
    result = scene.result
    items = [
        (f"{result.klass.capitalize()} area", area_text(result.area_km2)),
        ("Unsure", f"{percent_text(result.unsure_share, 1)} of the seen pixels are close to the decision"),
        (f"Surely and possibly {result.klass}", _area_range(result.low_km2, result.high_km2)),
        ("Expected area", f"{area_text(result.expected_km2)} if the probabilities are calibrated"),
        ("Seen", f"{percent_text(result.seen_share, 1)} of the scene"),
        ("Source", f"{result.source} (simulated)" if _is_simulated(run) else result.source),
        ("Where", _bbox_text(scene.bbox) + (" (made up)" if _is_simulated(run) and scene.bbox else "")),
        ("When", scene.properties.datetime or ("made up, at no time" if _is_simulated(run) else "not known")),
        ("To know", "; ".join(_flag_sentence(text) for text in result.flags)),
        ("Time to map", duration_text(finite_or_none(result.seconds))),
    ]
    return tuple((term, what) for term, what in items if what and not what.startswith(DASH))


def _flag_sentence(text: str) -> str:
    """Return the meaning of a flag; a text that holds more than the name of a flag stays as it is."""
    known = find_flag(text)
    return known.means.rstrip(".") if known and known.id == text else text


def _bbox_text(bbox: tuple[float, ...]) -> str:
    """Format the corners of a scene in degrees.

    Example:
        >>> _bbox_text((-61.02, -3.31, -60.9, -3.2))
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


def _area_range(low: float | None, high: float | None) -> str:
    return f"{area_text(low)} to {area_text(high)}" if low is not None and high is not None else DASH


def _map_pair(run: RunFolder, name: str, number: int, scene: MappedScene) -> ImagePairs:
    folder = run.path / "scenes"
    side = round(MAP_SIDE / min(len(run.scenes), MAX_MAPS) ** 0.5)
    classes, meters = _read_classes(folder / _layer_file(scene, name, "class"), side)
    seen = classes != 255
    colors = (*images.CLASS_COLORS, images.TRANSPARENT)
    height, width = classes.shape
    shown = np.where(seen, classes % len(images.CLASS_COLORS), len(images.CLASS_COLORS)).astype(np.uint8)
    base = images.data_url(shown, colors)
    photo = _read_preview(folder / f"{name}.preview.npz", classes.shape)
    over, legend = _truth_overlays(folder, scene, classes, side)
    uncertainty = _uncertainty_picture(folder / _layer_file(scene, name, "uncertainty"), seen)
    if photo is not None:
        left, right = (
            ImageLayer("satellite image", images.data_url(photo), over),
            ImageLayer(f"{scene.result.klass} map", base, over),
        )
    else:
        left, right = (
            ImageLayer(f"{scene.result.klass} map", base, over),
            ImageLayer("where it is unsure", uncertainty, over),
        )
    legend = [*([("water", scene.result.klass), ("land", "other")] if len(run.classes) == 2 else []), *legend]
    legend += [("unseen", "not seen")] if not seen.all() else []
    title_text = scene_title(run, name, scene)
    pair = ImagePair(
        f"scene-{number}", title_text, left, right, width, height, _scene_caption(scene, name), _small_maps(folder, name, scene, seen, uncertainty),
        tuple(legend), scale_bar(meters, width),
    )  # fmt: skip
    return ImagePairs(title_text, (pair,), large=True)


@dataclass(frozen=True)
class ThinnedMap:
    """The thinned-out layers of a map.

    Args:
        sets: (H, W) index of the sets, 255 where not seen.
        class_picture: The class map.
        photo: (H, W, 3) picture of the scene; None without one.
        panels: Probability and measures of uncertainty.
        meters: Meters per shown pixel; None without georeference.
    """

    sets: NDArray[np.uint8]
    class_picture: ImageLayer
    photo: NDArray[np.uint8] | None
    panels: tuple[SmallImage, ...]
    meters: float | None


def read_map_layers(folder: Path, name: str, scene: MappedScene, preview: Path | None) -> ThinnedMap:
    """Read the layers of a map for its page.

    Raises:
        OSError: A layer is missing.
    """
    classes, meters = _read_classes(folder / _layer_file(scene, name, "class"), MAP_SIDE)
    sets, _ = _read_classes(folder / _layer_file(scene, name, "sets"), MAP_SIDE)
    seen = classes != 255
    uncertainty = _uncertainty_picture(folder / _layer_file(scene, name, "uncertainty"), seen)
    panels = _small_maps(folder, name, scene, seen, uncertainty)
    disagreement = folder / _layer_file(scene, name, "mutual-information")
    if disagreement.is_file():
        scale = ColorScale("0, all passes agree", "1", (ENTROPY_LOW, ENTROPY_HIGH))
        panels = (*panels, SmallImage("where the passes disagree", _uncertainty_picture(disagreement, seen), scale))
    picture = ImageLayer(f"{scene.result.klass} map", images.class_map(classes, seen))
    photo = None if preview is None else _read_preview(preview, classes.shape)
    return ThinnedMap(sets, picture, photo, panels, meters)


def _layer_file(scene: MappedScene, name: str, layer: str) -> str:
    """Return the file name of a layer; the probability layer is named by its class."""
    files = scene.result.files
    if layer == "probability":
        layer = next((key for key in files if key not in OTHER_LAYERS), layer)
    return Path(files.get(layer, f"{name}.{layer}.tif")).name


def _truth_overlays(
    folder: Path, scene: MappedScene, classes: NDArray[np.uint8], side: int
) -> tuple[tuple[tuple[str, str], ...], list[tuple[str, str]]]:
    """Return the mistakes of a map and its truth as overlays, with their legend."""
    path = folder / f"{Path(scene.result.source).stem}.truth.tif"
    klass = scene.result.klass
    if scene.truth is None or not path.is_file() or klass not in scene.result.classes:
        return (), []
    truth, _ = _read_classes(path, side)
    if truth.shape != classes.shape:
        raise ValueError(f"{path.name}: expected {classes.shape} pixels like the map, got {truth.shape}")
    valid = (truth != 255) & (classes != 255)
    predicted = (classes == scene.result.classes.index(klass)).astype(np.uint8)
    overlays = (
        ("Mistakes", images.mistakes_overlay(predicted, truth, 1, valid)),
        ("Truth", images.found_overlay(truth, 1, valid)),
    )
    return overlays, [("missed", f"{klass} missed"), ("invented", f"{klass} invented"), ("found", f"true {klass}")]


def _scene_caption(scene: MappedScene, name: str) -> tuple[str | TableCell, ...]:
    klass, mapped, unsure = scene.result.klass, scene.result.area_km2, scene.result.unsure_share
    if mapped is None:
        return (f"{klass.capitalize()} as the model maps it; without a georeference there is no area.",)
    parts: list[str | TableCell] = [
        "Mapped: ",
        scene_cell(scene, name, "area_km2", area_text(mapped)),
        f" of {klass}",
        *truth_words(scene, name),
    ]
    if unsure is not None:
        parts += [
            "; the model is unsure of ",
            scene_cell(scene, name, "unsure_share", percent_text(unsure, 1)),
            " of the scene",
        ]
    return (*parts, ".")


def _read_classes(path: Path, side: int) -> tuple[NDArray[np.uint8], float | None]:
    """Read a thinned-out class map and the size of its pixels in meters; nodata becomes 255."""
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


def _read_share(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], BoolArray] | None:
    """Read a layer of values in [0, 1], thinned out to a shape, and its seen pixels; None without a file."""
    import rasterio
    from rasterio.enums import Resampling

    if not path.is_file():
        return None
    with rasterio.open(path, driver="GTiff") as source:
        data = source.read(1, out_shape=shape[:2], resampling=Resampling.nearest, masked=True)
        value = data.astype(np.float32) * source.scales[0] + source.offsets[0]
    seen = ~np.ma.getmaskarray(data)
    return np.ma.filled(value, 0).astype(np.float32), seen & np.isfinite(np.ma.filled(value, 0))


PROBABILITY_LOW, PROBABILITY_HIGH = (240, 236, 226), (16, 78, 139)
ENTROPY_LOW, ENTROPY_HIGH = (246, 242, 233), (176, 62, 14)


def _uncertainty_picture(path: Path, seen: BoolArray) -> str:
    layer = _read_share(path, seen.shape)
    if layer is None:
        raise OSError(f"{path.name} is missing")
    value, known = layer
    return images.data_url(
        images.quantize(value, known & seen, COLOR_LEVELS, 0.0, 1.0),
        images.color_ramp(ENTROPY_LOW, ENTROPY_HIGH, COLOR_LEVELS),
    )


def _small_maps(
    folder: Path, name: str, scene: MappedScene, seen: BoolArray, uncertainty: str
) -> tuple[SmallImage, ...]:
    """Return the pictures of probability and uncertainty, each with its color scale."""
    panels = []
    layer = _read_share(folder / _layer_file(scene, name, "probability"), seen.shape)
    if layer is not None:
        levels = images.quantize(layer[0], layer[1] & seen, COLOR_LEVELS, 0.0, 1.0)
        picture = images.data_url(levels, images.color_ramp(PROBABILITY_LOW, PROBABILITY_HIGH, COLOR_LEVELS))
        panels.append(
            SmallImage(
                f"probability of {scene.result.klass}",
                picture,
                ColorScale("0", "1", (PROBABILITY_LOW, PROBABILITY_HIGH)),
            )
        )
    panels.append(
        SmallImage(
            "where it is unsure (entropy)",
            uncertainty,
            ColorScale("0, sure", "1, no idea", (ENTROPY_LOW, ENTROPY_HIGH)),
        )
    )
    return tuple(panels)


def _read_preview(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Read the preview of the scene, thinned out like the map; None where the run has none."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as held:
        picture = held["rgb"]
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"{path.name}: expected uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    rows = np.linspace(0, picture.shape[0] - 1, shape[0]).round().astype(int)
    columns = np.linspace(0, picture.shape[1] - 1, shape[1]).round().astype(int)
    return np.asarray(picture[rows][:, columns], np.uint8)


def scale_bar(meters: float | None, width: int) -> tuple[float, str] | None:
    """Return a scale bar: its share of the map's width, and its length as text."""
    if not meters:
        return None
    whole = meters * width
    for length in (100_000, 50_000, 20_000, 10_000, 5_000, 2_000, 1_000, 500, 200, 100):
        if length <= whole / 3:
            return length / whole, f"{length // 1000} km" if length >= 1000 else f"{length} m"
    return None

"""Arrays as lossless PNG pictures in data URLs, and pairs of clean and attacked chips; a lossy format would change the noise."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, ByteArray, FloatArray
from seawall.records import CorruptionFacts, ThreatFacts
from seawall.report import images
from seawall.report.elements import ColorScale, ImageLayer, ImagePair, ImagePairs, PageBlock, Sentence, SmallImage
from seawall.report.formatting import ThreatLabel, level_text, number_text, plural
from seawall.report.record_index import CLEAN_METHOD, RecordIndex, TableCell, display_name
from seawall.report.run_facts import ExampleFacts
from seawall.report.run_reader import RunFolder, read_example

RGBA = tuple[int, int, int, int]
PixelT = TypeVar("PixelT", bound=np.generic)

TRANSPARENT: RGBA = (0, 0, 0, 0)
UNSEEN_COLOR: RGBA = (128, 128, 128, 60)
FOUND_COLORS: tuple[RGBA, ...] = (TRANSPARENT, (64, 196, 255, 150), UNSEEN_COLOR)
MISTAKE_COLORS: tuple[RGBA, ...] = (TRANSPARENT, (255, 92, 40, 215), (255, 214, 10, 215), UNSEEN_COLOR)
"""Overlay of mistakes: right, missed, invented, not counted."""

CLASS_COLORS: tuple[RGBA, ...] = (
    (226, 218, 200, 255), (28, 106, 168, 255), (106, 153, 78, 255), (188, 71, 73, 255),
    (242, 187, 78, 255), (122, 104, 166, 255), (120, 120, 120, 255), (60, 160, 150, 255),
)  # fmt: skip
"""Colors of class maps: land, water, then others that color-blind readers can tell apart."""


def encode_png(image: ByteArray, colors: Sequence[RGBA] = ()) -> bytes:
    """Encode a picture as PNG without loss.

    Args:
        image: (H, W, 3) red, green, blue; or (H, W) indices into `colors`, gray values without colors.
        colors: Red, green, blue and opacity per index.

    Example:
        >>> encode_png(np.zeros((2, 2), np.uint8))[:4]
        b'\\x89PNG'
    """
    import cv2

    pixels = image
    if colors:
        pixels = np.array(colors, np.uint8)[image]
        if (pixels[..., 3] == 255).all():
            pixels = pixels[..., :3]
    if pixels.ndim == 3:
        order = [2, 1, 0, 3][: pixels.shape[2]]  # OpenCV stores blue first
        pixels = pixels[..., order]
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return bytes(data)


def data_url(image: ByteArray, colors: Sequence[RGBA] = ()) -> str:
    """Return a picture as a data URL; the arguments are those of `encode_png`."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image, colors)).decode()


def thin_out(image: NDArray[PixelT], side: int) -> NDArray[PixelT]:
    """Keep every n-th row and column so that no side has more than `side` pixels; values are not averaged."""
    step = -(-max(image.shape[:2]) // side)
    return image[::step, ::step] if step > 1 else image


def color_ramp(low: tuple[int, int, int], high: tuple[int, int, int], levels: int) -> tuple[RGBA, ...]:
    """Return `levels` colors from low to high, and a transparent one for unseen pixels."""
    colors: list[RGBA] = []
    for i in range(levels):
        t = i / max(levels - 1, 1)
        r, g, b = (round(a + (z - a) * t) for a, z in zip(low, high, strict=True))
        colors.append((r, g, b, 255))
    return (*colors, TRANSPARENT)


def quantize(value: FloatArray, seen: BoolArray, levels: int, low: float, high: float) -> ByteArray:
    """Return the index of each value among `levels` equal intervals of [low, high]; unseen pixels get `levels`."""
    scaled = np.clip((np.nan_to_num(value) - low) / ((high - low) or 1.0), 0, 1)
    return np.where(seen, np.minimum(scaled * levels, levels - 1), levels).astype(np.uint8)


def found_overlay(prediction: NDArray[np.generic], klass: int, valid: BoolArray) -> str:
    """Return the overlay of the pixels that are predicted as a class."""
    index = np.where(valid, (prediction == klass).astype(np.uint8), 2)
    return data_url(index.astype(np.uint8), FOUND_COLORS)


def mistakes_overlay(prediction: NDArray[np.generic], label: NDArray[np.generic], klass: int, valid: BoolArray) -> str:
    """Return the overlay of a class's false negatives and false positives."""
    predicted, labelled = prediction == klass, label == klass
    index = np.where(labelled & ~predicted, 1, np.where(predicted & ~labelled, 2, 0))
    return data_url(np.where(valid, index, 3).astype(np.uint8), MISTAKE_COLORS)


def class_map(labels: NDArray[np.generic], valid: BoolArray | None = None) -> str:
    """Return a class map; pixels that are not valid are transparent."""
    index = np.clip(labels.astype(np.int64), 0, None) % len(CLASS_COLORS)
    if valid is not None:
        index = np.where(valid, index, len(CLASS_COLORS))
    return data_url(index.astype(np.uint8), (*CLASS_COLORS, TRANSPARENT))


CHIP_SIDE = 320
"""Longest side of a shown chip, in pixels."""
MAX_PICTURE_BYTES = 3_400_000
"""Bytes of pictures of chips on one page."""

ExampleArrays = Mapping[str, NDArray[np.generic]]


def example_chips(
    run: RunFolder, index: RecordIndex, unreadable: list[str], *, corrupted: bool = False
) -> list[PageBlock]:
    """Return the example chips as image pairs, until the pictures reach MAX_PICTURE_BYTES.

    Args:
        run: The run folder.
        index: Its records.
        unreadable: List to which examples that cannot be read are added, with the reason.
        corrupted: Those of corruptions instead of those of attacks.
    """
    pairs: list[ImagePair] = []
    spent = left = 0
    for path in run.examples:
        try:
            example = read_example(path)
            if (example.severity is not None) != corrupted:
                continue
            if spent > MAX_PICTURE_BYTES:
                left += 1
                continue
            pair = _chip_pair(run, index, path, example, len(pairs))
        except (OSError, ValueError, KeyError, EOFError, IndexError) as bad:
            fault = f"examples/{path.name}: {bad or type(bad).__name__}; left out"
            unreadable += [fault] if fault not in unreadable else []
            continue
        spent += _picture_bytes(pair)
        pairs.append(pair)
    if not pairs:
        return []
    note = (
        "Drag, or use the arrow keys: the clean chip lies under the attacked one. The images hardly differ; the maps do. "
        "Pictures are lossless; a pair is stretched alike, each pair for itself, so that dark scenes can be seen. Shown are three of the bands that the model sees."
    )
    if corrupted:
        note = (
            "Drag, or use the arrow keys: the clean chip lies under the corrupted one, at the largest severity of the corruptions that cost most. "
            "Both are stretched by the clean chip, so that haze is bright and shadow dark. Shown are three of the bands that the model sees."
        )
    if left:
        note += f" {plural(left, 'more example')} in the run folder."
    title = "Clean and corrupted, one chip per corruption" if corrupted else "Clean and attacked, chip by chip"
    return [ImagePairs(title, tuple(pairs), note)]


def _picture_bytes(pair: ImagePair) -> int:
    overlays = [overlay for side in (pair.left, pair.right) for _, overlay in side.overlays]
    panels = [panel.picture for panel in pair.panels]
    return sum(map(len, (pair.left.picture, pair.right.picture, *overlays, *panels)))


def _chip_pair(run: RunFolder, index: RecordIndex, path: Path, example: ExampleFacts, number: int) -> ImagePair:
    with np.load(path, allow_pickle=False) as held:
        arrays: ExampleArrays = {name: held[name] for name in held.files}
    klass = run.classes.index(run.klass)
    valid = (
        _thinned_classes(arrays["valid"]).astype(bool)
        if "valid" in arrays
        else np.ones(_thinned_classes(arrays["label"]).shape, bool)
    )
    label = _thinned_classes(arrays["label"])
    clean, attacked = _checked_picture(arrays["clean"]), _checked_picture(arrays["attacked"])
    preds = _thinned_classes(arrays["pred_clean"]), _thinned_classes(arrays["pred_attacked"])
    after = label, valid
    if "label_after" in arrays and "valid_after" in arrays:
        after = _thinned_classes(arrays["label_after"]), _thinned_classes(arrays["valid_after"]).astype(bool)
    if (
        len(
            {
                clean.shape[:2],
                attacked.shape[:2],
                label.shape,
                valid.shape,
                preds[0].shape,
                preds[1].shape,
                after[0].shape,
                after[1].shape,
            }
        )
        != 1
    ):
        raise ValueError("pictures, labels and predictions differ in size")
    layers = [
        ImageLayer(name, images.data_url(photo), (
            ("Mistakes", images.mistakes_overlay(pred, truth, klass, counts)), (f"{run.klass.capitalize()} found", images.found_overlay(pred, klass, counts)),
        ))
        for name, photo, pred, truth, counts in (
            ("clean", clean, preds[0], label, valid), ("corrupted" if example.quantity else "attacked", attacked, preds[1], *after)
        )
    ]  # fmt: skip
    chip = example.chip or path.stem
    legend = (("missed", f"{run.klass} missed"), ("invented", f"{run.klass} invented"), ("found", f"{run.klass} found"))
    return ImagePair(
        f"{'corrupted' if example.quantity else 'swipe'}-{number}", chip, layers[0], layers[1], clean.shape[1], clean.shape[0],
        _chip_caption(index, chip, example), _chip_panels(index, example, arrays, label, preds, valid, after), legend, shown=1,
    )  # fmt: skip


def _chip_caption(index: RecordIndex, chip: str, example: ExampleFacts) -> Sentence:
    model, method, threat = example.model, example.method, example.threat
    where = f", {display_name(method)} within {index.threat(threat).budget}" if method else ""
    if example.quantity:
        facts = CorruptionFacts(example.severity, example.level, example.quantity, example.level_unit)
        where = f", {method} of severity {number_text(example.severity)} ({level_text(facts)})"
    parts: list[str | TableCell] = [index.display_name(model) + where]
    ious = [index.chip_iou((model, *CLEAN_METHOD), chip), index.chip_iou((model, method, threat), chip)]
    if all(cell.key for cell in ious):
        parts += [f": {index.klass} IoU ", ious[0], " becomes ", ious[1]]
    return (*parts, ".")


def _chip_panels(
    index: RecordIndex,
    example: ExampleFacts,
    arrays: ExampleArrays,
    label: NDArray[np.generic],
    preds: tuple[NDArray[np.generic], NDArray[np.generic]],
    valid: NDArray[np.bool_],
    truth: tuple[NDArray[np.generic], NDArray[np.bool_]],
) -> tuple[SmallImage, ...]:
    """Return the small pictures under a pair: label, noise, target, predictions, differences.

    `truth` is the label and what counts of it under the corruption, which may have moved both.
    """
    if example.quantity:
        return (
            SmallImage("label", images.class_map(truth[0], truth[1])),
            SmallImage("map, corrupted", images.class_map(preds[1], truth[1])),
            SmallImage("what changed", _difference_map(preds[0], preds[1], valid & truth[1])),
        )
    panels = [SmallImage("label", images.class_map(label, valid))]
    for name, words in (("noise", "noise"), ("noise_restricted", "noise on the class only")):
        if name in arrays:
            panels.append(_noise_panel(index, example, arrays[name], words))
    if "target" in arrays:
        panels.append(SmallImage("the adversary’s target", images.class_map(_thinned_classes(arrays["target"]), valid)))
    panels += [
        SmallImage("map, clean", images.class_map(preds[0], valid)),
        SmallImage("map, attacked", images.class_map(preds[1], valid)),
        SmallImage("what changed", _difference_map(preds[0], preds[1], valid)),
    ]
    if "pred_restricted" in arrays:
        third = _thinned_classes(arrays["pred_restricted"])
        panels += [
            SmallImage("map, restricted noise", images.class_map(third, valid)),
            SmallImage("what changed, restricted", _difference_map(preds[0], third, valid)),
        ]
    return tuple(panels)


DARKER, UNCHANGED, BRIGHTER = (24, 74, 128), (244, 242, 236), (156, 66, 18)
NOISE_LEVELS = 13


def _noise_panel(index: RecordIndex, example: ExampleFacts, picture: NDArray[np.generic], words: str) -> SmallImage:
    """Return the noise, averaged over the bands of the picture, with its scale in data units."""
    mean = (_checked_picture(picture, 160).astype(np.float32).mean(2) - 128) / 127
    colors = (
        *images.color_ramp(DARKER, UNCHANGED, NOISE_LEVELS // 2 + 1)[:-1],
        *images.color_ramp(UNCHANGED, BRIGHTER, NOISE_LEVELS // 2 + 1)[1:],
    )
    levels = images.quantize(mean, np.ones(mean.shape, bool), NOISE_LEVELS, -1.0, 1.0)
    ends = ("darkest", "brightest")
    if example.largest_change is not None:
        unit = index.threat(example.threat).facts.unit
        size = ThreatLabel("", ThreatFacts("linf", (example.largest_change,), unit)).budget
        ends = (f"−{size.split(' ')[0]}", f"+{size}")
    bands = f", mean of {', '.join(dict.fromkeys(example.preview_bands))}" if example.preview_bands else ""
    return SmallImage(words + bands, images.data_url(levels, colors), ColorScale(*ends, (DARKER, UNCHANGED, BRIGHTER)))


def _difference_map(before: NDArray[np.generic], after: NDArray[np.generic], valid: NDArray[np.bool_]) -> str:
    colors = ((236, 236, 232, 255), (200, 60, 30, 255), images.TRANSPARENT)
    return images.data_url(np.where(valid, (before != after).astype(np.uint8), 2).astype(np.uint8), colors)


def _checked_picture(image: NDArray[np.generic], side: int = CHIP_SIDE) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"expected a uint8 picture (H, W, 3), got {image.dtype} {image.shape}")
    return images.thin_out(image.astype(np.uint8, copy=False), side)


def _thinned_classes(classes: NDArray[np.generic]) -> NDArray[np.generic]:
    return images.thin_out(classes if classes.ndim == 2 else classes[..., 0], CHIP_SIDE)

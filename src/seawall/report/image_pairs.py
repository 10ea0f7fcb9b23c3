"""Pictures that a reader can swipe: a chip before and after the attack, a scene and what the model makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.report import images
from seawall.report.elements import Block, Layer, Panel, Ramp, Sentence, Swipe, Swipes
from seawall.report.formatting import Budget, many, ratio
from seawall.report.record_index import CLEAN, Book, Cell, key_text, said
from seawall.report.run_reader import Example, Run, read_example

SIDE = 320
"""Chips are shown at most this large, in pixels."""
BUDGET = 3_400_000
"""Bytes of pictures of chips on one page."""

Arrays = Mapping[str, NDArray[np.generic]]


def chips(run: Run, book: Book, faults: list[str]) -> list[Block]:
    """Return the example chips as swipe pairs, as many as the page can hold.

    Args:
        run: The run folder.
        book: Its records.
        faults: Takes the examples that could not be read, with the reason.
    """
    pairs: list[Swipe] = []
    spent = left = 0
    for path in run.examples:
        if spent > BUDGET:
            left += 1
            continue
        try:
            pair = _chip(run, book, path, len(pairs))
        except (OSError, ValueError, KeyError, EOFError, IndexError) as bad:
            faults.append(f"examples/{path.name}: {bad or type(bad).__name__}; left out")
            continue
        spent += _weight(pair)
        pairs.append(pair)
    if not pairs:
        return []
    note = (
        "Drag, or use the arrow keys: the clean chip lies under the attacked one. The images hardly differ; the maps do. "
        "Pictures are lossless; a pair is stretched alike, each pair for itself, so that dark scenes can be seen. Shown are three of the bands that the model sees."
    )
    if left:
        note += f" {many(left, 'more example')} in the run folder."
    return [Swipes("Clean and attacked, chip by chip", tuple(pairs), note)]


def _weight(pair: Swipe) -> int:
    overlays = [overlay for side in (pair.left, pair.right) for _, overlay in side.overlays]
    panels = [panel.picture for panel in pair.panels]
    return sum(map(len, (pair.left.picture, pair.right.picture, *overlays, *panels)))


def _chip(run: Run, book: Book, path: Path, index: int) -> Swipe:
    with np.load(path, allow_pickle=False) as held:
        arrays: Arrays = {name: held[name] for name in held.files}
    told = read_example(path)
    klass = run.classes.index(run.klass)
    valid = _thin(arrays["valid"]).astype(bool) if "valid" in arrays else np.ones(_thin(arrays["label"]).shape, bool)
    label = _thin(arrays["label"])
    clean, attacked = _photo(arrays["clean"]), _photo(arrays["attacked"])
    preds = _thin(arrays["pred_clean"]), _thin(arrays["pred_attacked"])
    if len({clean.shape[:2], attacked.shape[:2], label.shape, valid.shape, preds[0].shape, preds[1].shape}) != 1:
        raise ValueError("pictures, labels and predictions differ in size")
    layers = [
        Layer(name, images.address(photo), (
            ("Mistakes", images.mistakes(pred, label, klass, valid)), (f"{run.klass.capitalize()} found", images.found(pred, klass, valid)),
        ))
        for name, photo, pred in (("clean", clean, preds[0]), ("attacked", attacked, preds[1]))
    ]  # fmt: skip
    chip = told.chip or path.stem
    keys = (("missed", f"{run.klass} missed"), ("invented", f"{run.klass} invented"), ("found", f"{run.klass} found"))
    return Swipe(
        f"swipe-{index}", chip, layers[0], layers[1], clean.shape[1], clean.shape[0],
        _caption(book, chip, told), _panels(book, told, arrays, label, preds, valid), keys, shown=1,
    )  # fmt: skip


def _caption(book: Book, chip: str, told: Example) -> Sentence:
    model, method, threat = told.model, told.method, told.threat
    where = f", {said(method)} within {book.budget(threat).spoken}" if method else ""
    parts: list[str | Cell] = [book.said(model) + where]
    ious = [_iou(book, (model, *CLEAN), chip), _iou(book, (model, method, threat), chip)]
    if all(cell.key for cell in ious):
        parts += [f": {book.klass} IoU ", ious[0], " becomes ", ious[1]]
    return (*parts, ".")


def _iou(book: Book, setup: tuple[str, str, str], chip: str) -> Cell:
    held, row = book.counts(setup).get(chip), book.record(setup, "tp", book.klass, chip=chip)
    if held is None or row is None:
        return Cell(ratio(None), "not measured in this run")
    what = f"tp / (tp + fp + fn) of chip {chip}, {setup[1]} {setup[2]}".strip()
    return Cell(ratio(held.iou), what, key_text(row), flags=book.flags(setup))


def _panels(
    book: Book,
    told: Example,
    arrays: Arrays,
    label: NDArray[np.generic],
    preds: tuple[NDArray[np.generic], NDArray[np.generic]],
    valid: NDArray[np.bool_],
) -> tuple[Panel, ...]:
    """Return the small pictures under a pair: label, noise, target, predictions, differences."""
    panels = [Panel("label", images.classes(label, valid))]
    for name, words in (("noise", "noise"), ("noise_restricted", "noise on the class only")):
        if name in arrays:
            panels.append(_noise(book, told, arrays[name], words))
    if "target" in arrays:
        panels.append(Panel("the adversary’s target", images.classes(_thin(arrays["target"]), valid)))
    panels += [
        Panel("map, clean", images.classes(preds[0], valid)),
        Panel("map, attacked", images.classes(preds[1], valid)),
        Panel("what changed", _changed(preds[0], preds[1], valid)),
    ]
    if "pred_restricted" in arrays:
        third = _thin(arrays["pred_restricted"])
        panels += [
            Panel("map, restricted noise", images.classes(third, valid)),
            Panel("what changed, restricted", _changed(preds[0], third, valid)),
        ]
    return tuple(panels)


DARKER, NONE, BRIGHTER = (24, 74, 128), (244, 242, 236), (156, 66, 18)
STEPS = 13


def _noise(book: Book, told: Example, picture: NDArray[np.generic], words: str) -> Panel:
    """Return the noise, averaged over the bands of the picture, with its scale in data units."""
    mean = (_photo(picture, 160).astype(np.float32).mean(2) - 128) / 127
    colors = (*images.ramp(DARKER, NONE, STEPS // 2 + 1)[:-1], *images.ramp(NONE, BRIGHTER, STEPS // 2 + 1)[1:])
    index = images.levels(mean, np.ones(mean.shape, bool), STEPS, -1.0, 1.0)
    ends = ("darkest", "brightest")
    if told.largest_change is not None:
        unit = book.budget(told.threat).unit
        size = Budget("", "linf", (told.largest_change,), unit).spoken
        ends = (f"−{size.split(' ')[0]}", f"+{size}")
    bands = f", mean of {', '.join(dict.fromkeys(told.preview_bands))}" if told.preview_bands else ""
    return Panel(words + bands, images.address(index, colors), Ramp(*ends, (DARKER, NONE, BRIGHTER)))


def _changed(before: NDArray[np.generic], after: NDArray[np.generic], valid: NDArray[np.bool_]) -> str:
    colors = ((236, 236, 232, 255), (200, 60, 30, 255), images.CLEAR)
    return images.address(np.where(valid, (before != after).astype(np.uint8), 2).astype(np.uint8), colors)


def _photo(image: NDArray[np.generic], side: int = SIDE) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"expected a uint8 picture (H, W, 3), got {image.dtype} {image.shape}")
    return images.fit(image.astype(np.uint8, copy=False), side)


def _thin(image: NDArray[np.generic], side: int = SIDE) -> NDArray[np.generic]:
    step = -(-max(image.shape) // side)
    return image[::step, ::step] if image.ndim == 2 else image[..., 0][::step, ::step]

"""Labels that come from elsewhere: a wrong index threshold, another date, another source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seawall.errors import DataError, UsageError
from seawall.imagery.raster import read_raster
from seawall.keys import Keys
from seawall.labels.rule import IGNORE, parse_rule
from seawall.poison.boundary import shore_distance
from seawall.poison.budget import allowance, check_budget, check_class
from seawall.poison.ground import Ground, Label, relabel
from seawall.poison.pixels import correlated
from seawall.registry import register
from seawall.types import Batch

LabelSource = Callable[[Batch], Tensor]
"""From a batch to other labels of the same chips, (B, H, W); a negative label is unknown there."""

PATCH_PX = 8.0  # correlation length of the part that is taken over when the budget does not hold all of it


def replaced(ground: Ground, other: Label, budget: float) -> Label:
    """Take over another label where it differs, in patches and as far as the budget allows.

    Args:
        ground: The chip.
        other: (H, W) labels; negative where unknown.
        budget: Share of the valid pixels that may change.
    """
    differ = ground.valid & (other >= 0) & (other != ground.label)
    cap = allowance(budget, ground.pixels)
    if np.count_nonzero(differ) > cap:
        differ = ground.first(differ, correlated(ground, PATCH_PX, "patches"), cap)
    return np.where(differ, other, ground.label)


def stored_array(name: str, folder: str, chip: str) -> NDArray[np.generic]:
    """Read the array of a chip, `<chip>.npy` or `<chip>.tif`, from a folder.

    Args:
        name: The noise that asks, for the message.
        folder: Where the arrays are.
        chip: Id of the chip; it cannot lead out of the folder.

    Raises:
        DataError: The folder has no readable array of that chip.
    """
    home = Path(folder).resolve()
    for suffix in (".npy", ".tif"):
        path = (home / f"{chip}{suffix}").resolve()
        if not path.is_relative_to(home) or not path.is_file():
            continue
        if suffix == ".tif":
            raster = read_raster(path)
            return np.asarray(np.where(raster.seen, raster.data, -1))
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except (ValueError, OSError, EOFError) as bad:
            raise DataError(f"{path}: expected a plain NumPy array, got {bad}; write it again with numpy.save") from bad
    raise DataError(f"{name}: expected {chip}.npy or {chip}.tif in {folder}, got neither; write one for every chip")


def _plane(name: str, found: NDArray[np.generic], shape: tuple[int, ...]) -> Label:
    flat = found[0] if found.ndim == len(shape) + 1 and found.shape[0] == 1 else found
    if flat.shape != shape:
        raise DataError(f"{name}: expected a label of shape {shape}, got {found.shape}; put it on the chip's grid")
    if flat.dtype.kind == "f" and not np.array_equal(flat, np.floor(flat)):
        raise DataError(f"{name}: expected whole class indices, got fractions; give a label, not a probability")
    return flat.astype(np.int64)


def _second(
    name: str, source: str | LabelSource, batch: Batch, simulate: Callable[[Ground], Label] | None
) -> Callable[[Ground], Label]:
    """Return where a chip's second label comes from: a simulation, a callable or a folder."""
    if simulate is not None:
        return simulate
    if callable(source):
        found = source(batch).detach().cpu().numpy()
        labels = _plane(name, found, tuple(batch.label.shape))
        return lambda ground: labels[ground.index]
    shape = tuple(batch.label.shape[1:])
    return lambda ground: _plane(name, stored_array(name, source, batch.chips[ground.index]), shape)


def _argument(name: str, source: str | LabelSource, word: str, default: int) -> int | None:
    """Return the number of "word" or "word:number", or None if the source is something else."""
    if not isinstance(source, str) or source.split(":", 1)[0] != word:
        return None
    number = source.partition(":")[2] or str(default)
    if not number.isdigit() or int(number) < 1:
        raise UsageError(
            f"{name}.source: expected '{word}' or '{word}:<pixels>', got {source!r}; such as {word}:{default}"
        )
    return int(number)


@register("noise", "stale", smoke={"source": "level:2"})
@final
@dataclass(frozen=True)
class Stale:
    """The label is of another date.

    Args:
        source: Labels of the other date: a folder with one `<chip>.npy` or `<chip>.tif` per chip, a callable from
            the batch to labels, or "level:<pixels>", which simulates a date of lower or higher water whose
            shoreline lies up to so many pixels away, farther where the shore happens to be flat.
        budget: Share of the valid pixels that may change; 1 takes the whole other label.
        klass: The class whose shoreline "level" moves.
    """

    source: str | LabelSource = "level:4"
    budget: float = 1.0
    klass: int = 1

    def __post_init__(self) -> None:
        check_budget("stale", self.budget)
        check_class("stale", self.klass)
        _argument("stale", self.source, "level", 4)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with labels of the other date.

        Raises:
            DataError: The other date lacks a chip or lies on another grid.
        """
        reach = _argument("stale", self.source, "level", 4)
        simulate = None if reach is None else (lambda ground: other_level(ground, reach))
        second = _second("stale", self.source, batch, simulate)
        own = keys.fold("stale")
        return relabel(batch, own, self.klass, lambda ground: replaced(ground, second(ground), self.budget))


def other_level(ground: Ground, reach_px: float) -> Label:
    """Simulate the label of a date with lower or higher water, each chip one or the other."""
    if not ground.mask.any() or not ground.rest.any():
        return ground.label
    rises = bool(ground.rng("level").integers(2))
    flat = 1 / (1 + np.exp(-correlated(ground, 2.0 * reach_px, "slope")))
    side = ground.rest if rises else ground.mask
    return ground.flip(side & (shore_distance(ground) < reach_px * flat))


@register("noise", "wrong-source", smoke={"source": "coarse:4"})
@final
@dataclass(frozen=True)
class WrongSource:
    """The label comes from a worse source, such as a rasterized vector layer or a global map.

    Args:
        source: A folder with one `<chip>.npy` or `<chip>.tif` per chip, a callable from the batch to labels, or
            "coarse:<pixels>", which simulates a map of blocks of so many pixels, each of the class if half of it is.
        budget: Share of the valid pixels that may change; 1 takes the whole other label.
        klass: The class that "coarse" maps.
    """

    source: str | LabelSource = "coarse:8"
    budget: float = 1.0
    klass: int = 1

    def __post_init__(self) -> None:
        check_budget("wrong-source", self.budget)
        check_class("wrong-source", self.klass)
        _argument("wrong-source", self.source, "coarse", 8)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with labels of the other source.

        Raises:
            DataError: The source lacks a chip or lies on another grid.
        """
        block = _argument("wrong-source", self.source, "coarse", 8)
        simulate = None if block is None else (lambda ground: coarser(ground, block))
        second = _second("wrong-source", self.source, batch, simulate)
        own = keys.fold("wrong-source")
        return relabel(batch, own, self.klass, lambda ground: replaced(ground, second(ground), self.budget))


def coarser(ground: Ground, block: int) -> Label:
    """Return the label as a map of square blocks would have it: each of the class if at least half of it is."""
    height, width = ground.label.shape
    rows, cols = np.arange(0, height, block), np.arange(0, width, block)

    def total(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.add.reduceat(np.add.reduceat(mask.astype(np.int64), rows, 0), cols, 1)

    wet = 2 * total(ground.mask) >= np.maximum(total(ground.valid), 1)
    fine = wet.repeat(block, 0)[:height].repeat(block, 1)[:, :width]
    return ground.flip(ground.valid & (fine != ground.mask))


@register("noise", "index-threshold", paper="SRIP report, GVCL 2024", smoke={"bands": ["B03", "B08"]})
@final
@dataclass(frozen=True)
class IndexThreshold:
    """The label is what a water index with a wrong threshold says.

    Args:
        bands: Band ids of the image's channels, in order; channels after them are not looked at.
        rule: The wrong rule, such as "ndwi >= -0.25" (the report's), "ndwi > 0" or "ndwi otsu else 0".
        budget: Share of the valid pixels that may change; 1 takes the whole index label.
        klass: The class that the index labels.
        unit: Unit of the image; an index needs reflectance.
    """

    bands: tuple[str, ...]
    rule: str = "ndwi >= -0.25"
    budget: float = 1.0
    klass: int = 1
    unit: str = "reflectance"

    def __post_init__(self) -> None:
        check_budget("index-threshold", self.budget)
        check_class("index-threshold", self.klass)
        parse_rule(self.rule)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch labelled by the index where that is defined.

        Raises:
            DataError: A band of the index is missing.
            RadiometryError: The image is not reflectance.
        """
        if batch.image.shape[1] < len(self.bands):
            raise DataError(
                f"index-threshold: expected the {len(self.bands)} bands {', '.join(self.bands)}, got "
                f"{batch.image.shape[1]} channels; name the channels of the image"
            )
        own = keys.fold("index-threshold")
        return relabel(batch, own, self.klass, lambda ground: self._change(ground, batch))

    def _change(self, ground: Ground, batch: Batch) -> Label:
        image = batch.image[ground.index, : len(self.bands)].detach().cpu().numpy().astype(np.float32)
        seen = batch.seen[ground.index].cpu().numpy()
        said = parse_rule(self.rule)(image, seen, self.bands, self.unit).label
        wrong = ground.valid & (said != IGNORE) & ((said == 1) != ground.mask)
        return replaced(ground, ground.flip(wrong), self.budget)

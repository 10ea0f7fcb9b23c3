"""Labels that come from elsewhere: a wrong index threshold, another date, another source, a vector map."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seawall.errors import DataError, UsageError
from seawall.geo.grid import Grid
from seawall.geo.raster import read_raster
from seawall.label_noise.geometry import shore_distance
from seawall.label_noise.label_difference import Plain
from seawall.label_noise.label_view import Ground, Label, allowance, check_budget, check_class, relabel
from seawall.label_noise.pixels import correlated
from seawall.labels.indices import IGNORE, parse_rule
from seawall.labels.registration import positional_error
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, LabelNoise

if TYPE_CHECKING:
    from seawall.labels.vector import VectorMask

LabelSource = Callable[[Batch], Tensor]
"""From a batch to other labels of the same chips, (B, H, W); a negative label is unknown there."""

VECTORS = (".shp", ".gpkg", ".geojson", ".json", ".fgb")
"""How the name of a vector layer ends."""

GridOf = Callable[[str], Grid]
"""From the id of a chip to its place on the ground."""

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


def is_vector(source: object) -> bool:
    """Tell whether a source of labels is a vector layer, by the end of its name."""
    return isinstance(source, str) and Path(source).suffix.lower() in VECTORS


def placed(noise: LabelNoise, grids: Mapping[str, Grid]) -> LabelNoise:
    """Check the source of a noise against the chips, and give it their places if it is a vector layer.

    Args:
        noise: Any noise; those without a source are returned as they are.
        grids: Where each chip is that the noise will be applied to.

    Raises:
        DataError: The source is not there, has no label of any chip, or is a vector layer and a chip has no place.
    """
    if not isinstance(noise, Stale | WrongSource) or not isinstance(noise.source, str) or noise.simulated:
        return noise
    if not is_vector(noise.source):
        _check_folder(noise, Path(noise.source), list(grids))
        return noise
    where = f"{noise.name}.source"
    if not isinstance(noise, WrongSource):
        raise DataError(
            f"{where}: expected a folder of labels, got the vector layer {noise.source}; use wrong-source for it"
        )
    if not Path(noise.source).is_file():
        raise DataError(f"{where}: expected a vector layer, got {noise.source} which is not there; correct it")
    lost = [chip for chip, grid in grids.items() if grid.transform is None or grid.crs is None]
    if lost:
        raise DataError(
            f"{where}: expected chips with a place on the ground for a vector layer, got {len(lost)} without, such as "
            f"{lost[0]}; curate georeferenced images"
        )
    return replace(noise, place=dict(grids).__getitem__)


def _check_folder(noise: Stale | WrongSource, home: Path, chips: Sequence[str]) -> None:
    if not home.is_dir():
        raise DataError(
            f"{noise.name}.source: expected a folder of labels{noise.kinds}, got {home} which is "
            f"{'a file' if home.exists() else 'not there'}; correct it"
        )
    if chips and not any(_stored(home, chip) for chip in chips):
        raise DataError(
            f"{noise.name}.source: expected <chip>.npy or <chip>.tif of {len(chips)} chips such as {chips[0]} in {home}, "
            "got none of them; write one for every chip"
        )


def source_files_digest(noise: LabelNoise, chip: str) -> str:
    """Return the digest of the files that a noise reads for a chip; "" where it reads none."""
    source = getattr(noise, "source", None)
    if not isinstance(source, str):
        return ""
    found = _stored(Path(source), chip)
    files = [found] if found else []
    if is_vector(source):  # a shapefile is several files of one name
        files = sorted(path for path in Path(source).parent.glob(f"{Path(source).stem}.*") if path.is_file())
    return "".join(_digest(path, path.stat().st_mtime_ns) for path in files)


@lru_cache(64)
def _digest(path: Path, changed_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stored(home: Path, chip: str) -> Path | None:
    """Return where a folder has the array of a chip; a chip id cannot lead out of the folder."""
    home = home.resolve()
    for suffix in (".npy", ".tif"):
        path = (home / f"{chip}{suffix}").resolve()
        if path.is_relative_to(home) and path.is_file():
            return path
    return None


def stored_array(name: str, folder: str, chip: str) -> NDArray[np.generic]:
    """Read the array of a chip, `<chip>.npy` or `<chip>.tif`, from a folder.

    Args:
        name: The noise that asks, for the message.
        folder: Where the arrays are.
        chip: Id of the chip; it cannot lead out of the folder.

    Raises:
        DataError: The folder has no readable array of that chip.
    """
    path = _stored(Path(folder), chip)
    if path is None:
        raise DataError(f"{name}: expected {chip}.npy or {chip}.tif in {folder}, got neither; write one for every chip")
    if path.suffix == ".tif":
        raster = read_raster(path)
        return np.asarray(np.where(raster.seen, raster.data, -1))
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OSError, EOFError) as bad:
        raise DataError(f"{path}: expected a plain NumPy array, got {bad}; write it again with numpy.save") from bad


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

    name: ClassVar[str] = "stale"
    kinds: ClassVar[str] = ""

    @property
    def simulated(self) -> bool:
        """The other label is made from the label itself."""
        return _argument("stale", self.source, "level", 4) is not None

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return None for every chip: how much changes is up to the other label."""
        return (None,) * len(batch)

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
        source: A folder with one `<chip>.npy` or `<chip>.tif` per chip; a vector layer (.shp, .gpkg, .geojson, .fgb), which
            is reprojected and burned onto each chip's grid; a callable from the batch to labels; or "coarse:<pixels>",
            which simulates a map of blocks of so many pixels, each of the class if half of it is.
        budget: Share of the valid pixels that may change; 1 takes the whole other label.
        klass: The class that "coarse" and vector layers map.
        all_touched: Every pixel that a vector layer touches is of the class, not only those whose center is inside.
        place: From a chip's id to its grid, which a vector layer needs; `seawall corrupt` fills it in.
    """

    source: str | LabelSource = "coarse:8"
    budget: float = 1.0
    klass: int = 1
    all_touched: bool = False
    place: GridOf | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "wrong-source"
    kinds: ClassVar[str] = " or a vector layer"

    @property
    def simulated(self) -> bool:
        """The other label is made from the label itself."""
        return _argument("wrong-source", self.source, "coarse", 8) is not None

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return None for every chip: how much changes is up to the other label."""
        return (None,) * len(batch)

    def __post_init__(self) -> None:
        check_budget("wrong-source", self.budget)
        check_class("wrong-source", self.klass)
        _argument("wrong-source", self.source, "coarse", 8)
        if self.all_touched and not is_vector(self.source):
            raise UsageError(
                f"wrong-source.all_touched: expected it with a vector layer only, got source {self.source!r}; leave it out"
            )

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with labels of the other source.

        Raises:
            DataError: The source lacks a chip or lies on another grid.
        """
        block = _argument("wrong-source", self.source, "coarse", 8)
        simulate: Callable[[Ground], Label] | None = None
        if block is not None:
            simulate = partial(coarser, block=block)
        elif is_vector(self.source):
            simulate = partial(self._burned, batch.chips)
        second = _second("wrong-source", self.source, batch, simulate)
        own = keys.fold("wrong-source")
        return relabel(batch, own, self.klass, lambda ground: replaced(ground, second(ground), self.budget))

    def layer(self, chip: str) -> VectorMask:
        """Return the vector layer on a chip's grid.

        Raises:
            DataError: The place of the chip is not known, or the layer cannot be read.
        """
        if self.place is None:
            raise DataError(
                "wrong-source: expected the places of the chips for a vector layer, got none; pass them as place"
            )
        path = Path(str(self.source))
        changed = path.stat().st_mtime_ns if path.is_file() else 0
        return _layer_on(str(path), changed, self.place(chip), self.all_touched)

    def describe(self, batch: Batch, keys: Keys) -> tuple[Mapping[str, Plain], ...]:
        """Return how far a vector layer lies from the label of each chip; nothing for other sources."""
        if not is_vector(self.source):
            return ({},) * len(batch)
        found: list[Mapping[str, Plain]] = []
        for i, chip in enumerate(batch.chips):
            layer, valid = self.layer(chip), (batch.valid & batch.seen)[i].cpu().numpy()
            water = batch.label[i].cpu().numpy() == self.klass
            off = positional_error(layer.mask, water & valid, valid, gsd_m=layer.grid.pixel_size_m() or 1.0)
            found.append({
                "layer_shift_m": off.shift_m, "layer_rows": off.rows_fine, "layer_cols": off.cols_fine, "layer_iou": off.iou_before,
                "layer_iou_shifted": off.iou_after, "layer_residual_m": off.residual_m, "layer_flags": "; ".join(layer.flags),
            })  # fmt: skip
        return tuple(found)

    def _burned(self, chips: tuple[str, ...], ground: Ground) -> Label:
        chip = chips[ground.index]
        mask = self.layer(chip).mask
        if mask.shape != ground.label.shape:
            raise DataError(f"wrong-source: expected chip {chip!r} whole, got a part of it; a layer needs its grid")
        return ground.flip(ground.valid & (mask != ground.mask))


@lru_cache(2)
def _layer_on(source: str, changed_ns: int, grid: Grid, all_touched: bool) -> VectorMask:
    # here, because reading vector layers takes a second to load and few noises do
    from seawall.labels.vector import rasterize_layer

    return rasterize_layer(source, grid, all_touched=all_touched)


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

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return None for every chip: how much changes is up to the index."""
        return (None,) * len(batch)

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

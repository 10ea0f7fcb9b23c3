"""Label noise from other labels: a wrong index threshold, another date, a coarser source, a vector layer."""

from __future__ import annotations

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
from seawall.io import file_sha256
from seawall.label_noise.label_view import Label, LabelView, allowance, change_labels, check_budget, check_class
from seawall.label_noise.morphology import shoreline_distance
from seawall.label_noise.pixels import correlated_field
from seawall.labels.registration import positional_error
from seawall.labels.rules import REPORT_RULE, UNDEFINED_LABEL, LabelRule, parse_rule
from seawall.registry import register
from seawall.result import ResultRow
from seawall.rng import Keys
from seawall.types import Batch, LabelNoise

if TYPE_CHECKING:
    from seawall.labels.vector import VectorMask

LabelSource = Callable[[Batch], Tensor]
"""Maps a batch to other labels of the same chips, (B, H, W); negative where unknown."""

VECTOR_SUFFIXES = (".shp", ".gpkg", ".geojson", ".json", ".fgb")
"""Endings of the names of vector layers."""

GridOf = Callable[[str], Grid]
"""Maps the id of a chip to its grid."""

PATCH_PX = 8.0  # correlation length of the patches that are replaced when the budget does not allow all of them


def replace_within_budget(view: LabelView, other: Label, budget: float) -> Label:
    """Replace the label by another one where they differ, in patches and within the budget.

    Args:
        view: The chip.
        other: (H, W) labels; negative where unknown.
        budget: Share of the valid pixels that may change.
    """
    differ = view.valid & (other >= 0) & (other != view.label)
    cap = allowance(budget, view.pixels)
    if np.count_nonzero(differ) > cap:
        differ = view.lowest(differ, correlated_field(view, PATCH_PX, "patches"), cap)
    return np.where(differ, other, view.label)


def is_vector(source: object) -> bool:
    """Return whether a source of labels is a vector layer, by the end of its name."""
    return isinstance(source, str) and Path(source).suffix.lower() in VECTOR_SUFFIXES


def check_source(noise: LabelNoise, grids: Mapping[str, Grid]) -> LabelNoise:
    """Check the source of a noise against the chips; return the noise, with their grids if it is a vector layer.

    Args:
        noise: Any noise; one without a source is returned unchanged.
        grids: Grid of each chip that the noise will be applied to.

    Raises:
        DataError: The source does not exist, has no label of any chip, or is a vector layer and a chip is not
            georeferenced.
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


def _check_folder(noise: Stale | WrongSource, folder: Path, chips: Sequence[str]) -> None:
    if not folder.is_dir():
        raise DataError(
            f"{noise.name}.source: expected a folder of labels{noise.kinds}, got {folder} which is "
            f"{'a file' if folder.exists() else 'not there'}; correct it"
        )
    if chips and not any(_array_path(folder, chip) for chip in chips):
        raise DataError(
            f"{noise.name}.source: expected <chip>.npy or <chip>.tif of {len(chips)} chips such as {chips[0]} in {folder}, "
            "got none of them; write one for every chip"
        )


def source_files_digest(noise: LabelNoise, chip: str) -> str:
    """Return the digest of the files that a noise reads for a chip; "" where it reads none."""
    source = getattr(noise, "source", None)
    if not isinstance(source, str):
        return ""
    found = _array_path(Path(source), chip)
    files = [found] if found else []
    if is_vector(source):  # a shapefile is several files of one name
        files = sorted(path for path in Path(source).parent.glob(f"{Path(source).stem}.*") if path.is_file())
    return "".join(_source_digest(path, path.stat().st_mtime_ns) for path in files)


@lru_cache(64)
def _source_digest(path: Path, changed_ns: int) -> str:
    return file_sha256(path)


def _array_path(folder: Path, chip: str) -> Path | None:
    """Return the path of a chip's array in a folder; a chip id cannot lead out of the folder."""
    folder = folder.resolve()
    for suffix in (".npy", ".tif"):
        path = (folder / f"{chip}{suffix}").resolve()
        if path.is_relative_to(folder) and path.is_file():
            return path
    return None


def stored_array(name: str, folder: str, chip: str) -> NDArray[np.generic]:
    """Read the array of a chip, `<chip>.npy` or `<chip>.tif`, from a folder.

    Args:
        name: Registered name of the noise, for the message.
        folder: Folder of the arrays.
        chip: Id of the chip; it cannot lead out of the folder.

    Raises:
        DataError: The folder has no readable array of that chip.
    """
    path = _array_path(Path(folder), chip)
    if path is None:
        raise DataError(f"{name}: expected {chip}.npy or {chip}.tif in {folder}, got neither; write one for every chip")
    if path.suffix == ".tif":
        raster = read_raster(path)
        return np.asarray(np.where(raster.seen, raster.data, -1))
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OSError, EOFError) as bad:
        raise DataError(f"{path}: expected a plain NumPy array, got {bad}; write it again with numpy.save") from bad


def _class_indices(name: str, found: NDArray[np.generic], shape: tuple[int, ...]) -> Label:
    flat = found[0] if found.ndim == len(shape) + 1 and found.shape[0] == 1 else found
    if flat.shape != shape:
        raise DataError(f"{name}: expected a label of shape {shape}, got {found.shape}; put it on the chip's grid")
    if flat.dtype.kind == "f" and not np.array_equal(flat, np.floor(flat)):
        raise DataError(f"{name}: expected whole class indices, got fractions; give a label, not a probability")
    return flat.astype(np.int64)


def _second_label(
    name: str, source: str | LabelSource, batch: Batch, simulate: Callable[[LabelView], Label] | None
) -> Callable[[LabelView], Label]:
    """Return a function from a chip to its other label, of a simulation, a callable or a folder."""
    if simulate is not None:
        return simulate
    if callable(source):
        found = source(batch).detach().cpu().numpy()
        labels = _class_indices(name, found, tuple(batch.label.shape))
        return lambda view: labels[view.index]
    shape = tuple(batch.label.shape[1:])
    return lambda view: _class_indices(name, stored_array(name, source, batch.chips[view.index]), shape)


def _simulation_size(name: str, source: str | LabelSource, word: str, default: int) -> int | None:
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
        """Whether the other label is computed from the label itself."""
        return _simulation_size("stale", self.source, "level", 4) is not None

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return None for every chip: the number of changed pixels depends on the other label."""
        return (None,) * len(batch)

    def __post_init__(self) -> None:
        check_budget("stale", self.budget)
        check_class("stale", self.klass)
        _simulation_size("stale", self.source, "level", 4)

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with labels of the other date.

        Raises:
            DataError: The other date lacks a chip, or its grid differs.
        """
        reach = _simulation_size("stale", self.source, "level", 4)
        simulate = None if reach is None else (lambda view: simulate_water_level(view, reach))
        second = _second_label("stale", self.source, batch, simulate)
        own = keys.fold("stale")
        return change_labels(
            batch, own, self.klass, lambda view: replace_within_budget(view, second(view), self.budget)
        )


def simulate_water_level(view: LabelView, reach_px: float) -> Label:
    """Simulate the label of a date with a lower or a higher water level, drawn per chip."""
    if not view.mask.any() or not view.rest.any():
        return view.label
    rises = bool(view.rng("level").integers(2))
    flat = 1 / (1 + np.exp(-correlated_field(view, 2.0 * reach_px, "slope")))
    side = view.rest if rises else view.mask
    return view.flip(side & (shoreline_distance(view, "euclidean") - 0.5 < reach_px * flat))


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
        """Whether the other label is computed from the label itself."""
        return _simulation_size("wrong-source", self.source, "coarse", 8) is not None

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return None for every chip: the number of changed pixels depends on the other label."""
        return (None,) * len(batch)

    def __post_init__(self) -> None:
        check_budget("wrong-source", self.budget)
        check_class("wrong-source", self.klass)
        _simulation_size("wrong-source", self.source, "coarse", 8)
        if self.all_touched and not is_vector(self.source):
            raise UsageError(
                f"wrong-source.all_touched: expected it with a vector layer only, got source {self.source!r}; leave it out"
            )

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with labels of the other source.

        Raises:
            DataError: The source lacks a chip, or its grid differs.
        """
        block = _simulation_size("wrong-source", self.source, "coarse", 8)
        simulate: Callable[[LabelView], Label] | None = None
        if block is not None:
            simulate = partial(simulate_coarse_map, block=block)
        elif is_vector(self.source):
            simulate = partial(self._burned, batch.chips)
        second = _second_label("wrong-source", self.source, batch, simulate)
        own = keys.fold("wrong-source")
        return change_labels(
            batch, own, self.klass, lambda view: replace_within_budget(view, second(view), self.budget)
        )

    def layer(self, chip: str) -> VectorMask:
        """Return the vector layer on a chip's grid.

        Raises:
            DataError: The grid of the chip is not known, or the layer cannot be read.
        """
        if self.place is None:
            raise DataError(
                "wrong-source: expected the places of the chips for a vector layer, got none; pass them as place"
            )
        path = Path(str(self.source))
        changed = path.stat().st_mtime_ns if path.is_file() else 0
        return _rasterized_layer(str(path), changed, self.place(chip), self.all_touched)

    def describe(self, batch: Batch, keys: Keys) -> tuple[ResultRow, ...]:
        """Return the positional error of a vector layer against the label of each chip; nothing for other sources."""
        if not is_vector(self.source):
            return ({},) * len(batch)
        found: list[ResultRow] = []
        for i, chip in enumerate(batch.chips):
            layer, valid = self.layer(chip), (batch.valid & batch.seen)[i].cpu().numpy()
            water = batch.label[i].cpu().numpy() == self.klass
            off = positional_error(layer.mask, water & valid, valid, gsd_m=layer.grid.pixel_size_m() or 1.0)
            found.append({
                "layer_shift_m": off.shift_m, "layer_rows": off.rows_fine, "layer_cols": off.cols_fine, "layer_iou": off.iou_before,
                "layer_iou_shifted": off.iou_after, "layer_residual_m": off.residual_m, "layer_flags": "; ".join(layer.flags),
            })  # fmt: skip
        return tuple(found)

    def _burned(self, chips: tuple[str, ...], view: LabelView) -> Label:
        chip = chips[view.index]
        mask = self.layer(chip).mask
        if mask.shape != view.label.shape:
            raise DataError(f"wrong-source: expected chip {chip!r} whole, got a part of it; a layer needs its grid")
        return view.flip(view.valid & (mask != view.mask))


@lru_cache(2)
def _rasterized_layer(source: str, changed_ns: int, grid: Grid, all_touched: bool) -> VectorMask:
    # here, because reading vector layers takes a second to load and few noises do
    from seawall.labels.vector import rasterize_layer

    return rasterize_layer(source, grid, all_touched=all_touched)


def simulate_coarse_map(view: LabelView, block: int) -> Label:
    """Return the label of a map of square blocks, each of the class if at least half of its pixels are."""
    height, width = view.label.shape
    rows, cols = np.arange(0, height, block), np.arange(0, width, block)

    def total(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.add.reduceat(np.add.reduceat(mask.astype(np.int64), rows, 0), cols, 1)

    majority = 2 * total(view.mask) >= np.maximum(total(view.valid), 1)
    coarse = majority.repeat(block, 0)[:height].repeat(block, 1)[:, :width]
    return view.flip(view.valid & (coarse != view.mask))


@register("noise", "index-threshold", paper="SRIP report, GVCL 2024", smoke={"bands": ["B03", "B08"]})
@final
@dataclass(frozen=True)
class IndexThreshold:
    """The label is that of a water index with a wrong threshold.

    Args:
        bands: Band ids of the image's channels, in order; later channels are ignored.
        rule: The wrong rule, such as "ndwi >= -0.25" (the report's), "ndwi > 0" or "ndwi otsu else 0".
        budget: Share of the valid pixels that may change; 1 takes the whole index label.
        klass: The class that the index labels.
        unit: Unit of the image; an index needs reflectance.
    """

    bands: tuple[str, ...]
    rule: str = REPORT_RULE
    budget: float = 1.0
    klass: int = 1
    unit: str = "reflectance"

    def allowed(self, batch: Batch) -> tuple[int | None, ...]:
        """Return None for every chip: the number of changed pixels depends on the index."""
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
        rule = parse_rule(self.rule)
        return change_labels(batch, own, self.klass, lambda view: self._change(view, batch, rule))

    def _change(self, view: LabelView, batch: Batch, rule: LabelRule) -> Label:
        image = batch.image[view.index, : len(self.bands)].detach().cpu().numpy().astype(np.float32)
        seen = batch.seen[view.index].cpu().numpy()
        label = rule(image, seen, self.bands, self.unit).label
        wrong = view.valid & (label != UNDEFINED_LABEL) & ((label == 1) != view.mask)
        return replace_within_budget(view, view.flip(wrong), self.budget)

"""Raw chips: the items of a source, and how their pixels and labels are read as stored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from seawall.errors import DataError, ImageryError
from seawall.geo.radiometry import Hints, Scale, hints_of
from seawall.geo.raster import Grid, Raster, Window, open_raster
from seawall.geo.sensors import are_sentinel_bands, resolve_bands
from seawall.io import file_sha256, is_inside

NO_HINTS = Hints()
UNIT_SAMPLE_SIDE = 96  # pixels: side of the windows from which a scene's unit is detected


@dataclass(frozen=True)
class RawChip:
    """Pixels and label of one chip as stored, before conversion.

    Args:
        data: (C, H, W) float32 as stored.
        seen: (H, W) bool.
        bands: Band names in channel order.
        grid: Where it is.
        hints: What metadata declares about the numbers.
        label: (H, W) raw label values, NaN where there is none; None without a label.
        label_grid: Where the label is.
        label_nodata: Declared nodata of the label.
        notes: Remarks for people.
        step: Step of whole numbers that the data lie on, where their pixel type does not say it.
        scale: Conversion to the physical unit, where it is known already.
        sample: Pixels (C, H, W) and seen (H, W) from all over the scene that this is a part of; the unit is detected on
            them, for a chip full of cloud or forest may not show it.
        mask: (H, W): inside the file's own mask, whatever the bands hold; None where `seen` is all that is known.
        nodata: Declared nodata value of each band, None where none is declared; empty where none is for any.
        where: Path or name for messages.
    """

    data: NDArray[np.float32]
    seen: NDArray[np.bool_]
    bands: tuple[str, ...]
    grid: Grid
    hints: Hints
    label: NDArray[np.float32] | None = None
    label_grid: Grid | None = None
    label_nodata: float | None = None
    notes: tuple[str, ...] = ()
    step: float | None = None
    scale: Scale | None = None
    sample: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None
    mask: NDArray[np.bool_] | None = None
    nodata: tuple[float | None, ...] = ()
    where: str = ""


class SourceItem(Protocol):
    """One item of a source, from which a chip is made."""

    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def gsd_m(self) -> float | None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    def read(self) -> RawChip: ...
    def digest(self) -> str: ...


class RejectedItem(NamedTuple):
    """An item that cannot become a chip, and why; `skip` where that is no error, `absent` where there is no image."""

    id: str
    reason: str
    skip: bool = False
    absent: bool = False


@runtime_checkable
class ImageSource(Protocol):
    """What curation needs of a source of chips, such as a folder of image files."""

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the items, and those that cannot become a chip."""
        ...

    @property
    def product(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def label_map(self) -> Mapping[int, int] | None: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...


class SourceLayout(Protocol):
    """What the class of a registered source says of its layout, before there is one.

    `example` is the smallest folder of the layout, as the content of each file by its path: "image" (reflectance of
    four named bands x 10000), "radar" (VV and VH in dB) and "label" (0 and 1) are GeoTIFFs on one grid, anything else
    is the text of the file. It is empty where the place is no folder. The contract writes it to disk.
    """

    example: ClassVar[Mapping[str, str]]

    @classmethod
    def claims(cls, place: Path) -> bool:
        """Return whether the place looks like this layout, from names alone; False where there is nothing."""
        ...


@dataclass(frozen=True)
class FileItem:
    """A chip, or a window of a scene, in an image file with its label file.

    Args:
        id: Stable id.
        group: Event or location.
        image: Image file.
        label: Label file, if there is one.
        shape: Rows and columns.
        source: Name for people.
        names: Band names in file order; empty for those of the file.
        hints: What is known about the numbers beside the file's metadata.
        gsd_m: Ground sampling distance, if declared.
        window: Part of the file; all of it if None.
        blank: Stored value that, in all bands at once, means no data; for files that do not declare it.
    """

    id: str
    group: str
    image: Path
    label: Path | None
    shape: tuple[int, int]
    source: str
    names: tuple[str, ...] = ()
    hints: Hints = NO_HINTS
    gsd_m: float | None = None
    window: Window | None = None
    blank: float | None = None

    def read(self) -> RawChip:
        """Read the pixels as stored.

        Raises:
            ImageryError: A file cannot be read.
            DataError: The file has another number of bands than declared, or the label has several.
        """
        with open_raster(self.image) as source:
            data, seen = source.read(self.window)
            mask, nodata = source.mask(self.window), source.nodata_of()
            if self.blank is not None:
                mask &= (data != self.blank).any(0)
                seen &= mask
            grid = source.grid if self.window is None else source.grid.window(*self.window)
            facts = (source.tags, source.band_tags, source.scales, source.offsets)
            stated = hints_of(Raster(data, seen, source.bands, grid, source.dtype, source.nodata, *facts))
            scene = (source.grid.height, source.grid.width)
            own, silent = (
                source.bands,
                self.blank is None and source.nodata is None and not source.dtype.startswith("float"),
            )
        names, notes = _declared_bands(self, own) if self.names else (own, ())
        notes = (*notes, "no nodata declared") if silent else notes
        sample = None if self.window is None else _scene_sample(self.image, *_size_and_mtime(self.image))
        raw_chip = RawChip(
            data, seen, names, grid, merge_hints(stated, self.hints), notes=notes, sample=sample, mask=mask, nodata=nodata,
            where=str(self.image),
        )  # fmt: skip
        return self._with_label(raw_chip, scene)

    def digest(self) -> str:
        """Digest of the files' content, the window and the settings of reading."""
        parts = [_file_digest(path, *_size_and_mtime(path)) for path in (self.image, self.label) if path is not None]
        return sha256_text(*parts, str(self.window), ",".join(self.names), repr((self.hints, self.blank)), self.group)

    def _with_label(self, raw_chip: RawChip, scene: tuple[int, int]) -> RawChip:
        if self.label is None:
            return raw_chip
        with open_raster(self.label) as source:
            if len(source.bands) != 1:
                raise DataError(
                    f"{self.label}: expected a label of one band, got {len(source.bands)}; convert colors to class values"
                )
            grid = source.grid
            if self.window is not None:
                if (grid.height, grid.width) != scene:
                    raise DataError(
                        f"{self.label}: expected a label of {scene[0]}x{scene[1]} pixels, got {grid.height}x{grid.width}; align it"
                    )
                grid = grid.window(*self.window)
            raw, seen = source.read(self.window)
            label, nodata = raw[0], source.nodata
            if nodata is None:
                label[~seen] = np.nan
            return replace(raw_chip, label=label, label_grid=grid, label_nodata=nodata)


def chip_windows(shape: tuple[int, int], chip: int) -> list[tuple[str, Window]]:
    """Return the chips of a raster as (tag, window): the whole of it if it is no larger than a chip.

    The chips at the lower and right border are smaller; those under a quarter of a chip are dropped.

    Example:
        >>> chip_windows((8, 20), 8)
        [('_r0c0', (0, 0, 8, 8)), ('_r0c8', (0, 8, 8, 8)), ('_r0c16', (0, 16, 8, 4))]
    """
    height, width = shape
    if height <= chip and width <= chip:
        return [("", (0, 0, height, width))]
    tall, wide = min(chip, height), min(chip, width)
    return [
        (f"_r{row}c{col}", (row, col, min(tall, height - row), min(wide, width - col)))
        for row in range(0, height, tall)
        for col in range(0, width, wide)
        if min(tall, height - row) * 4 >= tall and min(wide, width - col) * 4 >= wide
    ]


def check_source_folder(root: Path) -> None:
    """Refuse what is no folder.

    Raises:
        DataError: There is nothing, or a file.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(f"{root}: expected a folder, got {got}; name the folder, or a CSV index")


def clean_id(stem: str) -> str:
    """Return an id for the name of a file.

    Example:
        >>> clean_id("south/lake 1")
        'south_lake_1'
    """
    name = re.sub(r"[^A-Za-z0-9._@+=-]", "_", stem).strip("._")
    return name[:120] or "chip"


def add_file_items(made: list[SourceItem], lost: list[RejectedItem], item: FileItem, chip: int, root: Path) -> None:
    """Add an item, or its windows if its file is larger than a chip.

    One that is unreadable, or that a link leads out of the root, is added to `lost`.

    Args:
        made: The items so far.
        lost: The rejected items so far.
        item: An item whose shape is not known yet.
        chip: Side of a chip in pixels.
        root: The folder that its files must be in.
    """
    if away := [path for path in (item.image, item.label) if path is not None and not is_inside(root, path)]:
        reason = f"{away[0]}: expected a file below {root}, got one that leaves it; copy the file there"
        lost.append(RejectedItem(item.id, reason))
        return
    try:
        with open_raster(item.image) as source:
            shape = (source.grid.height, source.grid.width)
    except ImageryError as bad:
        lost.append(RejectedItem(item.id, str(bad)))
        return
    windows = chip_windows(shape, chip)
    for tag, window in windows:
        only = len(windows) == 1
        made.append(replace(item, id=item.id + tag, shape=window[2:], window=None if only else window))


def merge_hints(base: Hints, more: Hints) -> Hints:
    """Return hints in which those of `more` take precedence."""
    return replace(base, **known_hints(more))


def known_hints(hints: Hints) -> dict[str, Any]:
    """Return what hints say, as plain values by name.

    Example:
        >>> known_hints(Hints(gain=1e-4))
        {'gain': 0.0001}
    """
    return {name: value for name, value in vars(hints).items() if value is not None}


def sha256_text(*parts: str) -> str:
    """Return the SHA-256 of texts."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def has_default_names(bands: Sequence[str]) -> bool:
    """Return whether these are the default names of a raster without band names; "band1" is not B01 then."""
    return all(name == f"band{i}" for i, name in enumerate(bands, 1))


def _declared_bands(item: FileItem, own: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return band names and notes: the declared ones, or those of the file where it has the same bands in another order."""
    if len(item.names) != len(own):
        raise DataError(
            f"{item.image}: expected {len(item.names)} bands ({', '.join(item.names)}), got {len(own)}; correct the band names"
        )
    if has_default_names(own) or not are_sentinel_bands(own) or not are_sentinel_bands(item.names):
        return item.names, ()
    mine, theirs = resolve_bands(item.names), resolve_bands(own)
    if mine == theirs:
        return item.names, ()
    if sorted(mine) == sorted(theirs):
        return own, ("bands ordered by the names in the file",)
    raise DataError(
        f"{item.image}: expected bands {', '.join(item.names)}, got {', '.join(own)} in the file; correct one of them"
    )


def _size_and_mtime(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(4096)
def _file_digest(path: Path, size: int, changed: int) -> str:
    """Return the digest of a file; size and time in the cache key keep a scene from being read once per window."""
    return file_sha256(path)


@lru_cache(8)
def _scene_sample(path: Path, size: int, changed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return small windows from all over a scene, side by side."""
    with open_raster(path) as source:
        height, width = source.grid.height, source.grid.width
        tall, wide = min(UNIT_SAMPLE_SIDE, height), min(UNIT_SAMPLE_SIDE, width)
        parts = [
            source.read((int((height - tall) * y), int((width - wide) * x), tall, wide))
            for y in (0.1, 0.37, 0.63, 0.9)
            for x in (0.1, 0.37, 0.63, 0.9)
        ]
    return np.concatenate([data for data, _ in parts], 2), np.concatenate([seen for _, seen in parts], 1)

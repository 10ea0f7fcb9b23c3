"""Simulated radar images over water masks that are there, such as the labels of optical chips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from seawall import __version__
from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder
from seawall.data.index import is_chip_folder
from seawall.data.preparation import read_label
from seawall.data.raw_chips import (
    FileItem,
    RawChip,
    RejectedItem,
    SourceItem,
    add_file_items,
    check_source_folder,
    clean_id,
    sha256_text,
)
from seawall.errors import DataError
from seawall.geo.radiometry import Hints, Scale
from seawall.registry import register
from seawall.simulate.scene import radar_of_mask

MASKS = "water_masks"
"""Sub-folder of the masks, where the place is no chip folder."""
DEFAULT_GSD_M = 10.0
"""Ground sampling distance of masks without georeference."""


@dataclass(frozen=True)
class MaskItem:
    """A chip of simulated backscatter over the water of a mask."""

    file: FileItem
    settings: RadarOfMasks

    @property
    def id(self) -> str:
        """Stable id, that of the mask."""
        return self.file.id

    @property
    def group(self) -> str:
        """Event or location of the mask."""
        return self.file.group

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.file.shape

    @property
    def source(self) -> str:
        """Name for people."""
        return f"simulated s1 over {self.file.source}"

    @property
    def gsd_m(self) -> float | None:
        """Ground sampling distance, if declared."""
        return self.file.gsd_m

    def read(self) -> RawChip:
        """Read the mask and simulate its backscatter; pixels without a label are land, and stay without one.

        Raises:
            ImageryError: The mask cannot be read.
            DataError: It holds another value than 0, 1 and 255.
        """
        raw = self.file.read()
        label = read_label(raw.data[0] if raw.label is None else raw.label, 2, None, raw.label_nodata)
        gsd_m = raw.grid.gsd_m() or self.gsd_m or DEFAULT_GSD_M
        image = radar_of_mask(label == 1, self.id, self.settings.bands, gsd_m, self.settings.seed)
        known = np.where(label == IGNORE, np.float32(np.nan), label).astype(np.float32)
        return RawChip(
            image, np.ones(label.shape, bool), self.settings.bands, raw.grid, Hints("float32", "sigma0_db"), known, raw.grid,
            scale=Scale(1.0, 0.0, "sigma0_db", "simulated"),
        )  # fmt: skip

    def digest(self) -> str:
        """Digest of the mask, the settings and the version of the simulator."""
        return sha256_text(self.file.digest(), repr((self.settings.bands, self.settings.seed)), __version__)


@register("source", "radar-of-masks")
@dataclass(frozen=True)
class RadarOfMasks:
    """Simulated VV and VH in dB over the water of masks: a made-up land around it, wind on the water, speckle.

    The place is a chip folder of land and water, whose labels are taken with the ids and groups of its chips, or has a folder
    `water_masks/` of rasters with 1 for water, 0 for land and 255 for neither, whose sub-folders are groups.

    Args:
        root: The place.
        bands: Polarizations.
        seed: Seed of the land and of the speckle.
        gsd_m: Ground sampling distance of masks without georeference.
    """

    root: Path
    bands: tuple[str, ...] = ("VV", "VH")
    seed: int = 0
    gsd_m: float | None = None
    product: ClassVar[str] = "sentinel-1-grd"
    licence: ClassVar[str] = "made up over masks, whose licence holds"
    label_map: ClassVar[Mapping[int, int] | None] = None
    classes: ClassVar[tuple[str, ...] | None] = ("land", "water")
    example: ClassVar[Mapping[str, str]] = MappingProxyType(
        {f"{MASKS}/{place}/a.tif": "label" for place in ("north", "south")}
    )

    @classmethod
    def claims(cls, place: Path) -> bool:
        """Return whether there is a folder of masks; a chip folder has to be asked for."""
        return any((place / MASKS).rglob("*.tif"))

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the chips of all masks.

        Raises:
            DataError: There is no mask, or the chips have other classes.
        """
        check_source_folder(self.root)
        found: list[SourceItem] = []
        lost: list[RejectedItem] = []
        for item in self._masks():
            add_file_items(found, lost, item, chip, self.root)
        return [MaskItem(item, self) for item in found if isinstance(item, FileItem)], lost

    def _masks(self) -> list[FileItem]:
        """Return every mask."""

        def item(id_: str, group: str, path: Path, gsd_m: float | None) -> FileItem:
            return FileItem(id_, group, path, path, (0, 0), id_, gsd_m=gsd_m)

        if is_chip_folder(self.root):
            chips = ChipFolder.open(self.root)
            if chips.classes != self.classes:
                raise DataError(
                    f"{self.root}: expected chips of land and water, got {', '.join(chips.classes)}; curate them with these two"
                )
            return [item(row.id, row.group, self.root / row.label, chips.gsd_m) for row in chips.rows]
        home = self.root / MASKS
        paths = sorted(home.rglob("*.tif"))
        if not paths:
            raise DataError(f"{self.root}: expected a chip folder, or masks in {MASKS}/, got neither; add masks")
        stems = [(path.relative_to(home).with_suffix("").as_posix(), path) for path in paths]
        return [
            item(clean_id(stem), clean_id(stem.rpartition("/")[0] or stem), path, self.gsd_m) for stem, path in stems
        ]

"""Sen1Floods11 as it is distributed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from seawall.data.raw_chips import FileItem, RejectedItem, SourceItem, add_file_items, check_source_folder, clean_id
from seawall.errors import DataError
from seawall.geo.radiometry import Hints
from seawall.geo.sensors import OPTICAL_BANDS
from seawall.registry import register

SEN1FLOODS11_LABELS: Mapping[int, int] = MappingProxyType({-1: 255, 0: 0, 1: 1})
"""Values of Sen1Floods11's hand labels: -1 is no data."""


@register("source", "sen1floods11", paper="10.1109/CVPRW50498.2020.00113", smoke={"sensor": "s1"})
@dataclass(frozen=True)
class Sen1Floods11:
    """Sen1Floods11: `<Country>_<number>_S1Hand.tif`, `_S2Hand.tif` and `_LabelHand.tif` in any sub-folder.

    Countries are the groups. Labels of -1 do not count. Sentinel-1 is sigma0 in dB, Sentinel-2 top-of-atmosphere
    digital numbers without the offset of later baselines.

    Args:
        root: The folder.
        sensor: "s1" or "s2".
        labelled: Whether label files are needed; False if a rule labels.
        label_map: Class value of each raw label value.
        licence: Licence of the data.
    """

    root: Path
    sensor: Literal["s1", "s2"] = "s2"
    labelled: bool = True
    label_map: Mapping[int, int] | None = field(default_factory=lambda: SEN1FLOODS11_LABELS)
    licence: str = "see the Sen1Floods11 publication"
    example: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            f"{chip}_{file}.tif": content
            for chip in ("Ghana_1", "Spain_2")
            for file, content in (("S1Hand", "radar"), ("LabelHand", "label"))
        }
    )

    @classmethod
    def claims(cls, place: Path) -> bool:
        """Return whether there is an image of either sensor anywhere in the folder."""
        return next(place.rglob("*_S[12]Hand.tif"), None) is not None

    @property
    def product(self) -> str:
        """Product family."""
        return "sentinel-1-grd" if self.sensor == "s1" else "sentinel-2-l1c"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Land and water."""
        return ("land", "water")

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the chips of all images with a label, and the images and labels that lack the other.

        Raises:
            DataError: The folder has no images of this sensor.
        """
        check_source_folder(self.root)
        tail = {"s1": "S1Hand", "s2": "S2Hand"}[self.sensor]
        names = ("VV", "VH") if self.sensor == "s1" else OPTICAL_BANDS
        hints = Hints(unit="sigma0_db") if self.sensor == "s1" else Hints(gain=1e-4, offset_applied=True)
        found = {p.name: p for p in sorted(self.root.rglob("*.tif"))}
        made: list[SourceItem] = []
        lost: list[RejectedItem] = []
        for name, path in found.items():
            if not name.endswith(f"_{tail}.tif"):
                continue
            stem = name.removesuffix(f"_{tail}.tif")
            label = found.get(f"{stem}_LabelHand.tif")
            if label is None and self.labelled:
                lost.append(RejectedItem(clean_id(stem), f"{path}: expected {stem}_LabelHand.tif, got none; fetch it"))
                continue
            country = stem.rsplit("_", 1)[0]
            item = FileItem(clean_id(stem), country, path, label, (0, 0), name, names, hints, 10.0)
            add_file_items(made, lost, item, chip, self.root)
        if not made and not lost:
            raise DataError(f"{self.root}: expected files *_{tail}.tif, got none; choose the other sensor or folder")
        stems = [name.removesuffix("_LabelHand.tif") for name in found if name.endswith("_LabelHand.tif")]
        for stem in stems if self.labelled else ():
            if f"{stem}_{tail}.tif" not in found:
                where = found[f"{stem}_LabelHand.tif"]
                lost.append(
                    RejectedItem(
                        clean_id(stem), f"{where}: expected {stem}_{tail}.tif, got none; fetch it", absent=True
                    )
                )
        return made, lost

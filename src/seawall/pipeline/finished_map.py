"""A map that `seawall predict` has made: its layers, the class that it is of, and what it was calibrated by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import DataError, UsageError
from seawall.geo.grid import Grid
from seawall.geo.raster import RasterSource, open_raster
from seawall.inference.layers import CANNOT_TELL, SCALE, layer_names
from seawall.uncertainty.area import AreaCalibration


@dataclass(frozen=True)
class FinishedMap:
    """A map in a folder.

    Args:
        name: Its name.
        folder: Where its files are.
        klass: The class that its probability is of.
        index: The index of the class in the class layer.
        files: File name of each layer.
        key: Digest of what it was made of, which each layer has too.
        calibration: The held-out scenes that it was made with; None without any.
        controlled: Whether its sets are of a controlled risk.
    """

    name: str
    folder: Path
    klass: str
    index: int
    files: Mapping[str, str]
    key: str
    calibration: AreaCalibration | None
    controlled: bool

    @contextmanager
    def open(self) -> Iterator[MapLayers]:
        """Open its layers.

        Raises:
            ImageryError: A layer cannot be read.
            DataError: A layer is of another map, or the map has no georeference.
        """
        layer = layer_names(self.klass)["probability"]
        with (
            open_raster(self.folder / self.files["class"]) as classes,
            open_raster(self.folder / self.files[layer]) as probability,
            open_raster(self.folder / self.files["sets"]) as sets,
        ):
            for source in (classes, probability, sets):
                if source.tags.get("SEAWALL_KEY", self.key) != self.key:
                    raise DataError(
                        f"{source.path}: expected a layer of {self.name}.json, got one of another map; map the scene again"
                    )
                if differs := classes.grid.mismatch(source.grid):
                    raise DataError(
                        f"{source.path}: expected the grid of the class layer, got {differs}; map the scene again"
                    )
            if why := classes.grid.why_no_area():
                raise DataError(
                    f"{classes.path}: expected pixels with a known area, got none: {why}; map a scene that has one"
                )
            yield MapLayers(classes, probability, sets, self.index)


@dataclass(frozen=True)
class MapLayers:
    """The open layers of a map."""

    classes: RasterSource
    probability: RasterSource
    sets: RasterSource
    index: int

    @property
    def grid(self) -> Grid:
        """The grid of the layers."""
        return self.classes.grid

    def read(self, row: int, height: int) -> tuple[BoolArray, FloatArray, BoolArray, BoolArray]:
        """Return rows of the map: where it has the class, its probability, where it was seen, and where the class cannot be told; (height, W) each."""
        window = (row, 0, height, self.grid.width)
        (classes,), seen = self.classes.read(window)
        (stored,), known = self.probability.read(window)
        (sets,), told = self.sets.read(window)
        seen = seen & known & told
        share = np.where(seen, stored * np.float32(SCALE), np.float32(0))
        return (classes == self.index) & seen, share, seen, (sets == CANNOT_TELL) & seen


def find_map(path: Path) -> FinishedMap:
    """Return the map of its JSON file, of one of its layers, or the one in a folder.

    Raises:
        UsageError: There is no map, or there are several in the folder.
        DataError: The JSON is not that of a map, or its calibration cannot be read.
    """
    if path.suffix == ".json":
        if not path.is_file():
            raise UsageError(f"{path}: expected the JSON of a map, got no such file; give what `seawall predict` wrote")
        found = [(path, item)] if (item := _read_item(path)) is not None else []
    else:
        folder = path if path.is_dir() else path.parent
        items = [(one, _read_item(one)) for one in sorted(folder.glob("*.json"))]
        found = [
            (one, item)
            for one, item in items
            if item is not None and (path.is_dir() or path.name in _files(item).values())
        ]
    if len(found) != 1:
        some = ": " + ", ".join(one.name for one, _ in found) if found else ""
        raise UsageError(
            f"{path}: expected one map, got {len(found)}{some}; give the JSON of a map or its class layer, as `seawall predict` wrote them"
        )
    return _map_of(*found[0])


def _read_item(path: Path) -> Mapping[str, object] | None:
    """Return the content of a map's JSON; None where it is another file."""
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return item if isinstance(item, dict) and isinstance(item.get("result"), dict) else None


def _files(item: Mapping[str, object]) -> Mapping[str, str]:
    result = item["result"]
    files = result.get("files") if isinstance(result, dict) else None
    return files if isinstance(files, dict) else {}


def _whole_files(item: Mapping[str, object]) -> Mapping[str, str]:
    """Return the files of a map.

    Raises:
        KeyError: One of the layers that areas are read from is missing.
    """
    files = _files(item)
    return {**files, "class": files["class"], "sets": files["sets"]}


def _map_of(path: Path, item: Mapping[str, object]) -> FinishedMap:
    result, calibration = item["result"], item.get("calibration")
    area = calibration.get("area") if isinstance(calibration, dict) else None
    assert isinstance(result, dict)
    try:
        return FinishedMap(
            str(result["name"]), path.parent, str(result["klass"]), list(result["classes"]).index(result["klass"]), _whole_files(item),
            str(result["key"]), None if area is None else AreaCalibration.of(area), isinstance(calibration, dict) and bool(calibration.get("risks")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as bad:
        raise DataError(f"{path}: expected the JSON of a map, got one without {bad}; map the scene again") from bad

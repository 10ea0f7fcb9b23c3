"""Tells what kind of source a path is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from seawall.datasets.index import FORMAT, NAME
from seawall.datasets.pieces import Source
from seawall.datasets.simulated import Simulated
from seawall.datasets.sources import IndexTable, Pairs, Sen1Floods11
from seawall.errors import DataError, UsageError, did_you_mean
from seawall.geo.radiometry import Hints

KINDS = ("auto", "pairs", "index", "sen1floods11", "simulated")


def find_source(
    source: str | Path | Source, kind: str, sensor: Literal["s1", "s2"], select: str, names: Sequence[str], hints: Hints,
    gsd_m: float | None, product: str, group: str, ruled: bool,
) -> Source:  # fmt: skip
    """Return the source that the arguments of `curate` name.

    Raises:
        UsageError: The kind or the sensor is unknown, or it is a chip folder already.
        DataError: There is nothing at the path.
    """
    if kind not in KINDS:
        raise UsageError(f"curate: unknown kind {kind!r}; {did_you_mean(kind, KINDS)}")
    if sensor not in ("s1", "s2"):
        raise UsageError(f"curate: unknown sensor {sensor!r}; {did_you_mean(sensor, ('s1', 's2'))}")
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    kind = _guess(path, sensor) if kind == "auto" else kind
    if kind == "simulated":
        if not str(source).isdigit():
            raise UsageError(f"curate: expected a number of scenes to simulate, got {source!r}; give one")
        return Simulated(int(str(source)), sensor=sensor)
    if not path.exists():
        raise DataError(f"{path}: expected a folder or an index, got nothing there; check the path")
    if kind == "index":
        table = path / "index.csv" if path.is_dir() else path
        return IndexTable(table, sensor, select, hints, product, not ruled)
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder, got a file; name its folder, or a CSV index")
    if kind == "sen1floods11":
        return Sen1Floods11(path, sensor, not ruled)
    return Pairs(path, tuple(names), group, hints, gsd_m, product, labelled=not ruled)


def _guess(path: Path, sensor: str) -> str:
    if not path.exists() and str(path).isdigit():
        return "simulated"
    if path.suffix.lower() == ".csv" or (path / "index.csv").is_file():
        return "index"
    if path.is_dir() and (path / NAME).is_file() and FORMAT in (path / NAME).read_text(encoding="utf-8")[:400]:
        raise UsageError(f"{path}: expected raw images, got a chip folder; use it as it is")
    if path.is_dir() and next(path.rglob(f"*_{sensor.upper()}Hand.tif"), None) is not None:
        return "sen1floods11"
    return "pairs"

"""What is asked of which scenes: the settings of a survey, the scenes that a path means, and what became of them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from seawall.errors import PartialError, UsageError
from seawall.geo.radiometry import Hints
from seawall.inference.backends import Runtime
from seawall.inference.products import SceneResult
from seawall.inference.tiling import TILE, Plan
from seawall.io import is_inside

SUFFIXES = (".tif", ".tiff", ".jp2")
"""What counts as a scene in a folder."""
PRODUCTS = ("class", "water", "uncertainty")
"""Layers whose files never count as a scene in a folder, whatever lies beside them."""


@dataclass(frozen=True)
class Survey:
    """How whole scenes are mapped.

    Args:
        klass: Class whose probability and area are reported; "" takes water, or the second of two classes.
        tile: Pixels of a tile's side, a multiple of 32; None takes 512, or more where the network looks far.
        overlap: Pixels that neighboring tiles share; None takes twice as many as the network looks far, so that the map
            is that of the whole scene. Fewer are flagged.
        batch: Tiles per call of the network; 0 takes 1 on the CPU and 8 on an accelerator.
        unsure: Probabilities from the first up to the second count as unsure.
        temperature: Divides the logits; fit it on held-out scenes so that probabilities are calibrated.
        runtime: torch, onnx or openvino.
        bands: Names of the scene's bands, where its file has none.
        sensor: Product family whose band names count first.
        hints: What is known about the scene's numbers and not in its file.
        memory_mib: Room for rows being read and blended; scenes too wide for it are mapped in panels.

    Raises:
        UsageError: A setting is out of its range.
    """

    klass: str = ""
    tile: int | None = None
    overlap: int | None = None
    batch: int = 0
    unsure: tuple[float, float] = (0.2, 0.8)
    temperature: float = 1.0
    runtime: Runtime = "torch"
    bands: tuple[str, ...] = ()
    sensor: str = ""
    hints: Hints = field(default_factory=Hints)
    memory_mib: int = 512

    def __post_init__(self) -> None:
        overlap = self.overlap or 0
        Plan.of(1, 1, max(TILE, 2 * overlap) if self.tile is None else self.tile, overlap)
        low, high = self.unsure
        if not 0 <= low < high <= 1:
            raise UsageError(f"unsure: expected two rising probabilities, got {low} and {high}; try 0.2 and 0.8")
        for name, least in (("batch", 0), ("memory_mib", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}: expected at least {least}, got {getattr(self, name)}; raise it")

    def identity(self) -> dict[str, object]:
        """Return the settings that can change a map; batch and memory cannot."""
        return {k: v for k, v in asdict(self).items() if k not in ("batch", "memory_mib")}


@dataclass(frozen=True)
class Job:
    """One scene to map.

    Args:
        path: The scene.
        name: Name of its products.
        when: Acquisition time, ISO 8601; "" takes it from the file.
    """

    path: Path
    name: str
    when: str = ""


@dataclass(frozen=True)
class SceneReport:
    """What became of many scenes.

    Args:
        made: The maps, also those that were there already.
        failed: (scene, reason) of those that could not be mapped.
    """

    made: tuple[SceneResult, ...]
    failed: tuple[tuple[str, str], ...]

    def check(self) -> None:
        """Raise when a scene failed.

        Raises:
            PartialError: Lists the scenes and why.
        """
        if self.failed:
            reasons = "; ".join(f"{scene}: {reason}" for scene, reason in self.failed)
            raise PartialError(f"{len(self.failed)} of {len(self.failed) + len(self.made)} scenes failed: {reasons}")


def find_scenes(source: Path | str | Sequence[Path | str], out: Path) -> tuple[Job, ...]:
    """Return the scenes that a path, folder, manifest or list of paths means, each with a name of its own.

    Raises:
        UsageError: There is none, a manifest has no column "path", or two scenes share a name.
    """
    if not isinstance(source, Path | str):
        jobs = [Job(Path(path), clean_name(Path(path).stem)) for path in source]
    elif Path(source).is_dir():
        jobs = _in_folder(Path(source), out)
    elif Path(source).suffix.lower() == ".csv":
        jobs = _in_manifest(Path(source))
    else:
        jobs = [Job(Path(source), clean_name(Path(source).stem))]
    if not jobs:
        raise UsageError(f"{source}: expected scenes ({', '.join(SUFFIXES)}), got none; check the path")
    names: dict[str, Path] = {}
    for job in jobs:
        # Compared without case: two such names are one file on some disks.
        if (other := names.setdefault(job.name.casefold(), job.path)) is not job.path:
            raise UsageError(
                f"scenes: expected a name for each, got {job.name!r} for {other} and {job.path}; give a manifest with names"
            )
    return tuple(jobs)


def clean_name(name: str) -> str:
    """Return a name that is safe as the beginning of a file name everywhere.

    Example:
        >>> clean_name("../Elbe 2021:08")
        'Elbe_2021_08'
    """
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._-")[:100] or "scene"


def _in_folder(folder: Path, out: Path) -> list[Job]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not _is_product(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    for path in found:
        if not is_inside(folder, path):
            raise UsageError(
                f"{path}: expected a scene below {folder}, got a link out of it; copy the file, or name it"
            )
    stems = Counter(path.stem for path in found)
    return [
        Job(
            path,
            clean_name(
                path.stem if stems[path.stem] == 1 else "-".join(path.relative_to(folder).with_suffix("").parts)
            ),
        )
        for path in found
        if out.resolve() not in path.resolve().parents or out.resolve() == folder.resolve()
    ]


def _is_product(path: Path) -> bool:
    """Tell whether a file is a layer of a map: by its usual name, or because the classes of the same map are beside it."""
    name, dot, layer = path.stem.rpartition(".")
    return bool(dot) and (layer in PRODUCTS or path.with_name(f"{name}.class.tif").exists())


def _in_manifest(manifest: Path) -> list[Job]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as bad:
        raise UsageError(f"{manifest}: expected a CSV file, got {bad}; check it") from bad
    if not rows or "path" not in rows[0]:
        raise UsageError(
            f"{manifest}: expected rows with a column 'path', got {list(rows[0]) if rows else 'none'}; add it"
        )
    return [
        Job(
            manifest.parent / row["path"],
            clean_name(row.get("name") or Path(row["path"]).stem),
            row.get("when") or "",
        )
        for row in rows
        if row["path"]
    ]

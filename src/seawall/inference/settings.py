"""Settings of a prediction over scenes, the scenes that a path stands for, and the report on them."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from seawall.errors import PartialError, UsageError
from seawall.geo.radiometry import Hints
from seawall.inference.backends import Runtime
from seawall.inference.layers import LAYERS, check_layers
from seawall.inference.products import SceneResult
from seawall.inference.scene import is_safe
from seawall.inference.tiling import TILE, TilePlan
from seawall.io import is_inside
from seawall.settings import settings

SCENE_SUFFIXES = (".tif", ".tiff", ".jp2")
"""Endings of raster scenes in a folder; SAFE folders count too, as one scene each."""
VERIFY_TILES = 16
"""Tiles between two comparisons of the weights with their checksums, each of which costs milliseconds."""
PRODUCT_LAYERS = (*LAYERS, "water", "certified")
"""Layers whose files never count as a scene in a folder."""


@settings("predict", "see `seawall predict --help`")
class PredictSettings:
    """How whole scenes are mapped.

    Args:
        klass: Class whose probability and area are reported; "" takes water, or the second of two classes.
        tile: Pixels of a tile's side, a multiple of 32; None takes 512, or more where the receptive field is large.
        overlap: Pixels that neighboring tiles share; None takes twice the radius of the receptive field, so that the
            map is that of the whole scene. Fewer are flagged.
        batch: Tiles per call of the network; 0 takes 1 on the CPU and 8 on an accelerator.
        layers: Further layers to write: "margin", "variation-ratio".
        runtime: torch, onnx or openvino.
        bands: Names of the scene's bands, where its file has none.
        sensor: Product family whose band names count first.
        hints: Unit, scale and offset of the scene where its file does not state them.
        memory_mib: Room for rows being read and blended; scenes too wide for it are mapped in panels.
        verify_tiles: Tiles after which the weights in memory are compared with their checksums; they are compared before
            rows are kept, too. 0 compares them at the end of a scene only. None is 16 where PyTorch runs the network;
            other runtimes have a copy of the weights that is not compared, and take 0 alone.

    Raises:
        UsageError: A setting is out of its range.
    """

    klass: str = ""
    tile: int | None = None
    overlap: int | None = None
    batch: NonNegativeInt = 0
    layers: tuple[str, ...] = ()
    runtime: Runtime = "torch"
    bands: tuple[str, ...] = ()
    sensor: str = ""
    hints: Hints = field(default_factory=Hints)
    memory_mib: PositiveInt = 512
    verify_tiles: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if self.verify_tiles and self.runtime != "torch":
            raise UsageError(
                f"predict.verify_tiles: expected 0 with the {self.runtime} runtime, which has its own copy of the weights, got {self.verify_tiles}; "
                "use --runtime torch"
            )
        check_layers(self.layers)
        overlap = self.overlap or 0
        TilePlan.of(1, 1, max(TILE, 2 * overlap) if self.tile is None else self.tile, overlap)

    @property
    def tiles_between_checks(self) -> int:
        """Tiles after which the weights are compared with their checksums; 0 for never."""
        if self.verify_tiles is None:
            return VERIFY_TILES if self.runtime == "torch" else 0
        return self.verify_tiles

    def identity(self) -> dict[str, object]:
        """Return the settings that can change a map; batch, memory and checks of the weights cannot."""
        return {k: v for k, v in asdict(self).items() if k not in ("batch", "memory_mib", "verify_tiles")}


@dataclass(frozen=True)
class SceneJob:
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
    """The result of mapping many scenes.

    Args:
        made: The maps, including those that were complete already.
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


def find_scenes(source: Path | str | Sequence[Path | str], out: Path) -> tuple[SceneJob, ...]:
    """Return the scenes that a path, folder, manifest or list of paths means, each with a name of its own.

    Raises:
        UsageError: There is none, a manifest has no column "path", or two scenes share a name.
    """
    if not isinstance(source, Path | str):
        jobs = [SceneJob(Path(path), clean_name(scene_stem(Path(path)))) for path in source]
    elif Path(source).is_dir() and not is_safe(Path(source)):
        jobs = _in_folder(Path(source), out)
    elif Path(source).suffix.lower() == ".csv":
        jobs = _in_manifest(Path(source))
    else:
        jobs = [SceneJob(Path(source), clean_name(scene_stem(Path(source))))]
    if not jobs:
        raise UsageError(f"{source}: expected scenes ({', '.join(SCENE_SUFFIXES)}), got none; check the path")
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


def scene_stem(path: Path) -> str:
    """Return the name of a scene's file or SAFE product without its ending.

    Example:
        >>> scene_stem(Path("S2A_MSIL2A_T33TTG.SAFE.zip")), scene_stem(Path("elbe.tif"))
        ('S2A_MSIL2A_T33TTG', 'elbe')
    """
    named = path.parent if path.suffix == ".xml" and is_safe(path) else path
    return named.stem.removesuffix(".SAFE")


def _in_folder(folder: Path, out: Path) -> list[SceneJob]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if (path.suffix.lower() in SCENE_SUFFIXES or (path.suffix == ".SAFE" and path.is_dir()))
        and not any(parent.suffix == ".SAFE" for parent in path.relative_to(folder).parents)
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
        SceneJob(
            path,
            clean_name(
                path.stem if stems[path.stem] == 1 else "-".join(path.relative_to(folder).with_suffix("").parts)
            ),
        )
        for path in found
        if out.resolve() not in path.resolve().parents or out.resolve() == folder.resolve()
    ]


def _is_product(path: Path) -> bool:
    """Return whether a file is a layer of a map, by its name or by the class layer of the same map beside it."""
    name, dot, layer = path.stem.rpartition(".")
    return bool(dot) and (layer in PRODUCT_LAYERS or path.with_name(f"{name}.class.tif").exists())


def _in_manifest(manifest: Path) -> list[SceneJob]:
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
        SceneJob(
            manifest.parent / row["path"],
            clean_name(row.get("name") or scene_stem(Path(row["path"]))),
            row.get("when") or "",
        )
        for row in rows
        if row["path"]
    ]

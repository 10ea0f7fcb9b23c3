"""A run folder, read once: what is there is kept, what is torn or unreadable is named, nothing is written."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seawall.errors import RecipeError, RunError
from seawall.recipe import Recipe, read_recipe
from seawall.records import Record, read_records


class Known(BaseModel):
    """What the page reads of a file, key by key: a key that is not here cannot be read by mistake."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DataFacts(Known):
    """Facts about the chips and their split, as `seawall.pipeline.provenance.data_facts` writes them."""

    chips: int = 0
    unit: str = ""
    bands: tuple[str, ...] = ()
    gsd_m: float | None = None
    classes: tuple[str, ...] = ()
    noise: Mapping[str, float] = Field(default_factory=dict)
    licence: str = ""
    groups: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    chips_per_part: Mapping[str, int] = Field(default_factory=dict)
    water_share: Mapping[str, float | None] = Field(default_factory=dict)
    how: str = ""
    warnings: tuple[str, ...] = ()
    flags: Mapping[str, int] = Field(default_factory=dict)


class NoiseFacts(Known):
    """Which labels one network learned from.

    Args:
        model: The network that learned from the labels as they are.
        noise: Name of the label noise.
        rate: What was asked for: a share of pixels, or the setting that the sweep varies.
        vary: Name of that setting.
        objective: Loss or objective that training went through the noise with; "" for the recipe's own.
        changed_share: Share of the valid training pixels whose label the noise changed.
    """

    model: str = ""
    noise: str = ""
    rate: float | None = None
    vary: str = "budget"
    objective: str = ""
    changed_share: float | None = None


class RunFacts(Known):
    """What the pipeline says about data, label noise, time and version: facts.json."""

    data: DataFacts = DataFacts()
    noises: Mapping[str, NoiseFacts] = Field(default_factory=dict)
    seconds: Mapping[str, float] = Field(default_factory=dict)
    version: str = ""


class SceneFacts(Known):
    """The result of a whole-scene map, as `seawall.inference.SceneResult` names it."""

    source: str = ""
    files: Mapping[str, str] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    klass: str = "water"
    height: int = 0
    width: int = 0
    seen_share: float | None = None
    share: float | None = None
    area_km2: float | None = None
    expected_km2: float | None = None
    low_km2: float | None = None
    high_km2: float | None = None
    unsure_share: float | None = None
    class_km2: Mapping[str, float | None] = Field(default_factory=dict)
    flags: tuple[str, ...] = ()
    seconds: float = 0.0


class SceneTime(Known):
    """When the scene was acquired."""

    datetime: str | None = None


class SceneTruth(Known):
    """How a map compares with the known truth of its scene: scenes/<name>.truth.json."""

    klass: str
    iou: float | None = None
    precision: float | None = None
    recall: float | None = None
    true_km2: float | None = None
    mapped_km2: float | None = None
    expected_km2: float | None = None
    pixels: int = 0
    clear_iou: float | None = None
    clear_pixels: int = 0
    note: str = ""


class Scene(Known):
    """One mapped scene: the STAC item beside its GeoTIFFs, and its truth where that is known."""

    bbox: tuple[float, ...] = ()
    properties: SceneTime = SceneTime()
    result: SceneFacts = SceneFacts()
    truth: SceneTruth | None = None


class Example(Known):
    """What is beside an example chip: examples/<name>.json."""

    chip: str = ""
    method: str = ""
    threat: str = ""
    model: str = ""
    largest_change: float | None = None
    preview_bands: tuple[str, ...] = ()


class Epoch(Known):
    """One epoch of one network: a row of models/<name>/history.jsonl. `scores` holds the validation figures."""

    model: str
    epoch: int
    loss: float | None = None
    best: bool = False
    scores: Mapping[str, float | None] = Field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Everything that the page is made from.

    Args:
        path: The run folder.
        recipe: The recipe; None where the folder has none.
        toml: The recipe's text.
        facts: What the pipeline says about data, label noise, time and version.
        env: Versions and devices.
        records: The measured rows, in the order of the file.
        history: Training rows; each names its model.
        examples: Paths of the example chips, sorted.
        scenes: Scene name to what is known of it, sorted by name.
        faults: Files of the folder that could not be read, with the reason.
    """

    path: Path
    recipe: Recipe | None
    toml: str
    facts: RunFacts
    env: Mapping[str, Any]
    records: tuple[Record, ...]
    history: tuple[Epoch, ...]
    examples: tuple[Path, ...] = ()
    scenes: Mapping[str, Scene] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The recipe id: what the records say, else the folder's name."""
        return self.records[0].recipe if self.records else self.path.name

    @property
    def data(self) -> DataFacts:
        """Facts about the chips."""
        return self.facts.data

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.data.classes or ("land", "water")

    @property
    def klass(self) -> str:
        """The class that the page is about: water where there is one, else the last."""
        return "water" if "water" in self.classes else self.classes[-1]

    @property
    def trained(self) -> frozenset[str]:
        """Names of the networks that were trained in this run."""
        return frozenset(row.model for row in self.history)


def read_run(path: Path) -> Run:
    """Read a run folder.

    Args:
        path: A folder with at least `recipe.toml` or `records.jsonl`.

    Raises:
        RunError: There is no run there, or its recipe or records are not what they should be.
    """
    path = path.resolve()
    if not (path / "recipe.toml").is_file() and not (path / "records.jsonl").is_file():
        raise RunError(
            f"{path}: expected a run folder, got no recipe.toml and no records.jsonl; give a folder under runs/"
        )
    faults: list[str] = []
    return Run(
        path=path,
        recipe=_recipe(path / "recipe.toml"),
        toml=_text(path / "recipe.toml"),
        facts=_typed(RunFacts, path / "facts.json", faults) or RunFacts(),
        env=_object(path / "env.json", faults) or {},
        records=_records(path / "records.jsonl"),
        history=tuple(_history(path, faults)),
        examples=tuple(sorted((path / "examples").glob("*.npz"))),
        scenes=_scenes(path / "scenes", faults),
        faults=tuple(faults),
    )


def _recipe(path: Path) -> Recipe | None:
    """Read the recipe with the recipe's own reader, so that a key which it does not know is an error here too."""
    if not path.is_file():
        return None
    _text(path)
    try:
        return read_recipe(path)
    except RecipeError as bad:
        raise RunError(f"{bad}; a recipe of another version makes no page here, so run it again") from bad


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as bad:
        raise RunError(f"{path}: expected UTF-8 text, got {bad.reason}; run the recipe again") from bad


def _object(path: Path, faults: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as bad:
        faults.append(f"{path.name}: not whole ({type(bad).__name__}); left out")
        return None
    if not isinstance(found, dict):
        faults.append(f"{path.name}: not a JSON object; left out")
        return None
    return found


Kind = TypeVar("Kind", bound=Known)


def _typed(kind: type[Kind], path: Path, faults: list[str]) -> Kind | None:
    found = _object(path, faults)
    try:
        return None if found is None else kind.model_validate(found)
    except ValidationError as bad:
        first = bad.errors()[0]
        where = ".".join(map(str, first["loc"]))
        faults.append(f"{path.name}: {where}: {first['msg']}; left out")
        return None


def _scenes(folder: Path, faults: list[str]) -> dict[str, Scene]:
    """Read every scene and the truth beside it."""
    found: dict[str, Scene] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(TRUTH):
            continue
        scene = _typed(Scene, path, faults)
        if scene is not None:
            truth = _typed(SceneTruth, folder / f"{path.stem}{TRUTH}", faults)
            found[path.stem] = scene.model_copy(update={"truth": truth})
    return found


TRUTH = ".truth.json"
"""End of the name of the file that compares a map with the truth."""


def read_example(path: Path) -> Example:
    """Read what is beside an example chip; empty where nothing is.

    Raises:
        ValueError: It is there and is not what it should be.
    """
    faults: list[str] = []
    found = _typed(Example, path.with_suffix(".json"), faults)
    if faults:
        raise ValueError(faults[0])
    return found or Example()


def _records(path: Path) -> tuple[Record, ...]:
    """Read the whole lines; a killed run's torn last line is dropped, and the file is left as it is."""
    if not path.is_file():
        return ()
    raw = path.read_bytes()
    if raw.endswith(b"\n") or not raw:
        return tuple(read_records(path))
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        whole.write_bytes(raw[: raw.rfind(b"\n") + 1])
        return tuple(read_records(whole))


def _history(path: Path, faults: list[str]) -> Iterator[Epoch]:
    for file in sorted((path / "models").glob("*/history.jsonl")):
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
                scores = {key: value for key, value in row.items() if key.startswith("val.")}
                yield Epoch.model_validate({**row, "model": file.parent.name, "scores": scores})
            except (ValueError, AttributeError, TypeError):
                faults.append(f"{file.parent.name}/{file.name}:{number}: not a row of a training; left out")


def finite(value: float | None) -> float | None:
    """Return a finite number, or None for anything else.

    Example:
        >>> finite(3.0), finite(float("nan")), finite(None)
        (3.0, None, None)
    """
    return None if value is None or not math.isfinite(value) else value

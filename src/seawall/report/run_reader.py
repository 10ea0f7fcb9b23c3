"""Read a run folder once. Files that cannot be read are listed with the reason; nothing is written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seawall.errors import RecipeError, RunError, first_error
from seawall.recipe import Recipe, read_recipe
from seawall.records import Record, read_records
from seawall.report.formatting import DASH, number_text, percent_text


class RunFile(BaseModel):
    """The keys that the report reads of a file; a key that is not declared cannot be read by mistake."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DataFacts(RunFile):
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


class NoiseFacts(RunFile):
    """The label noise that one network was trained with.

    Args:
        model: The network that was trained on the labels without noise.
        noise: Name of the label noise.
        rate: The value that was asked for: a share of pixels, or another setting that the sweep varies.
        objective: Loss or objective of the training on noisy labels; "" for the recipe's own.
        changed_share: Share of the valid training pixels whose label the noise changed.
    """

    model: str = ""
    noise: str = ""
    rate: float | None = None
    objective: str = ""
    changed_share: float | None = None

    @property
    def kind(self) -> str:
        """Noise and objective; networks of one kind make one curve over the share that was changed."""
        return f"{self.noise}, by {self.objective}" if self.objective else self.noise

    @property
    def rate_text(self) -> str:
        """What was asked for: a share as a percentage, any other setting as a number."""
        if self.rate is None:
            return DASH
        return percent_text(self.rate) if self.rate <= 1 else number_text(self.rate)

    @property
    def changed_text(self) -> str:
        """The share that was changed, as a percentage."""
        return percent_text(self.changed_share)

    @property
    def label(self) -> str:
        """Noise, what was asked for, and what was changed.

        Example:
            >>> NoiseFacts(noise="thirds", rate=0.1, changed_share=0.02).label
            'thirds 10\u202f% (2\u202f% changed)'
        """
        changed = "" if self.changed_share is None else f" ({self.changed_text} changed)"
        objective = f", by {self.objective}" if self.objective else ""
        return f"{self.noise} {self.rate_text}{changed}{objective}"


class EstimatorFacts(RunFile):
    """The estimator of uncertainty around a network.

    Args:
        model: The network.
        estimator: Registered name of the estimator.
    """

    model: str = ""
    estimator: str = ""


class HardeningFacts(RunFile):
    """A hardened network and the plain one beside it, as `seawall.pipeline.reference.hardening_facts` writes them.

    Args:
        before: Name of the plain network in the rows.
        after: Name of the hardened one.
        cpu_minutes: CPU time of the training of each; None where it was not recorded.
        overfitting_epochs: Epochs, counted from 0, after which several steps left less than half of what one step left.
        kept_epoch: The epoch whose weights were kept.
    """

    before: str = ""
    after: str = ""
    cpu_minutes: Mapping[str, float | None] = Field(default_factory=dict)
    overfitting_epochs: tuple[int, ...] = ()
    kept_epoch: int | None = None


class RunFacts(RunFile):
    """The file facts.json: data, label noise, estimators, hardening, seconds and CPU seconds per stage, version.

    `corruption_baseline` is the baseline that corruption errors are relative to.
    """

    data: DataFacts = DataFacts()
    noises: Mapping[str, NoiseFacts] = Field(default_factory=dict)
    estimators: Mapping[str, EstimatorFacts] = Field(default_factory=dict)
    corruption_baseline: str = ""
    hardening: HardeningFacts = HardeningFacts()
    seconds: Mapping[str, float] = Field(default_factory=dict)
    cpu_seconds: Mapping[str, float] = Field(default_factory=dict)
    version: str = ""


FAULT_ROWS = "weight_faults.jsonl"
"""File of a run folder with a line per network, fault in the weights and defense."""


class WeightFaultFacts(RunFile):
    """Flipped weight bits of one network, until the IoU on held-out chips was halved: a line of `FAULT_ROWS`.

    Args:
        model: The network.
        fault: Name of the fault.
        defense: Name of the defense; "none" without one.
        seed: Seed of the fault.
        bits: Bits of all its 8-bit weights.
        layers: Layers with such weights.
        most: Flips after which the fault was stopped.
        flips_to_half: Flips until the IoU was at most half of that without flips; None where it never was.
        curve: (flips, pixels of the class in label and prediction, pixels in either) after every round; without flips first.
        flips: (layer, index, bit, integer before, integer after) of every bit in order.
        detected: Bits in groups whose checksum differed.
        seconds: CPU seconds that it took to choose the bits.
        refused: Why it was not measured; "" where it was.
    """

    model: str
    fault: str
    defense: str
    seed: int
    most: int
    bits: int = 0
    layers: int = 0
    flips_to_half: int | None = None
    curve: tuple[tuple[int, int, int], ...] = Field(((0, 0, 0),), min_length=1)
    flips: tuple[tuple[str, int, int, int, int], ...] = ()
    detected: int = 0
    seconds: float = 0.0
    refused: str = ""

    @property
    def iou(self) -> tuple[float, ...]:
        """IoU after every round, without flips first; 0 where neither label nor prediction has the class."""
        return tuple(both / either if either else 0.0 for _, both, either in self.curve)

    @property
    def detected_share(self) -> float | None:
        """Share of the flips that checksums noticed; None without flips."""
        return self.detected / len(self.flips) if self.flips else None

    @property
    def sign_share(self) -> float | None:
        """Share of the flips that flipped a sign bit; None without flips."""
        return sum(bit == 7 for _, _, bit, _, _ in self.flips) / len(self.flips) if self.flips else None


class SceneFacts(RunFile):
    """The result of a whole-scene map, with the keys of `seawall.inference.products.SceneResult`."""

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


class SceneTime(RunFile):
    """When the scene was acquired."""

    datetime: str | None = None


class SceneTruth(RunFile):
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


class MappedScene(RunFile):
    """One mapped scene: the STAC item beside its GeoTIFFs, and its truth where that is known."""

    bbox: tuple[float, ...] = ()
    properties: SceneTime = SceneTime()
    result: SceneFacts = SceneFacts()
    truth: SceneTruth | None = None


class ExampleFacts(RunFile):
    """The facts of an example chip: examples/<name>.json."""

    chip: str = ""
    method: str = ""
    threat: str = ""
    model: str = ""
    largest_change: float | None = None
    preview_bands: tuple[str, ...] = ()
    severity: float | None = None
    level: float | None = None
    quantity: str = ""
    level_unit: str = ""


class EpochFacts(RunFile):
    """One epoch of one network: a row of models/<name>/history.jsonl. `scores` holds the validation figures."""

    model: str
    epoch: int
    loss: float | None = None
    best: bool = False
    scores: Mapping[str, float | None] = Field(default_factory=dict)


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run folder, all that the page is made from.

    Args:
        path: The run folder.
        recipe: The recipe; None where the folder has none.
        toml: The recipe's text.
        facts: Data, label noise, seconds per stage and version.
        env: Versions and devices.
        records: The measured rows, in the order of the file.
        history: Training rows; each names its model.
        examples: Paths of the example chips, sorted.
        scenes: Scenes by name, sorted.
        weight_faults: Flipped weight bits, a value per network, fault and defense.
        unreadable: Files of the folder that could not be read, with the reason.
    """

    path: Path
    recipe: Recipe | None
    toml: str
    facts: RunFacts
    env: Mapping[str, Any]
    records: tuple[Record, ...]
    history: tuple[EpochFacts, ...]
    examples: tuple[Path, ...] = ()
    scenes: Mapping[str, MappedScene] = field(default_factory=dict)
    weight_faults: tuple[WeightFaultFacts, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The recipe id of the records, else the name of the folder."""
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


def read_run(path: Path) -> RunFolder:
    """Read a run folder.

    Args:
        path: A folder with at least `recipe.toml` or `records.jsonl`.

    Raises:
        RunError: The folder holds no run, or its recipe or records cannot be read.
    """
    path = path.resolve()
    if not (path / "recipe.toml").is_file() and not (path / "records.jsonl").is_file():
        raise RunError(
            f"{path}: expected a run folder, got no recipe.toml and no records.jsonl; give a folder under runs/"
        )
    unreadable: list[str] = []
    return RunFolder(
        path=path,
        recipe=_recipe(path / "recipe.toml"),
        toml=_utf8_text(path / "recipe.toml"),
        facts=_validated(RunFacts, path / "facts.json", unreadable) or RunFacts(),
        env=_json_object(path / "env.json", unreadable) or {},
        records=_records(path / "records.jsonl"),
        history=tuple(_history_rows(path, unreadable)),
        examples=tuple(sorted((path / "examples").glob("*.npz"))),
        scenes=_scenes(path / "scenes", unreadable),
        weight_faults=tuple(read_weight_faults(path / FAULT_ROWS, unreadable)),
        unreadable=tuple(unreadable),
    )


def _recipe(path: Path) -> Recipe | None:
    """Read the recipe with the recipe's own reader, so that a key which it does not know is an error here too."""
    if not path.is_file():
        return None
    _utf8_text(path)
    try:
        return read_recipe(path)
    except RecipeError as bad:
        raise RunError(f"{bad}; a recipe of another version makes no page here, so run it again") from bad


def _utf8_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as bad:
        raise RunError(f"{path}: expected UTF-8 text, got {bad.reason}; run the recipe again") from bad


def _json_object(path: Path, unreadable: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as bad:
        unreadable.append(f"{path.name}: not whole ({type(bad).__name__}); left out")
        return None
    if not isinstance(found, dict):
        unreadable.append(f"{path.name}: not a JSON object; left out")
        return None
    return found


FileT = TypeVar("FileT", bound=RunFile)


def _validated(model: type[FileT], path: Path, unreadable: list[str]) -> FileT | None:
    found = _json_object(path, unreadable)
    try:
        return None if found is None else model.model_validate(found)
    except ValidationError as bad:
        unreadable.append(f"{path.name}: {first_error(bad)}; left out")
        return None


def _scenes(folder: Path, unreadable: list[str]) -> dict[str, MappedScene]:
    """Read every scene and the truth beside it."""
    found: dict[str, MappedScene] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith(TRUTH_SUFFIX):
            continue
        scene = _validated(MappedScene, path, unreadable)
        if scene is not None:
            truth = _validated(SceneTruth, folder / f"{path.stem}{TRUTH_SUFFIX}", unreadable)
            found[path.stem] = scene.model_copy(update={"truth": truth})
    return found


TRUTH_SUFFIX = ".truth.json"
"""End of the name of the file that compares a map with the truth."""


def read_example(path: Path) -> ExampleFacts:
    """Read the facts beside an example chip; without a file, the defaults.

    Raises:
        ValueError: The file is there and cannot be read.
    """
    unreadable: list[str] = []
    found = _validated(ExampleFacts, path.with_suffix(".json"), unreadable)
    if unreadable:
        raise ValueError(unreadable[0])
    return found or ExampleFacts()


def read_weight_faults(path: Path, unreadable: list[str]) -> Iterator[WeightFaultFacts]:
    """Yield the lines of `FAULT_ROWS`; the reason for each that cannot be read is added to a list."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    for number, line in enumerate(lines, 1):
        try:
            yield WeightFaultFacts.model_validate_json(line)
        except ValidationError as bad:
            unreadable.append(f"{path.name}:{number}: {first_error(bad)}; left out")


def _records(path: Path) -> tuple[Record, ...]:
    """Read the complete lines; an incomplete last line of a killed run is ignored, and the file is not changed."""
    if not path.is_file():
        return ()
    raw = path.read_bytes()
    if raw.endswith(b"\n") or not raw:
        return tuple(read_records(path))
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        whole.write_bytes(raw[: raw.rfind(b"\n") + 1])
        return tuple(read_records(whole))


def _history_rows(path: Path, unreadable: list[str]) -> Iterator[EpochFacts]:
    for file in sorted((path / "models").glob("*/history.jsonl")):
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
                scores = {key: value for key, value in row.items() if key.startswith("val.")}
                yield EpochFacts.model_validate({**row, "model": file.parent.name, "scores": scores})
            except (ValueError, AttributeError, TypeError):
                unreadable.append(f"{file.parent.name}/{file.name}:{number}: not a row of a training; left out")

"""Read a run folder once. Files that cannot be read are listed with the reason; nothing is written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from seawall.class_names import main_class
from seawall.errors import RecipeError, RunError, first_error
from seawall.recipe.recipe import Recipe, read_recipe
from seawall.records import Record, read_records
from seawall.report.run_facts import (
    COST_FIGURES,
    FAULT_ROWS,
    SENSITIVITY_FIGURES,
    DataFacts,
    EpochFacts,
    ExampleFacts,
    MappedScene,
    RunCosts,
    RunFacts,
    RunFile,
    SceneTruth,
    SensitivityFacts,
    WeightFaultFacts,
)


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
        sensitivity: Sensitivity curves by the name of the network.
        weight_faults: Flipped weight bits, a value per network, fault and defense.
        costs: What the models cost.
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
    sensitivity: Mapping[str, SensitivityFacts] = field(default_factory=dict)
    weight_faults: tuple[WeightFaultFacts, ...] = ()
    costs: RunCosts = field(default_factory=RunCosts)
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
        return main_class(self.classes)

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
        sensitivity=read_sensitivity(path / SENSITIVITY_FIGURES, unreadable),
        weight_faults=tuple(read_weight_faults(path / FAULT_ROWS, unreadable)),
        costs=_validated(RunCosts, path / COST_FIGURES, unreadable) or RunCosts(),
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


def read_sensitivity(path: Path, unreadable: list[str]) -> dict[str, SensitivityFacts]:
    """Read the sensitivity curves of each network; one that cannot be read is listed and left out."""
    found: dict[str, SensitivityFacts] = {}
    for name, value in (_json_object(path, unreadable) or {}).items():
        try:
            found[name] = SensitivityFacts.model_validate(value)
        except ValidationError as bad:
            unreadable.append(f"{path.name}, {name}: {first_error(bad)}; left out")
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

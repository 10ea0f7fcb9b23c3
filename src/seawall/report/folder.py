"""A run folder, read once: what is there is kept, what is torn or unreadable is named, nothing is written."""

from __future__ import annotations

import json
import math
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seawall.errors import RunError
from seawall.records import Record, read_records


@dataclass(frozen=True)
class Run:
    """Everything that the page is made from.

    Args:
        path: The run folder.
        recipe: The recipe as plain values; `toml` is its text.
        facts: What the pipeline says about data, time and version.
        env: Versions and devices.
        records: The measured rows, in the order of the file.
        history: Training rows; each names its model.
        examples: Stems of the example chips, sorted.
        scenes: Scene name to its JSON, sorted by name.
        faults: Files of the folder that could not be read, with the reason.
    """

    path: Path
    recipe: Mapping[str, Any]
    toml: str
    facts: Mapping[str, Any]
    env: Mapping[str, Any]
    records: tuple[Record, ...]
    history: tuple[Mapping[str, Any], ...]
    examples: tuple[Path, ...] = ()
    scenes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The recipe id: what the records say, else the folder's name."""
        return self.records[0].recipe if self.records else self.path.name

    @property
    def data(self) -> Mapping[str, Any]:
        """Facts about the chips."""
        return tree(self.facts, "data")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return tuple(map(str, self.data.get("classes") or ("land", "water")))

    @property
    def klass(self) -> str:
        """The class that the page is about: water where there is one, else the last."""
        return "water" if "water" in self.classes else self.classes[-1]


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
    toml = _text(path / "recipe.toml")
    try:
        recipe = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as bad:
        raise RunError(f"{path / 'recipe.toml'}: expected TOML, got {bad}; run the recipe again") from bad
    return Run(
        path=path,
        recipe=recipe,
        toml=toml,
        facts=_object(path / "facts.json", faults),
        env=_object(path / "env.json", faults),
        records=_records(path / "records.jsonl"),
        history=tuple(_history(path, faults)),
        examples=tuple(sorted((path / "examples").glob("*.npz"))),
        scenes={p.stem: _object(p, faults) for p in sorted((path / "scenes").glob("*.json"))},
        faults=tuple(faults),
    )


def tree(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a branch of plain values, empty where it is missing or of another kind."""
    branch = value.get(name)
    return branch if isinstance(branch, Mapping) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as bad:
        raise RunError(f"{path}: expected UTF-8 text, got {bad.reason}; run the recipe again") from bad


def _object(path: Path, faults: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as bad:
        faults.append(f"{path.name}: not whole ({type(bad).__name__}); left out")
        return {}
    if not isinstance(found, dict):
        faults.append(f"{path.name}: not a JSON object; left out")
        return {}
    return found


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


def _history(path: Path, faults: list[str]) -> Iterator[Mapping[str, Any]]:
    rows = list(_lines(path / "history.jsonl", "", faults))
    yield from rows
    told = {row["model"] for row in rows}
    for file in sorted((path / "models").glob("*/history.jsonl")):
        if file.parent.name not in told:
            yield from _lines(file, file.parent.name, faults)


def _lines(path: Path, model: str, faults: list[str]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield {"model": model} | row
        else:
            faults.append(f"{path.parent.name}/{path.name}:{number}: not a JSON object; left out")


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else.

    Example:
        >>> number(3), number("3"), number(float("nan")), number(True)
        (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)

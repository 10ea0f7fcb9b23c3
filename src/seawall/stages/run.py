"""Where a run lives and what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seawall.recipe import Recipe
from seawall.records import RecordLog
from seawall.result import Progress


@dataclass(frozen=True)
class Run:
    """Where a run lives and what it was asked."""

    recipe: Recipe
    folder: Path
    device: str
    resume: bool
    progress: Progress

    @property
    def log(self) -> RecordLog:
        """The rows measured so far."""
        return RecordLog(self.folder / "records.jsonl")

    def say(self, stage: str) -> Callable[[int, int, str], None]:
        """Return the progress callback of one stage."""

        def step(done: int, total: int, note: str = "") -> None:
            self.progress(stage, done, total, note)

        return step

"""Where a run lives and what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seawall.recipe import Recipe
from seawall.records import RecordLog
from seawall.result import Progress, of_stage


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
        return of_stage(self.progress, stage)

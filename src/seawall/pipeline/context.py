"""The context of a run, which its stages share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seawall.recipe.recipe import Recipe
from seawall.records import RecordLog
from seawall.result import Progress, StageProgress, stage_progress


@dataclass(frozen=True)
class RunContext:
    """A run: what its stages share.

    Args:
        recipe: The experiment.
        folder: Folder of the run.
        device: auto, cpu, cuda, cuda:1 or mps.
        resume: Continue from what the folder has.
        progress: Called as progress(stage, done, total, note).
    """

    recipe: Recipe
    folder: Path
    device: str
    resume: bool
    progress: Progress

    @property
    def log(self) -> RecordLog:
        """The log of the rows measured so far."""
        return RecordLog(self.folder / "records.jsonl")

    def stage_progress(self, stage: str) -> StageProgress:
        """Return the progress callback of one stage."""
        return stage_progress(self.progress, stage)

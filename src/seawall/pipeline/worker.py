"""One process of a training that several share; started by `seawall.training.launch.run_processes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from seawall.data.chips import ChipFolder
from seawall.pipeline.context import RunContext
from seawall.pipeline.data import make_split
from seawall.recipe.recipe import make_recipe
from seawall.result import StageProgress
from seawall.training.launch import run_worker

if TYPE_CHECKING:
    from seawall.recipe.recipe import Network


def training_job(run: RunContext, chips: ChipFolder, network: Network) -> dict[str, object]:
    """Return the job of a training as plain values."""
    return {
        "recipe": run.recipe.model_dump(mode="json", exclude_none=True), "folder": str(run.folder.resolve()),
        "device": run.device, "resume": run.resume, "chips": str(chips.root.resolve()), "network": network.name,
    }  # fmt: skip


def run_job(job: Mapping[str, object], progress: StageProgress) -> None:
    """Train as one process of a distributed training."""
    from seawall.pipeline.training import train_in_process  # that module starts this one

    def report(stage: str, done: int, total: int, note: str = "") -> None:
        progress(done, total, note)

    recipe = make_recipe(cast(Mapping[str, object], job["recipe"]))
    run = RunContext(recipe, Path(str(job["folder"])), str(job["device"]), bool(job["resume"]), report)
    chips = ChipFolder.open(Path(str(job["chips"])))
    network = next(one for one in run.recipe.networks if one.name == job["network"])
    train_in_process(run, chips, make_split(run, chips), network)


if __name__ == "__main__":
    run_worker(run_job)

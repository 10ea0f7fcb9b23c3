"""One process of a training that several share; started by `seawall.training.launch.run_processes`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from seawall.data.chips import ChipFolder
from seawall.pipeline.context import Run
from seawall.pipeline.data import divide
from seawall.recipe import make_recipe
from seawall.result import StageProgress
from seawall.training.launch import worker

if TYPE_CHECKING:
    from seawall.recipe import Network


def job_of(run: Run, chips: ChipFolder, network: Network) -> dict[str, object]:
    """Return a training as plain values."""
    return {
        "recipe": run.recipe.model_dump(mode="json", exclude_none=True), "folder": str(run.folder.resolve()),
        "device": run.device, "resume": run.resume, "chips": str(chips.root.resolve()), "network": network.name,
    }  # fmt: skip


def train(job: Mapping[str, object], progress: StageProgress) -> None:
    """Take part in the training of a job."""
    from seawall.pipeline.training import train_here  # its module starts this one

    def tell(stage: str, done: int, total: int, note: str = "") -> None:
        progress(done, total, note)

    recipe = make_recipe(cast(Mapping[str, object], job["recipe"]))
    run = Run(recipe, Path(str(job["folder"])), str(job["device"]), bool(job["resume"]), tell)
    chips = ChipFolder.open(Path(str(job["chips"])))
    network = next(one for one in run.recipe.networks if one.name == job["network"])
    train_here(run, chips, divide(run, chips), network)


if __name__ == "__main__":
    worker(train)

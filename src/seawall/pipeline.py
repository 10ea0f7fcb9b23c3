"""The main job: chips -> split -> train -> evaluate -> attack -> corrupted labels -> scene map -> report.

Each stage reads what the one before left in the run folder, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seawall.datasets.chips import ChipFolder
from seawall.datasets.splits import Split
from seawall.errors import RecipeError
from seawall.facts import Clock, data_facts, environment
from seawall.figures import figures, with_doubts
from seawall.files import RunLock, write_atomic
from seawall.models.weights import read_spec
from seawall.orders import cases_of, vet
from seawall.recipe import Recipe
from seawall.report import write_report
from seawall.result import Progress
from seawall.stages.gather import divide, gather
from seawall.stages.learn import check, learn, maker, realize, spec_of_chips, train_one
from seawall.stages.measure import measure
from seawall.stages.run import Run
from seawall.stages.survey import survey


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind."""

    run: Run
    page: Path
    maps: Mapping[str, str]
    failed: tuple[tuple[str, str], ...]


def execute(recipe: Recipe, out: Path, *, device: str, resume: bool, progress: Progress) -> Outcome:
    """Run a recipe from chips to report in `out/<recipe id>`.

    Raises:
        RunError: Another process works in that folder.
    """
    folder = out / recipe.id
    run = Run(recipe, folder, device, resume, progress)
    vet(recipe)
    with RunLock(folder):
        if not resume:
            _clear(folder)
        write_atomic(folder / "recipe.toml", recipe.to_toml())
        write_atomic(folder / "env.json", json.dumps(environment(), indent=1, sort_keys=True))
        clock = Clock(folder / "facts.json")
        with clock.timed("chips"):
            chips, failed = gather(run, out / "chips")
        split = divide(run, chips)
        clock.note(data=data_facts(chips, split))
        _rehearse(run, chips, split)
        clock.note(noises=realize(run, chips, split))
        with clock.timed("training"):
            models = dict(learn(run, chips, split))
        with clock.timed("evaluation"):
            measure(run, chips, split, models)
        with clock.timed("scene"):
            maps = survey(run, chips, next(iter(models.values())))
        write_report(folder)
    return Outcome(run, folder / "report.html", maps, failed)


def _rehearse(run: Run, chips: ChipFolder, split: Split) -> None:
    """Build what comes after training: a band that an index lacks is said now, not after an hour."""
    list(cases_of(run.recipe, spec_of_chips(chips)))
    for method in run.recipe.baselines:
        maker(method)(spec_of_chips(chips))


def train_only(
    recipe: Recipe, out: Path, *, device: str, resume: bool, progress: Progress
) -> tuple[dict[str, str | int | float | None], list[dict[str, str | int | float | None]], tuple[tuple[str, str], ...]]:
    """Split a chip folder and train one network; return facts, a table of the validation figures, and nothing failed."""
    for key in ("attacks", "suites", "noises", "baselines", "scene"):
        if getattr(recipe, key):
            raise RecipeError(
                f"{key}: expected nothing of it in a training, got some; put it into a recipe for `seawall run`"
            )
    vet(recipe)
    run = Run(recipe, out, device, resume, progress)
    chips, _ = gather(run, out)
    split = divide(run, chips)
    with RunLock(out):
        write_atomic(out / "recipe.toml", recipe.to_toml())
        model = train_one(run, chips, split, recipe.model.name, recipe.training.objective, None)
    table: list[dict[str, str | int | float | None]] = [
        {"metric": name, "value": value} for name, value in check(model, chips, split.val).items()
    ]
    weights = out / "models" / recipe.model.name / "model.safetensors"
    return (
        {"weights": str(weights), "train": len(split.train), "val": len(split.val), "test": len(split.test)},
        table,
        (),
    )


def summary(run: Run) -> list[dict[str, str | float | None]]:
    """Return one row per model, method and threat: IoU and accuracy on the held-out chips with interval and flags."""
    spec = read_spec(run.folder / "models" / run.recipe.model.name / "model.safetensors")
    klass = "water" if "water" in spec.classes else spec.classes[-1]
    rows = [r for r in figures(with_doubts(run.log)) if not r.chip and not r.group]
    found = {(r.model, r.method, r.threat, r.metric, r.klass): r.value for r in rows}
    flags = {(r.model, r.method, r.threat): ", ".join(r.flags) for r in rows}
    columns = {
        "iou.pooled": klass,
        "iou.pooled.low": klass,
        "iou.pooled.high": klass,
        "iou.per_chip": klass,
        "accuracy.pooled": "",
    }
    return [
        {
            "model": where[0], "method": where[1], "threat": where[2],
            **{metric: found.get((*where, metric, of)) for metric, of in columns.items()}, "flags": flags[where],
        }
        for where in dict.fromkeys(key[:3] for key in found)
    ]  # fmt: skip


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

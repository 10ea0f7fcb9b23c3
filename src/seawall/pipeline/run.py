"""The main job: chips -> split -> train -> evaluate -> attack -> corrupted labels -> scene map -> report.

Each stage reads what the one before left in the run folder, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seawall.data.chips import ChipFolder, digest_chips
from seawall.data.splits import Split
from seawall.errors import RecipeError, RunError
from seawall.io import RunLock, write_atomic
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.consistency import with_consistency_flags
from seawall.models.weights import read_spec
from seawall.pipeline.context import Run
from seawall.pipeline.data import divide, gather
from seawall.pipeline.evaluation import measure
from seawall.pipeline.mapping import survey
from seawall.pipeline.provenance import Clock, data_facts, note_environment
from seawall.pipeline.training import check, learn, maker, realize, spec_of_chips, train_one, training_of
from seawall.pipeline.validate import check_distinct, vet
from seawall.recipe import Recipe
from seawall.report.page import write_report
from seawall.result import Progress
from seawall.training.checkpoint import differences


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind.

    Args:
        run: The run.
        page: The report.
        maps: Path of each layer of the scene.
        failed: (item, reason) of chips that were left out.
        code: Code versions that made the rows, oldest first; more than one after a resume with other code.
    """

    run: Run
    page: Path
    maps: Mapping[str, str]
    failed: tuple[tuple[str, str], ...]
    code: tuple[str, ...] = ()


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
        code = note_environment(folder)
        clock = Clock(folder / "facts.json")
        with clock.timed("chips"):
            chips, failed = gather(run, out / "chips")
        split = divide(run, chips)
        clock.note(data=data_facts(chips, split))
        same_experiment(run, chips, split)
        clock.note(monitor=training_of(run, chips, split).monitor)
        _rehearse(run, chips, split)
        clock.note(noises=realize(run, chips, split))
        with clock.timed("training"):
            models = dict(learn(run, chips, split))
        with clock.timed("evaluation"):
            measure(run, chips, split, models)
        with clock.timed("scene"):
            name, network = next(iter(models.items()))
            maps = survey(run, chips, network, folder / "models" / name / "model.safetensors")
        write_report(folder)
    return Outcome(run, folder / "report.html", maps, failed, code)


def _rehearse(run: Run, chips: ChipFolder, split: Split) -> None:
    """Build what comes after training: a band that an index lacks is said now, not after an hour."""
    check_distinct(run.recipe, spec_of_chips(chips))
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
    training = training_of(run, chips, split)
    with RunLock(out):
        same_experiment(run, chips, split)
        write_atomic(out / "recipe.toml", recipe.to_toml())
        code = note_environment(out)
        model = train_one(run, chips, split, recipe.networks[0])
    table: list[dict[str, str | int | float | None]] = [
        {"metric": name, "value": value} for name, value in check(model, chips, split.val).items()
    ]
    weights = out / "models" / recipe.model.name / "model.safetensors"
    facts: dict[str, str | int | float | None] = {
        "weights": str(weights), "train": len(split.train), "val": len(split.val), "test": len(split.test),
        "split": split.how, "chosen by": training.monitor, **other_code(code),
    }  # fmt: skip
    return facts, table, ()


def label_facts(run: Run) -> dict[str, str]:
    """Return, for each network that learned from wrong labels, the noise that was asked for and the change that it made."""
    noises = json.loads((run.folder / "facts.json").read_text(encoding="utf-8")).get("noises", {})
    return {
        f"labels of {name}": f"{told['noise']} {told['vary']} {told['rate']:g} asked, {told['changed_share']:.1%} of the training pixels changed"
        for name, told in noises.items()
    }


def other_code(versions: Sequence[str]) -> dict[str, str]:
    """Return a fact that says which code took part, where it was not one alone."""
    return {"code": ", then ".join(versions)} if len(versions) > 1 else {}


def same_experiment(run: Run, chips: ChipFolder, split: Split) -> None:
    """Refuse to go on in a folder that other settings or other chips made; write down what decides its numbers.

    Raises:
        RunError: The folder was made by another experiment; names what differs.
    """
    path = run.folder / "experiment.json"
    now = _flat(run.recipe.deciding) | {
        f"chips.{part}": digest_chips(chips, ids) for part, ids in split.parts().items()
    }
    if run.resume and path.exists():
        was = _flat(Recipe(name=run.recipe.name).deciding) | json.loads(path.read_text(encoding="utf-8"))
        if changes := differences(was, now):
            raise RunError(
                f"{run.folder}: expected the experiment that was begun here, got {changes}; undo the change, choose another folder, or start over with --no-resume"
            )
    write_atomic(path, json.dumps(now, indent=1, sort_keys=True))


def _flat(tree: Mapping[str, object], under: str = "") -> dict[str, str]:
    """Return plain values by dotted keys, as texts."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{under}{key}.")
        else:
            found[f"{under}{key}"] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return found


def summary(run: Run) -> list[dict[str, str | float | None]]:
    """Return one row per model, method and threat: IoU and accuracy on the held-out chips with interval and flags."""
    spec = read_spec(run.folder / "models" / run.recipe.model.name / "model.safetensors")
    klass = "water" if "water" in spec.classes else spec.classes[-1]
    made = [r for r in aggregate_records(with_consistency_flags(run.log)) if not r.chip and not r.group]
    found = {(r.model, r.method, r.threat, r.metric, r.klass): r.value for r in made}
    flags = {(r.model, r.method, r.threat): ", ".join(r.flags) for r in made}
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

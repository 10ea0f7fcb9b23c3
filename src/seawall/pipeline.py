"""The main job: chips -> split -> train -> evaluate -> attack -> corrupted labels -> scene map -> report.

Each stage reads what the one before left in the run folder, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from seawall import registry
from seawall.datasets.chips import Chip, ChipFolder
from seawall.datasets.curate import curate
from seawall.datasets.index import is_chip_folder
from seawall.datasets.loader import patches, whole
from seawall.datasets.simulated import Simulated
from seawall.datasets.splits import Split, split_blocks, split_groups
from seawall.errors import DataError, RecipeError
from seawall.evaluate import CLEAN, Case, evaluate, missing
from seawall.facts import Clock, data_facts, digest_chips, environment
from seawall.figures import figures
from seawall.files import RunLock, write_atomic
from seawall.imagery.radiometry import Hints
from seawall.imagery.raster import write_cog
from seawall.imagery.simulate import simulate_s1, simulate_s2
from seawall.infer import predict_scene
from seawall.interrogate import QUICK, interrogated
from seawall.keys import Keys
from seawall.labels.rule import parse_rule
from seawall.metrics import confusion
from seawall.models.standardize import Standardize
from seawall.models.threshold import ThresholdNet
from seawall.models.weights import load_model, read_spec
from seawall.orders import Relabel, cases_of, noise_of, vet, vet_data
from seawall.recipe import Method, Noise, Recipe
from seawall.records import RecordLog
from seawall.report import write_report
from seawall.result import Progress
from seawall.runtime import find_device
from seawall.schedule import make_training
from seawall.train import fit
from seawall.types import Batch, ModelSpec, Objective, SegmentationModel


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
    list(cases_of(run.recipe, _spec(chips)))
    for method in run.recipe.baselines:
        _maker(method)(_spec(chips))


def train_only(
    recipe: Recipe, out: Path, *, device: str, resume: bool, progress: Progress
) -> tuple[dict[str, str | int | float | None], list[dict[str, str | int | float | None]], tuple[tuple[str, str], ...]]:
    """Split a chip folder and train one network; return facts, a table of the validation figures, and nothing failed."""
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


def gather(run: Run, home: Path) -> tuple[ChipFolder, tuple[tuple[str, str], ...]]:
    """Return the chips of a recipe, curated once and shared by every run with the same data section."""
    data = run.recipe.data
    source = os.path.expandvars(data.source)
    if "$" in source:
        raise RecipeError(
            f"data.source: expected {source} to be set in the environment, got nothing; export it or write the path"
        )
    if data.kind == "chips" or (data.kind == "auto" and is_chip_folder(Path(source))):
        vet_data(data, "chips")
        return ChipFolder.open(Path(source)), ()
    vet_data(data, "simulated" if source == "simulated" else "files")
    text = json.dumps([data.model_dump(mode="json"), source, run.recipe.seed], sort_keys=True)
    folder = home / f"{run.recipe.name}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
    where = Simulated(
        data.count,
        data.size,
        data.sensor,
        data.bands,
        seed=run.recipe.seed,
        clouds=data.clouds,
        cover=data.labels == "cover",
    )
    made = curate(
        where if source == "simulated" else source, folder,
        kind="auto" if source == "simulated" else data.kind, sensor=data.sensor, select=data.select, bands=data.bands,
        names=data.names, group=data.group, gsd_m=data.gsd_m, hints=Hints(gain=data.gain, offset=data.offset),
        label_map=data.label_map or None, labeler=None if data.labels in ("truth", "cover") else parse_rule(data.labels),
        progress=run.say("chips"),
    )  # fmt: skip
    return made.folder, made.failed


def divide(run: Run, chips: ChipFolder) -> Split:
    """Split the chips that have a label by group or block."""
    by, seed = run.recipe.split, run.recipe.seed
    ids = [row.id for row in chips.rows if row.valid_share > 0]
    if by.by == "block":
        return split_blocks(chips, seed, block_m=by.block_m, val=by.val, test=by.test, ids=ids)
    return split_groups(chips, seed, val=by.val, test=by.test, ids=ids)


def learn(run: Run, chips: ChipFolder, split: Split) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network trained on clean labels, then one per label noise and rate."""
    name, training = run.recipe.model.name, run.recipe.training
    yield name, train_one(run, chips, split, name, training.objective, None)
    for called, (noise, fault) in corruptions(run, chips, split).items():
        yield called, train_one(run, chips, split, called, noise.objective or training.objective, fault)


def corruptions(run: Run, chips: ChipFolder, split: Split) -> dict[str, tuple[Noise, Relabel]]:
    """Return the label faults of a recipe by the name of the network that learns from them."""
    name = run.recipe.model.name
    return {
        f"{name}@{noise.name}-{rate:g}" + (f"+{_way(noise.objective)}" if noise.objective else ""): (
            noise,
            Relabel(noise_of(noise, rate, chips, split), run.recipe.seed),
        )
        for noise in run.recipe.noises
        for rate in noise.rates
    }


def realize(run: Run, chips: ChipFolder, split: Split) -> dict[str, dict[str, float | int]]:
    """Return what each label fault really changes in the training part.

    Raises:
        DataError: It changes nothing; a network trained on it would be the clean one under another name.
    """
    found: dict[str, dict[str, float | int]] = {}
    for called, (noise, fault) in corruptions(run, chips, split).items():
        pairs = [(chip := chips.read(id_), fault(chip)) for id_ in split.train]
        wrong = [int(((old.label != new.label) & old.valid).sum()) for old, new in pairs]
        valid = sum(int(old.valid.sum()) for old, _ in pairs)
        if not any(wrong) and any(rate > 0 for rate in noise.rates):
            raise DataError(
                f"noises.{noise.name}: expected it to change labels of {len(pairs)} training chips, got none changed "
                f"in {valid} pixels; use another noise, or more chips"
            )
        found[called] = {
            "changed_share": sum(wrong) / valid,
            "chips_changed": sum(n > 0 for n in wrong),
            "chips": len(pairs),
        }
    return found


def _way(objective: Method) -> str:
    """Name how a network is trained through a noise: by its loss if that is all, else by its objective."""
    loss = objective.settings.get("loss")
    return loss.replace(" ", "") if objective.name == "supervised" and isinstance(loss, str) else objective.name


def train_one(
    run: Run, chips: ChipFolder, split: Split, name: str, objective: Method, edit: Callable[[Chip], Chip] | None
) -> nn.Module:
    """Train one network, or load it where its training is complete."""
    recipe, folder = run.recipe, run.folder / "models" / name
    training = make_training(recipe.training.settings)
    make = _maker(recipe.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Keys(recipe.seed, (recipe.model.name,)).number(0))
        model = make(replace(_spec(chips), note=recipe.title))
    mean, std = chips.mean_std(split.train)
    cast(Standardize, model.standardize).fit(mean.tolist(), std.tolist())

    def feed(epoch: int) -> Iterator[Batch]:
        return patches(
            chips, split.train, patch=training.patch, batch=training.batch, count=training.patches_per_epoch, epoch=epoch,
            seed=recipe.seed, augment=recipe.training.augment, balance=recipe.training.balance, edit=edit,
        )  # fmt: skip

    fit(
        model,
        cast(Objective, registry.build("objective", objective.name, objective.settings)),
        feed,
        lambda trained: check(trained, chips, split.val),
        training,
        folder,
        device=run.device,
        resume=run.resume,
        seed=recipe.seed,
        context={"chips": digest_chips(chips, split.train), "labels": repr(edit)},
        progress=run.say(f"train {name}"),
    )
    return load_model(folder / "model.safetensors")


def check(model: nn.Module, chips: ChipFolder, ids: Iterable[str]) -> dict[str, float]:
    """Return the figures that choose the best epoch: IoU per class, pooled over the validation chips."""
    classes = chips.classes
    counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in whole(chips, tuple(ids)):
            pred = model(batch.image.to(device)).argmax(1).cpu()
            counts += confusion(pred, batch.label, batch.valid, len(classes)).sum(0)
    hit = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - hit
    return {f"val.iou.{name}": float(hit[k] / union[k]) if union[k] else 0.0 for k, name in enumerate(classes)}


def measure(run: Run, chips: ChipFolder, split: Split, models: Mapping[str, nn.Module]) -> None:
    """Evaluate every model on the held-out chips; the clean network and the baselines under attack as well."""
    recipe, log = run.recipe, run.log
    groups = {row.id: row.group for row in chips.rows}
    first = next(iter(models))
    attacked = {first: models[first], **dict(_baselines(run, chips, split))}
    cases = [CLEAN, *cases_of(recipe, cast(ModelSpec, models[first].spec))]
    for name, model in {**attacked, **models}.items():
        model.to(find_device(run.device))
        mine = _flagged(run, chips, split, name, model, cases) if name in attacked else [CLEAN]
        for case in mine:
            shown = name == first and case is mine[-1]  # the last attack at its last threat is the page's example
            evaluate(
                cast(SegmentationModel, model),
                whole(
                    chips,
                    missing(
                        log,
                        split.test,
                        recipe=recipe.id,
                        name=name,
                        classes=chips.classes,
                        groups=groups,
                        attacks=[case],
                    ),
                ),
                log=log,
                recipe=recipe.id,
                name=name,
                groups=groups,
                attacks=[case],
                seed=recipe.seed,
                show=telling(chips, split.test, recipe.examples) if shown else (),
                examples=run.folder / "examples",
                progress=run.say(f"{name}: {case.method} {case.spoken}".rstrip()),
            )


def _flagged(run: Run, chips: ChipFolder, split: Split, name: str, model: nn.Module, cases: list[Case]) -> list[Case]:
    """Interrogate a network that is not measured to the end yet: its attacks carry what speaks against them."""
    groups, net = {row.id: row.group for row in chips.rows}, cast(SegmentationModel, model)
    if not missing(
        run.log, split.test, recipe=run.recipe.id, name=name, classes=chips.classes, groups=groups, attacks=cases
    ):
        return cases
    return interrogated(net, whole(chips, telling(chips, split.test, QUICK.chips)), cases, run.recipe.seed)


def telling(chips: ChipFolder, ids: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the chips whose classes are most evenly mixed: pictures of nothing but land show nothing."""
    counts = {id_: chips.row(id_).class_counts for id_ in ids}
    even = {id_: 1 - max(found) / max(sum(found), 1) for id_, found in counts.items()}
    return tuple(sorted(even, key=lambda id_: (-even[id_], id_))[:count])


def survey(run: Run, chips: ChipFolder, model: nn.Module) -> dict[str, str]:
    """Map the recipe's scene with the clean network and return the paths of the maps."""
    scene = run.recipe.scene
    if scene is None:
        return {}
    home = run.folder / "scenes"
    source = Path(os.path.expandvars(scene.source))
    if scene.source == "simulated":
        source = _simulated_scene(chips, scene.size, run.recipe.seed, home)
    result = predict_scene(
        model, source, home, name="scene", device=run.device, resume=run.resume, progress=run.say("scene")
    )
    return {layer: str(home / file) for layer, file in result.files.items()}


def _simulated_scene(chips: ChipFolder, size: int, seed: int, home: Path) -> Path:
    path = home / "input.tif"
    if path.exists():  # whole, and of this very recipe: the folder is named by its content
        return path
    make = simulate_s1 if "VV" in chips.bands or "VH" in chips.bands else simulate_s2
    made = make("scene", size, chips.bands, seed=seed)
    write_cog(
        path,
        np.where(made.seen, made.image, np.nan),
        made.grid,
        bands=made.bands,
        nodata=math.nan,
        tags={"SEAWALL_UNIT": made.unit},
    )
    return path


def _spec(chips: ChipFolder) -> ModelSpec:
    return ModelSpec(chips.bands, chips.classes, chips.unit, chips.gsd_m)


def _maker(method: Method) -> Callable[[ModelSpec], nn.Module]:
    return cast(Callable[[ModelSpec], nn.Module], registry.build("model", method.name, method.settings))


def _baselines(run: Run, chips: ChipFolder, split: Split) -> Iterator[tuple[str, nn.Module]]:
    for method in run.recipe.baselines:
        model = _maker(method)(_spec(chips))
        if method.settings.get("rule") == "otsu":
            cast(ThresholdNet, model).fit(whole(chips, split.train))
        yield (
            "-".join(str(method.settings[key]) for key in ("index", "rule") if key in method.settings) or method.name,
            model,
        )


def summary(run: Run) -> list[dict[str, str | float | None]]:
    """Return one row per model, method and threat: IoU and accuracy on the held-out chips with their interval."""
    spec = read_spec(run.folder / "models" / run.recipe.model.name / "model.safetensors")
    klass = "water" if "water" in spec.classes else spec.classes[-1]
    found = {
        (r.model, r.method, r.threat, r.metric, r.klass): r.value
        for r in figures(run.log)
        if not r.chip and not r.group
    }
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
            **{metric: found.get((*where, metric, of)) for metric, of in columns.items()},
        }
        for where in dict.fromkeys(key[:3] for key in found)
    ]  # fmt: skip


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

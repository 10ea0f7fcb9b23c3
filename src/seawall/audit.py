"""Verbs on a model that is there already: measure it, attack it, map scenes with it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from torch import nn

from seawall import registry
from seawall.datasets.chips import ChipFolder
from seawall.datasets.loader import whole
from seawall.datasets.splits import split_groups
from seawall.errors import UsageError, did_you_mean
from seawall.evaluate import CLEAN, Case, missing
from seawall.evaluate import evaluate as measure
from seawall.figures import card, figures, with_doubts
from seawall.files import RunLock
from seawall.infer import Survey, model_digest, predict_many
from seawall.interrogate import Interrogation, interrogated
from seawall.models.weights import load_model
from seawall.orders import threat_for
from seawall.recipe import SplitBy
from seawall.records import Record, RecordLog
from seawall.report.flags import explain
from seawall.result import Progress, of_stage
from seawall.runtime import Runtime, find_device
from seawall.scenes.product import slug_of
from seawall.suites import cases as attacks_of
from seawall.suites import parse_suite
from seawall.threat import ThreatModel
from seawall.types import Batch, ModelSpec, SegmentationModel

Row = dict[str, str | int | float | None]
Facts = dict[str, str | int | float | None]
Failed = Sequence[tuple[str, str]]
PARTS = ("all", "train", "val", "test")


def evaluate_chips(
    weights: Path, chips: Path, out: Path, *, part: str, seed: int, device: str, progress: Progress
) -> tuple[Facts, list[Row], Failed]:
    """Measure weights on a chip folder; rows go to `out/records.jsonl`."""
    model, batches, groups = _open(weights, chips, part, seed, device)
    measured = _measured(model, batches, groups, [CLEAN], out, seed, device, progress)
    rows = [row for row in figures(measured) if not row.chip and not row.group]
    spec = cast(ModelSpec, model.spec)
    found = {(r.metric, r.klass): r.value for r in rows}
    table: list[Row] = [
        {
            "class": klass,
            **{
                name: found.get((name, klass))
                for name in ("iou.pooled", "iou.pooled.low", "iou.pooled.high", "iou.per_chip")
            },
            **{name: found.get((f"{name}.pooled", klass)) for name in ("precision", "recall", "f1", "specificity")},
        }
        for klass in spec.classes
    ]
    facts: Facts = {
        name: found.get((name, "")) for name in ("miou.pooled", "accuracy.pooled", "ece.pooled", "srip.iou")
    }
    return {**{k: v for k, v in facts.items() if v is not None}, "rows": str(out / "records.jsonl")}, table, ()


def attack_chips(
    model: Path | SegmentationModel, data: Path | Batch, threat: str | ThreatModel, *, method: Sequence[str], suite: str, out: Path | None,
    part: str, seed: int, device: str, progress: Progress,
) -> tuple[Facts, list[Row], Failed]:  # fmt: skip
    """Attack a model on chips with the named attacks and the members of a suite; clean and worst case stand beside."""
    if not threat:
        raise UsageError('attack: expected a threat such as "linf 1% reflectance", got none; say norm, size and unit')
    acts: dict[str, object] = {name: registry.build("attack", name) for name in method}
    acts |= dict(attacks_of(parse_suite(suite))) if suite else {}
    acts = acts or {"pgd": registry.build("attack", "pgd")}
    net, batches, groups = _open(model, data, part, seed, device)
    spec = cast(ModelSpec, net.spec)
    told = threat if isinstance(threat, ThreatModel) else threat_for(threat, spec)
    cases = [CLEAN, *(Case(name, act, told) for name, act in acts.items())]
    with _folder(out, data) as home:
        rows = _measured(net, batches, groups, cases, home, seed, device, progress)
    klass = "water" if "water" in spec.classes else spec.classes[-1]
    table = card(rows, list(acts), str(told), klass)
    facts: Facts = {"class": klass, **({"rows": str(home / "records.jsonl")} if home.exists() else {})}
    for flag in dict.fromkeys(flag for row in rows for flag in row.flags):
        facts[f"flag {flag}"] = f"{explain(flag).means} {explain(flag).do}"
    return facts, table, ()


@contextmanager
def _folder(out: Path | None, data: Path | Batch) -> Iterator[Path]:
    """Rows of a chip folder stay on disk, so that a killed attack resumes; those of a batch in memory need not."""
    if out is not None or isinstance(data, Path):
        yield out or Path("runs/attack")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "rows"


def map_scenes(
    weights: Path, scene: Path, out: Path, *, klass: str, names: Sequence[str], tile: int | None, overlap: int | None, runtime: Runtime,
    memory_mib: int, device: str, resume: bool, progress: Progress,
) -> tuple[Facts, list[Row], Failed]:  # fmt: skip
    """Map a scene, a folder or a manifest of scenes."""
    survey = Survey(klass=klass, tile=tile, overlap=overlap, runtime=runtime, memory_mib=memory_mib, bands=tuple(names))
    report = predict_many(
        load_model(weights),
        scene,
        out,
        survey=survey,
        device=device,
        resume=resume,
        progress=of_stage(progress, "scenes"),
        weights=weights,
    )
    table: list[Row] = [
        {
            "scene": done.name, f"{slug_of(done.klass)}_km2": done.area_km2, "expected_km2": done.expected_km2, "low_km2": done.low_km2,
            "high_km2": done.high_km2, "unsure_share": done.unsure_share, "flags": ", ".join(done.flags),
        }
        for done in report.made
    ]  # fmt: skip
    files: Facts = {
        f"{done.name} {layer}": str(out / file) for done in report.made for layer, file in done.files.items()
    }
    return files, table, report.failed


def _open(
    model: Path | SegmentationModel, data: Path | Batch, part: str, seed: int, device: str
) -> tuple[nn.Module, list[Batch], Mapping[str, str]]:
    if part not in PARTS:
        raise UsageError(f"part: unknown {part!r}; {did_you_mean(part, PARTS)}")
    if isinstance(data, Batch):
        return _net(model, None, device), [data], {}
    chips = ChipFolder.open(data)
    split = SplitBy()
    parts = split_groups(chips, seed, val=split.val, test=split.test) if part != "all" else None
    ids = chips.ids if parts is None else {"train": parts.train, "val": parts.val, "test": parts.test}[part]
    return _net(model, chips, device), list(whole(chips, ids)), {row.id: row.group for row in chips.rows}


def _net(model: Path | SegmentationModel, chips: ChipFolder | None, device: str) -> nn.Module:
    if not isinstance(model, Path):
        net = cast(nn.Module, model)
        return net if device == "auto" else net.to(find_device(device))  # a module of the caller's stays where it is
    home = find_device(device)
    if chips is None:
        return load_model(model).to(home)
    return load_model(model, bands=chips.bands, classes=chips.classes, unit=chips.unit).to(home)


def _measured(
    model: nn.Module, batches: Sequence[Batch], groups: Mapping[str, str], cases: Sequence[Case], out: Path, seed: int, device: str,
    progress: Progress,
) -> list[Record]:  # fmt: skip
    # the same folder may hold rows of other weights or chips: content is part of every key
    recipe = f"{model_digest(model)[:8]}-{_digest(batches)}-{seed}"
    with RunLock(out):
        log = RecordLog(out / "records.jsonl")
        left = missing(
            log, [chip for batch in batches for chip in batch.chips], recipe=recipe, name=type(model).__name__,
            classes=cast(ModelSpec, model.spec).classes, groups=groups, attacks=cases,
        )  # fmt: skip
        if left:
            cases = interrogated(cast(SegmentationModel, model), batches, cases, seed, Interrogation())
        measure(
            cast(SegmentationModel, model), batches, log=log, recipe=recipe, name=type(model).__name__, groups=groups,
            attacks=cases, seed=seed, progress=of_stage(progress, "chips"),
        )  # fmt: skip
        asked = {(case.method, case.spoken) for case in cases}
        mine = (row for row in log if row.recipe == recipe and (row.method, row.threat) in asked)
        return with_doubts(mine)


def _digest(batches: Iterable[Batch]) -> str:
    found = hashlib.blake2b(digest_size=4)
    for batch in batches:
        found.update("\x1f".join(batch.chips).encode())
        for tensor in (batch.image, batch.label, batch.seen, batch.valid):
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()

"""Verbs on a trained model: evaluate it, attack it, map scenes with it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from torch import nn

from seawall import registry
from seawall.attacks.suites import named_attacks as attacks_of
from seawall.attacks.suites import parse_suite
from seawall.class_names import main_class
from seawall.data.chips import ChipFolder
from seawall.data.selection import SEEN_IN_CALIBRATION, check_part, select_chips
from seawall.errors import UsageError
from seawall.evaluation.case import CLEAN_CASE, Case
from seawall.evaluation.measurement import ChipSource, case_progress, check_and_evaluate, recipe_ids, records_of_cases
from seawall.evaluation.sanity_checks import SanityChecks
from seawall.geo.preview import write_preview
from seawall.inference.backends import Runtime, find_device
from seawall.inference.guarantee import Guarantee, guarantee_of
from seawall.inference.layers import slug_of
from seawall.inference.predict import predict_many
from seawall.inference.products import SceneResult
from seawall.inference.scene import is_safe
from seawall.inference.settings import PredictSettings
from seawall.inputs import Sample, as_batch, as_model
from seawall.io import RunLock, file_sha256
from seawall.keyed_transforms.keys import read_key
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.consistency import with_consistency_flags
from seawall.metrics.robustness_card import robustness_card
from seawall.models.keyed import KeyedModel
from seawall.models.weights import load_model, read_spec, spec_of, split_of
from seawall.records import Record, RecordLog
from seawall.report.flags import explain
from seawall.report.page import write_map_page
from seawall.result import Failed, MutableRow, Progress, stage_progress
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.types import Attack, SegmentationModel
from seawall.uncertainty.area import check_interval_level
from seawall.uncertainty.build import parse_uncertainty
from seawall.uncertainty.calibration import Calibration, open_predictor, uncertainty_text
from seawall.uncertainty.covariate_shift import parse_shift


def evaluate_chips(
    weights: Path, chips: Path, out: Path, *, part: str, uncertainty: str, calibration: str, device: str, progress: Progress, key: str = ""
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Evaluate weights on a chip folder, with an estimator of uncertainty around them; rows go to `out/records.jsonl`."""
    target = with_uncertainty(open_target(weights, chips, part, device, key), weights, uncertainty, calibration)
    measured = measure_target(target, [CLEAN_CASE], out, 0, progress)
    rows = [row for row in aggregate_records(measured) if not row.chip and not row.group]
    found = {(r.metric, r.klass): r for r in rows}

    def value(metric: str, klass: str = "") -> float | None:
        return found[metric, klass].value if (metric, klass) in found else None

    table: list[MutableRow] = [
        {
            "class": klass,
            **{
                name: value(name, klass) for name in ("iou.pooled", "iou.pooled.low", "iou.pooled.high", "iou.per_chip")
            },
            **{name: value(f"{name}.pooled", klass) for name in ("precision", "recall", "f1", "specificity")},
            "flags": ", ".join(found["iou.pooled", klass].flags) if ("iou.pooled", klass) in found else "",
        }
        for klass in spec_of(target.net).classes
    ]
    overall = {name: value(name) for name in ("miou.pooled", "accuracy.pooled", "ece", "ece.edge", "srip.iou")}
    facts: MutableRow = {name: number for name, number in overall.items() if number is not None}
    return {**facts, **target.facts, "rows": str(out / "records.jsonl"), **flag_facts(flags_of(measured))}, table, ()


def with_uncertainty(
    target: MeasuredModel, model: Path | SegmentationModel, uncertainty: str, calibration: str
) -> MeasuredModel:
    """Return a target with an estimator around its network; chips of scenes that it was calibrated on are flagged.

    Args:
        target: What `open_target` made of the model.
        model: Weights, beside which members and calibration lie; a module has neither.
        uncertainty: The estimator.
        calibration: auto, none, or its file.
    """
    weights = model if isinstance(model, Path) else None
    method = parse_uncertainty(uncertainty, weights)
    net, found, path = open_predictor(method, cast(SegmentationModel, target.net), weights, calibration)
    facts = {
        **target.facts,
        "uncertainty": uncertainty_text(method),
        "calibration": "none" if path is None else str(path),
    }
    if found is None:
        return replace(target, net=net, facts=facts)
    scenes, flags = frozenset(found.facts.scenes), target.chips.flags

    def of_chip(chip: str) -> tuple[str, ...]:
        return (*flags(chip), SEEN_IN_CALIBRATION) if target.chips.groups[chip] in scenes else flags(chip)

    return replace(target, net=net, facts=facts, chips=replace(target.chips, flags=of_chip))


def attack_chips(
    model: Path | SegmentationModel, data: Path | Sample, threat: str | ThreatModel, *, method: Sequence[str], suite: str, out: Path | None,
    part: str, seed: int, device: str, sanity_checks: bool, progress: Progress, key: str = "",
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Attack a model on chips with the named attacks and the members of a suite; the table has clean and worst case too."""
    if not threat:
        raise UsageError('attack: expected a threat such as "linf 1% reflectance", got none; give norm, size and unit')
    attacks: dict[str, Attack] = {name: registry.build("attack", name) for name in method}
    attacks |= dict(attacks_of(parse_suite(suite))) if suite else {}
    attacks = attacks or {"pgd": registry.build("attack", "pgd")}
    target = open_target(model, data, part, device, key)
    spec = spec_of(target.net)
    parsed = threat if isinstance(threat, ThreatModel) else parse_threat(threat, spec)
    cases = [CLEAN_CASE, *(Case(name, attack, parsed) for name, attack in attacks.items())]
    with row_folder(out, data, Path("runs/attack")) as home:
        rows = measure_target(target, cases, home, seed, progress, sanity_checks)
    klass = main_class(spec.classes)
    table = robustness_card(rows, list(attacks), str(parsed), klass)
    kept: MutableRow = {"rows": str(home / "records.jsonl")} if home.exists() else {}
    return {"class": klass, **target.facts, **kept, **flag_facts(flags_of(rows))}, table, ()


def flag_facts(flags: Iterable[str]) -> MutableRow:
    """Return the explanation of every flag."""
    return {f"flag {flag}": f"{explain(flag).means} {explain(flag).do}" for flag in dict.fromkeys(flags)}


def flags_of(rows: Iterable[Record]) -> Iterator[str]:
    """Yield the flags of the rows."""
    return (flag for row in rows for flag in row.flags)


@contextmanager
def row_folder(out: Path | None, data: Path | Sample, default: Path) -> Iterator[Path]:
    """Give the folder for the rows: on the disk for a chip folder, so that a killed verb resumes; temporary for a batch."""
    if out is not None or isinstance(data, Path):
        yield out or default
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "rows"


def map_scenes(
    weights: Path, scene: Path, out: Path, *, klass: str, names: Sequence[str], tile: int | None, overlap: int | None, runtime: Runtime,
    memory_mib: int, verify_tiles: int | None, layers: Sequence[str], uncertainty: str, calibration: str, risk: Sequence[str], shift: str, level: float, device: str, resume: bool, progress: Progress, key: str = "",
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Map a scene, a folder or a manifest of scenes."""
    settings = PredictSettings(
        klass=klass, tile=tile, overlap=overlap, runtime=runtime, memory_mib=memory_mib, bands=tuple(names), verify_tiles=verify_tiles,
        layers=tuple(layers),
    )  # fmt: skip
    network = cast(SegmentationModel, load_model(weights, key=read_key(key) if key else None))
    model, found, path = open_predictor(parse_uncertainty(uncertainty, weights), network, weights, calibration)
    guarantee = _asked_guarantee(found, path, risk, shift, level, uncertainty, calibration)
    report = predict_many(
        model,
        scene,
        out,
        settings=settings,
        device=device,
        resume=resume,
        progress=stage_progress(progress, "scenes"),
        weights=weights,
        guarantee=guarantee,
    )
    table: list[MutableRow] = [
        {
            "scene": done.name, f"{slug_of(done.klass)}_km2": done.area_km2,
            "low_km2": None if done.interval is None else done.interval.low_km2,
            "high_km2": None if done.interval is None else done.interval.high_km2,
            "expected_km2": done.expected_km2, "surely_km2": done.low_km2, "cannot_tell_km2": done.unsure_km2, "cannot_tell_share": done.unsure_share,
            "flags": ", ".join(done.flags),
        }
        for done in report.made
    ]  # fmt: skip
    pages = {f"{done.name} page": str(_map_page(out, done, scene)) for done in report.made}
    files: MutableRow = {**pages}
    files |= {f"{done.name} {layer}": str(out / file) for done in report.made for layer, file in done.files.items()}
    told: MutableRow = {f"{done.name} area": done.statement for done in report.made if done.statement}
    fitted: MutableRow = {} if found is None else {
        "calibration": f"{path}: {found.facts.count} chips of {len(found.facts.scenes)} scenes", **{str(c.risk): str(c) for c in guarantee.controls}
    }  # fmt: skip
    return {**files, **fitted, **told}, table, report.failed


def _map_page(out: Path, made: SceneResult, source: Path) -> Path:
    """Write the page of a map, with a picture of the scene where that is a raster, unless it is there with the map."""
    item = out / f"{made.name}.json"
    if made.reused and item.with_suffix(".html").is_file():
        return item.with_suffix(".html")
    linked = json.loads(item.read_text(encoding="utf-8"))["links"]
    path = next((out / unquote(link["href"]) for link in linked if link["rel"] == "derived_from"), source)
    with tempfile.TemporaryDirectory() as folder:
        picture = None
        if not is_safe(path):
            picture = write_preview(path, Path(folder) / "preview.npz", digest=made.scene)
        return write_map_page(item, picture)


def _asked_guarantee(
    found: Calibration | None, path: Path | None, risk: Sequence[str], shift: str, level: float, uncertainty: str, given: str
) -> Guarantee:  # fmt: skip
    """Return what maps promise.

    Raises:
        UsageError: Something is asked for that needs a calibration, and there is none; or the level is not inside (0, 1).
        DataError: A risk cannot be controlled.
    """
    check_interval_level(level)
    if found is None or path is None:
        if risk or shift:
            what = f"{'risk' if risk else 'shift'}: expected a calibration of {uncertainty}"
            if given == "none":
                raise UsageError(f"{what}, got --calibration none; leave that out")
            raise UsageError(
                f'{what}, got none beside the weights; run `seawall calibrate WEIGHTS CHIPS --uncertainty "{uncertainty}"` first, '
                "or name the --uncertainty that was calibrated"
            )
        return Guarantee(level=level)
    return guarantee_of(found, file_sha256(path), risk, parse_shift(shift) if shift else None, level)


@dataclass(frozen=True)
class MeasuredModel:
    """A model and the chips that it is measured on.

    Args:
        net: The model.
        chips: The chips.
        facts: Which chips they are, and by which split.
        gsd_m: Meters per pixel of the chips.
    """

    net: nn.Module
    chips: ChipSource
    facts: MutableRow
    gsd_m: float


def open_target(
    model: Path | SegmentationModel, data: Path | Sample, part: str, device: str, key: str = ""
) -> MeasuredModel:
    """Return a model and the chips of a part that it is measured on; `key` is the source of the model's key, if it needs one.

    Raises:
        UsageError: There is no such part.
        DataError: The chips have other bands, classes or units than the model, or the part has none.
    """
    check_part(part)
    if not isinstance(data, Path):
        if part not in ("auto", "all"):
            raise UsageError(
                f"part: expected all or auto for a Batch, got {part!r}; a Batch has no record of a split, so select its chips beforehand"
            )
        net = load_network(model, None, device, key)
        batch = as_batch(data, spec_of(net))
        return MeasuredModel(net, ChipSource.of_batch(batch), {"chips": len(batch)}, spec_of(net).gsd_m)
    folder = ChipFolder.open(data).as_seen_by(bands_of_model(model))
    net = load_network(model, folder, device, key)
    chosen = select_chips(folder, split_of(net), part)
    return MeasuredModel(
        net, ChipSource.of_folder(folder, chosen.ids, chosen.flags), dict(chosen.facts()), folder.gsd_m
    )


def bands_of_model(model: Path | SegmentationModel) -> tuple[str, ...]:
    """Return the bands that a model takes, which may be some of those of the chips."""
    return (read_spec(model) if isinstance(model, Path) else spec_of(as_model(model))).bands


def load_network(model: Path | SegmentationModel, chips: ChipFolder | None, device: str, key: str = "") -> nn.Module:
    """Return a network on its device; one from a file must have the bands, classes and unit of the chips, if there are any.

    Raises:
        UsageError: A key is given with a module, or cannot be read.
    """
    if not isinstance(model, Path):
        if key:
            raise UsageError(f"key: expected none with a module, got {key!r}; a module holds its own transform")
        net = as_model(model)
        return net if device == "auto" else net.to(find_device(device))  # the caller's module stays on its device
    torch_device = find_device(device)
    secret = read_key(key) if key else None
    net = (
        load_model(model, key=secret)
        if chips is None
        else load_model(model, bands=chips.bands, classes=chips.classes, unit=chips.unit, key=secret)
    )
    # an attack that goes straight through an encryption would show robustness that is not there
    return (net.for_attacks() if isinstance(net, KeyedModel) else net).to(torch_device)


def measure_target(
    target: MeasuredModel,
    cases: Sequence[Case],
    out: Path,
    seed: int,
    progress: Progress,
    sanity_checks: bool = True,
    name: str = "",
) -> list[Record]:
    """Return the records of a model under every case; those that `out/records.jsonl` lacks are measured first.

    Args:
        target: The model and the chips.
        cases: What is done to the images.
        out: Folder of the rows.
        seed: Seed of attacks and corruptions.
        progress: Called with one stage per attack, and one for all corruptions.
        sanity_checks: Whether attacks are checked.
        name: Model name in the rows and stages; its class in the rows where "".
    """
    ask = SanityChecks() if sanity_checks else None
    recipe = recipe_ids(target.net, target.chips, seed, ask)
    with RunLock(out):
        log = RecordLog(out / "records.jsonl")
        check_and_evaluate(
            target.net, target.chips, cases, log=log, recipe=recipe, name=name or type(target.net).__name__, seed=seed, checks=ask,
            progress=case_progress(progress, cases, name),
        )  # fmt: skip
        return with_consistency_flags(records_of_cases(log, cases, recipe, target.chips))

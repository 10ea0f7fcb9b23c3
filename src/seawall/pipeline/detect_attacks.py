"""Whether a model's uncertainty notices attacks on held-out chips, with adversaries who know the detector beside those who do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from seawall import registry
from seawall.attacks.flip_share import smallest_flip_share
from seawall.class_names import main_class
from seawall.data.chips import ChipFolder
from seawall.data.selection import select_chips
from seawall.errors import DataError, UsageError
from seawall.evaluation.case import Case
from seawall.evaluation.detection import (
    ChipReadings,
    DetectorAware,
    HeldOutDetectors,
    measure_detection,
    read_chips,
)
from seawall.evaluation.measurement import ChipSource
from seawall.geo.raster import write_cog
from seawall.inputs import Sample
from seawall.metrics.bootstrap import IntervalEstimate
from seawall.models.weights import spec_of, split_of
from seawall.modules import eval_mode, to_device_of
from seawall.pipeline.trained_model import bands_of_model, flag_facts, open_target, with_uncertainty
from seawall.records import finite_or_none
from seawall.result import Failed, MutableRow, Progress
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.types import Attack, SegmentationModel
from seawall.uncertainty.attack_detection import ALL_FEATURES

BESIDE = ("pgd-confident-wrong", "pgd-uncertainty-weighted")
"""Attacks that know of the uncertainty and not of the detector; they stand beside the chosen ones."""


@dataclass(frozen=True)
class DetectionOrder:
    """What `seawall detect-attacks` is asked for.

    Args:
        threat: The threat, as text.
        method: Registered attacks.
        features: Features whose detectors are shown beside that of all features; those that every model has where empty.
        adaptive: Whether attacks that know of the uncertainty or of the detector stand beside.
        alarms: Share of clean chips of a new group that may be flagged.
        seed: Seed of the attacks.
    """

    threat: str | ThreatModel
    method: tuple[str, ...]
    features: tuple[str, ...]
    adaptive: bool
    alarms: float
    seed: int


def detect_attacks_on(
    model: Path | SegmentationModel, data: Path | Sample, order: DetectionOrder, *, uncertainty: str, calibration: str, part: str,
    flip_map: Path | None, key: str, device: str, progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Measure how well attacks on held-out chips are detected; the table has a row per attack and detector."""
    if not order.threat:
        raise UsageError(
            'detect-attacks: expected a threat such as "linf 1% reflectance", got none; give norm, size and unit'
        )
    target = open_target(model, data, part, device, key)
    spec = spec_of(target.net)
    threat = order.threat if isinstance(order.threat, ThreatModel) else parse_threat(order.threat, spec)
    predictor = with_uncertainty(target, model, uncertainty, calibration)
    net = predictor.net
    others = _validation_chips(target.net, data, part)
    with eval_mode(net):
        table, facts = _measure(cast(SegmentationModel, net), target.chips, others, threat, order, progress)
        if flip_map is not None:
            facts["flip maps"] = _write_flip_maps(
                cast(SegmentationModel, net), target.chips, data, threat, order.seed, flip_map, progress
            )
    klass = main_class(spec.classes)
    flags = flag_facts(flag for chip in target.chips.ids for flag in predictor.chips.flags(chip))
    return {"class": klass, "alarms": order.alarms, **predictor.facts, **facts, **flags}, table, ()


def _validation_chips(net: nn.Module, data: Path | Sample, part: str) -> ChipSource | None:
    """Return the chips that the weights were chosen by: their groups help to find the cut-off and are not tested."""
    if not isinstance(data, Path) or part not in ("auto", "test") or (record := split_of(net)) is None:
        return None
    folder = ChipFolder.open(data).as_seen_by(bands_of_model(cast(SegmentationModel, net)))
    try:
        return ChipSource.of_folder(folder, select_chips(folder, record, "val").ids)
    except DataError:  # the folder has none of them
        return None


def _measure(
    model: SegmentationModel, chips: ChipSource, others: ChipSource | None, threat: ThreatModel, order: DetectionOrder, progress: Progress
) -> tuple[list[MutableRow], MutableRow]:  # fmt: skip
    groups = dict(chips.groups)
    clean = read_chips(model, chips.read(chips.ids), groups)
    more = None if others is None else read_chips(model, others.read(others.ids), dict(others.groups))
    shown = tuple(dict.fromkeys((ALL_FEATURES, *(order.features or default_features(clean.names)))))
    detectors = {name: HeldOutDetectors.of(clean, more, name, order.alarms) for name in shown}
    attacks = named_detection_attacks(order.method, detectors, groups, order.adaptive)
    labelled = np.isfinite(clean.accuracy)  # others cannot be attacked, but help to find the cut-off
    if not labelled.any():
        raise DataError(
            "detect-attacks: expected chips with labels to attack, got none; label some, or choose another part"
        )
    tested = clean.select(labelled)
    table: list[MutableRow] = []
    klass = model.spec.klass(main_class(model.spec.classes))
    for done, (name, attack) in enumerate(attacks.items()):
        progress("attacks", done, len(attacks), name)
        attacked = read_chips(model, chips.read(tested.chips), groups, Case(name, attack, threat), order.seed)
        table += [
            detection_row(name, shown_name, one, tested, attacked, klass) for shown_name, one in detectors.items()
        ]
    progress("attacks", len(attacks), len(attacks), "")
    fewest = min(len(set(one.groups)) for one in detectors[ALL_FEATURES].detectors.values())
    facts: MutableRow = {"groups": len(set(tested.groups)), "clean groups that give the cut-off": fewest}
    if left := int((~labelled).sum()):
        facts["chips without a label"] = f"{left}, which are not attacked"
    return table, facts


def default_features(names: Sequence[str]) -> tuple[str, ...]:
    """Return the features whose detectors are shown where none is named: one of each kind."""
    kinds = ("entropy", "mutual information", "noise floor")
    return tuple(name for name in kinds if name in names)


def named_detection_attacks(
    method: Sequence[str], detectors: Mapping[str, HeldOutDetectors], groups: Mapping[str, str], adaptive: bool
) -> dict[str, Attack]:
    """Return the attacks by name: the chosen ones, those that know of the uncertainty, and those that know a detector.

    Args:
        method: Registered attacks; pgd where empty.
        detectors: Feature to its detectors.
        groups: Group of each chip.
        adaptive: Whether there are others than the chosen ones.
    """
    plain = dict.fromkeys((*(method or ("pgd",)), *(BESIDE if adaptive else ())))
    attacks: dict[str, Attack] = {name: registry.build("attack", name) for name in plain}
    known = {name: one for name, one in detectors.items() if name in (ALL_FEATURES, "entropy")}
    if adaptive:
        attacks |= {f"undetected-pgd by {name}": DetectorAware(one.detectors, groups) for name, one in known.items()}
    return attacks


def detection_row(
    attack: str, name: str, detectors: HeldOutDetectors, clean: ChipReadings, attacked: ChipReadings, klass: int
) -> MutableRow:
    """Return a row of the table: an attack and a detector."""
    found = measure_detection(detectors, clean, attacked)
    return {
        "attack": attack, "detector": name, **_with_interval("auroc", found.auroc), **_with_interval("detected", found.detected),
        "false_alarms": finite_or_none(float(found.alarms.value[0])), "harmed": found.success, "harmed_unnoticed": found.unnoticed,
        "iou_clean": clean.iou(klass), "iou": attacked.iou(klass), "ece_clean": clean.ece, "ece": attacked.ece,
    }  # fmt: skip


def _with_interval(name: str, estimate: IntervalEstimate) -> MutableRow:
    ends = {"": estimate.value, ".low": estimate.low, ".high": estimate.high}
    return {f"{name}{end}": finite_or_none(float(value[0])) for end, value in ends.items()}


def _write_flip_maps(
    model: SegmentationModel, chips: ChipSource, data: Path | Sample, threat: ThreatModel, seed: int, home: Path, progress: Progress
) -> str:  # fmt: skip
    """Write a GeoTIFF per chip with the smallest budget at which each pixel changes its class, in data units."""
    if not isinstance(data, Path):
        raise UsageError(
            "flip-map: expected a chip folder, got a Batch; call seawall.attacks.flip_share.smallest_flip_share"
        )
    folder = ChipFolder.open(data)
    done = 0
    for clean in chips.read(chips.ids):
        batch = to_device_of(model, clean)
        shares = smallest_flip_share(model, batch, threat, Keys(seed, batch.chips, ("flip-map",)))
        budgets = torch.where(batch.seen, shares * threat.radius, torch.nan).cpu().numpy().astype(np.float32)
        for chip, plane in zip(batch.chips, budgets, strict=True):
            row = folder.row(chip)
            own = plane[: row.height, : row.width]
            write_cog(
                home / f"{chip}.tif",
                own,
                row.grid,
                bands=("flip_eps",),
                nodata=float("nan"),
                tags={"threat": str(threat)},
            )
            done += 1
        progress("flip maps", done, len(chips.ids), "")
    return str(home)

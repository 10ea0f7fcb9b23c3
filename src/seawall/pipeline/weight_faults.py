"""Flipped weight bits: the verb `flip-bits` and the stage of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from torch import nn

from seawall import registry
from seawall.class_names import main_class
from seawall.data.chips import ChipFolder
from seawall.data.loader import patches, whole_chips
from seawall.data.selection import select_chips
from seawall.data.splits import Split
from seawall.errors import DataError, UsageError
from seawall.inference.backends import find_device
from seawall.inputs import Sample, as_batch
from seawall.io import write_atomic
from seawall.models.weights import spec_of, split_of
from seawall.pipeline.context import RunContext
from seawall.pipeline.trained_model import MeasuredModel, open_target, row_folder
from seawall.recipe.sections import REFERENCE, FaultSection
from seawall.report.run_facts import FAULT_ROWS, WeightFaultFacts
from seawall.report.run_reader import read_weight_faults
from seawall.result import Failed, MutableRow, Progress, StageProgress, stage_progress
from seawall.types import Batch, SegmentationModel
from seawall.weight_faults.build import NamedFault, named_defenses, named_faults
from seawall.weight_faults.damage import (
    ClassCounts,
    Draw,
    FaultRound,
    count_class,
    fault_curve,
    measure_fault,
)
from seawall.weight_faults.int8 import BITS, int8_weights, weight_parameters

DEFAULT_FAULTS = ("progressive-bit-search", "random-flips")
ATTACKED_PATCH = 128
"""Side of the patches that bits are chosen on, in pixels."""


def flip_weight_bits(
    model: Path | SegmentationModel, data: Path | Sample, *, fault: Sequence[str], defense: Sequence[str],
    chosen_on: Path | Sample | None, images: int, most: int, out: Path | None, part: str, seed: int, device: str, progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Flip weight bits until the IoU on held-out chips is halved; the table has a row per fault and defense.

    Raises:
        UsageError: A fault, a defense or a number is wrong, or bits would be chosen on measured chips.
        ModelError: The model has no weights of convolutions or linear layers.
        DataError: There are no training chips to choose the bits on.
    """
    named = named_faults(fault or DEFAULT_FAULTS, defense, most)
    target = open_target(model, data, part, device)
    weight_parameters(target.net)
    batch = _attack_batch(target, data, chosen_on, images, seed)

    def held_out() -> Iterator[Batch]:
        yield from target.chips.read(target.chips.ids)

    klass = main_class(spec_of(target.net).classes)
    clean = count_class(target.net, held_out(), spec_of(target.net).klass(klass))
    name = type(target.net).__name__
    lines = [
        fault_line(name, one, target.net, batch, held_out, seed, stage_progress(progress, one.label)) for one in named
    ]
    facts: MutableRow = {"class": klass, "float iou": clean.iou, "bits": lines[0].bits, **target.facts}
    with row_folder(out, data, Path("runs/flip-bits")) as home:
        if isinstance(data, Path) or out is not None:
            write_atomic(home / FAULT_ROWS, fault_text(lines))
            facts["rows"] = str(home / FAULT_ROWS)
    return facts, [_table_row(line) for line in lines], ()


def faults_of(section: FaultSection) -> list[NamedFault]:
    """Return the fault of a recipe's section without a defense and with each.

    Raises:
        UsageError: The fault, a defense or a setting is unknown, or a defense is there twice.
    """
    name, fault = section.called or section.name, registry.build("fault", section.name, section.settings)
    return [NamedFault(name, fault, guard, one, section.most) for guard, one in named_defenses(section.defenses)]


def fault_line(
    model: str, named: NamedFault, net: nn.Module, batch: Batch, held_out: Draw, seed: int, progress: StageProgress
) -> WeightFaultFacts:
    """Measure a fault and return its line of `FAULT_ROWS`; the network's weights are as before afterwards, to the bit."""
    with int8_weights(net, named.defense) as weights:
        found: list[ClassCounts | FaultRound] = []
        for one in measure_fault(weights, named.fault, batch, held_out, seed=seed, most=named.most):
            found.append(one)
            if isinstance(one, FaultRound):
                progress(min(one.count, named.most), named.most, f"IoU {one.counts.iou or 0:.3f}")
        bits, layers = weights.size * BITS, len(weights.layers)
    curve = fault_curve(found)
    return WeightFaultFacts(
        model=model, fault=named.name, defense=named.defense_name, seed=seed, bits=bits, layers=layers, most=named.most,
        flips_to_half=curve.flips_to_half,
        curve=((0, curve.clean.both, curve.clean.either), *((one.count, *astuple(one.counts)) for one in curve.rounds)),
        flips=tuple(astuple(flip) for flip in curve.flips),
        detected=curve.rounds[-1].detected if curve.rounds else 0,
        seconds=round(sum(one.seconds for one in curve.rounds), 3),
    )  # fmt: skip


def fault_text(lines: Sequence[WeightFaultFacts]) -> str:
    """Return lines as the text of `FAULT_ROWS`."""
    return "".join(f"{line.model_dump_json()}\n" for line in lines)


def _table_row(line: WeightFaultFacts) -> MutableRow:
    flips = len(line.flips)
    return {
        "fault": line.fault, "defense": line.defense, "int8 iou": line.iou[0], "flips to half": line.flips_to_half, "flips": flips,
        "iou": line.iou[-1], "sign bits": line.sign_share, "detected": line.detected_share,
        "seconds per flip": line.seconds / flips if flips else None,
    }  # fmt: skip


def measure_weight_faults(run: RunContext, chips: ChipFolder, split: Split, models: Mapping[str, nn.Module]) -> None:
    """Measure the faults of a recipe on its network and the reference; lines that are there are not measured again.

    A fault that cannot be measured, as on a network that finds nothing of the class, has a line with the reason.
    """
    recipe, path = run.recipe, run.folder / FAULT_ROWS
    if not recipe.faults:
        return

    def held_out() -> Iterator[Batch]:
        yield from whole_chips(chips, split.test)

    lines = list(read_weight_faults(path, []))
    done = {(line.model, line.fault, line.defense) for line in lines}
    for name in (recipe.model.name, REFERENCE):
        for section in recipe.faults if name in models else ():
            net = models[name].to(find_device(run.device))
            batch = training_patches(chips, split.train, section.images, recipe.seed)
            for named in faults_of(section):
                if (name, named.name, named.defense_name) in done:
                    continue
                stage = run.stage_progress(f"{named.label} on {name}")
                try:
                    line = fault_line(name, named, net, batch, held_out, recipe.seed, stage)
                except DataError as bad:  # a network that finds no water must not take the report with it
                    line = WeightFaultFacts(
                        model=name, fault=named.name, defense=named.defense_name, seed=recipe.seed, most=named.most,
                        refused=str(bad),
                    )  # fmt: skip
                lines.append(line)
                write_atomic(path, fault_text(lines))


def training_patches(chips: ChipFolder, ids: Sequence[str], images: int, seed: int) -> Batch:
    """Return the patches that bits are chosen on, drawn with equal shares of the classes.

    Raises:
        UsageError: `images` is below 1.
    """
    if images < 1:
        raise UsageError(f"images: expected at least 1 patch to choose the bits on, got {images}; 8 is common")
    return next(patches(chips, ids, patch=ATTACKED_PATCH, batch=images, count=images, seed=seed, balance="classes"))


def _attack_batch(
    target: MeasuredModel, data: Path | Sample, chosen_on: Path | Sample | None, images: int, seed: int
) -> Batch:
    """Return what bits are chosen on: the named chips, or training chips of the measured folder.

    Raises:
        UsageError: None are named and the weights do not say what they learned from, or they are measured too.
    """
    if chosen_on is not None and not isinstance(chosen_on, Path):
        return as_batch(chosen_on, spec_of(target.net), "chosen_on")
    place = data if chosen_on is None else chosen_on
    if not isinstance(place, Path):
        raise UsageError("chosen_on: expected a batch to choose the bits on, got none; give one that is not measured")
    record = split_of(target.net)
    if chosen_on is None and record is None:
        raise UsageError(
            "chosen_on: expected chips to choose the bits on, because these weights do not say what they learned from, got none; "
            "name a folder of other chips"
        )
    folder = ChipFolder.open(place).as_seen_by(spec_of(target.net).bands)
    ids = select_chips(folder, record, "train" if chosen_on is None else "all").ids
    if place == data and (both := sorted(set(ids) & set(target.chips.ids))):
        raise UsageError(
            f"chosen_on: expected other chips than those that are measured, got {len(both)} of them, such as {both[0]}; "
            "measure another part"
        )
    return training_patches(folder, ids, images, seed)

"""Poisoned chip folders, and the search for poisoned chips in a folder that a network learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from seawall import registry
from seawall.class_names import class_index
from seawall.data.chip_format import IGNORE
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.data.selection import select_chips
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, UsageError
from seawall.io import RunLock, write_atomic
from seawall.label_noise.build import chip_batch
from seawall.models.weights import spec_of, split_of
from seawall.modules import feature_layers, named_layer
from seawall.pipeline.corrupt_labels import select_part, split_settings
from seawall.pipeline.trained_model import bands_of_model, load_network
from seawall.poisoning.detection import activations
from seawall.poisoning.gradient_matching import GradientMatching
from seawall.poisoning.meta_poison import MetaPoison
from seawall.poisoning.target import PoisonTarget, choose_chips
from seawall.result import Failed, MutableRow, Progress
from seawall.rng import Keys
from seawall.types import Batch, Poison, Setting, unit_text

POISONS_FILE = "poisons.jsonl"


@dataclass(frozen=True)
class TargetWindow:
    """What a crafted poison aims at: a window of one chip, and the class that it shall be given.

    Args:
        chip: Id of the chip, which is not poisoned.
        window: (row, col, height, width) in pixels; None for the whole chip.
        to: Name of the class.
    """

    chip: str
    window: tuple[int, int, int, int] | None
    to: str


def parse_target(text: str, to: str) -> TargetWindow:
    """Return the target of a text such as "chip7" or "chip7:10,20,16,16".

    Raises:
        UsageError: The window is not four whole numbers.

    Example:
        >>> parse_target("chip7:10,20,16,16", "land").window
        (10, 20, 16, 16)
    """
    chip, colon, numbers = text.partition(":")
    if not colon:
        return TargetWindow(chip, None, to)
    try:
        row, col, height, width = (int(number) for number in numbers.split(","))
    except ValueError:
        raise UsageError(f"target: expected CHIP or CHIP:row,col,height,width, got {text!r}; count pixels") from None
    return TargetWindow(chip, (row, col, height, width), to)


def parse_poison(text: str, classes: Sequence[str]) -> object:
    """Return the poison of a text such as "backdoor eps=0.1 klass=water to=land"; classes are named.

    Raises:
        UsageError: There is no such poison, setting or class.
    """
    name, words = registry.parse_settings("poison", text)
    settings: dict[str, Setting] = {
        key: class_index(value, classes) if key in ("klass", "to") else value for key, value in words.items()
    }
    return registry.build("poison", name, settings)


def poison_folder(
    chips: Path,
    out: Path,
    *,
    poison: str,
    share: float,
    part: str,
    changes: Sequence[str],
    labels: str,
    weights: Path | None,
    target: str,
    to: str,
    seed: int,
    progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:
    """Write a chip folder of which a share of the chips is poisoned; poisons.jsonl says which, and what changed.

    Args:
        chips: The folder.
        out: The new folder.
        poison: Such as "backdoor eps=0.1".
        share: Share of the part's chips that is poisoned.
        part: "all", or a part of the split that training makes.
        changes: How the chips are split.
        labels: "poisoned", or "keep": the images alone are changed, as whoever knows a trigger uses it later.
        weights: Network that a crafted poison is made with.
        target: What a crafted poison aims at, as `parse_target` reads it.
        to: Class that the target shall be given.
        seed: Seed of the choice of chips and of the poison.
        progress: Called per chip.

    Raises:
        UsageError: The poison, the part or the target is wrong.
        DataError: The chips have several sizes and the poison is crafted over all of them together.
    """
    if chips.resolve() == out.resolve():
        raise UsageError(f"poison: expected another folder than {chips} to write to, got the same; choose --out")
    if labels not in ("poisoned", "keep"):
        raise UsageError(f"poison.labels: expected poisoned or keep, got {labels!r}; choose one")
    folder = ChipFolder.open(chips)
    method = parse_poison(poison, folder.classes)
    ids, split = select_part(folder, part, split_settings(changes))
    aim = parse_target(target, to) if target else None
    picked = choose_chips([id_ for id_ in ids if aim is None or id_ != aim.chip], share, seed)
    if not picked:
        raise UsageError(
            f"poison.share: expected at least one chip of {len(ids)}, got {share:g}; ask for a larger share"
        )
    changed = poisoned_chips(method, folder, picked, aim, weights, seed)
    rows: list[MutableRow] = []
    with RunLock(out):
        writer = ChipWriter(out, replace(folder.header, split=split))
        for done, id_ in enumerate(folder.ids):
            progress("poison", done, len(folder.ids), id_)
            chip = folder.read(id_)
            marks = np.where(chip.valid, chip.label, IGNORE).astype(np.uint8)
            if id_ not in picked:
                writer.relabel(folder, id_, marks)
                continue
            batch = next(changed)
            image = batch.image[0].numpy()
            if labels == "poisoned":
                marks = np.where(chip.valid, batch.label[0].numpy(), IGNORE).astype(np.uint8)
            row = folder.row(id_)
            writer.write(
                id_, row.group, image, marks, seen=chip.seen, grid=chip.grid, source=row.source,
                notes=(*row.notes, f"poisoned by {poison}, seed {seed}"), flags=row.flags,
            )  # fmt: skip
            moved = np.abs(image - chip.image)[:, chip.seen]
            flipped = int((marks[chip.valid] != chip.label[chip.valid]).sum())
            rows.append(
                {"chip": id_, "poison": poison, "seed": seed, "largest_change": float(moved.max(initial=0.0)), "labels_changed_px": flipped}
            )  # fmt: skip
        writer.finish(folder.ids)
        write_atomic(out / POISONS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    progress("poison", len(folder.ids), len(folder.ids), "")
    facts: MutableRow = {
        "folder": str(out), "record": str(out / POISONS_FILE), "poison": poison, "chips": len(folder), "poisoned": len(rows),
        "largest_change": max((float(row["largest_change"] or 0) for row in rows), default=0.0), "unit": unit_text(folder.unit), "part": part,
    }  # fmt: skip
    return facts, rows, []


def poisoned_chips(
    method: object,
    folder: ChipFolder,
    picked: Sequence[str],
    aim: TargetWindow | None,
    weights: Path | None,
    seed: int,
) -> Iterator[Batch]:
    """Return the poisoned self of each chip, one by one in the order of the folder.

    Raises:
        UsageError: A crafted poison has no target or no weights, or another one has.
    """
    picked = [id_ for id_ in folder.ids if id_ in set(picked)]
    if isinstance(method, GradientMatching | MetaPoison):
        if aim is None or weights is None:
            raise UsageError("poison: expected --weights and --target for a crafted poison, got none; name both")
        return _crafted(method, folder, picked, aim, load_network(weights, folder, "cpu"), seed)
    if not isinstance(method, Poison):
        raise UsageError(f"poison: expected a poison, got {type(method).__name__}; see `seawall methods --kind poison`")
    if aim is not None or weights is not None:
        raise UsageError("poison: expected no --weights and --target for this poison, got some; remove them")
    return (method(chip_batch(folder.read(id_)), Keys(seed, (id_,))) for id_ in picked)


def _crafted(
    method: GradientMatching | MetaPoison,
    folder: ChipFolder,
    picked: Sequence[str],
    aim: TargetWindow,
    model: nn.Module,
    seed: int,
) -> Iterator[Batch]:
    scene = chip_batch(folder.read(aim.chip))
    region = torch.zeros_like(scene.seen)
    row, col, height, width = aim.window or (0, 0, *scene.label.shape[1:])
    region[:, row : row + height, col : col + width] = True
    target = PoisonTarget(scene, region, class_index(aim.to, folder.classes))
    batch, keys = together(folder, picked), Keys(seed, tuple(picked))
    if isinstance(method, GradientMatching):
        made = method.craft(model, target, batch, keys)
    else:
        spec = spec_of(model)

        def fresh(number: int) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                again = registry.build("model", spec.architecture, spec.settings)(spec)
            again.load_state_dict(model.state_dict())
            return again

        rest = [id_ for id_ in folder.ids if id_ not in picked and id_ != aim.chip]
        made = method.craft(fresh, target, batch, together(folder, rest), keys)
    yield from (made.batch.select([i]) for i in range(len(picked)))


def together(folder: ChipFolder, ids: Sequence[str]) -> Batch:
    """Return chips as one batch.

    Raises:
        DataError: They have several sizes, or there are none.
    """
    found = [chip_batch(folder.read(id_)) for id_ in ids]
    sizes = {tuple(one.label.shape[1:]) for one in found}
    if len(sizes) != 1:
        raise DataError(
            f"poison: expected chips of one size for a crafted poison, got {sorted(sizes)}; curate with a size"
        )
    return Batch.concatenated(found)


def find_poisoned(
    weights: Path, chips: Path, *, trusted: Path | None, alarms: float, layer: str, device: str, progress: Progress
) -> tuple[MutableRow, list[MutableRow], Failed]:
    """Rank the chips of a folder by how suspect they are of being poisoned, with every registered detector.

    Args:
        weights: A network that learned from these chips.
        chips: The folder; by the split in the weights, the chips that the network learned from are searched.
        trusted: Folder of chips that are known to be clean; those that the network learned from or was chosen by are left out.
        alarms: With trusted chips, the share of clean chips that may be flagged.
        layer: Name of the module whose features are looked at; "" for the last one before the logits.
        device: Where the network runs.
        progress: Called per folder.

    Raises:
        UsageError: There is no such layer, or there are too few trusted chips.
    """
    bands = bands_of_model(weights)
    folder = ChipFolder.open(chips).as_seen_by(bands)
    model = load_network(weights, folder, device)
    record = split_of(model)
    learned = select_chips(folder, record, "train").ids if record is not None else folder.ids
    block = find_layer(model, layer, torch.from_numpy(folder.read(learned[0]).image)[None])
    progress("features", 0, 2, str(chips))
    ids, features = activations(model, block, whole_chips(folder, learned))
    progress("features", 1, 2, str(trusted or ""))
    clean = None
    if trusted is not None:
        checked = ChipFolder.open(trusted).as_seen_by(bands)
        clean = activations(model, block, whole_chips(checked, select_chips(checked, record, "auto").ids))[1]
    progress("features", 2, 2, "")
    found = {
        entry.name: registry.build("detector", entry.name, {"alarms": alarms})(ids, features, clean)
        for entry in registry.entries("detector")
    }
    known = poisoned_ids(chips)
    table: list[MutableRow] = [
        {
            "chip": id_,
            **{f"{name}.score": float(detection.scores[i]) for name, detection in found.items()},
            **{f"{name}.flagged": int(detection.flagged[i]) for name, detection in found.items()},
        }
        for i, id_ in enumerate(ids)
    ]
    table.sort(key=lambda row: -float(row["spectral-signatures.score"] or 0))
    facts: MutableRow = {"chips": len(ids), "trusted": 0 if clean is None else len(clean)}
    for name, detection in found.items():
        facts[f"{name}.flagged"] = int(detection.flagged.sum())
        if known:
            facts[f"{name}.caught"], facts[f"{name}.false_alarms"] = detection.rates(known)
            facts[f"{name}.auc"] = detection.auc(known)
    if clean is None:
        facts["note"] = "without trusted chips the cut-off promises nothing; the scores rank"
    return facts, table, []


def poisoned_ids(chips: Path) -> tuple[str, ...]:
    """Return the ids that the record of a poisoned folder names; none where there is no record."""
    path = chips / POISONS_FILE
    if not path.is_file():
        return ()
    rows: list[Mapping[str, str]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(row["chip"] for row in rows)


def find_layer(model: nn.Module, name: str, image: Tensor) -> nn.Module:
    """Return a module by its name, or the last one that gives feature maps (B, D, h, w) before the logits.

    Raises:
        UsageError: There is no such module, or none gives feature maps.
    """
    if name:
        return named_layer(model, name)
    once = [layer for layer, _ in feature_layers(model, image)]
    if len(once) < 2:
        raise UsageError(
            "layer: expected a network with feature maps before its logits, got none; name one with --layer"
        )
    block: nn.Module = once[-2]
    return block

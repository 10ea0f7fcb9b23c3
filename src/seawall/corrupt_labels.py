"""Put faults into a chip folder on purpose: a new folder that says what was done to each chip."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seawall import __version__, registry
from seawall.datasets.chips import Chip, ChipFolder
from seawall.datasets.pieces import sha
from seawall.datasets.splits import split_groups
from seawall.datasets.store import IGNORE
from seawall.datasets.writer import ChipWriter
from seawall.errors import DataError, SeawallError, UsageError, did_you_mean
from seawall.files import RunLock, write_atomic
from seawall.keys import Keys
from seawall.poison import Realized, assign_thirds, parse_noise, realized
from seawall.poison.realized import Described, allowed_pixels
from seawall.poison.sources import placed, source_digest
from seawall.poison.text import spoken_budget
from seawall.poison.thirds import Thirds
from seawall.recipe import SplitBy
from seawall.result import Progress
from seawall.types import Batch, LabelNoise, Setting

Facts = dict[str, str | int | float | None]
Row = dict[str, str | int | float | None]
Failed = Sequence[tuple[str, str]]
PARTS = ("all", "train", "val", "test")
RECORD = "corruptions.jsonl"
_METERS = re.compile(r"\d\s*(m|px)(\s|$)|\bof\s*=\s*.?meters")


@dataclass(frozen=True)
class Order:
    """What is to be done.

    Args:
        noises: Applied one after the other.
        text: They as they were asked for.
        seed: Seed of their randomness.
        touched: Ids of the chips that they are applied to; the others are copied.
    """

    noises: tuple[LabelNoise, ...]
    text: str
    seed: int
    touched: frozenset[str]

    def relabel(self, chip: Chip) -> NDArray[np.int64]:
        """Return a chip's new label; what was not valid stays."""
        return self.stages(chip)[-1].label[0].numpy()

    def stages(self, chip: Chip) -> list[Batch]:
        """Return the chip before the first noise and after each."""
        made = [batch_of(chip)]
        if chip.id in self.touched:
            for number, noise in enumerate(self.noises):
                made.append(noise(made[-1], self.keys(chip.id, number)))
        return made

    def keys(self, id_: str, number: int) -> Keys:
        """Return the random streams of a noise on a chip."""
        return Keys(self.seed, (id_,), ("noise",) if number == 0 else ("noise", str(number)))

    def describe(self, chip: Chip) -> Row:
        """Return what the noises have to say about a chip beside the pixels that changed."""
        told: Row = {}
        if chip.id in self.touched:
            for number, (noise, before) in enumerate(zip(self.noises, self.stages(chip), strict=False)):
                if isinstance(noise, Described):
                    told |= noise.describe(before, self.keys(chip.id, number))[0]
        return told

    def digest(self, chips: ChipFolder, id_: str) -> str:
        """Content and settings that decide a chip of the new folder."""
        row, done = (
            chips.row(id_),
            [repr(_alone(noise, id_)) for noise in self.noises] if id_ in self.touched else ["copied"],
        )
        sources = [source_digest(noise, id_) for noise in self.noises] if id_ in self.touched else []
        return sha(row.sha256, row.label_sha256, *done, *sources, str(self.seed), __version__)


def corrupt_chips(
    chips: Path, out: Path, *, noise: Sequence[str], part: str, seed: int, progress: Progress
) -> tuple[Facts, list[Row], Failed]:
    """Write a chip folder with corrupted labels; chips that are there and whole are not made again.

    Raises:
        UsageError: A noise or the part is wrong, or `out` is the folder itself.
        DataError: There are no chips, or the new folder holds others.
    """
    if not noise:
        raise UsageError("corrupt: expected a noise, got none; such as --noise 'dilate 10%'")
    if chips.resolve() == out.resolve():
        raise UsageError(f"corrupt: expected another folder than {chips} to write to, got the same; choose --out")
    folder = ChipFolder.open(chips)
    touched = part_of(folder, part, seed)
    noises = tuple(noise_for(text, folder, touched) for text in noise)
    order = Order(noises, ", then ".join(noise), seed, frozenset(touched))
    failed: list[tuple[str, str]] = []
    with RunLock(out):
        writer = ChipWriter(out, folder.header)
        for done, id_ in enumerate(folder.ids):
            progress("corrupt", done, len(folder.ids), id_)
            try:
                _write(writer, folder, id_, order)
            except SeawallError as bad:
                failed.append((id_, str(bad)))
        lost = {id_ for id_, _ in failed}
        made = writer.finish([id_ for id_ in folder.ids if id_ not in lost])
        rows = {id_: _measure(folder, made, id_, order) for id_ in made.ids}
        _record(out, folder, order, rows)
    progress("corrupt", len(folder.ids), len(folder.ids), "")
    return _facts(out, folder, order, rows), _table(folder, rows), failed


def part_of(chips: ChipFolder, part: str, seed: int) -> tuple[str, ...]:
    """Return the ids of a part of the split that `seawall train` makes with this seed.

    Raises:
        UsageError: There is no such part.
        DataError: The folder is empty.
    """
    if part not in PARTS:
        raise UsageError(f"part: unknown {part!r}; {did_you_mean(part, PARTS)}")
    if not len(chips):
        raise DataError(f"{chips.root}: expected chips, got none; curate some")
    if part == "all":
        return chips.ids
    by = SplitBy()
    split = split_groups(chips, seed, val=by.val, test=by.test)
    return split.parts()[part]


def noise_for(text: str, chips: ChipFolder, touched: Sequence[str]) -> LabelNoise:
    """Read a noise; what it must know of the data (meters per pixel, bands, unit, classes, thirds) is filled in.

    Raises:
        UsageError: The text names no noise, or a setting or its budget cannot be.
    """
    name = text.split()[0] if text.split() else ""
    known = {f.name: f.default for f in fields(registry.find("noise", name).make)} if name else {}
    if known.get("gsd_m", MISSING) is not MISSING and not _METERS.search(text):
        del known["gsd_m"]  # meters per pixel mean nothing to a share
    parts: dict[str, Setting] = dict(assign_thirds(touched))
    context: dict[str, Setting] = {
        "gsd_m": chips.gsd_m, "bands": list(chips.bands), "unit": chips.unit, "classes": len(chips.classes), "parts": parts,
    }  # fmt: skip
    if "water" in chips.classes:
        context["klass"] = chips.classes.index("water")
    noise = parse_noise(text, {key: value for key, value in context.items() if key in known})
    klass, count = getattr(noise, "klass", 0), len(chips.classes)
    if klass >= count:
        raise UsageError(
            f"{name}.klass: expected a class of {', '.join(chips.classes)}, got {klass}; choose 0..{count - 1}"
        )
    return placed(noise, {id_: chips.row(id_).grid for id_ in touched})


def batch_of(chip: Chip) -> Batch:
    """Return a chip as a batch of one."""
    return Batch(
        torch.from_numpy(chip.image)[None], torch.from_numpy(chip.label)[None],
        torch.from_numpy(chip.seen)[None], torch.from_numpy(chip.valid)[None], (chip.id,),
    )  # fmt: skip


def marks_of(chip: Chip) -> NDArray[np.uint8]:
    """Return a chip's label as files hold it: 255 where it does not count."""
    return np.where(chip.valid, chip.label, IGNORE).astype(np.uint8)


def _alone(noise: LabelNoise, id_: str) -> LabelNoise:
    """Return a noise with the part of one chip only, so that a chip does not depend on which others there are."""
    if not isinstance(noise, Thirds):
        return noise
    return replace(noise, parts={id_: noise.parts[id_]} if id_ in noise.parts else {})


def _write(writer: ChipWriter, folder: ChipFolder, id_: str, order: Order) -> None:
    digest = order.digest(folder, id_)
    if writer.whole(id_, digest):
        return
    chip = folder.read(id_)
    label = marks_of(replace(chip, label=order.relabel(chip)))
    if id_ not in order.touched:
        writer.relabel(folder, id_, label, source_sha256=digest)
        return
    before, after = (torch.from_numpy(plane.astype(np.int64))[None] for plane in (chip.label, label))
    done = realized(before, after, torch.from_numpy(chip.valid)[None])[0]
    share = "no valid pixel" if done.share is None else f"{done.share:.4%} of {done.valid} valid pixels changed"
    writer.relabel(
        folder, id_, label, (f"labels corrupted by {order.text}, seed {order.seed}: {share}",), source_sha256=digest
    )


def _measure(folder: ChipFolder, made: ChipFolder, id_: str, order: Order) -> Realized:
    """Compare the files as they lie on the disk."""
    before, after = folder.read(id_), made.read(id_)
    planes = (torch.from_numpy(plane)[None] for plane in (before.label, after.label, before.valid))
    done = realized(*planes)[0]
    if len(order.noises) != 1 or id_ not in order.touched:
        return done
    return replace(done, allowed=allowed_pixels(order.noises[0], batch_of(before))[0])


def _record(out: Path, folder: ChipFolder, order: Order, rows: Mapping[str, Realized]) -> None:
    lines = [
        {
            "chip": id_, "group": folder.row(id_).group, "touched": id_ in order.touched,
            "noise": order.text if id_ in order.touched else "", "seed": order.seed, **done.row(folder.gsd_m),
            "label_sha256_before": folder.row(id_).label_sha256, **order.describe(folder.read(id_)),
        }
        for id_, done in rows.items()
    ]  # fmt: skip
    write_atomic(out / RECORD, "".join(json.dumps(line) + "\n" for line in lines))


def _facts(out: Path, folder: ChipFolder, order: Order, rows: Mapping[str, Realized]) -> Facts:
    of = [done for id_, done in rows.items() if id_ in order.touched]
    shares = [done.share for done in of if done.share is not None]
    valid, changed = sum(done.valid for done in of), sum(done.changed for done in of)
    reached = f"{changed / valid:.2%} of the valid pixels" if valid else "nothing, for no pixel is valid"
    same = sum(done.changed == 0 for done in of)
    return {
        "folder": str(out), "record": str(out / RECORD), "noise": order.text,
        "asked": ", then ".join(spoken_budget(noise) for noise in order.noises),
        "reached": reached + (f"; {same} of {len(of)} chips unchanged" if same else ""), "chips": len(rows), "touched": len(of),
        "changed": sum(done.changed > 0 for done in of), "share": changed / valid if valid else None,
        "share.lowest": min(shares, default=None), "share.highest": max(shares, default=None),
        "short_px": sum(done.short or 0 for done in of), "source": str(folder.root),
    }  # fmt: skip


def _table(folder: ChipFolder, rows: Mapping[str, Realized]) -> list[Row]:
    moved: Counter[tuple[int, int]] = Counter()
    for done in rows.values():
        moved.update(done.transitions)
    total: Counter[int] = Counter()
    for (before, _), count in moved.items():
        total[before] += count
    return [
        {"from": folder.classes[i], "to": folder.classes[j], "pixels": count, "share_of_class": count / total[i]}
        for (i, j), count in sorted(moved.items())
    ]

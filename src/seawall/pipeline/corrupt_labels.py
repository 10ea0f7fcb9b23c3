"""Write a chip folder with corrupted labels, and a record of what was changed in each chip."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seawall import __version__
from seawall.data.chips import Chip, ChipFolder
from seawall.data.label_planes import stored_label
from seawall.data.raw_chips import sha256_text
from seawall.data.selection import check_part
from seawall.data.splits import record_split, split_chips
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, SeawallError, UsageError
from seawall.io import RunLock, write_atomic
from seawall.label_noise.build import (
    budget_text,
    build_noise_of_chips,
    chip_batch,
    noise_keys,
    noise_of_chip,
    parse_noise_settings,
)
from seawall.label_noise.label_difference import DescribedNoise, LabelDifference, allowed_pixels, label_differences
from seawall.label_noise.sources import source_files_digest
from seawall.recipe.recipe import change_recipe
from seawall.result import Failed, MutableRow, Progress
from seawall.split_record import SPLIT_PARTS, SplitRecord, SplitSettings
from seawall.types import Batch, LabelNoise

CORRUPTED_PARTS = ("all", *SPLIT_PARTS)
RECORD_NAME = "corruptions.jsonl"
CORRUPTION_VERSION = "2"
"""Version of the rows of corrupted chips; chips of another version are made again."""


@dataclass(frozen=True)
class LabelCorruption:
    """The noises of a folder, and the chips that they are applied to.

    Args:
        noises: Applied one after the other.
        text: The noises as given by the user.
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
        made = [chip_batch(chip)]
        if chip.id in self.touched:
            for number, noise in enumerate(self.noises):
                made.append(noise(made[-1], noise_keys(self.seed, chip.id, number)))
        return made

    def describe(self, chip: Chip) -> MutableRow:
        """Return what the noises report about a chip beside the pixels that changed."""
        described: MutableRow = {}
        if chip.id in self.touched:
            for number, (noise, before) in enumerate(zip(self.noises, self.stages(chip), strict=False)):
                if isinstance(noise, DescribedNoise):
                    described |= noise.describe(before, noise_keys(self.seed, chip.id, number))[0]
        return described

    def digest(self, chips: ChipFolder, id_: str) -> str:
        """Return the digest of the content and settings that a chip of the new folder depends on."""
        row, done = (
            chips.row(id_),
            [repr(noise_of_chip(noise, id_)) for noise in self.noises] if id_ in self.touched else ["copied"],
        )
        sources = [source_files_digest(noise, id_) for noise in self.noises] if id_ in self.touched else []
        return sha256_text(
            row.sha256, row.label_sha256, *done, *sources, str(self.seed), __version__, CORRUPTION_VERSION
        )


def corrupt_chips(
    chips: Path,
    out: Path,
    *,
    noise: Sequence[str],
    part: str,
    changes: Sequence[str],
    seed: int,
    progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:
    """Write a chip folder with corrupted labels; chips that are complete are not made again.

    Raises:
        UsageError: A noise or the part is wrong, or `out` is the folder itself.
        DataError: There are no chips, or the new folder holds others.
    """
    if not noise:
        raise UsageError("corrupt: expected a noise, got none; such as --noise 'dilate 10%'")
    if chips.resolve() == out.resolve():
        raise UsageError(f"corrupt: expected another folder than {chips} to write to, got the same; choose --out")
    folder = ChipFolder.open(chips)
    touched, split = select_part(folder, part, split_settings(changes))
    noises = tuple(noise_for(text, folder, touched) for text in noise)
    corruption = LabelCorruption(noises, ", then ".join(noise), seed, frozenset(touched))
    failed: list[tuple[str, str]] = []
    with RunLock(out):
        writer = ChipWriter(out, replace(folder.header, split=split))
        for done, id_ in enumerate(folder.ids):
            progress("corrupt", done, len(folder.ids), id_)
            try:
                _write_chip(writer, folder, id_, corruption)
            except SeawallError as bad:
                failed.append((id_, str(bad)))
        lost = {id_ for id_, _ in failed}
        made = writer.finish([id_ for id_ in folder.ids if id_ not in lost])
        rows = {id_: _compare_stored(folder, made, id_, corruption) for id_ in made.ids}
        _write_record(out, folder, corruption, rows)
    progress("corrupt", len(folder.ids), len(folder.ids), "")
    kept = "kept in the new folder: " + str(split.settings or "by hand") if split is not None else "none kept"
    return (
        {**_corruption_facts(out, folder, corruption, rows), "part": part, "split": kept},
        _transition_rows(folder, rows),
        failed,
    )


def split_settings(changes: Sequence[str]) -> SplitSettings:
    """Return how to split, as a recipe with these `key=value` changes would.

    Raises:
        UsageError: A key is not about the split.
        RecipeError: A value is wrong.
    """
    for change in changes:
        key = change.partition("=")[0].strip()
        if key != "seed" and not key.startswith("split."):
            raise UsageError(
                f"--set {change}: expected split.by, split.val, split.test, split.block_m or seed; remove it"
            )
    return change_recipe({"name": "corrupt"}, changes, "--set").split_settings


def select_part(
    chips: ChipFolder, part: str, settings: SplitSettings | None = None
) -> tuple[tuple[str, ...], SplitRecord | None]:
    """Return the ids of a part, and the split that the new folder keeps.

    Args:
        chips: The folder.
        part: "all", or a part of the split that `seawall train` makes of this folder.
        settings: How to split; as `seawall train` does by default if None.

    Raises:
        UsageError: There is no such part, or a split is described and none is made.
        DataError: The folder is empty, or cannot be split so.
    """
    check_part(part, CORRUPTED_PARTS)
    if not len(chips):
        raise DataError(f"{chips.root}: expected chips, got none; curate some")
    if part == "all":
        if settings is not None and settings != SplitSettings():
            raise UsageError(
                f"corrupt: expected a part beside another split ({settings}), got all chips; add --part train, or leave the split out"
            )
        return chips.ids, chips.header.split
    split = split_chips(chips, settings)
    return split.parts()[part], record_split(chips, split)


def noise_for(text: str, chips: ChipFolder, touched: Sequence[str]) -> LabelNoise:
    """Build a noise from its text, with the facts of the data that it needs (meters per pixel, bands, unit, classes).

    Raises:
        UsageError: The text names no noise, or a setting or its budget is out of range.
    """
    return build_noise_of_chips(*parse_noise_settings(text), chips, touched)


def _write_chip(writer: ChipWriter, folder: ChipFolder, id_: str, corruption: LabelCorruption) -> None:
    digest = corruption.digest(folder, id_)
    if writer.is_complete(id_, digest):
        return
    chip = folder.read(id_)
    label = stored_label(replace(chip, label=corruption.relabel(chip)))
    if id_ not in corruption.touched:
        writer.relabel(folder, id_, label, source_sha256=digest)
        return
    before, after = (torch.from_numpy(plane.astype(np.int64))[None] for plane in (chip.label, label))
    done = label_differences(before, after, torch.from_numpy(chip.valid)[None])[0]
    share = "no valid pixel" if done.share is None else f"{done.share:.4%} of {done.valid} valid pixels changed"
    writer.relabel(
        folder,
        id_,
        label,
        (f"labels corrupted by {corruption.text}, seed {corruption.seed}: {share}",),
        source_sha256=digest,
    )


def _compare_stored(folder: ChipFolder, made: ChipFolder, id_: str, corruption: LabelCorruption) -> LabelDifference:
    """Return the difference between the stored labels of both folders."""
    before, after = folder.read(id_), made.read(id_)
    planes = (torch.from_numpy(plane)[None] for plane in (before.label, after.label, before.valid))
    done = label_differences(*planes)[0]
    if len(corruption.noises) != 1 or id_ not in corruption.touched:
        return done
    return replace(done, allowed=allowed_pixels(corruption.noises[0], chip_batch(before))[0])


def _write_record(
    out: Path, folder: ChipFolder, corruption: LabelCorruption, rows: Mapping[str, LabelDifference]
) -> None:
    lines = [
        {
            "chip": id_, "group": folder.row(id_).group, "touched": id_ in corruption.touched,
            "noise": corruption.text if id_ in corruption.touched else "", "seed": corruption.seed, **done.row(folder.gsd_m),
            "label_sha256_before": folder.row(id_).label_sha256, **corruption.describe(folder.read(id_)),
        }
        for id_, done in rows.items()
    ]  # fmt: skip
    write_atomic(out / RECORD_NAME, "".join(json.dumps(line) + "\n" for line in lines))


def _corruption_facts(
    out: Path, folder: ChipFolder, corruption: LabelCorruption, rows: Mapping[str, LabelDifference]
) -> MutableRow:
    of = [done for id_, done in rows.items() if id_ in corruption.touched]
    shares = [done.share for done in of if done.share is not None]
    valid, changed = sum(done.valid for done in of), sum(done.changed for done in of)
    reached = f"{changed / valid:.2%} of the valid pixels" if valid else "nothing, for no pixel is valid"
    same = sum(done.changed == 0 for done in of)
    return {
        "folder": str(out), "record": str(out / RECORD_NAME), "noise": corruption.text,
        "asked": ", then ".join(budget_text(noise) for noise in corruption.noises),
        "reached": reached + (f"; {same} of {len(of)} chips unchanged" if same else ""), "chips": len(rows), "touched": len(of),
        "changed": sum(done.changed > 0 for done in of), "share": changed / valid if valid else None,
        "share.lowest": min(shares, default=None), "share.highest": max(shares, default=None),
        "short_px": sum(done.short or 0 for done in of), "source": str(folder.root),
    }  # fmt: skip


def _transition_rows(folder: ChipFolder, rows: Mapping[str, LabelDifference]) -> list[MutableRow]:
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

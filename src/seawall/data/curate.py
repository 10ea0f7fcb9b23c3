"""Makes a chip folder: looks first and says what it will cost, resumes after a kill, lists what failed and goes on."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.preparation import EmptyChipError, Labeler, choose_header, name_bands, prepare
from seawall.data.raw_chips import NO_HINTS, Item, Lost, Piece, Source, sha
from seawall.data.sources import find_source
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, RunError, SeawallError, UsageError
from seawall.geo.radiometry import Hints
from seawall.io import RunLock, write_atomic
from seawall.result import StageProgress
from seawall.types import Unit

RULES = 2
"""Version of the rules by which stored numbers become a chip; chips made by another one are made again."""

LOOK = 12
"""Chips looked at before the work begins: enough to settle unit and bands, and to time the work."""

FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EFBIG)
"""Errors of the machine, not of a chip: the batch stops, what is done stays."""


@dataclass(frozen=True)
class Estimate:
    """What a curation will take.

    Args:
        chips: Chips to be made.
        bytes: Disk space.
        seconds: Time, from the chips looked at.
        text: One line for people.
    """

    chips: int
    bytes: int
    seconds: float
    text: str


@dataclass(frozen=True)
class CurateReport:
    """What came of a curation; `curate.json` in the folder says the same.

    Args:
        folder: The chip folder.
        made: Ids written now.
        kept: Ids that were whole from an earlier run.
        skipped: (id, reason) of chips with nothing in them.
        failed: (id, reason) of chips that broke the contract.
        estimate: What was expected.
        scales: How stored numbers became physical, and how many chips did so.
        flags: How many chips carry each flag.
        seconds: Time it took.
    """

    folder: ChipFolder
    made: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]
    estimate: Estimate
    scales: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def curate(
    source: str | Path | Source,
    out: str | Path,
    *,
    kind: str = "auto",
    sensor: Literal["s1", "s2"] | None = None,
    select: str = "",
    bands: Sequence[str] | None = None,
    names: Sequence[str] = (),
    unit: Unit | None = None,
    hints: Hints = NO_HINTS,
    gsd_m: float | None = None,
    product: str = "",
    classes: Sequence[str] | None = None,
    label_map: Mapping[int, int] | None = None,
    labeler: Labeler | None = None,
    group: str = "",
    chip: int = 512,
    keep_empty: bool = False,
    progress: StageProgress | None = None,
) -> CurateReport:
    """Make a chip folder.

    Run again after a kill, it keeps the chips whose source, settings and files are the same by content, and
    makes the others.

    Args:
        source: A folder, a CSV index, a number of scenes to simulate, or a `Source`.
        out: The chip folder to make or to go on with.
        kind: How to read the source; "auto" looks.
        sensor: "s1" or "s2": which images of an index, of Sen1Floods11 or of the simulation; "s2" if None.
        select: Ids of an index that start with this.
        bands: Bands to keep; all that the chips have if None. The folder's order is always by wavelength.
        names: Band names in file order, for pairs whose files say none.
        unit: Unit that the chips must have; what the first ones have if None.
        hints: What is known about the stored numbers (gain, offset), where files do not say it.
        gsd_m: Ground sampling distance, where there is no georeference.
        product: Product family in `SENSORS`; it settles names such as "NIR".
        classes: Class names in the order of label values; land and water if None.
        label_map: What raw label values mean, such as {-1: 255}; 255 does not count.
        labeler: Labels images by a rule instead of label files.
        group: Regular expression on the name of a pair; its first bracket is the group.
        chip: Larger images are cut into squares of this side.
        keep_empty: Keep chips without a seen pixel, flagged, instead of skipping them.
        progress: Called as the work goes on; first with the estimate.

    Raises:
        UsageError: An argument is unknown or out of range.
        DataError: There is nothing to make, or the chips are mixed in a way that no argument settles.
        RunError: Another process works in the folder, or the disk is full.
    """
    settled = find_source(
        source, kind, sensor or "s2", select, names, hints, gsd_m, product, group, labeler is not None
    )
    label_map = settled.label_map if label_map is None else label_map
    task = _Task(
        settled, Path(out), tuple(classes or settled.classes or ("land", "water")), label_map, labeler, keep_empty,
        tuple(bands or ()), unit, gsd_m, chip, progress or _silent,
    )  # fmt: skip
    if chip < 8:
        raise UsageError(f"curate: expected chips of at least 8 pixels, got {chip}; raise chip")
    with RunLock(task.out):
        return _run(task)


@dataclass(frozen=True)
class _Task:
    source: Source
    out: Path
    classes: tuple[str, ...]
    label_map: Mapping[int, int] | None
    labeler: Labeler | None
    keep_empty: bool
    bands: tuple[str, ...]
    unit: Unit | None
    gsd_m: float | None
    chip: int
    tell: StageProgress

    @property
    def settings(self) -> str:
        """Everything but the source that a chip's pixels depend on."""
        return repr((RULES, self.classes, self.label_map, self.labeler, self.keep_empty))


def _run(task: _Task) -> CurateReport:
    start = time.monotonic()
    items, lost = task.source.items(task.chip)
    items, twice = _unique(items)
    failed = [(bad.id, bad.reason) for bad in (*lost, *twice) if not bad.skip]
    skipped = [(bad.id, bad.reason) for bad in lost if bad.skip]
    if not items:
        raise DataError(
            f"curate: expected chips to make, got none ({(failed or skipped or [('', 'nothing found')])[0][1]})"
        )
    header, estimate = _look(task, items)
    _check_room(task.out, estimate)
    task.tell(0, len(items), estimate.text)
    writer = ChipWriter(task.out, header)
    made: list[str] = []
    kept: list[str] = []
    for done, item in enumerate(items, 1):
        try:
            (kept if _one_chip(task, item, header, writer) else made).append(item.id)
            task.tell(done, len(items), item.id)
        except EmptyChipError as empty:
            skipped.append((item.id, str(empty)))
            task.tell(done, len(items), f"{item.id} skipped: {empty}")
        except (SeawallError, OSError, ValueError, ArithmeticError, MemoryError) as bad:
            if isinstance(bad, OSError) and bad.errno in FATAL:
                raise RunError(
                    f"{task.out}: expected to write {item.id}, got {bad.strerror}; free space and run again, {len(made) + len(kept)} chips are kept"
                ) from bad
            reason = str(bad) if isinstance(bad, SeawallError) else f"{type(bad).__name__}: {bad}"
            failed.append((item.id, reason))
            task.tell(done, len(items), f"{item.id} failed: {reason}")
    if not made and not kept:
        first = (failed or skipped)[0]
        raise DataError(
            f"{task.out}: expected chips, got none: {len(failed)} failed and {len(skipped)} are empty; first {first[0]}: {first[1]}"
        )
    folder = writer.finish([*made, *kept])
    report = CurateReport(
        folder, tuple(made), tuple(kept), tuple(skipped), tuple(failed), estimate,
        dict(Counter(row.notes[0].split(" (")[0] for row in folder.rows if row.notes)),
        folder.flags(),
        time.monotonic() - start,
    )  # fmt: skip
    _write_report(task.out, report)
    return report


def _one_chip(task: _Task, item: Item, header: ChipHeader, writer: ChipWriter) -> bool:
    """Make one chip; return whether it was there already."""
    digest = sha(item.digest(), task.settings, repr(header))
    if writer.whole(item.id, digest):
        return True
    ready = prepare(item, header, label_map=task.label_map, labeler=task.labeler, keep_empty=task.keep_empty)
    writer.write(
        item.id, item.group, ready.image, ready.label, seen=ready.seen, grid=ready.grid, gain=ready.gain,
        source=item.source, source_sha256=digest, notes=ready.notes, flags=ready.flags,
    )  # fmt: skip
    return False


def _look(task: _Task, items: Sequence[Item]) -> tuple[ChipHeader, Estimate]:
    """Look at some chips across the whole list: what they share, and what all will cost."""
    step = max(1, len(items) // LOOK)
    sample: dict[str, Piece] = {}
    gsds: dict[str, float | None] = {}
    reasons: list[str] = []
    start = time.monotonic()
    for item in items[::step]:
        try:
            sample[item.id] = name_bands(item.read(), task.source.product)
            gsds[item.id] = item.gsd_m
        except (SeawallError, OSError, ValueError) as bad:
            reasons.append(f"{item.id}: {bad}")
    if not sample:
        raise DataError(f"curate: expected readable chips, got none among {len(items[::step])} looked at; {reasons[0]}")
    each = (time.monotonic() - start) / len(sample)
    header = choose_header(
        sample, gsds, product=task.source.product, licence=task.source.licence, bands=task.bands,
        unit=task.unit, classes=task.classes, gsd_m=task.gsd_m,
    )  # fmt: skip
    first = next(iter(sample.values()))
    whole = first.step is not None or first.hints.dtype in ("uint8", "int16", "uint16")
    pixels = sum(item.shape[0] * item.shape[1] for item in items)
    size = pixels * (len(header.bands) * (2 if whole else 4) + 1) + 3000 * len(items)
    seconds = max(1.0, len(items) * (2 * each + 0.02))
    text = (
        f"{len(items)} chips, {len(header.bands)} bands of {header.unit}{'' if header.physical else ' (not physical)'}, "
        f"{size / 2**20:.1f} MiB, about {seconds:.0f} s"
    )
    return header, Estimate(len(items), size, seconds, text)


def _unique(items: Sequence[Item]) -> tuple[list[Item], list[Lost]]:
    seen: set[str] = set()
    once: list[Item] = []
    lost: list[Lost] = []
    for item in items:
        if item.id.lower() in seen:
            lost.append(Lost(item.id, f"{item.source}: expected an id of its own, got {item.id!r} twice; rename one"))
            continue
        seen.add(item.id.lower())
        once.append(item)
    return once, lost


def _check_room(out: Path, estimate: Estimate) -> None:
    free = shutil.disk_usage(out).free
    if estimate.bytes > free:
        raise RunError(
            f"{out}: expected {estimate.bytes / 2**20:.0f} MiB of free space, got {free / 2**20:.0f}; free some or choose another disk"
        )


def _write_report(out: Path, report: CurateReport) -> None:
    plain = {key: value for key, value in vars(report).items() if key not in ("folder", "estimate")}
    write_atomic(out / "curate.json", json.dumps({**plain, "estimate": asdict(report.estimate)}, indent=1) + "\n")


def _silent(done: int, total: int, text: str) -> None:
    """Tell nobody."""

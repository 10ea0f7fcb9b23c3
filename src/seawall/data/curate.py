"""Makes a chip folder from raw images: estimates the cost, resumes after a kill, and reports chips that failed."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from seawall.bands import parse_sources
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader
from seawall.data.joint import (
    ChipItem,
    Unpaired,
    bands_of_source,
    joint_header,
    pair_items,
    prepare_joint,
    single_items,
)
from seawall.data.preparation import EmptyChipError, Labeler, choose_header, name_bands, prepare_chip
from seawall.data.raw_chips import (
    NO_HINTS,
    ImageSource,
    RawChip,
    RejectedItem,
    SourceItem,
    known_hints,
    sha256_text,
)
from seawall.data.source_detection import DETECT, make_source
from seawall.data.writer import ChipWriter
from seawall.errors import DataError, RunError, SeawallError, UsageError
from seawall.geo.radiometry import Hints
from seawall.io import RunLock, write_atomic
from seawall.result import StageProgress
from seawall.types import Setting, Unit, unit_text

CURATION_VERSION = 2
"""Version of the rules by which stored numbers become a chip; chips made by other rules are made again."""

SAMPLED_CHIPS = 12
"""Chips read before the work begins, to settle unit and bands and to estimate the time."""

FATAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EFBIG)
"""Errors of the machine, not of a chip: the curation stops and keeps the chips that are done."""


@dataclass(frozen=True)
class CurateEstimate:
    """Estimated cost of a curation.

    Args:
        chips: Chips to be made.
        bytes: Disk space.
        seconds: Time, from the chips read first.
        text: The estimate in one line.
    """

    chips: int
    bytes: int
    seconds: float
    text: str


@dataclass(frozen=True)
class CurateReport:
    """Result of a curation; `curate.json` in the folder has the same content.

    Args:
        folder: The chip folder.
        made: Ids written in this run.
        kept: Ids that an earlier run had completed.
        skipped: (id, reason) of chips without a seen pixel.
        failed: (id, reason) of chips that could not be made.
        estimate: Estimate before the work began.
        scales: Conversions of stored numbers to physical units, with the number of chips of each.
        flags: Number of chips with each flag.
        seconds: Time it took.
    """

    folder: ChipFolder
    made: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]
    estimate: CurateEstimate
    scales: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def curate_chips(
    source: str | Path | ImageSource | Mapping[str, ImageSource],
    out: str | Path,
    *,
    kind: str = DETECT,
    sensor: str = "",
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
    unpaired: Unpaired = "fail",
    progress: StageProgress | None = None,
) -> CurateReport:
    """Make a chip folder.

    A second run keeps the chips whose source, settings and files are the same by content, and makes the others.

    `sensor`, `select`, `names`, `hints`, `product`, `group`, `gsd_m` and `label_map` are fields of the source that they
    are given to; a source without such a field refuses them.

    Args:
        source: A folder, a CSV index, a number of scenes to simulate, a source, or several by name.
        out: The chip folder to make or to go on with.
        kind: A registered source, with settings of its own after its name ("simulated size=256"); "auto" detects it.
        sensor: "s1" or "s2": which images of an index, of Sen1Floods11 or of the simulation; "s2" if "". Several, as in "s1,s1.pre,s2", are
            the sources of each chip, stacked into one image with bands such as "s1.pre.VV".
        select: Ids of an index that start with this.
        bands: Bands to keep; all that the chips have if None. The folder's order is always by wavelength. Of several sources, with their
            source ("s2.B03"), or a source for all of its bands.
        names: Band names in file order, for pairs whose files say none.
        unit: Unit that the chips must have; what the first ones have if None.
        hints: Gain, offset and unit of the stored numbers, where files do not declare them.
        gsd_m: Ground sampling distance, where there is no georeference.
        product: Product family in `SENSORS`; it settles names such as "NIR".
        classes: Class names in the order of label values; land and water if None.
        label_map: Class value of each raw label value, such as {-1: 255}; 255 does not count.
        labeler: Labels images by a rule instead of label files.
        group: Regular expression on the name of a pair; its first bracket is the group.
        chip: Larger images are cut into squares of this side.
        keep_empty: Keep chips without a seen pixel, flagged, instead of skipping them.
        unpaired: "fail" for chips that lack the image of a source; "keep" keeps them, unseen in that source and flagged.
        progress: Called as the work goes on; first with the estimate.

    Raises:
        UsageError: An argument is unknown, out of range or without effect.
        DataError: There is no chip to make, or the chips differ in bands, unit or resolution and no argument settles it.
        RunError: Another process works in the folder, or the disk is full.
    """
    asked: dict[str, Setting] = {
        "select": select, "names": tuple(names), "hints": known_hints(hints), "product": product, "group": group,
    }  # fmt: skip
    asked = {key: value for key, value in asked.items() if value}
    sources = _settle_sources(source, kind, sensor, asked, gsd_m, label_map, labeler is None)
    if len(sources) > 1:
        _check_of_several(
            {"names": names, "hints": known_hints(hints), "product": product, "unit": unit, "labels": labeler}
        )
    elif unpaired != "fail":
        raise UsageError(
            f"curate.unpaired: expected several sources, got one; name them (sensor s1,s2) or leave {unpaired} out"
        )
    first = next(iter(sources.values()))
    label_map = first.label_map if label_map is None else label_map
    task = _Curation(
        sources, Path(out), tuple(classes or first.classes or ("land", "water")), label_map, labeler, keep_empty,
        tuple(bands or ()), unit, gsd_m, chip, unpaired, progress or _no_progress,
    )  # fmt: skip
    if chip < 8:
        raise UsageError(f"curate: expected chips of at least 8 pixels, got {chip}; raise chip")
    with RunLock(task.out):
        return _make_chips(task)


@dataclass(frozen=True)
class _Curation:
    sources: Mapping[str, ImageSource]
    out: Path
    classes: tuple[str, ...]
    label_map: Mapping[int, int] | None
    labeler: Labeler | None
    keep_empty: bool
    bands: tuple[str, ...]
    unit: Unit | None
    gsd_m: float | None
    chip: int
    unpaired: Unpaired
    progress: StageProgress

    @property
    def settings(self) -> str:
        """Settings that a chip's pixels depend on, beside its source."""
        return repr((CURATION_VERSION, self.classes, self.label_map, self.labeler, self.keep_empty))


def _settle_sources(
    source: str | Path | ImageSource | Mapping[str, ImageSource], kind: str, sensor: str, asked: dict[str, Setting], gsd_m: float | None,
    label_map: Mapping[int, int] | None, labelled: bool,
) -> Mapping[str, ImageSource]:  # fmt: skip
    """Return the sources by name; one alone has the name ""."""
    if isinstance(source, Mapping):
        return source
    names = parse_sources(sensor) if sensor else ("",)
    if len(names) == 1:
        return {
            "": _settle_source(source, kind, asked | ({"sensor": sensor} if sensor else {}), gsd_m, label_map, labelled)
        }
    return {name: _settle_source(source, kind, asked | {"sensor": name}, gsd_m, label_map, labelled) for name in names}


def _check_of_several(given: Mapping[str, object]) -> None:
    for key, value in given.items():
        if value:
            raise UsageError(
                f"curate.{key}: expected none of it for several sources, got {value!r}; curate one source, or write it into the "
                "files or the index"
            )


def _settle_source(
    source: str | Path | ImageSource, kind: str, asked: dict[str, Setting], gsd_m: float | None, label_map: Mapping[int, int] | None,
    labelled: bool,
) -> ImageSource:  # fmt: skip
    if not isinstance(source, str | Path):
        for key, value in (asked if kind == DETECT else {"kind": kind, **asked}).items():
            raise UsageError(f"curate.{key}: expected no such argument beside a source, got {value!r}; set its field")
        return source
    if gsd_m is not None:
        asked["gsd_m"] = gsd_m
    if label_map is not None:
        asked["label_map"] = {str(raw): value for raw, value in label_map.items()}
    return make_source(source, kind, asked, {"labelled": labelled})


def _make_chips(task: _Curation) -> CurateReport:
    start = time.monotonic()
    items, lost, twice = _chip_items(task)
    failed = [(bad.id, bad.reason) for bad in (*lost, *twice) if not bad.skip]
    skipped = [(bad.id, bad.reason) for bad in lost if bad.skip]
    if not items:
        raise DataError(
            f"curate: expected chips to make, got none ({': '.join((failed or skipped or [('', 'nothing found')])[0]).removeprefix(': ')})"
        )
    header, headers, estimate = _sample_headers(task, items)
    _check_disk_space(task.out, estimate)
    task.progress(0, len(items), estimate.text)
    writer = ChipWriter(task.out, header)
    made: list[str] = []
    kept: list[str] = []
    for done, item in enumerate(items, 1):
        try:
            (kept if _make_chip(task, item, header, headers, writer) else made).append(item.id)
            task.progress(done, len(items), item.id)
        except EmptyChipError as empty:
            skipped.append((item.id, str(empty)))
            task.progress(done, len(items), f"{item.id} skipped: {empty}")
        except (SeawallError, OSError, ValueError, ArithmeticError, MemoryError) as bad:
            if isinstance(bad, OSError) and bad.errno in FATAL_ERRNOS:
                raise RunError(
                    f"{task.out}: expected to write {item.id}, got {bad.strerror}; free space and run again, {len(made) + len(kept)} chips are kept"
                ) from bad
            reason = str(bad) if isinstance(bad, SeawallError) else f"{type(bad).__name__}: {bad}"
            failed.append((item.id, reason))
            task.progress(done, len(items), f"{item.id} failed: {reason}")
    if not made and not kept:
        first = (failed or skipped)[0]
        raise DataError(
            f"{task.out}: expected chips, got none: {len(failed)} failed and {len(skipped)} are empty; first {first[0]}: {first[1]}"
        )
    folder = writer.finish([*made, *kept])
    report = CurateReport(
        folder, tuple(made), tuple(kept), tuple(skipped), tuple(failed), estimate,
        dict(Counter(note.split(" (")[0] for row in folder.rows for note in row.notes[: len(task.sources)])),
        folder.flags(),
        time.monotonic() - start,
    )  # fmt: skip
    _write_report(task.out, report)
    return report


def _make_chip(
    task: _Curation, item: ChipItem, header: ChipHeader, headers: Sequence[ChipHeader], writer: ChipWriter
) -> bool:
    """Make one chip; return whether an earlier run had made it."""
    parts = ("absent" if part is None else part.digest() for part in item.parts)
    digest = sha256_text(*parts, task.settings, repr(header))
    if writer.is_complete(item.id, digest):
        return True
    if len(task.sources) > 1:
        ready = prepare_joint(item, header, headers, label_map=task.label_map, keep_empty=task.keep_empty)
    else:
        [part] = item.parts
        assert part is not None  # pairing alone leaves parts out
        ready = prepare_chip(part, header, label_map=task.label_map, labeler=task.labeler, keep_empty=task.keep_empty)
    writer.write(
        item.id, item.group, ready.image, ready.label, seen=ready.seen, grid=ready.grid, gain=ready.gain,
        source=item.source, source_sha256=digest, notes=ready.notes, flags=ready.flags,
    )  # fmt: skip
    return False


def _chip_items(task: _Curation) -> tuple[list[ChipItem], list[RejectedItem], list[RejectedItem]]:
    """Return the chips to make, those that cannot be made, and those whose id another one has."""
    found, lost, twice = [], [], []
    for source in task.sources.values():
        items, rejected = source.items(task.chip)
        items, repeated = _unique_items(items)
        found.append(items)
        lost.append(rejected)
        twice += repeated
    if len(found) == 1:
        return single_items(found[0]), lost[0], twice
    made, failed = pair_items(tuple(task.sources), found, lost, task.unpaired)
    return made, failed, twice


def _sample_headers(
    task: _Curation, items: Sequence[ChipItem]
) -> tuple[ChipHeader, tuple[ChipHeader, ...], CurateEstimate]:
    """Return the header of the chips, that of each source, and the estimated cost of all."""
    names = tuple(task.sources)
    found = []
    for at, (name, source) in enumerate(task.sources.items()):
        own = [part for item in items if (part := item.parts[at]) is not None]
        if not own:
            raise DataError(f"{name}: expected images of every source, got none; leave {name} out")
        found.append(_sample_header(task, source, own, bands_of_source(task.bands, name, names)))
    headers = tuple(header for header, _ in found)
    if len(found) == 1:
        return headers[0], headers, found[0][1]
    size, seconds = (sum(getattr(cost, part) for _, cost in found) for part in ("bytes", "seconds"))
    text = " + ".join(f"{name}: {cost.text}" for name, (_, cost) in zip(names, found, strict=True))
    return joint_header(names, headers), headers, CurateEstimate(len(items), size, seconds, text)


def _sample_header(
    task: _Curation, source: ImageSource, items: Sequence[SourceItem], bands: Sequence[str]
) -> tuple[ChipHeader, CurateEstimate]:
    """Read some chips across the whole list; return the header that they share, and the estimated cost of all."""
    step = max(1, len(items) // SAMPLED_CHIPS)
    sample: dict[str, RawChip] = {}
    gsds: dict[str, float | None] = {}
    reasons: list[str] = []
    start = time.monotonic()
    for item in items[::step]:
        try:
            sample[item.id] = name_bands(item.read(), source.product)
            gsds[item.id] = item.gsd_m
        except (SeawallError, OSError, ValueError) as bad:
            reasons.append(f"{item.id}: {bad}")
    if not sample:
        raise DataError(f"curate: expected readable chips, got none among {len(items[::step])} looked at; {reasons[0]}")
    each = (time.monotonic() - start) / len(sample)
    header = choose_header(
        sample, gsds, product=source.product, licence=source.licence, bands=bands,
        unit=task.unit, classes=task.classes, gsd_m=task.gsd_m,
    )  # fmt: skip
    first = next(iter(sample.values()))
    whole = first.step is not None or first.hints.dtype in ("uint8", "int16", "uint16")
    pixels = sum(item.shape[0] * item.shape[1] for item in items)
    size = pixels * (len(header.bands) * (2 if whole else 4) + 1) + 3000 * len(items)
    seconds = max(1.0, len(items) * (2 * each + 0.02))
    text = (
        f"{len(items)} chips, {len(header.bands)} bands of {unit_text(header.unit)}{'' if header.physical else ' (not physical)'}, "
        f"{size / 2**20:.1f} MiB, about {seconds:.0f} s"
    )
    return header, CurateEstimate(len(items), size, seconds, text)


def _unique_items(items: Sequence[SourceItem]) -> tuple[list[SourceItem], list[RejectedItem]]:
    seen: set[str] = set()
    once: list[SourceItem] = []
    lost: list[RejectedItem] = []
    for item in items:
        if item.id.lower() in seen:
            lost.append(
                RejectedItem(item.id, f"{item.source}: expected an id of its own, got {item.id!r} twice; rename one")
            )
            continue
        seen.add(item.id.lower())
        once.append(item)
    return once, lost


def _check_disk_space(out: Path, estimate: CurateEstimate) -> None:
    free = shutil.disk_usage(out).free
    if estimate.bytes > free:
        raise RunError(
            f"{out}: expected {estimate.bytes / 2**20:.0f} MiB of free space, got {free / 2**20:.0f}; free some or choose another disk"
        )


def _write_report(out: Path, report: CurateReport) -> None:
    plain = {key: value for key, value in vars(report).items() if key not in ("folder", "estimate")}
    write_atomic(out / "curate.json", json.dumps({**plain, "estimate": asdict(report.estimate)}, indent=1) + "\n")


def _no_progress(done: int, total: int, text: str) -> None:
    """Report nothing."""

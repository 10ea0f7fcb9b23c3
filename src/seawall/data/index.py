"""The index of a chip folder: a header, one row per chip, and a digest of both."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_args

from affine import Affine
from pydantic import TypeAdapter, ValidationError

from seawall.bands import channels_of_sources
from seawall.errors import DataError, first_error
from seawall.geo.raster import Grid
from seawall.io import write_atomic
from seawall.split_record import SplitRecord
from seawall.types import Unit, Units, joint_unit, units_of

INDEX_NAME = "index.json"
CHIPS_FORMAT = "seawall-chips"
INDEX_VERSION = 1
SOURCES_VERSION = 2
"""Version of an index of several sources, whose unseen pixels differ by band: earlier readers take those of the first band."""
_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+=-]{0,150}")


@dataclass(frozen=True)
class ChipHeader:
    """Properties of all chips of a folder.

    Args:
        bands: Canonical band ids in the order of the image channels.
        unit: Unit of the images, or one per band where sources differ.
        classes: Class names in the order of the label values.
        gsd_m: Ground sampling distance in meters.
        sensor: Product family, or "" where it is not known.
        licence: Licence of the data, as declared by their source.
        split: The split by which labels were corrupted, if they were; every verb follows it.
    """

    bands: tuple[str, ...]
    unit: Units
    classes: tuple[str, ...]
    gsd_m: float
    sensor: str = ""
    licence: str = ""
    split: SplitRecord | None = None

    def __post_init__(self) -> None:
        for name in ("bands", "classes"):
            got = getattr(self, name)
            if not got or len(set(got)) != len(got):
                raise DataError(f"index: expected {name} named once each, got {', '.join(got) or 'none'}; fix {name}")
        if self.unit not in get_args(Unit) and not self._has_unit_per_band():
            raise DataError(f"index: expected a unit of {', '.join(get_args(Unit))}, got {self.unit!r}; fix it")
        if not 0 < self.gsd_m < 1e5:
            raise DataError(f"index: expected gsd_m in meters, got {self.gsd_m}; fix it")

    @property
    def physical(self) -> bool:
        """Whether all images are in a physical unit; stretched pictures are usable, but not physical."""
        return "stretched" not in units_of(self.unit, 1)

    @property
    def sources(self) -> Mapping[str, tuple[int, ...]]:
        """Channels of each source of the chips; the only source of plain band names is ""."""
        return channels_of_sources(self.bands)

    def _has_unit_per_band(self) -> bool:
        units = self.unit
        if not isinstance(units, tuple) or len(units) != len(self.bands) or not set(units) <= {*get_args(Unit)}:
            return False
        alike = all(len({units[at] for at in channels}) == 1 for channels in self.sources.values())
        return alike and joint_unit(units) == units

    @property
    def water(self) -> int | None:
        """Label value of water, or None if there is no class of that name."""
        return self.classes.index("water") if "water" in self.classes else None


@dataclass(frozen=True)
class ChipRow:
    """One chip of the index.

    Args:
        id: Stable id: it seeds the chip's randomness and keys its records.
        group: Event or location; splits keep it together.
        image: Path of the image below the folder.
        label: Path of the label below the folder.
        height: Rows.
        width: Columns.
        sha256: Of the image file.
        label_sha256: Of the label file.
        dtype: Pixel type of the image file.
        gain: value = stored * gain.
        image_at: Byte of the image file where the pixels start.
        label_at: Byte of the label file where the pixels start.
        seen_share: Seen pixels over all.
        valid_share: Pixels with a label that counts over all.
        class_counts: Valid pixels of each class.
        source: Name of what it was made from.
        source_sha256: Digest of the source and settings that made it; resume compares this.
        transform: First six numbers of the affine transform; empty without georeference.
        crs: Coordinate system, or None.
        notes: Remarks for people, such as "no nodata declared" or how the unit was detected.
        flags: Short marks that results carry, such as "not-physical" or "empty".
        split_counts: Valid pixels of each class before the label was corrupted, so that a split stays the same; empty
            where it was not.
    """

    id: str
    group: str
    image: str
    label: str
    height: int
    width: int
    sha256: str
    label_sha256: str
    dtype: str
    gain: float
    image_at: int
    label_at: int
    seen_share: float
    valid_share: float
    class_counts: tuple[int, ...]
    source: str = ""
    source_sha256: str = ""
    transform: tuple[float, ...] = ()
    crs: str | None = None
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    split_counts: tuple[int, ...] = ()

    @property
    def grid(self) -> Grid:
        """Where the chip is."""
        return Grid(self.height, self.width, Affine(*self.transform) if self.transform else None, self.crs)

    @property
    def valid(self) -> int:
        """Pixels with a label that counts."""
        return sum(self.class_counts)

    def share(self, klass: int | None) -> float | None:
        """Share of a class among the valid pixels; None where no pixel is valid or there is no such class."""
        return None if klass is None or not self.valid else self.class_counts[klass] / self.valid


_ROW = TypeAdapter(ChipRow)
_HEADER = TypeAdapter(ChipHeader)


def check_id(id_: str, where: str = "chip") -> str:
    """Return the id of a chip if it is a safe file name on every system.

    Raises:
        DataError: It has other characters than letters, digits and `._@+=-`, or is empty or too long.

    Example:
        >>> check_id("../../x")
        Traceback (most recent call last):
        ...
        seawall.errors.DataError: chip: expected an id of letters, digits and ._@+=-, got '../../x'; rename it
    """
    if not _ID_PATTERN.fullmatch(id_):
        raise DataError(f"{where}: expected an id of letters, digits and ._@+=-, got {id_[:60]!r}; rename it")
    return id_


def dump_row(row: ChipRow) -> dict[str, object]:
    """Return a row as plain JSON values, the defaults left out."""
    plain = asdict(row)
    blank = {f.name: f.default for f in fields(ChipRow)}
    return {key: value for key, value in plain.items() if value != blank[key]}


def load_row(plain: Mapping[str, object], where: str) -> ChipRow:
    """Read a row.

    Raises:
        DataError: A field is missing, unknown or of the wrong type, the id cannot be a file name, or a path leaves the
            folder.
    """
    if unknown := set(plain) - {f.name for f in fields(ChipRow)}:
        raise DataError(f"{where}: expected the fields of a chip, got {sorted(unknown)[0]!r}; curate the folder again")
    try:
        row = _ROW.validate_python(dict(plain))
    except ValidationError as bad:
        raise DataError(f"{where}: {first_error(bad)[:300]}; curate the folder again") from bad
    check_id(row.id, where)
    for path in (row.image, row.label):
        if Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
            raise DataError(f"{where}: expected a path below the folder, got {path!r}; do not trust this index")
    if min(row.height, row.width) < 1 or row.dtype not in ("int16", "float32"):
        raise DataError(
            f"{where}: expected an int16 or float32 chip with pixels, got {row.dtype} {row.height}x{row.width}; curate the folder again"
        )
    return row


def dump_header(header: ChipHeader) -> dict[str, object]:
    """Return a header as plain JSON values; a split only where there is one."""
    plain = asdict(header)
    return {key: value for key, value in plain.items() if key != "split" or value is not None}


def write_index(folder: Path, header: ChipHeader, rows: Sequence[ChipRow]) -> None:
    """Write the index atomically, with rows sorted by id and the digest."""
    plain = [dump_row(row) for row in sorted(rows, key=lambda row: row.id)]
    head: dict[str, object] = {"format": CHIPS_FORMAT, "version": _version_of(header), **dump_header(header)}
    lines = ",\n".join("  " + json.dumps(row, sort_keys=True) for row in plain)
    text = (
        f'{{"header": {json.dumps(head, sort_keys=True)},\n "rows": [\n{lines}\n],\n "seal": "{seal(head, plain)}"}}\n'
    )
    write_atomic(folder / INDEX_NAME, text)


def _version_of(header: ChipHeader) -> int:
    return SOURCES_VERSION if len(header.sources) > 1 else INDEX_VERSION


def seal(header: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> str:
    """Return the SHA-256 of a header and its rows as written in the file, keys sorted; unknown keys count too."""
    return hashlib.sha256(json.dumps([header, rows], sort_keys=True).encode()).hexdigest()


def is_chip_folder(folder: Path) -> bool:
    """Tell whether a folder has an index of chips, damaged or not; other tools write an index.json too."""
    try:
        text = (folder / INDEX_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    try:
        plain = json.loads(text)
    except ValueError:
        return f'"format": "{CHIPS_FORMAT}"' in text
    header = plain.get("header") if isinstance(plain, dict) else None
    return isinstance(header, dict) and header.get("format") == CHIPS_FORMAT


def read_index(folder: Path) -> tuple[ChipHeader, tuple[ChipRow, ...]]:
    """Read the index of a chip folder.

    Raises:
        DataError: There is none, it is truncated, edited, of another format, or two rows share an id.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise DataError(f"{folder}: expected a chip folder with {INDEX_NAME}, got none; make one with `seawall curate`")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        head, rows = dict(plain["header"]), list(plain["rows"])
        # Folders of earlier versions have no digest; they open as before, and get one when they are written again.
        broken = "seal" in plain and plain["seal"] != seal(head, rows)
        kind, version = head.pop("format"), head.pop("version")
    except (ValueError, TypeError, KeyError) as bad:
        raise DataError(
            f"{path}: expected an index of chips, got something else ({bad}); curate the folder again"
        ) from bad
    if kind != CHIPS_FORMAT or version not in (INDEX_VERSION, SOURCES_VERSION):
        raise DataError(
            f"{path}: expected {CHIPS_FORMAT} version {INDEX_VERSION} or {SOURCES_VERSION}, got {kind} version {version}; curate it again"
        )
    if broken:
        raise DataError(
            f"{path}: expected the index as it was written, got one that was edited or damaged (its seal does not fit); "
            "curate the folder again"
        )
    try:
        header = _HEADER.validate_python(head)
    except ValidationError as bad:
        raise DataError(f"{path}: {first_error(bad)[:300]}; curate the folder again") from bad
    chips = tuple(load_row(row, f"{path} row {i}") for i, row in enumerate(rows))
    repeated = [id_ for id_, n in Counter(row.id for row in chips).items() if n > 1]
    if repeated:
        raise DataError(f"{path}: expected each id once, got {repeated[0]!r} twice; curate the folder again")
    for row in chips:
        for counts in (row.class_counts, row.split_counts or row.class_counts):
            if len(counts) != len(header.classes):
                raise DataError(
                    f"{path}: expected {len(header.classes)} class counts, got {len(counts)} for {row.id!r}; curate the folder again"
                )
    return header, chips

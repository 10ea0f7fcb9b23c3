"""Records of results: one measured number each, in an append-only file that resumes. Reports are functions of these records."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from seawall.errors import RunError

Key = tuple[str, ...]


class ThreatFacts(NamedTuple):
    """A threat as plain values, in the order of the fields of a record.

    Args:
        norm: "linf" or "l2"; "" for no adversary.
        eps: One number for all bands, or one per band, in `unit`.
        unit: As in the text of a threat: "reflectance", "dB" or "stretched".
        bands: Bands that may be touched; empty for all.
        region: The region as text; "" for every seen pixel.
        limits: Sign, spectrum and unusual bounds as text; "" for none.
    """

    norm: str = ""
    eps: tuple[float, ...] = ()
    unit: str = ""
    bands: tuple[str, ...] = ()
    region: str = ""
    limits: str = ""

    def allows_less(self, other: ThreatFacts) -> bool:
        """Return whether this threat is a proper part of another: no band has more budget, and some has less.

        Threats of another norm, unit, region or limits are not comparable, nor are budgets per band for other bands.

        Example:
            >>> ThreatFacts("linf", (0.01, 0.02)).allows_less(ThreatFacts("linf", (0.01, 0.03)))
            True
            >>> ThreatFacts("linf", (0.01, 0.02)).allows_less(ThreatFacts("linf", (0.02, 0.01)))
            False
        """
        if not self.norm or self._replace(eps=(), bands=()) != other._replace(eps=(), bands=()):
            return False
        same_bands = set(self.bands) == set(other.bands)
        if not same_bands and (len(self.eps) > 1 or len(other.eps) > 1 or not _covers_bands(other.bands, self.bands)):
            return False
        count = max(len(self.eps), len(other.eps))
        if {len(self.eps), len(other.eps)} - {1, count}:
            return False
        own, others = (eps * count if len(eps) == 1 else eps for eps in (self.eps, other.eps))
        return all(a <= b for a, b in zip(own, others, strict=True)) and (own != others or not same_bands)


class CorruptionFacts(NamedTuple):
    """A natural perturbation as plain values, in the order of the fields of a record.

    Args:
        severity: From 0 to 1; None where the images were not corrupted.
        level: The physical quantity at that severity.
        quantity: What the level is, such as "added aerosol optical depth at 550 nm".
        level_unit: Unit of the level; "" for a pure number.
    """

    severity: float | None = None
    level: float | None = None
    quantity: str = ""
    level_unit: str = ""


SEVERITIES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Severities of a corruption where none are named."""

MEMBER_MARK = ".member-"
"""Between a network's name and the number of a further member of its ensemble: unet, unet.member-1."""
KEYED_ATTACKS: Mapping[str, str] = {
    "key-known": "PGD through the transform by an adversary who has weights and key",
    "key-known-slope": "the same with the slope of the code table as the gradient of the encryption",
    "transfer-plain": "PGD on the plain network, given to this one: neither weights nor key are needed",
    "transfer-other-key": "PGD on a surrogate that was trained alike with another key, given to this one",
    "guessed-keys": "PGD in expectation over guessed keys by an adversary who has the weights and not the key",
    "black-box": "Square: answers of the network alone, the right key being inside",
}
"""Adaptive attacks on a network behind a keyed transform, by their names in the rows."""


WAYS: Mapping[str, str] = {
    "contiguous": "PyTorch, contiguous",
    "channels-last": "PyTorch, channels last",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
}
"""Ways to run a network, and what readers call them."""


@dataclass(frozen=True)
class Record:
    """One measured number and everything needed to trace it.

    Args:
        recipe: Id of the recipe that made it.
        model: Model name in the run.
        method: The attack or the corruption, or "clean".
        threat: Threat with its unit or severity, as text; "" where there is none.
        chip: Chip id, or "" for a figure over a whole set.
        group: Event or location of the chip; splits and intervals go by it.
        metric: What was measured, such as "tp", "fp", "fn", "pixels" or "iou.pooled".
        klass: Class name, or "" where the metric has none.
        value: The number; None where it is undefined.
        n: How many pixels (or chips) it is over.
        flags: Objections to the number, by the sanity checks among others.
        seconds: Time it took, monotonic clock.
        norm: Norm of the threat, "linf" or "l2"; "" where there is no adversary.
        eps: Budget of the threat in data units: one number for all bands, or one per band of the model.
        unit: Unit of eps, such as "reflectance" or "dB".
        bands: Bands that the adversary may touch; empty for all of them.
        region: Pixels that the adversary may touch, as text; "" for every seen one.
        limits: What else bounds the adversary, as text: sign, spectrum, unusual bounds; "" for nothing.
        severity: Severity of a corruption, from 0 to 1; None where the images were not corrupted.
        level: Physical quantity at that severity.
        quantity: What the level is.
        level_unit: Unit of the level.
    """

    recipe: str
    model: str
    method: str
    threat: str
    chip: str
    group: str
    metric: str
    klass: str
    value: float | None
    n: int
    flags: tuple[str, ...] = ()
    seconds: float = 0.0
    norm: str = ""
    eps: tuple[float, ...] = ()
    unit: str = ""
    bands: tuple[str, ...] = ()
    region: str = ""
    limits: str = ""
    severity: float | None = None
    level: float | None = None
    quantity: str = ""
    level_unit: str = ""

    @property
    def key(self) -> Key:
        """Every field that is not measured; a run that resumes skips records whose key is in the log."""
        return (self.recipe, self.model, self.method, self.threat, self.chip, self.group, self.metric, self.klass)

    def measured(self, metric: str, value: float | None, n: int, klass: str = "", seconds: float = 0.0) -> Record:
        """Return the row of a number that was measured under the same conditions; flags, threat and severity stay."""
        return Record(
            self.recipe, self.model, self.method, self.threat, self.chip, self.group, metric, klass, value, n, self.flags,
            seconds, self.norm, self.eps, self.unit, self.bands, self.region, self.limits,
            self.severity, self.level, self.quantity, self.level_unit,
        )  # fmt: skip

    @property
    def adversary(self) -> ThreatFacts:
        """What the adversary may do, as one value."""
        return ThreatFacts(self.norm, self.eps, self.unit, self.bands, self.region, self.limits)

    @property
    def corruption(self) -> CorruptionFacts:
        """Severity and level of the corruption, as one value."""
        return CorruptionFacts(self.severity, self.level, self.quantity, self.level_unit)


def _covers_bands(large: tuple[str, ...], small: tuple[str, ...]) -> bool:
    """Return whether the bands of one threat include those of another; empty means all bands."""
    return not large or (bool(small) and set(small) <= set(large))


RECORD_FIELDS = tuple(f.name for f in fields(Record))
TUPLE_FIELDS = ("flags", "eps", "bands")
OPTIONAL_FIELDS = {
    f.name: f.default for f in fields(Record) if f.name in ThreatFacts._fields[1:] + CorruptionFacts._fields
}
"""Fields of a threat and of a corruption with their defaults, which are left out of the file."""


class RecordLog:
    """An append-only JSONL file of records; an incomplete last line of a killed run is dropped.

    Args:
        path: The file; it is made with its folder when the first record is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys = {record.key for record in self._recover()}

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[Record]:
        yield from read_records(self.path)

    def append(self, records: Iterable[Record]) -> None:
        """Write records that are not there yet and flush them to the disk.

        Raises:
            RunError: The disk is full, or the folder cannot be written.
        """
        new = [record for record in records if record.key not in self._keys]
        if not new:
            return
        lines = "".join(map(_record_line, new)).encode()
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as bad:
            self._cut(before)
            raise RunError(
                f"{self.path}: expected to add {len(new)} records, got {bad.strerror}; free space and run again, the earlier ones are kept"
            ) from bad
        self._keys.update(record.key for record in new)

    def _cut(self, size: int) -> None:
        """Truncate the file after a failed write, so that no later row is appended to an incomplete one."""
        with contextlib.suppress(OSError), self.path.open("rb+") as file:
            file.truncate(size)

    def _recover(self) -> list[Record]:
        if not self.path.exists():
            return []
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if whole != raw:
            with self.path.open("rb+") as file:
                file.truncate(len(whole))
        return list(read_records(self.path))


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a JSONL file.

    Raises:
        RunError: A line is not a record, or an attack's row was written before rows held the budget as values.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                held = {name: value for name, value in row.items() if name in RECORD_FIELDS}
                record = Record(**(held | {name: tuple(row.get(name, ())) for name in TUPLE_FIELDS}))
            except (ValueError, TypeError, AttributeError) as bad:
                raise RunError(
                    f"{path}:{number}: expected a record, got {line[:60]!r}; remove the line or start a new run"
                ) from bad
            if "norm" not in row and record.threat:
                raise RunError(
                    f"{path}:{number}: expected an attack's row with norm, eps and unit, got one of an older version; "
                    "measure again into a new folder"
                )
            yield record


def finite_or_none(value: float | None) -> float | None:
    """Return a plain number, None for what is not finite: an undefined value is None everywhere.

    Example:
        >>> finite_or_none(3.0), finite_or_none(float("nan")), finite_or_none(None)
        (3.0, None, None)
    """
    return None if value is None or not math.isfinite(value) else float(value)


def _record_line(record: Record) -> str:
    every = {name: getattr(record, name) for name in RECORD_FIELDS}
    row = {
        name: value for name, value in every.items() if name not in OPTIONAL_FIELDS or value != OPTIONAL_FIELDS[name]
    }
    row["norm"] = record.norm  # always written, which distinguishes rows of older versions
    if record.value is not None and not math.isfinite(record.value):
        raise RunError(
            f"record {record.metric}: expected a finite value or None, got {record.value}; undefined is None"
        )
    return json.dumps(row, sort_keys=True) + "\n"

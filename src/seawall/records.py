"""Results are rows: long, append-only, resumable. Reports are pure functions of these rows."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from seawall.errors import RunError

Key = tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """One measured number and everything needed to trace it.

    Args:
        recipe: Id of the recipe that made it.
        model: Model name in the run.
        method: Attack, corruption, noise or "clean".
        threat: Threat or severity as text with its unit; "" where there is none.
        chip: Chip id, or "" for a figure over a whole set.
        group: Event or location of the chip; splits and intervals go by it.
        metric: What was measured, such as "tp", "fp", "fn", "pixels" or "iou.pooled".
        klass: Class name, or "" where the metric has none.
        value: The number; None where it is undefined.
        n: How many pixels (or chips) it is over.
        flags: What the interrogation says against it.
        seconds: Time it took, monotonic clock.
        norm: Norm of the threat, such as "linf"; "" where there is no threat. So are the next four.
        eps: Budget in data units: one number, or one per band.
        unit: Unit of the budget, as the model's specification names it.
        bands: Names of the bands that may be changed; empty for all of them.
        region: Pixels that may be changed, as text; "" for every seen one.
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

    @property
    def key(self) -> Key:
        """Every field that is not measured; resume means that the key is there."""
        return (self.recipe, self.model, self.method, self.threat, self.chip, self.group, self.metric, self.klass)


class RecordLog:
    """An append-only JSONL file of records; a torn last line of a killed run is dropped, not trusted.

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
        lines = "".join(map(_line, new)).encode()
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
        """Take back what a failed write left, so that no later row is glued to a torn one."""
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
        RunError: A line is not a record.
    """
    if not path.exists():
        return
    names = {f.name for f in fields(Record)}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                held: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in names}
                yield Record(**held)
            except (ValueError, TypeError, AttributeError) as bad:
                raise RunError(
                    f"{path}:{number}: expected a record, got {line[:60]!r}; remove the line or start a new run"
                ) from bad


def _line(record: Record) -> str:
    row = asdict(record)
    if record.value is not None and not math.isfinite(record.value):
        raise RunError(
            f"record {record.metric}: expected a finite value or None, got {record.value}; undefined is None"
        )
    return json.dumps(row, sort_keys=True) + "\n"

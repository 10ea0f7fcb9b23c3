"""Provenance of a run: its data, its environment, and the time of each stage."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from seawall import __version__
from seawall.data.chips import ChipFolder
from seawall.data.splits import Split, split_summary
from seawall.geo.sensors import band_noise
from seawall.io import write_atomic
from seawall.version import code_version


@dataclass(frozen=True)
class RunMetadata:
    """The facts.json of a run: its data, and the seconds and CPU seconds of each stage, summed over resumes."""

    path: Path

    def update(self, **values: object) -> None:
        """Set values; the others stay."""
        write_atomic(
            self.path, json.dumps({**self._read(), **values, "version": __version__}, indent=1, sort_keys=True)
        )

    @contextmanager
    def time_stage(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage; those of a stage that was finished before are not counted again."""
        done = cast(list[str], self._read().get("finished", []))
        if stage in done:
            yield
            return
        start = time.monotonic(), time.process_time()
        try:
            yield
        except BaseException:
            self._add(stage, *start)
            raise
        self._add(stage, *start)
        self.update(finished=[*done, stage])

    def _add(self, stage: str, start: float, cpu_start: float) -> None:
        for key, spent in (("seconds", time.monotonic() - start), ("cpu_seconds", time.process_time() - cpu_start)):
            before = cast(dict[str, float], self._read().get(key, {}))
            self.update(**{key: {**before, stage: round(before.get(stage, 0.0) + spent, 1)}})

    def _read(self) -> dict[str, object]:
        if not self.path.exists():
            return {}
        return cast(dict[str, object], json.loads(self.path.read_text(encoding="utf-8")))


def data_facts(chips: ChipFolder, split: Split) -> dict[str, object]:
    """Return the facts on chips and split for the report."""
    return {
        "chips": len(chips.rows),
        "unit": chips.unit,
        "bands": list(chips.bands),
        "gsd_m": chips.gsd_m,
        "classes": list(chips.classes),
        "noise": band_noise(chips.bands) if chips.unit == "reflectance" else {},
        "licence": chips.header.licence,
        "flags": chips.flags(),
        **split_summary(chips, split),
    }


def environment() -> dict[str, str]:
    """Return software versions and the machine."""
    return {
        "seawall": __version__,
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": str(torch.get_num_threads()),
    }


def record_environment(folder: Path) -> tuple[str, ...]:
    """Write software versions and the machine to env.json, with those of earlier runs in the same folder.

    If they changed, "history" lists them in order; "rows_before" is the number of rows in records.jsonl at that
    time, so that every row can be traced to the code that made it.

    Returns:
        The code versions that took part, oldest first.
    """
    path, now = folder / "env.json", environment()
    stored = cast(dict[str, object], json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    history = cast(list[dict[str, object]], stored.pop("history", [{**stored, "rows_before": 0}] if stored else []))
    if not history or {k: v for k, v in history[-1].items() if k != "rows_before"} != now:
        history.append({**now, "rows_before": _count_lines(folder / "records.jsonl")})
    known = {**now, "history": history} if len(history) > 1 else now
    write_atomic(path, json.dumps(known, indent=1, sort_keys=True))
    return tuple(dict.fromkeys(str(entry.get("code", entry.get("seawall", ""))) for entry in history))


def _count_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0

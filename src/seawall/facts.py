"""What a run says about itself: its data, its machine, how long each stage took."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from seawall import __version__
from seawall.datasets.chips import ChipFolder
from seawall.datasets.index import ChipRow
from seawall.datasets.splits import Split
from seawall.files import write_atomic


@dataclass(frozen=True)
class Clock:
    """The facts file: what the data is and how long each stage took, added up over resumes."""

    path: Path

    def note(self, **facts: object) -> None:
        """Set facts."""
        write_atomic(
            self.path, json.dumps({**self._facts(), **facts, "version": __version__}, indent=1, sort_keys=True)
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            facts = self._facts()
            seconds = cast(dict[str, float], facts.get("seconds", {}))
            self.note(seconds={**seconds, stage: round(seconds.get(stage, 0.0) + time.monotonic() - start, 1)})

    def _facts(self) -> dict[str, object]:
        if not self.path.exists():
            return {}
        return cast(dict[str, object], json.loads(self.path.read_text(encoding="utf-8")))


def data_facts(chips: ChipFolder, split: Split) -> dict[str, object]:
    """Return what the report says about chips and split."""
    parts = {"train": split.train, "val": split.val, "test": split.test}
    rows = {part: [chips.row(id_) for id_ in ids] for part, ids in parts.items()}
    return {
        "chips": len(chips.rows),
        "unit": chips.unit,
        "bands": list(chips.bands),
        "gsd_m": chips.gsd_m,
        "classes": list(chips.classes),
        "groups": {part: sorted({row.group for row in found}) for part, found in rows.items()},
        "chips_per_part": {part: len(found) for part, found in rows.items()},
        "water_share": {part: _share(found, chips.classes) for part, found in rows.items()},
    }


def _share(rows: Sequence[ChipRow], classes: Sequence[str]) -> float | None:
    """Share of the water among the valid pixels, or of all classes but the first."""
    of = [classes.index("water")] if "water" in classes else range(1, len(classes))
    total = sum(sum(row.class_counts) for row in rows)
    return round(sum(row.class_counts[k] for row in rows for k in of) / total, 4) if total else None


def digest_chips(chips: ChipFolder, ids: Iterable[str]) -> str:
    """Return a hash of the content of these chips."""
    text = "".join(f"{row.sha256}{row.label_sha256}" for row in map(chips.row, ids))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def environment() -> dict[str, str]:
    """Return versions and machine."""
    return {
        "seawall": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": str(torch.get_num_threads()),
    }

"""What a training leaves to look at: one JSON line per epoch, and curves for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seawall.errors import RunError
from seawall.io import write_atomic

Row = Mapping[str, float | int | bool | None]


@dataclass(frozen=True)
class History:
    """How a training went.

    Args:
        rows: One per epoch: epoch, step, loss, lr, seconds, the metrics of the check, and whether it was the best.
        best: Best value of the monitored metric; None without a check.
        best_epoch: The epoch whose weights are kept.
        ending: "finished" or "early".
        weights: The file with the kept weights.
        monitor: The metric that chose them.
        versions: Code that took part, oldest first; more than one after a resume with other code.
    """

    rows: tuple[Row, ...]
    best: float | None
    best_epoch: int
    ending: str
    weights: Path
    monitor: str = ""
    versions: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of all epochs, checks included."""
        return sum(float(row["seconds"] or 0) for row in self.rows)


class HistoryLog:
    """Writes rows to history.jsonl and, if asked, to TensorBoard.

    Args:
        folder: Where history.jsonl and tb/ go.
        rows: Rows of the epochs before a resume; what the file has beyond them belongs to lost work and goes.
        tensorboard: Write curves too.
    """

    def __init__(self, folder: Path, rows: Sequence[Row], *, tensorboard: bool) -> None:
        self.path = folder / "history.jsonl"
        self._rows = list(rows)
        self._curves = None
        self._write()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every caller wants it

            step = int(rows[-1]["step"] or 0) + 1 if rows else 0
            self._curves = SummaryWriter(str(folder / "tb"), purge_step=step)

    def append(self, row: Row) -> None:
        """Write one epoch."""
        self._rows.append(row)
        self._write()
        if self._curves is None:
            return
        for name, value in row.items():
            if name not in ("epoch", "step", "best") and value is not None:
                self._curves.add_scalar(name.replace(".", "/"), value, row["step"])
        self._curves.flush()

    def close(self) -> None:
        """Close the curves."""
        if self._curves is not None:
            self._curves.close()

    def _write(self) -> None:
        # A row per epoch is little: the whole file each time is never torn, and needs no repair after a kill.
        write_atomic(self.path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._rows))


def read_history(path: Path) -> tuple[Row, ...]:
    """Return the rows of a history.jsonl.

    Raises:
        RunError: A line is not a row.
    """
    try:
        return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as bad:
        raise RunError(f"{path}: expected a training history, got {bad}; train again") from bad


def finite(value: float | None) -> float | None:
    """Return the value, or None where it is not a number: undefined is None.

    Example:
        >>> finite(float("nan")) is None
        True
    """
    return None if value is None or not math.isfinite(value) else float(value)

"""Checkpoints of a training: whole or absent, two at a time, and read without unpickling anything.

A checkpoint is a sealed safetensors file: the model's and the optimizer's tensors, and everything else as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seawall.errors import ModelError, RunError
from seawall.io import write_atomic
from seawall.models.weights import pack_safetensors, state_of, unpack_safetensors

KEPT = 2


@dataclass
class Standing:
    """Where a training stands; with the tensors, all that resuming needs.

    Args:
        epoch: Epochs done.
        step: Steps done in the epoch under way.
        loss: Sum of the losses of those steps.
        seconds: Time spent in that epoch.
        best: Best value of the monitored metric.
        best_epoch: Where it was.
        stale: Checks since then.
        ending: How the training ended; "" while it goes on.
        rows: History rows of the epochs done.
        versions: Code that took part, oldest first, as `seawall.version.code_version` names it.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = -1
    stale: int = 0
    ending: str = ""
    rows: list[Mapping[str, float | int | bool | None]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)


class Checkpoints:
    """The checkpoints in a folder; the newest whole one counts.

    Args:
        folder: They live in it as <epoch>-<step>.safetensors.
        identity: What decides the result; a checkpoint of another training is refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.identity = dict(identity)

    def save(self, standing: Standing, model: nn.Module, optimizer: Optimizer, scaler: Mapping[str, Any]) -> None:
        """Write a checkpoint, then drop all but the two newest.

        Raises:
            RunError: The disk is full or the folder cannot be written; the earlier checkpoints stay.
        """
        tensors = {f"model.{name}": tensor for name, tensor in state_of(model).items()}
        state = optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for index, slots in state["state"].items():
            for name, slot in slots.items():
                if isinstance(slot, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = slot.detach().to("cpu", copy=True).contiguous()
                else:
                    plain.setdefault(str(index), {})[name] = slot
        meta = {
            "standing": json.dumps(asdict(standing)),
            "identity": json.dumps(self.identity),
            "optimizer": json.dumps({"groups": state["param_groups"], "plain": plain}),
            "scaler": json.dumps(dict(scaler)),
        }
        path = self.folder / f"{standing.epoch:06d}-{standing.step:09d}.safetensors"
        try:
            write_atomic(path, pack_safetensors(tensors, meta)[0])
            for old in self._newest()[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as full:
            raise RunError(
                f"{path}: expected to write a checkpoint, got {full.strerror or full}; free the disk and run again, the training goes on from the last one"
            ) from full

    def load(self, model: nn.Module, optimizer: Optimizer) -> tuple[Standing, Mapping[str, Any]] | None:
        """Fill the model and the optimizer from the newest whole checkpoint.

        Returns:
            Where the training stands and the state of the precision's scaler, or None where there is no checkpoint.

        Raises:
            RunError: The checkpoint is of another training, naming what differs, or every checkpoint is damaged.
        """
        damage: list[str] = []
        for path in self._newest():
            try:
                tensors, meta = unpack_safetensors(path)
            except ModelError as bad:
                damage.append(str(bad))
                continue
            self._same(path, json.loads(meta["identity"]))
            _fill_model(model, _under("model.", tensors))
            _fill_optimizer(optimizer, json.loads(meta["optimizer"]), _under("optimizer.", tensors))
            return _standing(json.loads(meta["standing"])), json.loads(meta["scaler"])
        if damage:
            raise RunError(f"{damage[0]} (no earlier checkpoint is whole; train again with resume=False)")
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        for path in self._newest():
            path.unlink(missing_ok=True)

    def _newest(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"), reverse=True)

    def _same(self, path: Path, was: Mapping[str, str]) -> None:
        if changes := differences(was, self.identity):
            raise RunError(
                f"{path.parent.parent}: expected the training that was begun here, got {changes}; undo the change, choose another folder, or start over without resuming"
            )


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return which keys differ, with both values; "" where none does.

    Example:
        >>> differences({"lr": "1", "seed": "0"}, {"lr": "2", "seed": "0"})
        'lr 2 (was 1)'
    """
    keys = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(f"{key} {now.get(key)} (was {was.get(key)})" for key in keys[:5]) + more


def sweep(folder: Path) -> None:
    """Remove the unfinished files that killed writers left in a folder; only for the one that holds its lock."""
    for leftover in folder.rglob(".*.part"):
        leftover.unlink(missing_ok=True)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _standing(said: Mapping[str, Any]) -> Standing:
    return Standing(**{f.name: said[f.name] for f in fields(Standing) if f.name in said})


def _fill_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as bad:
        first = str(bad).splitlines()[-1].strip()
        raise RunError(
            f"resume: expected the layers of the model that was begun, got {first}; use the same model"
        ) from bad


def _fill_optimizer(optimizer: Optimizer, said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    parameters = list(_parameters(optimizer))
    state: dict[int, dict[str, Any]] = {int(index): dict(slots) for index, slots in said["plain"].items()}
    for name, tensor in tensors.items():
        index, slot = name.split(".", 1)
        like = parameters[int(index)]
        # The memory layout of the parameter: elementwise arithmetic must take the same path as before.
        tensor = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": said["groups"]})


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


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

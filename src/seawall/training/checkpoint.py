"""Checkpoints and history of a training; checkpoints are written atomically, and read without unpickling.

A checkpoint is a safetensors file with a digest: the tensors of model and optimizer, and the rest as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seawall.errors import ModelError, RunError
from seawall.io import write_atomic
from seawall.models.weights import pack_safetensors, spec_of, spec_to_json, state_of, tensors_digest, unpack_safetensors
from seawall.training.configuration import NOT_DECIDING, Training
from seawall.types import Objective, ObjectiveState

KEPT_CHECKPOINTS = 2


@dataclass
class TrainingState:
    """The state of a training; with the tensors, all that resuming needs.

    Args:
        epoch: Epochs done.
        step: Steps done in the current epoch.
        loss: Sum of the losses of those steps.
        seconds: Time spent in that epoch.
        cpu_seconds: CPU time spent in that epoch.
        best: Best value of the monitored metric.
        best_epoch: Its epoch.
        stale: Validations since then.
        ending: How the training ended; "" before its end.
        rows: History rows of the epochs done.
        versions: Versions of the code, oldest first, as `seawall.version.code_version` names them.
        objective: State of an adaptive objective.
        revision_s: CPU seconds of its measurements so far.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best: float | None = None
    best_epoch: int = -1
    stale: int = 0
    ending: str = ""
    rows: list[Mapping[str, float | int | bool | None]] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    objective: ObjectiveState = field(default_factory=dict)
    revision_s: float = 0.0


class LoadedCheckpoint(NamedTuple):
    """What a checkpoint holds beside the weights and the optimizer."""

    state: TrainingState
    scaler: Mapping[str, Any]
    average: Mapping[str, Tensor]


class Checkpoints:
    """The checkpoints in a folder; the newest undamaged one is loaded.

    Args:
        folder: Holds them as <epoch>-<step>.safetensors.
        identity: What decides the result; a checkpoint of another training is refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.identity = dict(identity)

    def save(
        self,
        state: TrainingState,
        model: nn.Module,
        optimizer: Optimizer,
        scaler: Mapping[str, Any],
        average: Mapping[str, Tensor],
    ) -> None:
        """Write a checkpoint, then drop all but the two newest.

        Args:
            state: How far the training is.
            model: The model.
            optimizer: The optimizer.
            scaler: State of the gradient scaler.
            average: The averaged weights; empty without an average.

        Raises:
            RunError: The disk is full or the folder cannot be written; the earlier checkpoints stay.
        """
        tensors = {f"model.{name}": tensor for name, tensor in state_of(model).items()}
        tensors |= {
            f"average.{name}": tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in average.items()
        }
        optimizer_state = optimizer.state_dict()
        plain: dict[str, dict[str, Any]] = {}
        for index, slots in optimizer_state["state"].items():
            for name, slot in slots.items():
                if isinstance(slot, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = slot.detach().to("cpu", copy=True).contiguous()
                else:
                    plain.setdefault(str(index), {})[name] = slot
        meta = {
            "standing": json.dumps(asdict(state)),
            "identity": json.dumps(self.identity),
            "optimizer": json.dumps({"groups": optimizer_state["param_groups"], "plain": plain}),
            "scaler": json.dumps(dict(scaler)),
        }
        path = self.folder / f"{state.epoch:06d}-{state.step:09d}.safetensors"
        try:
            write_atomic(path, pack_safetensors(tensors, meta)[0])
            for old in self._newest()[KEPT_CHECKPOINTS:]:
                old.unlink(missing_ok=True)
        except OSError as full:
            raise RunError(
                f"{path}: expected to write a checkpoint, got {full.strerror or full}; free the disk and run again, the training goes on from the last one"
            ) from full

    def load(self, model: nn.Module, optimizer: Optimizer) -> LoadedCheckpoint | None:
        """Load the newest undamaged checkpoint into the model and the optimizer.

        Returns:
            The rest of the checkpoint, or None without one.

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
            _fill_model(model, _with_prefix("model.", tensors))
            _fill_optimizer(optimizer, json.loads(meta["optimizer"]), _with_prefix("optimizer.", tensors))
            state = _read_state(json.loads(meta["standing"]))
            return LoadedCheckpoint(state, json.loads(meta["scaler"]), _with_prefix("average.", tensors))
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
        if changes := describe_differences(was, self.identity):
            raise RunError(
                f"{path.parent.parent}: expected the training that was begun here, got {changes}; undo the change, choose another folder, or start over without resuming"
            )


def describe_differences(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return the keys that differ, with both values; "" if none does.

    Example:
        >>> describe_differences({"lr": "1", "seed": "0"}, {"lr": "2", "seed": "0"})
        'lr 2 (was 1)'
    """
    keys = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(f"{key} {now.get(key)} (was {was.get(key)})" for key in keys[:5]) + more


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished files of killed writers from a folder; only for the process that holds its lock."""
    for leftover in folder.rglob(".*.part"):
        leftover.unlink(missing_ok=True)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_state(stored: Mapping[str, Any]) -> TrainingState:
    return TrainingState(**{f.name: stored[f.name] for f in fields(TrainingState) if f.name in stored})


def _fill_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as bad:
        first = str(bad).splitlines()[-1].strip()
        raise RunError(
            f"resume: expected the layers of the model that was begun, got {first}; use the same model"
        ) from bad


def _fill_optimizer(optimizer: Optimizer, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    parameters = list(_parameters(optimizer))
    state: dict[int, dict[str, Any]] = {int(index): dict(slots) for index, slots in stored["plain"].items()}
    for name, tensor in tensors.items():
        index, slot = name.split(".", 1)
        like = parameters[int(index)]
        # In the memory layout of the parameter, so that elementwise arithmetic gives the same bits as before.
        tensor = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": stored["groups"]})


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


HistoryRow = Mapping[str, float | int | bool | None]


@dataclass(frozen=True)
class History:
    """The history of a training.

    Args:
        rows: One per epoch: epoch, step, loss, lr, seconds, CPU seconds of all processes, the validation metrics, and
            whether it was the best.
        best: Best value of the monitored metric; None without a validation.
        best_epoch: The epoch whose weights are kept.
        ending: "finished" or "early".
        weights: The file with the kept weights.
        monitor: The metric that selected them.
        versions: Versions of the code, oldest first; several after a resume with other code.
    """

    rows: tuple[HistoryRow, ...]
    best: float | None
    best_epoch: int
    ending: str
    weights: Path
    monitor: str = ""
    versions: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of all epochs, validations included."""
        return sum(float(row["seconds"] or 0) for row in self.rows)


class HistoryLog:
    """Writes rows to history.jsonl and, optionally, to TensorBoard.

    Args:
        folder: Where history.jsonl and tb/ go.
        rows: Rows of the epochs before a resume; later rows in the file are removed.
        tensorboard: Write curves too.
    """

    def __init__(self, folder: Path, rows: Sequence[HistoryRow], *, tensorboard: bool) -> None:
        self.path = folder / "history.jsonl"
        self._rows = list(rows)
        self._curves = None
        self._write()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always needed

            step = int(rows[-1]["step"] or 0) + 1 if rows else 0
            self._curves = SummaryWriter(str(folder / "tb"), purge_step=step)

    def append(self, row: HistoryRow) -> None:
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
        # Written whole at every epoch, so that a kill leaves no incomplete line.
        write_atomic(self.path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._rows))


def training_identity(
    model: nn.Module, objective: Objective, training: Training, seed: int, context: Mapping[str, str]
) -> dict[str, str]:
    """Return the settings and digests that decide the result, as texts."""
    settings = asdict(training)
    for name in NOT_DECIDING:
        settings.pop(name)
    scaling = {name: t for name, t in state_of(model).items() if "standardize." in name}
    return {
        **{f"training.{key}": str(value) for key, value in settings.items()},
        "seed": str(seed),
        "objective": repr(objective) if is_dataclass(objective) else type(objective).__qualname__,
        "model": spec_to_json(replace(spec_of(model), note="")),
        "normalization": tensors_digest(scaling, {})[:12],
        **{f"context.{key}": value for key, value in context.items()},
    }

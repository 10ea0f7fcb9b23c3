"""The training loop, on Lightning Fabric: devices, processes, precision; exact resume after any kill.

Every step is a pure function of the checkpoint, the seed and the feed: the learning rate is a function of the
step, randomness belongs to chips, and layers that draw (dropout) are seeded per step. So a run that was killed
and resumed on one process ends with the bits of one that was not.

With several processes each takes every n-th image of every batch, and its gradient counts by its share of valid
pixels. The result equals that of one process up to rounding, if the loss is a mean over valid pixels (ce, bce,
focal) and no layer mixes images (norm "pixel" or "group"); region losses and batch norms see their own images only.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from seawall.checkpoint import Checkpoints, Standing, sweep
from seawall.errors import ModelError, RunError, StoppedError, UsageError, did_you_mean
from seawall.files import RunLock
from seawall.history import History, HistoryLog, Row, finite
from seawall.keys import Keys
from seawall.models.container import digest
from seawall.models.standardize import Standardize
from seawall.models.weights import check_finite, load_model, save_model, spec_of, spec_to_json, state_of
from seawall.processes import add_up, at_home, listening, share_of, start_fabric
from seawall.schedule import Training, learning_rate, make_training
from seawall.types import Batch, Objective

__all__ = ["Check", "Feed", "History", "Progress", "Training", "fit", "make_training"]

Feed = Callable[[int], Iterable[Batch]]
Check = Callable[[nn.Module], Mapping[str, float | None]]
Progress = Callable[[int, int, str], None]


class DivergedError(RunError):
    """The loss or the weights are no longer numbers; the checkpoint before is kept."""


def fit(
    model: nn.Module,
    objective: Objective,
    feed: Feed,
    check: Check | None,
    training: Training,
    folder: Path | str,
    *,
    device: str = "auto",
    devices: int = 1,
    resume: bool = True,
    seed: int = 0,
    context: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> History:
    """Train a model; at the end it holds the best weights, which are also in `folder/model.safetensors`.

    Args:
        model: A module with a `spec`; its `standardize` is fitted on the training pixels beforehand.
        objective: What is minimized; it gets this very model, never a wrapper.
        feed: Epoch to batches, at least `steps_per_epoch * accumulate` of them and the same ones every time.
        check: Model in eval mode to metrics, on one process; the monitored one chooses the weights. Without
            a check the last weights are kept.
        training: The settings.
        folder: Gets model.safetensors, history.jsonl, checkpoints/ and tb/.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        devices: Processes; above 1 the program is started once more for each, unless torchrun already did.
        resume: Go on from the checkpoint in the folder; False starts over.
        seed: Names the random streams of the objective.
        context: More that decides the result, such as the digest of the data; a resume with another is refused.
        progress: Called with steps done, steps in all, and a line of text.

    Raises:
        RunError: The folder is in use, was begun with other settings, or training diverged.
        StoppedError: SIGINT or SIGTERM came; the step was finished and saved.
        UsageError: The feed is too short, or the check lacks the monitored metric.
        ModelError: The model has no spec or parameters, or its normalization was not fitted.
    """
    folder = Path(folder)
    _ready(model, training, check)
    fabric = start_fabric(device, devices, training)
    with ExitStack() as held:
        if fabric.is_global_zero:
            held.enter_context(RunLock(folder))
        stopped = held.enter_context(listening())
        held.enter_context(torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []))
        held.enter_context(at_home(model, fabric.device))
        identity = _identity(model, objective, training, seed, context or {})
        run = _Run(fabric, model, objective, training, folder, identity, seed, progress, stopped)
        held.callback(run.close)
        run.begin(resume)
        while not run.at.ending:
            model.train()
            for batches in run.steps(feed):
                run.descend(batches)
            run.end_epoch(check)
        return run.finish()


class _Run:
    """One training under way: what the loop in `fit` does at each turn."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        objective: Objective,
        training: Training,
        folder: Path,
        identity: Mapping[str, str],
        seed: int,
        progress: Progress | None,
        stopped: threading.Event,
    ) -> None:
        self.fabric, self.model, self.objective, self.training = fabric, model, objective, training
        self.folder, self.seed, self.progress, self.stopped = folder, seed, progress, stopped
        self.checkpoints = Checkpoints(folder / "checkpoints", identity)
        self.plain = _optimizer(model, training)
        self.optimizer = cast(Optimizer, fabric.setup_optimizers(self.plain))
        self.at = Standing()
        self.log: HistoryLog | None = None
        self.saved_s = self.began_s = time.monotonic()

    def begin(self, resume: bool) -> None:
        """Load the checkpoint if there is one."""
        if self.fabric.is_global_zero:
            sweep(self.folder)
            if not resume:
                self.checkpoints.clear()
        self.fabric.barrier()
        found = self.checkpoints.load(self.model, self.plain) if resume else None
        if found:
            self.at, scaler = found
            if scaler:
                self.fabric.strategy.precision.load_state_dict(dict(scaler))
        self.began_s = time.monotonic() - self.at.seconds
        if self.fabric.is_global_zero:
            self.log = HistoryLog(self.folder, self.at.rows, tensorboard=self.training.tensorboard)

    def steps(self, feed: Feed) -> Iterator[list[Batch]]:
        """Yield the batches of each step of this epoch that is still to do."""
        size = self.training.accumulate
        source = islice(feed(self.at.epoch), self.at.step * size, None)
        while self.at.step < self.training.steps_per_epoch:
            batches = [batch.to(self.fabric.device) for batch in islice(source, size)]
            if len(batches) < size:
                raise UsageError(
                    f"feed: expected {self.training.steps_per_epoch * size} batches in epoch {self.at.epoch}, got fewer; "
                    f"lower training.steps_per_epoch, or ask the loader for count={self.training.patches_per_epoch} patches"
                )
            yield batches

    def descend(self, batches: Sequence[Batch]) -> None:
        """Take one optimizer step."""
        fabric, step = self.fabric, self.at.epoch * self.training.steps_per_epoch + self.at.step
        rate = learning_rate(self.training, step)
        for group in self.plain.param_groups:
            group["lr"] = rate
        torch.manual_seed(Keys(self.seed, (f"step{step}.{fabric.global_rank}",), ("layers",)).number(0))
        mine = [share_of(batch, fabric.global_rank, fabric.world_size) for batch in batches]
        shares, stop = self._shares(mine)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=fabric.device)
        for batch, share in zip(mine, shares, strict=True):
            with fabric.autocast():
                loss = self.objective(self.model, batch, Keys(self.seed, batch.chips).fold("train"))  # type: ignore[arg-type]
            loss = loss if share == 1 else loss * share
            fabric.backward(loss)
            total += loss.detach()
        value = float(add_up(fabric, self.model, total))
        if not math.isfinite(value):
            raise self._diverged(f"loss {value}")
        if self.training.clip:
            fabric.clip_gradients(self.model, self.optimizer, max_norm=self.training.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.at.step += 1
        self.at.loss += value
        self._tell(step + 1, value)
        self._save_inside(stop)

    def end_epoch(self, check: Check | None) -> None:
        """Check, log and save an epoch, and say whether it was the last."""
        at, training = self.at, self.training
        last = at.epoch + 1 == training.epochs
        due = check is not None and (last or (at.epoch + 1) % training.check_every == 0)
        metrics = self._metrics(check) if check is not None and due else {}
        best = check is None or (due and self._improves(metrics))
        if best:
            at.best, at.best_epoch, at.stale = metrics.get(training.monitor), at.epoch, 0
        elif due:
            at.stale += 1
        row: Row = {
            "epoch": at.epoch,
            "step": (at.epoch + 1) * training.steps_per_epoch,
            "loss": at.loss / training.steps_per_epoch,
            "lr": self.plain.param_groups[0]["lr"],
            "seconds": time.monotonic() - self.began_s,
            **metrics,
            "best": best,
        }
        at.epoch, at.step, at.loss, at.seconds = at.epoch + 1, 0, 0.0, 0.0
        at.rows.append(row)
        at.ending = "finished" if last else "early" if training.patience and at.stale >= training.patience else ""
        if self.log is not None:
            self._guard()
            if best:
                save_model(self.folder / "model.safetensors", self.model)
            self.log.append(row)
            self._save()
        self.began_s = time.monotonic()

    def finish(self) -> History:
        """Give the model its best weights."""
        self.fabric.barrier()
        weights = self.folder / "model.safetensors"
        if not weights.exists():
            raise RunError(
                f"{weights}: expected the weights of a finished training, got no file; train again with resume=False"
            )
        load_model(weights, into=self.model)
        return History(tuple(self.at.rows), self.at.best, self.at.best_epoch, self.at.ending, weights)

    def close(self) -> None:
        """Close the logs."""
        if self.log is not None:
            self.log.close()

    def _shares(self, mine: Sequence[Batch]) -> tuple[list[float], bool]:
        """Return each batch's share of the step's valid pixels over all processes, and whether one was asked to stop."""
        world = self.fabric.world_size
        if world == 1 and len(mine) == 1:
            return [1.0], self.stopped.is_set()
        counts = torch.stack([batch.valid.sum() for batch in mine]).double()
        total = torch.stack([counts.sum(), counts.new_tensor(float(self.stopped.is_set()))])
        total = total if world == 1 else self.fabric.all_reduce(total, reduce_op="sum")  # type: ignore[assignment]
        valid, stop = float(total[0]), bool(total[1] > 0)
        return [float(count) / valid if valid else 0.0 for count in counts], stop

    def _metrics(self, check: Check) -> dict[str, float | None]:
        """Run the check on one process and share what it says."""
        said: dict[str, float | None] = {}
        if self.fabric.is_global_zero:
            self.model.eval()
            said = {name: finite(value) for name, value in check(self.model).items()}
            if self.training.monitor not in said:
                raise UsageError(
                    f"training.monitor: expected a metric of the check, got {self.training.monitor!r}; {did_you_mean(self.training.monitor, said)}"
                )
        return self.fabric.broadcast(said)

    def _improves(self, metrics: Mapping[str, float | None]) -> bool:
        value, best = metrics.get(self.training.monitor), self.at.best
        if best is None or value is None:
            # The first check counts even where its metric is undefined: some weights must be kept.
            return self.at.best_epoch < 0 or value is not None
        return value > best if self.training.better == "higher" else value < best

    def _save_inside(self, stop: bool) -> None:
        """Save where it is due, and leave where someone asked to."""
        inside = self.at.step < self.training.steps_per_epoch
        due = 0 < self.training.save_s <= time.monotonic() - self.saved_s
        if inside and (stop or due):
            self.at.seconds = time.monotonic() - self.began_s
            if self.fabric.is_global_zero:
                self._guard()
                self._save()
        if inside and stop:
            self.fabric.barrier()
            raise StoppedError(
                f"{self.folder}: training stopped after epoch {self.at.epoch}, step {self.at.step}; the same command goes on from there"
            )

    def _save(self) -> None:
        scaler = self.fabric.strategy.precision.state_dict()
        self.checkpoints.save(self.at, self.model, self.plain, scaler)
        self.saved_s = time.monotonic()

    def _guard(self) -> None:
        try:
            check_finite(state_of(self.model), "weights")
        except ModelError as bad:
            raise self._diverged(str(bad)) from bad

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{self.folder}: expected a finite loss, got {what} in epoch {self.at.epoch}, step {self.at.step}; "
            "lower training.lr or look for wrong values in the chips (the last good checkpoint is kept)"
        )

    def _tell(self, done: int, loss: float) -> None:
        if self.progress is None or not self.fabric.is_global_zero:
            return
        monitored = self.at.rows[-1].get(self.training.monitor) if self.at.rows else None
        metric = "" if monitored is None else f", {self.training.monitor} {monitored:.3f}"
        self.progress(
            done, self.training.steps, f"epoch {self.at.epoch + 1}/{self.training.epochs}, loss {loss:.4f}{metric}"
        )


def _ready(model: nn.Module, training: Training, check: Check | None) -> None:
    spec_of(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "fit: expected a model with parameters, got none; a threshold is calibrated with model.fit(batches)"
        )
    for name, part in model.named_modules():
        if isinstance(part, Standardize) and not part.fitted:
            raise ModelError(
                f"model.{name}: expected mean and std of the training pixels, got none; call model.{name}.fit(mean, std) first"
            )
    if training.patience and check is None:
        raise UsageError(
            "training.patience: expected a check to be patient with, got none; give a check or patience = 0"
        )


def _optimizer(model: nn.Module, training: Training) -> Optimizer:
    # Decaying norms and biases shrinks what the next layer undoes; it only costs.
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": training.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "sgd":
        return SGD(groups, lr=training.lr, momentum=0.9, nesterov=True)
    return AdamW(groups, lr=training.lr)


def _identity(
    model: nn.Module, objective: Objective, training: Training, seed: int, context: Mapping[str, str]
) -> dict[str, str]:
    """What decides the result, as texts that a message can show."""
    settings = asdict(training)
    for harmless in ("save_s", "tensorboard"):
        settings.pop(harmless)
    scaling = {name: t for name, t in state_of(model).items() if "standardize." in name}
    return {
        **{f"training.{key}": str(value) for key, value in settings.items()},
        "seed": str(seed),
        "objective": repr(objective) if is_dataclass(objective) else type(objective).__qualname__,
        "model": spec_to_json(replace(spec_of(model), note="")),
        "normalization": digest(scaling, {})[:12],
        **{f"context.{key}": value for key, value in context.items()},
    }

"""The training loop, on Lightning Fabric: devices, processes, precision, and exact resume after a kill.

Every step is a pure function of the checkpoint, the seed and the feed: the learning rate is a function of the
step, randomness belongs to chips, and layers with random numbers (dropout) are seeded per step. So a training that
was killed and resumed on one process gives the same bits as one that was not.

With several processes each takes every n-th image of every batch, and its gradient is weighted by its share of
valid pixels. The result equals that of one process up to rounding, if the loss is a mean over valid pixels (ce, bce,
focal) and no layer mixes images (norm "pixel" or "group"); region losses and batch norms see the images of their process only,
and the running statistics of batch norms are averaged over the processes. An error on one process stops all.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from seawall.errors import ModelError, RunError, StoppedError, UsageError, did_you_mean
from seawall.io import RunLock
from seawall.models.blocks import Standardize
from seawall.models.weights import check_finite, load_model, save_model, spec_of, state_of
from seawall.modules import eval_mode, on_device
from seawall.records import finite_or_none
from seawall.result import StageProgress
from seawall.rng import Keys
from seawall.training.averaging import WeightAverage, teacher_of
from seawall.training.checkpoint import (
    Checkpoints,
    History,
    HistoryLog,
    HistoryRow,
    TrainingState,
    remove_unfinished,
    training_identity,
)
from seawall.training.configuration import Training, default_monitor, learning_rate
from seawall.training.distributed import (
    OtherProcessError,
    all_reduce_gradients,
    on_rank_zero,
    shard,
    start_fabric,
)
from seawall.training.launch import handle_signals
from seawall.training.optimizer import make_optimizer
from seawall.training.protocols import LayeredObjective
from seawall.types import AdaptiveObjective, Batch, Objective, ScheduledObjective, TaughtObjective
from seawall.version import code_version

__all__ = ["Validation", "Feed", "History", "StageProgress", "SeekableFeed", "Training", "fit"]

Feed = Callable[[int], Iterable[Batch]]
Validation = Callable[[nn.Module], Mapping[str, float | None]]


@runtime_checkable
class SeekableFeed(Protocol):
    """A feed that can start in the middle of an epoch, so that a resume skips the batches before."""

    def __call__(self, epoch: int, /) -> Iterable[Batch]: ...
    def starting_at(self, epoch: int, batch: int, /) -> Iterable[Batch]: ...


class DivergedError(RunError):
    """The loss or the weights are no longer numbers; the checkpoint before is kept."""


def fit(
    model: nn.Module,
    objective: Objective,
    feed: Feed,
    check: Validation | None,
    training: Training,
    folder: Path | str,
    *,
    device: str = "auto",
    devices: int = 1,
    resume: bool = True,
    seed: int = 0,
    context: Mapping[str, str] | None = None,
    metrics: Sequence[str] | None = None,
    progress: StageProgress | None = None,
) -> History:
    """Train a model; at the end it holds the best weights, which are also in `folder/model.safetensors`.

    Args:
        model: A module with a `spec`; its `standardize` is fitted on the training pixels beforehand.
        objective: What is minimized; it gets the model itself, not a wrapper. With a schedule, it is taken at each step's progress;
            with a state (`AdaptiveObjective`), that is measured on its clock and kept in the checkpoints; with a teacher
            (`TaughtObjective`), that is the moving average of the weights; layers of its own (`LayeredObjective`) are trained too.
        feed: Epoch to batches, at least `steps_per_epoch * accumulate` of them and the same ones every time. A
            `SeekableFeed` starts at the first batch that a resumed epoch lacks.
        check: Validation: model in eval mode to metrics, on one process; the monitored one selects the weights. Without
            it, or while the monitored metric is undefined (None), the last weights are kept.
        training: The settings.
        folder: Gets model.safetensors, history.jsonl, checkpoints/ and tb/, and snapshots if there are any.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        devices: Processes; above 1 the program is started once more for each, unless torchrun or
            `seawall.training.launch.run_processes` already did.
        resume: Go on from the checkpoint in the folder; False starts over.
        seed: Seed of the random numbers of the objective.
        context: More that decides the result, such as the digest of the data; a resume with another is refused.
        metrics: Names of the validation metrics, if known; an unknown monitor is then refused before the first
            step instead of after the first epoch.
        progress: Called with steps done, steps in all, and a line of text.

    Raises:
        RunError: The folder is in use, was begun with other settings, or training diverged.
        StoppedError: SIGINT or SIGTERM came, even in the last step or validation; the state is saved.
        OtherProcessError: Another process of this training failed.
        UsageError: The feed is too short, or the check lacks the monitored metric.
        ModelError: The model has no spec or parameters, or its normalization was not fitted.
    """
    folder = Path(folder)
    _check_model(model, training, check)
    training = replace(training, monitor=training.monitor or default_monitor(spec_of(model).classes))
    if check is not None and metrics is not None:
        _check_monitor(training, metrics)
    fabric = start_fabric(device, devices, training)
    with ExitStack() as held:
        on_rank_zero(fabric, lambda: _enter(held, RunLock(folder)))
        stopped = held.enter_context(handle_signals(str(folder)))
        held.enter_context(torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []))
        held.enter_context(on_device(model, fabric.device))
        identity = training_identity(
            model, objective, training, seed, {**(context or {}), "devices": str(fabric.world_size)}
        )
        run = _TrainingRun(fabric, model, objective, training, folder, identity, seed, progress, stopped)
        held.callback(run.close)
        run.begin(resume)
        while not run.state.ending:
            model.train()
            for batches in run.steps(feed):
                run.revise(feed)
                run.take_step(batches)
            run.end_epoch(check)
        return run.finish()


class _TrainingRun:
    """A running training: the steps of the loop in `fit`."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        objective: Objective,
        training: Training,
        folder: Path,
        identity: Mapping[str, str],
        seed: int,
        progress: StageProgress | None,
        stopped: threading.Event,
    ) -> None:
        self.fabric, self.model, self.objective, self.training = fabric, model, objective, training
        self.folder, self.seed, self.progress, self.stopped = folder, seed, progress, stopped
        self.checkpoints = Checkpoints(folder / "checkpoints", identity)
        self.layers = objective.new_layers(model).to(fabric.device) if isinstance(objective, LayeredObjective) else None
        self.trained = model if self.layers is None else nn.ModuleList([model, self.layers])
        self.base_optimizer = make_optimizer(self.trained, training)
        self.optimizer = cast(Optimizer, fabric.setup_optimizers(self.base_optimizer))
        self.average = WeightAverage(model, training.ema) if training.ema else None
        self.teacher = teacher_of(objective, self.average)
        self.state = TrainingState()
        self.failure: Exception | None = None
        self.log: HistoryLog | None = None
        self.saved_s = self.began_s = time.monotonic()
        self.began_cpu_s = time.process_time()

    def begin(self, resume: bool) -> None:
        """Load the checkpoint if there is one."""
        on_rank_zero(self.fabric, lambda: self._clean_folder(resume))
        found = self.checkpoints.load(self.trained, self.base_optimizer) if resume else None
        if found:
            self.state = found.state
            if found.scaler:
                self.fabric.strategy.precision.load_state_dict(dict(found.scaler))
            if self.average is not None:
                self.average.load(found.average)
        if self.state.versions[-1:] != [code_version()] and not self.state.ending:
            self.state.versions.append(code_version())
            if found and self.progress is not None and self.fabric.is_global_zero:
                note = f"goes on with seawall {code_version()}, begun with {', '.join(self.state.versions[:-1]) or 'an older one'}"
                self.progress(self.step, self.training.steps, note)
        self.began_s = time.monotonic() - self.state.seconds
        self.began_cpu_s = time.process_time() - self.state.cpu_seconds
        on_rank_zero(self.fabric, self._open_log)

    def steps(self, feed: Feed) -> Iterator[list[Batch]]:
        """Yield the batches of each remaining step of this epoch; an empty list after an error of the feed."""
        size, done = self.training.accumulate, self.state.step * self.training.accumulate
        if isinstance(feed, SeekableFeed):
            source = iter(feed.starting_at(self.state.epoch, done))
        else:
            source = islice(feed(self.state.epoch), done, None)
        while self.state.step < self.training.steps_per_epoch:
            yield self._next(source, size)

    def _next(self, source: Iterator[Batch], size: int) -> list[Batch]:
        try:
            batches = [batch.to(self.fabric.device) for batch in islice(source, size)]
            if len(batches) < size:
                raise UsageError(
                    f"feed: expected {self.training.steps_per_epoch * size} batches in epoch {self.state.epoch}, got fewer; "
                    f"lower training.steps_per_epoch, or ask the loader for count={self.training.patches_per_epoch} patches"
                )
        except Exception as bad:
            self._fail(bad)
            return []
        return batches

    def _fail(self, bad: Exception) -> None:
        """Raise in a single process; with several, keep the error until the others are informed."""
        if self.fabric.world_size == 1:
            raise bad
        self.failure = self.failure or bad

    def _raise_if(self, failed: bool) -> None:
        if self.failure is not None:
            raise self.failure
        if failed:
            raise OtherProcessError(
                f"{self.folder}: expected every process to go on, got a failure of another; see its error"
            )

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.epoch * self.training.steps_per_epoch + self.state.step

    def revise(self, feed: Feed) -> None:
        """Let an adaptive objective measure the model, or its teacher if it has one, on patches of this epoch."""
        if not isinstance(self.objective, AdaptiveObjective):
            return
        network = self.model if self.teacher is None else cast(nn.Module, self.teacher)
        adaptive, state, began = self.objective, self.state, time.process_time()
        state.objective = on_rank_zero(
            self.fabric,
            lambda: adaptive.revise(
                network, lambda: feed(state.epoch), self.step / self.training.steps, self.seed, state.objective
            ),
        )
        state.revision_s += time.process_time() - began

    def _objective_now(self) -> Objective:
        """Return the objective of this step: under its state, at its share of the training, with its teacher and its layers."""
        objective = self.objective
        if isinstance(objective, AdaptiveObjective):
            objective = objective.given(self.state.objective)
        if isinstance(objective, ScheduledObjective):
            objective = objective.at(self.step / self.training.steps)
        if self.teacher is not None and isinstance(objective, TaughtObjective):
            objective = objective.taught_by(self.teacher)
        if self.layers is not None and isinstance(objective, LayeredObjective):
            objective = objective.with_layers(self.layers)
        return objective

    def take_step(self, batches: Sequence[Batch]) -> None:
        """Take one optimizer step."""
        fabric, step = self.fabric, self.step
        rate = learning_rate(self.training, step)
        for group in self.base_optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(Keys(self.seed, (f"step{step}.{fabric.global_rank}",), ("layers",)).number(0))
        mine = [shard(batch, fabric.global_rank, fabric.world_size) for batch in batches]
        shares, stop = self._pixel_shares(mine)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=fabric.device)
        objective = self._objective_now()
        try:
            for batch, share in zip(mine, shares, strict=True):
                total += self._backward(objective, batch, share)
        except Exception as bad:
            self._fail(bad)
        summed, failed = all_reduce_gradients(fabric, self.trained, total, self.failure is not None)
        self._raise_if(failed)
        if not math.isfinite(value := float(summed)):
            raise self._diverged(f"loss {value}")
        if self.training.clip:
            fabric.clip_gradients(self.trained, self.optimizer, max_norm=self.training.clip, error_if_nonfinite=False)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(step)
        self.state.step, self.state.loss = self.state.step + 1, self.state.loss + value
        self._report(step + 1, value)
        self._save_within_epoch(stop)

    def _backward(self, objective: Objective, batch: Batch, share: float) -> Tensor:
        """Add the gradients of a batch and return its share of the step's loss."""
        with self.fabric.autocast():
            loss = objective(self.model, batch, Keys(self.seed, batch.chips).fold("train"))  # type: ignore[arg-type]
        loss = loss if share == 1 else loss * share
        self.fabric.backward(loss)
        return loss.detach()

    def end_epoch(self, check: Validation | None) -> None:
        """Validate, log and save an epoch, and decide whether it is the last."""
        state, training = self.state, self.training
        last = state.epoch + 1 == training.epochs
        due = check is not None and (last or (state.epoch + 1) % training.check_every == 0)
        with self._kept_weights():
            metrics = self._metrics(check) if check is not None and due else {}
        best = check is None or training.keep == "last" or (due and self._improves(metrics))
        if best:
            state.best, state.best_epoch, state.stale = metrics.get(training.monitor), state.epoch, 0
        elif due:
            state.stale += 1
        row: HistoryRow = {
            "epoch": state.epoch,
            "step": (state.epoch + 1) * training.steps_per_epoch,
            "loss": state.loss / training.steps_per_epoch,
            "lr": self.base_optimizer.param_groups[0]["lr"],
            "seconds": time.monotonic() - self.began_s,
            "cpu_seconds": self._cpu_seconds(),
            **{f"objective.{key}": value for key, value in state.objective.items() if isinstance(value, int | float)},
            **({"objective.cpu_s": state.revision_s} if state.objective else {}),
            **metrics,
            "best": best,
        }
        state.epoch, state.step, state.loss, state.seconds, state.cpu_seconds = state.epoch + 1, 0, 0.0, 0.0, 0.0
        state.rows.append(row)
        stale = bool(training.patience) and state.stale >= training.patience
        halted = (metrics.get(training.halt) or 0.0) > 0
        state.ending = "finished" if last else "early" if stale or halted else ""
        on_rank_zero(self.fabric, lambda: self._save_epoch(row, best))
        self.began_s, self.began_cpu_s = time.monotonic(), time.process_time()

    def _save_epoch(self, row: HistoryRow, best: bool) -> None:
        """Write weights, history and checkpoint of an epoch."""
        self._check_weights()
        if best:
            with self._kept_weights():
                save_model(self.folder / "model.safetensors", self.model)
        if number := self.training.snapshot_at(self.state.epoch - 1):
            save_model(self.folder / f"snapshot-{number}.safetensors", self.model)
        if self.log is not None:
            self.log.append(row)
        self._save()

    def _kept_weights(self) -> AbstractContextManager[None]:
        """Give the model the weights that are validated and kept: their average, or as they are."""
        return nullcontext() if self.average is None else self.average.applied()

    def finish(self) -> History:
        """Load the best weights into the model and return the history."""
        self.fabric.barrier()
        weights = self.folder / "model.safetensors"
        if not weights.exists():
            raise RunError(
                f"{weights}: expected the weights of a finished training, got no file; train again with resume=False"
            )
        load_model(weights, into=self.model)
        state, monitor = self.state, self.training.monitor
        return History(
            tuple(state.rows), state.best, state.best_epoch, state.ending, weights, monitor, tuple(state.versions)
        )

    def close(self) -> None:
        """Close the logs."""
        if self.log is not None:
            self.log.close()

    def _clean_folder(self, resume: bool) -> None:
        remove_unfinished(self.folder)
        if not resume:
            self.checkpoints.clear()

    def _open_log(self) -> None:
        self.log = HistoryLog(self.folder, self.state.rows, tensorboard=self.training.tensorboard)

    def _pixel_shares(self, mine: Sequence[Batch]) -> tuple[list[float], bool]:
        """Return each batch's share of the step's valid pixels over all processes, and whether one got a signal."""
        world = self.fabric.world_size
        if world == 1 and len(mine) == 1:
            return [1.0], self.stopped.is_set()
        device = self.fabric.device
        counts = torch.stack([batch.valid.sum() for batch in mine] or [torch.zeros((), device=device)]).double()
        flags = (self.stopped.is_set(), self.failure is not None)
        total = torch.stack([counts.sum(), *(counts.new_tensor(float(flag)) for flag in flags)])
        total = total if world == 1 else self.fabric.all_reduce(total, reduce_op="sum")  # type: ignore[assignment]
        self._raise_if(bool(total[2] > 0))
        valid, stop = float(total[0]), bool(total[1] > 0)
        return [float(count) / valid if valid else 0.0 for count in counts], stop

    def _cpu_seconds(self) -> float:
        """Return the CPU time of the epoch, summed over the processes."""
        own = time.process_time() - self.began_cpu_s
        if self.fabric.world_size == 1:
            return own
        return float(self.fabric.all_reduce(torch.tensor(own, device=self.fabric.device), reduce_op="sum"))  # type: ignore[arg-type]

    def _metrics(self, check: Validation) -> dict[str, float | None]:
        """Run the validation on rank 0 and broadcast its metrics."""

        def run() -> dict[str, float | None]:
            with eval_mode(self.model):
                values = {name: finite_or_none(value) for name, value in check(self.model).items()}
            _check_monitor(self.training, list(values))
            return values

        return on_rank_zero(self.fabric, run)

    def _improves(self, metrics: Mapping[str, float | None]) -> bool:
        value, best = metrics.get(self.training.monitor), self.state.best
        if best is None:
            return True  # as long as the metric is undefined, the last weights are kept
        if value is None:
            return False
        return value > best if self.training.better == "higher" else value < best

    def _save_within_epoch(self, stop: bool) -> None:
        """Save a checkpoint if it is due, and raise if a signal came."""
        within = self.state.step < self.training.steps_per_epoch
        due = 0 < self.training.save_s <= time.monotonic() - self.saved_s
        if within and (stop or due):
            self.state.seconds = time.monotonic() - self.began_s
            self.state.cpu_seconds = time.process_time() - self.began_cpu_s
            if stop:
                on_rank_zero(self.fabric, self._save_whole)  # on all processes: they share the flag
            elif self.fabric.is_global_zero:
                try:
                    self._save_whole()
                except Exception as bad:
                    self._fail(bad)
        if within and stop:
            raise StoppedError(
                f"{self.folder}: training stopped after epoch {self.state.epoch}, step {self.state.step}; the same command goes on from there"
            )

    def _save_whole(self) -> None:
        self._check_weights()
        self._save()

    def _save(self) -> None:
        scaler = self.fabric.strategy.precision.state_dict()
        average = {} if self.average is None else self.average.tensors
        self.checkpoints.save(self.state, self.trained, self.base_optimizer, scaler, average)
        self.saved_s = time.monotonic()

    def _check_weights(self) -> None:
        try:
            check_finite(state_of(self.trained), "weights")
        except ModelError as bad:
            raise self._diverged(str(bad)) from bad

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{self.folder}: expected a finite loss, got {what} in epoch {self.state.epoch}, step {self.state.step}; "
            "lower training.lr or look for wrong values in the chips (the last good checkpoint is kept)"
        )

    def _report(self, done: int, loss: float) -> None:
        if self.progress is None or not self.fabric.is_global_zero:
            return
        monitored = self.state.rows[-1].get(self.training.monitor) if self.state.rows else None
        metric = "" if monitored is None else f", {self.training.monitor} {monitored:.3f}"
        self.progress(
            done, self.training.steps, f"epoch {self.state.epoch + 1}/{self.training.epochs}, loss {loss:.4f}{metric}"
        )


def _enter(held: ExitStack, lock: RunLock) -> None:
    held.enter_context(lock)


def _check_monitor(training: Training, metrics: Sequence[str]) -> None:
    for key, name in (("monitor", training.monitor), ("halt", training.halt or training.monitor)):
        if name not in metrics:
            raise UsageError(
                f"training.{key}: expected a metric of the check, got {name!r}; {did_you_mean(name, metrics)}"
            )


def _check_model(model: nn.Module, training: Training, check: Validation | None) -> None:
    spec_of(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "fit: expected a model with parameters, got none; a model without any is fitted to chips with model.fit(batches)"
        )
    for name, part in model.named_modules():
        if isinstance(part, Standardize) and not part.fitted:
            raise ModelError(
                f"model.{name}: expected mean and std of the training pixels, got none; call model.{name}.fit(mean, std) first"
            )
    if (training.patience or training.halt) and check is None:
        raise UsageError(
            "training.patience, training.halt: expected a validation to stop early by, got none; give a check, or leave them out"
        )

"""Distributed training: devices, shards of batches, and reduction of gradients over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from seawall.errors import DataError, RunError, UsageError
from seawall.training.configuration import Training
from seawall.types import Batch

Value = TypeVar("Value")


def start_fabric(device: str, devices: int, training: Training) -> Fabric:
    """Return a launched Fabric; with several processes, the program is started once more for each.

    Raises:
        UsageError: This machine has no such device.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()) or devices < 1:
        raise UsageError(
            f"device: expected auto, cpu, cuda, cuda:<index> or mps, got {device!r} x {devices}; see `seawall doctor`"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device: expected a device of this machine, got {device!r} without CUDA; use --device auto")
    if index and devices > 1:
        raise UsageError(f"devices: expected 1 with {device!r}, got {devices}; leave out the index to use several")
    on_cuda = kind == "cuda" or (kind == "auto" and torch.cuda.is_available())
    if on_cuda and devices > torch.cuda.device_count():
        raise UsageError(
            f"devices: expected at most {torch.cuda.device_count()} on this machine, got {devices}; lower it or use --device cpu"
        )
    fabric = Fabric(
        accelerator=kind,
        devices=[int(index)] if index else devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=training.precision,
    )
    fabric.launch()
    return fabric


def shard(batch: Batch, rank: int, world: int) -> Batch:
    """Return the images of one process, every world-th; without any, the first image with no valid pixel.

    Raises:
        DataError: The batch is empty.
    """
    if not len(batch):
        raise DataError("feed: expected batches with images, got an empty one; drop it")
    if world == 1:
        return batch
    indices = range(rank, len(batch), world)
    if indices:
        return batch.select(list(indices))
    first = batch.select([0])
    return replace(first, valid=torch.zeros_like(first.valid))


def all_reduce_gradients(fabric: Fabric, model: nn.Module, loss: Tensor, failed: bool = False) -> tuple[Tensor, bool]:
    """Sum loss and gradients over the processes and average running statistics, in one all-reduce.

    DistributedDataParallel does not fit: an objective gets the model itself, and may attack it or run it twice.

    Args:
        fabric: The processes.
        model: Its gradients and running statistics are replaced.
        loss: This process's share of the loss.
        failed: Whether this process could not compute its share.

    Returns:
        The summed loss, and whether any process failed.
    """
    world = fabric.world_size
    if world == 1:
        return loss, failed
    trained = [p for p in model.parameters() if p.requires_grad]
    running = [buffer for name, buffer in model.named_buffers() if "running_" in name]
    parts: Sequence[Tensor] = [*(torch.zeros_like(p) if p.grad is None else p.grad for p in trained), *running]
    head = torch.stack([loss.reshape(()).float(), loss.new_tensor(float(failed)).float()])
    flat = torch.cat([head, *(part.reshape(-1).float() for part in parts)])
    flat = fabric.all_reduce(flat, reduce_op="sum")  # type: ignore[assignment]
    sums = torch.split(flat[2:], [part.numel() for part in parts])
    for parameter, part in zip(trained, sums, strict=False):
        parameter.grad = torch.empty_like(parameter).copy_(part.reshape(parameter.shape))
    for buffer, part in zip(running, sums[len(trained) :], strict=True):
        buffer.copy_(part.reshape(buffer.shape) / world)
    return flat[0], bool(flat[1] > 0)


class OtherProcessError(RunError):
    """Another process of this training failed, with its own error."""


def on_rank_zero(fabric: Fabric, work: Callable[[], Value]) -> Value:
    """Call a function on rank 0 and broadcast its result; an exception there raises on all processes.

    Otherwise the others would wait forever in the next collective call.

    Args:
        fabric: The processes.
        work: The function; its result is pickled for the broadcast.

    Raises:
        OtherProcessError: It failed on rank 0, where its own exception is raised.
    """
    if fabric.world_size == 1:
        return work()
    value: Value | None = None
    failure: Exception | None = None
    if fabric.is_global_zero:
        try:
            value = work()
        except Exception as bad:  # sent to the others below, then raised here
            failure = bad
    fine, value = fabric.broadcast((failure is None, value))
    if failure is not None:
        raise failure
    if not fine:
        raise OtherProcessError("training: expected every process to go on, got a failure of the first; see its error")
    return cast(Value, value)

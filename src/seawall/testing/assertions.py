"""What checks compare: a method made cheaply, bits of tensors, and everything that may not change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from seawall.registry import Entry, build
from seawall.types import Batch

Made = TypeVar("Made")


def made(entry: Entry, protocol: type[Made]) -> Made:
    """Return the method with its cheap settings.

    Args:
        entry: The registered method.
        protocol: What methods of its kind are.
    """
    method = build(entry.kind, entry.name, entry.smoke)
    assert isinstance(method, protocol), f"{entry.name}: expected a {protocol.__name__}, got {type(method).__name__}"
    return method


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal to the bit, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(1.25e30), b.nan_to_num(1.25e30))


def same_batch(a: Batch, b: Batch) -> bool:
    """Return whether two batches are equal to the bit."""
    same = a.chips == b.chips and a.planes.keys() == b.planes.keys()
    return same and all(same_bits(plane, b.planes[name]) for name, plane in a.planes.items())


def same_labels(a: Batch, b: Batch) -> bool:
    """Return whether two batches have labels at the same pixels, and the same ones; what invalid pixels say means nothing."""
    return same_bits(a.valid, b.valid) and same_bits(torch.where(a.valid, a.label, 0), torch.where(b.valid, b.label, 0))


def with_other_labels(change: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Return the batch that a change of labels makes; assert that it leaves its input, the image, seen and the chips as they are."""
    before = batch.copy()
    after = change(batch)
    assert same_batch(batch, before), "it wrote to its batch"
    assert same_bits(after.image, batch.image) and same_bits(after.seen, batch.seen), "the image or seen changed"
    assert after.chips == batch.chips, "the chips changed"
    return after


def snapshot(model: nn.Module) -> list[object]:
    """Return all that may not change in a model: values, gradients, buffers, modes, what wants gradients, hooks."""
    parameters = [
        (name, p.detach().clone(), None if p.grad is None else p.grad.clone(), p.requires_grad)
        for name, p in model.named_parameters()
    ]
    buffers = [(name, b.clone()) for name, b in model.named_buffers()]
    modules = [
        (name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()
    ]
    return [*parameters, *buffers, *modules]


def same_snapshot(a: list[object], b: list[object]) -> bool:
    """Return whether two snapshots are equal to the bit."""
    return _equal(a, b)


@contextmanager
def quiet_random() -> Iterator[None]:
    """Fail if the block draws from, or seeds, any global random state."""
    before = torch.get_rng_state().clone(), random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0]), "it drew from torch's global random state; draw from keys"
    assert before[1] == after[1], "it drew from Python's global random state; draw from keys"
    assert np.array_equal(before[2][1], after[2][1]), "it drew from NumPy's global random state; draw from keys"  # type: ignore[index]
    assert before[2][2] == after[2][2], "it drew from NumPy's global random state; draw from keys"  # type: ignore[index]


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return same_bits(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)

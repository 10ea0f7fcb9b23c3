"""Helpers for any torch module: its device, contexts for a device and for eval mode, and a forward pass that checks for in-place writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seawall.errors import ModelError
from seawall.types import Batch, SegmentationModel


def device_of(model: object) -> torch.device | None:
    """Return the device of a model's first parameter or buffer; None for a model without any."""
    if not isinstance(model, nn.Module):
        return None
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return None if first is None else first.device


def to_device_of(model: object, batch: Batch) -> Batch:
    """Return the batch on the model's device; unchanged where the model has none."""
    device = device_of(model)
    return batch if device is None or device == batch.image.device else batch.to(device)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards restore the mode of each of its modules."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a model to a device, and back afterwards."""
    former = device_of(model) or device
    try:
        model.to(device)
        yield
    finally:
        model.to(former)


def checked_forward(model: SegmentationModel | nn.Module, image: Tensor) -> Tensor:
    """Return a model's logits, and check that the model does not write into its input.

    An in-place write would change the image that is measured, attacked or blended next.

    Args:
        model: In eval mode.
        image: (B, C, H, W) on the model's device; the model gets a copy.

    Raises:
        ModelError: The model has written into its input.
    """
    given = image.clone()
    logits: Tensor = model(given)
    if not torch.equal(given.nan_to_num(), image.nan_to_num()):
        raise ModelError(
            f"{type(model).__name__}: expected a network that leaves its input as it is, got one that writes into it; "
            "let its forward begin with image = image.clone()"
        )
    return logits

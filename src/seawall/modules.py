"""What holds for any network: where it is, evaluation mode and back, and that it leaves its input alone."""

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
    """Return the batch on the model's device; as it is where the model has none."""
    device = device_of(model)
    return batch if device is None or device == batch.image.device else batch.to(device)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards every module of it is in the mode that it was found in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def forward_kept(model: SegmentationModel | nn.Module, image: Tensor) -> Tensor:
    """Return a model's logits, after a look whether it has left its input as it was.

    A network that writes into its input spoils the image that is measured, attacked or blended next.

    Args:
        model: In eval mode.
        image: (B, C, H, W) on the model's device; it stays as it is, whatever the model does.

    Raises:
        ModelError: The model has changed its input in place.
    """
    given = image.clone()
    logits: Tensor = model(given)
    if not torch.equal(given.nan_to_num(), image.nan_to_num()):
        raise ModelError(
            f"{type(model).__name__}: expected a network that leaves its input as it is, got one that writes into it; "
            "let its forward begin with image = image.clone()"
        )
    return logits

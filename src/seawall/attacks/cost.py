"""How much an attack costs: images sent through the model, counted at the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from seawall.types import SegmentationModel


@dataclass
class Passes:
    """Images that went through the model.

    Args:
        forward: All of them.
        backward: Those that went with gradients on, which a backward pass follows.
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def count_passes(model: SegmentationModel) -> Iterator[Passes]:
    """Count the images that a module sees inside the block.

    Example:
        >>> from seawall.testing import linear_model
        >>> model = linear_model()
        >>> with count_passes(model) as passes:
        ...     _ = model(torch.zeros(3, 2, 4, 4))
        >>> passes.forward
        3
    """
    passes = Passes()
    if not isinstance(model, nn.Module):
        yield passes
        return

    def note(_: nn.Module, given: tuple[object, ...]) -> None:
        image = given[0]
        if isinstance(image, torch.Tensor):
            passes.forward += len(image)
            passes.backward += len(image) if image.requires_grad else 0

    handle = model.register_forward_pre_hook(note)
    try:
        yield passes
    finally:
        handle.remove()

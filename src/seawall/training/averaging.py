"""The moving average of a network's weights, which is evaluated and kept instead of the last ones, and which may teach."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.types import Objective, SegmentationModel, TaughtObjective


class WeightAverage:
    """Exponential moving average of the state of a network.

    The running statistics of batch norms are averaged as the weights are, so that both belong to the same networks;
    counters are copied.

    Args:
        model: The network that is trained.
        decay: What is kept at each step; early on (1 + step) / (10 + step) where that is smaller, so that the first
            weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after an optimizer step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the average to that of a checkpoint, or to the present weights where it has none."""
        for name, tensor in (dict(tensors) or self.model.state_dict()).items():
            self.tensors[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights, and afterwards its own again."""
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        try:
            self.model.load_state_dict(self.tensors)
            yield
        finally:
            self.model.load_state_dict(own)

    def network(self) -> SegmentationModel:
        """Return a network of the averaged weights, in eval mode and without gradients; it follows the average."""
        averaged = copy.deepcopy(self.model)
        averaged.load_state_dict(self.tensors, assign=True)  # the very tensors, which `update` and `load` write to
        return cast(SegmentationModel, averaged.requires_grad_(False).eval())


def teacher_of(objective: Objective, average: WeightAverage | None) -> SegmentationModel | None:
    """Return the teacher of an objective: the averaged network, or None where it has none.

    Raises:
        UsageError: The objective needs an average and there is none.
    """
    if not isinstance(objective, TaughtObjective):
        return None
    if average is None and objective.needs_average:
        raise UsageError(
            f"training.ema: expected the decay of a teacher for {type(objective).__name__}, got 0; 0.99 is common"
        )
    return None if average is None else average.network()

"""Training that draws the weights of a layer together, so that a flipped bit makes an outlier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.wrapping import WrappingObjective
from seawall.types import Batch, Objective, SegmentationModel
from seawall.weight_faults.int8 import weight_parameters


@register("objective", "clustered-weights", paper="He et al., CVPR 2020")
@dataclass(frozen=True)
class ClusteredWeights(WrappingObjective):
    """Another objective plus the squared distances of positive weights to their mean and of negative ones to theirs.

    The penalty is a sum over layers, as in the paper, and each mean is over the weights of one sign of one layer. A batch
    without a valid pixel has none.

    Paper: He et al. 2020, "Defending and Harnessing the Bit-Flip based Adversarial Weight Attack", eq. 5.

    Args:
        strength: Weight of the penalty.
        objective: Registered name of the objective that the penalty is added to.
        objective_settings: Its settings, such as {loss = "ce + dice"}.
    """

    strength: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < float("inf"):
            raise UsageError(
                f"clustered-weights.strength: expected a number from 0 on, got {self.strength}; 0.001 is common"
            )

    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, inner: Objective) -> Tensor:
        """Return the inner objective's value plus the penalty."""
        value = inner(model, batch, keys)
        if not bool(batch.valid.any()):
            return value
        return value + self.strength * clustering_penalty(weight_parameters(cast(nn.Module, model)).values())


def clustering_penalty(weights: Iterable[Tensor]) -> Tensor:
    """Return the sum over weights of |W+ - mean(W+)|^2 + |W- - mean(W-)|^2.

    Example:
        >>> clustering_penalty([torch.tensor([1.0, 3.0, -2.0])]).item()
        2.0
    """
    signs = [sign for weight in weights for sign in (weight[weight > 0], weight[weight < 0]) if sign.numel()]
    parts = [(sign - sign.mean()).square().sum() for sign in signs]
    return torch.stack(parts).sum() if parts else torch.zeros(())

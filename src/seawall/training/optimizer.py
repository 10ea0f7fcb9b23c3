"""The optimizer of a training, and which weights decay."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from seawall.training.configuration import Training


def make_optimizer(model: nn.Module, training: Training) -> Optimizer:
    """Return the optimizer of a training."""
    # Norms and biases are not decayed: the next layer would compensate for it.
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

"""Unrolled training: a few steps of gradient descent, differentiable with respect to the training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seawall.losses.segmentation import masked_mean
from seawall.poisoning.target import pixel_loss
from seawall.types import Batch

Weights = Mapping[str, Tensor]


def trainable_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require gradients, detached from the model."""
    return {name: p.detach().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}


def frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that do not require gradients, and the buffers."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return {**frozen, **{name: b.detach() for name, b in model.named_buffers()}}


def logits_with(model: nn.Module, weights: Weights, image: Tensor) -> Tensor:
    """Return the logits of a model with other weights; its own do not change."""
    logits: Tensor = functional_call(model, {**frozen_weights(model), **weights}, (image,))
    return logits


def training_loss(model: nn.Module, weights: Weights, batch: Batch) -> Tensor:
    """Return the mean cross-entropy over the valid pixels of a batch."""
    return masked_mean(pixel_loss(logits_with(model, weights, batch.image), batch.label), batch.valid)


def unroll(
    model: nn.Module, batches: Sequence[Batch], lr: float, goal: Callable[[Tensor], Tensor], target: Tensor
) -> Tensor:
    """Return the adversary's loss after plain descent on each batch in turn, averaged over the steps.

    It is differentiable with respect to the images that require gradients; if none does, no graph is kept.

    Paper: Huang et al. 2020, arXiv:2004.00225, eqs. 4 to 6.

    Args:
        model: In eval mode, so that a step depends on its batch alone.
        batches: One per step.
        lr: Length of the steps.
        goal: Maps the target's logits to a scalar, lower being better for the adversary.
        target: (1, C, H, W) image.
    """
    weights: Weights = trainable_weights(model)
    differentiable = any(batch.image.requires_grad for batch in batches)
    total = torch.zeros((), dtype=target.dtype, device=target.device)
    for batch in batches:
        loss = training_loss(model, weights, batch)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=differentiable, materialize_grads=True)
        weights = {name: w - lr * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        if not differentiable:
            weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
        total = total + goal(logits_with(model, weights, target))
    return total / max(1, len(batches))

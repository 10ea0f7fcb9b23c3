"""Clean-label poisons: labels stay right, pixels change by at most eps, and training on them flips a target region.

Both need the adversary's model of the victim, and both differentiate its training gradient with respect to the images.
That gradient jumps wherever a ReLU switches, and the derivative does not include the jumps: on small networks it is of
little use for a step as long as eps. While a poison is crafted, a softplus replaces ReLU (`smooth`). A poison must be
measured by `evaluate_poison`: victims trained with fresh seeds, against random noise of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from seawall.errors import UsageError
from seawall.losses.segmentation import masked_mean
from seawall.poisoning.target import eps_per_band, pixel_loss
from seawall.rng import Keys
from seawall.types import Batch

Eps = float | tuple[float, ...]


Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class CraftedPoison:
    """A crafted poison.

    Args:
        batch: The poisoned chips: labels as they were, images within eps.
        losses: The adversary's loss at the random start and after each step, of the restart that was kept; the last
            one is that of `batch`. Those of MetaPoison are differences, see there.
    """

    batch: Batch
    losses: tuple[float, ...]


class PoisonPerturbation:
    """The perturbation of the images while a poison is crafted: Adam in units of eps, within eps and valid values.

    Args:
        batch: The chips.
        eps: In data units.
        keys: One stream per chip, for the random start.
    """

    def __init__(self, batch: Batch, eps: Eps, keys: Keys) -> None:
        self.batch = batch
        self.eps = eps_per_band(eps, batch.image)
        # reflectance stays at or above 0 where it was; decibels are below 0 and have no floor
        floor = float(batch.image.min()) >= -1.0
        low = torch.minimum(batch.image, torch.zeros_like(batch.image)) - batch.image
        self.low = torch.maximum(-self.eps, low) if floor else (-self.eps).expand_as(batch.image)
        start = keys.fold("start").normal(batch.image.shape[1:]).to(batch.image)
        self.offset = self._clamped(start * self.eps).requires_grad_()
        self.first, self.second = torch.zeros_like(self.offset), torch.zeros_like(self.offset)
        self.count = 0

    def images(self) -> Tensor:
        """Return the perturbed images, differentiable with respect to `offset`."""
        return self.batch.image + self.offset

    def descend(self, grad: Tensor, length: float) -> None:
        """Take a step of Adam; its length is a share of eps."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * grad
        self.second = 0.999 * self.second + 0.001 * grad.square()
        mean, spread = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        moved = self.offset.detach() - length * self.eps * mean / (spread.sqrt() + 1e-12)
        self.offset = self._clamped(moved).requires_grad_()

    def _clamped(self, offset: Tensor) -> Tensor:
        inside = torch.minimum(torch.maximum(offset, self.low), self.eps.expand_as(offset))
        return torch.where(self.batch.image_seen, inside, torch.zeros_like(inside)).detach()


def check_craft_settings(name: str, eps: Eps, steps: int, step: float, smooth: float | None) -> None:
    """Check the settings that crafted poisons share.

    Raises:
        UsageError: One is out of range.
    """
    values = (eps,) if isinstance(eps, int | float) else eps
    if not values or any(not math.isfinite(e) or e < 0 for e in values) or steps < 1 or not step > 0:
        raise UsageError(
            f"{name}: expected eps from 0 up in data units, steps from 1 and step above 0, got {eps}, {steps} and {step}; fix them"
        )
    if smooth is not None and not (math.isfinite(smooth) and smooth > 0):
        raise UsageError(f"{name}.smooth: expected a sharpness above 0, got {smooth}; 5 is usual, None keeps ReLU")


@contextmanager
def smoothed_relu(model: nn.Module, sharpness: float | None) -> Iterator[None]:
    """Replace every ReLU by softplus(sharpness * x) / sharpness, and restore it; None changes nothing."""

    def softplus(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return functional.softplus(inputs[0], float(sharpness or 1.0))

    layers = [m for m in model.modules() if isinstance(m, nn.ReLU)] if sharpness else []
    hooks = [layer.register_forward_pre_hook(softplus) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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

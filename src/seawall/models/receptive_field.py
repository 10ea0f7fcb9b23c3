"""The receptive field of a network: as the network states it, or measured by gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from seawall.modules import device_of, eval_mode
from seawall.types import DECIBEL_UNITS, ModelSpec, per_channel, units_of

ASSUMED_STRIDE = 32
"""Assumed stride of a network that states none: it may halve the image five times."""


@dataclass(frozen=True)
class ReceptiveField:
    """The input pixels that a logit depends on.

    Args:
        reach: Radius in pixels; None if it is not bounded or not known.
        stride: A shift by this many pixels, or a multiple, shifts the logits alike.
        source: "stated" by the network, "measured" by gradients (a lower bound), or "unknown".
    """

    reach: int | None
    stride: int
    source: Literal["stated", "measured", "unknown"]


def receptive_field(model: nn.Module) -> ReceptiveField:
    """Return the receptive field: the `reach` and `stride` of the network, else the measured radius.

    Args:
        model: Any module with a `spec`; `reach` None states that there is no bound.
    """
    reach, stride = getattr(model, "reach", -1), getattr(model, "stride", None)
    if (reach is None or (isinstance(reach, int) and reach >= 0)) and isinstance(stride, int):
        return ReceptiveField(reach, stride, "stated")
    found = measure_receptive_radius(model)
    return ReceptiveField(found, ASSUMED_STRIDE, "unknown" if found is None else "measured")


def measure_receptive_radius(model: nn.Module, sides: Iterable[int] = (128, 256, 512), draws: int = 3) -> int | None:
    """Measure the radius of the receptive field, as the extent of the gradient of one pixel's logits.

    Inactive units hide paths, so the result is a lower bound; several images and pixels are tried.

    Args:
        model: Any module with a `spec`; its modes and flags are restored.
        sides: Sides of the square images, rising; a larger one is tried where the gradient fills the smaller.
        draws: Images per side.

    Returns:
        The distance in pixels; None where the gradient fills the largest image or there is none.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        return None
    device = device_of(model) or torch.device("cpu")
    flags = [weight.requires_grad for weight in model.parameters()]
    try:
        model.requires_grad_(False)
        with eval_mode(model), torch.enable_grad():
            for side in sides:
                found = [_gradient_radius(model, spec, side, draw, device) for draw in range(draws)]
                reach = max((far for far in found if far is not None), default=None)
                if reach is None or reach < side // 2 - ASSUMED_STRIDE:
                    return reach
        return None
    except (RuntimeError, NotImplementedError, IndexError):  # not differentiable, or logits of another size
        return None
    finally:
        for weight, flag in zip(model.parameters(), flags, strict=True):
            weight.requires_grad_(flag)


def random_image(spec: ModelSpec, count: int, side: int, seed: int = 0) -> Tensor:
    """Return random images (B, C, H, W) with values as the units of a model's bands have them."""
    draw = torch.rand(count, len(spec.bands), side, side, generator=torch.Generator().manual_seed(seed))
    decibels = [unit in DECIBEL_UNITS for unit in units_of(spec.unit, len(spec.bands))]
    return draw * per_channel([25.0 if db else 0.4 for db in decibels], draw) + per_channel(
        [-27.0 if db else 0.0 for db in decibels], draw
    )


def _gradient_radius(model: nn.Module, spec: ModelSpec, side: int, draw: int, device: torch.device) -> int | None:
    """Return the distance from a pixel near the center to the farthest input pixel that changes its logits."""
    image = random_image(spec, 1, side, draw).to(device).requires_grad_()
    row, col = side // 2 + 5 * draw, side // 2 - 3 * draw  # another place in the cells of a pooling network
    logits = model(image)[0, :, row, col]
    if not logits.requires_grad:
        return None
    weights = torch.linspace(1, 2, len(logits), device=logits.device)  # a plain sum of (-z, z) has no gradient
    (slope,) = torch.autograd.grad((logits * weights).sum(), image, allow_unused=True)
    at = None if slope is None else slope.abs().sum((0, 1)).nonzero()
    if at is None or not len(at):
        return None
    return int((at - torch.tensor([row, col], device=at.device)).abs().max())

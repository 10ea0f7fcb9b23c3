"""The levels of an encoder, from fine to coarse: which layers give them, and what they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from seawall.errors import ModelError
from seawall.models.encoders import Encoder
from seawall.models.weights import spec_of
from seawall.modules import device_of, eval_mode, kept_maps, stride_of


def encoder_levels(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that give the features of each level of a network's encoder, by name, from fine to coarse.

    They are the stages of an `Encoder`, or the first block and the `down` blocks of a plain U-Net.

    Raises:
        ModelError: The network has neither.
    """
    for name, part in model.named_modules():
        inside = f"{name}." if name else ""
        if isinstance(part, Encoder):
            return {f"{inside}stages.{level}": stage for level, stage in enumerate(part.stages)}
        if isinstance(down := getattr(part, "down", None), nn.ModuleList):
            stem = getattr(part, "stem", None)
            first = {f"{inside}stem": stem} if isinstance(stem, nn.Module) else {}
            return {**first, **{f"{inside}down.{level}": block for level, block in enumerate(down)}}
    raise ModelError(
        f"{type(model).__name__}: expected a network with an encoder, got none; use a U-Net or another encoder and decoder"
    )


@contextmanager
def kept_levels(model: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Keep the features (B, D, h, w) of every level of an encoder, with their gradients: one entry per call in the block."""
    with ExitStack() as held:
        yield [held.enter_context(kept_maps(layer)) for layer in encoder_levels(model).values()]


@torch.no_grad()
def level_channels(model: nn.Module) -> list[int]:
    """Return how many features each level of a network's encoder gives."""
    side = 2 * stride_of(model)
    image = torch.zeros(1, len(spec_of(model).bands), side, side, device=device_of(model))
    with eval_mode(model), kept_levels(model) as levels:
        model(image)
    return [maps[0].shape[1] for maps in levels]

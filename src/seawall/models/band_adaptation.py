"""Weights of a network of some bands as a start for one of others, such as optical weights for radar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from seawall.errors import ModelError
from seawall.models.weights import spec_of
from seawall.modules import eval_mode, stride_of


def adapt_bands(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights of a network to one of the same architecture and other bands.

    No band of the one is a band of the other, so every new band gets the mean of the kernels, times the old number of bands over
    the new one: an image that is the same in all standardized bands has the same logits. The normalization stays that of the target.

    Args:
        source: A trained network.
        target: Gets the weights.

    Raises:
        ModelError: Both have the same bands, or they differ in more than their bands.
    """
    old, new = spec_of(source).bands, spec_of(target).bands
    if old == new:
        raise ModelError(
            f"adapt_bands: expected weights of other bands than {', '.join(new)}, got the same; leave it out"
        )
    given, own = (cast(Mapping[str, Tensor], part.state_dict()) for part in (source, target))
    kernels = {f"{name}.weight" for name in band_layers(target)}
    adapted = {}
    for name, tensor in own.items():
        if "standardize." in name:
            continue
        found = given.get(name)
        if found is not None and name in kernels and found.shape[1] == len(old):
            found = (found.mean(1, keepdim=True) * (len(old) / len(new))).repeat_interleave(len(new), 1)
        if found is None or found.shape != tensor.shape:
            raise ModelError(
                f"adapt_bands: expected the layers of {spec_of(target).architecture}, got another {name}; use the settings that the "
                "weights were trained with"
            )
        adapted[name] = found
    target.load_state_dict(adapted, strict=False)


@torch.no_grad()
def band_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers with weights that get the standardized bands of an image, and nothing else."""
    called: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        called.append((module, given[0]))

    names = {part: name for name, part in model.named_modules()}
    leaves = [part for part in names if not list(part.children()) and list(part.parameters())]
    hooks = [part.register_forward_pre_hook(note) for part in leaves]
    side, bands = 2 * stride_of(model), len(spec_of(model).bands)
    try:
        with eval_mode(model):
            model(torch.zeros(1, bands, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    first = called[0][1]
    return [names[module] for module, given in called if given is first and given.shape[1] == bands]

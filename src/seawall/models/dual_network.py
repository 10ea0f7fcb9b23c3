"""Two networks of one architecture in one model, for co-teaching; its output is their mean probability."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast, final

import torch
from torch import Tensor, nn

from seawall import registry
from seawall.errors import UsageError
from seawall.losses.auxiliary import AuxiliaryModel
from seawall.models.blocks import Segmenter, Standardize, check_bands_and_classes, crop_to, pad_to
from seawall.registry import register
from seawall.types import ModelSpec, Setting

NetworkSetting = bool | int | float | str
"""Type of a network's setting; pydantic cannot resolve the recursive `Setting`."""


@register("model", "twins", smoke={"settings": {"width": 4, "depth": 2}})
@final
@dataclass(frozen=True)
class DualNetwork:
    """Two networks of one architecture with different first weights, as the objective "co-teaching" needs.

    The parameters of both are those of one model, in the optimizer, in checkpoints and in weights files.

    Args:
        of: Registered network, such as "unet".
        settings: Its settings.
    """

    of: str = "unet"
    settings: Mapping[str, NetworkSetting] = field(default_factory=dict)

    def __call__(self, spec: ModelSpec) -> DualSegmenter:
        check_bands_and_classes("twins", spec)
        make = cast(Callable[[ModelSpec], nn.Module], registry.build("model", self.of, self.settings))
        peers = [make(spec), make(spec)]
        if not all(isinstance(peer, Segmenter) for peer in peers):
            raise UsageError(f"twins.of: expected a network, got {self.of!r}; use unet or dense-unet")
        if any(isinstance(cast(Segmenter, peer).network, AuxiliaryModel) for peer in peers):
            raise UsageError(
                f"twins.of: expected a network without auxiliary heads, which no objective would train, got {self.of!r}; "
                "set its auxiliary = 0"
            )
        settings: dict[str, Setting] = {"of": self.of, "settings": dict(self.settings)}
        return DualSegmenter(replace(spec, architecture="twins", settings=settings), cast(list[Segmenter], peers))


@final
class DualSegmenter(nn.Module):
    """Two networks behind one standardization.

    Args:
        spec: Specification, stored with the weights.
        peers: The networks; their own standardization is not used.
    """

    def __init__(self, spec: ModelSpec, peers: list[Segmenter]) -> None:
        super().__init__()
        self.spec = spec
        self.stride, self.reach = peers[0].stride, peers[0].reach
        self.standardize = Standardize(len(spec.bands))
        self.networks = nn.ModuleList(peer.network for peer in peers)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def members(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K, H, W) of each network."""
        x = pad_to(self.standardize(image).contiguous(memory_format=torch.channels_last), self.stride)
        one, two = (crop_to(network(x), image) for network in self.networks)
        return one, two

    def forward(self, image: Tensor) -> Tensor:
        """Return the logarithm of the mean probabilities, (B, K, H, W)."""
        both = torch.stack([logits.log_softmax(1) for logits in self.members(image)])
        return torch.logsumexp(both, 0) - math.log(2)

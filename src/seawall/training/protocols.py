"""Protocols of objectives that need more than a network and a batch."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import nn

from seawall.types import Objective, SegmentationModel


@runtime_checkable
class GuidedObjective(Objective, Protocol):
    """An objective with a trained network beside the one that learns, such as an optical teacher of a radar student."""

    paired: ClassVar[bool]
    """Whether every chip must have the images of both networks."""

    @property
    def teacher(self) -> str:
        """Weights file of the trained network."""
        ...

    def guided_by(self, teacher: SegmentationModel) -> Objective:
        """Return the objective with the trained network, which is read in eval mode, gets no gradient and is not written to."""
        ...


@runtime_checkable
class LayeredObjective(Objective, Protocol):
    """An objective with layers of its own, which are trained beside the network and are no part of it.

    The optimizer steps them and checkpoints keep them, so that a resumed training goes on alike; weights files do not have them.
    """

    def new_layers(self, model: nn.Module) -> nn.Module:
        """Return the layers for a network, with their first weights."""
        ...

    def with_layers(self, layers: nn.Module) -> Objective:
        """Return the objective that computes with these layers."""
        ...

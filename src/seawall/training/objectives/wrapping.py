"""What objectives around another objective share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import cast

from torch import Tensor

from seawall import registry
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.training.objectives.adversarial import AttackParameter
from seawall.training.protocols import GuidedObjective
from seawall.types import (
    AdaptiveObjective,
    Batch,
    Objective,
    ScheduledObjective,
    SegmentationModel,
    Setting,
    TaughtObjective,
    wants_all_bands,
)


@dataclass(frozen=True, kw_only=True)
class WrappingObjective(ABC):
    """An objective around another one, which keeps its schedule.

    Args:
        objective: Registered name of the inner objective.
        objective_settings: Its settings, such as {loss = "ce + dice"}.

    Raises:
        UsageError: The inner objective is unknown, measures the network while training (`AdaptiveObjective`), or has a teacher
            (`TaughtObjective`, `GuidedObjective`).
    """

    objective: str = "supervised"
    objective_settings: Mapping[str, AttackParameter | Mapping[str, AttackParameter]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.inner, AdaptiveObjective):
            raise UsageError(
                f"objective: expected one that does not measure the network, got {self.objective!r} within another; make it the outer one"
            )
        if isinstance(self.inner, TaughtObjective | GuidedObjective):
            raise UsageError(
                f"objective: expected one without a teacher, got {self.objective!r} within another; it changes images itself"
            )

    @cached_property
    def inner(self) -> Objective:
        """The inner objective."""
        return registry.build("objective", self.objective, cast(Mapping[str, Setting], self.objective_settings))

    @property
    def all_bands(self) -> bool:
        """Whether the inner objective gets all bands of the chips."""
        return wants_all_bands(self.inner)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        return self.value(model, batch, keys, self.inner)

    def at(self, progress: float) -> Objective:
        """Return the objective at a share of the training, if the inner one has a schedule."""
        inner = self.inner.at(progress) if isinstance(self.inner, ScheduledObjective) else self.inner
        return partial(self.value, inner=inner)

    @abstractmethod
    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, inner: Objective) -> Tensor:
        """Return the value around that of the inner objective."""

"""What objectives share that name the weights file of a trained network, and learn from it once it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.types import Batch, Objective, SegmentationModel

GUIDE = "teacher.safetensors"
"""Weights file of the teacher in the settings of the contract, which hands a network over instead of reading it."""


@dataclass(frozen=True)
class TeacherFile(ABC):
    """A `GuidedObjective` by its settings; it has no value before the network is there.

    Args:
        teacher: Weights file of the trained network, which has not seen the held-out chips.
    """

    teacher: str
    name: ClassVar[str]
    all_bands: ClassVar[bool] = True

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        raise UsageError(
            f"{self.name}: expected the network of {self.teacher}, got its name; call guided_by(load_model(path)) first"
        )

    @abstractmethod
    def guided_by(self, teacher: SegmentationModel) -> Objective:
        """Return the objective with the trained network."""

"""Several models for one answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from seawall.errors import ModelError
from seawall.rng import Keys
from seawall.types import SegmentationModel
from seawall.uncertainty.predictor import Predictor


@dataclass(frozen=True)
class Ensemble:
    """The mean over independently trained models.

    Args:
        others: Models beside the one that it is called with.
    """

    others: tuple[SegmentationModel, ...]
    seeded: ClassVar[bool] = False

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Return the predictor of all models together.

        Raises:
            ModelError: The models do not have the same bands, classes and unit.
        """
        for other in self.others:
            mine, theirs = model.spec, other.spec
            if (mine.bands, mine.classes, mine.unit) != (theirs.bands, theirs.classes, theirs.unit):
                raise ModelError(
                    f"ensemble: expected {mine.bands} {mine.unit} to {mine.classes}, got {theirs.bands} {theirs.unit} "
                    f"to {theirs.classes}; use models of one task"
                )

        return Predictor(model, self, others=self.others)

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits of each member."""
        for member in (model, *self.others):
            yield member(image)

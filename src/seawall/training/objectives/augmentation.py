"""Training on changed images: an objective that changes each chip on its own and then asks another objective."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn

from seawall.defenses.corrupted_batches import Chain, corrupt_each, training_corruptions
from seawall.defenses.image_operations import OPERATIONS, Operation, image_operation
from seawall.errors import UsageError
from seawall.losses.auxiliary import training_logits
from seawall.modules import batch_norms, kept_statistics
from seawall.registry import preset, register
from seawall.rng import Keys
from seawall.training.objectives.wrapping import WrappingObjective
from seawall.types import Batch, Corruption, ModelSpec, Objective, SegmentationModel

BINS = 31
"""Magnitudes of RandAugment and TrivialAugment, from 0 to all of an operation's reach."""


@dataclass(frozen=True)
class ChangedImages(WrappingObjective):
    """What objectives on changed images share: each chip draws its changes from its own key, then `objective` has its say.

    Batch size, order and resume change no draw. Batch norms keep the running statistics of the images as they were, for
    that is what the network is used on: a forward pass more, without gradients.

    Args:
        objective: Registered name of the objective that gets the changed chips.
        objective_settings: Its settings, such as {loss = "ce + dice"}.
    """

    name: ClassVar[str] = "augmentation"

    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, inner: Objective) -> Tensor:
        """Return the inner objective's value of the changed chips."""
        module = cast(nn.Module, model)
        changed = self.changed(model, batch, keys.fold(self.name))
        if changed is batch or not module.training or not batch_norms(module):
            return inner(model, changed, keys)
        with torch.no_grad():
            training_logits(model, batch.image)  # auxiliary heads have norms too
        with kept_statistics(module):
            return inner(model, changed, keys)

    @abstractmethod
    def changed(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with changed chips."""


@register("objective", "uniform-augmentation", smoke={"corruptions": ["gain", "rotation worst=5"]})
@final
@dataclass(frozen=True)
class UniformAugmentation(ChangedImages):
    """Each chip gets one corruption, or none, with equal probability, at a severity that is uniform in [0, 1].

    Args:
        corruptions: Texts such as "haze worst=0.4"; empty is the stated set of the sensor
            (`seawall.defenses.corrupted_batches.TRAINING_CORRUPTIONS`).
    """

    corruptions: tuple[str, ...] = ()
    name: ClassVar[str] = "uniform-augmentation"

    def changed(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with one corruption per chip, or none."""
        known = list(training_corruptions(self.corruptions, model.spec).values())
        chains: list[Chain] = []
        for choice, severity in keys.fold("choice").uniform((2,)).tolist():
            index = int(choice * (len(known) + 1))
            chains.append(((known[index], severity),) if index < len(known) else ())
        return corrupt_each(batch, chains, keys)


REACH: Mapping[Operation, tuple[float, float]] = {
    "brightness": (0.9, 0.99),
    "contrast": (0.9, 0.99),
    "color": (0.9, 0.99),
    "sharpness": (0.9, 0.99),
    "shear-x": (0.3, 0.99),
    "shear-y": (0.3, 0.99),
    "translate-x": (150 / 331, 32 / 224),
    "translate-y": (150 / 331, 32 / 224),
    "rotate": (30.0, 135.0),
}
"""Largest magnitude of each operation in RandAugment, and in the wide space of TrivialAugment, as torchvision has them."""


@register("objective", "rand-augment", paper="arXiv:1909.13719", smoke={"magnitude": 3})
@dataclass(frozen=True)
class RandAugment(ChangedImages):
    """Each chip gets some operations in turn, each drawn with equal probability from a list with the identity.

    Args:
        draws: Operations per chip.
        magnitude: Of 30, for all operations; None draws it from 0 to 30 for each.
        wide: Whether magnitudes are of the wide space.

    Paper: Cubuk et al. 2020, arXiv:1909.13719, section 3. Differs: no posterize, solarize, equalize, autocontrast and hue, which
    have no meaning for physical units; labels move with the geometric ones, and what comes in from outside is unseen.
    """

    draws: int = 2
    magnitude: int | None = 9
    wide: bool = False
    name: ClassVar[str] = "rand-augment"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.draws <= 10:
            raise UsageError(f"{self.name}.draws: expected 1 to 10, got {self.draws}; 2 is common")
        if self.magnitude is not None and not 0 <= self.magnitude < BINS:
            raise UsageError(f"{self.name}.magnitude: expected 0 to {BINS - 1}, got {self.magnitude}; 9 is common")

    def operations(self, spec: ModelSpec) -> Sequence[Corruption]:
        """Return the operations in the model's units."""
        return [image_operation(name, REACH[name][self.wide], spec) for name in OPERATIONS]

    def changed(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Batch:
        """Return the batch after each chip's operations."""
        known = self.operations(model.spec)
        chains: list[Chain] = []
        for draws in keys.fold("choice").uniform((self.draws, 2)).tolist():
            chain = []
            for choice, strength in draws:
                index = int(choice * (len(known) + 1))
                magnitude = int(strength * BINS) if self.magnitude is None else self.magnitude
                if index < len(known):
                    chain.append((known[index], magnitude / (BINS - 1)))
            chains.append(chain)
        return corrupt_each(batch, chains, keys)


preset(
    "objective", "trivial-augment", RandAugment(draws=1, magnitude=None, wide=True), paper="arXiv:2103.10158",
    smoke={"wide": False},
    summary="Each chip gets one operation or none, at a magnitude that is drawn from 31 of the wide space.",
    differs="no posterize, solarize, equalize, autocontrast and hue; a translation is a share of the side",
)  # fmt: skip

"""Adversarial training: the loss on adversarial examples against the current network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from seawall import registry
from seawall.errors import UsageError
from seawall.geo.sensors import band_noise
from seawall.losses.segmentation import CrossEntropyLoss, LossField
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.types import Batch, SegmentationModel

AttackParameter = bool | int | float | str | tuple[float, ...]
"""Type of an attack's setting; pydantic does not support the recursive `Setting`."""

AttackFunction = Callable[[SegmentationModel, Batch, ThreatModel, Keys], Tensor]


@register("objective", "adversarial", paper="arXiv:1706.06083")
@dataclass(frozen=True)
class Adversarial:
    """The loss of the logits of attacked images against the labels.

    Use three steps or more: two give hardly any robustness in segmentation (arXiv:2306.12941, table 2).

    Args:
        loss: A loss, or in a recipe its name, such as "ce + dice".
        threat: Threat model, as text with its unit.
        attack: Registered name of the attack.
        attack_settings: Its settings.
        share: Share of the images that are attacked; the others are used clean.

    Paper: Madry et al. 2018, arXiv:1706.06083, eq. 2.1; Croce, Singh, Hein 2024, arXiv:2306.12941, section 4: every
    image attacked. Differs: the loss counts valid pixels only.

    Example:
        >>> Adversarial(attack_settings={"steps": 5}).attack
        'pgd'
    """

    loss: LossField = field(default_factory=CrossEntropyLoss)
    threat: str = "linf 1% reflectance"
    attack: str = "pgd"
    attack_settings: Mapping[str, AttackParameter] = field(
        default_factory=lambda: {"steps": 3, "step": 0.5, "keep": "last"}  # "last" needs no forward pass to compare
    )
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(
                f"adversarial: expected a share above 0 and up to 1, got {self.share}; 1 attacks every image"
            )
        _ = self._attack

    @cached_property
    def _attack(self) -> AttackFunction:
        return cast(AttackFunction, registry.build("attack", self.attack, self.attack_settings))

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        threat = parse_threat(self.threat, model.spec, noise=band_noise(model.spec.bands))
        image = self._attack(model, batch, threat, keys.fold("attack"))
        if self.share < 1:
            attacked = (keys.fold("share").uniform((1,)) < self.share).to(image.device)
            image = torch.where(attacked[:, :, None, None], image, batch.image)
        return self.loss(model(image.detach()), batch.label, batch.valid)

"""Adversarial training: the loss on adversarial examples against the current network, under threats drawn per image."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from seawall import registry
from seawall.errors import UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import CrossEntropyLoss, LossField
from seawall.registry import preset, register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.types import Batch, Objective, SegmentationModel, Setting

AttackParameter = bool | int | float | str | tuple[float, ...]
"""Type of an attack's setting; pydantic does not support the recursive `Setting`."""

DRAWN_POWERS = {"uniform": 1, "squared": 2}
"""Powers of a uniform number that give the share of eps of an image."""

AttackFunction = Callable[[SegmentationModel, Batch, ThreatModel, Keys], Tensor]


@dataclass(frozen=True)
class ThreatObjective(ABC):
    """What objectives on attacked images share: the loss, and the threat of each image.

    The threat of an image is drawn from its own key, so that batch size, order and resume change nothing; the warm-up
    is a function of the training's progress alone.

    Args:
        loss: A loss, or in a recipe its name, such as "ce + dice".
        threat: Threat model, as text with its unit; of several, each image draws one.
        draw: "fixed" uses the eps of the threat, "uniform" draws the eps of each image between 0 and it, "squared" draws
            the square of a uniform share of it: small ones more often, half of them below a quarter.
        warmup: Share of the training over which eps rises linearly from 0.
    """

    loss: LossField = field(default_factory=CrossEntropyLoss)
    threat: str | tuple[str, ...] = "linf 1% reflectance"
    draw: Literal["fixed", "uniform", "squared"] = "fixed"
    warmup: float = 0.0
    name: ClassVar[str] = "adversarial"

    def __post_init__(self) -> None:
        if not self.threats:
            raise UsageError(f'{self.name}.threat: expected a threat, got none; such as "linf 1% reflectance"')
        if self.draw not in ("fixed", *DRAWN_POWERS):
            raise UsageError(
                f"{self.name}.draw: expected fixed, {' or '.join(DRAWN_POWERS)}, got {self.draw!r}; choose one"
            )
        if not 0 <= self.warmup <= 1:
            raise UsageError(f"{self.name}.warmup: expected a share in [0, 1], got {self.warmup}; 0.3 is common")

    @property
    def threats(self) -> tuple[str, ...]:
        """The texts of the threats."""
        return (self.threat,) if isinstance(self.threat, str) else tuple(self.threat)

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        return self.value(model, batch, keys, 1.0)

    def at(self, progress: float) -> Objective:
        """Return the objective at a share of the training: with a smaller eps during the warm-up."""
        return functools.partial(self.value, scale=min(1.0, progress / self.warmup) if self.warmup else 1.0)

    @abstractmethod
    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, scale: float) -> Tensor:
        """Return the loss with `scale` times the eps of every threat."""

    def attacked(
        self, attack: AttackFunction, model: SegmentationModel, batch: Batch, keys: Keys, scale: float
    ) -> Tensor:
        """Return adversarial images (B, C, H, W), each under its own threat."""
        found, which = batch.image.detach().clone(), torch.zeros(len(batch), dtype=torch.long)
        if len(self.threats) > 1:
            which = (keys.fold("threat").uniform((1,))[:, 0] * len(self.threats)).long()
        for index, text in enumerate(self.threats):
            chosen = (which == index).nonzero()[:, 0].tolist()
            if chosen:
                part = keys.select(chosen)
                threat = self._drawn(parse_threat(text, model.spec), part)
                found[chosen] = attack(model, batch.select(chosen), threat.scaled(scale), part.fold("attack"))
        return found

    def _drawn(self, threat: ThreatModel, keys: Keys) -> ThreatModel:
        if self.draw == "fixed":
            return threat
        shares = keys.fold("eps").uniform((1,))[:, 0] ** DRAWN_POWERS[self.draw]
        return replace(threat, factors=tuple(shares.tolist()))


@register("objective", "adversarial", paper="arXiv:1706.06083")
@dataclass(frozen=True)
class Adversarial(ThreatObjective):
    """The loss of the logits of attacked images against the labels.

    Use three steps or more: two give hardly any robustness in segmentation (arXiv:2306.12941, table 2). The attack sees
    the network in eval mode; the forward pass of the loss alone updates the statistics of batch norms.

    Args:
        attack: Registered name of the attack.
        attack_settings: Its settings.
        noise: Half-width of uniform noise that is added before the attack, as a multiple of eps; the attack starts at
            the noisy image and moves up to eps from there, so that the change may reach (noise + 1) eps.
        share: Share of the images that are attacked; the others are used clean.

    Paper: Madry et al. 2018, arXiv:1706.06083, eq. 2.1; Croce, Singh, Hein 2024, arXiv:2306.12941, section 4: every
    image attacked. Differs: the loss counts valid pixels only.

    Example:
        >>> Adversarial(attack_settings={"steps": 5}).attack
        'pgd'
    """

    attack: str = "pgd"
    attack_settings: Mapping[str, AttackParameter] = field(
        default_factory=lambda: {"steps": 3, "step": 0.5, "keep": "last"}  # "last" needs no forward pass to compare
    )
    noise: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise UsageError(
                f"{self.name}: expected a share above 0 and up to 1, got {self.share}; 1 attacks every image"
            )
        if not 0 <= self.noise <= 10:
            raise UsageError(f"{self.name}.noise: expected a number in [0, 10], got {self.noise}; 2 is common")
        _ = self._attack

    @cached_property
    def _attack(self) -> AttackFunction:
        return cast(AttackFunction, registry.build("attack", self.attack, self.attack_settings))

    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, scale: float) -> Tensor:
        """Return the loss of attacked images."""
        image = self.attacked(self._attack_noisy if self.noise else self._attack, model, batch, keys, scale)
        if self.share < 1:
            attacked = (keys.fold("share").uniform((1,)) < self.share).to(image.device)
            image = torch.where(attacked[:, :, None, None], image, batch.image)
        return training_logits(model, image.detach()).loss(self.loss, batch.label, batch.valid)

    def _attack_noisy(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        noisy = threat.scaled(self.noise).start(batch.image, batch.image_seen, keys.fold("noise"))
        return self._attack(model, replace(batch, image=noisy), threat, keys)


SMALL_THREAT: Mapping[str, Setting] = {"threat": "linf 0.2% reflectance"}  # the network of the contract learns under it

preset(
    "objective", "fgsm", Adversarial(attack="fgsm", attack_settings={}), paper="arXiv:1412.6572", smoke=SMALL_THREAT,
    summary="Adversarial training with one step of length eps from the clean image.", differs="the loss counts valid pixels only",
)  # fmt: skip
preset(
    "objective", "fgsm-rs", Adversarial(attack_settings={"steps": 1, "step": 1.25, "keep": "last"}), paper="arXiv:2001.03994",
    summary="Adversarial training with one step of length 1.25 eps from a random image of the threat set.",
    differs="the loss counts valid pixels only",
)  # fmt: skip
preset(
    "objective", "n-fgsm", Adversarial(attack="fgsm", attack_settings={}, noise=2.0), paper="arXiv:2202.01181", smoke=SMALL_THREAT,
    summary="Adversarial training with uniform noise of up to 2 eps and one step of length eps from there, not pulled back into the threat set.",
    differs="the loss counts valid pixels only; noise is uniform between the bounds of the data, not clipped to them",
)  # fmt: skip
preset(
    "objective", "segpgd-training", Adversarial(attack="segpgd"), paper="arXiv:2207.12391",
    summary="Adversarial training with three steps of SegPGD.", differs="the loss counts valid pixels only",
)  # fmt: skip

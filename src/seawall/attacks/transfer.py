"""Transfer attack: adversarial images of a surrogate model, given to this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from seawall import registry
from seawall.attacks.target import autograd_ready, check_attack_inputs
from seawall.errors import ModelError, UsageError
from seawall.models.weights import load_model
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Attack, Batch, ModelSpec, SegmentationModel

AttackSetting = bool | int | float | str | tuple[float, ...]
RIDGE = 1e-6


@register(
    "attack", "transfer", paper="arXiv:1605.07277", smoke={"attack_settings": {"steps": 5}}, traits=("black-box",)
)
@dataclass(frozen=True)
class Transfer:
    """An attack with gradients on a surrogate; the model itself is not evaluated.

    Without a surrogate each chip gets one of its own: a linear classifier per pixel, fitted to the chip's labels. It
    needs no training and finds the bands that tell the classes apart.

    Args:
        weights: A .safetensors file of the surrogate; "" for the classifier per pixel.
        attack: Registered attack that is run on the surrogate.
        attack_settings: Its settings.
        surrogate: In Python, the surrogate itself.

    Paper: Papernot et al. 2016, arXiv:1605.07277; Dong et al. 2018, arXiv:1710.06081, for the default attack.
    """

    weights: str = ""
    attack: str = "mifgsm"
    attack_settings: Mapping[str, AttackSetting] = field(default_factory=dict)
    surrogate: object | None = None

    def __post_init__(self) -> None:
        if self.weights and self.surrogate is not None:
            raise UsageError(f"transfer: expected weights or a surrogate, got both ({self.weights}); give one")
        if self.attack == "transfer":
            raise UsageError("transfer: expected an attack with gradients, got 'transfer'; name pgd, mifgsm ...")
        _ = self._attack

    @cached_property
    def _attack(self) -> Attack:
        return registry.build("attack", self.attack, self.attack_settings)

    @cached_property
    def _surrogate(self) -> SegmentationModel | None:
        loaded = load_model(Path(self.weights)) if self.weights else self.surrogate
        return cast("SegmentationModel | None", loaded)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check_attack_inputs("transfer", model, batch, threat)
        other = self._surrogate
        if other is None:
            with torch.inference_mode(False):  # autograd refuses what inference mode has made
                batch = autograd_ready(batch)
                parts = [batch.select([i]) for i in range(len(batch))]
                own = [_fit_ridge_classifier(model.spec, part) for part in parts]
            made = [
                self._attack(each, part, threat, keys.select([i]))
                for i, (each, part) in enumerate(zip(own, parts, strict=True))
            ]
            return torch.cat(made) if made else batch.image.clone()
        if (other.spec.bands, other.spec.classes) != (model.spec.bands, model.spec.classes):
            raise ModelError(
                f"transfer: expected a surrogate with bands {model.spec.bands} and classes {model.spec.classes}, got "
                f"{other.spec.bands} and {other.spec.classes}; train one on the same chips"
            )
        if isinstance(other, nn.Module):
            other.to(batch.image.device)
        return self._attack(other, batch, threat, keys)


class _LinearClassifier(nn.Module):
    """Logits that are linear in a pixel's bands."""

    def __init__(self, spec: ModelSpec, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.spec, self.weight, self.bias = spec, weight, bias

    def forward(self, image: Tensor) -> Tensor:
        return torch.einsum("kc,bchw->bkhw", self.weight.to(image), image) + self.bias.to(image)[:, None, None]


def _fit_ridge_classifier(spec: ModelSpec, one: Batch) -> SegmentationModel:
    """Return the ridge regression of one chip's labels on its bands."""
    classes = len(spec.classes)
    pixels = one.image.detach().movedim(1, -1)[one.valid].double()
    wanted = torch.nn.functional.one_hot(one.label[one.valid], classes).double() * 2 - 1
    if not len(pixels):
        zero = torch.zeros(classes, one.image.shape[1], device=one.image.device)
        return _LinearClassifier(spec, zero, zero[:, 0])
    mean = pixels.mean(0)
    scale = pixels.std(0, correction=0).clamp_min(1e-12)
    known = torch.cat([(pixels - mean) / scale, torch.ones_like(pixels[:, :1])], 1)
    square = known.T @ known + RIDGE * len(known) * torch.eye(known.shape[1], dtype=known.dtype, device=known.device)
    solved = torch.linalg.solve(square, known.T @ wanted).T
    weight = solved[:, :-1] / scale
    return _LinearClassifier(spec, weight.float(), (solved[:, -1] - weight @ mean).float())

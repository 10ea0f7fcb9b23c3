"""Per-pixel losses that attacks ascend: larger is more adversarial, targeted or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import PlainValidator
from torch import Tensor
from torch.nn import functional

from seawall import registry
from seawall.attacks.target import AttackTarget, predicted_classes
from seawall.errors import UsageError
from seawall.registry import preset, register


@runtime_checkable
class AttackLoss(Protocol):
    """Logits (B, K, H, W) and a target to the loss of each pixel, (B, H, W); values of invalid pixels are ignored."""

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor: ...


LEAK = 1e-12
"""Slope of the loss beyond the range of float32, far below its rounding."""


def signed_cross_entropy(logits: Tensor, target: AttackTarget) -> Tensor:
    """Return -log p of the class to leave, or log p of the class to reach."""
    loss = stable_nll(logits, target)
    return -loss if target.targeted else loss


def stable_nll(logits: Tensor, target: AttackTarget) -> Tensor:
    """Return -log p (B, H, W) with a gradient that keeps its direction however sure the model is.

    A softmax's p - 1 rounds to 0 in float32 from a logit gap of 17 on, and what is left points the wrong way; the
    softplus of the gap keeps both sides to a gap of 80, and the leak, far below rounding of the loss, beyond.
    """
    gap = logit_gap(logits, target)
    return functional.softplus(gap) + LEAK * gap


def logit_gap(logits: Tensor, target: AttackTarget) -> Tensor:
    """Return by how much (B, H, W) all other classes together beat the class of the target, in logits."""
    if logits.shape[1] == 2:
        return (logits[:, 1] - logits[:, 0]) * (1 - 2 * target.label)
    others = logits.scatter(1, target.label[:, None], -torch.inf)
    return others.logsumexp(1) - _of_target_class(logits, target)


def not_yet_fooled(logits: Tensor, target: AttackTarget) -> Tensor:
    """Return which pixels (B, H, W) are not yet predicted as the adversary wants."""
    same = predicted_classes(logits.detach()) == target.label
    return ~same if target.targeted else same


def class_probability(logits: Tensor, target: AttackTarget) -> Tensor:
    """Return p (B, H, W) of the class to leave or to reach."""
    return torch.exp(-functional.softplus(logit_gap(logits, target)))


@register("attack-loss", "ce")
@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of every pixel."""

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        return signed_cross_entropy(logits, target)


CROSS_ENTROPY = CrossEntropy()


@register("attack-loss", "masked-ce", paper="arXiv:2306.12941")
@dataclass(frozen=True)
class MaskedCrossEntropy:
    """Cross-entropy of the pixels that are not yet fooled.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3.
    """

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        return signed_cross_entropy(logits, target) * not_yet_fooled(logits, target)


@register("attack-loss", "balanced-ce", paper="arXiv:2306.12941")
@dataclass(frozen=True)
class BalancedCrossEntropy:
    """Masked cross-entropy, each class weighted by one over its pixels.

    Args:
        weights: Weight per class; empty weighs by each image's own valid pixels.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3. Differs: without `weights` the pixels are the
    image's, where the paper counts the training set.
    """

    weights: tuple[float, ...] = ()

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        return MaskedCrossEntropy()(logits, target) * self._weight(logits, target)

    def _weight(self, logits: Tensor, target: AttackTarget) -> Tensor:
        if self.weights:
            if len(self.weights) != logits.shape[1]:
                raise UsageError(
                    f"balanced: expected {logits.shape[1]} weights, got {len(self.weights)}; give one per class"
                )
            return torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)[target.label]
        total = target.valid.flatten(1).sum(1).clamp_min(1)[:, None, None]
        weight = torch.zeros_like(target.label, dtype=logits.dtype)
        for klass in range(logits.shape[1]):
            of_class = (target.label == klass) & target.valid
            weight += of_class * total / of_class.flatten(1).sum(1).clamp_min(1)[:, None, None]
        return weight


@register("attack-loss", "seg", paper="arXiv:2207.12391")
@dataclass(frozen=True)
class SegPGDLoss:
    """Cross-entropy whose weight moves from the pixels not yet fooled to all pixels alike.

    Paper: Gu et al. 2022, arXiv:2207.12391, eq. 4 and 5: at step t of T the weight of fooled pixels is (t-1)/(2T).
    """

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        weight = target.progress / 2
        return signed_cross_entropy(logits, target) * torch.where(not_yet_fooled(logits, target), 1 - weight, weight)


@register("attack-loss", "cos", paper="arXiv:2302.02213")
@dataclass(frozen=True)
class CosPGDLoss:
    """Cross-entropy weighted by how well a pixel's prediction aligns with its label.

    Args:
        sigmoid: Whether predictions are squashed per class (as SEA does) or by softmax (as the paper does).

    Paper: Agnihotri, Jung, Keuper 2024, arXiv:2302.02213, eq. 4 to 6.
    """

    sigmoid: bool = False

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        squashed = logits.detach().sigmoid() if self.sigmoid else logits.detach().softmax(1)
        cosine = _cosine_with_target(squashed, target)
        return signed_cross_entropy(logits, target) * (1 - cosine if target.targeted else cosine)


@register("attack-loss", "js", paper="arXiv:2306.12941")
@dataclass(frozen=True)
class JensenShannon:
    """Jensen-Shannon divergence of prediction and label: bounded, with a small gradient where p is near 0 or 1.

    In closed form of p, the probability of the label, which stays finite where a sum over classes gives NaN.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3.
    """

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        p = class_probability(logits, target)
        middle = torch.log((1 + p) / 2)
        loss = 0.5 * (-middle + torch.xlogy(p, p.clamp_min(1e-38)) - p * middle + (1 - p) * math.log(2))
        return -loss if target.targeted else loss


@register("attack-loss", "sigmoid")
@dataclass(frozen=True)
class SigmoidCount:
    """A smooth count of the pixels that are predicted as the adversary wants: sigmoid(s * gap), s growing over the run.

    The gap between the class and all others is divided by its mean size over the image's valid pixels, so that scaling the
    logits changes nothing, and the count gets sharper from `first` to `last`: in the end only pixels near the border
    between the classes have a gradient, and no step is spent on pixels that are fooled or out of reach.

    Args:
        first: Steepness at the first step, per mean size of the gap.
        last: Steepness that the run moves to, geometrically.
    """

    first: float = 1.0
    last: float = 16.0

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.last:
            raise UsageError(
                f"sigmoid: expected 0 < first <= last, got {self.first} and {self.last}; the count gets sharper"
            )

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        gap = logit_gap(logits, target)
        count = target.valid.flatten(1).sum(1).clamp_min(1)
        size = torch.where(target.valid, gap.detach().abs(), 0.0).flatten(1).sum(1) / count
        steep = self.first * (self.last / self.first) ** target.progress / size.clamp_min(1e-12)
        gap = gap * steep[:, None, None]
        count_of_fooled: Tensor = torch.sigmoid(gap) + LEAK * gap
        return -count_of_fooled if target.targeted else count_of_fooled


@register("attack-loss", "spherical", paper="arXiv:2306.12941v1")
@dataclass(frozen=True)
class SphericalLoss:
    """Cosine of the logits with the label, over the pixels that are not yet fooled.

    Paper: Croce, Singh, Hein 2023, arXiv:2306.12941v1.
    """

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        return _signed(_cosine_with_target(logits, target), target) * not_yet_fooled(logits, target)


@register("attack-loss", "cosine", paper="arXiv:2407.09150")
@dataclass(frozen=True)
class CosineLoss:
    """One minus the cosine of the raw logits with the label.

    Paper: Halmosi, Mohos, Jelasity 2024, arXiv:2407.09150 (PAdam-Cos).
    """

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        return 1 + _signed(_cosine_with_target(logits, target), target)


@register("attack-loss", "tsallis", paper="Matyasko et al. 2026")
@dataclass(frozen=True)
class TsallisCrossEntropy:
    """Tsallis cross-entropy (1 - p^(1-q)) / (1 - q), q moving linearly over the run; q = 1 is cross-entropy.

    Args:
        first: q at the first step; below 1, fooled pixels count for less.
        last: q that the run moves to.

    Paper: Matyasko et al. 2026, TsallisPGD.
    """

    first: float = -2.0
    last: float = 1.0

    def __call__(self, logits: Tensor, target: AttackTarget) -> Tensor:
        power = 1 - (self.first + (self.last - self.first) * target.progress)
        log_p = -stable_nll(logits, target)
        # expm1 keeps the limit q -> 1 exact to rounding
        loss = -log_p if abs(power) < 1e-6 else -torch.expm1(power * log_p) / power
        return -loss if target.targeted else loss


preset(
    "attack-loss", "cos-sigmoid", CosPGDLoss(sigmoid=True), paper="arXiv:2306.12941",
    summary="CosPGD's loss with predictions squashed per class, as SEA does.",
)  # fmt: skip


def _of_target_class(values: Tensor, target: AttackTarget) -> Tensor:
    return values.gather(1, target.label[:, None])[:, 0]


def _cosine_with_target(logits: Tensor, target: AttackTarget) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(logits, dim=1)
    return _of_target_class(logits, target) / length.clamp_min(1e-12)


def _signed(values: Tensor, target: AttackTarget) -> Tensor:
    return values if target.targeted else -values


def parse_attack_loss(given: object) -> AttackLoss:
    """Return the loss of a name such as "masked-ce", or of a table with its settings; any other loss passes through.

    Raises:
        UsageError: No loss of that name, or it does not take these settings.
        ValueError: Neither a name, a table nor something to call.

    Example:
        >>> parse_attack_loss({"name": "tsallis", "first": -1})
        TsallisCrossEntropy(first=-1.0, last=1.0)
    """
    if isinstance(given, str):
        return registry.build("attack-loss", given)
    if isinstance(given, Mapping) and "name" in given:
        settings = {key: value for key, value in given.items() if key != "name"}
        return registry.build("attack-loss", str(given["name"]), settings)
    if not isinstance(given, AttackLoss) or isinstance(given, type):
        raise ValueError("a loss per pixel or its name; see `seawall methods --kind attack-loss`")
    return given


LossSetting = Annotated[AttackLoss, PlainValidator(parse_attack_loss)]
"""A loss as a setting: in Python any value that maps logits and a target to a loss per pixel; in recipes its name, or a table
with the name and its settings, such as `loss = {name = "tsallis", first = -1.0}`."""

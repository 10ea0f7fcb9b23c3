"""Losses per pixel, masked means, and the training losses made of them.

Logits are (B, K, H, W), labels and masks (B, H, W). Labels of invalid pixels are ignored, even values outside the
classes; a batch without a valid pixel has a loss of exactly 0 and zero gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, cast

import torch
from pydantic import PlainValidator
from torch import Tensor
from torch.nn import functional

from seawall.errors import DataError, UsageError
from seawall.registry import build, register
from seawall.types import Loss, Setting


def pixel_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return -log p[label] per pixel (B, H, W); labels outside the classes count as the nearest class.

    Example:
        >>> pixel_cross_entropy(torch.zeros(1, 2, 1, 1), torch.ones(1, 1, 1, dtype=torch.long)).item()  # ln 2
        0.6931471824645996
    """
    return functional.cross_entropy(logits.float(), label.clamp(0, logits.shape[1] - 1), reduction="none")


def binary_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy of each class against the rest, averaged over the classes.

    With two classes this is `cross_entropy`: the loss of a one-logit sigmoid network with z = logit 1 - logit 0.
    """
    logits = logits.float()
    if logits.shape[1] == 2:
        odds = logits[:, 1] - logits[:, 0]
        return functional.binary_cross_entropy_with_logits(odds, (label > 0).float(), reduction="none")
    return functional.binary_cross_entropy_with_logits(
        log_odds(logits), one_hot(label, logits.shape[1]), reduction="none"
    ).mean(1)


def focal(logits: Tensor, label: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the cross-entropy weighted by (1 - p[label])**gamma, which is small for pixels that are right already.

    Paper: Lin et al. 2017, arXiv:1708.02002, eq. 4, without the class weight.
    """
    loss = pixel_cross_entropy(logits, label)
    # The floor keeps the derivative of x**gamma finite for gamma < 1 where a pixel is certain.
    wrong = -torch.expm1(-loss).clamp_max(-1e-7)
    return wrong**gamma * loss


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Return (B, K, H, W) float32; labels outside the classes count as the nearest class."""
    return functional.one_hot(label.clamp(0, classes - 1), classes).movedim(-1, 1).float()


def masked_mean(values: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the (weighted) mean over valid pixels: a scalar, 0 where nothing is valid.

    Example:
        >>> masked_mean(torch.tensor([[[2.0, float("nan")]]]), torch.tensor([[[True, False]]])).item()
        2.0
    """
    weight = valid.to(values.dtype) if weight is None else torch.where(valid, weight, 0.0)
    total = (torch.where(valid, values, 0.0) * weight).sum()
    return total / weight.sum().clamp_min(torch.finfo(values.dtype).tiny)


def masked_mean_per_image(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over the valid pixels of each image: (B,), 0 where an image has none."""
    total = torch.where(valid, values, 0.0).sum((1, 2))
    return total / valid.sum((1, 2)).clamp_min(1)


def soft_overlap(logits: Tensor, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the soft intersection sum(p y) and the soft mass sum(p + y) of each class, pooled over valid pixels."""
    share = torch.where(valid[:, None], logits.float().softmax(1), 0.0)
    truth = one_hot(label, logits.shape[1]) * valid[:, None]
    return (share * truth).sum((0, 2, 3)), (share + truth).sum((0, 2, 3))


@register("loss", "ce")
@dataclass(frozen=True)
class CrossEntropyLoss:
    """Cross-entropy over valid pixels.

    Args:
        weights: One weight per class; the mean is over the weights of the pixels. Empty means equal.
        smoothing: Share of the target spread evenly over the classes.
    """

    weights: tuple[float, ...] = ()
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"ce.smoothing: expected a share in [0, 1), got {self.smoothing}; 0.1 is common")
        if any(weight < 0 for weight in self.weights) or (self.weights and not any(self.weights)):
            raise UsageError(f"ce.weights: expected numbers >= 0, not all 0, got {self.weights}; give one per class")

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        classes = check_input(logits, label, valid)
        if self.weights and len(self.weights) != classes:
            raise UsageError(f"ce.weights: expected {classes} weights, got {len(self.weights)}; give one per class")
        loss = pixel_cross_entropy(logits, label)
        if self.smoothing:
            even = -logits.float().log_softmax(1).mean(1)
            loss = (1 - self.smoothing) * loss + self.smoothing * even
        if not self.weights:
            return masked_mean(loss, valid)
        weights = torch.tensor(self.weights, dtype=loss.dtype, device=loss.device)
        return masked_mean(loss, valid, weights[label.clamp(0, classes - 1)])


@register("loss", "bce")
@dataclass(frozen=True)
class BCE:
    """Binary cross-entropy of each class against the rest, over valid pixels; with two classes, cross-entropy."""

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        check_input(logits, label, valid)
        return masked_mean(binary_cross_entropy(logits, label), valid)


@register("loss", "focal", paper="arXiv:1708.02002")
@dataclass(frozen=True)
class Focal:
    """Focal loss over valid pixels.

    Args:
        gamma: Exponent of the weight; the higher, the less pixels that are right already count. 0 is cross-entropy.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 10:
            raise UsageError(f"focal.gamma: expected a number in [0, 10], got {self.gamma}; 2 is common")

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        check_input(logits, label, valid)
        return masked_mean(focal(logits, label, self.gamma), valid)


@register("loss", "dice", paper="arXiv:1606.04797")
@dataclass(frozen=True)
class Dice:
    """One minus soft Dice, 2 sum(p y) / sum(p + y), pooled over the batch and averaged over the classes.

    Paper: Milletari et al. 2016, arXiv:1606.04797, section 3. Differs: no squares in the denominator.

    Args:
        smooth: Pixels added above and below, so that a class that is absent and not predicted costs nothing.
    """

    smooth: float = 1.0

    def __post_init__(self) -> None:
        _check_smooth("dice", self.smooth)

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        check_input(logits, label, valid)
        both, mass = soft_overlap(logits, label, valid)
        return (1 - (2 * both + self.smooth) / (mass + self.smooth)).mean()


@register("loss", "jaccard")
@dataclass(frozen=True)
class Jaccard:
    """One minus soft IoU, sum(p y) / sum(p + y - p y), pooled over the batch and averaged over the classes.

    Args:
        smooth: Pixels added above and below, so that a class that is absent and not predicted costs nothing.
    """

    smooth: float = 1.0

    def __post_init__(self) -> None:
        _check_smooth("jaccard", self.smooth)

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        check_input(logits, label, valid)
        both, mass = soft_overlap(logits, label, valid)
        return (1 - (both + self.smooth) / (mass - both + self.smooth)).mean()


@register("loss", "sum")
@dataclass(frozen=True)
class Sum:
    """A weighted sum of losses.

    Args:
        terms: Weight of each registered loss, with its default settings.
    """

    terms: Mapping[str, float] = field(default_factory=lambda: {"ce": 1.0, "dice": 1.0})
    parts: tuple[Loss, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.terms or any(weight <= 0 for weight in self.terms.values()):
            raise UsageError(
                f"sum.terms: expected losses with weights above 0, got {dict(self.terms)}; drop the others"
            )
        object.__setattr__(self, "parts", tuple(build("loss", name) for name in self.terms))

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        terms = [
            weight * part(logits, label, valid) for weight, part in zip(self.terms.values(), self.parts, strict=True)
        ]
        return torch.stack(terms).sum()


def as_loss(value: object) -> Loss:
    """Return the loss that a recipe names: "dice", "ce + 0.5 dice", {"name": "focal", "gamma": 3}, or a loss itself.

    Example:
        >>> as_loss("ce + 0.5 dice")
        Sum(terms={'ce': 1.0, 'dice': 0.5})

    Raises:
        UsageError: It names no loss.
    """
    if isinstance(value, str):
        terms = dict(_term(term) for term in value.split("+"))
        name = next(iter(terms))
        return build("loss", name) if terms == {name: 1.0} else Sum(terms)
    if isinstance(value, Mapping) and "name" in value:
        settings = cast(Mapping[str, Setting], {key: entry for key, entry in value.items() if key != "name"})
        return build("loss", str(value["name"]), settings)
    if callable(value):
        return cast(Loss, value)
    raise UsageError(f'loss: expected a name such as "ce + dice", got {value!r}; see `seawall methods loss`')


LossField = Annotated[Loss, PlainValidator(as_loss)]
"""A field of a method that is a loss, in the forms that `as_loss` accepts."""


def _term(text: str) -> tuple[str, float]:
    words = text.replace("*", " ").split()
    try:
        weight, name = (1.0, words[0]) if len(words) == 1 else (float(words[0]), words[1])
    except (ValueError, IndexError):
        raise UsageError(f'loss: expected terms such as "ce + 0.5 dice", got {text!r}; put the weight first') from None
    return name, weight


def log_odds(logits: Tensor) -> Tensor:
    """Return the log-odds of each class against all others together."""
    total = logits.logsumexp(1, keepdim=True)
    others = [torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1) for k in range(logits.shape[1])]
    return (logits - total) - (torch.stack(others, 1) - total)


def check_input(logits: Tensor, label: Tensor, valid: Tensor) -> int:
    """Check the input of a loss and return the number of classes.

    Raises:
        DataError: The shapes of logits and labels differ, or a valid label is no class.
    """
    classes = logits.shape[1]
    if logits.shape[0] != label.shape[0] or logits.shape[2:] != label.shape[1:]:
        raise DataError(
            f"loss: expected logits (B, K, H, W) over labels {tuple(label.shape)}, got {tuple(logits.shape)}; resize them"
        )
    # On an accelerator the check would wait for the device at every step.
    if label.device.type == "cpu" and bool((((label < 0) | (label >= classes)) & valid).any()):
        wrong = sorted(set(label[valid].tolist()) - set(range(classes)))
        raise DataError(
            f"loss: expected valid labels in 0..{classes - 1}, got {wrong[:5]}; map them or mark them invalid"
        )
    return classes


def _check_smooth(name: str, smooth: float) -> None:
    if not smooth > 0:
        raise UsageError(f"{name}.smooth: expected a number above 0, got {smooth}; 1 is common")

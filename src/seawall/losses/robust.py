"""Losses that are robust to wrong labels: improbable labels get a smaller gradient, or none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from seawall.errors import UsageError
from seawall.losses.segmentation import check_input, masked_mean, one_hot, pixel_cross_entropy
from seawall.registry import register


@register("loss", "gce", paper="arXiv:1805.07836")
@final
@dataclass(frozen=True)
class GCE:
    """Generalized cross-entropy (1 - p**q) / q over valid pixels: between cross-entropy (q to 0) and 1 - p (q = 1).

    Paper: Zhang and Sabuncu 2018, arXiv:1805.07836, eq. 6, without truncation.

    Args:
        q: In (0, 1]; the higher, the smaller the gradient of improbable labels.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise UsageError(f"gce.q: expected a number in (0, 1], got {self.q}; 0.7 is common")

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        check_input(logits, label, valid)
        return masked_mean(-torch.expm1(-self.q * pixel_cross_entropy(logits, label)) / self.q, valid)


@register("loss", "sce", paper="arXiv:1908.06112")
@final
@dataclass(frozen=True)
class SCE:
    """Symmetric cross-entropy over valid pixels: cross-entropy plus its reverse, with a constant for log 0.

    With one-hot labels the reverse is -log_zero (1 - p), which is bounded.

    Paper: Wang et al. 2019, arXiv:1908.06112, eq. 7.

    Args:
        alpha: Weight of the cross-entropy, which converges faster.
        beta: Weight of the reverse, which is more robust.
        log_zero: Value in the place of the logarithm of 0, below 0.
    """

    alpha: float = 0.1
    beta: float = 1.0
    log_zero: float = -4.0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or self.alpha + self.beta == 0 or not self.log_zero < 0:
            raise UsageError(
                f"sce: expected alpha and beta of at least 0, not both 0, and log_zero below 0, got {self.alpha}, "
                f"{self.beta} and {self.log_zero}; 0.1, 1 and -4 are common"
            )

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        check_input(logits, label, valid)
        loss = pixel_cross_entropy(logits, label)
        reverse = self.log_zero * torch.expm1(-loss)
        return masked_mean(self.alpha * loss + self.beta * reverse, valid)


@register("loss", "nr-dice", paper="doi:10.1109/TMI.2020.3000314")
@final
@dataclass(frozen=True)
class NoiseRobustDice:
    """Noise-robust Dice, sum |p - y|**gamma / sum(p**2 + y**2), pooled over the batch and averaged over the classes.

    Paper: Wang et al. 2020, doi:10.1109/TMI.2020.3000314, eq. 3.

    Args:
        gamma: From 1 (as mild as an absolute error) to 2 (one minus Dice with squares).
        smooth: Pixels added below, so that a class that is absent and not predicted costs nothing.
    """

    gamma: float = 1.5
    smooth: float = 1e-5

    def __post_init__(self) -> None:
        if not 1 <= self.gamma <= 2 or not self.smooth > 0:
            raise UsageError(
                f"nr-dice: expected gamma in [1, 2] and smooth above 0, got {self.gamma} and {self.smooth}; 1.5 is common"
            )

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        classes = check_input(logits, label, valid)
        share = torch.where(valid[:, None], logits.float().softmax(1), 0.0)
        truth = one_hot(label, classes) * valid[:, None]
        error = (share - truth).abs().pow(self.gamma).sum((0, 2, 3))
        return (error / (share.square() + truth.square()).sum((0, 2, 3)).add(self.smooth)).mean()


@register("loss", "bootstrap", paper="arXiv:1412.6596")
@final
@dataclass(frozen=True)
class Bootstrap:
    """Cross-entropy against a blend of the label and the network's own prediction, over valid pixels.

    Paper: Reed et al. 2014, arXiv:1412.6596, eqs. 6 and 7.

    Args:
        beta: Share of the label in the blend; None takes 0.95 for "soft" and 0.8 for "hard".
        kind: "soft" blends with the probabilities, "hard" with the most probable class.
    """

    beta: float | None = None
    kind: Literal["soft", "hard"] = "hard"

    def __post_init__(self) -> None:
        if self.kind not in ("soft", "hard"):
            raise UsageError(f"bootstrap.kind: expected soft or hard, got {self.kind!r}; choose one")
        if self.beta is not None and not 0 < self.beta <= 1:
            raise UsageError(f"bootstrap.beta: expected a share in (0, 1], got {self.beta}; 0.8 is common")

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        classes = check_input(logits, label, valid)
        beta = self.beta if self.beta is not None else 0.95 if self.kind == "soft" else 0.8
        log = logits.float().log_softmax(1)
        own = log.exp() if self.kind == "soft" else one_hot(log.argmax(1), classes)
        blend = beta * one_hot(label, classes) + (1 - beta) * own
        return masked_mean(-(blend * log).sum(1), valid)


@register("loss", "boundary-tolerant")
@final
@dataclass(frozen=True)
class BoundaryTolerant:
    """Cross-entropy over valid pixels in which pixels within the positional error of a label's border count less.

    The weight is linear in the distance to the border: `least` for a pixel that touches another class (distance 1), 1
    for pixels farther than the error.

    Args:
        error_px: Positional error of the labels in pixels: meters over meters per pixel.
        least: Weight of a pixel at the border.
    """

    error_px: float = 2.0
    least: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.error_px <= 64 or not 0 <= self.least <= 1:
            raise UsageError(
                f"boundary-tolerant: expected error_px in (0, 64] and least in [0, 1], got {self.error_px} and "
                f"{self.least}; give the error of the labels in pixels"
            )

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        classes = check_input(logits, label, valid)
        return masked_mean(pixel_cross_entropy(logits, label), valid, self.weights(label, valid, classes))

    def weights(self, label: Tensor, valid: Tensor, classes: int) -> Tensor:
        """Return the weight of each pixel (B, H, W); invalid pixels make no border."""
        distance = border_distance(label, valid, classes, math.ceil(self.error_px))
        ramp = ((distance - 1) / self.error_px).clamp(0, 1)
        return self.least + (1 - self.least) * ramp


def border_distance(label: Tensor, valid: Tensor, classes: int, limit: int) -> Tensor:
    """Return the Chebyshev distance of each pixel to the nearest valid one of another class, at most limit + 1.

    Args:
        label: (B, H, W).
        valid: (B, H, W).
        classes: Number of classes.
        limit: Largest distance that is computed, in pixels.

    Returns:
        (B, H, W) float32: 1 where another class is adjacent.

    Example:
        >>> row = torch.tensor([[[0, 0, 0, 1, 1]]])
        >>> border_distance(row, row >= 0, 2, 2).flatten().tolist()
        [3.0, 2.0, 1.0, 1.0, 2.0]
    """
    dilated = one_hot(label, classes) * valid[:, None]
    distance = torch.full(label.shape, float(limit + 1), device=label.device)
    for step in range(1, limit + 1):
        dilated = functional.max_pool2d(dilated, 3, 1, 1)
        near = (dilated * (1 - one_hot(label, classes))).amax(1) > 0
        distance = torch.where(near & (distance > limit), float(step), distance)
    return distance

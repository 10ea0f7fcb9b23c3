"""Losses that forgive wrong labels: a pixel that the network cannot believe pulls less, or not at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from seawall.errors import UsageError
from seawall.losses.segmentation import check_input, cross_entropy, masked_mean, one_hot
from seawall.registry import register


@register("loss", "gce", paper="arXiv:1805.07836")
@final
@dataclass(frozen=True)
class GCE:
    """Generalized cross-entropy (1 - p**q) / q over valid pixels: between cross-entropy (q to 0) and 1 - p (q = 1).

    Paper: Zhang and Sabuncu 2018, arXiv:1805.07836, eq. 6, without truncation.

    Args:
        q: In (0, 1]; the higher, the less pull has a label that the network finds improbable.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise UsageError(f"gce.q: expected a number in (0, 1], got {self.q}; 0.7 is common")

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        check_input(logits, label, valid)
        return masked_mean(-torch.expm1(-self.q * cross_entropy(logits, label)) / self.q, valid)


@register("loss", "sce", paper="arXiv:1908.06112")
@final
@dataclass(frozen=True)
class SCE:
    """Symmetric cross-entropy over valid pixels: cross-entropy plus its reverse, whose log 0 is a number.

    With one-hot labels the reverse is -log_zero (1 - p), so that it is bounded.

    Paper: Wang et al. 2019, arXiv:1908.06112, eq. 7.

    Args:
        alpha: Weight of the cross-entropy, which learns fast.
        beta: Weight of the reverse, which forgives.
        log_zero: What stands for the logarithm of 0, below 0.
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
        loss = cross_entropy(logits, label)
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
        apart = (share - truth).abs().pow(self.gamma).sum((0, 2, 3))
        return (apart / (share.square() + truth.square()).sum((0, 2, 3)).add(self.smooth)).mean()


@register("loss", "bootstrap", paper="arXiv:1412.6596")
@final
@dataclass(frozen=True)
class Bootstrap:
    """Cross-entropy against a blend of the label and what the network says itself, over valid pixels.

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

    A pixel that touches another class is in ring 1, its inner neighbor in ring 2, and so on. The weight rises along
    a line from `least` in ring 1 to 1 in the first ring beyond the error.

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
        return masked_mean(cross_entropy(logits, label), valid, self.weights(label, valid, classes))

    def weights(self, label: Tensor, valid: Tensor, classes: int) -> Tensor:
        """Return the weight of each pixel (B, H, W); invalid pixels make no border."""
        reach = math.ceil(self.error_px)
        ring = rings(label, valid, classes, reach)
        rise = ((ring - 1) / self.error_px).clamp(0, 1)
        return self.least + (1 - self.least) * rise


def rings(label: Tensor, valid: Tensor, classes: int, reach: int) -> Tensor:
    """Return which ring inside its class's border a pixel is in, (B, H, W) float32; reach + 1 for all beyond.

    Example:
        >>> row = torch.tensor([[[0, 0, 0, 1, 1]]])
        >>> rings(row, row >= 0, 2, 2).flatten().tolist()
        [3.0, 2.0, 1.0, 1.0, 2.0]
    """
    there = one_hot(label, classes) * valid[:, None]
    found = torch.full(label.shape, float(reach + 1), device=label.device)
    grown = there
    for ring in range(1, reach + 1):
        grown = functional.max_pool2d(grown, 3, 1, 1)
        near = (grown * (1 - one_hot(label, classes))).amax(1) > 0
        found = torch.where(near & (found > reach), float(ring), found)
    return found

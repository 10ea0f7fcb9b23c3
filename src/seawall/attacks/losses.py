"""Losses that attacks climb, per pixel: larger is more adversarial, targeted or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Protocol, cast

import torch
from pydantic import PlainValidator
from torch import Tensor
from torch.nn import functional

from seawall.attacks.target import Aim, classes
from seawall.errors import UsageError, did_you_mean


class PixelLoss(Protocol):
    """Logits (B, K, H, W) and the aim to what is climbed, (B, H, W); what it says of invalid pixels is ignored."""

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor: ...


LEAK = 1e-12


def cross_entropy(logits: Tensor, aim: Aim) -> Tensor:
    """Return -log p of the class to leave, or log p of the class to reach."""
    loss = surprise(logits, aim)
    return -loss if aim.targeted else loss


def surprise(logits: Tensor, aim: Aim) -> Tensor:
    """Return -log p (B, H, W) with a gradient that keeps its direction however sure the model is.

    A softmax's p - 1 rounds to 0 in float32 from a logit gap of 17 on, and what is left points the wrong way; the
    softplus of the gap keeps both sides to a gap of 80, and the leak, far below rounding of the loss, beyond.
    """
    gap = behind(logits, aim)
    return functional.softplus(gap) + LEAK * gap


def behind(logits: Tensor, aim: Aim) -> Tensor:
    """Return by how much (B, H, W) all other classes together beat the class of the aim, in logits."""
    if logits.shape[1] == 2:
        return (logits[:, 1] - logits[:, 0]) * (1 - 2 * aim.label)
    others = logits.scatter(1, aim.label[:, None], -torch.inf)
    return others.logsumexp(1) - _at(logits, aim)


def standing(logits: Tensor, aim: Aim) -> Tensor:
    """Return which pixels (B, H, W) are not yet where the adversary wants them."""
    same = classes(logits.detach()) == aim.label
    return ~same if aim.targeted else same


def probability(logits: Tensor, aim: Aim) -> Tensor:
    """Return p (B, H, W) of the class to leave or to reach."""
    return torch.exp(-functional.softplus(behind(logits, aim)))


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of every pixel."""

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        return cross_entropy(logits, aim)


CE = CrossEntropy()


@dataclass(frozen=True)
class Masked:
    """Cross-entropy of the pixels that still stand.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3.
    """

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        return cross_entropy(logits, aim) * standing(logits, aim)


@dataclass(frozen=True)
class Balanced:
    """Masked cross-entropy, each class weighted by one over its pixels.

    Args:
        weights: Weight per class; empty weighs by each image's own valid pixels.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3. Differs: without `weights` the pixels are the
    image's, where the paper counts the training set.
    """

    weights: tuple[float, ...] = ()

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        return Masked()(logits, aim) * self._weight(logits, aim)

    def _weight(self, logits: Tensor, aim: Aim) -> Tensor:
        if self.weights:
            if len(self.weights) != logits.shape[1]:
                raise UsageError(
                    f"balanced: expected {logits.shape[1]} weights, got {len(self.weights)}; give one per class"
                )
            return torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)[aim.label]
        total = aim.valid.flatten(1).sum(1).clamp_min(1)[:, None, None]
        weight = torch.zeros_like(aim.label, dtype=logits.dtype)
        for klass in range(logits.shape[1]):
            mine = (aim.label == klass) & aim.valid
            weight += mine * total / mine.flatten(1).sum(1).clamp_min(1)[:, None, None]
        return weight


@dataclass(frozen=True)
class Seg:
    """Cross-entropy whose weight moves from the pixels that stand to all pixels alike.

    Paper: Gu et al. 2022, arXiv:2207.12391, eq. 4 and 5: at step t of T the weight of fallen pixels is (t-1)/(2T).
    """

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        fallen = aim.progress / 2
        return cross_entropy(logits, aim) * torch.where(standing(logits, aim), 1 - fallen, fallen)


@dataclass(frozen=True)
class Cos:
    """Cross-entropy weighted by how well a pixel's prediction aligns with its label.

    Args:
        sigmoid: Whether predictions are squashed per class (as SEA does) or by softmax (as the paper does).

    Paper: Agnihotri, Jung, Keuper 2024, arXiv:2302.02213, eq. 4 to 6.
    """

    sigmoid: bool = False

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        squashed = logits.detach().sigmoid() if self.sigmoid else logits.detach().softmax(1)
        cosine = _cosine(squashed, aim)
        return cross_entropy(logits, aim) * (1 - cosine if aim.targeted else cosine)


@dataclass(frozen=True)
class JensenShannon:
    """Jensen-Shannon divergence of prediction and label: bounded, and quiet where a pixel is lost or hopeless.

    In closed form of p, the probability of the label, which stays finite where a sum over classes gives NaN.

    Paper: Croce, Singh, Hein 2024, arXiv:2306.12941, section 3.
    """

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        p = probability(logits, aim)
        middle = torch.log((1 + p) / 2)
        loss = 0.5 * (-middle + torch.xlogy(p, p.clamp_min(1e-38)) - p * middle + (1 - p) * math.log(2))
        return -loss if aim.targeted else loss


@dataclass(frozen=True)
class Sigmoid:
    """A smooth count of the pixels that are where the adversary wants them: sigmoid(s * gap), s growing over the run.

    The gap between the class and all others is divided by its mean size over the image's valid pixels, so that scaling the
    logits changes nothing, and the count gets sharper from `first` to `last`: in the end only pixels near the border
    between the classes pull, and no step is spent on pixels that have fallen or are out of reach.

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

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        gap = behind(logits, aim)
        count = aim.valid.flatten(1).sum(1).clamp_min(1)
        size = torch.where(aim.valid, gap.detach().abs(), 0.0).flatten(1).sum(1) / count
        steep = self.first * (self.last / self.first) ** aim.progress / size.clamp_min(1e-12)
        gap = gap * steep[:, None, None]
        fallen: Tensor = torch.sigmoid(gap) + LEAK * gap
        return -fallen if aim.targeted else fallen


@dataclass(frozen=True)
class Spherical:
    """Cosine of the logits with the label, over the pixels that still stand.

    Paper: Croce, Singh, Hein 2023, arXiv:2306.12941v1.
    """

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        return _away(_cosine(logits, aim), aim) * standing(logits, aim)


@dataclass(frozen=True)
class Cosine:
    """One minus the cosine of the raw logits with the label.

    Paper: Halmosi, Mohos, Jelasity 2024, arXiv:2407.09150 (PAdam-Cos).
    """

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        return 1 + _away(_cosine(logits, aim), aim)


@dataclass(frozen=True)
class Tsallis:
    """Tsallis cross-entropy (1 - p^(1-q)) / (1 - q), q moving linearly over the run; q = 1 is cross-entropy.

    Args:
        first: q at the first step; below 1, pixels that have fallen count for less.
        last: q that the run moves to.

    Paper: Matyasko et al. 2026, TsallisPGD.
    """

    first: float = -2.0
    last: float = 1.0

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor:
        power = 1 - (self.first + (self.last - self.first) * aim.progress)
        log_p = -surprise(logits, aim)
        # expm1 keeps the limit q -> 1 exact to rounding
        loss = -log_p if abs(power) < 1e-6 else -torch.expm1(power * log_p) / power
        return -loss if aim.targeted else loss


def _at(values: Tensor, aim: Aim) -> Tensor:
    return values.gather(1, aim.label[:, None])[:, 0]


def _cosine(logits: Tensor, aim: Aim) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(logits, dim=1)
    return _at(logits, aim) / length.clamp_min(1e-12)


def _away(values: Tensor, aim: Aim) -> Tensor:
    return values if aim.targeted else -values


NAMES: dict[str, PixelLoss] = {
    "ce": CrossEntropy(),
    "masked-ce": Masked(),
    "balanced-ce": Balanced(),
    "seg": Seg(),
    "cos": Cos(),
    "cos-sigmoid": Cos(sigmoid=True),
    "js": JensenShannon(),
    "sigmoid": Sigmoid(),
    "spherical": Spherical(),
    "cosine": Cosine(),
    "tsallis": Tsallis(),
}
"""Losses by the names that recipes use: `loss = "masked-ce"`."""


def parse_loss(given: object) -> PixelLoss:
    """Return the loss of a name such as "masked-ce"; a loss of one's own passes through.

    Raises:
        UsageError: No loss of that name.
        ValueError: Neither a name nor something to call.
    """
    if isinstance(given, str):
        if given not in NAMES:
            raise UsageError(f"loss: unknown name {given!r}; {did_you_mean(given, NAMES)}")
        return NAMES[given]
    if not callable(given) or isinstance(given, type):
        raise ValueError(f"a pixel loss or one of {', '.join(NAMES)}")
    return cast(PixelLoss, given)


AnyLoss = Annotated[PixelLoss, PlainValidator(parse_loss)]
"""A pixel loss: in Python any value that maps logits and the aim to what is climbed, in recipes its name."""

"""Predictors of several passes of a network, and their maps of uncertainty.

Every estimator gives a `Predictor`: called like any model it returns logits, so that evaluation, attacks and whole-scene
maps use it unchanged; `predict` also says how far the passes disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import lcm
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.registry import register
from seawall.types import ModelSpec, SegmentationModel


class UncertaintyMethod(Protocol):
    """The passes of a predictor: a frozen value whose fields decide the result."""

    @property
    def count(self) -> int:
        """Number of passes."""
        ...

    def pass_logits(self, model: SegmentationModel, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits (B, K, H, W) of each pass."""
        ...


@runtime_checkable
class UncertainModel(Protocol):
    """A model that also says how far its passes disagree."""

    spec: ModelSpec
    passes: int

    def __call__(self, image: Tensor, /) -> Tensor: ...
    def predict(self, image: Tensor) -> Prediction: ...


def passes_of(model: object) -> int:
    """Return the number of passes of a model: one unless it is a predictor of several."""
    return model.passes if isinstance(model, UncertainModel) else 1


@dataclass(frozen=True)
class Prediction:
    """The mean of several passes, and maps of uncertainty.

    Args:
        probability: (B, K, H, W) mean of the passes' probabilities, calibrated where the predictor is.
        mutual_information: (B, H, W) entropy of the mean less the mean entropy of the passes, in nats, at least 0: how
            far the passes disagree. It is that of the passes before any calibration.
        passes: Number of passes.
    """

    probability: Tensor
    mutual_information: Tensor
    passes: int

    @property
    def entropy(self) -> Tensor:
        """(B, H, W) entropy of the mean, 0 to ln K nats: total uncertainty."""
        return entropy(self.probability)

    @property
    def margin(self) -> Tensor:
        """(B, H, W) largest less second largest mean probability, 0 to 1: small is uncertain."""
        return top_two_margin(self.probability)

    @property
    def variation(self) -> Tensor:
        """(B, H, W) 1 less the largest mean probability."""
        return 1 - self.probability.amax(1)


class Predictor(nn.Module):
    """The mean of several passes.

    Args:
        model: The model, whose spec is the predictor's.
        method: Computes the passes.
        others: Further models of the method; they move between devices with this one.
        local: Whether a pass depends on nothing but the image around a pixel, wherever the image begins; a map of another predictor
            depends on its tiles, and is flagged.
    """

    def __init__(
        self,
        model: SegmentationModel,
        method: UncertaintyMethod,
        others: Iterable[SegmentationModel] = (),
        *,
        local: bool = True,
    ) -> None:
        super().__init__()
        self.spec = model.spec
        self.inner = model
        self.method = method
        self.local = local
        self.others = nn.ModuleList([other for other in others if isinstance(other, nn.Module)])

    @property
    def passes(self) -> int:
        """Number of passes."""
        return self.method.count

    @property
    def reach(self) -> int | None:
        """Radius of the receptive field in pixels; None without a bound."""
        reaches = [cast(int | None, member.reach) for member in self._members]
        known = [reach for reach in reaches if reach is not None]
        return None if len(known) < len(reaches) or not self.local else max(known)

    @property
    def stride(self) -> int:
        """Shift, in pixels, that shifts the logits of every member alike."""
        return lcm(*(cast(int, member.stride) for member in self._members))

    @property
    def _members(self) -> list[nn.Module]:
        return [cast(nn.Module, self.inner), *self.others]

    def predict(self, image: Tensor) -> Prediction:
        """Return the mean probability of images (B, C, H, W) in data units, and how far the passes disagree, with gradients to the image."""
        return aggregate_passes(self.method.pass_logits(self.inner, image))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W), the logarithm of the mean probability, with gradients to the image."""
        mean: Tensor | None = None
        for logits in self.method.pass_logits(self.inner, image):
            probability = torch.softmax(logits, 1)
            mean = probability if mean is None else mean + probability
        if mean is None:
            raise UsageError("uncertainty: expected at least one pass, got none; ask for one or more")
        return (mean / self.passes).clamp_min(torch.finfo(mean.dtype).tiny).log()


def aggregate_passes(passes: Iterable[Tensor]) -> Prediction:
    """Average the probabilities of several passes, one at a time: memory does not grow with their number.

    Args:
        passes: Logits (B, K, H, W), one tensor per pass.

    Raises:
        UsageError: There is no pass.

    Example:
        >>> aggregate_passes([torch.zeros(1, 2, 1, 1)] * 3).mutual_information.item()
        0.0
    """
    total: Tensor | None = None
    within: Tensor | None = None
    count = 0
    for logits in passes:
        # double: the order of the passes then vanishes in rounding, and a flipped image gives exactly the flipped map
        probability = torch.softmax(logits.double(), 1)
        spread = entropy(probability)
        total = probability if total is None else total + probability
        within = spread if within is None else within + spread
        count += 1
    if total is None or within is None:
        raise UsageError("uncertainty: expected at least one pass, got none; ask for one or more")
    mean = total / count
    disagreement = (entropy(mean) - within / count).clamp_min(0)
    return Prediction(mean.float(), disagreement.float(), count)


def entropy(probability: Tensor) -> Tensor:
    """Return the entropy over classes in nats: (B, K, ...) to (B, ...), 0 ln 0 taken as 0."""
    return -torch.xlogy(probability, probability).sum(1)


def top_two_margin(probability: Tensor) -> Tensor:
    """Return the largest less the second largest probability; with one class the largest."""
    if probability.shape[1] == 1:
        return probability[:, 0]
    best = probability.topk(2, 1).values
    return best[:, 0] - best[:, 1]


@register("uncertainty", "softmax")
@dataclass(frozen=True)
class Softmax:
    """One pass of the network; its mutual information is zero by definition."""

    @property
    def count(self) -> int:
        """One pass."""
        return 1

    def __call__(self, model: SegmentationModel) -> Predictor:
        return Predictor(model, self)

    def pass_logits(self, model: SegmentationModel, image: Tensor) -> Iterator[Tensor]:
        """Yield the model's logits."""
        yield model(image)

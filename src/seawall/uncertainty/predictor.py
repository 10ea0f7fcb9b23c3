"""A model that passes more than once: still a segmentation model, and it can say how sure it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import lcm
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from seawall.errors import ModelError, UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import SegmentationModel


class Method(Protocol):
    """How a predictor asks its model: a frozen value, so that its fields say all that decides the answer."""

    seeded: ClassVar[bool]
    """Whether passes draw from the keys, which follow from all pixels of an image: then a logit depends on them all."""

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits (B, K, H, W) of each pass."""
        ...


class Predictor(nn.Module):
    """The mean of several passes.

    Called like any model it gives the logarithm of the mean probability as logits, so that evaluation and whole-scene
    maps need not know about passes.

    Args:
        model: The model whose spec counts; its weights stay where they are.
        method: How the passes are made.
        seed: Seed where no keys are given; a chip's randomness then follows from its pixels.
        others: Further models that the method asks; they move between devices with this one.
    """

    def __init__(
        self, model: SegmentationModel, method: Method, seed: int = 0, others: Iterable[SegmentationModel] = ()
    ) -> None:
        super().__init__()
        self.spec = model.spec
        self.inner = model
        self.method = method
        self.seed = seed
        self.others = nn.ModuleList([other for other in others if isinstance(other, nn.Module)])

    @property
    def reach(self) -> int | None:
        """How many pixels away an input pixel can change a logit; None without a bound."""
        reaches = [cast(int | None, member.reach) for member in self._members]
        known = [reach for reach in reaches if reach is not None]
        return None if self.method.seeded or len(known) < len(reaches) else max(known)

    @property
    def stride(self) -> int:
        """Shift, in pixels, that shifts the logits of every member alike."""
        return lcm(*(cast(int, member.stride) for member in self._members))

    @property
    def _members(self) -> list[nn.Module]:
        return [cast(nn.Module, self.inner), *self.others]

    def predict(self, image: Tensor, keys: Keys | None = None) -> Prediction:
        """Return the mean probability and the maps of what is unsure.

        Args:
            image: (B, C, H, W) in data units.
            keys: Randomness per chip; from the pixels themselves where None.
        """
        with torch.no_grad():
            return gather(self.method.passes(self.inner, image, keys or self._own(image)))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W), with gradients to the image."""
        mean: Tensor | None = None
        count = 0
        for logits in self.method.passes(self.inner, image, self._own(image)):
            probability = torch.softmax(logits, 1)
            mean = probability if mean is None else mean + probability
            count += 1
        if mean is None:
            raise RuntimeError("predictor: the method made no pass")
        return (mean / count).clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _own(self, image: Tensor) -> Keys:
        """Keys from the pixels: the same image draws alike in any batch."""
        pixels = image.detach().cpu().contiguous().numpy()
        return Keys(self.seed, tuple(hashlib.blake2b(chip.tobytes(), digest_size=8).hexdigest() for chip in pixels))


@dataclass(frozen=True)
class Prediction:
    """What several passes say together.

    Args:
        probability: (B, K, H, W) mean of the passes' probabilities.
        entropy: (B, H, W) entropy of the mean, 0 to ln K: all that is unsure.
        mutual_information: (B, H, W) the part of it that comes from passes that disagree, at least 0.
        margin: (B, H, W) largest less second largest mean probability, 0 to 1: small is unsure.
        variation: (B, H, W) 1 less the largest mean probability.
        passes: Number of passes.
    """

    probability: Tensor
    entropy: Tensor
    mutual_information: Tensor
    margin: Tensor
    variation: Tensor
    passes: int


def gather(passes: Iterable[Tensor]) -> Prediction:
    """Average the probabilities of several passes, one at a time, so that memory does not grow with them.

    Args:
        passes: Logits (B, K, H, W), one tensor per pass.

    Raises:
        UsageError: There is no pass.

    Example:
        >>> gather([torch.zeros(1, 2, 1, 1)] * 3).mutual_information.item()
        0.0
    """
    total: Tensor | None = None
    within: Tensor | None = None
    count = 0
    for logits in passes:
        # double, so that the order of the passes is lost in rounding: flipping the image flips the map exactly
        probability = torch.softmax(logits.double(), 1)
        spread = entropy(probability)
        total = probability if total is None else total + probability
        within = spread if within is None else within + spread
        count += 1
    if total is None or within is None:
        raise UsageError("uncertainty: expected at least one pass, got none; ask for one or more")
    mean = total / count
    whole = entropy(mean)
    return Prediction(
        mean.float(),
        whole.float(),
        (whole - within / count).clamp_min(0).float(),
        margin(mean).float(),
        (1 - mean.amax(1)).float(),
        count,
    )


def entropy(probability: Tensor) -> Tensor:
    """Return the entropy over classes: (B, K, ...) to (B, ...), 0 ln 0 taken as 0."""
    return -torch.xlogy(probability, probability).sum(1)


def margin(probability: Tensor) -> Tensor:
    """Return the largest less the second largest probability; with one class the largest."""
    if probability.shape[1] == 1:
        return probability[:, 0]
    best = probability.topk(2, 1).values
    return best[:, 0] - best[:, 1]


@register("uncertainty", "softmax")
@dataclass(frozen=True)
class SinglePass:
    """One pass of the model; its mutual information is zero by definition."""

    seeded: ClassVar[bool] = False

    def __call__(self, model: SegmentationModel) -> Predictor:
        return Predictor(model, self)

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the model's logits."""
        yield model(image)


@register("uncertainty", "tta")
@dataclass(frozen=True)
class Symmetries:
    """The mean over the eight symmetries of the square: turning the image turns the map, exactly."""

    seeded: ClassVar[bool] = False

    def __call__(self, model: SegmentationModel) -> Predictor:
        return Predictor(model, self)

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits of each symmetry, turned back."""
        for turns in range(4):
            for mirrored in (False, True):
                yield undo(model(turn(image, turns, mirrored)), turns, mirrored)


def turn(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Mirror, then turn by quarters."""
    return (image.flip(-1) if mirrored else image).rot90(turns, (-2, -1))


def undo(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Turn back, then mirror back."""
    straight = image.rot90(-turns, (-2, -1))
    return straight.flip(-1) if mirrored else straight


@dataclass(frozen=True)
class Ensemble:
    """The mean over independently trained models.

    Args:
        others: Models beside the one that it is called with.
    """

    others: tuple[SegmentationModel, ...]
    seeded: ClassVar[bool] = False

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Return the predictor of all models together.

        Raises:
            ModelError: The models do not have the same bands, classes and unit.
        """
        for other in self.others:
            mine, theirs = model.spec, other.spec
            if (mine.bands, mine.classes, mine.unit) != (theirs.bands, theirs.classes, theirs.unit):
                raise ModelError(
                    f"ensemble: expected {mine.bands} {mine.unit} to {mine.classes}, got {theirs.bands} {theirs.unit} "
                    f"to {theirs.classes}; use models of one task"
                )

        return Predictor(model, self, others=self.others)

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits of each member."""
        for member in (model, *self.others):
            yield member(image)

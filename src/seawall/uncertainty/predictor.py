"""Predictors of several passes: one model under symmetries or dropout, or an ensemble; with uncertainty maps."""

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


class UncertaintyMethod(Protocol):
    """The passes of a predictor: a frozen value whose fields decide the result."""

    seeded: ClassVar[bool]
    """Whether passes draw from the keys: these depend on all pixels of an image, and so does every logit then."""

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits (B, K, H, W) of each pass."""
        ...


class Predictor(nn.Module):
    """The mean of several passes.

    Called like any model it returns the logarithm of the mean probability as logits, so that evaluation and whole-scene
    maps use it unchanged.

    Args:
        model: The model, whose spec is the predictor's.
        method: Computes the passes.
        seed: Seed where no keys are given; a chip's stream is then keyed by its pixels.
        others: Further models of the method; they move between devices with this one.
    """

    def __init__(
        self,
        model: SegmentationModel,
        method: UncertaintyMethod,
        seed: int = 0,
        others: Iterable[SegmentationModel] = (),
    ) -> None:
        super().__init__()
        self.spec = model.spec
        self.inner = model
        self.method = method
        self.seed = seed
        self.others = nn.ModuleList([other for other in others if isinstance(other, nn.Module)])

    @property
    def reach(self) -> int | None:
        """Radius of the receptive field in pixels; None without a bound."""
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
        """Return the mean probability and the maps of uncertainty.

        Args:
            image: (B, C, H, W) in data units.
            keys: One stream per chip; keyed by the pixels where None.
        """
        with torch.no_grad():
            return aggregate_passes(self.method.passes(self.inner, image, keys or self.pixel_keys(image)))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W), with gradients to the image."""
        mean: Tensor | None = None
        count = 0
        for logits in self.method.passes(self.inner, image, self.pixel_keys(image)):
            probability = torch.softmax(logits, 1)
            mean = probability if mean is None else mean + probability
            count += 1
        if mean is None:
            raise RuntimeError("predictor: the method made no pass")
        return (mean / count).clamp_min(torch.finfo(mean.dtype).tiny).log()

    def pixel_keys(self, image: Tensor) -> Keys:
        """Return keys from the pixels: the draws of an image are the same in any batch."""
        pixels = image.detach().cpu().contiguous().numpy()
        return Keys(self.seed, tuple(hashlib.blake2b(chip.tobytes(), digest_size=8).hexdigest() for chip in pixels))


@dataclass(frozen=True)
class Prediction:
    """The mean of several passes, and maps of uncertainty.

    Args:
        probability: (B, K, H, W) mean of the passes' probabilities.
        entropy: (B, H, W) entropy of the mean, 0 to ln K: total uncertainty.
        mutual_information: (B, H, W) the part of it from the disagreement of the passes, at least 0.
        margin: (B, H, W) largest less second largest mean probability, 0 to 1: small is uncertain.
        variation: (B, H, W) 1 less the largest mean probability.
        passes: Number of passes.
    """

    probability: Tensor
    entropy: Tensor
    mutual_information: Tensor
    margin: Tensor
    variation: Tensor
    passes: int


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
    whole = entropy(mean)
    return Prediction(
        mean.float(),
        whole.float(),
        (whole - within / count).clamp_min(0).float(),
        top_two_margin(mean).float(),
        (1 - mean.amax(1)).float(),
        count,
    )


def entropy(probability: Tensor) -> Tensor:
    """Return the entropy over classes: (B, K, ...) to (B, ...), 0 ln 0 taken as 0."""
    return -torch.xlogy(probability, probability).sum(1)


def top_two_margin(probability: Tensor) -> Tensor:
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
class TTA:
    """Test-time augmentation: the mean over the eight symmetries of the square, to which the map is exactly equivariant."""

    seeded: ClassVar[bool] = False

    def __call__(self, model: SegmentationModel) -> Predictor:
        return Predictor(model, self)

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits of each symmetry, in the orientation of the image."""
        for turns in range(4):
            for mirrored in (False, True):
                yield undo_rotate_and_flip(model(rotate_and_flip(image, turns, mirrored)), turns, mirrored)


def rotate_and_flip(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Flip, then rotate by quarter turns."""
    return (image.flip(-1) if mirrored else image).rot90(turns, (-2, -1))


def undo_rotate_and_flip(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Invert `rotate_and_flip`."""
    straight = image.rot90(-turns, (-2, -1))
    return straight.flip(-1) if mirrored else straight


@dataclass(frozen=True)
class Ensemble:
    """The mean over independently trained models.

    Args:
        others: The models besides the one it is called with.
    """

    others: tuple[SegmentationModel, ...]
    seeded: ClassVar[bool] = False

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Return the predictor of all models together.

        Raises:
            ModelError: Bands, classes or units of the models differ.
        """
        for other in self.others:
            wanted, got = model.spec, other.spec
            if (wanted.bands, wanted.classes, wanted.unit) != (got.bands, got.classes, got.unit):
                raise ModelError(
                    f"ensemble: expected {wanted.bands} {wanted.unit} to {wanted.classes}, got {got.bands} {got.unit} "
                    f"to {got.classes}; use models of one task"
                )

        return Predictor(model, self, others=self.others)

    def passes(self, model: SegmentationModel, image: Tensor, keys: Keys) -> Iterator[Tensor]:
        """Yield the logits of each member."""
        for member in (model, *self.others):
            yield member(image)

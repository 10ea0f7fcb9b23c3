"""A model that passes more than once: still a segmentation model, and it can say how sure it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from math import lcm
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from seawall.rng import Keys
from seawall.types import SegmentationModel
from seawall.uncertainty.maps import Prediction, gather


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

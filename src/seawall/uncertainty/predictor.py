"""A model that passes more than once: still a segmentation model, and it can say how sure it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from seawall.keys import Keys
from seawall.types import SegmentationModel
from seawall.uncertainty.maps import Prediction, gather

Passes = Callable[[Tensor, Keys], Iterator[Tensor]]


class Predictor(nn.Module):
    """The mean of several passes.

    Called like any model it gives the logarithm of the mean probability as logits, so that evaluation and whole-scene
    maps need not know about passes.

    Args:
        model: The model whose spec counts; its weights stay where they are.
        passes: Yields the logits of each pass.
        seed: Seed where no keys are given; a chip's randomness then follows from its pixels.
    """

    def __init__(self, model: SegmentationModel, passes: Passes, seed: int = 0) -> None:
        super().__init__()
        self.spec = model.spec
        self.inner = model if isinstance(model, nn.Module) else nn.Identity()
        self.seed = seed
        self._passes = passes

    def predict(self, image: Tensor, keys: Keys | None = None) -> Prediction:
        """Return the mean probability and the maps of what is unsure.

        Args:
            image: (B, C, H, W) in data units.
            keys: Randomness per chip; from the pixels themselves where None.
        """
        with torch.no_grad():
            return gather(self._passes(image, keys or self._own(image)))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W), with gradients to the image."""
        mean: Tensor | None = None
        count = 0
        for logits in self._passes(image, self._own(image)):
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

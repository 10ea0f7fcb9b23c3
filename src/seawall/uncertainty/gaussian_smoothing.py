"""The smoothed network: the mean over Gaussian noise on the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import SegmentationModel, per_channel
from seawall.uncertainty.certification import check_sigma, sigma_per_band
from seawall.uncertainty.predictor import Predictor
from seawall.uncertainty.smoothed_votes import seen_bands


def with_gaussian_noise(image: Tensor, seen: Tensor, sigma: Sequence[float], keys: Keys) -> Tensor:
    """Return an image (B, C, H, W) with noise where it is seen; unseen pixels keep their fill.

    Args:
        image: In data units.
        seen: (B, 1 or C, H, W) bool.
        sigma: Standard deviation of each band.
        keys: One stream per chip.
    """
    noise = keys.normal(image.shape[1:]).to(image) * per_channel(sigma, image)
    return image + torch.where(seen, noise, torch.zeros_like(noise))


@register("uncertainty", "gaussian-smoothing", paper="arXiv:1902.02918", smoke={"passes": 3})
@dataclass(frozen=True)
class GaussianSmoothing:
    """The mean over passes with Gaussian noise on the seen pixels.

    Certificates are about the class that has the most votes under this noise; the mean of probabilities is its smooth form.

    Args:
        sigma: Standard deviation in the unit of the image: one number, or one per band.
        passes: Number of passes.
        seed: Seed of the noise, which is the same on every image.

    Paper: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918. Differs: probabilities are averaged instead of votes.
    """

    sigma: float | tuple[float, ...] = 0.01
    passes: int = 20
    seed: int = 0
    name: ClassVar[str] = "gaussian-smoothing"

    def __post_init__(self) -> None:
        check_sigma(f"{self.name}.sigma", self.sigma)
        if self.passes < 1:
            raise UsageError(f"{self.name}.passes: expected at least 1, got {self.passes}; 20 is usual")

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Return the predictor."""
        sigma = sigma_per_band(f"{self.name}.sigma", self.sigma, model.spec)
        return Predictor(model, _NoisyPasses(sigma, self.passes, self.seed), local=False)


@dataclass(frozen=True)
class _NoisyPasses:
    sigma: tuple[float, ...]
    count: int
    seed: int

    def pass_logits(self, model: SegmentationModel, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each pass, each under other noise."""
        seen, keys = seen_bands(image, model.spec), Keys(self.seed, ("",) * len(image))
        for i in range(self.count):
            yield model(with_gaussian_noise(image, seen, self.sigma, keys.fold("noise", i)))

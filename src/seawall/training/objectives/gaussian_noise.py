"""Training on images with Gaussian noise, for a network whose answers under noise are to be certified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import Tensor

from seawall.registry import register
from seawall.rng import Keys
from seawall.training.objectives.wrapping import WrappingObjective
from seawall.types import Batch, Objective, SegmentationModel
from seawall.uncertainty.certification import check_sigma, sigma_per_band
from seawall.uncertainty.gaussian_smoothing import with_gaussian_noise


@register("objective", "gaussian-noise", paper="arXiv:1902.02918")
@final
@dataclass(frozen=True)
class GaussianNoise(WrappingObjective):
    """Each chip gets fresh Gaussian noise, and then `objective` is asked.

    Batch norms keep the statistics of the noisy images: under a certificate the network sees no others.

    Args:
        sigma: Standard deviation in the unit of the image: one number, or one per band. Unseen pixels get no noise.

    Paper: Cohen, Rosenfeld, Kolter 2019, arXiv:1902.02918, section 3.3.
    """

    sigma: float | tuple[float, ...] = 0.01
    name: ClassVar[str] = "gaussian-noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sigma(f"{self.name}.sigma", self.sigma)

    def value(self, model: SegmentationModel, batch: Batch, keys: Keys, inner: Objective) -> Tensor:
        """Return the inner objective's value of the noisy chips."""
        sigma = sigma_per_band(f"{self.name}.sigma", self.sigma, model.spec)
        noisy = with_gaussian_noise(batch.image, batch.image_seen, sigma, keys.fold(self.name))
        return inner(model, replace(batch, image=noisy), keys)

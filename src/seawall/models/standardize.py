"""Normalization that belongs to the model: fitted on the training pixels, saved with the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seawall.errors import ModelError


class Standardize(nn.Module):
    """(image - mean) / std per band, the first layer of every network here; the identity until it is fitted.

    Args:
        bands: Number of input bands.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("std", torch.ones(bands))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Standardize:
        """Take mean and standard deviation per band, in data units, over seen training pixels.

        Raises:
            ModelError: One number per band is missing, not finite, or a standard deviation is not above zero.
        """
        given = {"mean": torch.as_tensor(mean).float().flatten(), "std": torch.as_tensor(std).float().flatten()}
        for name, numbers in given.items():
            if len(numbers) != len(self.mean):
                raise ModelError(
                    f"standardize.{name}: expected {len(self.mean)} numbers, got {len(numbers)}; give one per band"
                )
        _check(given["mean"], given["std"])
        self.mean.copy_(given["mean"])
        self.std.copy_(given["std"])
        self.fitted.fill_(True)
        return self

    def check(self) -> None:
        """Refuse statistics that would make every logit NaN, such as those of damaged weights.

        Raises:
            ModelError: A mean or standard deviation is not finite, or a standard deviation is not above zero.
        """
        _check(self.mean, self.std)

    def forward(self, image: Tensor) -> Tensor:
        """Return the standardized image, same shape."""
        if image.shape[1] != len(self.mean):
            raise ModelError(
                f"model: expected {len(self.mean)} bands, got an image of shape {tuple(image.shape)}; choose the bands of model.spec"
            )
        return (image - self.mean[:, None, None]) / self.std[:, None, None]


def _check(mean: Tensor, std: Tensor) -> None:
    if not bool(torch.isfinite(mean).all()):
        raise ModelError(f"standardize.mean: expected finite numbers, got {mean.tolist()}; leave unseen pixels out")
    if not bool((torch.isfinite(std) & (std > 0)).all()):
        raise ModelError(
            f"standardize.std: expected numbers above 0, got {std.tolist()}; drop constant bands and leave unseen pixels out"
        )

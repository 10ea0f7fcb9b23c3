"""Laplace approximation of the last layer: a Gaussian over its weights, fitted to the training chips after the training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seawall.errors import DataError, ModelError, UsageError
from seawall.modules import to_device_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel
from seawall.uncertainty.predictor import Predictor

COVARIANCE_ROOT = "laplace.root"
"""Name of the fitted tensor: a matrix R with R R' = inverse Hessian."""


@register("uncertainty", "laplace", paper="arXiv:2106.14806", smoke={"passes": 3})
@dataclass(frozen=True)
class LastLayerLaplace:
    """The mean over last layers drawn from a Gaussian around the trained one, for networks of two classes.

    The Hessian of the loss in the difference of the two classes' weights is lambda I + share sum p (1 - p) f f', over the
    features f of the training pixels. One pass of the network gives the features of all draws, which are the same for every
    image and tile.

    Args:
        passes: Number of draws.
        prior: Precision lambda of the prior.
        share: What a pixel counts as, of an independent observation: neighbors are alike, so all of them as one each would
            leave no uncertainty.
        seed: Seed of the draws.

    Paper: Daxberger et al. 2021, arXiv:2106.14806. Differs: pixels are discounted, and predictions are averaged over draws.
    """

    passes: int = 20
    prior: float = 1.0
    share: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1 or not self.prior > 0 or not 0 < self.share <= 1:
            raise UsageError(
                f"laplace: expected passes of at least 1, a prior above 0 and a share of at most 1, got {self.passes}, {self.prior:g} "
                f"and {self.share:g}; the defaults are 20, 1 and 0.01"
            )

    def fit(self, model: SegmentationModel, batches: Iterable[Batch]) -> Mapping[str, Tensor]:
        """Return what was learned from the training chips, for `with_state`.

        Args:
            model: In eval mode, of two classes, ending in a 1 x 1 convolution.
            batches: Training chips.

        Raises:
            ModelError: The network has other classes or another last layer.
            DataError: There is no valid pixel.
        """
        layer = _last_layer(model)
        size = layer.in_channels + 1
        hessian, pixels = torch.zeros(size, size, dtype=torch.float64), 0
        for chips in batches:
            batch = to_device_of(model, chips)
            with torch.no_grad(), _kept_features(layer) as kept:
                p = torch.softmax(model(batch.image).double(), 1)[:, 1][batch.valid]
            f = _pixels_of_layer(kept, batch.image).double().movedim(1, -1)[batch.valid]
            hessian += ((f * (p * (1 - p))[:, None]).T @ f).cpu()
            pixels += len(f)
        if not pixels:
            raise DataError(
                "laplace: expected training chips with valid pixels, got none; give the folder that the weights learned from"
            )
        inverse = torch.linalg.inv(self.prior * torch.eye(size, dtype=torch.float64) + self.share * hessian)
        return {COVARIANCE_ROOT: torch.linalg.cholesky(inverse).float()}

    def with_state(self, state: Mapping[str, Tensor]) -> DrawnLastLayers:
        """Return the estimator with what `fit` returned."""
        return DrawnLastLayers(self.passes, self.seed, state[COVARIANCE_ROOT])

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Refuse a model whose last layer was not fitted.

        Raises:
            UsageError: Always; `with_state` gives the estimator that can be called.
        """
        raise UsageError(
            "laplace: expected a last layer that is fitted to the training chips, got none; run `seawall calibrate WEIGHTS CHIPS --uncertainty laplace`"
        )


@dataclass(frozen=True)
class DrawnLastLayers:
    """The passes of a fitted Laplace approximation: one per draw of the last layer.

    Args:
        count: Number of draws.
        seed: Seed of the draws.
        root: Matrix R with R R' = inverse Hessian.
    """

    count: int
    seed: int
    root: Tensor

    def __call__(self, model: SegmentationModel) -> Predictor:
        """Return the predictor.

        Raises:
            ModelError: The network has other classes or another last layer.
        """
        _last_layer(model)
        return Predictor(model, self)

    def pass_logits(self, model: SegmentationModel, image: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each draw."""
        with _kept_features(_last_layer(model)) as kept:
            logits = model(image)
        features = _pixels_of_layer(kept, image)
        root = self.root.to(features)
        sign = torch.tensor([-0.5, 0.5]).to(features).view(1, 2, 1, 1)
        for draw in range(self.count):
            normal = Keys(self.seed, ("",)).fold("laplace", draw).normal((len(root),))[0].to(features)
            moved = torch.einsum("bdhw,d->bhw", features, root @ normal)[:, None]
            yield logits + sign * moved


def _last_layer(model: SegmentationModel) -> nn.Conv2d:
    """Return the 1 x 1 convolution that gives the logits."""
    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d)] if isinstance(model, nn.Module) else []
    if len(model.spec.classes) != 2 or not layers or layers[-1].kernel_size != (1, 1) or layers[-1].out_channels != 2:
        raise ModelError(
            f"laplace: expected a network of two classes that ends in a 1 x 1 convolution, got {model.spec.architecture} of "
            f"{len(model.spec.classes)} classes; use mc-dropout, tta or ensemble"
        )
    return layers[-1]


@contextmanager
def _kept_features(layer: nn.Conv2d) -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept[:] = given

    handle = layer.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _pixels_of_layer(kept: list[Tensor], image: Tensor) -> Tensor:
    """Return the features of the image's pixels, and a feature of ones for the bias."""
    height, width = image.shape[-2:]
    found = kept[-1][..., :height, :width]
    if found.shape[-2:] != image.shape[-2:]:
        raise ModelError(
            f"laplace: expected a last layer at the resolution of the image, got {tuple(kept[-1].shape[-2:])} for {(height, width)}; "
            "use mc-dropout, tta or ensemble"
        )
    return torch.cat([found, torch.ones_like(found[:, :1])], 1)

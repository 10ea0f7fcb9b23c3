"""FESTA: sparse labels, and features that agree with their nearest neighbors in space and among themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from seawall.errors import ModelError, UsageError
from seawall.losses.auxiliary import training_logits
from seawall.losses.segmentation import CrossEntropyLoss, LossField
from seawall.modules import features_stride, kept_features, seen_features
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel

LENGTH_FLOOR = 1e-6
"""Added to squared lengths, so that the cosine of a vector of zeros has a gradient."""
NEIGHBORS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Row and column of the 8 neighbors."""


@register("objective", "festa", paper="arXiv:2101.03492", smoke={"share": 0.2, "weight": 0.01}, traits=("unlabelled",))
@final
@dataclass(frozen=True)
class Festa:
    """The loss over known labels, plus the feature and spatial relations of sampled pixels, known or not.

    Each sampled pixel is drawn to its nearest pixel in feature space and to the most similar of its 8 neighbors, by the squared
    Euclidean distance of their features, and away from the least similar pixel of the image, by the cosine. The features are
    those that the last layer turns into logits; where they are coarser than the image, a pixel is one of their cells.

    Args:
        alpha: Weight of the nearest pixel in feature space.
        beta: Weight of the most similar of the 8 neighbors.
        gamma: Weight of the least similar pixel, without which equal features everywhere are best; 0 switches a part off.
        weight: Weight of the relations beside the loss.
        share: Share of the seen pixels of each image that is sampled, at least one.
        loss: A loss, or in a recipe its name.

    Paper: Hua et al. 2021, eq. 1 to 5. Differs: the released code takes the minimum over products of distances and a 0/1 mask for
    the spatial part, which is always 0; here it is the minimum over the neighbors. Rows do not go on in the next ones. The cross-entropy is
    averaged over known pixels only.
    """

    alpha: float = 0.5
    beta: float = 1.5
    gamma: float = 1.0
    weight: float = 0.1
    share: float = 0.01
    loss: LossField = field(default_factory=CrossEntropyLoss)

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma", "weight"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise UsageError(f"festa.{name}: expected a weight from 0 up, got {value}; 0 switches the part off")
        if not self.weight * (self.alpha + self.beta + self.gamma) > 0:
            raise UsageError(
                "festa: expected a weight above 0 and a part that is not switched off, got neither; use the objective supervised"
            )
        if not 0 < self.share <= 1:
            raise UsageError(
                f"festa.share: expected a share above 0 and at most 1, got {self.share}; 0.01 is the paper's"
            )

    def __call__(self, model: SegmentationModel, batch: Batch, keys: Keys) -> Tensor:
        """Return the loss over valid pixels plus the weighted relations over seen ones.

        Raises:
            ModelError: The model is no network with a last layer.
        """
        if not isinstance(model, nn.Module):
            raise ModelError(f"festa: expected a network, got {type(model).__name__}; train one")
        with kept_features(model, batch.image) as kept:
            value = training_logits(model, batch.image).loss(self.loss, batch.label, batch.valid)
        features, seen = seen_features(kept[0], batch.seen, features_stride(model, batch.image, kept[0]))
        return value + self.weight * self.relations(features, seen, keys.fold("festa"))

    def relations(self, features: Tensor, seen: Tensor, keys: Keys) -> Tensor:
        """Return the mean of the weighted parts over the sampled pixels of all images.

        Args:
            features: (B, D, h, w).
            seen: (B, h, w); no other pixel is sampled or is a partner of one.
            keys: One stream per image.
        """
        exact = torch.promote_types(features.dtype, torch.float32)
        values = [features.sum() * 0.0, features.new_zeros(0)]
        for i in range(len(features)):
            at = sampled_pixels(seen[i], self.share, keys, i)
            if len(at) and int(seen[i].sum()) > 1:
                values.append(self._parts(features[i].to(exact), seen[i], at))
        found = torch.cat([value.reshape(-1) for value in values[1:]])
        return values[0] + found.sum() / max(1, len(found))

    def _parts(self, features: Tensor, seen: Tensor, at: Tensor) -> Tensor:
        """Return the weighted sum of the parts of each sampled pixel (N,) of one image."""
        pixels = features.flatten(1).T
        mine = pixels[at]
        total = torch.zeros_like(mine[:, 0])
        if self.alpha:
            total = total + self.alpha * (mine - pixels[nearest_pixel(pixels, seen, at)]).square().sum(1)
        if self.beta:
            total = total + self.beta * nearest_neighbor_distance(pixels, seen, at)
        if self.gamma:
            total = total + self.gamma * cosines(mine, pixels[least_similar_pixel(pixels, seen, at)])
        return total


def sampled_pixels(seen: Tensor, share: float, keys: Keys, image: int) -> Tensor:
    """Return the flat indices (N,) of a share of the seen pixels (h, w) of an image, drawn without replacement."""
    there = seen.flatten().nonzero()[:, 0]
    count = max(1, round(share * len(there)))
    order = torch.randperm(len(there), generator=keys.generator(image))[:count]
    return there[order.to(there.device)]


@torch.no_grad()
def nearest_pixel(pixels: Tensor, seen: Tensor, at: Tensor) -> Tensor:
    """Return the index (N,) of the seen pixel that is nearest in feature space to each of the pixels at `at`, other than itself.

    Args:
        pixels: (P, D) features.
        seen: (h, w), P pixels.
        at: Indices (N,).
    """
    distance = torch.cdist(pixels[at], pixels, compute_mode="donot_use_mm_for_euclid_dist")
    distance[:, ~seen.flatten()] = math.inf
    distance[torch.arange(len(at)), at] = math.inf
    return distance.argmin(1)


@torch.no_grad()
def least_similar_pixel(pixels: Tensor, seen: Tensor, at: Tensor) -> Tensor:
    """Return the index (N,) of the seen pixel whose features have the smallest cosine to those of each of the pixels at `at`."""
    unit = pixels / (pixels.square().sum(1, keepdim=True) + LENGTH_FLOOR).sqrt()
    cosine = unit[at] @ unit.T
    cosine[:, ~seen.flatten()] = math.inf
    cosine[torch.arange(len(at)), at] = math.inf
    return cosine.argmin(1)


def nearest_neighbor_distance(pixels: Tensor, seen: Tensor, at: Tensor) -> Tensor:
    """Return the squared distance (N,) to the most similar seen one of the 8 neighbors; 0 for a pixel without any."""
    height, width = seen.shape
    rows, cols = at // width, at % width
    offsets = torch.tensor(NEIGHBORS, device=at.device)
    rows, cols = rows[:, None] + offsets[:, 0], cols[:, None] + offsets[:, 1]
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    index = torch.where(inside, rows * width + cols, at[:, None])
    there = inside & seen.flatten()[index]
    distance = (pixels[at][:, None] - pixels[index]).square().sum(2)
    nearest = distance.masked_fill(~there, math.inf).amin(1)
    return torch.where(there.any(1), nearest, 0.0)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine (N,) between the rows of two tensors (N, D)."""
    lengths = (a.square().sum(1) + LENGTH_FLOOR).sqrt() * (b.square().sum(1) + LENGTH_FLOOR).sqrt()
    return (a * b).sum(1) / lengths

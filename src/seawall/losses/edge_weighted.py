"""U-Net's loss: cross-entropy weighted by class and by the distances to the two nearest objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import UsageError
from seawall.losses.segmentation import check_input, masked_mean, pixel_cross_entropy
from seawall.registry import register

FAR = 6
"""Standard deviations beyond which an object adds nothing: at most 1.5e-8 of the strength."""


@register("loss", "edge-weighted", paper="arXiv:1505.04597")
@dataclass(frozen=True)
class EdgeWeightedCrossEntropy:
    """Cross-entropy in which gaps between two objects of a class count more, and all classes alike.

    The weight of a pixel is w_c + strength * exp(-(d1 + d2)^2 / (2 sigma^2)), with the second term on valid pixels of other classes
    alone; d1 and d2 are their distances to the nearest and to the second nearest object. Objects are the connected components of a class
    within the patch, so one that the patch divides is two. They are found anew for every patch, which takes less than a thousandth of a
    training step.

    Args:
        klass: Index of the class whose objects count; all other classes are background.
        strength: Weight that is added where d1 + d2 is 0, w_0 of the paper.
        sigma: Standard deviation of the added weight, in pixels.
        neighbors: Objects are connected over 4 or 8 neighbors.
        weights: Weight w_c of each class; empty takes the inverse of its share among the valid pixels of the batch, over the number of
            classes there, which is 1 on average. `(1, 1)` is no balance.

    Paper: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597, eq. 2. Differs: the mean over the weights instead of the sum, and class shares of
    the batch instead of the training part.
    """

    klass: int = 1
    strength: float = 10.0
    sigma: float = 5.0
    neighbors: Literal[4, 8] = 8
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.klass < 0:
            raise UsageError(f"edge-weighted.klass: expected the index of a class, got {self.klass}; 1 is the second")
        if not 0 <= self.strength < np.inf or not 0 < self.sigma <= 100:
            raise UsageError(
                f"edge-weighted: expected strength >= 0 and sigma in (0, 100] pixels, got {self.strength} and {self.sigma}; 10 and 5 are common"
            )
        if any(not 0 <= weight < np.inf for weight in self.weights) or (self.weights and not any(self.weights)):
            raise UsageError(
                f"edge-weighted.weights: expected numbers >= 0, not all 0, got {self.weights}; give one per class"
            )

    def __call__(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        classes = check_input(logits, label, valid)
        if self.klass >= classes or len(self.weights) not in (0, classes):
            raise UsageError(
                f"edge-weighted: expected a class in 0..{classes - 1} and {classes} weights or none, got {self.klass} and "
                f"{len(self.weights)}; fit them to the classes"
            )
        known = label.clamp(0, classes - 1)
        weight = self._class_weights(known, valid, classes)[known] + self._edge_weights(label, valid).to(logits.device)
        return masked_mean(pixel_cross_entropy(logits, label), valid, weight)

    def _class_weights(self, known: Tensor, valid: Tensor, classes: int) -> Tensor:
        """Return the weight (K,) of each class."""
        if self.weights:
            return torch.tensor(self.weights, dtype=torch.float32, device=known.device)
        counts = torch.bincount(known[valid], minlength=classes).float()
        return counts.sum() / (counts.clamp_min(1) * (counts > 0).sum().clamp_min(1))

    def _edge_weights(self, label: Tensor, valid: Tensor) -> Tensor:
        """Return the added weight (B, H, W), on the CPU."""
        objects = ((label == self.klass) & valid).cpu().numpy()
        maps = [edge_weight_map(one, self.strength, self.sigma, self.neighbors) for one in objects]
        return torch.from_numpy(np.stack(maps))


def edge_weight_map(
    objects: BoolArray, strength: float = 10.0, sigma: float = 5.0, neighbors: Literal[4, 8] = 8
) -> FloatArray:
    """Return the weight (H, W) that is added by the distances d1 and d2 to the two nearest objects; 0 on objects, and without a second one.

    Args:
        objects: (H, W) mask; its connected components are the objects.
        strength: Weight where d1 + d2 is 0.
        sigma: Standard deviation in pixels.
        neighbors: Components are connected over 4 or 8 neighbors.

    Example:
        >>> row = np.array([[True, False, False, False, True]])
        >>> edge_weight_map(row).astype(float).round(4).tolist()  # 10 exp(-(1 + 3)^2 / 50), and at d1 = d2 = 2 the same
        [[0.0, 7.2615, 7.2615, 7.2615, 0.0]]
    """
    near, second = (np.full(objects.shape, np.inf, np.float32) for _ in range(2))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(objects.astype(np.uint8), connectivity=neighbors)
    reach = int(np.ceil(FAR * sigma))
    for k in range(1, count):
        left, top, width, height = boxes[k, :4]
        box = (
            slice(max(0, top - reach), top + height + reach),
            slice(max(0, left - reach), left + width + reach),
        )
        away = cv2.distanceTransform((labels[box] != k).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        second[box] = np.minimum(second[box], np.maximum(near[box], away))
        near[box] = np.minimum(near[box], away)
    added = strength * np.exp(-((near + second) ** 2) / (2 * sigma**2))
    return np.where(objects, 0.0, added).astype(np.float32)

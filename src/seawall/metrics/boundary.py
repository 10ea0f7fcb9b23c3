"""Pixels near the boundary between classes, and how well two maps agree on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

BOUNDARY_SHARE = 0.02
"""Width of the boundary, as a share of the diagonal of the image."""


def boundary_counts(pred: Tensor, label: Tensor, valid: Tensor, classes: int, reach: int = 0) -> Tensor:
    """Count the pixels near the boundaries of prediction and label, chip by chip.

    Of each map the pixels of a class count that are within `reach` pixels (in rows and columns) of another class in the same
    map. What both have is true positive, what the prediction alone has false positive, what the label alone has
    false negative; tp / (tp + fp + fn) is the boundary IoU.

    Args:
        pred: (B, H, W) predicted class.
        label: (B, H, W) true class.
        valid: (B, H, W) bool.
        classes: Number of classes K.
        reach: In pixels; 0 for 2 % of the diagonal of the image, and at least 1.

    Returns:
        (B, K, 3) int64: tp, fp, fn.

    Paper: Cheng et al. 2021, arXiv:2103.16562. Differs: neither the edge of the image nor invalid pixels are a boundary, for nobody
    knows what is beyond them.

    Example:
        >>> label = torch.tensor([[[0, 0, 1, 1]]])
        >>> boundary_counts(torch.tensor([[[0, 1, 1, 1]]]), label, label >= 0, 2).tolist()
        [[[0, 1, 1], [0, 1, 1]]]
    """
    reach = reach or boundary_reach(*label.shape[1:])
    near = [edge_band(map_, valid, reach) for map_ in (pred, label)]
    found = []
    for k in range(classes):
        mine, true = (band & (map_ == k) for band, map_ in zip(near, (pred, label), strict=True))
        found.append(torch.stack([part.flatten(1).sum(1) for part in (mine & true, mine & ~true, true & ~mine)], 1))
    return torch.stack(found, 1)


def boundary_reach(height: int, width: int) -> int:
    """Return the width of the boundary of an image, in pixels.

    Example:
        >>> boundary_reach(128, 128), boundary_reach(8, 8)
        (4, 1)
    """
    return max(1, round(BOUNDARY_SHARE * math.hypot(height, width)))


def edge_band(label: Tensor, valid: Tensor, reach: int = 3) -> Tensor:
    """Return the valid pixels within `reach` pixels (in rows and columns) of a valid pixel of another class.

    Args:
        label: (B, H, W).
        valid: (B, H, W) bool.
        reach: Half width of the band, in pixels.
    """
    value = label.float()[:, None]
    inside, size = valid[:, None], 2 * reach + 1

    def highest(x: Tensor) -> Tensor:
        return max_pool2d(x.masked_fill(~inside, -torch.inf), size, stride=1, padding=reach)

    mixed = highest(value) > -highest(-value)
    return mixed[:, 0] & valid

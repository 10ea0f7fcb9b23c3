"""Features of every pixel for clustering: its bands (color), the texture around it, or both."""

from __future__ import annotations

import math
from typing import Literal

import cv2
import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.types import Unit, seen_pixels

FeatureSpace = Literal["color", "texture", "both"]
Texture = Literal["statistics", "gabor", "glcm"]

GABOR_ANGLES = 4
"""Orientations of the Gabor filters, evenly over half a turn."""
LEAST_VARIANCE = 1e-12
"""Added under the square roots of the texture, whose slope at 0 is infinite; 1e-6 in data units."""


class PixelFeatures(nn.Module):
    """From an image (B, C, H, W) in data units to features (B, F, H, W); unseen pixels take no part in those of others.

    Args:
        bands: Number of bands.
        unit: Unit of the image.
        space: "color" is the bands, "texture" what `texture` computes, "both" one after the other.
        texture: "statistics", the standard deviation of each band in the window; "glcm", the contrast of the gray-level
            co-occurrence matrix of each band in the window; "gabor", the energy of the mean of the bands at four orientations and a
            wavelength of half the window.
        window: Side of the window in pixels, odd.
    """

    gabor: Tensor

    def __init__(self, bands: int, unit: Unit, space: FeatureSpace, texture: Texture, window: int) -> None:
        super().__init__()
        self.unit: Unit = unit
        self.space, self.texture, self.window = space, texture, window
        of_texture = GABOR_ANGLES if texture == "gabor" else bands
        self.count = {"color": bands, "texture": of_texture, "both": bands + of_texture}[space]
        self.reach = 0 if space == "color" else window // 2
        if space != "color" and texture == "gabor":
            self.reach *= 2  # of the local mean, and of the filters after it
            self.register_buffer("gabor", gabor_filters(window), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the features; those of unseen pixels mean nothing."""
        if self.space == "color":
            return image
        seen = seen_pixels(image, self.unit)[:, None]
        if self.texture == "statistics":
            found = local_deviation(image, seen, self.window)
        elif self.texture == "glcm":
            found = glcm_contrast(image, seen, self.window)
        else:
            found = self._gabor_energy(image, seen)
        return found if self.space == "texture" else torch.cat([image, found], 1)

    def _gabor_energy(self, image: Tensor, seen: Tensor) -> Tensor:
        brightness = image.mean(1, keepdim=True)
        # without the local mean an unseen neighbor, which counts as 0, would be an edge
        change = torch.where(seen, brightness - _local_mean(brightness, seen, self.window), 0.0)
        answers = functional.conv2d(change, self.gabor.to(image.dtype), padding=self.window // 2)
        return (answers[:, 0::2].square() + answers[:, 1::2].square() + LEAST_VARIANCE).sqrt()


def _local_mean(values: Tensor, known: Tensor, window: int) -> Tensor:
    """Return the mean of the known values in the window around each pixel; 0 where there are none."""
    weight = functional.avg_pool2d(known.to(values.dtype), window, 1, window // 2)
    total = functional.avg_pool2d(torch.where(known, values, 0.0), window, 1, window // 2)
    return total / weight.clamp_min(0.5 / window**2)


def local_deviation(image: Tensor, seen: Tensor, window: int) -> Tensor:
    """Return the standard deviation (B, C, H, W) of each band over the seen pixels of the window around each pixel.

    Args:
        image: (B, C, H, W).
        seen: (B, 1, H, W) bool.
        window: Side of the window in pixels, odd.
    """
    variance = _local_mean(image.square(), seen, window) - _local_mean(image, seen, window).square()
    return (variance.clamp_min(0) + LEAST_VARIANCE).sqrt()


def glcm_contrast(image: Tensor, seen: Tensor, window: int) -> Tensor:
    """Return the GLCM contrast (B, C, H, W) of each band in the window around each pixel, mean over four directions.

    The contrast is the sum over pairs of gray levels of (i - j)^2 times the share of neighbors with these levels, which is the mean of the
    squared differences of neighbors; so no matrix is counted, and values need not be quantized.

    Args:
        image: (B, C, H, W).
        seen: (B, 1, H, W) bool; a pair counts where both pixels are seen and inside the window.
        window: Side of the window in pixels, odd, at least 3.

    Paper: Haralick, Shanmugam, Dinstein 1973, feature f2, at a distance of 1.
    """
    radius = window // 2
    total = torch.zeros_like(image)
    directions = torch.zeros_like(seen, dtype=image.dtype)
    padded = functional.pad(image, (radius,) * 4)
    known = functional.pad(seen, (radius,) * 4)
    height, width = padded.shape[-2:]
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        left = max(0, -right)
        first = (..., slice(0, height - down), slice(left, width - max(0, right)))
        other = (..., slice(down, height), slice(left + right, width - max(0, right) + right))
        pair = known[first] & known[other]
        squares = torch.where(pair, (padded[first] - padded[other]).square(), 0.0)
        inside = (window - down, window - abs(right))  # so many pairs lie in a window
        count = functional.avg_pool2d(pair.to(image.dtype), inside, 1)
        mean = functional.avg_pool2d(squares, inside, 1) / count.clamp_min(0.5 / (inside[0] * inside[1]))
        total = total + mean
        directions = directions + (count > 0)
    return total / directions.clamp_min(1)


def gabor_filters(window: int) -> Tensor:
    """Return Gabor filters (2 * angles, 1, window, window), even and odd ones in turn, with a sum of 0 and a norm of 1.

    Paper: Jain, Farrokhnia 1991.
    """
    filters = []
    for k in range(GABOR_ANGLES):
        for phase in (0.0, -math.pi / 2):
            angle = math.pi * k / GABOR_ANGLES
            made = cv2.getGaborKernel((window, window), window / 5, angle, window / 2, 1.0, phase, cv2.CV_64F)
            made -= made.mean()
            filters.append(torch.from_numpy(made / max(float((made**2).sum()) ** 0.5, 1e-12)).float())
    return torch.stack(filters)[:, None]

"""Votes of a network under Gaussian noise that belongs to the position in the scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seawall.arrays import BoolArray, FloatArray
from seawall.bands import channels_of_sources
from seawall.errors import ModelError
from seawall.types import ModelSpec, seen_pixels, unit_of_channels

NOISE_BLOCK = 64
"""Side in pixels of the blocks in which noise is made."""


@dataclass(frozen=True)
class PositionNoise:
    """Standard normal noise as a function of seed, draw, row, column and band, so that every tile has the same at a pixel.

    A block of pixels has a generator of its own, whose counter is the place of the block (Philox; Salmon et al. 2011).

    Args:
        seed: Seed of the noise.
        bands: Number of bands.
    """

    seed: int
    bands: int

    def draw(self, number: int, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> FloatArray:
        """Return the noise (C, rows, columns) of a draw at these rows and columns of the scene, in any order."""
        top, left = int(rows.min()), int(cols.min())
        box = np.empty((self.bands, int(rows.max()) + 1 - top, int(cols.max()) + 1 - left), np.float32)
        height, width = box.shape[1:]
        for row in range(top // NOISE_BLOCK * NOISE_BLOCK, top + height, NOISE_BLOCK):
            for col in range(left // NOISE_BLOCK * NOISE_BLOCK, left + width, NOISE_BLOCK):
                y, x = max(row, top), max(col, left)
                part = self._block(number, row // NOISE_BLOCK, col // NOISE_BLOCK)[:, y - row :, x - col :]
                part = part[:, : top + height - y, : left + width - x]
                box[:, y - top : y - top + part.shape[1], x - left : x - left + part.shape[2]] = part
        if len(rows) == height and len(cols) == width and (np.diff(rows) == 1).all() and (np.diff(cols) == 1).all():
            return box
        return np.ascontiguousarray(box[:, rows - top][:, :, cols - left])

    def _block(self, number: int, row: int, col: int) -> FloatArray:
        made = np.random.Philox(key=np.array([self.seed, number], np.uint64), counter=[0, 0, col, row])
        return np.random.Generator(made).standard_normal((self.bands, NOISE_BLOCK, NOISE_BLOCK), np.float32)


def noise_scale(image: FloatArray, seen: BoolArray, sigma: tuple[float, ...], spec: ModelSpec) -> FloatArray:
    """Return the standard deviation (C, H, W) of the noise on an image: 0 where a band has no data.

    Args:
        image: (C, H, W) in data units, with the fill where a source is unseen.
        seen: (H, W), where any source is seen.
        sigma: Standard deviation of each band.
        spec: Specification of the model.
    """
    scale: FloatArray = np.broadcast_to(seen, image.shape) * np.array(sigma, np.float32)[:, None, None]
    if len(channels_of_sources(spec.bands)) == 1:
        return scale
    there: BoolArray = seen_bands(torch.from_numpy(image[None]), spec)[0].numpy()
    return np.where(there, scale, np.float32(0))


def seen_bands(image: Tensor, spec: ModelSpec) -> Tensor:
    """Return where each band of an image (B, C, H, W) has data, from its fill; one band stands for all of a single source."""
    sources = channels_of_sources(spec.bands).values()
    if len(sources) == 1:
        return seen_pixels(image, spec.unit)[:, None]
    seen = torch.empty_like(image, dtype=torch.bool)
    for channels in sources:
        own = list(channels)
        seen[:, own] = seen_pixels(image[:, own], unit_of_channels(spec.unit, channels))[:, None]
    return seen


def count_votes(
    predict: Callable[[FloatArray], FloatArray],
    image: FloatArray,
    scale: FloatArray,
    noise: Callable[[int], FloatArray],
    draws: range,
    batch: int = 1,
) -> NDArray[np.uint16]:
    """Return how often each class is the most probable one of a pixel under noise, (K, H, W).

    Args:
        predict: Images (B, C, H, W) to probabilities (B, K, H, W).
        image: (C, H, W) in data units.
        scale: (C, H, W) standard deviation of the noise.
        noise: Number of a draw to standard normal noise (C, H, W).
        draws: Numbers of the draws.
        batch: Draws per call of the network.

    Raises:
        ModelError: The network gives something that is not finite.
    """
    votes: NDArray[np.uint16] | None = None
    for first in range(draws.start, draws.stop, batch):
        some = range(first, min(first + batch, draws.stop))
        probability = predict(np.stack([image + scale * noise(number) for number in some]))
        if not np.isfinite(probability.sum()):
            raise ModelError(
                "model: expected finite probabilities under noise, got NaN; the weights are damaged or sigma is too large"
            )
        if votes is None:
            votes = np.zeros(probability.shape[1:], np.uint16)
        winner = probability.argmax(1)
        for klass, own in enumerate(votes):
            own += (winner == klass).sum(0, dtype=np.uint16)
    if votes is None:
        raise ValueError("count_votes: no draw")
    return votes

"""Pictures for people: three bands as red, green and blue, stretched so that land and water can both be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray, FloatArray
from seawall.geo.raster import open_raster
from seawall.io import atomic

COLORS = (("B04", "B03", "B02"), ("B12", "B08", "B04"), ("B11", "B08", "B03"))
"""Bands to show as red, green and blue, the first triple that is there."""
SIDE = 900
"""Longest side of a scene's preview, in pixels."""
MIDDLE = 0.42
"""Gray value, of 1, that the median of a stretched picture is brought to."""
GAMMA = (0.25, 1.0)
"""Smallest and largest exponent of the stretch; 1 is a linear one."""


@dataclass(frozen=True)
class Stretch:
    """How values become gray: linear from `low`, over one `range` for all bands so that hues stay, then a power.

    Args:
        low: (C,) value that is black.
        range: What is between black and white.
        gamma: Exponent; below 1 it brightens what is dark.
    """

    low: FloatArray
    range: float
    gamma: float

    @staticmethod
    def of(image: FloatArray, seen: BoolArray) -> Stretch:
        """Return the stretch of a picture: from each band's 2nd percentile, over the widest band's way to its 98th.

        A few clouds make everything else dark under a linear stretch; a power that brings the median to a middle gray
        lets land and water be seen.

        Args:
            image: (C, H, W) in any unit.
            seen: (H, W) pixels with data; only they count.
        """
        if not seen.any():
            return Stretch(np.zeros(len(image), np.float32), 1.0, 1.0)
        low, high = np.percentile(image[:, seen], [2, 98], axis=1).astype(np.float32)
        wide = max(float((high - low).max()), 1e-6)
        share = np.clip((image[:, seen] - low[:, None]) / wide, 0, 1)
        middle = float(np.median(share))
        gamma = math.log(MIDDLE) / math.log(middle) if 0 < middle < 1 else 1.0
        return Stretch(low, wide, min(max(gamma, GAMMA[0]), GAMMA[1]))

    def __call__(self, image: FloatArray, seen: BoolArray) -> NDArray[np.uint8]:
        """Return (H, W, C) uint8; pixels that were not seen are black."""
        share = (image - self.low[:, None, None]) / self.range
        gray = (np.clip(np.nan_to_num(share), 0, 1) ** self.gamma * 255).round()
        return np.ascontiguousarray(np.where(seen, gray, 0).astype(np.uint8).transpose(1, 2, 0))


def channels(bands: Sequence[str]) -> list[int]:
    """Return the indices of the bands to show as red, green and blue.

    Example:
        >>> channels(("B02", "B03", "B04", "B08")), channels(("VV", "VH"))
        ([2, 1, 0], [0, 1, 0])
    """
    for triple in COLORS:
        if all(band in bands for band in triple):
            return [bands.index(band) for band in triple]
    return [min(i, len(bands) - 1) for i in range(3)] if len(bands) > 2 else [0, len(bands) - 1, 0]


def write_preview(scene: Path, path: Path, *, digest: str, side: int = SIDE) -> Path:
    """Write a thinned-out picture of a scene: an npz with `rgb` (H, W, 3) uint8, `bands` and `scene`.

    The scene is read strip by strip. A preview that is there and names the same scene is left as it is.

    Args:
        scene: A raster.
        path: Where the npz goes.
        digest: Digest of the scene; it goes into the file.
        side: Longest side of the picture in pixels.

    Raises:
        ImageryError: The scene cannot be read.
    """
    if path.exists() and _scene_of(path) == digest:
        return path
    with open_raster(scene) as source:
        at = channels(source.bands)
        names = [source.bands[i] for i in dict.fromkeys(at)]
        step = -(-max(source.grid.height, source.grid.width) // side)
        tall = max(source.block[0] // step, 1) * step
        strips = []
        for row in range(0, source.grid.height, tall):
            rows = min(tall, source.grid.height - row)
            data, seen = source.read((row, 0, rows, source.grid.width), names)
            strips.append((data[:, ::step, ::step], seen[::step, ::step]))
        image = np.concatenate([data for data, _ in strips], 1)[[names.index(source.bands[i]) for i in at]]
        mask = np.concatenate([seen for _, seen in strips])
    rgb = Stretch.of(image, mask)(image, mask)
    with atomic(path) as file:
        np.savez_compressed(file, rgb=rgb, bands=np.array(names), scene=np.array(digest))
    return path


def _scene_of(path: Path) -> str:
    try:
        with np.load(path, allow_pickle=False) as held:
            return str(held["scene"])
    except (OSError, ValueError, KeyError, EOFError):
        return ""

"""RGB composites of images and scenes, with a stretch that shows both land and water."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seawall.arrays import BoolArray, ByteArray, FloatArray
from seawall.geo.raster import open_raster
from seawall.io import open_atomic

COMPOSITES = (("B04", "B03", "B02"), ("B12", "B08", "B04"), ("B11", "B08", "B03"))
"""Band combinations shown as red, green and blue; the first that the image has is used."""

PREVIEW_SIDE = 900
"""Longest side of a scene's preview, in pixels."""

MEDIAN_GRAY = 0.42
"""Gray value of 0..1 that the median is mapped to."""

GAMMA_RANGE = (0.25, 1.0)
"""Smallest and largest exponent of the stretch; 1 is a linear one."""


@dataclass(frozen=True)
class Stretch:
    """Conversion of values to gray: linear from `low`, with one `range` for all bands to preserve hues, then a power.

    Args:
        low: (C,) value shown as black.
        range: Difference between the values shown as white and as black.
        gamma: Exponent; below 1 it brightens dark pixels.
    """

    low: FloatArray
    range: float
    gamma: float

    @staticmethod
    def of(image: FloatArray, seen: BoolArray) -> Stretch:
        """Return the stretch of an image: from each band's 2nd percentile, over the largest 2nd to 98th percentile range.

        A few clouds make everything else dark under a linear stretch; the exponent maps the median to `MEDIAN_GRAY`.

        Args:
            image: (C, H, W) in any unit.
            seen: (H, W) bool; unseen pixels are left out.
        """
        if not seen.any():
            return Stretch(np.zeros(len(image), np.float32), 1.0, 1.0)
        low, high = np.percentile(image[:, seen], [2, 98], axis=1).astype(np.float32)
        widest = max(float((high - low).max()), 1e-6)
        share = np.clip((image[:, seen] - low[:, None]) / widest, 0, 1)
        middle = float(np.median(share))
        gamma = math.log(MEDIAN_GRAY) / math.log(middle) if 0 < middle < 1 else 1.0
        return Stretch(low, widest, min(max(gamma, GAMMA_RANGE[0]), GAMMA_RANGE[1]))

    def __call__(self, image: FloatArray, seen: BoolArray, unseen: int = 0) -> ByteArray:
        """Return (H, W, C) uint8; unseen pixels have the gray value `unseen`."""
        share = (image - self.low[:, None, None]) / self.range
        gray = (np.clip(np.nan_to_num(share), 0, 1) ** self.gamma * 255).round()
        return np.ascontiguousarray(np.where(seen, gray, unseen).astype(np.uint8).transpose(1, 2, 0))


def rgb_channels(bands: Sequence[str]) -> list[int]:
    """Return the indices of the bands that are shown as red, green and blue.

    Example:
        >>> rgb_channels(("B02", "B03", "B04", "B08")), rgb_channels(("VV", "VH"))
        ([2, 1, 0], [0, 1, 0])
    """
    for triple in COMPOSITES:
        if all(band in bands for band in triple):
            return [bands.index(band) for band in triple]
    return [min(i, len(bands) - 1) for i in range(3)] if len(bands) > 2 else [0, len(bands) - 1, 0]


def rgb_composite(
    image: FloatArray, seen: BoolArray, bands: Sequence[str], *, stretch: Stretch | None = None, unseen: int = 0
) -> ByteArray:
    """Return an image as an RGB composite, (H, W, 3) uint8.

    Args:
        image: (C, H, W) in any unit.
        seen: (H, W) bool.
        bands: Band ids in the order of the channels.
        stretch: Stretch of the composite's three bands, to show several images alike; that of this image if None.
        unseen: Gray value of unseen pixels.
    """
    rgb = image[rgb_channels(bands)]
    return (stretch or Stretch.of(rgb, seen))(rgb, seen, unseen)


def write_preview(scene: Path, path: Path, *, digest: str, side: int = PREVIEW_SIDE) -> Path:
    """Write a subsampled RGB composite of a scene: an npz with `rgb` (H, W, 3) uint8, `bands` and `scene`.

    The scene is read strip by strip. An existing preview of the same digest is kept.

    Args:
        scene: Path of the raster.
        path: Path of the npz.
        digest: Digest of the scene, stored as `scene`.
        side: Longest side of the preview in pixels.

    Raises:
        ImageryError: The scene cannot be read.
    """
    if path.exists() and _preview_digest(path) == digest:
        return path
    with open_raster(scene) as source:
        names = [source.bands[i] for i in dict.fromkeys(rgb_channels(source.bands))]
        step = -(-max(source.grid.height, source.grid.width) // side)
        tall = max(source.block[0] // step, 1) * step
        strips = []
        for row in range(0, source.grid.height, tall):
            rows = min(tall, source.grid.height - row)
            data, seen = source.read((row, 0, rows, source.grid.width), names)
            strips.append((data[:, ::step, ::step], seen[::step, ::step]))
    image, seen = np.concatenate([data for data, _ in strips], 1), np.concatenate([seen for _, seen in strips])
    rgb = rgb_composite(image, seen, names)
    with open_atomic(path) as file:
        np.savez_compressed(file, rgb=rgb, bands=np.array(names), scene=np.array(digest))
    return path


def _preview_digest(path: Path) -> str:
    try:
        with np.load(path, allow_pickle=False) as held:
            return str(held["scene"])
    except (OSError, ValueError, KeyError, EOFError):
        return ""

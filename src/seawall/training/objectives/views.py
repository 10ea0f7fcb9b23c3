"""Views of images for learning without labels: gains, offsets and noise in data units, and boxes of other images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from seawall.corruptions.severity import with_image
from seawall.decibels import from_power, to_power
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.types import Batch, Unit, Units, units_of

OFFSETS: Mapping[Unit, float] = {"reflectance": 0.005, "sigma0_db": 0.5, "gamma0_db": 0.5, "stretched": 0.02}
"""Standard deviation of the offset of a band, in data units, where none is given."""

BOX_SHARES = (0.02, 0.4)
"""Smallest and largest share of the image that a box of CutMix has."""

LONGEST_SIDE = 3.0
"""Largest ratio of the sides of a box."""


@dataclass(frozen=True)
class RadiometricView:
    """Images with another gain and offset per band, and noise per pixel; label, seen, valid and unseen pixels stay.

    Each chip draws from its own key. Decibels are multiplied as linear power; the offset is added in data units.

    Args:
        gain: Largest relative change by a gain that all bands share; uniform.
        band_gain: Largest relative change by a further gain of each band; uniform.
        offset: Standard deviation of an offset of each band, in data units; None is that of `OFFSETS`.
        noise: Standard deviation of the noise of each pixel and band, in data units.

    Raises:
        UsageError: A setting is negative, or a gain is not below 1.
    """

    gain: float = 0.0
    band_gain: float = 0.0
    offset: float | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, value, below in (
            ("gain", self.gain, 1.0), ("band_gain", self.band_gain, 1.0),
            ("offset", self.offset or 0.0, torch.inf), ("noise", self.noise, torch.inf),
        ):  # fmt: skip
            if not 0 <= value < below:
                raise UsageError(f"view.{name}: expected a number in [0, {below:g}), got {value}; 0.1 is common")

    def __call__(self, batch: Batch, unit: Units, keys: Keys) -> Batch:
        """Return the view of a batch."""
        bands = batch.image.shape[1]
        units = units_of(unit, bands)
        gain = 1 + self.gain * keys.fold("gain").uniform((1,), -1.0)
        gain = gain * (1 + self.band_gain * keys.fold("band-gain").uniform((bands,), -1.0))
        spread = torch.tensor([OFFSETS[one] if self.offset is None else self.offset for one in units])
        offset = spread * keys.fold("offset").normal((bands,))
        gains, planes = gain[..., None, None].to(batch.image).unbind(1), batch.image.unbind(1)
        image = torch.stack(
            [from_power(to_power(x, one) * by, one) for x, by, one in zip(planes, gains, units, strict=True)], 1
        )
        image = image + offset[..., None, None].to(batch.image)
        if self.noise:
            image = image + self.noise * keys.fold("noise").normal(batch.image.shape[1:]).to(batch.image)
        return with_image(batch, image)


def without_label(batch: Batch) -> Tensor:
    """Return the pixels (B, H, W) that the sensor has seen and of which no label is known."""
    return batch.seen & ~batch.valid


def images_with(pixels: Tensor) -> list[int]:
    """Return the indices of the images with any of these pixels (B, H, W)."""
    found: list[int] = pixels.flatten(1).any(1).nonzero()[:, 0].tolist()
    return found


def cutmix_boxes(batch: Batch, probability: float, keys: Keys) -> Tensor:
    """Return the pixels (B, H, W) that each image takes from the next one of its batch: a box, or none.

    The share of a box is uniform in `BOX_SHARES`, its sides have a ratio of at most `LONGEST_SIDE`, and it lies inside the image.
    An image that is alone keeps its pixels.
    """
    height, width = batch.seen.shape[1:]
    boxes = torch.zeros_like(batch.seen)
    for i, (chance, size, form, top, left) in enumerate(keys.fold("cutmix").uniform((5,)).tolist()):
        if chance >= probability or len(batch) < 2:
            continue
        share = BOX_SHARES[0] + size * (BOX_SHARES[1] - BOX_SHARES[0])
        ratio = LONGEST_SIDE ** (2 * form - 1)
        rows, cols = (
            min(side, max(1, round(side * (share * r) ** 0.5))) for side, r in ((height, ratio), (width, 1 / ratio))
        )
        row, col = int(top * (height - rows + 1)), int(left * (width - cols + 1))
        boxes[i, row : row + rows, col : col + cols] = True
    return boxes


def mix_next(values: Tensor, boxes: Tensor) -> Tensor:
    """Return values (B, H, W) or (B, C, H, W) with those of the next image of the batch inside of the boxes (B, H, W)."""
    return torch.where(boxes if values.ndim == 3 else boxes[:, None], values.roll(-1, 0), values)


def mix_images(batch: Batch, boxes: Tensor) -> Batch:
    """Return a batch with the pixels of the next image inside of the boxes, and what is known of them."""
    return batch.with_planes({name: mix_next(plane, boxes) for name, plane in batch.planes.items()})

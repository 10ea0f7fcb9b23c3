"""What corruptions share: severity, the sensor they are of, and how a new image enters a batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from seawall.decibels import is_decibels
from seawall.errors import ImageryError, UsageError
from seawall.geo.sensors import OPTICAL_BANDS, resolve_bands
from seawall.rng import Keys
from seawall.types import FILL, Batch, Unit, per_channel


def check_severity(name: str, severity: float) -> float:
    """Return the severity.

    Raises:
        UsageError: It is not in [0, 1].
    """
    if not (math.isfinite(severity) and 0.0 <= severity <= 1.0):
        raise UsageError(f"{name}: expected a severity from 0 to 1, got {severity}; 0 is the input, 1 the worst")
    return severity


class PhysicalCorruption(ABC):
    """A corruption by one physical quantity, which is linear in the severity; severity 0 is the identity.

    A class declares `name`, under which it is registered, and `start`, the quantity at severity 0, beside what
    `seawall.types.Corruption` asks for.
    """

    name: ClassVar[str]
    start: ClassVar[float] = 0.0
    worst: float

    def level(self, severity: float) -> float:
        """Return the quantity at a severity.

        Raises:
            UsageError: The severity is not in [0, 1].
        """
        return self.start + check_severity(self.name, severity) * (self.worst - self.start)

    def __call__(self, batch: Batch, severity: float, keys: Keys) -> Batch:
        """Return the batch at a severity."""
        level = self.level(severity)
        return self.corrupted(batch, level, keys) if severity else batch

    @abstractmethod
    def corrupted(self, batch: Batch, level: float, keys: Keys, /) -> Batch:
        """Return the batch at a quantity other than `start`."""


def check_worst(name: str, worst: float, low: float, high: float) -> None:
    """Check the quantity that severity 1 stands for.

    Raises:
        UsageError: It is outside (low, high].
    """
    if not (math.isfinite(worst) and low < worst <= high):
        raise UsageError(
            f"{name}.worst: expected above {low:g} and at most {high:g}, got {worst}; choose a value in between"
        )


def check_sun(name: str, sun_zenith_deg: float) -> None:
    """Check the zenith angle of the sun.

    Raises:
        UsageError: It is not in [0, 80).
    """
    if not 0.0 <= sun_zenith_deg < 80.0:
        raise UsageError(
            f"{name}.sun_zenith_deg: expected degrees from 0 to below 80, got {sun_zenith_deg}; the layers are taken as flat"
        )


def check_optical(
    name: str, unit: Unit, bands: Sequence[str], table: Sequence[str] | Mapping[str, object] = OPTICAL_BANDS
) -> tuple[str, ...]:
    """Return the Sentinel-2 ids of the bands of an optical image.

    Args:
        name: The corruption.
        unit: Unit of the images.
        bands: Names of the channels.
        table: Bands that the physical model knows.

    Raises:
        UsageError: The images are not in reflectance, or the model does not know a band.
    """
    if unit != "reflectance":
        raise UsageError(f"{name}: expected images in reflectance, got {unit}; it is a corruption of optical images")
    try:
        ids = resolve_bands(bands)
    except ImageryError as bad:
        raise UsageError(f"{name}.bands: {str(bad).removeprefix('bands: ')}") from bad
    if lost := [band for band, id_ in zip(bands, ids, strict=True) if id_ not in table]:
        raise UsageError(f"{name}.bands: expected some of {', '.join(table)}, got {lost[0]!r}; leave that band out")
    if not ids:
        raise UsageError(f"{name}.bands: expected the bands of the channels, got none; name them in order")
    return ids


def check_radar(name: str, unit: Unit, bands: Sequence[str], known: Sequence[str]) -> None:
    """Check that images are of a radar.

    Raises:
        UsageError: The images are not in decibels, or the model does not know a polarization.
    """
    if not is_decibels(unit):
        raise UsageError(f"{name}: expected images in decibels, got {unit}; it is a corruption of radar images")
    if lost := [band for band in bands if band not in known]:
        raise UsageError(f"{name}.bands: expected some of {', '.join(known)}, got {lost[0]!r}; leave that band out")
    if not bands:
        raise UsageError(f"{name}.bands: expected the bands of the channels, got none; name them in order")


def per_band(name: str, values: Sequence[float], image: Tensor) -> Tensor:
    """Return one value per channel as (1, C, 1, 1).

    Raises:
        UsageError: The image has another number of channels.
    """
    if len(values) != image.shape[1]:
        raise UsageError(f"{name}.bands: expected {image.shape[1]} as the image has channels, got {len(values)}")
    return per_channel(values, image)


def with_image(batch: Batch, image: Tensor) -> Batch:
    """Return the batch with another image where it is seen; unseen pixels keep their fill bit for bit."""
    return replace(batch, image=torch.where(batch.image_seen, image.to(batch.image.dtype), batch.image))


def hide(batch: Batch, gone: Tensor, unit: Unit) -> Batch:
    """Return the batch with pixels (B, H, W) that nothing is known of: unseen, invalid, the fill of the unit."""
    image = torch.where((gone & batch.seen)[:, None], FILL[unit], batch.image)
    return replace(batch, image=image, seen=batch.seen & ~gone, valid=batch.valid & ~gone)


def hide_bands(batch: Batch, gone: Tensor, fill: Sequence[float]) -> Batch:
    """Return the batch with values (B, C or 1, H or 1, W or 1) that nothing is known of, in bands that may be seen apart.

    A pixel stays seen, and counts, where another band has data.

    Args:
        batch: The batch.
        gone: bool, broadcast over the image.
        fill: What an unseen pixel holds, per band.
    """
    known = batch.image_seen.expand_as(batch.image) & ~gone
    image = torch.where(batch.image_seen & gone, per_channel(fill, batch.image), batch.image)
    seen = known.any(1)
    return replace(batch, image=image, seen=seen, valid=batch.valid & seen, seen_bands=known)


def class_mask(batch: Batch, klass: int) -> Tensor:
    """Return the valid pixels of a class, (B, H, W) bool."""
    return batch.valid & (batch.label == klass)

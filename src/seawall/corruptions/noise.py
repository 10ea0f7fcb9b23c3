"""Noise of the detectors: shot and read noise, stripes and dead columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.corruptions.band_tables import SENTINEL_2, native_ratios
from seawall.corruptions.severity import PhysicalCorruption, check_optical, check_sun, check_worst, per_band, with_image
from seawall.corruptions.spatial import native_noise
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Unit


@register("corruption", "shot-noise", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class ShotNoise(PhysicalCorruption):
    """Shot and read noise of the detectors, from the specified signal-to-noise ratio of each band.

    sigma^2(rho) = sigma_ref^2 (f + (1 - f) rho / rho_ref), where rho_ref = pi L_ref / (E cos) is the reflectance of the
    reference radiance and sigma_ref that reflectance over the signal-to-noise ratio. Noise is drawn on the native grid:
    a 20 m band of 10 m pixels repeats it, a 30 m pixel averages it.

    Quantity: standard deviation of the added noise as a multiple of the specified one, 0 to 8. Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        sun_zenith_deg: Zenith angle of the sun.
        read_share: Share f of the variance at the reference radiance that does not depend on the signal.

    Source: Sentinel-2 mission requirements (signal-to-noise ratios, reference radiances); the form is that of the
    radiometric uncertainty tool, whose two parameters per band are not published.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    worst: float = 8.0
    sun_zenith_deg: float = 40.0
    read_share: float = 0.2

    name: ClassVar[str] = "shot-noise"
    quantity: ClassVar[str] = "multiple of the specified noise"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 50.0)
        check_sun(self.name, self.sun_zenith_deg)
        if not 0.0 <= self.read_share <= 1.0:
            raise UsageError(f"shot-noise.read_share: expected a share from 0 to 1, got {self.read_share}; such as 0.2")

    def variance(self, image: Tensor) -> Tensor:
        """Return the specified variance of each value of an image."""
        table = [SENTINEL_2[b] for b in check_optical(self.name, self.image_unit, self.bands)]
        mu = math.cos(math.radians(self.sun_zenith_deg))
        sigma = per_band(self.name, [(band.noise or 0.0) / mu for band in table], image)
        reference = per_band(self.name, [(band.reference or 1.0) / mu for band in table], image)
        return sigma.square() * (self.read_share + (1 - self.read_share) * image.clamp_min(0) / reference)

    def corrupted(self, batch: Batch, multiple: float, keys: Keys) -> Batch:
        """Return the batch with noise."""
        ids = check_optical(self.name, self.image_unit, self.bands)
        white = native_noise(keys.fold(self.name), batch.image, native_ratios(ids, self.gsd_m))
        return with_image(batch, batch.image + multiple * self.variance(batch.image).sqrt() * white)


MODULE_COLUMNS = 2592
"""Columns of one of the twelve detector modules of a 10 m band; fewer in coarser bands, in proportion."""


@register("corruption", "stripes", smoke={"gsd_m": 10.0}, traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class Stripes(PhysicalCorruption):
    """Detector columns differ in gain, detector modules in calibration, and some columns are dead.

    rho' = (1 + g_c) rho for each native column c, with g_c ~ N(0, q), plus one step U(-3 q, 3 q) where two detector
    modules meet, if that is inside the chip. Dead columns hold the mean of their neighbors, or 0.

    Quantity: standard deviation q of the gain of columns, 0 to 1 %; dead columns grow from 0 to `dead` with it.
    Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        worst: Quantity at severity 1, in percent.
        dead: Dead columns of each band in a chip at severity 1.
        interpolated: Whether dead columns hold the mean of their neighbors, as products do, or 0.
        tilt_deg: Angle of the columns to the chip: about 12 degrees in UTM.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    worst: float = 1.0
    dead: int = 4
    interpolated: bool = True
    tilt_deg: float = 12.0

    name: ClassVar[str] = "stripes"
    quantity: ClassVar[str] = "standard deviation of the gain of detector columns"
    unit: ClassVar[str] = "%"
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 20.0)
        if self.dead < 0:
            raise UsageError(f"stripes.dead: expected columns from 0 up, got {self.dead}; 0 for none")

    def corrupted(self, batch: Batch, level: float, keys: Keys) -> Batch:
        """Return the batch with stripes."""
        spread = level / 100
        ids = check_optical(self.name, self.image_unit, self.bands)
        per_band(self.name, [0.0] * len(ids), batch.image)  # the number of channels
        ratios = [max(1, round(ratio)) for ratio in native_ratios(ids, self.gsd_m)]
        dead = round(level / self.worst * self.dead)
        own = keys.fold(self.name)
        planes = [self._band(batch.image[:, i], ratio, spread, dead, own.fold(i)) for i, ratio in enumerate(ratios)]
        return with_image(batch, torch.stack(planes, 1))

    def columns(self, size: tuple[int, int], width: int) -> Tensor:
        """Return the native column (H, W) of each pixel, from 0 up."""
        tilt = math.radians(self.tilt_deg)
        rows, cols = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
        across = torch.floor((cols * math.cos(tilt) + rows * math.sin(tilt)) / width + 1e-6).long()
        return across - across.min()

    def _band(self, plane: Tensor, width: int, spread: float, dead: int, keys: Keys) -> Tensor:
        column = self.columns((plane.shape[1], plane.shape[2]), width).to(plane.device)
        number = int(column.max()) + 1
        gain = keys.fold("gain").normal((number,)).to(plane) * spread
        edge = keys.fold("edge").uniform((1,), -float(MODULE_COLUMNS), float(number)).to(plane)
        step = keys.fold("step").uniform((1,), -3.0, 3.0).to(plane) * spread
        gain = gain + torch.where(torch.arange(number, device=plane.device) > edge, step, torch.zeros_like(step))
        out = plane * (1 + gain[:, column])
        order = keys.fold("dead").uniform((number,)).argsort(1)[:, :dead].to(plane.device)
        is_dead = torch.zeros(len(plane), number, dtype=torch.bool, device=plane.device).scatter(1, order, True)
        near = (torch.roll(out, width, 2) + torch.roll(out, -width, 2)) / 2
        return torch.where(is_dead[:, column], near if self.interpolated else torch.zeros_like(near), out)

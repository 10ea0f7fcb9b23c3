"""Sentinel-1: speckle, thermal noise, gain, incidence angle, interference, border noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import torch
from scipy.special import gammainccinv, gammaincinv, ndtr
from torch import Tensor

from seawall.corruptions.severity import PhysicalCorruption, check_radar, check_worst, class_mask, per_band, with_image
from seawall.corruptions.spatial import covered_share, power_law_field, smooth_white_noise
from seawall.decibels import from_power, to_power
from seawall.errors import UsageError
from seawall.geo.sensors import RADAR_BANDS, SENSORS
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Unit

GRD_LOOKS = SENSORS["sentinel-1-grd"].looks
Z_RANGE = 6.0
Z_STEPS = 2400


@functools.lru_cache(maxsize=64)
def gamma_quantiles(looks: float) -> Tensor:
    """Return 10 log10 of the quantiles of Gamma(L, 1/L) at `Z_STEPS` + 1 normal scores from -6 to 6."""
    z = np.linspace(-Z_RANGE, Z_RANGE, Z_STEPS + 1)
    low, high = gammaincinv(looks, ndtr(z)), gammainccinv(looks, ndtr(-z))  # each tail from its own side
    return torch.from_numpy(10 * np.log10(np.where(z < 0, low, high) / looks)).float()


def gamma_decibels(scores: Tensor, looks: float) -> Tensor:
    """Return multiplicative speckle of L looks in dB from normal scores: the Gamma quantile at each of them.

    The same scores give smooth, ordered results for all L.
    """
    table = gamma_quantiles(looks).to(scores)
    at = ((scores + Z_RANGE) * (Z_STEPS / (2 * Z_RANGE))).clamp(0, Z_STEPS - 1e-3)
    below = at.long()
    return torch.lerp(table[below], table[below + 1], at - below)


def added_looks(result: float, before: float = GRD_LOOKS) -> float:
    """Return the looks of the speckle that turns an image of `before` looks into one of `result`.

    Variances of products of independent factors of mean 1 multiply: 1 + 1/L' = (1 + 1/L0)(1 + 1/La).

    Example:
        >>> round(added_looks(2.857), 1)
        10.0
    """
    return 1 / ((1 + 1 / result) / (1 + 1 / before) - 1)


@register("corruption", "speckle", traits=("radar", "radiometric"))
@final
@dataclass(frozen=True)
class Speckle(PhysicalCorruption):
    """More speckle: intensity is multiplied by Gamma noise of mean 1, independent per polarization.

    The input is speckled already, so noise of La looks is added with 1 + 1/L' = (1 + 1/4.4)(1 + 1/La). It is correlated
    over neighboring pixels, for a GRD product is oversampled.

    Quantity: resulting equivalent number of looks L', from 4.4 (IW GRD) down to 1.2. Label, seen and valid stay.

    Args:
        image_unit: Unit of the images.
        bands: Polarizations of the channels.
        worst: Quantity at severity 1.
        correlation_px: Standard deviation of the Gaussian correlation; 0 for independent pixels.

    Source: equivalent number of looks 4.4 of Sentinel-1 IW GRD at high resolution.
    """

    bands: tuple[str, ...]
    image_unit: Unit = "sigma0_db"
    worst: float = 1.2
    correlation_px: float = 0.8

    name: ClassVar[str] = "speckle"
    quantity: ClassVar[str] = "equivalent number of looks"
    unit: ClassVar[str] = ""
    start: ClassVar[float] = GRD_LOOKS
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_radar(self.name, self.image_unit, self.bands, RADAR_BANDS)
        if not 0.6 <= self.worst < GRD_LOOKS:
            raise UsageError(f"speckle.worst: expected looks from 0.6 to below {GRD_LOOKS}, got {self.worst}")
        if self.correlation_px < 0:
            raise UsageError(
                f"speckle.correlation_px: expected pixels from 0 up, got {self.correlation_px}; 0 for none"
            )

    def corrupted(self, batch: Batch, looks: float, keys: Keys) -> Batch:
        """Return the batch with more speckle."""
        scores = keys.fold(self.name).normal(batch.image.shape[1:]).to(batch.image)
        if self.correlation_px > 0:
            scores = smooth_white_noise(scores, self.correlation_px)
        return with_image(batch, batch.image + gamma_decibels(scores, added_looks(looks)))


@register("corruption", "thermal-noise", traits=("radar", "radiometric"))
@final
@dataclass(frozen=True)
class ThermalNoise(PhysicalCorruption):
    """Thermal noise is left in the image: I' = I + N g with the noise power N and speckle g of 4.4 looks.

    Left of a joint between two subswaths, which each chip draws, N is `joint_db` higher than right of it.

    Quantity: noise-equivalent sigma0 N, from -32 to -20 dB (specified: at most -22). Label, seen and valid stay.

    Args:
        bands: Polarizations of the channels.
        image_unit: Unit of the images.
        worst: Quantity at severity 1, in dB.
        joint_db: Step at the joint.
    """

    bands: tuple[str, ...]
    image_unit: Unit = "sigma0_db"
    worst: float = -20.0
    joint_db: float = 2.0

    name: ClassVar[str] = "thermal-noise"
    quantity: ClassVar[str] = "noise-equivalent sigma0"
    unit: ClassVar[str] = "dB"
    start: ClassVar[float] = -32.0
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_radar(self.name, self.image_unit, self.bands, RADAR_BANDS)
        check_worst(self.name, self.worst, -32.0, 0.0)

    def corrupted(self, batch: Batch, floor: float, keys: Keys) -> Batch:
        """Return the batch with thermal noise."""
        own, width = keys.fold(self.name), batch.image.shape[3]
        joint = own.fold("joint").uniform((1, 1, 1), 0.0, float(width)).to(batch.image)
        left = torch.arange(width, device=batch.image.device) < joint
        speckle = gamma_decibels(own.normal(batch.image.shape[1:]).to(batch.image), GRD_LOOKS)
        noise = floor + speckle + self.joint_db * left.to(speckle)
        power = to_power(batch.image, self.image_unit) + to_power(noise, self.image_unit)
        return with_image(batch, from_power(power, self.image_unit))


@register("corruption", "radar-gain", traits=("radar", "radiometric"))
@final
@dataclass(frozen=True)
class RadarGain(PhysicalCorruption):
    """The calibration is off by a constant per polarization, up or down.

    Quantity: offset, 0 to 1 dB (specified: 1 dB at 3 sigma). Label, seen and valid stay.

    Args:
        bands: Polarizations of the channels.
        image_unit: Unit of the images.
        worst: Quantity at severity 1, in dB.
    """

    bands: tuple[str, ...]
    image_unit: Unit = "sigma0_db"
    worst: float = 1.0

    name: ClassVar[str] = "radar-gain"
    quantity: ClassVar[str] = "calibration offset"
    unit: ClassVar[str] = "dB"
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_radar(self.name, self.image_unit, self.bands, RADAR_BANDS)
        check_worst(self.name, self.worst, 0.0, 10.0)

    def corrupted(self, batch: Batch, offset: float, keys: Keys) -> Batch:
        """Return the batch with an offset."""
        draw = keys.fold(self.name).uniform((batch.image.shape[1], 1, 1))
        return with_image(batch, batch.image + offset * torch.where(draw < 0.5, -1.0, 1.0).to(batch.image))


WATER_SLOPE = {"VV": -0.53, "HH": -0.53, "VH": 0.0, "HV": 0.0}
"""Change of sigma0 of water with the incidence angle, dB per degree: VV of CMOD5.N at 5 m/s, HH taken as VV."""
LAND_SLOPE = -0.2


@register("corruption", "incidence-angle", traits=("radar", "radiometric"))
@final
@dataclass(frozen=True)
class IncidenceAngle(PhysicalCorruption):
    """The chip is seen at another incidence angle: water and land change by their own slopes.

    Water: -.53 dB per degree in VV, none in cross polarization, which is noise. Land: -.2 dB per degree (vegetation
    -.13, bare ground -.2 to -.3). Pixels without a label count as land.

    Quantity: change of the incidence angle, 0 to 8 degrees (IW: from the middle of the swath to its edges), to a side
    that each chip draws. Label, seen and valid stay.

    Args:
        bands: Polarizations of the channels.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1, in degrees.

    Source: CMOD5.N for water at 5 m/s.
    """

    bands: tuple[str, ...]
    image_unit: Unit = "sigma0_db"
    klass: int = 1
    worst: float = 8.0

    name: ClassVar[str] = "incidence-angle"
    quantity: ClassVar[str] = "change of the incidence angle"
    unit: ClassVar[str] = "degrees"
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        check_radar(self.name, self.image_unit, self.bands, RADAR_BANDS)
        check_worst(self.name, self.worst, 0.0, 16.0)

    def corrupted(self, batch: Batch, angle: float, keys: Keys) -> Batch:
        """Return the batch at another incidence angle."""
        draw = keys.fold(self.name).uniform((1, 1, 1))
        turn = angle * torch.where(draw < 0.5, -1.0, 1.0).to(batch.image)
        water = per_band(self.name, [WATER_SLOPE[band] for band in self.bands], batch.image)
        slope = torch.where(class_mask(batch, self.klass)[:, None], water, torch.full_like(water, LAND_SLOPE))
        return with_image(batch, batch.image + slope * turn)


CROSS_POLARIZED = ("VH", "HV")


@register("corruption", "interference", traits=("radar", "radiometric"))
@final
@dataclass(frozen=True)
class RadioInterference(PhysicalCorruption):
    """Radio interference: bright stripes across the whole range, clearest in cross polarization.

    I' = I + P on `stripes` stripes of 1 to 20 lines; like-polarized channels get 6 dB less.

    Quantity: power P of the stripes, from -22 to -8 dB. Label, seen and valid stay.

    Args:
        bands: Polarizations of the channels.
        image_unit: Unit of the images.
        worst: Quantity at severity 1, in dB.
        stripes: Number of stripes in a chip.

    Source: products before the mitigation of 23 March 2022 (processor 3.40).
    """

    bands: tuple[str, ...]
    image_unit: Unit = "sigma0_db"
    worst: float = -8.0
    stripes: int = 3

    name: ClassVar[str] = "interference"
    quantity: ClassVar[str] = "power of the stripes"
    unit: ClassVar[str] = "dB"
    start: ClassVar[float] = -22.0
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_radar(self.name, self.image_unit, self.bands, RADAR_BANDS)
        check_worst(self.name, self.worst, -22.0, 10.0)
        if self.stripes < 1:
            raise UsageError(f"interference.stripes: expected at least 1, got {self.stripes}; such as 3")

    def corrupted(self, batch: Batch, power: float, keys: Keys) -> Batch:
        """Return the batch with stripes."""
        image, own = batch.image, keys.fold(self.name)
        height = image.shape[2]
        start = own.fold("start").uniform((self.stripes, 1), 0.0, float(height)).to(image)
        length = own.fold("length").uniform((self.stripes, 1), 1.0, 20.0).to(image)
        line = torch.arange(height, dtype=image.dtype, device=image.device)
        count = ((line + 1 > start) & (line + 1 <= start + length)).sum(1).to(image)[:, None, :, None]
        per_channel = per_band(self.name, [power - (0 if b in CROSS_POLARIZED else 6) for b in self.bands], image)
        total = to_power(image, self.image_unit) + count * to_power(per_channel, self.image_unit)
        return with_image(batch, torch.where(count > 0, from_power(total, self.image_unit), image))


@register("corruption", "border-noise", traits=("radar",))
@final
@dataclass(frozen=True)
class BorderNoise(PhysicalCorruption):
    """The edge of the swath holds low values that are not nodata: the chip seems to go on.

    Values are noise around `floor_db`; the edge is ragged and not parallel to the chip.

    Quantity: share of the chip, 0 to 0.2. There seen stays, which is the trap, and valid becomes false. Label stays.

    Args:
        bands: Polarizations of the channels.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        floor_db: Mean of the values.

    Source: Sentinel-1 products before processor 2.90 (March 2018).
    """

    bands: tuple[str, ...]
    image_unit: Unit = "sigma0_db"
    worst: float = 0.2
    floor_db: float = -35.0

    name: ClassVar[str] = "border-noise"
    quantity: ClassVar[str] = "share with border noise"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        check_radar(self.name, self.image_unit, self.bands, RADAR_BANDS)
        check_worst(self.name, self.worst, 0.0, 1.0)

    def corrupted(self, batch: Batch, share: float, keys: Keys) -> Batch:
        """Return the batch with border noise."""
        image, own = batch.image, keys.fold(self.name)
        height, width = image.shape[2:]
        cols = torch.arange(width, dtype=image.dtype, device=image.device)
        rows = torch.arange(height, dtype=image.dtype, device=image.device)[:, None]
        ragged = power_law_field(own, image.shape[2:], 100.0, image, 2.0)
        tilt = own.fold("tilt").uniform((1, 1), -0.1, 0.1).to(image)
        from_edge = cols + tilt * rows + 2.0 * ragged
        gone = from_edge > covered_share(from_edge, share)
        values = self.floor_db + 3.0 * own.fold("values").normal(image.shape[1:]).to(image)
        after = with_image(batch, torch.where(gone[:, None], values, image))
        return replace(after, valid=batch.valid & ~gone)

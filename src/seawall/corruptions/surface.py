"""The ground and its light: glint, low sun on slopes, turbid and green water, wet soil, snow and ice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from seawall.corruptions.band_tables import OPTICS
from seawall.corruptions.severity import (
    PhysicalCorruption,
    check_optical,
    check_sun,
    check_worst,
    class_mask,
    per_band,
    with_image,
)
from seawall.corruptions.spatial import covered_share, power_law_field
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Unit


def mixed_share(mask: Tensor, like: Tensor) -> Tensor:
    """Return the share (B, 1, H, W) of a class in the 3 x 3 pixels around each of its pixels, 0 elsewhere.

    A pixel at the border of a class is mixed, and takes part of a change of that class.
    """
    plane = mask[:, None].to(like.dtype)
    return plane * functional.avg_pool2d(plane, 3, stride=1, padding=1, count_include_pad=False)


def _expand(spectrum: Mapping[str, float], ids: tuple[str, ...], rest: float) -> list[float]:
    return [spectrum.get(band, rest) for band in ids]


GLINT_FRESNEL = MappingProxyType({"B11": 0.90, "B12": 0.81, "B10": 0.0})
"""Reflectance of the water surface relative to the visible; water vapor hides the surface in B10."""


@register("corruption", "glint", paper="doi:10.1364/JOSA.44.000838", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class SunGlint(PhysicalCorruption):
    """The sun is reflected by the waves: water gets nearly the same brightness in all bands.

    rho' = rho + q k (1 + texture), with k = 1 up to the near infrared, .90 in B11 and .81 in B12 (Fresnel), on valid
    water pixels only. Cox-Munk slopes give q = .06 to .08 at nadir for a sun at 20 degrees from the zenith, and below
    .015 at 40 degrees; views towards the sun give more.

    Quantity: glint reflectance, 0 to 0.15. Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1.
        texture: Relative standard deviation, in shapes of hundreds of meters.

    Source: Cox and Munk 1954, J. Opt. Soc. Am. 44, 838.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    klass: int = 1
    worst: float = 0.15
    texture: float = 0.15

    name: ClassVar[str] = "glint"
    quantity: ClassVar[str] = "reflectance of the glint"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "light"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 1.0)

    def corrupted(self, batch: Batch, glint: float, keys: Keys) -> Batch:
        """Return the batch with glint on its water."""
        image = batch.image
        field = power_law_field(keys.fold(self.name), image.shape[2:], 400.0 / self.gsd_m, image)[:, None]
        fresnel = per_band(
            "glint", _expand(GLINT_FRESNEL, check_optical(self.name, self.image_unit, self.bands), 1.0), image
        )
        added = glint * (1 + self.texture * field).clamp_min(0) * fresnel
        return with_image(batch, image + added * mixed_share(class_mask(batch, self.klass), image))


TERRAIN_SUN_DEG = 40.0


@register("corruption", "low-sun", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class LowSun(PhysicalCorruption):
    """The sun stands lower: slopes away from it turn dark, slopes towards it bright.

    rho_T = rho (max(cos i, 0) + C) / (cos z + C), cos i = cos z cos s + sin z sin s cos(A - aspect), with the zenith
    angle z and azimuth A of the sun and slope s. The chip is taken as made at 40 degrees, so that its own shade is
    replaced: rho' = rho F(z) / F(40). Slopes are those of a random terrain, for a chip has no elevation; valid water is
    flat. C grows with the diffuse share of a band, from .1 (short-wave infrared) to .6 (B01). Flat ground keeps its
    reflectance. Shadows that slopes cast on others are left out.

    Quantity: zenith angle of the sun, from 40 to 75 degrees. Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1.
        slope_deg: Root mean square slope of the terrain.
        sun_azimuth_deg: Direction to the sun, clockwise from north (up).
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    klass: int = 1
    worst: float = 75.0
    slope_deg: float = 12.0
    sun_azimuth_deg: float = 150.0

    name: ClassVar[str] = "low-sun"
    quantity: ClassVar[str] = "zenith angle of the sun"
    unit: ClassVar[str] = "degrees"
    start: ClassVar[float] = TERRAIN_SUN_DEG
    stage: ClassVar[Stage] = "light"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands, OPTICS)
        check_sun(self.name, self.worst)
        check_worst(self.name, self.worst, TERRAIN_SUN_DEG, 80.0)
        if not 0.0 <= self.slope_deg <= 45.0:
            raise UsageError(f"low-sun.slope_deg: expected degrees from 0 to 45, got {self.slope_deg}; such as 12")

    def corrupted(self, batch: Batch, zenith: float, keys: Keys) -> Batch:
        """Return the batch under a lower sun."""
        ids = check_optical(self.name, self.image_unit, self.bands, OPTICS)
        floor = per_band(self.name, [0.1 + 0.5 * OPTICS[b].diffuse / OPTICS["B01"].diffuse for b in ids], batch.image)
        east, north = self._slopes(batch, keys)
        new, old = (self._light(east, north, angle, floor) for angle in (zenith, TERRAIN_SUN_DEG))
        return with_image(batch, batch.image * new / old)

    def _light(self, east: Tensor, north: Tensor, zenith_deg: float, floor: Tensor) -> Tensor:
        """Return the light of sloped ground over that of flat ground."""
        zenith, azimuth = math.radians(zenith_deg), math.radians(self.sun_azimuth_deg)
        # the normal of z = east x + north y is (-east, -north, 1), so cos i needs no angle of slope or aspect
        towards = -(east * math.sin(azimuth) + north * math.cos(azimuth))
        cos_i = (math.cos(zenith) + math.sin(zenith) * towards) / (1 + east.square() + north.square()).sqrt()
        return (cos_i.clamp_min(0)[:, None] + floor) / (math.cos(zenith) + floor)

    def _slopes(self, batch: Batch, keys: Keys) -> tuple[Tensor, Tensor]:
        """Return the rise (B, H, W) per meter to the east and to the north."""
        height = power_law_field(keys.fold(self.name), batch.image.shape[2:], 3000.0 / self.gsd_m, batch.image, 4.5)
        east = (torch.roll(height, -1, 2) - torch.roll(height, 1, 2)) / 2
        north = (torch.roll(height, 1, 1) - torch.roll(height, -1, 1)) / 2
        rms = (east.square() + north.square()).mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
        scale = math.tan(math.radians(self.slope_deg)) / rms * ~class_mask(batch, self.klass)
        return east * scale, north * scale


# A in g/m3 and C of rho = S / (A + S / C), per band of Sentinel-2.
NECHAD = MappingProxyType(
    {
        "B03": (104.2, 0.1449), "B04": (355.9, 0.1728), "B05": (485.0, 0.188), "B06": (1664.7, 0.1973),
        "B07": (1788.0, 0.2054), "B08": (2268.0, 0.2101), "B8A": (2972.0, 0.2115),
    }
)  # fmt: skip
NECHAD_SHARES = MappingProxyType(
    {"B01": ("B03", 0.55), "B02": ("B03", 0.7), "B09": ("B8A", 0.8), "B11": ("B8A", 0.1), "B12": ("B8A", 0.05)}
)
"""Bands without a fit: a share of one that has one. B02 is published; the others are assumptions of this package."""


def sediment_reflectance(band: str, load: float) -> float:
    """Return the reflectance of water with suspended sediment, S / (A + S / C), for a load S in g/m3.

    Example:
        >>> round(sediment_reflectance("B03", 50.0), 3), round(sediment_reflectance("B08", 300.0), 3)
        (0.111, 0.081)
    """
    if band in NECHAD_SHARES:
        other, share = NECHAD_SHARES[band]
        return share * sediment_reflectance(other, load)
    if band not in NECHAD:
        return 0.0
    slope, ceiling = NECHAD[band]
    return load / (slope + load / ceiling)


@register("corruption", "turbid-water", paper="doi:10.1016/j.rse.2009.11.022", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class TurbidWater(PhysicalCorruption):
    """Suspended sediment brightens the water, red and near infrared last.

    rho' = rho + S / (A + S / C) on valid water pixels, less at its border, where pixels are mixed.

    Quantity: sediment load S, 0 to 1000 g/m3, extrapolated above about 100. Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1.

    Source: Nechad, Ruddick and Park 2010, Remote Sensing of Environment 114, 854, with coefficients of ACOLITE.
    """

    bands: tuple[str, ...]
    image_unit: Unit = "reflectance"
    klass: int = 1
    worst: float = 1000.0

    name: ClassVar[str] = "turbid-water"
    quantity: ClassVar[str] = "suspended sediment"
    unit: ClassVar[str] = "g/m3"
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 5000.0)

    def corrupted(self, batch: Batch, load: float, keys: Keys) -> Batch:
        """Return the batch with turbid water."""
        ids = check_optical(self.name, self.image_unit, self.bands)
        added = per_band(self.name, [sediment_reflectance(b, load) for b in ids], batch.image)
        return with_image(batch, batch.image + added * mixed_share(class_mask(batch, self.klass), batch.image))


BLOOM = MappingProxyType(
    {
        "B01": 0.010, "B02": 0.012, "B03": 0.035, "B04": 0.020, "B05": 0.040, "B06": 0.020, "B07": 0.015, "B08": 0.010,
        "B8A": 0.010, "B09": 0.008,
    }
)  # fmt: skip
"""Reflectance of water with 50 mg/m3 of chlorophyll; 0 in the other bands. B01, B06, B07, B8A and B09 are interpolated."""


@register("corruption", "green-water", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class GreenWater(PhysicalCorruption):
    """Algae color the water: its spectrum is mixed with that of a bloom.

    rho' = (1 - a) rho + a rho_bloom with a = chlorophyll / 50 mg/m3 on valid water pixels, less at its border.

    Quantity: chlorophyll, 0 to 50 mg/m3. Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1.
    """

    bands: tuple[str, ...]
    image_unit: Unit = "reflectance"
    klass: int = 1
    worst: float = 50.0

    name: ClassVar[str] = "green-water"
    quantity: ClassVar[str] = "chlorophyll"
    unit: ClassVar[str] = "mg/m3"
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 50.0)

    def corrupted(self, batch: Batch, level: float, keys: Keys) -> Batch:
        """Return the batch with green water."""
        share = level / 50.0
        ids = check_optical(self.name, self.image_unit, self.bands)
        bloom = per_band(self.name, _expand(BLOOM, ids, 0.0), batch.image)
        mixed = share * mixed_share(class_mask(batch, self.klass), batch.image)
        return with_image(batch, batch.image + mixed * (bloom - batch.image))


WET_FACTOR = MappingProxyType({"B11": 0.35, "B12": 0.35})
"""Reflectance of saturated over that of dry soil; .55 in the other bands."""


@register("corruption", "wet-soil", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class WetSoil(PhysicalCorruption):
    """Rain darkens the land, short-wave infrared most: rho' = rho (1 - q (1 - k)).

    k is .55 up to the near infrared and .35 in B11 and B12 at saturation (published: .5 to .6 and .3 to .4). All valid
    pixels that are no water are taken as soil.

    Quantity: water content of the soil as a share of saturation, 0 to 1. Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1.
    """

    bands: tuple[str, ...]
    image_unit: Unit = "reflectance"
    klass: int = 1
    worst: float = 1.0

    name: ClassVar[str] = "wet-soil"
    quantity: ClassVar[str] = "soil moisture as a share of saturation"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 1.0)

    def corrupted(self, batch: Batch, moisture: float, keys: Keys) -> Batch:
        """Return the batch with wet soil."""
        ids = check_optical(self.name, self.image_unit, self.bands)
        factor = per_band(self.name, _expand(WET_FACTOR, ids, 0.55), batch.image)
        land = (batch.valid & (batch.label != self.klass))[:, None]
        return with_image(batch, torch.where(land, batch.image * (1 - moisture * (1 - factor)), batch.image))


FRESH_SNOW = MappingProxyType({"B05": 0.90, "B06": 0.88, "B07": 0.87, "B08": 0.85, "B8A": 0.84, "B09": 0.75, "B10": 0.02, "B11": 0.10, "B12": 0.07})  # fmt: skip
"""Reflectance of fresh snow; .92 in the visible bands. B05 to B07, B09 and B10 are interpolated."""
OLD_ICE = MappingProxyType({"B05": 0.56, "B06": 0.52, "B07": 0.48, "B08": 0.45, "B8A": 0.43, "B09": 0.35, "B10": 0.01, "B11": 0.04, "B12": 0.03})  # fmt: skip
"""Reflectance of old snow or snow-covered ice; .6 in the visible bands."""


@register("corruption", "snow", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class Snow(PhysicalCorruption):
    """Fresh snow covers part of the land: rho' = (1 - a) rho + a rho_snow in patches with soft borders.

    Quantity: share of the ground with snow, 0 to 0.9, of which valid land is changed. The label stays land; seen and
    valid stay.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    klass: int = 1
    worst: float = 0.9

    name: ClassVar[str] = "snow"
    quantity: ClassVar[str] = "share of the ground with snow"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 1.0)

    def corrupted(self, batch: Batch, share: float, keys: Keys) -> Batch:
        """Return the batch with snow."""
        cover = snow_cover(keys.fold(self.name), batch.image, share, 1000.0 / self.gsd_m)
        ids = check_optical(self.name, self.image_unit, self.bands)
        spectrum = per_band(self.name, _expand(FRESH_SNOW, ids, 0.92), batch.image)
        mixed = (cover * (batch.valid & (batch.label != self.klass)))[:, None]
        return with_image(batch, batch.image + mixed * (spectrum - batch.image))


@register("corruption", "ice", traits=("optical",))
@final
@dataclass(frozen=True)
class WaterIce(PhysicalCorruption):
    """Snow-covered ice lies on part of the water: rho' = (1 - a) rho + a rho_ice in patches with soft borders.

    Quantity: share of the ground with ice, 0 to 0.9, of which valid water is changed. Whether ice is water is a matter
    of the label's definition: under at least half ice, valid becomes false. Label and seen stay.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    klass: int = 1
    worst: float = 0.9

    name: ClassVar[str] = "ice"
    quantity: ClassVar[str] = "share of the water with ice"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 1.0)

    def corrupted(self, batch: Batch, share: float, keys: Keys) -> Batch:
        """Return the batch with ice."""
        cover = snow_cover(keys.fold(self.name), batch.image, share, 1000.0 / self.gsd_m) * class_mask(
            batch, self.klass
        )
        ids = check_optical(self.name, self.image_unit, self.bands)
        spectrum = per_band(self.name, _expand(OLD_ICE, ids, 0.6), batch.image)
        after = with_image(batch, batch.image + cover[:, None] * (spectrum - batch.image))
        return replace(after, valid=batch.valid & (cover < 0.5))


def snow_cover(keys: Keys, image: Tensor, share: float, scale_px: float) -> Tensor:
    """Return a cover (B, H, W) from 0 to 1 that is above 0 on this share of each chip and grows with it."""
    field = power_law_field(keys, image.shape[2:], scale_px, image)
    return ((field - covered_share(field, share)) / 0.2).clamp(0, 1)

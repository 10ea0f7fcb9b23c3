"""Haze, thin cirrus, and clouds with their shadows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from seawall.corruptions.band_tables import (
    OPTICS,
    TABLE_ANGSTROM,
    TABLE_AOD,
    TABLE_SUN_DEG,
    aerosol_depth,
    aerosol_path,
    clear_transmittance,
    rayleigh_path,
)
from seawall.corruptions.severity import (
    PhysicalCorruption,
    check_optical,
    check_sun,
    check_worst,
    per_band,
    with_image,
)
from seawall.corruptions.spatial import covered_share, power_law_field
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Unit

Product = Literal["surface", "toa"]
"""Reflectance after an atmospheric correction that missed the perturbation, or at the top of the atmosphere."""

SMALLEST_HAZE_M = 4000.0


@register("corruption", "haze", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class Haze(PhysicalCorruption):
    """Aerosol is added: every band gets path reflectance and loses contrast, blue bands most.

    rho' = (rho - p) T + p + dp, with the path reflectance p of the clear atmosphere, dp proportional to the added
    aerosol optical depth and T exponential in it. For surface reflectance the change is carried through the atmospheric
    correction of a clear day, which does not know of the haze: rho' = rho T + dp / T0.

    Quantity: aerosol optical depth at 550 nm that is added, on average over the chip, 0 to 0.8 (dense smoke reaches 2).
    Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        product: "surface" or "toa" reflectance.
        sun_zenith_deg: Zenith angle of the sun.
        angstrom: Exponent of the wavelength dependence: dust .2 to .6, continental 1.3, smoke 1.8.
        texture: Relative standard deviation over the chip, in shapes of kilometers.

    Source: discrete-ordinate calculations at 40 degrees (`band_tables`); other suns and exponents by the ratio of the
    single-scattering closed form.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    worst: float = 0.8
    product: Product = "surface"
    sun_zenith_deg: float = 40.0
    angstrom: float = TABLE_ANGSTROM
    texture: float = 0.3

    name: ClassVar[str] = "haze"
    quantity: ClassVar[str] = "added aerosol optical depth at 550 nm"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "atmosphere"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands, OPTICS)
        check_worst(self.name, self.worst, 0.0, 4.0)
        check_sun(self.name, self.sun_zenith_deg)

    def corrupted(self, batch: Batch, depth: float, keys: Keys) -> Batch:
        """Return the batch through haze."""
        image = batch.image
        field = power_law_field(keys.fold(self.name), image.shape[2:], SMALLEST_HAZE_M / self.gsd_m, image)
        aod = depth * (1 + self.texture * field[:, None]).clamp_min(0)
        path, slope, ratio = (per_band(self.name, values, image) for values in zip(*self.coefficients(), strict=True))
        return with_image(batch, (image - path) * torch.exp(ratio * aod) + path + slope * aod)

    def coefficients(self) -> list[tuple[float, float, float]]:
        """Return per band: clear path reflectance, added path and logarithm of the transmittance per optical depth."""
        airmass, table_airmass = (1 + 1 / math.cos(math.radians(d)) for d in (self.sun_zenith_deg, TABLE_SUN_DEG))
        out = []
        for band in check_optical(self.name, self.image_unit, self.bands, OPTICS):
            optics = OPTICS[band]
            depth, table_depth = (aerosol_depth(band, TABLE_AOD, a) for a in (self.angstrom, TABLE_ANGSTROM))
            path_ratio = aerosol_path(depth, self.sun_zenith_deg) / aerosol_path(table_depth, TABLE_SUN_DEG)
            slope = optics.haze_path / TABLE_AOD * path_ratio
            ratio = math.log(optics.haze_transmittance) / TABLE_AOD * depth / table_depth * airmass / table_airmass
            if self.product == "surface":
                out.append((0.0, slope / clear_transmittance(band, self.sun_zenith_deg), ratio))
            else:
                out.append((rayleigh_path(band, self.sun_zenith_deg), slope, ratio))
        return out


CIRRUS_BRIGHTNESS = {"B11": 0.7, "B12": 0.5}
"""Reflectance of a cirrus relative to that in the visible; 1 in the other bands."""


@register("corruption", "cirrus", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class Cirrus(PhysicalCorruption):
    """A thin cirrus lies over the scene.

    rho' = (1 - c)^2 rho + c k, with k = 1 up to the near infrared, .7 in B11 and .5 in B12.

    Quantity: mean reflectance c of the cirrus in B10, 0 to 0.06 (Sen2Cor calls .012 thin and .035 thick).
    Label, seen and valid stay. An atmospheric correction does not remove it, so both products get the same.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        texture: Relative standard deviation over the chip, in shapes of kilometers.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    worst: float = 0.06
    texture: float = 0.4

    name: ClassVar[str] = "cirrus"
    quantity: ClassVar[str] = "reflectance of the cirrus in B10"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "atmosphere"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_worst(self.name, self.worst, 0.0, 0.2)

    def corrupted(self, batch: Batch, mean: float, keys: Keys) -> Batch:
        """Return the batch through a cirrus."""
        image = batch.image
        field = power_law_field(keys.fold(self.name), image.shape[2:], SMALLEST_HAZE_M / self.gsd_m, image)
        c = mean * (1 + self.texture * field[:, None]).clamp(0, 3)
        ids = check_optical(self.name, self.image_unit, self.bands)
        bright = per_band(self.name, [CIRRUS_BRIGHTNESS.get(band, 1.0) for band in ids], image)
        return with_image(batch, (1 - c).square() * image + c * bright)


CLOUD_RANGE = {"B10": (0.02, 0.10), "B11": (0.4, 0.6), "B12": (0.3, 0.4)}
"""Darkest and brightest thick cloud per band; .5 to .9 in the others."""


@register("corruption", "clouds", smoke={"gsd_m": 30.0}, traits=("optical",))
@final
@dataclass(frozen=True)
class CloudCover(PhysicalCorruption):
    """Cumulus clouds cover part of the scene and cast shadows away from the sun.

    Cloud: rho' = (1 - a) rho + a rho_cloud with the opacity a. Shadow: rho' = (rho - p)(1 - a (1 - D)) + p with the path
    reflectance p and the diffuse share D, at the cloud's place moved by the height times the tangent of the sun's
    zenith angle. A cloud outside the chip casts its shadow into it.

    Quantity: share of the chip under cloud, 0 to 0.6. Where a cloud lets less than 30 % of the light through, the label
    no longer counts: valid becomes false, seen stays. Shadows change no mask.

    Args:
        bands: Bands of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        product: "surface" or "toa" reflectance.
        sun_zenith_deg: Zenith angle of the sun.
        sun_azimuth_deg: Direction to the sun, clockwise from north (up).
        height_m: Height of the clouds above the ground.
        size_m: Size of the largest clouds.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    worst: float = 0.6
    product: Product = "surface"
    sun_zenith_deg: float = 40.0
    sun_azimuth_deg: float = 150.0
    height_m: float = 1000.0
    size_m: float = 2000.0

    name: ClassVar[str] = "clouds"
    quantity: ClassVar[str] = "share under cloud"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "atmosphere"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands, OPTICS)
        check_worst(self.name, self.worst, 0.0, 1.0)
        check_sun(self.name, self.sun_zenith_deg)

    def shadow_step(self) -> tuple[int, int]:
        """Return how far a shadow lies from its cloud, in pixels (down, right)."""
        length = self.height_m * math.tan(math.radians(self.sun_zenith_deg)) / self.gsd_m
        azimuth = math.radians(self.sun_azimuth_deg)
        return round(length * math.cos(azimuth)), round(-length * math.sin(azimuth))

    def corrupted(self, batch: Batch, share: float, keys: Keys) -> Batch:
        """Return the batch under clouds."""
        image = batch.image
        cloud, shadow = self._opacity(keys.fold(self.name), share, image)
        ids = check_optical(self.name, self.image_unit, self.bands, OPTICS)
        path = per_band(self.name, [0.0 if self.product == "surface" else rayleigh_path(b, self.sun_zenith_deg) for b in ids], image)  # fmt: skip
        diffuse = per_band(self.name, [OPTICS[b].diffuse for b in ids], image)
        low, high = (per_band(self.name, [CLOUD_RANGE.get(b, (0.5, 0.9))[i] for b in ids], image) for i in (0, 1))
        # thick clouds are bright; brightness belongs to the opacity so that it grows with the cover
        bright = low + (high - low) * cloud[:, None]
        shaded = (image - path) * (1 - shadow[:, None] * (1 - diffuse)) + path
        after = with_image(batch, shaded * (1 - cloud[:, None]) + bright * cloud[:, None])
        return replace(after, valid=batch.valid & (1 - cloud >= 0.3))

    def _opacity(self, keys: Keys, share: float, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the opacity (B, H, W) of clouds and of what stands between the sun and each pixel."""
        height, width = image.shape[2:]
        down, right = self.shadow_step()
        field = power_law_field(keys, (height + abs(down), width + abs(right)), self.size_m / self.gsd_m, image, 3.5)
        row, col = max(down, 0), max(right, 0)
        above = field[:, row : row + height, col : col + width]
        towards_sun = field[:, row - down : row - down + height, col - right : col - right + width]
        edge = covered_share(above, share)
        opaque_after = 0.35  # of the field's standard deviation: the soft edge of a cloud
        return ((above - edge) / opaque_after).clamp(0, 1), ((towards_sun - edge) / opaque_after).clamp(0, 1)

"""What the ground does to the radar: wind on water, wet snow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import cv2
import numpy as np
import torch
from torch import Tensor

from seawall.corruptions.severity import PhysicalCorruption, check_radar, check_worst, class_mask, with_image
from seawall.corruptions.surface import snow_cover
from seawall.decibels import from_power, to_power
from seawall.errors import UsageError
from seawall.geo.sensors import RADAR_BANDS
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Unit

WIND_M_S = (2.0, 3.0, 5.0, 7.0, 10.0, 15.0)
WIND_ANGLES_DEG = (31.0, 38.5, 46.0)
# sigma0 of VV in dB, upwind and crosswind, at these winds: CMOD5.N
UPWIND = ((-19.0, -16.7, -13.7, -11.6, -9.1, -6.1), (-23.3, -20.9, -17.9, -15.5, -12.4, -9.1), (-25.8, -23.9, -20.9, -18.1, -14.7, -11.3))  # fmt: skip
CROSSWIND = ((-20.9, -18.6, -15.8, -14.2, -12.6, -10.5), (-25.8, -23.5, -20.9, -19.1, -17.2, -14.2), (-28.7, -27.0, -24.5, -22.7, -20.5, -16.7))  # fmt: skip


def wind_backscatter(polarization: str, speed: float, incidence_deg: float, upwind: float) -> float:
    """Return sigma0 of open water in dB.

    Args:
        polarization: "VV" or "VH".
        speed: Wind in m/s, above 0.
        incidence_deg: Incidence angle, 31 to 46 degrees; without effect in VH.
        upwind: 1 looking into the wind, 0 across it; without effect in VH.

    Example:
        >>> wind_backscatter("VV", 5.0, 38.5, 1.0), round(wind_backscatter("VH", 10.0, 38.5, 1.0), 2)
        (-17.9, -29.7)
    """
    if polarization == "VH":
        return 0.59 * speed - 35.60 if speed <= 17.6 else 0.218 * speed - 29.07
    values = []
    for table in (CROSSWIND, UPWIND):
        at_speed = [_at_speed(row, speed) for row in table]
        values.append(float(np.interp(incidence_deg, WIND_ANGLES_DEG, at_speed)))
    return values[0] + upwind * (values[1] - values[0])


def _at_speed(row: tuple[float, ...], speed: float) -> float:
    """Interpolate in the logarithm of the speed; below 2 m/s the power law of the first two speeds goes on."""
    logs = np.log(WIND_M_S)
    if speed >= WIND_M_S[0]:
        return float(np.interp(math.log(speed), logs, row))
    return float(row[0] + (row[1] - row[0]) / (logs[1] - logs[0]) * (math.log(max(speed, 1e-3)) - logs[0]))


@register("corruption", "wind", paper="doi:10.5194/amt-7-437-2014", traits=("radar", "radiometric"))
@final
@dataclass(frozen=True)
class WindOnWater(PhysicalCorruption):
    """Wind roughens the water, which turns bright in VV and stays dark in VH.

    I' = I + sigma0(U) on valid water pixels, growing from the shore over the fetch. VV is CMOD5.N, between up- and
    crosswind as each chip draws; VH is .59 U - 35.6 dB whatever the angle and direction.

    Quantity: wind speed U at 10 m, 0 to 12 m/s. Label, seen and valid stay.

    Args:
        bands: Polarizations of the channels: VV and VH, for HH has no such model here.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1, in m/s.
        incidence_deg: Incidence angle, 31 to 46 degrees.
        fetch_m: Distance from the shore at which the waves are full-grown.

    Source: CMOD5.N for VV; Zadelhoff et al. 2014, doi 10.5194/amt-7-437-2014, for VH.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "sigma0_db"
    klass: int = 1
    worst: float = 12.0
    incidence_deg: float = 38.5
    fetch_m: float = 300.0

    name: ClassVar[str] = "wind"
    quantity: ClassVar[str] = "wind speed"
    unit: ClassVar[str] = "m/s"
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        check_radar(self.name, self.image_unit, self.bands, ("VV", "VH"))
        check_worst(self.name, self.worst, 0.0, 15.0)
        if not WIND_ANGLES_DEG[0] <= self.incidence_deg <= WIND_ANGLES_DEG[-1]:
            raise UsageError(
                f"wind.incidence_deg: expected degrees from 31 to 46, got {self.incidence_deg}; such as 38.5"
            )

    def corrupted(self, batch: Batch, speed: float, keys: Keys) -> Batch:
        """Return the batch with wind on its water."""
        upwind = keys.fold(self.name).uniform((1,))[:, 0].tolist()
        added = torch.tensor(
            [[wind_backscatter(b, speed, self.incidence_deg, share) for b in self.bands] for share in upwind],
            dtype=batch.image.dtype,
            device=batch.image.device,
        )[:, :, None, None]
        water = class_mask(batch, self.klass)
        grown = (shore_distance(water) * self.gsd_m / self.fetch_m).clamp(0, 1)[:, None].to(batch.image)
        power = to_power(batch.image, self.image_unit) + grown * to_power(added, self.image_unit)
        return with_image(batch, torch.where(water[:, None], from_power(power, self.image_unit), batch.image))


def shore_distance(mask: Tensor) -> Tensor:
    """Return the distance (B, H, W) of each pixel of a mask to the nearest one outside it, in pixels."""
    planes = [cv2.distanceTransform(one.astype(np.uint8), cv2.DIST_L2, 5) for one in mask.cpu().numpy()]
    # without a pixel outside, OpenCV returns its largest number
    return torch.from_numpy(np.stack(planes)).clamp_max(1e6).to(mask.device)


@register("corruption", "wet-snow", traits=("radar", "radiometric"))
@final
@dataclass(frozen=True)
class WetSnow(PhysicalCorruption):
    """Wet snow absorbs the radar: patches of the land turn as dark as water.

    Quantity: loss in the patches, 0 to 10 dB (the usual threshold for wet snow is 3 dB; up to 10 in the open, 5 under
    trees). Label, seen and valid stay.

    Args:
        bands: Polarizations of the channels.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        klass: Index of the water class.
        worst: Quantity at severity 1, in dB.
        cover: Share of the ground with snow.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "sigma0_db"
    klass: int = 1
    worst: float = 10.0
    cover: float = 0.6

    name: ClassVar[str] = "wet-snow"
    quantity: ClassVar[str] = "loss in wet snow"
    unit: ClassVar[str] = "dB"
    stage: ClassVar[Stage] = "scene"

    def __post_init__(self) -> None:
        check_radar(self.name, self.image_unit, self.bands, RADAR_BANDS)
        check_worst(self.name, self.worst, 0.0, 20.0)
        if not 0.0 < self.cover <= 1.0:
            raise UsageError(f"wet-snow.cover: expected a share above 0 and at most 1, got {self.cover}; such as 0.6")

    def corrupted(self, batch: Batch, loss: float, keys: Keys) -> Batch:
        """Return the batch with wet snow."""
        snow = snow_cover(keys.fold(self.name), batch.image, self.cover, 1000.0 / self.gsd_m)
        land = batch.valid & (batch.label != self.klass)
        return with_image(batch, batch.image - loss * (snow * land)[:, None])

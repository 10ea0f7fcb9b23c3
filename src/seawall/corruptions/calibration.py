"""Mistakes of numbers: gain and offset, a forgotten offset, quantization, compression, saturation, a lost band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seawall.corruptions.band_tables import SENTINEL_2
from seawall.corruptions.severity import PhysicalCorruption, check_optical, check_sun, check_worst, per_band, with_image
from seawall.corruptions.spatial import fill_unseen, seen_mean
from seawall.errors import UsageError
from seawall.geo.sensors import SENSORS
from seawall.geo.unit_detection import OFFSET_DN
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import FILL, Batch, Stage, Unit

S2_SCALE = SENSORS["sentinel-2-l1c"].scale


@register("corruption", "gain", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class GainError(PhysicalCorruption):
    """The calibration is wrong: rho' = rho (1 + a + b) with one error a of all bands and one b per band.

    a is +q or -q, drawn per chip; b ~ N(0, q / 5) per band.

    Quantity: absolute calibration error q, 0 to 5 % (specified: 5 %, goal 3 %). Label, seen and valid stay.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1, in percent.
        between_bands: Standard deviation of b as a share of q.
    """

    image_unit: Unit = "reflectance"
    worst: float = 5.0
    between_bands: float = 0.2

    name: ClassVar[str] = "gain"
    quantity: ClassVar[str] = "calibration error"
    unit: ClassVar[str] = "%"
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, ("B02",))
        check_worst(self.name, self.worst, 0.0, 50.0)

    def corrupted(self, batch: Batch, level: float, keys: Keys) -> Batch:
        """Return the batch with wrong gains."""
        error = level / 100
        sign = keys.fold(self.name).uniform((1, 1, 1)).sub(0.5).sign().to(batch.image)
        own = keys.fold(self.name, "band").normal((batch.image.shape[1], 1, 1)).to(batch.image)
        return with_image(batch, batch.image * (1 + error * (sign + self.between_bands * own)))


@register("corruption", "offset", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class OffsetError(PhysicalCorruption):
    """Every band has an additive error of its own: rho' = rho + b with b ~ N(0, q^2).

    Quantity: standard deviation q in reflectance, 0 to 0.01: twice the additive term of the usual requirement on
    surface reflectance, .05 rho + .005. Label, seen and valid stay.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    image_unit: Unit = "reflectance"
    worst: float = 0.01

    name: ClassVar[str] = "offset"
    quantity: ClassVar[str] = "standard deviation of the offset of bands"
    unit: ClassVar[str] = "reflectance"
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, ("B02",))
        check_worst(self.name, self.worst, 0.0, 0.5)

    def corrupted(self, batch: Batch, spread: float, keys: Keys) -> Batch:
        """Return the batch with an offset per band."""
        own = keys.fold(self.name).normal((batch.image.shape[1], 1, 1)).to(batch.image)
        return with_image(batch, batch.image + spread * own)


@register("corruption", "forgotten-offset", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class ForgottenOffset(PhysicalCorruption):
    """The offset of Sentinel-2 products since processing baseline 04.00 is ignored, or subtracted twice.

    Digital numbers are 10000 rho + 1000: ignored, rho' = rho + q; subtracted twice, rho' = max(rho - q, 0).

    Quantity: the error q in reflectance, 0 to 0.1, where only 0 and 0.1 occur in products. Label, seen and valid stay, though clipped
    values look like nodata.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        mistake: "ignored" or "doubled".

    Source: Sentinel-2 processing baseline 04.00, 25 January 2022.
    """

    image_unit: Unit = "reflectance"
    worst: float = 0.1
    mistake: Literal["ignored", "doubled"] = "ignored"

    name: ClassVar[str] = "forgotten-offset"
    quantity: ClassVar[str] = "error of the offset"
    unit: ClassVar[str] = "reflectance"
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, ("B02",))
        check_worst(self.name, self.worst, 0.0, 0.1)

    def corrupted(self, batch: Batch, error: float, keys: Keys) -> Batch:
        """Return the batch with the offset in it."""
        if self.mistake == "ignored":
            return with_image(batch, batch.image + error)
        return with_image(batch, torch.minimum(batch.image, (batch.image - error).clamp_min(0)))


@register("corruption", "quantization", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class Quantization(PhysicalCorruption):
    """Values are rounded to fewer levels: rho' = D round(rho / D) with the step D = high / (2^bits - 1).

    The error of textured ground is D / sqrt(12). Nothing is clipped: `saturation` does that.

    Quantity: bits of the range from 0 to `high`, from 15 down to 5; the true-color image of Sentinel-2 has 8 bits for 0
    to .356. Label, seen and valid stay.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        high: Reflectance of the highest level.
    """

    image_unit: Unit = "reflectance"
    worst: float = 5.0
    high: float = 1.0

    name: ClassVar[str] = "quantization"
    quantity: ClassVar[str] = "bits per value"
    unit: ClassVar[str] = "bit"
    start: ClassVar[float] = 15.0
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, ("B02",))
        if not 1.0 <= self.worst < 15.0:
            raise UsageError(f"quantization.worst: expected bits from 1 to below 15, got {self.worst}; such as 5")
        if not self.high > 0:
            raise UsageError(f"quantization.high: expected a reflectance above 0, got {self.high}; such as 1")

    def corrupted(self, batch: Batch, level: float, keys: Keys) -> Batch:
        """Return the rounded batch."""
        step = self.high / (2.0**level - 1)
        return with_image(batch, torch.round(batch.image / step) * step)


@register("corruption", "jpeg2000", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class JPEG2000(PhysicalCorruption):
    """Every band is compressed with loss as a JPEG 2000 image of 16 bits at a stated rate.

    Digital numbers 10000 rho + 1000 are coded, with the wavelet and the rate control of OpenJPEG. Products for users are lossless; this stands
    for copies that are not, and for the compression on board (2.4 to 2.97 to 1), which another codec does.

    Quantity: compression ratio of 16-bit numbers, 3 to 30. Label, seen and valid stay; unseen pixels are coded as the mean.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    image_unit: Unit = "reflectance"
    worst: float = 30.0

    name: ClassVar[str] = "jpeg2000"
    quantity: ClassVar[str] = "compression ratio"
    unit: ClassVar[str] = ""
    start: ClassVar[float] = 3.0
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, ("B02",))
        check_worst(self.name, self.worst, 3.0, 500.0)

    def corrupted(self, batch: Batch, ratio: float, keys: Keys) -> Batch:
        """Return the batch after coding and decoding."""
        numbers = ((fill_unseen(batch.image, batch.seen) / S2_SCALE + OFFSET_DN).round().clamp(0, 65535)).cpu().numpy()
        coded = [[_encode_decode(plane, ratio) for plane in chip] for chip in numbers.astype(np.uint16)]
        image = (torch.from_numpy(np.asarray(coded, np.float32)).to(batch.image) - OFFSET_DN) * S2_SCALE
        return with_image(batch, image)


SMALLEST_CODED = 32
"""Pixels below which OpenJPEG refuses its six resolutions; smaller planes are extended by their last values."""
DigitalNumbers = NDArray[np.uint16]


def _encode_decode(plane: DigitalNumbers, ratio: float) -> DigitalNumbers:
    height, width = plane.shape
    missing = [(0, max(0, SMALLEST_CODED - n)) for n in plane.shape]
    rate = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, max(1, round(1000 / ratio))]
    done, data = cv2.imencode(".jp2", np.pad(plane, missing, mode="edge"), rate)
    if not done:
        raise UsageError("jpeg2000: expected an OpenCV that writes JPEG 2000, got one without; install another build")
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint16)[:height, :width]


# Radiances at which the bands of Sentinel-2 saturate, in W m-2 sr-1 um-1: values in use, not checked against a document.
SATURATION_RADIANCE = {
    "B01": 588.0, "B02": 615.5, "B03": 559.0, "B04": 484.0, "B05": 449.5, "B06": 413.0, "B07": 387.0, "B08": 308.0,
    "B8A": 308.0, "B09": 233.0, "B10": 45.0, "B11": 70.0, "B12": 24.5,
}  # fmt: skip


@register("corruption", "saturation", smoke={"worst": 0.1}, traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class Saturation(PhysicalCorruption):
    """Detectors saturate: rho' = min(rho, q pi L_max / (E cos)) with the saturation radiance L_max of each band.

    Quantity: saturation level q as a share of that of Sentinel-2, from 1 (reflectance of about 1) down to 0.2. Label, seen and valid stay.

    Args:
        bands: Bands of the channels.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        sun_zenith_deg: Zenith angle of the sun.
    """

    bands: tuple[str, ...]
    image_unit: Unit = "reflectance"
    worst: float = 0.2
    sun_zenith_deg: float = 40.0

    name: ClassVar[str] = "saturation"
    quantity: ClassVar[str] = "saturation level, relative to Sentinel-2"
    unit: ClassVar[str] = ""
    start: ClassVar[float] = 1.0
    stage: ClassVar[Stage] = "detector"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands)
        check_sun(self.name, self.sun_zenith_deg)
        if not 0.0 < self.worst < 1.0:
            raise UsageError(f"saturation.worst: expected a share above 0 and below 1, got {self.worst}; such as 0.2")

    def limits(self) -> list[float]:
        """Return the reflectance at which each band of Sentinel-2 saturates."""
        mu = math.cos(math.radians(self.sun_zenith_deg))
        ids = check_optical(self.name, self.image_unit, self.bands)
        return [math.pi * SATURATION_RADIANCE[b] / ((SENTINEL_2[b].irradiance or 1.0) * mu) for b in ids]

    def corrupted(self, batch: Batch, share: float, keys: Keys) -> Batch:
        """Return the clipped batch."""
        return with_image(batch, torch.minimum(batch.image, share * per_band(self.name, self.limits(), batch.image)))


@register("corruption", "missing-band", traits=("radiometric",))
@final
@dataclass(frozen=True)
class MissingBand(PhysicalCorruption):
    """One band, drawn per chip, is lost on some of its lines.

    Quantity: share of the lines that are lost, 0 to 1. The lost part starts at the top. Label, seen and valid stay: the product does not say
    that the band is gone.

    Args:
        band: Index of the band; None draws one per chip.
        fill: "mean" of what is seen of that band in the chip, or "nodata", what an unseen pixel holds.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    band: int | None = None
    fill: Literal["mean", "nodata"] = "mean"
    image_unit: Unit = "reflectance"
    worst: float = 1.0

    name: ClassVar[str] = "missing-band"
    quantity: ClassVar[str] = "share of lines without the band"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        check_worst(self.name, self.worst, 0.0, 1.0)
        if self.band is not None and self.band < 0:
            raise UsageError(
                f"missing-band.band: expected an index from 0 up, got {self.band}; leave it out to draw one"
            )

    def corrupted(self, batch: Batch, share: float, keys: Keys) -> Batch:
        """Return the batch without part of a band."""
        bands, height = batch.image.shape[1:3]
        if self.band is not None and self.band >= bands:
            raise UsageError(f"missing-band.band: expected one of {bands} bands, got {self.band}; count from 0")
        which = self._drawn(keys, bands, batch.image) if self.band is None else torch.full((len(batch),), self.band)
        lost = torch.arange(bands, device=batch.image.device)[None] == which.to(batch.image.device)[:, None]
        lines = torch.arange(height, device=batch.image.device) < round(share * height)
        mean = seen_mean(batch.image, batch.seen)
        value = mean if self.fill == "mean" else torch.full_like(mean, FILL[self.image_unit])
        return with_image(batch, torch.where(lost[:, :, None, None] & lines[:, None], value, batch.image))

    def _drawn(self, keys: Keys, bands: int, image: Tensor) -> Tensor:
        return (keys.fold(self.name).uniform((1,))[:, 0] * bands).long().clamp_max(bands - 1).to(image.device)

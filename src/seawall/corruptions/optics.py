"""Optics and registration: modulation transfer function, defocus, jitter, bands that do not lie on each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.corruptions.band_tables import OPTICS, native_ratios
from seawall.corruptions.severity import PhysicalCorruption, check_optical, check_worst, per_band, with_image
from seawall.corruptions.spatial import fill_unseen, filter_image, translate
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Unit

B02_MTF = 0.26
WITH_MTF = tuple(band for band, optics in OPTICS.items() if optics.mtf is not None)


@register("corruption", "mtf", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class ReducedMTF(PhysicalCorruption):
    """The modulation transfer function of every band is reduced: a Gaussian blur of its native pixels.

    The blur multiplies frequencies f by exp(-2 pi^2 sigma^2 f^2), with sigma^2 = 2 ln(m1 / m2) / pi^2 native pixels for a
    band whose transfer at the Nyquist frequency is to fall from m1 to m2. It is applied to frequencies: sampled Gaussian
    weights of so narrow a blur would miss the target by a factor of two.

    Quantity: transfer of a 10 m band (B02) at the Nyquist frequency, from .26 as built down to .01; the other bands keep
    their ratio to it. Specified: .15 to .30. Label, seen and valid stay; unseen pixels count as the mean of the chip.

    Args:
        bands: Bands of the channels; no value is published for B10.
        gsd_m: Meters per pixel.
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    bands: tuple[str, ...]
    gsd_m: float
    image_unit: Unit = "reflectance"
    worst: float = 0.01

    name: ClassVar[str] = "mtf"
    quantity: ClassVar[str] = "transfer at the Nyquist frequency (B02)"
    unit: ClassVar[str] = ""
    start: ClassVar[float] = B02_MTF
    stage: ClassVar[Stage] = "optics"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, self.bands, WITH_MTF)
        if not 0.0 < self.worst < B02_MTF:
            raise UsageError(f"mtf.worst: expected a transfer above 0 and below {B02_MTF}, got {self.worst}")

    def corrupted(self, batch: Batch, level: float, keys: Keys) -> Batch:
        """Return the blurred batch."""
        ratio = level / B02_MTF
        native = native_ratios(check_optical(self.name, self.image_unit, self.bands, WITH_MTF), self.gsd_m)
        variances = [2 * math.log(1 / ratio) / math.pi**2 * n**2 for n in native]  # in pixels of the image
        scale = -2 * math.pi**2 * per_band(self.name, variances, batch.image)
        blurred = filter_image(
            batch.image,
            batch.seen,
            lambda fy, fx: torch.exp(scale * fy.square()) * torch.exp(scale * fx.square()),
        )
        return with_image(batch, blurred)


@register("corruption", "defocus", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class Defocus(PhysicalCorruption):
    """The image is out of focus: every point becomes a disk.

    Frequencies f are multiplied by 2 J1(2 pi r f) / (2 pi r f), the transfer function of a disk of radius r.

    Quantity: radius of the disk, 0 to 3 pixels; a choice of this package, for no range is published. Label, seen and
    valid stay; unseen pixels count as the mean of the chip.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    image_unit: Unit = "reflectance"
    worst: float = 3.0

    name: ClassVar[str] = "defocus"
    quantity: ClassVar[str] = "radius of the blur disk"
    unit: ClassVar[str] = "px"
    stage: ClassVar[Stage] = "optics"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, ("B02",))
        check_worst(self.name, self.worst, 0.0, 16.0)

    def corrupted(self, batch: Batch, radius: float, keys: Keys) -> Batch:
        """Return the blurred batch."""

        def disk(fy: Tensor, fx: Tensor) -> Tensor:
            x = (2 * math.pi * radius * (fy.square() + fx.square()).sqrt()).clamp_min(1e-4)
            transfer: Tensor = 2 * torch.special.bessel_j1(x) / x
            return transfer

        return with_image(batch, filter_image(batch.image, batch.seen, disk))


@register("corruption", "jitter", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class LineJitter(PhysicalCorruption):
    """The platform vibrates: lines are displaced along themselves by a sine that all bands share.

    Quantity: amplitude of the displacement, 0 to 1 pixel; a choice of this package. Label, seen and valid stay: the
    error is in the image alone.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        period_px: Lines of one vibration.
    """

    image_unit: Unit = "reflectance"
    worst: float = 1.0
    period_px: float = 40.0

    name: ClassVar[str] = "jitter"
    quantity: ClassVar[str] = "amplitude of the displacement of lines"
    unit: ClassVar[str] = "px"
    stage: ClassVar[Stage] = "optics"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, ("B02",))
        check_worst(self.name, self.worst, 0.0, 16.0)
        if not self.period_px >= 2:
            raise UsageError(f"jitter.period_px: expected at least 2 lines, got {self.period_px}; such as 40")

    def corrupted(self, batch: Batch, amplitude: float, keys: Keys) -> Batch:
        """Return the batch with displaced lines."""
        image = batch.image
        phase = keys.fold(self.name).uniform((1,), 0.0, 2 * math.pi).to(image)
        lines = torch.arange(image.shape[2], dtype=image.dtype, device=image.device)
        right = amplitude * torch.sin(2 * math.pi * lines / self.period_px + phase)
        return with_image(batch, displace_lines(image, batch.seen, right))


def displace_lines(image: Tensor, seen: Tensor, right: Tensor) -> Tensor:
    """Return the image with its lines moved right by (B, H) pixels, by a phase per line; ends of lines are mirrored."""
    width = image.shape[3]
    mirrored = fill_unseen(image, seen)
    mirrored = torch.cat([mirrored, mirrored.flip(3)], 3)
    fx = torch.fft.rfftfreq(2 * width, dtype=image.dtype, device=image.device)
    angle = -2 * math.pi * right[:, None, :, None] * fx
    spectrum = torch.fft.rfft(mirrored, dim=3) * torch.complex(torch.cos(angle), torch.sin(angle))
    return torch.stack([torch.fft.irfft(one, n=2 * width, dim=2) for one in spectrum])[..., :width]


@register("corruption", "misregistration", traits=("optical", "radiometric"))
@final
@dataclass(frozen=True)
class BandMisregistration(PhysicalCorruption):
    """Bands do not lie on each other: each is displaced by its own vector, drawn from N(0, q^2 I).

    Resampled by a phase in the frequency domain, for a bilinear shift would blur as well.

    Quantity: standard deviation q of either coordinate, 0 to 1 pixel (specified: .30 pixels of the coarser band at 3
    sigma). Label, seen and valid stay: the error is in the image alone.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    image_unit: Unit = "reflectance"
    worst: float = 1.0

    name: ClassVar[str] = "misregistration"
    quantity: ClassVar[str] = "standard deviation of the displacement of bands"
    unit: ClassVar[str] = "px"
    stage: ClassVar[Stage] = "optics"

    def __post_init__(self) -> None:
        check_optical(self.name, self.image_unit, ("B02",))
        check_worst(self.name, self.worst, 0.0, 8.0)

    def corrupted(self, batch: Batch, spread: float, keys: Keys) -> Batch:
        """Return the batch with displaced bands."""
        bands = batch.image.shape[1]
        draws = torch.stack([keys.fold(self.name, i).normal((2,)) for i in range(bands)], 1).to(batch.image)
        down, right = (spread * draws[..., i, None, None] for i in (0, 1))
        return with_image(batch, translate(batch.image, batch.seen, down, right))

"""Geometry: shifts, rotation, elastic warps, lens and transparency distortion, nodata wedges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from seawall.corruptions.severity import PhysicalCorruption, check_worst, hide, with_image
from seawall.corruptions.spatial import covered_share, shift_batch, smooth_white_noise, warp
from seawall.decibels import from_power, to_power
from seawall.errors import UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Stage, Unit


def drawn_direction(keys: Keys, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return sine and cosine (B,) of a direction that each chip draws."""
    angle = keys.fold("direction").uniform((1,), 0.0, 2 * math.pi)[:, 0].to(like)
    return torch.sin(angle), torch.cos(angle)


def centered_grid(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the rows (H, 1) and columns (1, W) of pixels from the middle of a chip."""
    height, width = batch.image.shape[2:]
    rows = torch.arange(height, dtype=batch.image.dtype, device=batch.image.device) - (height - 1) / 2
    cols = torch.arange(width, dtype=batch.image.dtype, device=batch.image.device) - (width - 1) / 2
    return rows[:, None], cols[None]


@register("corruption", "shift", traits=("geometric",))
@final
@dataclass(frozen=True)
class Translation(PhysicalCorruption):
    """The whole chip is moved by a fraction of a pixel or more, in a direction that each chip draws.

    Reflectance is resampled by a phase in the frequency domain, which does not blur; decibels bilinearly in power.

    Quantity: length of the shift, 0 to 2 pixels. Label, seen and valid move with the image; what comes in from outside
    is unseen.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.

    Source: Sentinel-2 geolocation, 12.5 m (2 sigma) with ground control points, 20 m without.
    """

    image_unit: Unit = "reflectance"
    worst: float = 2.0

    name: ClassVar[str] = "shift"
    quantity: ClassVar[str] = "length of the shift"
    unit: ClassVar[str] = "px"
    stage: ClassVar[Stage] = "geometry"

    def __post_init__(self) -> None:
        check_worst(self.name, self.worst, 0.0, 64.0)

    def corrupted(self, batch: Batch, length: float, keys: Keys) -> Batch:
        """Return the moved batch."""
        down, right = (length * part for part in drawn_direction(keys.fold(self.name), batch.image))
        return shift_batch(batch, down, right, self.image_unit, moves_label=True)


@register("corruption", "geolocation", traits=())
@final
@dataclass(frozen=True)
class GeolocationError(PhysicalCorruption):
    """The image lies in the wrong place: it is moved, the label is not.

    Quantity: length of the shift, 0 to 2 pixels. Seen moves with the image; the label stays, and counts where the moved image is
    seen. Scores near borders and inside of objects should be looked at apart.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.

    Source: Sentinel-2 geolocation, 12.5 m (2 sigma) with ground control points, 20 m without; between dates .3 px (2 sigma).
    """

    image_unit: Unit = "reflectance"
    worst: float = 2.0

    name: ClassVar[str] = "geolocation"
    quantity: ClassVar[str] = "length of the shift of the image against its label"
    unit: ClassVar[str] = "px"
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        check_worst(self.name, self.worst, 0.0, 64.0)

    def corrupted(self, batch: Batch, length: float, keys: Keys) -> Batch:
        """Return the batch with a moved image."""
        down, right = (length * part for part in drawn_direction(keys.fold(self.name), batch.image))
        return shift_batch(batch, down, right, self.image_unit, moves_label=False)


@register("corruption", "rotation", traits=("geometric",))
@final
@dataclass(frozen=True)
class Rotation(PhysicalCorruption):
    """The chip is rotated around its middle, to a side that each chip draws.

    Quantity: angle, 0 to 45 degrees: beyond, a rotation is a smaller one of a turned chip. Label, seen and valid move with the image; what
    comes in from outside is unseen. The interpolation blurs too: a rotation by 0.01 degrees shows how much.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    image_unit: Unit = "reflectance"
    worst: float = 45.0

    name: ClassVar[str] = "rotation"
    quantity: ClassVar[str] = "angle"
    unit: ClassVar[str] = "degrees"
    stage: ClassVar[Stage] = "geometry"

    def __post_init__(self) -> None:
        check_worst(self.name, self.worst, 0.0, 180.0)

    def corrupted(self, batch: Batch, level: float, keys: Keys) -> Batch:
        """Return the rotated batch."""
        angle = math.radians(level)
        rows, cols = centered_grid(batch)
        turn = angle * drawn_sign(keys.fold(self.name), batch.image)
        cos, sin = torch.cos(turn), torch.sin(turn)
        return warp(batch, rows * cos - cols * sin - rows, rows * sin + cols * cos - cols, self.image_unit)


def drawn_sign(keys: Keys, like: Tensor) -> Tensor:
    """Return +1 or -1 as (B, 1, 1), drawn per chip."""
    return torch.where(keys.uniform((1, 1)) < 0.5, -1.0, 1.0).to(like)


@register("corruption", "elastic", smoke={"smoothness_px": 10.0}, traits=("geometric",))
@final
@dataclass(frozen=True)
class ElasticWarp(PhysicalCorruption):
    """The chip is warped by a smooth random displacement.

    Quantity: root mean square displacement, 0 to 4 pixels; a choice of this package. Label, seen and valid move with the image; what comes
    in from outside is unseen.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        smoothness_px: Correlation length of the displacement; the map folds when it is below about three displacements.
    """

    image_unit: Unit = "reflectance"
    worst: float = 4.0
    smoothness_px: float = 24.0

    name: ClassVar[str] = "elastic"
    quantity: ClassVar[str] = "root mean square displacement"
    unit: ClassVar[str] = "px"
    stage: ClassVar[Stage] = "geometry"

    def __post_init__(self) -> None:
        check_worst(self.name, self.worst, 0.0, 64.0)
        if not self.smoothness_px >= 2:
            raise UsageError(f"elastic.smoothness_px: expected at least 2 pixels, got {self.smoothness_px}; such as 24")

    def corrupted(self, batch: Batch, rms: float, keys: Keys) -> Batch:
        """Return the warped batch."""
        size = batch.image.shape[2:]
        own = keys.fold(self.name)
        down, right = (
            smooth_white_noise(own.fold(name).normal(size).to(batch.image), self.smoothness_px) for name in "yx"
        )
        norm = rms / (down.square() + right.square()).mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
        return warp(batch, down * norm, right * norm, self.image_unit)


def check_radial(name: str, value: float, high: float) -> None:
    """Check the coefficient of a radial distortion that is drawn with both signs.

    Raises:
        UsageError: It is outside (0, high), where the map folds for one of the signs.
    """
    if not 0.0 < value < high:
        raise UsageError(
            f"{name}.worst: expected a coefficient above 0 and below {high:g}, got {value}; above, the map folds"
        )


@register("corruption", "transparency", paper="arXiv:2405.12864", smoke={"cell_px": 24}, traits=("geometric",))
@final
@dataclass(frozen=True)
class TransparencyDistortion(PhysicalCorruption):
    """Hot air or uneven glass: every cell of a grid has a radial distortion of its own.

    In each cell, what is seen at the distance r from its center lies at r + k r^3 (1 - r^2)^2, with r in half cells and
    k ~ U(-q, q); beyond r = 1 nothing moves, so that cells fit together. The largest displacement is .0916 q half
    cells, and the map is invertible for -3.89 < k < 2.36.

    Quantity: bound q of the coefficient, 0 to 2.3. Label, seen and valid move with the image; what comes in from outside is unseen.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        cell_px: Side of a cell in pixels.

    Source: the idea of Knauthe et al. 2024, arXiv:2405.12864. Differs: their parameters are not published; window, cell
    and range are this package's. Radii are in half sides, not half diagonals, where the window would not close.
    """

    image_unit: Unit = "reflectance"
    worst: float = 2.3
    cell_px: int = 64

    name: ClassVar[str] = "transparency"
    quantity: ClassVar[str] = "largest coefficient of radial distortion"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "geometry"

    def __post_init__(self) -> None:
        check_radial(self.name, self.worst, 2.36)
        if self.cell_px < 4:
            raise UsageError(f"transparency.cell_px: expected at least 4 pixels, got {self.cell_px}; such as 64")

    def corrupted(self, batch: Batch, bound: float, keys: Keys) -> Batch:
        """Return the distorted batch."""
        height, width = batch.image.shape[2:]
        half = self.cell_px / 2
        down, across = math.ceil(height / self.cell_px), math.ceil(width / self.cell_px)
        k = bound * keys.fold(self.name).uniform((down, across), -1.0, 1.0).to(batch.image)
        rows = torch.arange(height, device=batch.image.device)
        cols = torch.arange(width, device=batch.image.device)
        y = ((rows % self.cell_px + 0.5 - half) / half).to(batch.image)[:, None]
        x = ((cols % self.cell_px + 0.5 - half) / half).to(batch.image)[None]
        r2 = (y.square() + x.square()).clamp_max(1.0)
        stretch = k[:, rows // self.cell_px][:, :, cols // self.cell_px] * r2 * (1 - r2).square() * half
        return warp(batch, y * stretch, x * stretch, self.image_unit)


@register("corruption", "lens", traits=("geometric",))
@final
@dataclass(frozen=True)
class LensDistortion(PhysicalCorruption):
    """One radial distortion of the whole chip, barrel or pincushion, which each chip draws.

    What is seen at the distance r from the middle lies at r (1 + k r^2), with r in half diagonals and k = +q or -q; the
    map is invertible for k > -1/3.

    Quantity: coefficient q, 0 to 0.3. Label, seen and valid move with the image; what comes in from outside is unseen.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
    """

    image_unit: Unit = "reflectance"
    worst: float = 0.3

    name: ClassVar[str] = "lens"
    quantity: ClassVar[str] = "coefficient of radial distortion"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "geometry"

    def __post_init__(self) -> None:
        check_radial(self.name, self.worst, 1 / 3)

    def corrupted(self, batch: Batch, k: float, keys: Keys) -> Batch:
        """Return the distorted batch."""
        rows, cols = centered_grid(batch)
        r2 = (rows.square() + cols.square()) / (math.hypot(*batch.image.shape[2:]) / 2) ** 2
        stretch = k * drawn_sign(keys.fold(self.name), batch.image) * r2
        return warp(batch, rows * stretch, cols * stretch, self.image_unit)


@register("corruption", "nodata-wedge", traits=())
@final
@dataclass(frozen=True)
class NodataWedge(PhysicalCorruption):
    """The swath ends inside the chip: everything beyond a straight edge is nodata.

    Quantity: share of the chip that is lost, 0 to 0.6. There seen and valid become false and the image holds its fill; label stays.

    Args:
        image_unit: Unit of the images.
        worst: Quantity at severity 1.
        heading_deg: Angle of the edge to the columns of the chip: the orbit's, about 12 degrees in UTM.
    """

    image_unit: Unit = "reflectance"
    worst: float = 0.6
    heading_deg: float = 12.0

    name: ClassVar[str] = "nodata-wedge"
    quantity: ClassVar[str] = "share without data"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        check_worst(self.name, self.worst, 0.0, 1.0)

    def corrupted(self, batch: Batch, share: float, keys: Keys) -> Batch:
        """Return the batch with a nodata wedge."""
        rows, cols = centered_grid(batch)
        heading = math.radians(self.heading_deg)
        # a hundredth of a pixel per row keeps distances apart when the edge runs along the columns
        across = cols * math.cos(heading) + rows * (math.sin(heading) + 1e-4)
        across = across * drawn_sign(keys.fold(self.name), batch.image)
        return hide(batch, across > covered_share(across, share), self.image_unit)


@register("corruption", "coarse-grid", traits=("radiometric",))
@final
@dataclass(frozen=True)
class CoarseGrid(PhysicalCorruption):
    """The image comes from larger pixels: means over cells, each repeated over the pixels that it covers.

    Cells of any size are cut at their borders by area, so that the mean of the image stays. Decibels are averaged in
    linear power.

    Quantity: pixel size, from that of the chips up to 60 m. Label, seen and valid stay: the map is still asked for on the
    fine grid, of which a perfect coarse map would miss the details.

    Args:
        gsd_m: Meters per pixel of the chips.
        image_unit: Unit of the images.
        worst: Quantity at severity 1, in meters.
    """

    gsd_m: float
    image_unit: Unit = "reflectance"
    worst: float = 60.0

    name: ClassVar[str] = "coarse-grid"
    quantity: ClassVar[str] = "pixel size"
    unit: ClassVar[str] = "m"
    stage: ClassVar[Stage] = "product"

    def __post_init__(self) -> None:
        if not 0 < self.gsd_m < self.worst:
            raise UsageError(
                f"coarse-grid: expected chips with pixels below {self.worst:g} m, got {self.gsd_m:g} m; set a larger worst"
            )

    @property
    def start(self) -> float:  # type: ignore[override]
        return self.gsd_m

    def corrupted(self, batch: Batch, level: float, keys: Keys) -> Batch:
        """Return the batch on a coarser grid."""
        factor = level / self.gsd_m
        height, width = batch.image.shape[2:]
        down, across = (cell_overlap(n, factor, batch.image) for n in (height, width))
        planes = []
        for image, seen in zip(batch.image, batch.seen, strict=True):  # one product per chip: the same in any batch
            weight = seen.to(image.dtype)[None]
            both = torch.cat([to_power(image, self.image_unit) * weight, weight])
            cells = down @ both @ across.T
            means = cells[:-1] / cells[-1:].clamp_min(1e-6)
            planes.append(from_power(down.T @ means @ across, self.image_unit))
        return with_image(batch, torch.stack(planes))


def cell_overlap(pixels: int, factor: float, like: Tensor) -> Tensor:
    """Return how much of each cell (rows) of `factor` pixels is covered by each pixel (columns), in pixels."""
    cells = math.ceil(pixels / factor - 1e-9)
    low = torch.arange(cells, dtype=torch.float64)[:, None] * factor
    at = torch.arange(pixels, dtype=torch.float64)[None]
    overlap = (torch.minimum(low + factor, at + 1) - torch.maximum(low, at)).clamp(0, 1)
    return overlap.to(like)

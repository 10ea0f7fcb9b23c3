"""The image operations of common augmentations, in data units: photometric and geometric, with a drawn sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from seawall.chip_context import ChipContext
from seawall.corruptions.geometry import Rotation, centered_grid, drawn_sign
from seawall.corruptions.per_source import on_each_source
from seawall.corruptions.severity import check_severity, with_image
from seawall.corruptions.spatial import fill_unseen, seen_mean, warp
from seawall.decibels import from_power, to_power
from seawall.rng import Keys
from seawall.types import Batch, Corruption, ModelSpec, Stage, Unit, single_unit

Operation = Literal[
    "brightness", "contrast", "color", "sharpness", "shear-x", "shear-y", "translate-x", "translate-y", "rotate"
]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
PHOTOMETRIC = OPERATIONS[:4]
"""Those that leave label, seen and valid alone. Posterize, solarize, equalize and hue are left out: they have no meaning for
reflectance and backscatter."""


@dataclass(frozen=True)
class ImageOperation:
    """One operation; severity times `reach` is its magnitude, to a side that each chip draws.

    Brightness multiplies by 1 + m. Contrast, color and sharpness blend with the mean of each band, the mean over the
    bands, or a 3 x 3 blur: part + (image - part) (1 + m). Shear, translation and rotation move label, seen and valid too; what
    comes in from outside is unseen. Decibels are changed as linear power.

    Args:
        operation: Which one.
        reach: Magnitude at severity 1: a share, the slope of a shear, a share of the chip's side, or degrees.
        image_unit: Unit of the images.

    Source: the operations of AutoAugment as torchvision has them.
    """

    operation: Operation
    reach: float
    image_unit: Unit = "reflectance"

    quantity: ClassVar[str] = "magnitude"
    unit: ClassVar[str] = ""
    stage: ClassVar[Stage] = "product"

    def level(self, severity: float) -> float:
        """Return the magnitude."""
        return check_severity(self.operation, severity) * self.reach

    def __call__(self, batch: Batch, severity: float, keys: Keys) -> Batch:
        """Return the changed batch."""
        magnitude, own = self.level(severity), keys.fold(self.operation)
        if magnitude == 0:
            return batch
        if self.operation == "rotate":
            return Rotation(self.image_unit, self.reach)(batch, severity, own)
        signed = magnitude * drawn_sign(own, batch.image)
        if self.operation in PHOTOMETRIC:
            power = to_power(batch.image, self.image_unit)
            return with_image(batch, from_power(self._recolored(power, batch.seen, signed[:, None]), self.image_unit))
        return self._moved_by(batch, signed)

    def _recolored(self, power: Tensor, seen: Tensor, signed: Tensor) -> Tensor:
        if self.operation == "brightness":
            return power * (1 + signed)
        if self.operation == "contrast":
            part = seen_mean(power, seen)
        elif self.operation == "color":
            part = power.mean(1, keepdim=True)
        else:
            part = _blurred(fill_unseen(power, seen))
        return part + (power - part) * (1 + signed)

    def _moved_by(self, batch: Batch, signed: Tensor) -> Batch:
        rows, cols = centered_grid(batch)
        still = torch.zeros_like(batch.image[:, 0])
        height, width = still.shape[1:]
        down, right = {
            "shear-x": (still, still + signed * rows),
            "shear-y": (still + signed * cols, still),
            "translate-x": (still, still + signed * width),
            "translate-y": (still + signed * height, still),
        }[self.operation]
        return warp(batch, down, right, self.image_unit)


def _blurred(image: Tensor) -> Tensor:
    """Return the image after the 3 x 3 kernel of torchvision's sharpness: 5 in the middle, 1 around, over 13."""
    kernel = torch.ones(1, 1, 3, 3, dtype=image.dtype, device=image.device)
    kernel[0, 0, 1, 1] = 5.0
    planes = functional.pad(image.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(planes, kernel / 13).view_as(image)


def image_operation(name: Operation, reach: float, spec: ModelSpec) -> Corruption:
    """Return an operation for the chips of a model: of each source apart, but for one movement of all of them and the label."""

    def build(chips: ChipContext) -> Corruption:
        return ImageOperation(name, reach, single_unit(chips.unit, name))

    return on_each_source(build, ChipContext.of_model(spec), together=name not in PHOTOMETRIC)

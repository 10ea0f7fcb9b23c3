"""Models and batches whose worst case is known: a linear model per pixel, and chips with every kind of hole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.arrays import FloatArray
from seawall.geo.sensors import OPTICAL_BANDS
from seawall.simulate.spectra import MATERIALS, water_components
from seawall.threat.model import ThreatModel
from seawall.types import Batch, ModelSpec, SegmentationModel, Unit, fill_of, per_channel

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
CLASSES = ("land", "water", "cloud", "snow")


class PixelLinear(nn.Module):
    """Logits that are linear in a pixel's bands, so that the worst attack is a corner in closed form.

    Args:
        spec: Bands, classes and unit.
        weight: (K, C).
        bias: (K,).
    """

    def __init__(self, spec: ModelSpec, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W), each image the same to the bit in any batch."""
        weight, bias = self.weight.to(image.dtype), self.bias.to(image.dtype)
        logits = [
            sum((image[:, c] * row[c] for c in range(image.shape[1])), torch.zeros_like(image[:, 0])) + shift
            for row, shift in zip(weight, bias, strict=True)
        ]
        return torch.stack(logits, 1)


class _Uneven(nn.Module):
    """A curved model with neighborhoods, dropout, batch statistics and a mix of frozen and free parameters."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.linear = PixelLinear(spec, *_rising_weights(len(spec.classes), len(spec.bands)))
        self.norm = nn.BatchNorm2d(len(spec.classes))
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Tensor) -> Tensor:
        smooth = functional.avg_pool2d(image, 3, stride=1, padding=1)
        logits: Tensor = self.drop(self.norm(torch.tanh(3 * self.linear(0.3 * image + 0.7 * smooth))))
        return logits


def linear_model(bands: int = 2, classes: int = 2, unit: Unit = "reflectance") -> PixelLinear:
    """Return a linear model per pixel whose decision borders run through `ground_batch`.

    Example:
        >>> linear_model()(torch.zeros(1, 2, 3, 3)).shape
        torch.Size([1, 2, 3, 3])
    """
    names = (BANDS * (bands // len(BANDS) + 1))[:bands] if unit == "reflectance" else ("VV", "VH")[:bands]
    spec = ModelSpec(names, CLASSES[:classes], unit, 10.0)
    return PixelLinear(spec, *_rising_weights(classes, bands))


def _rising_weights(classes: int, bands: int) -> tuple[Tensor, Tensor]:
    k, c = torch.arange(classes)[:, None], torch.arange(bands)[None]
    weight = 6.0 * torch.cos(2.0 * k + 0.7 * c + 0.3)
    return weight, -weight.sum(1) * 0.3


def uneven_model(bands: int = 2, classes: int = 2, unit: Unit = "reflectance") -> nn.Module:
    """Return a curved model in train mode, some parameters frozen, one with a gradient, so that any trace shows."""
    model = _Uneven(linear_model(bands, classes, unit).spec)
    model.train()
    model.norm.eval()
    model.linear.bias.requires_grad_(False)
    model.linear.weight.grad = torch.full_like(model.linear.weight, 0.25)
    return model


def ground_batch(images: int = 3, bands: int = 2, classes: int = 2, size: int = 12, seed: int = 0) -> Batch:
    """Return chips with unseen pixels, invalid pixels with nonsense labels, and labels that `linear_model` mostly knows."""
    draw = torch.Generator().manual_seed(seed)
    image = 0.3 + 0.2 * (torch.rand(images, bands, size, size, generator=draw) - 0.5)
    label = linear_model(bands, classes)(image).argmax(1)
    wrong = torch.rand(label.shape, generator=draw) < 0.05
    label = torch.where(wrong, (label + 1) % classes, label)
    seen = torch.rand(label.shape, generator=draw) > 0.1
    valid = seen & (torch.rand(label.shape, generator=draw) > 0.2)
    image = torch.where(seen[:, None], image, 0.0)
    nonsense = torch.randint(0, 2, label.shape, generator=draw) * 256 - 1
    return Batch(image, torch.where(valid, label, nonsense), seen, valid, tuple(f"ground{i}" for i in range(images)))


TWO_SOURCE_SPEC = ModelSpec(("s1.VV", "s2.B03"), CLASSES[:2], ("sigma0_db", "reflectance"), 10.0)
"""Two bands, each of a source of its own, in decibels and in reflectance."""
DECIBELS_OF_A_SHARE = (100.0, -45.0)
"""Factor and offset from the reflectance of `ground_batch` to the decibels of `two_source_batch`."""


def two_source_batch(images: int = 3, size: int = 12) -> Batch:
    """Return `ground_batch` with its first band in decibels, and holes in each source where the other has data."""
    batch, (factor, offset) = ground_batch(images, size=size), DECIBELS_OF_A_SHARE
    values = batch.image * per_channel([factor, 1.0], batch.image) + per_channel([offset, 0.0], batch.image)
    holes = torch.rand(values.shape, generator=torch.Generator().manual_seed(5)) < 0.15
    known = batch.seen[:, None] & ~holes
    seen = known.any(1)
    image = torch.where(known, values, per_channel(fill_of(TWO_SOURCE_SPEC.unit, 2), values))
    return replace(
        batch, image=image, seen=seen, valid=batch.valid & seen, seen_bands=known, bands=TWO_SOURCE_SPEC.bands
    )


def two_source_model() -> PixelLinear:
    """Return `linear_model` for the units of `two_source_batch`."""
    plain, (factor, offset) = linear_model(), DECIBELS_OF_A_SHARE
    weight = plain.weight.detach() / torch.tensor([factor, 1.0])
    return PixelLinear(TWO_SOURCE_SPEC, weight, plain.bias.detach() - weight[:, 0] * offset)


def accuracy(model: SegmentationModel, batch: Batch, image: Tensor | None = None) -> Tensor:
    """Return the share (B,) of valid pixels that the model, in eval mode, gets right."""
    if isinstance(model, nn.Module):
        model.eval()
    with torch.no_grad():
        right = (model(batch.image if image is None else image).argmax(1) == batch.label) & batch.valid
    return right.flatten(1).sum(1) / batch.valid.flatten(1).sum(1).clamp_min(1)


def worst_accuracy(model: PixelLinear, batch: Batch, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """Return the least accuracy (B,) that any linf attack can reach on a linear two-class model, and its image.

    Every pixel goes to the corner of its box that its margin likes least.
    """
    ball = threat.around(batch.image, batch.image_seen)
    away = (model.weight[1] - model.weight[0]).detach()[None, :, None, None]
    towards_water = torch.where(away > 0, ball.high, ball.low)
    towards_land = torch.where(away > 0, ball.low, ball.high)
    image = torch.where((batch.label == 0)[:, None], towards_water, towards_land)
    return accuracy(model, batch, image), image


CALM_WATER_DB = (-20.0, -28.0)
"""Backscatter of a smooth water surface, VV and VH in dB."""
NATURAL_LAND = ("soil", "crop", "grass", "broadleaf", "conifer")
"""Materials of `seawall.simulate.spectra` that no water index may rank above water; AWEI does so with pale roofs."""


def ground_spectra(unit: str) -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Return bands, the spectrum (C,) of clear or calm water, and those (N, C) of natural land, dry and lush.

    Args:
        unit: "reflectance", or backscatter in dB.
    """
    land = [material for material in MATERIALS if material.name in NATURAL_LAND]
    if unit != "reflectance":
        return ("VV", "VH"), _float32(CALM_WATER_DB), _float32([material.sigma0_db for material in land])
    water = [water_components(band)[0] for band in OPTICAL_BANDS]
    thousandths = [spectrum for material in land for spectrum in (material.dry, material.lush)]
    return OPTICAL_BANDS, _float32(water), _float32(thousandths) / np.float32(1000)


def _float32(values: Sequence[float | Sequence[float]]) -> FloatArray:
    return np.array(values, np.float32)

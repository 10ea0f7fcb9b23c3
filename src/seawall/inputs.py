"""Conversion of what Python callers pass as data or model, where its meaning is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from seawall.bands import channels_of_sources
from seawall.errors import DataError, ModelError
from seawall.models.weights import spec_of
from seawall.types import DECIBEL_UNITS, Batch, ModelSpec, Unit, fill_of, per_channel, unit_text, units_of

Sample: TypeAlias = Batch | Mapping[str, object] | Sequence[object]
"""A Batch, a mapping with "image" and "mask" or "label" (a TorchGeo sample), or a pair (image, label)."""

LABEL_KEYS = ("mask", "label")
LARGEST_REFLECTANCE = 2.0
"""Largest median of reflectance: clouds and snow stay near 1, digital numbers begin in the hundreds."""
DECIBEL_MEDIANS = (-80.0, 30.0)
"""Range of medians of backscatter in dB."""


def as_batch(data: Sample, spec: ModelSpec, where: str = "data") -> Batch:
    """Return data as a Batch in the units of a model.

    Converted: an unbatched image, integer, boolean or whole-numbered labels, labels (B, 1, H, W), any floating type, 8-bit
    images of a model for stretched pictures. Pixels with a value that is not finite become unseen.

    Args:
        data: See `Sample`; images (C, H, W) or (B, C, H, W), labels (H, W), (1, H, W), (B, H, W) or (B, 1, H, W).
        spec: Bands, classes and unit that the data must have.
        where: Name of the data in errors.

    Raises:
        DataError: It has another type, other bands or classes, or holds digital numbers or linear backscatter, whose
            conversion needs a scale and an offset that only the caller knows.
    """
    batch = data if isinstance(data, Batch) else _from_sample(data, where)
    if batch.image.shape[1] != len(spec.bands):
        raise DataError(
            f"{where}: expected {len(spec.bands)} bands ({', '.join(spec.bands)}), got {batch.image.shape[1]}; choose the model's bands in its order"
        )
    batch = _cast(batch, spec, where)
    _check_unit(batch, spec, where)
    _check_labels(batch, spec, where)
    return batch


def as_model(model: object) -> nn.Module:
    """Return a module that has a specification.

    Raises:
        ModelError: It is not a module, or has no specification of bands, classes and unit.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model: expected a weights file or a torch.nn.Module with a ModelSpec as .spec, got {type(model).__name__}; wrap it with seawall.adapt(module, spec)"
        )
    spec_of(model)
    return model


def _from_sample(data: object, where: str) -> Batch:
    image, label = _image_and_label(data, where)
    if image.ndim == 3:
        image = image[None]
    if label.ndim == 4 and label.shape[1] == 1:
        label = label[:, 0]
    elif label.ndim == 2:
        label = label[None]
    if image.ndim != 4 or label.ndim != 3:
        raise DataError(
            f"{where}: expected an image (B, C, H, W) and a label (B, H, W), got {tuple(image.shape)} and {tuple(label.shape)}; add or drop axes"
        )
    return Batch.of(image, label)


def _image_and_label(data: object, where: str) -> tuple[Tensor, Tensor]:
    if isinstance(data, Mapping):
        label = next((data[name] for name in LABEL_KEYS if name in data), None)
        image = data.get("image")
    elif isinstance(data, tuple | list) and len(data) == 2:
        image, label = data
    else:
        image = label = None
    if not isinstance(image, Tensor) or not isinstance(label, Tensor):
        held = f" with {', '.join(map(str, data))}" if isinstance(data, Mapping) else ""
        raise DataError(
            f'{where}: expected a chip folder, a seawall.Batch, a mapping with tensors "image" and "mask", or a pair (image, label), got {type(data).__name__}{held}; make one with seawall.Batch.of(image, label)'
        )
    return image, label


def _cast(batch: Batch, spec: ModelSpec, where: str) -> Batch:
    image, label = batch.image, batch.label
    if not image.is_floating_point() and not (image.dtype == torch.uint8 and spec.unit == "stretched"):
        raise DataError(
            f"{where}: expected an image in {unit_text(spec.unit)}, got integers ({image.dtype}); apply the scale and the offset of the product first"
        )
    image = image.float()
    if label.is_floating_point() and not bool((label[batch.valid] == label[batch.valid].round()).all()):
        raise DataError(f"{where}: expected whole numbers as labels, got fractions; round or threshold them first")
    there, sources = torch.isfinite(image) & batch.image_seen, channels_of_sources(spec.bands)
    for channels in sources.values():  # a pixel without one band of a source is unseen in all of them
        there[:, list(channels)] = there[:, list(channels)].all(1, keepdim=True)
    seen = there.any(1)
    image = torch.where(there, image, per_channel(fill_of(spec.unit, len(spec.bands)), image))
    label = torch.where(batch.valid, label, torch.zeros_like(label)).long()
    return replace(
        batch,
        image=image,
        label=label,
        seen=seen,
        valid=batch.valid & seen,
        seen_bands=there if len(sources) > 1 else None,
    )


def _check_unit(batch: Batch, spec: ModelSpec, where: str) -> None:
    units, seen = units_of(spec.unit, len(spec.bands)), batch.image_seen.expand_as(batch.image)
    for unit in dict.fromkeys(units):
        at = [band for band, own in enumerate(units) if own == unit]
        values = batch.image.detach()[:, at][seen[:, at]]
        if values.numel():
            _check_values(values, unit, where)


def _check_values(values: Tensor, unit: Unit, where: str) -> None:
    middle = float(values.median())
    if unit == "reflectance" and abs(middle) > LARGEST_REFLECTANCE:
        raise DataError(
            f"{where}: expected reflectance, got a median of {middle:g}: these look like digital numbers; divide by 10000 and subtract 0.1 where the product's baseline is 04.00 or later"
        )
    if unit in DECIBEL_UNITS:
        low, high = DECIBEL_MEDIANS
        linear = bool((values >= 0).all())
        if not low <= middle <= high or linear:
            raise DataError(
                f"{where}: expected backscatter in dB, got a median of {middle:g}{' and no negative value' if linear else ''}; convert linear power with 10 * log10"
            )


def _check_labels(batch: Batch, spec: ModelSpec, where: str) -> None:
    labels = batch.label[batch.valid]
    if not labels.numel():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(spec.classes):
        raise DataError(
            f"{where}: expected labels 0 to {len(spec.classes) - 1} ({', '.join(spec.classes)}), got {low} to {high}; say which pixels count: seawall.Batch.of(image, label, valid=label != {high if high >= len(spec.classes) else low})"
        )

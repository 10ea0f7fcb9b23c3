"""Radiometry: the unit of stored numbers, from metadata and values, and their conversion to physical values.

Sentinel-2 products of processing baseline 04.00 and later store (reflectance * 10000) + 1000. Whether a file contains
that offset is taken from its metadata and checked against its values. It is never inferred from the date, because
archives were reprocessed and harmonized copies exist of every date.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import RadiometryError
from seawall.geo.raster import Raster
from seawall.geo.unit_detection import (
    OFFSET_DN,
    SAMPLE_PIXELS,
    Detection,
    Finding,
    ValueKind,
    detect_optical,
    detect_radar,
    is_radar,
    offset_present,
    suspected_offset,
)
from seawall.types import DECIBEL_UNITS, FILL, Unit

__all__ = [
    "Detection",
    "Finding",
    "Hints",
    "ValueKind",
    "Scale",
    "detect_unit",
    "hints_of",
    "scale_for",
    "to_physical",
]


@dataclass(frozen=True)
class Hints:
    """Metadata on the stored numbers; None where it is missing.

    Args:
        dtype: Pixel type in the file.
        unit: Unit after scaling, such as "reflectance" (also of digital numbers) or "gamma0_db".
        gain: Declared gain: physical = stored * gain + offset.
        offset: Declared offset, in physical units.
        offset_applied: Whether the offset of baseline 04.00 was already removed from the stored numbers.
        baseline: Processing baseline, such as "05.09".
    """

    dtype: str | None = None
    unit: Unit | None = None
    gain: float | None = None
    offset: float | None = None
    offset_applied: bool | None = None
    baseline: str | None = None

    @property
    def offset_present(self) -> bool | None:
        """Whether the stored numbers contain the offset according to the metadata; None if it does not say."""
        if self.offset_applied is not None:
            return not self.offset_applied and (
                self.offset != 0 if self.offset is not None else self._baseline_has_offset is not False
            )
        if self.offset is not None:
            return self.offset != 0
        return False if self._baseline_has_offset is False else None

    @property
    def _baseline_has_offset(self) -> bool | None:
        try:
            return None if self.baseline is None else float(self.baseline) >= 4.0
        except ValueError:
            return None


@dataclass(frozen=True)
class Scale:
    """Conversion of stored numbers to physical values: stored * gain + offset, then 10 log10 if `decibel`.

    Args:
        gain: Factor.
        offset: Summand in physical units.
        unit: Unit of the result.
        reason: Why, for messages.
        decibel: Whether the stored numbers are linear power and the result is in dB.
    """

    gain: float
    offset: float
    unit: Unit
    reason: str
    decibel: bool = False

    def __str__(self) -> str:
        law = f"{self.gain:g} * stored{f' {self.offset:+g}' if self.offset else ''}"
        return f"{self.unit} = {f'10 log10({law})' if self.decibel else law} ({self.reason})"


def hints_of(raster: Raster, unit: Unit | None = None) -> Hints:
    """Return the metadata of a raster on its numbers: pixel type, declared scale, UNIT and baseline tags.

    Raises:
        RadiometryError: Its bands have different scales.
    """
    gains, offsets = set(raster.scales), set(raster.offsets)
    if len(gains) > 1 or len(offsets) > 1:
        raise RadiometryError(
            f"raster: expected one scale for all bands, got gains {sorted(gains)} and offsets {sorted(offsets)}; "
            "read the bands apart"
        )
    plain = gains <= {1.0} and offsets <= {0.0}
    tag = raster.tags.get("UNIT", "")
    stated: Unit | None = unit or (tag if tag in get_args(Unit) else None)  # type: ignore[assignment]
    gain, offset = (None, None) if plain else (gains.pop(), offsets.pop())
    return Hints(raster.dtype, stated, gain, offset, None, raster.tags.get("PROCESSING_BASELINE"))


def detect_unit(
    data: FloatArray,
    seen: BoolArray,
    bands: Sequence[str],
    hints: Hints = Hints(),
    nodata: Sequence[float | None] = (),
) -> Detection:
    """Detect the unit of stored numbers; a few undeclared fill values do not change the result.

    Args:
        data: (C, H, W) as stored.
        seen: (H, W) bool.
        bands: Band names; 8-bit images may have unknown ones.
        hints: The metadata; it decides where the values do not.
        nodata: Declared nodata value of each band; pixels that hold it in any band are left out.

    Raises:
        RadiometryError: The metadata and the values contradict each other.

    Example:
        >>> dark = np.full((1, 8, 8), 0.02, np.float32)
        >>> detect_unit(dark, np.ones((8, 8), bool), ("B03",)).kind
        'reflectance'
    """
    radar = is_radar(bands)
    if radar is None:
        return Detection("unknown", "radar and optical bands in one image; give them apart", True)
    values = data[:, _informative_pixels(data, seen, nodata)]
    if not values.size:
        return _apply_metadata(hints, Detection("unknown", "no pixel is seen", False))
    values = values[:, :: max(1, values.shape[1] // SAMPLE_PIXELS)]
    if hints.dtype == "uint8" or _is_8bit(values, hints):
        found = Detection("uint8", "8-bit picture: the stretch is unknown", hints.dtype == "uint8")
    else:
        found = detect_radar(values) if radar else detect_optical(values, bands, hints.dtype)
    _check_metadata(found, hints)
    settled = _apply_metadata(hints, found)
    if settled.kind == "dn10000" and not settled.certain:
        gain = hints.gain or 1e-4
        if offset_present(values * np.float32(gain * 1e4), bands)[0] is not False:
            settled = replace(settled, findings=(suspected_offset(values, gain),))
    return settled


def scale_for(detection: Detection, hints: Hints = Hints()) -> Scale:
    """Return the conversion of stored numbers to physical values.

    Raises:
        RadiometryError: The kind is unknown.
    """
    kind, why = detection.kind, detection.reason
    if kind == "unknown":
        raise RadiometryError(
            f"radiometry: expected numbers of a known unit, got {why}; state unit, gain and offset of the data"
        )
    if kind in ("db", "linear"):
        unit: Unit = "gamma0_db" if hints.unit == "gamma0_db" else "sigma0_db"
        return Scale(1.0, 0.0, unit, why, decibel=kind == "linear")
    if kind == "uint8":
        return Scale(1 / 255, 0.0, "stretched", why)
    if kind == "reflectance":
        return Scale(1.0, 0.0, "reflectance", why)
    gain = hints.gain or 1e-4
    offset = hints.offset if hints.offset else -OFFSET_DN * gain
    return Scale(gain, offset if kind == "dn10000_offset" else 0.0, "reflectance", why)


def to_physical(data: FloatArray, seen: BoolArray, scale: Scale, unit: Unit) -> FloatArray:
    """Return (C, H, W) float32 in physical units; unseen pixels are `FILL[unit]`.

    Raises:
        RadiometryError: The scale leads to another unit.
    """
    if scale.unit != unit:
        raise RadiometryError(
            f"radiometry: expected {unit}, got {scale.unit} ({scale.reason}); "
            + ("an 8-bit picture has no physical scale" if scale.unit == "stretched" else "do not mix units")
        )
    out = data.astype(np.float32) * np.float32(scale.gain) + np.float32(scale.offset)
    if scale.decibel:
        with np.errstate(invalid="ignore"):
            out = np.float32(10) * np.log10(np.maximum(out, np.float32(1e-6)))
    return np.where(seen, out, np.float32(FILL[unit])).astype(np.float32, copy=False)


def _informative_pixels(data: FloatArray, seen: BoolArray, nodata: Sequence[float | None]) -> BoolArray:
    """Return the pixels (H, W) to detect the unit from: not nodata, not 0 in all bands; `seen` if none is left."""
    informative = seen & data.any(0)
    for layer, value in zip(data, nodata, strict=False):
        if value is not None and np.isfinite(value):
            informative &= layer != np.float32(value)
    return np.asarray(informative if informative.any() else seen)


def _is_8bit(values: FloatArray, hints: Hints) -> bool:
    """Return whether these are the levels of an 8-bit picture, as such or as a chip folder stores them, by steps of 1 / 255."""
    stored = hints.gain is not None and math.isclose(hints.gain, 1 / 255, rel_tol=1e-6) and not hints.offset
    if not stored and (hints.dtype not in (None, "uint8") or hints.gain is not None):
        return False
    return bool(values.min() >= 0 and 1 < values.max() <= 255 and (values == np.round(values)).all())


def _check_metadata(found: Detection, hints: Hints) -> None:
    if hints.unit is not None and found.certain and found.kind != "unknown":
        stated = _KIND_UNITS.get(found.kind, ())
        if hints.unit not in stated and not (hints.gain is not None and hints.unit == "reflectance"):
            raise RadiometryError(
                f"radiometry: expected {hints.unit} as declared, got {found.kind} ({found.reason}); correct the declared unit"
            )
    present = hints.offset_present
    if present is None or not found.certain or found.kind not in ("dn10000", "dn10000_offset"):
        return
    if present != (found.kind == "dn10000_offset"):
        says = "is still in" if present else "is not in or was taken out"
        raise RadiometryError(
            f"radiometry: expected what the metadata says (the offset of baseline 04.00 {says}), got {found.kind} "
            f"({found.reason}); correct the metadata or fetch the product again"
        )


# Units that may be declared for each kind of stored numbers.
_KIND_UNITS: Mapping[str, tuple[str, ...]] = {
    "reflectance": ("reflectance",),
    "dn10000": ("reflectance",),
    "dn10000_offset": ("reflectance",),
    "uint8": ("stretched",),
    "db": DECIBEL_UNITS,
    "linear": DECIBEL_UNITS,
}


def _apply_metadata(hints: Hints, found: Detection) -> Detection:
    """Return the detection, decided by the metadata where the values do not decide."""
    if found.kind != "unknown" or found.certain or hints.unit not in (None, "reflectance"):
        return found
    present = hints.offset_present
    if present is None and hints.gain not in (None, 1.0) and hints.baseline is None:
        present = False  # a declared scale without an offset is complete
    if present is not None:
        kind: ValueKind = "dn10000_offset" if present else "dn10000"
        return Detection(
            kind, f"declared in the metadata ({_metadata_text(hints)}); values alone: {found.reason}", False
        )
    return found


def _metadata_text(hints: Hints) -> str:
    parts = {
        "gain": hints.gain,
        "offset": hints.offset,
        "offset applied": hints.offset_applied,
        "baseline": hints.baseline,
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None) or "unit"

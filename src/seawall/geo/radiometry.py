"""The radiometric contract: what unit the stored numbers are in, said once, or an honest "cannot tell".

Sentinel-2 products of processing baseline 04.00 and later store (reflectance * 10000) + 1000. Whether that offset is
still in a file is taken from its metadata and checked against its values. It is never guessed from the date, because
archives were reprocessed and harmonized copies exist of every date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from seawall.errors import ImageryError, RadiometryError
from seawall.geo.raster import Raster
from seawall.geo.unit_detection import (
    OFFSET_DN,
    SAMPLE,
    Detection,
    Finding,
    Kind,
    is_radar,
    offset_finding,
    offset_left,
    optical_kind,
    radar_kind,
)
from seawall.types import FILL, Unit

__all__ = [
    "Detection",
    "Finding",
    "Hints",
    "Kind",
    "Scale",
    "check_same",
    "detect",
    "hints_of",
    "require_physical",
    "scale_for",
    "to_physical",
]


@dataclass(frozen=True)
class Hints:
    """What metadata says about stored numbers; None where it says nothing.

    Args:
        dtype: Pixel type in the file.
        unit: Unit that the values stand for, such as "reflectance" for digital numbers of it, or "gamma0_db".
        gain: Declared gain: physical = stored * gain + offset.
        offset: Declared offset, in physical units.
        offset_applied: Whether the offset of baseline 04.00 was already taken out of the stored numbers.
        baseline: Processing baseline, such as "05.09".
    """

    dtype: str | None = None
    unit: Unit | None = None
    gain: float | None = None
    offset: float | None = None
    offset_applied: bool | None = None
    baseline: str | None = None

    @property
    def offset_left(self) -> bool | None:
        """Whether the metadata says that the stored numbers still carry the offset; None if it does not say."""
        if self.offset_applied is not None:
            return not self.offset_applied and (
                self.offset != 0 if self.offset is not None else self._late is not False
            )
        if self.offset is not None:
            return self.offset != 0
        return False if self._late is False else None

    @property
    def _late(self) -> bool | None:
        try:
            return None if self.baseline is None else float(self.baseline) >= 4.0
        except ValueError:
            return None


@dataclass(frozen=True)
class Scale:
    """How stored numbers become physical: stored * gain + offset, then decibels if `decibel`.

    Args:
        gain: Factor.
        offset: Summand in physical units.
        unit: Unit of the result.
        reason: Why, for the printed contract.
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
    """Return what a raster file says about its numbers: pixel type, declared scale and its UNIT tag.

    Raises:
        RadiometryError: Its bands declare different scales.
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


def detect(
    data: NDArray[np.float32],
    seen: NDArray[np.bool_],
    bands: Sequence[str],
    hints: Hints = Hints(),
    nodata: Sequence[float | None] = (),
) -> Detection:
    """Tell what the stored numbers are; a few fill values among them change nothing.

    Args:
        data: (C, H, W) as stored.
        seen: (H, W).
        bands: Band names; unknown ones are fine for 8-bit pictures.
        hints: What the metadata says; it decides where values cannot.
        nodata: Declared nodata value of each band; pixels that hold it in any band tell nothing about the unit.

    Raises:
        RadiometryError: The metadata and the values contradict each other.

    Example:
        >>> dark = np.full((1, 8, 8), 0.02, np.float32)
        >>> detect(dark, np.ones((8, 8), bool), ("B03",)).kind
        'reflectance'
    """
    radar = is_radar(bands)
    if radar is None:
        return Detection("unknown", "radar and optical bands in one image; give them apart", True)
    values = data[:, _telling(data, seen, nodata)]
    if not values.size:
        return _declared(hints, Detection("unknown", "no pixel is seen", False))
    values = values[:, :: max(1, values.shape[1] // SAMPLE)]
    if hints.dtype == "uint8" or _eight_bit(values, hints):
        found = Detection("uint8", "8-bit picture: the stretch is unknown", hints.dtype == "uint8")
    else:
        found = radar_kind(values) if radar else optical_kind(values, bands, hints.dtype)
    _contradiction(found, hints)
    settled = _declared(hints, found)
    if settled.kind == "dn10000" and not settled.certain:
        gain = hints.gain or 1e-4
        if offset_left(values * np.float32(gain * 1e4), bands)[0] is not False:
            settled = replace(settled, findings=(offset_finding(values, gain),))
    return settled


def scale_for(detection: Detection, hints: Hints = Hints()) -> Scale:
    """Return how to make stored numbers physical.

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
    left = hints.offset if hints.offset else -OFFSET_DN * gain
    return Scale(gain, left if kind == "dn10000_offset" else 0.0, "reflectance", why)


def to_physical(data: NDArray[np.float32], seen: NDArray[np.bool_], scale: Scale, unit: Unit) -> NDArray[np.float32]:
    """Return (C, H, W) float32 in physical units; unseen pixels hold `FILL[unit]`.

    Raises:
        RadiometryError: The numbers are of another unit than the one wanted.
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


def _telling(data: NDArray[np.float32], seen: NDArray[np.bool_], nodata: Sequence[float | None]) -> NDArray[np.bool_]:
    """Return the pixels (H, W) that can tell the unit: no nodata value, not 0 in every band; all if none is left."""
    plain = seen & data.any(0)
    for layer, value in zip(data, nodata, strict=False):
        if value is not None and np.isfinite(value):
            plain &= layer != np.float32(value)
    return np.asarray(plain if plain.any() else seen)


def _eight_bit(values: NDArray[np.float32], hints: Hints) -> bool:
    if hints.dtype not in (None, "uint8") or hints.gain is not None:
        return False
    return bool(values.min() >= 0 and 1 < values.max() <= 255 and (values == np.round(values)).all())


def _contradiction(found: Detection, hints: Hints) -> None:
    if hints.unit is not None and found.certain and found.kind != "unknown":
        stated = _KIND_UNITS.get(found.kind, ())
        if hints.unit not in stated and not (hints.gain is not None and hints.unit == "reflectance"):
            raise RadiometryError(
                f"radiometry: expected {hints.unit} as declared, got {found.kind} ({found.reason}); correct the declared unit"
            )
    left = hints.offset_left
    if left is None or not found.certain or found.kind not in ("dn10000", "dn10000_offset"):
        return
    if left != (found.kind == "dn10000_offset"):
        says = "is still in" if left else "is not in or was taken out"
        raise RadiometryError(
            f"radiometry: expected what the metadata says (the offset of baseline 04.00 {says}), got {found.kind} "
            f"({found.reason}); correct the metadata or fetch the product again"
        )


# Stored digital numbers may be declared by the unit they stand for, but never as another one.
_KIND_UNITS: Mapping[str, tuple[str, ...]] = {
    "reflectance": ("reflectance",),
    "dn10000": ("reflectance",),
    "dn10000_offset": ("reflectance",),
    "uint8": ("stretched",),
    "db": ("sigma0_db", "gamma0_db"),
    "linear": ("sigma0_db", "gamma0_db"),
}


def _declared(hints: Hints, found: Detection) -> Detection:
    """Let the metadata decide what the values left open."""
    if found.kind != "unknown" or found.certain or hints.unit not in (None, "reflectance"):
        return found
    left = hints.offset_left
    if left is None and hints.gain not in (None, 1.0) and hints.baseline is None:
        left = False  # a declared scale without an offset is complete
    if left is not None:
        kind: Kind = "dn10000_offset" if left else "dn10000"
        return Detection(kind, f"declared in the metadata ({_said(hints)}); values alone: {found.reason}", False)
    return found


def _said(hints: Hints) -> str:
    parts = {
        "gain": hints.gain,
        "offset": hints.offset,
        "offset applied": hints.offset_applied,
        "baseline": hints.baseline,
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None) or "unit"


def require_physical(unit: Unit, what: str) -> None:
    """Refuse a stretched picture where a number needs a physical unit.

    Raises:
        RadiometryError: The unit is "stretched".
    """
    if unit == "stretched":
        raise RadiometryError(
            f"{what}: expected a physical unit, got an 8-bit picture of unknown stretch; use other data"
        )


def check_same(units: Mapping[str, Unit]) -> Unit:
    """Return the one unit that all of these images have.

    Args:
        units: Unit of each image by its id.

    Raises:
        RadiometryError: They are mixed; one example of each is named.
        ImageryError: There are none.
    """
    if not units:
        raise ImageryError("radiometry: expected images, got none; check the folder")
    first: dict[Unit, str] = {}
    for name, unit in units.items():
        first.setdefault(unit, name)
    if len(first) > 1:
        some = ", ".join(f"{unit} ({name})" for unit, name in first.items())
        raise RadiometryError(f"radiometry: expected one unit in a dataset, got {some}; curate them apart")
    return next(iter(first))

"""Which pixels count as seen once the unit of the stored numbers is known: nodata, blank pixels, values out of range.

The rule is the same for chips and for whole scenes:

1. A pixel whose value is not finite in any band is unseen (`RasterSource.read`).
2. A declared nodata value outside of the unit's range (-9999, 65535) makes a pixel unseen where any band holds it. One
   that could be a measurement (0 in digital numbers or reflectance) does so only where all bands hold it; pixels where
   only some bands do are seen, and flagged.
3. A pixel that is exactly 0 in every band is unseen, declared or not. Where the numbers contain the offset of baseline
   04.00, 0 cannot be a measurement, so 0 in any band is enough. In stretched 8-bit images 0 is a value (black).
4. A pixel with a number outside of the unit's range is unseen and flagged. If more than `EXTREME_SHARE` of the pixels
   are, the file is refused: it seems to have a nodata value that is not declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import RadiometryError
from seawall.geo.radiometry import Scale
from seawall.geo.raster import could_be_measurement
from seawall.geo.unit_detection import (
    DECIBEL_RANGE,
    EXTREME_SHARE,
    POWER_RANGE,
    REFLECTANCE_RANGE,
    Finding,
    outside_text,
    share_text,
)


@dataclass(frozen=True)
class PixelCounts:
    """Pixel counts of `NodataRule.apply`; the counts of parts of an image add up.

    Args:
        pixels: All pixels.
        there: Those with data according to the file: finite, inside its mask, not nodata.
        seen: Those that count as seen.
        extreme: Those with a number outside of the unit's range.
        blank: Those that are 0 in every band and not declared as nodata.
        partial: Those where some bands but not all hold a declared nodata value that could be a measurement; they are seen.
    """

    pixels: int = 0
    there: int = 0
    seen: int = 0
    extreme: int = 0
    blank: int = 0
    partial: int = 0

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class NodataRule:
    """Which pixels count as seen; made by `nodata_rule`.

    Args:
        low: Smallest stored number in the unit's range.
        high: Largest stored number in the unit's range.
        nodata: Declared nodata value of each band in channel order; None where none is declared.
        blanks: Which bands must be 0 for a pixel to be unseen: "all", "any", or "none" where 0 is a value.
        what: The unit, for messages.
    """

    low: float
    high: float
    nodata: tuple[float | None, ...]
    blanks: str
    what: str

    def apply(self, data: FloatArray, mask: BoolArray) -> tuple[BoolArray, PixelCounts]:
        """Return seen (H, W) and the counts.

        Args:
            data: (C, H, W) as stored.
            mask: (H, W) bool: the file's own mask or alpha band.
        """
        outside, held, one_held = self._bands(data)
        there = mask & ~held
        for layer in data:
            there &= np.isfinite(layer)
        zeros = there & self._zeros(data)
        extreme = there & outside & ~zeros
        seen = there & ~extreme & ~zeros
        found = (np.count_nonzero(part) for part in (there, seen, extreme, zeros, one_held & seen))
        return seen, PixelCounts(mask.size, *map(int, found))

    def _bands(self, data: FloatArray) -> tuple[BoolArray, BoolArray, BoolArray]:
        """Return where a number is out of range, where nodata makes the pixel unseen, and where any band holds nodata."""
        shape = data.shape[1:]
        outside, held, one_held = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
        every = np.full(shape, any(value is not None for value in self.nodata))
        for layer, value in zip(data, self.nodata, strict=True):
            out_of_range = ~((layer >= self.low) & (layer <= self.high))
            if value is None:
                outside |= out_of_range
                continue
            here = layer == np.float32(value)
            one_held |= here
            every &= here
            if not (self.low <= value <= self.high and could_be_measurement(value)):
                held |= here
            outside |= out_of_range & ~here
        return outside, held | every, one_held

    def _zeros(self, data: FloatArray) -> BoolArray:
        if self.blanks == "none":
            return np.zeros(data.shape[1:], bool)
        zeros = data[0] == 0
        for layer in data[1:]:
            if self.blanks == "any":
                zeros |= layer == 0
            elif zeros.any():
                zeros &= layer == 0
        return np.asarray(zeros)

    def check(self, counts: PixelCounts) -> None:
        """Check that at most `EXTREME_SHARE` of the pixels have numbers outside of the unit's range.

        Raises:
            RadiometryError: More have.
        """
        if counts.extreme > EXTREME_SHARE * max(counts.there, 1):
            raise RadiometryError(
                f"radiometry: expected numbers of {self.what}, got "
                f"{outside_text(counts.extreme / counts.there, self.low, self.high)}; declare them as nodata or mend the file"
            )

    def findings(self, counts: PixelCounts) -> tuple[Finding, ...]:
        """Return the flags of an image with these counts."""
        pixels = max(counts.pixels, 1)
        found = []
        if counts.extreme:
            text = f"{outside_text(counts.extreme / pixels, self.low, self.high)}: unseen"
            found.append(Finding("extreme-values", text, counts.extreme / pixels))
        if counts.blank:
            which = "some band" if self.blanks == "any" else "every band"
            text = (
                f"{share_text(counts.blank / pixels)} of the pixels are 0 in {which} and not declared as nodata: unseen"
            )
            found.append(Finding("blank-pixels", text, counts.blank / pixels))
        if counts.partial:
            text = (
                f"{share_text(counts.partial / pixels)} of the pixels hold the declared nodata value in some bands only, where "
                "it could be a measurement: seen"
            )
            found.append(Finding("nodata-in-range", text, counts.partial / pixels))
        return tuple(found)


def nodata_rule(scale: Scale, nodata: Sequence[float | None]) -> NodataRule:
    """Return the rule for stored numbers of this scale.

    Args:
        scale: Conversion of the stored numbers to physical values.
        nodata: Declared nodata value of each band; None where none is declared.
    """
    declared = tuple(None if value is None or not np.isfinite(value) else float(value) for value in nodata)
    if scale.unit == "stretched":
        return NodataRule(-np.inf, np.inf, declared, "none", "an 8-bit picture")
    if scale.decibel:
        low, high, what = *POWER_RANGE, "radar power"
    elif scale.unit == "reflectance":
        low, high, what = *REFLECTANCE_RANGE, "reflectance"
    else:
        low, high, what = *DECIBEL_RANGE, "decibels"
    low, high = (low - scale.offset) / scale.gain, (high - scale.offset) / scale.gain
    if scale.offset:
        return NodataRule(max(low, 0.5), high, declared, "any", what)
    return NodataRule(low, high, declared, "all", what)

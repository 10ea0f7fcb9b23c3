"""Which pixels count as seen once the unit of the stored numbers is known: nodata, blanks, and numbers no unit can hold.

One rule for chips and for whole scenes:

1. A pixel whose value is not finite in any band is unseen (`RasterSource.read`).
2. A declared nodata value that the unit cannot hold (-9999, 65535) makes a pixel unseen where any band holds it. One
   that could be a measurement (0 in digital numbers or reflectance) does so only where all bands hold it; pixels where
   only some bands do are seen, and flagged.
3. A pixel that is exactly 0 in every band shows nothing, declared or not. Where the offset of baseline 04.00 is in the
   numbers, 0 is no measurement, so 0 in any band is enough. Stretched 8-bit pictures are left alone: black is a color.
4. A pixel with a number outside of what the unit can hold is unseen and flagged. If that is more than
   `EXTREME_SHARE` of the pixels, the file is refused: it holds something that nobody declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from seawall.arrays import BoolArray, FloatArray
from seawall.errors import RadiometryError
from seawall.geo.radiometry import Scale
from seawall.geo.raster import measurable
from seawall.geo.unit_detection import DECIBELS, EXTREME_SHARE, POWER, REFLECTANCE, Finding, extremes_text, percent


@dataclass(frozen=True)
class Tally:
    """Pixels counted by `PixelRule.apply`; tallies of parts add up.

    Args:
        pixels: Pixels looked at.
        there: Those with data by what the file says: finite, inside its mask, not nodata.
        seen: Those that count as seen.
        extreme: Those with a number that the unit cannot hold.
        blank: Those that are 0 in every band and not declared as nodata.
        partial: Those where some bands but not all hold a declared nodata value that could be a measurement; they are seen.
    """

    pixels: int = 0
    there: int = 0
    seen: int = 0
    extreme: int = 0
    blank: int = 0
    partial: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class PixelRule:
    """Which pixels count as seen; `rule_for` makes it.

    Args:
        low: Smallest stored number that the unit can hold.
        high: Largest stored number that the unit can hold.
        nodata: Declared nodata value of each band in channel order; None where none is declared.
        blanks: How many of the bands must be 0 for a pixel to show nothing: "all", "any", or "none" if 0 is a value.
        what: The unit, for messages.
    """

    low: float
    high: float
    nodata: tuple[float | None, ...]
    blanks: str
    what: str

    def apply(self, data: FloatArray, mask: BoolArray) -> tuple[BoolArray, Tally]:
        """Return seen (H, W) and the counts.

        Args:
            data: (C, H, W) as stored.
            mask: (H, W): inside the file's own mask, whatever the bands hold.
        """
        outside, held, one_held = self._bands(data)
        there = mask & ~held
        for layer in data:
            there &= np.isfinite(layer)
        zeros = there & self._zeros(data)
        extreme = there & outside & ~zeros
        seen = there & ~extreme & ~zeros
        counts = (np.count_nonzero(part) for part in (there, seen, extreme, zeros, one_held & seen))
        return seen, Tally(mask.size, *map(int, counts))

    def _bands(self, data: FloatArray) -> tuple[BoolArray, BoolArray, BoolArray]:
        """Return where a number is outside of the unit, where nodata makes the pixel unseen, where any band holds nodata."""
        shape = data.shape[1:]
        outside, held, one_held = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
        every = np.full(shape, any(value is not None for value in self.nodata))
        for layer, value in zip(data, self.nodata, strict=True):
            wild = ~((layer >= self.low) & (layer <= self.high))
            if value is None:
                outside |= wild
                continue
            mine = layer == np.float32(value)
            one_held |= mine
            every &= mine
            if not (self.low <= value <= self.high and measurable(value)):
                held |= mine
            outside |= wild & ~mine
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

    def check(self, tally: Tally) -> None:
        """Refuse an image with more numbers outside of the unit than `EXTREME_SHARE` of its pixels.

        Raises:
            RadiometryError: There are more.
        """
        if tally.extreme > EXTREME_SHARE * max(tally.there, 1):
            raise RadiometryError(
                f"radiometry: expected numbers of {self.what}, got "
                f"{extremes_text(tally.extreme / tally.there, self.low, self.high)}; declare them as nodata or mend the file"
            )

    def findings(self, tally: Tally) -> tuple[Finding, ...]:
        """Return what a reader should know about pixels that were taken out, or that may have been missed."""
        pixels = max(tally.pixels, 1)
        found = []
        if tally.extreme:
            text = f"{extremes_text(tally.extreme / pixels, self.low, self.high)}: unseen"
            found.append(Finding("extreme-values", text, tally.extreme / pixels))
        if tally.blank:
            which = "some band" if self.blanks == "any" else "every band"
            text = f"{percent(tally.blank / pixels)} of the pixels are 0 in {which} and not declared as nodata: unseen"
            found.append(Finding("blank-pixels", text, tally.blank / pixels))
        if tally.partial:
            text = (
                f"{percent(tally.partial / pixels)} of the pixels hold the declared nodata value in some bands only, where "
                "it could be a measurement: seen"
            )
            found.append(Finding("nodata-in-range", text, tally.partial / pixels))
        return tuple(found)


def rule_for(scale: Scale, nodata: Sequence[float | None]) -> PixelRule:
    """Return the rule for stored numbers of this scale.

    Args:
        scale: How the stored numbers become physical.
        nodata: Declared nodata value of each band; None where none is declared.
    """
    declared = tuple(None if value is None or not np.isfinite(value) else float(value) for value in nodata)
    if scale.unit == "stretched":
        return PixelRule(-np.inf, np.inf, declared, "none", "an 8-bit picture")
    if scale.decibel:
        low, high, what = *POWER, "radar power"
    elif scale.unit == "reflectance":
        low, high, what = *REFLECTANCE, "reflectance"
    else:
        low, high, what = *DECIBELS, "decibels"
    low, high = (low - scale.offset) / scale.gain, (high - scale.offset) / scale.gain
    if scale.offset:
        return PixelRule(max(low, 0.5), high, declared, "any", what)
    return PixelRule(low, high, declared, "all", what)

"""Detects the unit of stored numbers from their values: reflectance, digital numbers with or without offset, power, dB.

All decisions use percentiles and shares, never the minimum or maximum, so that a few undeclared fill values do not
change the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seawall.arrays import FloatArray
from seawall.geo.sensors import RADAR_BANDS, are_sentinel_bands, resolve_bands

ValueKind = Literal["reflectance", "dn10000", "dn10000_offset", "uint8", "db", "linear", "unknown"]

OFFSET_DN = 1000.0
OFFSET_FLOOR_DN = (950.0, 1300.0)
"""Range of a band's 1st percentile if the offset is in its numbers: reflectance -0.005 to 0.03."""

DARK_DN = 700.0
"""A number below this would be a reflectance under -0.03 if the offset were in; up to 1 % of a band may be."""

MAX_P99_REFLECTANCE = 2.8
"""Largest 99th percentile of a reflectance; sun glint and clouds may exceed it in 1 % of a scene."""

REFLECTANCE_RANGE = (-0.5, 5.0)
"""Possible reflectance. Corrected products reach -0.2 and glint 3; -0.9999 and 6.5535 are scaled fill values."""

DECIBEL_RANGE = (-90.0, 45.0)
"""Possible backscatter in dB: the noise floor is at -60, a corner reflector reaches 40."""

POWER_RANGE = (-0.1, 31623.0)
"""Possible linear backscatter: up to 45 dB; subtracting the noise leaves slightly negative numbers."""

EXTREME_SHARE = 0.01
"""Largest share of pixels out of the unit's range; they are unseen and flagged, and a file with more is refused."""

FRACTIONAL_SHARE = 0.01
"""Digital numbers are integers; if more than this share has a fraction and is below 2, the numbers are physical."""

SAMPLE_PIXELS = 200_000
"""Largest number of pixels that percentiles are computed of."""


@dataclass(frozen=True)
class Finding:
    """A flag of an image, with its explanation.

    Args:
        id: Id of the flag, as `docs/flags.md` explains it.
        text: What was found, with its share.
        share: Share of the pixels; None where it does not concern single pixels.
    """

    id: str
    text: str
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.id}: {self.text}"


@dataclass(frozen=True)
class Detection:
    """Kind of the stored numbers, with the reason.

    Args:
        kind: Unit and encoding of the numbers.
        reason: Why, for the printed contract.
        certain: Whether the values alone decide it.
        findings: Flags: evidence against the kind.
    """

    kind: ValueKind
    reason: str
    certain: bool
    findings: tuple[Finding, ...] = ()


def is_radar(bands: Sequence[str]) -> bool | None:
    """Return whether these bands are radar; None for a mix of radar and optical bands."""
    radar = [resolve_bands((name,))[0] in RADAR_BANDS for name in bands if are_sentinel_bands((name,))]
    return None if any(radar) and not all(radar) else bool(radar) and all(radar)


def outside_text(share: float, low: float, high: float) -> str:
    """Return a text on the share of pixels outside of a range of stored numbers."""
    return f"{share_text(share)} of the pixels outside {low:g} to {high:g}"


def share_text(share: float) -> str:
    """Return a share of pixels in percent; shares below 0.01 % are not rounded to 0.

    Example:
        >>> share_text(0.0123), share_text(1e-9)
        ('1.23%', 'under 0.01%')
    """
    return f"{share:.2%}" if share >= 0.0001 else "under 0.01%"


def detect_radar(values: FloatArray) -> Detection:
    """Detect the kind of radar numbers (C, N)."""
    low, mid, high = np.percentile(values, (1, 50, 99))
    if low > POWER_RANGE[0]:
        if high <= 30 and 0 <= mid < 3:
            return Detection("linear", f"radar power: 1 % below {low:.3g}, median {mid:.3g}", True)
        return Detection("unknown", f"radar numbers without calibration: median {mid:.4g}, 1 % below {low:.3g}", True)
    if low >= -70 and high <= 40 and -45 <= mid <= 5:
        return Detection("db", f"radar in decibels: median {mid:.1f}, 1 % below {low:.1f}", True)
    return Detection("unknown", f"radar numbers of no known range: {low:.3g} to {high:.3g}", True)


def detect_optical(values: FloatArray, bands: Sequence[str], dtype: str | None = None) -> Detection:
    """Detect the kind of optical numbers (C, N).

    Args:
        values: As stored, without pixels that are 0 in every band.
        bands: Band names.
        dtype: Pixel type of the file; None if unknown.
    """
    small = np.abs(values) < 2
    fractional = float((small & (values != np.rint(values))).mean()) > FRACTIONAL_SHARE
    floats = dtype is None or dtype.startswith("float")
    if fractional or (floats and float(np.median(values)) < 2):
        return _reflectance_kind(values, bands)
    gain = 1e-4
    if _share_outside(values, REFLECTANCE_RANGE[0] / gain, REFLECTANCE_RANGE[1] / gain) > EXTREME_SHARE:
        return _unknown_range(values, (REFLECTANCE_RANGE[0] / gain, REFLECTANCE_RANGE[1] / gain))
    high, top = np.percentile(values, (99, 99.9))
    if high > MAX_P99_REFLECTANCE / gain:
        return Detection("unknown", f"numbers of no known range: 1 % above {high:.5g}", True)
    if top <= 255:
        return Detection("unknown", f"numbers up to {top:.4g}: 8-bit, or digital numbers of a dark scene", False)
    present, reason = offset_present(values, bands)
    if present is None:
        return Detection("unknown", reason, False)
    return Detection("dn10000_offset" if present else "dn10000", reason, True)


def _reflectance_kind(values: FloatArray, bands: Sequence[str]) -> Detection:
    if _share_outside(values, *REFLECTANCE_RANGE) > EXTREME_SHARE:
        return _unknown_range(values, REFLECTANCE_RANGE)
    high, top = np.percentile(values, (99, 99.9))
    if high > MAX_P99_REFLECTANCE:
        return Detection("unknown", f"numbers of no known range: 1 % above {high:.3g}", True)
    if _is_scaled_8bit(values, float(top)):
        return Detection("unknown", "values in steps of 1/255: an 8-bit picture divided by 255", True)
    floors = np.percentile(values, 1, axis=1) * 1e4
    if len(bands) >= 6 and (floors >= OFFSET_FLOOR_DN[0]).all() and (floors <= OFFSET_FLOOR_DN[1]).all():
        return Detection("unknown", "reflectance whose bands all rest on 0.1: the offset seems to be in it", True)
    present, _ = offset_present(values.clip(*REFLECTANCE_RANGE) * np.float32(1e4), bands)
    findings = () if present is False else (suspected_offset(values, 1.0),)
    return Detection("reflectance", f"floats up to {high:.3g}", bool(values.any()), findings)


def _is_scaled_8bit(values: FloatArray, top: float) -> bool:
    """Return whether the numbers within 0..1 are multiples of 1/255, and nearly all are within 0..1."""
    inside = (values >= 0) & (values <= 1)
    if top > 1 or float(inside.mean()) < 1 - EXTREME_SHARE:
        return False
    steps = values[inside] * 255
    off = np.abs(steps - np.rint(steps)) > 2e-3
    return bool(float(off.mean()) <= EXTREME_SHARE / 10 and np.ptp(steps) > 0)


def offset_present(values: FloatArray, bands: Sequence[str]) -> tuple[bool | None, str]:
    """Return whether digital numbers (C, N) contain the offset of baseline 04.00, and why; None if undecided."""
    below = (values < DARK_DN).mean(1)
    darkest = int(below.argmax())
    if below[darkest] > 0.01:
        return False, f"{below[darkest]:.0%} of {bands[darkest]} lies below {DARK_DN:g}"
    floors = np.percentile(values, 1, axis=1)
    at_floor = (floors >= OFFSET_FLOOR_DN[0]) & (floors <= OFFSET_FLOOR_DN[1])
    cirrus = [i for i, name in enumerate(bands) if are_sentinel_bands((name,)) and resolve_bands((name,)) == ("B10",)]
    if cirrus and at_floor[cirrus[0]] and np.median(values[cirrus[0]]) < OFFSET_FLOOR_DN[1]:
        return True, f"the cirrus band rests on {floors[cirrus[0]]:.0f}"
    if len(bands) >= 6 and at_floor.mean() >= 0.75:
        return True, f"{at_floor.sum()} of {len(bands)} bands rest on {floors.min():.0f}"
    low = float(np.percentile(values, 1))
    return (
        None,
        f"digital numbers with hardly anything below {low:.0f}: a bright scene, or the offset of baseline 04.00",
    )


def suspected_offset(values: FloatArray, gain: float) -> Finding:
    """Return the flag of numbers without dark pixels.

    Args:
        values: (C, N) as stored.
        gain: Reflectance of a stored 1.
    """
    dark = float(np.percentile(values, 1, axis=1).min()) * gain
    return Finding(
        "offset-suspected", f"99 % of every band lies above reflectance {dark:.3f}: a bright scene, or the offset of 0.1 was left in"
    )  # fmt: skip


def _share_outside(values: FloatArray, low: float, high: float) -> float:
    return float((~((values >= low) & (values <= high))).any(0).mean())


def _unknown_range(values: FloatArray, limits: tuple[float, float]) -> Detection:
    share = _share_outside(values, *limits)
    worst = float(values.ravel()[np.abs(values - np.float32(np.median(values))).argmax()])
    return Detection(
        "unknown", f"numbers of no known range: {outside_text(share, *limits)}, such as {worst:.6g} (nodata that is not declared?)", True
    )  # fmt: skip

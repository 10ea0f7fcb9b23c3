"""What stored numbers say by themselves: radar or optical, power or decibels, with the offset or without.

Everything is decided by percentiles and shares, never by the largest or the smallest number: a few fill values that
nobody declared must not change what the others mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seawall.geo.sensors import RADAR, known, resolve

Kind = Literal["reflectance", "dn10000", "dn10000_offset", "uint8", "db", "linear", "unknown"]

OFFSET_DN = 1000.0
FLOOR_DN = (950.0, 1300.0)
"""Where the dark end of a band lies if the offset is in it: reflectance -0.005 to 0.03."""

BELOW_DN = 700.0
"""A pixel under this would have reflectance -0.03 if the offset were in: a few may, a percent of a band may not."""

BRIGHTEST = 2.8
"""A percent of a scene may be brighter (glint, clouds seen from the sun's side); more is another unit."""

REFLECTANCE = (-0.5, 5.0)
"""What a reflectance can be. Corrected products reach -0.2 and glint 3; -0.9999 and 6.5535 are fill values, scaled."""
DECIBELS = (-90.0, 45.0)
"""What backscatter in dB can be: the floor here is -60, a corner reflector gives 40."""
POWER = (-0.1, 31623.0)
"""What linear backscatter can be: up to 45 dB, and down to what the subtraction of noise leaves below 0."""

EXTREME_SHARE = 0.01
"""Up to this share of the pixels, numbers that the unit cannot hold are unseen and flagged; with more a file is refused."""

FRACTIONAL = 0.01
"""Digital numbers below 2 are whole; where more than this share is not, the numbers are physical."""

SAMPLE = 200_000
"""Pixels looked at; percentiles settle long before."""


@dataclass(frozen=True)
class Finding:
    """What speaks against an image.

    Args:
        id: Id of the flag, as `docs/flags.md` explains it.
        text: What was found, with its share.
        share: Share of the pixels; None where it is no matter of pixels.
    """

    id: str
    text: str
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.id}: {self.text}"


@dataclass(frozen=True)
class Detection:
    """What the values are, with the reason.

    Args:
        kind: What they are.
        reason: Why, for the printed contract.
        certain: Whether the values alone prove it.
        findings: What speaks against it all the same.
    """

    kind: Kind
    reason: str
    certain: bool
    findings: tuple[Finding, ...] = ()


def is_radar(bands: Sequence[str]) -> bool | None:
    """Tell whether these bands are radar; None if some are and some are not."""
    ids = [resolve((name,))[0] for name in bands if known((name,))]
    radar = [id_ in RADAR for id_ in ids]
    return None if any(radar) and not all(radar) else bool(radar) and all(radar)


def extremes_text(share: float, low: float, high: float) -> str:
    """Say what share of the pixels lies outside of a range of stored numbers."""
    return f"{percent(share)} of the pixels outside {low:g} to {high:g}"


def percent(share: float) -> str:
    """Write a share of pixels; a very small one is not rounded to none.

    Example:
        >>> percent(0.0123), percent(1e-9)
        ('1.23%', 'under 0.01%')
    """
    return f"{share:.2%}" if share >= 0.0001 else "under 0.01%"


def radar_kind(values: NDArray[np.float32]) -> Detection:
    """Tell what radar numbers (C, N) are."""
    low, mid, high = np.percentile(values, (1, 50, 99))
    if low > POWER[0]:
        if high <= 30 and 0 <= mid < 3:
            return Detection("linear", f"radar power: 1 % below {low:.3g}, median {mid:.3g}", True)
        return Detection("unknown", f"radar numbers without calibration: median {mid:.4g}, 1 % below {low:.3g}", True)
    if low >= -70 and high <= 40 and -45 <= mid <= 5:
        return Detection("db", f"radar in decibels: median {mid:.1f}, 1 % below {low:.1f}", True)
    return Detection("unknown", f"radar numbers of no known range: {low:.3g} to {high:.3g}", True)


def optical_kind(values: NDArray[np.float32], bands: Sequence[str], dtype: str | None = None) -> Detection:
    """Tell what optical numbers (C, N) are.

    Args:
        values: As stored, without pixels that are 0 in every band.
        bands: Band names.
        dtype: Pixel type in the file, if it is known.
    """
    small = np.abs(values) < 2
    fractional = float((small & (values != np.rint(values))).mean()) > FRACTIONAL
    floats = dtype is None or dtype.startswith("float")
    if fractional or (floats and float(np.median(values)) < 2):
        return _reflectance_kind(values, bands)
    gain = 1e-4
    if _share_outside(values, REFLECTANCE[0] / gain, REFLECTANCE[1] / gain) > EXTREME_SHARE:
        return _out_of_range(values, (REFLECTANCE[0] / gain, REFLECTANCE[1] / gain))
    high, top = np.percentile(values, (99, 99.9))
    if high > BRIGHTEST / gain:
        return Detection("unknown", f"numbers of no known range: 1 % above {high:.5g}", True)
    if top <= 255:
        return Detection("unknown", f"numbers up to {top:.4g}: 8-bit, or digital numbers of a dark scene", False)
    left, reason = offset_left(values, bands)
    if left is None:
        return Detection("unknown", reason, False)
    return Detection("dn10000_offset" if left else "dn10000", reason, True)


def _reflectance_kind(values: NDArray[np.float32], bands: Sequence[str]) -> Detection:
    if _share_outside(values, *REFLECTANCE) > EXTREME_SHARE:
        return _out_of_range(values, REFLECTANCE)
    high, top = np.percentile(values, (99, 99.9))
    if high > BRIGHTEST:
        return Detection("unknown", f"numbers of no known range: 1 % above {high:.3g}", True)
    if _eighths(values, float(top)):
        return Detection("unknown", "values in steps of 1/255: an 8-bit picture divided by 255", True)
    floors = np.percentile(values, 1, axis=1) * 1e4
    if len(bands) >= 6 and (floors >= FLOOR_DN[0]).all() and (floors <= FLOOR_DN[1]).all():
        return Detection("unknown", "reflectance whose bands all rest on 0.1: the offset seems to be in it", True)
    left, _ = offset_left(values.clip(*REFLECTANCE) * np.float32(1e4), bands)
    doubts = () if left is False else (offset_finding(values, 1.0),)
    return Detection("reflectance", f"floats up to {high:.3g}", bool(values.any()), doubts)


def _eighths(values: NDArray[np.float32], top: float) -> bool:
    """Tell whether numbers lie on steps of 1/255, but for those that no picture holds."""
    inside = (values >= 0) & (values <= 1)
    if top > 1 or float(inside.mean()) < 1 - EXTREME_SHARE:
        return False
    steps = values[inside] * 255
    off = np.abs(steps - np.rint(steps)) > 2e-3
    return bool(float(off.mean()) <= EXTREME_SHARE / 10 and np.ptp(steps) > 0)


def offset_left(values: NDArray[np.float32], bands: Sequence[str]) -> tuple[bool | None, str]:
    """Tell whether digital numbers (C, N) still hold the offset of baseline 04.00, and why; None if they don't show it."""
    below = (values < BELOW_DN).mean(1)
    darkest = int(below.argmax())
    if below[darkest] > 0.01:
        return False, f"{below[darkest]:.0%} of {bands[darkest]} lies below {BELOW_DN:g}"
    floors = np.percentile(values, 1, axis=1)
    at_floor = (floors >= FLOOR_DN[0]) & (floors <= FLOOR_DN[1])
    cirrus = [i for i, name in enumerate(bands) if known((name,)) and resolve((name,)) == ("B10",)]
    if cirrus and at_floor[cirrus[0]] and np.median(values[cirrus[0]]) < FLOOR_DN[1]:
        return True, f"the cirrus band rests on {floors[cirrus[0]]:.0f}"
    if len(bands) >= 6 and at_floor.mean() >= 0.75:
        return True, f"{at_floor.sum()} of {len(bands)} bands rest on {floors.min():.0f}"
    low = float(np.percentile(values, 1))
    return (
        None,
        f"digital numbers with hardly anything below {low:.0f}: a bright scene, or the offset of baseline 04.00",
    )


def offset_finding(values: NDArray[np.float32], unit: float) -> Finding:
    """Return the flag of numbers that have no dark end.

    Args:
        values: (C, N) as stored.
        unit: Reflectance of a stored 1.
    """
    dark = float(np.percentile(values, 1, axis=1).min()) * unit
    return Finding(
        "offset-suspected", f"99 % of every band lies above reflectance {dark:.3f}: a bright scene, or the offset of 0.1 was left in"
    )  # fmt: skip


def _share_outside(values: NDArray[np.float32], low: float, high: float) -> float:
    return float((~((values >= low) & (values <= high))).any(0).mean())


def _out_of_range(values: NDArray[np.float32], room: tuple[float, float]) -> Detection:
    share = _share_outside(values, *room)
    worst = float(values.ravel()[np.abs(values - np.float32(np.median(values))).argmax()])
    return Detection(
        "unknown", f"numbers of no known range: {extremes_text(share, *room)}, such as {worst:.6g} (nodata that is not declared?)", True
    )  # fmt: skip

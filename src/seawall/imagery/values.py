"""What stored numbers say by themselves: radar or optical, power or decibels, with the offset or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seawall.imagery.sensors import RADAR, known, resolve

Kind = Literal["reflectance", "dn10000", "dn10000_offset", "uint8", "db", "linear", "unknown"]

OFFSET_DN = 1000.0
FLOOR_DN = (950.0, 1300.0)
"""Where the dark end of a band lies if the offset is in it: reflectance -0.005 to 0.03."""

BELOW_DN = 700.0
"""A pixel under this would have reflectance -0.03 if the offset were in: a few may, a percent of a band may not."""

BRIGHTEST_DN = 28000.0
SAMPLE = 200_000
"""Pixels looked at; percentiles settle long before."""


@dataclass(frozen=True)
class Detection:
    """What the values are, with the reason; `certain` if the values alone prove it."""

    kind: Kind
    reason: str
    certain: bool


def is_radar(bands: Sequence[str]) -> bool | None:
    """Tell whether these bands are radar; None if some are and some are not."""
    ids = [resolve((name,))[0] for name in bands if known((name,))]
    radar = [id_ in RADAR for id_ in ids]
    return None if any(radar) and not all(radar) else bool(radar) and all(radar)


def radar_kind(values: NDArray[np.float32]) -> Detection:
    """Tell what radar numbers (C, N) are."""
    low, mid, high = np.percentile(values, (1, 50, 99))
    if values.min() >= 0:
        if high <= 30 and mid < 3:
            return Detection("linear", f"radar power: no value below 0, median {mid:.3g}", True)
        return Detection("unknown", f"radar numbers without calibration: median {mid:.4g}, none below 0", True)
    if low >= -70 and high <= 40 and -45 <= mid <= 5:
        return Detection("db", f"radar in decibels: median {mid:.1f}, 1 % below {low:.1f}", True)
    return Detection("unknown", f"radar numbers of no known range: {low:.3g} to {high:.3g}", True)


def optical_kind(values: NDArray[np.float32], bands: Sequence[str]) -> Detection:
    """Tell what optical numbers (C, N) are."""
    low, high = values.min(), float(np.percentile(values, 99))
    if high <= 2.8 and low >= -1 and float(np.abs(values).max()) <= 10:
        steps = values * 255
        if low >= 0 and values.max() <= 1 and np.allclose(steps, np.round(steps), atol=2e-3) and np.ptp(values) > 0:
            return Detection("unknown", "values in steps of 1/255: an 8-bit picture divided by 255", True)
        floors = np.percentile(values, 1, axis=1) * 1e4
        if len(bands) >= 6 and (floors >= FLOOR_DN[0]).all() and (floors <= FLOOR_DN[1]).all():
            return Detection("unknown", "reflectance whose bands all rest on 0.1: the offset seems to be in it", True)
        return Detection("reflectance", f"floats up to {high:.3g}", float(values.max()) > 0 or low < 0)
    if low < -5000 or high > BRIGHTEST_DN:
        return Detection("unknown", f"numbers of no known range: {low:.4g} to {high:.5g}", True)
    if values.max() <= 255:
        return Detection(
            "unknown", f"numbers up to {values.max():.4g}: 8-bit, or digital numbers of a dark scene", False
        )
    return _offset(values, bands)


def _offset(values: NDArray[np.float32], bands: Sequence[str]) -> Detection:
    below = (values < BELOW_DN).mean(1)
    darkest = int(below.argmax())
    if below[darkest] > 0.01:
        return Detection("dn10000", f"{below[darkest]:.0%} of {bands[darkest]} lies below {BELOW_DN:g}", True)
    floors = np.percentile(values, 1, axis=1)
    at_floor = (floors >= FLOOR_DN[0]) & (floors <= FLOOR_DN[1])
    cirrus = [i for i, name in enumerate(bands) if known((name,)) and resolve((name,)) == ("B10",)]
    if cirrus and at_floor[cirrus[0]] and values[cirrus[0]].mean() < FLOOR_DN[1]:
        return Detection("dn10000_offset", f"the cirrus band rests on {floors[cirrus[0]]:.0f}", True)
    if len(bands) >= 6 and at_floor.mean() >= 0.75:
        return Detection("dn10000_offset", f"{at_floor.sum()} of {len(bands)} bands rest on {floors.min():.0f}", True)
    return Detection(
        "unknown",
        f"digital numbers with nothing below {values.min():.0f}: a bright scene, or the offset of baseline 04.00",
        False,
    )

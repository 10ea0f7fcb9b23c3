"""Sentinel-2 per band: what the atmosphere and the optics do to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from seawall.geo.sensors import SENSORS, Band

SENTINEL_2: Mapping[str, Band] = MappingProxyType({band.id: band for band in SENSORS["sentinel-2-l1c"].bands})
"""Bands of Sentinel-2 by id."""

TABLE_SUN_DEG = 40.0
TABLE_AOD = 0.4
TABLE_ANGSTROM = 1.3
ASYMMETRY = 0.65
CLEAR_AOD = 0.1
"""Aerosol optical depth at 550 nm that an atmospheric correction has removed."""


@dataclass(frozen=True)
class BandOptics:
    """Atmosphere and optics of one band.

    Args:
        rayleigh: Rayleigh optical depth.
        path: Path reflectance of the Rayleigh atmosphere, sun at 40 degrees, nadir view.
        haze_path: Path reflectance that an aerosol optical depth of 0.4 at 550 nm adds.
        haze_transmittance: Two-way transmittance with that aerosol over that without.
        diffuse: Share of the light at the ground that comes from the sky, at an aerosol optical depth of 0.1.
        mtf: Modulation transfer function at the Nyquist frequency of the native grid; None where none is published.
    """

    rayleigh: float
    path: float
    haze_path: float
    haze_transmittance: float
    diffuse: float
    mtf: float | None


# 16-stream discrete ordinates (single-scattering albedo .92, Henyey-Greenstein g .65, Angstrom exponent 1.3). B09: the
# aerosol of the closed form, without water vapor. B10: water vapor hides the ground and the haze above it. The diffuse
# shares of both are read off the curve of the other bands. MTF: values in use by sharpening codes; two orders of the
# last entries circulate, with B8A and B09 exchanged.
OPTICS: Mapping[str, BandOptics] = MappingProxyType(
    {
        "B01": BandOptics(0.237, 0.085, 0.037, 0.77, 0.26, 0.32),
        "B02": BandOptics(0.153, 0.055, 0.033, 0.80, 0.20, 0.26),
        "B03": BandOptics(0.090, 0.033, 0.028, 0.83, 0.15, 0.28),
        "B04": BandOptics(0.045, 0.016, 0.021, 0.86, 0.10, 0.24),
        "B05": BandOptics(0.036, 0.013, 0.019, 0.87, 0.09, 0.38),
        "B06": BandOptics(0.029, 0.010, 0.018, 0.88, 0.08, 0.34),
        "B07": BandOptics(0.023, 0.008, 0.016, 0.89, 0.08, 0.34),
        "B08": BandOptics(0.018, 0.006, 0.015, 0.90, 0.07, 0.26),
        "B8A": BandOptics(0.016, 0.006, 0.014, 0.90, 0.06, 0.33),
        "B09": BandOptics(0.011, 0.004, 0.012, 0.90, 0.05, 0.26),
        "B10": BandOptics(0.002, 0.000, 0.000, 1.00, 0.03, None),
        "B11": BandOptics(0.001, 0.000, 0.0055, 0.96, 0.03, 0.22),
        "B12": BandOptics(0.000, 0.000, 0.0035, 0.97, 0.02, 0.23),
    }
)


def aerosol_depth(band: str, aod: float, angstrom: float) -> float:
    """Return the aerosol optical depth of a band from that at 550 nm."""
    return aod * math.pow(SENTINEL_2[band].center_nm / 550, -angstrom)


def aerosol_path(depth: float, sun_zenith_deg: float) -> float:
    """Return the path reflectance of an aerosol at nadir view, by single scattering fitted to discrete ordinates."""
    mu = math.cos(math.radians(sun_zenith_deg))
    phase = (1 - ASYMMETRY**2) / math.pow(1 + ASYMMETRY**2 + 2 * ASYMMETRY * mu, 1.5)
    return 1.19 * depth * phase / (4 * mu)


def rayleigh_path(band: str, sun_zenith_deg: float) -> float:
    """Return the path reflectance of the molecules: the table, moved to another sun by single scattering."""

    def scattered(degrees: float) -> float:
        mu = math.cos(math.radians(degrees))
        return 0.75 * (1 + mu**2) / (4 * mu)

    return OPTICS[band].path * scattered(sun_zenith_deg) / scattered(TABLE_SUN_DEG)


def clear_transmittance(band: str, sun_zenith_deg: float) -> float:
    """Return the two-way transmittance that an atmospheric correction of a clear day has divided by."""
    depth = 0.47 * OPTICS[band].rayleigh + 0.22 * aerosol_depth(band, CLEAR_AOD, TABLE_ANGSTROM)
    return math.exp(-depth * (1 + 1 / math.cos(math.radians(sun_zenith_deg))))


def native_ratios(bands: Sequence[str], gsd_m: float) -> list[float]:
    """Return the native pixel size of each band over that of the image."""
    return [SENTINEL_2[band].gsd_m / gsd_m for band in bands]

"""Band tables of Sentinel-2, Harmonized Landsat-Sentinel and Sentinel-1, and the spellings of their band names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from seawall.bands import short_band
from seawall.errors import ImageryError, did_you_mean
from seawall.types import Unit


@dataclass(frozen=True)
class Band:
    """One band of a sensor.

    Args:
        id: Canonical id, such as "B03" or "VV".
        common_name: Name of the STAC electro-optical extension, or the polarization.
        center_nm: Center wavelength in nanometers (of the radar's carrier for Sentinel-1).
        gsd_m: Ground sampling distance in meters.
        unit: Unit of its physical values.
        width_nm: Width at half height in nanometers; 0 for radar.
        noise: Noise-equivalent reflectance at the reference radiance; for radar the noise-equivalent sigma0 in dB.
        reference: Reflectance of the reference radiance, for a sun at the zenith.
        irradiance: Extraterrestrial solar irradiance in W m-2 um-1.
    """

    id: str
    common_name: str
    center_nm: float
    gsd_m: float
    unit: Unit
    width_nm: float = 0.0
    noise: float | None = None
    reference: float | None = None
    irradiance: float | None = None


@dataclass(frozen=True)
class Sensor:
    """A product family.

    Args:
        name: Key in `SENSORS`.
        bands: Its bands in product order.
        unit: Unit of its physical values.
        scale: Physical value of a stored 1.
        gsd_m: Finest ground sampling distance in meters.
        looks: Equivalent number of looks (radar), 0 otherwise.
        names: Band names that mean another band in this product, with their ids.
    """

    name: str
    bands: tuple[Band, ...]
    unit: Unit
    scale: float
    gsd_m: float
    looks: float = 0.0
    names: tuple[tuple[str, str], ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Canonical ids in product order."""
        return tuple(band.id for band in self.bands)


# id, common name, center and width in nm, ground sampling distance in m, signal-to-noise ratio at the reference
# radiance, that radiance and the extraterrestrial solar irradiance, both in W m-2 um-1 (sr-1): Sentinel-2A, from the
# mission requirements and the spectral response document of the Copernicus program.
_S2_TABLE = (
    ("B01", "coastal", 442.7, 21.0, 60, 129, 129.0, 1884.69),
    ("B02", "blue", 492.4, 66.0, 10, 154, 128.0, 1959.66),
    ("B03", "green", 559.8, 36.0, 10, 168, 128.0, 1823.24),
    ("B04", "red", 664.6, 31.0, 10, 142, 108.0, 1512.06),
    ("B05", "rededge071", 704.1, 15.0, 20, 117, 74.5, 1424.64),
    ("B06", "rededge075", 740.5, 15.0, 20, 89, 68.0, 1287.61),
    ("B07", "rededge078", 782.8, 20.0, 20, 105, 67.0, 1162.08),
    ("B08", "nir", 832.8, 106.0, 10, 174, 103.0, 1041.63),
    ("B8A", "nir08", 864.7, 21.0, 20, 72, 52.5, 955.32),
    ("B09", "nir09", 945.1, 20.0, 60, 114, 9.0, 812.92),
    ("B10", "cirrus", 1373.5, 31.0, 60, 50, 6.0, 367.15),
    ("B11", "swir16", 1613.7, 91.0, 20, 100, 4.0, 245.59),
    ("B12", "swir22", 2202.4, 175.0, 20, 100, 1.5, 85.25),
)


def _optical(id_: str, common: str, center: float, width: float, gsd: float, ratio: float, L: float, E: float) -> Band:
    # Reflectance of a radiance for a sun at the zenith at one astronomical unit: rho = pi L / E.
    reference = math.pi * L / E
    return Band(id_, common, center, gsd, "reflectance", width, reference / ratio, reference, E)


_S2_BANDS = tuple(_optical(*row) for row in _S2_TABLE)
_HLS_IDS = {"B01", "B02", "B03", "B04", "B8A", "B11", "B12"}
_CARRIER_NM = 299792458 / 5.405e9 * 1e9
_S1_BANDS = tuple(Band(p, p.lower(), _CARRIER_NM, 10.0, "sigma0_db", 0.0, -22.0) for p in ("VV", "VH", "HH", "HV"))

SENSORS: Mapping[str, Sensor] = MappingProxyType(
    {
        sensor.name: sensor
        for sensor in (
            Sensor("sentinel-2-l1c", _S2_BANDS, "reflectance", 1e-4, 10.0),
            Sensor("sentinel-2-l2a", tuple(b for b in _S2_BANDS if b.id != "B10"), "reflectance", 1e-4, 10.0),
            Sensor(
                "hls",
                tuple(
                    Band(b.id, b.common_name, b.center_nm, 30.0, b.unit, b.width_nm)
                    for b in _S2_BANDS
                    if b.id in _HLS_IDS
                ),
                "reflectance",
                1e-4,
                30.0,
                names=(("nir", "B8A"),),
            ),
            Sensor("sentinel-1-grd", _S1_BANDS, "sigma0_db", 1.0, 10.0, looks=4.4),
        )
    }
)
"""Product families by name."""

OPTICAL_BANDS = tuple(band.id for band in _S2_BANDS)
RADAR_BANDS = tuple(band.id for band in _S1_BANDS)

_NAMES: Mapping[str, str] = MappingProxyType(
    {band.common_name: band.id for band in (*_S2_BANDS, *_S1_BANDS)}
    | {
        "coastalaerosol": "B01",
        "aerosol": "B01",
        "aerosols": "B01",
        "ultrablue": "B01",
        "rededge1": "B05",
        "rededge2": "B06",
        "rededge3": "B07",
        "rededge703": "B05",
        "rededge704": "B05",
        "rededge740": "B06",
        "rededge783": "B07",
        "nir1": "B08",
        "nirbroad": "B08",
        "nir2": "B8A",
        "nirnarrow": "B8A",
        "narrownir": "B8A",
        "rededge4": "B8A",
        "watervapor": "B09",
        "watervapour": "B09",
        "swircirrus": "B10",
        "swir1": "B11",
        "swir11": "B11",
        "swir1610": "B11",
        "swir1613": "B11",
        "swir2": "B12",
        "swir12": "B12",
        "swir2190": "B12",
        "swir2202": "B12",
        "swir3": "B12",
    }
)
_PREFIX = re.compile(r"^(sentinel2|sentinel1|s2a|s2b|s2|s1a|s1b|s1|hls)(?=[a-z])")
_SUFFIX = re.compile(r"(\d\d)m$")
_NUMBER = re.compile(r"^(?:band|b)0*(\d{1,2})$")


def resolve_bands(bands: Sequence[str], sensor: str | None = None) -> tuple[str, ...]:
    """Return the canonical ids of band names such as "B1", "Green", "swir16", "S2_B08_10m" and "sigma0_VV".

    A plain "NIR" is the broad band B08, in HLS the narrow B8A.

    Args:
        bands: Names, in any of the usual spellings.
        sensor: Product family whose own names take precedence.

    Raises:
        ImageryError: A name is unknown, or two names mean the same band.

    Example:
        >>> resolve_bands(("B1", "Green", "NIR", "SWIR1"))
        ('B01', 'B03', 'B08', 'B11')
    """
    own = dict(find_sensor(sensor).names) if sensor else {}
    ids: list[str] = []
    for name in bands:
        id_ = _band_id(name, own)
        if id_ is None:
            hint = did_you_mean(name, (*OPTICAL_BANDS, *RADAR_BANDS, *_NAMES))
            hint = hint if hint.startswith("did") else "rename it to a band id such as B03 or VV"
            raise ImageryError(f"bands: expected names of Sentinel bands, got {name!r}; {hint}")
        if id_ in ids:
            raise ImageryError(
                f"bands: expected each band once, got {bands[ids.index(id_)]!r} and {name!r} for {id_}; drop one"
            )
        ids.append(id_)
    return tuple(ids)


def are_sentinel_bands(bands: Sequence[str]) -> bool:
    """Return whether all of these are names of Sentinel bands."""
    return all(_band_id(name, {}) is not None for name in bands)


def find_sensor(name: str) -> Sensor:
    """Return a product family.

    Raises:
        ImageryError: The name is unknown.
    """
    if name not in SENSORS:
        raise ImageryError(f"sensor: unknown name {name!r}; {did_you_mean(name, SENSORS)}")
    return SENSORS[name]


def _band_id(name: str, own: Mapping[str, str]) -> str | None:
    if "?" in name:  # a guess of whoever described the data is no band id
        return None
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    key = re.sub(r"^(sigma0?|gamma0?|beta0?)|(db|linear)$", "", key) if re.search(r"[vh][vh]", key) else key
    key = _SUFFIX.sub("", _PREFIX.sub("", key))
    if key in own:
        return own[key]
    if key.upper() in RADAR_BANDS:
        return key.upper()
    if key in ("b8a", "b08a", "band8a"):
        return "B8A"
    number = _NUMBER.match(key)
    if number and f"B{int(number[1]):02d}" in OPTICAL_BANDS:
        return f"B{int(number[1]):02d}"
    return _NAMES.get(key)


def band_noise(bands: Sequence[str]) -> dict[str, float]:
    """Return the noise-equivalent reflectance of optical bands; radar bands are left out.

    Example:
        >>> round(band_noise(["B03"])["B03"], 4)
        0.0013
    """
    published = {band.id: band.noise for band in _S2_BANDS if band.noise}
    return {name: published[short_band(name)] for name in bands if short_band(name) in published}

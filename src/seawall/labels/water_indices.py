"""Water indices on reflectance and backscatter, and where they are defined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Annotated, TypeVar, final

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator
from torch import Tensor

from seawall.errors import DataError, RadiometryError, UsageError, did_you_mean
from seawall.geo.sensors import are_sentinel_bands, resolve_bands
from seawall.registry import build, parse_settings, preset, register
from seawall.types import DECIBEL_UNITS

MaskedIndex = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""An index (..., H, W), NaN where it is undefined, and the mask of the pixels where it is defined."""

BandPlane = TypeVar("BandPlane", NDArray[np.float64], Tensor)
"""A band as a formula takes it: a NumPy array in labels, a PyTorch tensor in models."""

BAND_ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"blue": ("B02",), "green": ("B03",), "red": ("B04",), "nir": ("B08", "B8A"), "swir1": ("B11",), "swir2": ("B12",)}
)
"""Bands that can be an argument of an index, best first; the narrow near infrared stands in for the wide one."""


class WaterIndex(ABC):
    """A water index: its bands, its formula, and where its values change from land to water.

    Called on an image, it returns the index and the mask where it is defined. Values are not clipped: over-corrected dark
    water can exceed the span. A subclass is a frozen dataclass; label rules, label noise and the model `threshold` take
    it by its name.

    Attributes:
        name: Name in rules, recipes and messages; a preset has its own.
        slopes: Sign of the coefficient of each band in the linear inequality that `index > t` is equivalent to, for every t
            within the span; empty where there is none, and then no worst case is computed in closed form.
        threshold: Published threshold.
        sign: 1 where water is above the threshold, -1 where it is below.
        units: Units of an image that the formula is defined on.
    """

    name: str = ""
    slopes: tuple[int, ...] = ()
    threshold: float = 0.0
    sign: int = 1
    units: tuple[str, ...] = ("reflectance",)

    @property
    @abstractmethod
    def roles(self) -> tuple[str, ...]:
        """Keys of `BAND_ROLES`, or band ids, in the order of the formula's arguments."""

    @abstractmethod
    def formula(self, *bands: BandPlane) -> BandPlane:
        """Return the index of its bands, for NumPy arrays and PyTorch tensors alike."""

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest value for reflectance from 0 to 1, or for backscatter that occurs; the range of histograms."""
        return -1.0, 1.0

    def divisor(self, *bands: BandPlane) -> BandPlane | None:
        """Return what the formula divides by, if anything: the index is undefined where it is not positive."""
        return None

    def __str__(self) -> str:
        settings = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]  # type: ignore[arg-type]
        changed = [f"{name}={value}" for name, value, default in settings if default is MISSING or value != default]
        return " ".join([self.name, *changed])

    @property
    def bands(self) -> tuple[str, ...]:
        """The first choice of band for each role."""
        return tuple(bands_of_role(role)[0] for role in self.roles)

    def channels(self, bands: Sequence[str]) -> tuple[int | None, ...]:
        """Return the channel of each role among the bands of an image; None where no band can be it."""
        found = (next((band for band in bands_of_role(role) if band in bands), None) for role in self.roles)
        return tuple(None if band is None else list(bands).index(band) for band in found)

    @final
    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str = "reflectance"
    ) -> MaskedIndex:
        """Return the index (..., H, W), NaN where it is undefined, and the mask where it is defined.

        Args:
            image: (..., C, H, W) in the given unit, such as reflectance from 0 to about 1.
            seen: (..., H, W) bool.
            bands: Band ids of the C channels.
            unit: Unit of the image.

        Raises:
            RadiometryError: The formula is not defined on this unit.
            DataError: A band is missing or the shapes disagree.
        """
        values = self._arguments(image, seen, bands, unit)
        defined = seen.copy()
        divisor = self.divisor(*values)
        if divisor is not None:
            defined &= np.isfinite(divisor) & (divisor > 0)
            values = [np.where(defined, value, 1.0) for value in values]  # no division by zero where it is undefined
        index = self.formula(*values)
        defined &= np.isfinite(index)
        return np.where(defined, index, np.nan).astype(np.float32), defined

    def _arguments(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str
    ) -> list[NDArray[np.float64]]:
        if unit not in self.units:
            raise RadiometryError(f"{self}: expected {' or '.join(self.units)}, got {unit}; convert the image first")
        if image.ndim < 3 or image.shape[-3] != len(bands):
            raise DataError(
                f"{self}: expected an image (..., {len(bands)}, H, W) for bands {', '.join(bands)}, got {image.shape}; name every channel"
            )
        if seen.shape != image.shape[:-3] + image.shape[-2:]:
            raise DataError(
                f"{self}: expected seen of shape {image.shape[:-3] + image.shape[-2:]}, got {seen.shape}; align it with the image"
            )
        found: list[NDArray[np.float64]] = []
        for role, channel in zip(self.roles, self.channels(bands), strict=True):
            if channel is None:
                raise DataError(
                    f"{self}: expected {role} ({' or '.join(bands_of_role(role))}), got bands {', '.join(bands)}; choose an index that these bands allow"
                )
            found.append(image[..., channel, :, :].astype(np.float64))
        return found


def bands_of_role(role: str) -> tuple[str, ...]:
    """Return the bands that can be an argument of an index, best first; a band id stands for itself.

    Raises:
        UsageError: Neither a role nor a band.

    Example:
        >>> bands_of_role("nir"), bands_of_role("B05")
        (('B08', 'B8A'), ('B05',))
    """
    if role not in BAND_ROLES and not are_sentinel_bands((role,)):
        raise UsageError(f"band: unknown name {role!r}; {did_you_mean(role, BAND_ROLES)}")
    return BAND_ROLES.get(role) or tuple(resolve_bands((role,)))


@register(
    "water-index", "normalized-difference", smoke={"first": "green", "second": "nir"}, traits=("scale-invariant",)
)
@final
@dataclass(frozen=True)
class NormalizedDifference(WaterIndex):
    """Difference of two bands over their sum, (first - second) / (first + second), with water above.

    It is undefined where the sum is not positive: there it is 0/0 or has the wrong sign.

    Args:
        first: Band in which water is the brighter one: a key of `BAND_ROLES`, or a band id.
        second: The other band.

    Example:
        >>> green, nir = [[0.3]], [[0.1]]
        >>> index, defined = parse_index("ndwi")(np.float32([green, nir]), np.array([[True]]), ["B03", "B08"])
        >>> round(float(index[0, 0]), 6), bool(defined[0, 0])
        (0.5, True)
    """

    first: str
    second: str
    name = "normalized-difference"
    slopes = (1, -1)  # (1 - t) first - (1 + t) second > 0 where the sum is positive and |t| < 1

    def __post_init__(self) -> None:
        bands_of_role(self.first), bands_of_role(self.second)

    @property
    def roles(self) -> tuple[str, ...]:
        """The two bands."""
        return self.first, self.second

    def formula(self, *bands: BandPlane) -> BandPlane:
        """Return the normalized difference."""
        first, second = bands
        return (first - second) / (first + second)

    def divisor(self, *bands: BandPlane) -> BandPlane:
        """Return the sum of the bands."""
        first, second = bands
        return first + second


@register("water-index", "awei_nsh", paper="Feyisa et al. 2014")
@final
@dataclass(frozen=True)
class AweiWithoutShadow(WaterIndex):
    """Automated water extraction index for scenes without shadow."""

    name = "awei_nsh"
    roles = ("green", "nir", "swir1", "swir2")
    slopes = (1, -1, -1, -1)
    span = (-7.0, 4.0)

    def formula(self, *bands: BandPlane) -> BandPlane:
        """Return the index."""
        green, nir, swir1, swir2 = bands
        return 4 * (green - swir1) - (0.25 * nir + 2.75 * swir2)


@register("water-index", "awei_sh", paper="Feyisa et al. 2014")
@final
@dataclass(frozen=True)
class AweiWithShadow(WaterIndex):
    """Automated water extraction index against shadow."""

    name = "awei_sh"
    roles = ("blue", "green", "nir", "swir1", "swir2")
    slopes = (1, 1, -1, -1, -1)
    span = (-4.0, 4.0)

    def formula(self, *bands: BandPlane) -> BandPlane:
        """Return the index."""
        blue, green, nir, swir1, swir2 = bands
        return blue + 2.5 * green - 1.5 * (nir + swir1) - 0.25 * swir2


@register("water-index", "backscatter")
@final
@dataclass(frozen=True)
class Backscatter(WaterIndex):
    """Backscatter of one polarization in dB; water is below the threshold.

    Args:
        polarization: VV or VH.
        threshold: In dB.
        low: Lowest value of a histogram, in dB.
        high: Highest value of a histogram, in dB.
    """

    polarization: str = "VV"
    threshold: float = -13.45
    low: float = -35.0
    high: float = 10.0
    name = "backscatter"
    slopes = (1,)
    sign = -1
    units = DECIBEL_UNITS

    def __post_init__(self) -> None:
        bands_of_role(self.polarization)

    @property
    def roles(self) -> tuple[str, ...]:
        """The polarization."""
        return (self.polarization,)

    @property
    def span(self) -> tuple[float, float]:
        """Range of a histogram."""
        return self.low, self.high

    def formula(self, *bands: BandPlane) -> BandPlane:
        """Return the band."""
        (band,) = bands
        return band


def parse_index(given: object) -> WaterIndex:
    """Return the index of a text: a name such as "ndwi", with settings such as "normalized-difference first=B03 second=B05".

    An index passes through.

    Raises:
        UsageError: There is no such index or setting; the message guesses.
        ValueError: Neither an index nor text.

    Example:
        >>> parse_index("MNDWI").bands
        ('B03', 'B11')
    """
    if isinstance(given, WaterIndex):
        return given
    if not isinstance(given, str):
        raise ValueError('a water index or its text, such as "ndwi"')
    name, settings = parse_settings("water-index", given)
    return build("water-index", name.lower(), settings)


IndexField = Annotated[WaterIndex, PlainValidator(parse_index)]
"""An index, in Python as a value and in settings as text: `index = "ndwi"`."""

preset(
    "water-index", "ndwi", NormalizedDifference("green", "nir"), paper="McFeeters 1996", traits=("scale-invariant",),
    summary="Normalized difference of green and near infrared.",
)  # fmt: skip
preset(
    "water-index", "mndwi", NormalizedDifference("green", "swir1"), paper="Xu 2006", traits=("scale-invariant",),
    summary="Normalized difference of green and short-wave infrared, which holds better over built-up land.",
)  # fmt: skip
preset(
    "water-index", "vv", Backscatter("VV"), summary="Backscatter of co-polarized radar in dB, with water below.",
)  # fmt: skip
preset(
    "water-index", "vh", Backscatter("VH", -20.0, -40.0, 5.0), summary="Backscatter of cross-polarized radar in dB, with water below.",
)  # fmt: skip

"""Water indices on reflectance and backscatter, where they are defined, and rules that label images by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seawall.errors import DataError, RadiometryError, UsageError, did_you_mean
from seawall.labels.threshold import WaterThreshold, fixed, otsu

MaskedIndex = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""An index (..., H, W), NaN where it is undefined, and the mask of the pixels where it is defined."""

BAND_ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "blue": ("B02",), "green": ("B03",), "nir": ("B08", "B8A"), "swir1": ("B11",), "swir2": ("B12",),
        "vv": ("VV",), "vh": ("VH",),
    }
)  # fmt: skip
"""Bands that can be an argument of an index, best first; the narrow near infrared stands in for the wide one."""


@dataclass(frozen=True)
class WaterIndex:
    """A water index, its formula, and where its values change from land to water.

    Called on an image, it returns the index and the mask where it is defined. A normalized difference is undefined
    where the sum of its bands is not positive: there it is 0/0 or has the wrong sign. Values of over-corrected dark
    water can exceed 1 and are not clipped.

    Args:
        name: Name in rules, recipes and messages.
        roles: Keys of `BAND_ROLES` in the order of the formula's arguments.
        formula: The index of its bands, for NumPy arrays and PyTorch tensors alike.
        ratio: The formula divides by the sum of its bands.
        threshold: Published threshold.
        span: Lowest and highest value of a histogram of the index.
        sign: 1 where water is above the threshold, -1 where it is below.
        units: Units of an image that the formula is defined on.

    Example:
        >>> index, defined = ndwi(np.array([[[0.3]], [[0.1]]], np.float32), np.array([[True]]), ["B03", "B08"])
        >>> round(float(index[0, 0]), 6), bool(defined[0, 0])
        (0.5, True)
    """

    name: str
    roles: tuple[str, ...]
    formula: Callable[..., Any]
    ratio: bool = False
    threshold: float = 0.0
    span: tuple[float, float] = (-1.0, 1.0)
    sign: int = 1
    units: tuple[str, ...] = ("reflectance",)

    @property
    def bands(self) -> tuple[str, ...]:
        """The first choice of band for each role."""
        return tuple(BAND_ROLES[role][0] for role in self.roles)

    def channels(self, bands: Sequence[str]) -> tuple[int | None, ...]:
        """Return the channel of each role among the bands of an image; None where no band can be it."""
        found = (next((band for band in BAND_ROLES[role] if band in bands), None) for role in self.roles)
        return tuple(None if band is None else list(bands).index(band) for band in found)

    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str = "reflectance"
    ) -> MaskedIndex:
        """Return the index (..., H, W), NaN where it is undefined, and the mask where it is defined.

        Args:
            image: (..., C, H, W) reflectance, 0 to about 1.
            seen: (..., H, W) bool.
            bands: Band ids of the C channels.
            unit: Unit of the image.

        Raises:
            RadiometryError: The formula is not defined on this unit.
            DataError: A band is missing or the shapes disagree.
        """
        values = self._arguments(image, seen, bands, unit)
        defined = seen.copy()
        if self.ratio:
            total = sum(values[1:], values[0])
            defined &= np.isfinite(total) & (total > 0)
            values = [np.where(defined, value, 1.0) for value in values]  # no division by zero where it is undefined
        index = self.formula(*values)
        defined &= np.isfinite(index)
        return np.where(defined, index, np.nan).astype(np.float32), defined

    def _arguments(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str
    ) -> list[NDArray[np.float64]]:
        if unit not in self.units:
            raise RadiometryError(
                f"{self.name}: expected {' or '.join(self.units)}, got {unit}; convert the image first"
            )
        if image.ndim < 3 or image.shape[-3] != len(bands):
            raise DataError(
                f"{self.name}: expected an image (..., {len(bands)}, H, W) for bands {', '.join(bands)}, got {image.shape}; name every channel"
            )
        if seen.shape != image.shape[:-3] + image.shape[-2:]:
            raise DataError(
                f"{self.name}: expected seen of shape {image.shape[:-3] + image.shape[-2:]}, got {seen.shape}; align it with the image"
            )
        found: list[NDArray[np.float64]] = []
        for role, channel in zip(self.roles, self.channels(bands), strict=True):
            if channel is None:
                raise DataError(
                    f"{self.name}: expected {role} ({' or '.join(BAND_ROLES[role])}), got bands {', '.join(bands)}; choose an index that these bands allow"
                )
            found.append(image[..., channel, :, :].astype(np.float64))
        return found


def _normalized_difference(a: Any, b: Any) -> Any:
    return (a - b) / (a + b)


ndwi = WaterIndex("ndwi", ("green", "nir"), _normalized_difference, ratio=True)
"""Normalized difference water index. Paper: McFeeters 1996."""

mndwi = WaterIndex("mndwi", ("green", "swir1"), _normalized_difference, ratio=True)
"""Modified index, which holds better over built-up land. Paper: Xu 2006."""

awei_nsh = WaterIndex(
    "awei_nsh",
    ("green", "nir", "swir1", "swir2"),
    lambda green, nir, swir1, swir2: 4 * (green - swir1) - (0.25 * nir + 2.75 * swir2),
    span=(-4.0, 4.0),
)
"""Automated water extraction index for scenes without shadow. Paper: Feyisa et al. 2014."""

awei_sh = WaterIndex(
    "awei_sh",
    ("blue", "green", "nir", "swir1", "swir2"),
    lambda blue, green, nir, swir1, swir2: blue + 2.5 * green - 1.5 * (nir + swir1) - 0.25 * swir2,
    span=(-4.0, 4.0),
)
"""Automated water extraction index against shadow. Paper: Feyisa et al. 2014."""

vv = WaterIndex("vv", ("vv",), lambda vv: vv, False, -13.45, (-35.0, 10.0), -1, ("sigma0_db", "gamma0_db"))
"""Backscatter of co-polarized radar in dB; water is below the threshold."""

vh = WaterIndex("vh", ("vh",), lambda vh: vh, False, -20.0, (-40.0, 5.0), -1, ("sigma0_db", "gamma0_db"))
"""Backscatter of cross-polarized radar in dB; water is below the threshold."""

WATER_INDICES: Mapping[str, WaterIndex] = MappingProxyType(
    {index.name: index for index in (ndwi, mndwi, awei_nsh, awei_sh, vv, vh)}
)
"""The one table of water indices: of label rules (those on reflectance) and of the model `threshold` (all)."""

INDICES: Mapping[str, WaterIndex] = MappingProxyType(
    {name: index for name, index in WATER_INDICES.items() if "reflectance" in index.units}
)
"""Indices of label rules."""


def water_index(name: str) -> WaterIndex:
    """Return the index of that name for a label rule.

    Raises:
        UsageError: There is none; the message guesses.
    """
    if name not in INDICES:
        raise UsageError(f"water index: unknown name {name!r}; {did_you_mean(name, INDICES)}")
    return INDICES[name]


UNDEFINED_LABEL = 255
"""Label of a pixel where the index is undefined; the value of a pixel without a label in chip files."""

_FIXED = re.compile(r"^(\w+)\s*(>=|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)$")
_OTSU = re.compile(r"^(\w+)\s+otsu(?:\s+else\s+([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?))?$")


@dataclass(frozen=True)
class RuleLabel:
    """A label made by a rule.

    Args:
        label: (H, W) uint8: 0 land, 1 water, 255 where the index is undefined.
        threshold: What was used, and why.
        rule: The rule as text.
    """

    label: NDArray[np.uint8]
    threshold: WaterThreshold
    rule: str = ""

    @property
    def note(self) -> str:
        """What was done, for the index of a chip folder."""
        return f"labelled by {self.rule or 'an index'}: {self.threshold.reason}"


@dataclass(frozen=True)
class Rule:
    """Label as water where an index exceeds a threshold.

    Args:
        index: Name in `INDICES`.
        at: The fixed threshold; with Otsu, the fallback where the histogram has one mode.
        inclusive: A pixel equal to a fixed threshold is water.
        otsu: Look for Otsu's threshold in each image.
    """

    index: str
    at: float = 0.0
    inclusive: bool = False
    otsu: bool = False

    def __post_init__(self) -> None:
        water_index(self.index)
        fixed(self.at)

    def __str__(self) -> str:
        if self.otsu:
            return f"{self.index} otsu else {self.at:g}"
        return f"{self.index} {'>=' if self.inclusive else '>'} {self.at:g}"

    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str
    ) -> RuleLabel:
        """Label an image (C, H, W); pixels where the index is undefined get 255, never water.

        Raises:
            RadiometryError: The image is not reflectance.
            DataError: A band is missing.
        """
        water = water_index(self.index)
        index, defined = water(image, seen, bands, unit)
        if self.otsu:
            threshold = otsu(index, defined, fallback=self.at, low=water.span[0], high=water.span[1])
        else:
            threshold = fixed(self.at, inclusive=self.inclusive)
        label = threshold.water(index, defined).astype(np.uint8)
        label[~defined] = UNDEFINED_LABEL
        return RuleLabel(label, threshold, str(self))


REPORT_RULE = Rule("ndwi", -0.25, inclusive=True)
"""The rule of the report, NDWI >= -0.25; it also labels wet soil and shadow as water."""


def parse_rule(text: str) -> Rule:
    """Read a rule such as "ndwi >= -0.25", "mndwi > 0", "mndwi otsu" or "mndwi otsu else 0.1".

    Raises:
        UsageError: The text is no rule, or the index is unknown.

    Example:
        >>> parse_rule("ndwi >= -0.25") == REPORT_RULE
        True
        >>> str(parse_rule("mndwi otsu"))
        'mndwi otsu else 0'
    """
    words = " ".join(text.strip().lower().split())
    if match := _FIXED.match(words):
        return Rule(match[1], float(match[3]), inclusive=match[2] == ">=")
    if match := _OTSU.match(words):
        return Rule(match[1], float(match[2] or 0.0), otsu=True)
    raise UsageError(
        f"label rule: expected '<index> >= <number>' or '<index> otsu else <number>', got {text!r}; for example 'ndwi >= -0.25'"
    )

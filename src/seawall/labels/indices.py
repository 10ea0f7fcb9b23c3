"""Water indices on surface or top-of-atmosphere reflectance, with the truth about where they are defined."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from seawall.errors import DataError, RadiometryError, UsageError, did_you_mean
from seawall.labels.threshold import Threshold, fixed, otsu

Index = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""An index (..., H, W), NaN where it is undefined, and the mask of the pixels where it is defined."""

ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"blue": ("B02",), "green": ("B03",), "nir": ("B08", "B8A"), "swir1": ("B11",), "swir2": ("B12",)}
)
"""Bands that can play a part in an index, best first; the narrow near infrared stands in for the wide one."""


class WaterIndex(Protocol):
    """One of the indices of this module."""

    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str = "reflectance"
    ) -> Index: ...


def ndwi(image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str = "reflectance") -> Index:
    """Normalized difference water index, (green - nir) / (green + nir).

    Undefined where the pixel is unseen, or where green + nir is not positive: there the ratio is 0/0 or has
    the wrong sign. Over-corrected dark water can exceed 1; the value is not clipped.

    Args:
        image: (..., C, H, W) reflectance, 0 to about 1; digital numbers would change the index.
        seen: (..., H, W) bool.
        bands: Band ids of the C channels.
        unit: Unit of the image; anything but reflectance is refused.

    Returns:
        The index (..., H, W), NaN where undefined, and the mask where it is defined.

    Raises:
        RadiometryError: The image is not reflectance.
        DataError: A band is missing or the shapes disagree.

    Example:
        >>> index, defined = ndwi(np.array([[[0.3]], [[0.1]]], np.float32), np.array([[True]]), ["B03", "B08"])
        >>> round(float(index[0, 0]), 6), bool(defined[0, 0])
        (0.5, True)

    Paper: McFeeters 1996.
    """
    green, nir = _parts("ndwi", image, seen, bands, unit, ("green", "nir"))
    return _ratio(green, nir, seen)


def mndwi(
    image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str = "reflectance"
) -> Index:
    """Modified index, (green - swir1) / (green + swir1), which holds better over built-up land.

    Arguments, result and errors are those of `ndwi`.

    Paper: Xu 2006.
    """
    green, swir = _parts("mndwi", image, seen, bands, unit, ("green", "swir1"))
    return _ratio(green, swir, seen)


def awei_nsh(
    image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str = "reflectance"
) -> Index:
    """Automated water extraction index for scenes without shadow, 4 (green - swir1) - (0.25 nir + 2.75 swir2).

    Arguments, result and errors are those of `ndwi`; it is a sum, so it is defined wherever the pixel is seen.

    Paper: Feyisa et al. 2014.
    """
    green, nir, swir1, swir2 = _parts("awei_nsh", image, seen, bands, unit, ("green", "nir", "swir1", "swir2"))
    return _sum(4.0 * (green - swir1) - (0.25 * nir + 2.75 * swir2), seen)


def awei_sh(
    image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str = "reflectance"
) -> Index:
    """Automated water extraction index against shadow, blue + 2.5 green - 1.5 (nir + swir1) - 0.25 swir2.

    Arguments, result and errors are those of `ndwi`; it is a sum, so it is defined wherever the pixel is seen.

    Paper: Feyisa et al. 2014.
    """
    parts = ("blue", "green", "nir", "swir1", "swir2")
    blue, green, nir, swir1, swir2 = _parts("awei_sh", image, seen, bands, unit, parts)
    return _sum(blue + 2.5 * green - 1.5 * (nir + swir1) - 0.25 * swir2, seen)


INDICES: Mapping[str, WaterIndex] = MappingProxyType(
    {"ndwi": ndwi, "mndwi": mndwi, "awei_nsh": awei_nsh, "awei_sh": awei_sh}
)


def water_index(name: str) -> WaterIndex:
    """Return the index of that name.

    Raises:
        UsageError: There is none; the message guesses.
    """
    if name not in INDICES:
        raise UsageError(f"water index: unknown name {name!r}; {did_you_mean(name, INDICES)}")
    return INDICES[name]


def _parts(
    name: str,
    image: NDArray[np.float32],
    seen: NDArray[np.bool_],
    bands: Sequence[str],
    unit: str,
    roles: Sequence[str],
) -> list[NDArray[np.float64]]:
    if unit != "reflectance":
        raise RadiometryError(
            f"{name}: expected reflectance, got {unit}; water indices are defined on reflectance, convert the image first"
        )
    if image.ndim < 3 or image.shape[-3] != len(bands):
        raise DataError(
            f"{name}: expected an image (..., {len(bands)}, H, W) for bands {', '.join(bands)}, got {image.shape}; name every channel"
        )
    if seen.shape != image.shape[:-3] + image.shape[-2:]:
        raise DataError(
            f"{name}: expected seen of shape {image.shape[:-3] + image.shape[-2:]}, got {seen.shape}; align it with the image"
        )
    return [image[..., _channel(name, role, bands), :, :].astype(np.float64) for role in roles]


def _channel(name: str, role: str, bands: Sequence[str]) -> int:
    for band in ROLES[role]:
        if band in bands:
            return list(bands).index(band)
    raise DataError(
        f"{name}: expected {role} ({' or '.join(ROLES[role])}), got bands {', '.join(bands)}; choose an index that these bands allow"
    )


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64], seen: NDArray[np.bool_]) -> Index:
    total = a + b
    defined = seen & np.isfinite(total) & (total > 0)
    index = np.divide(a - b, total, out=np.full(total.shape, np.nan), where=defined)
    return index.astype(np.float32), defined


def _sum(value: NDArray[np.float64], seen: NDArray[np.bool_]) -> Index:
    defined = seen & np.isfinite(value)
    return np.where(defined, value, np.nan).astype(np.float32), defined


IGNORE = 255  # label of a pixel that does not count, in files only: inside the library `valid` says it
_FIXED = re.compile(r"^(\w+)\s*(>=|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)$")
_OTSU = re.compile(r"^(\w+)\s+otsu(?:\s+else\s+([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?))?$")


@dataclass(frozen=True)
class Labelled:
    """A label made by a rule.

    Args:
        label: (H, W) uint8: 0 land, 1 water, 255 where the index is undefined.
        threshold: What was used, and why.
        rule: The rule as text.
    """

    label: NDArray[np.uint8]
    threshold: Threshold
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
    ) -> Labelled:
        """Label an image (C, H, W); pixels where the index is undefined get 255, never water.

        Raises:
            RadiometryError: The image is not reflectance.
            DataError: A band is missing.
        """
        index, defined = water_index(self.index)(image, seen, bands, unit)
        if self.otsu:
            span = 1.0 if self.index in ("ndwi", "mndwi") else 4.0
            threshold = otsu(index, defined, fallback=self.at, low=-span, high=span)
        else:
            threshold = fixed(self.at, inclusive=self.inclusive)
        label = threshold.water(index, defined).astype(np.uint8)
        label[~defined] = IGNORE
        return Labelled(label, threshold, str(self))


REPORT = Rule("ndwi", -0.25, inclusive=True)
"""The report's own rule, NDWI >= -0.25: permissive, it takes wet soil and shadow for water."""


def parse_rule(text: str) -> Rule:
    """Read a rule such as "ndwi >= -0.25", "mndwi > 0", "mndwi otsu" or "mndwi otsu else 0.1".

    Raises:
        UsageError: The text is no rule, or the index is unknown.

    Example:
        >>> parse_rule("ndwi >= -0.25") == REPORT
        True
        >>> str(parse_rule("mndwi otsu"))
        'mndwi otsu else 0'
    """
    said = " ".join(text.strip().lower().split())
    if match := _FIXED.match(said):
        return Rule(match[1], float(match[3]), inclusive=match[2] == ">=")
    if match := _OTSU.match(said):
        return Rule(match[1], float(match[2] or 0.0), otsu=True)
    raise UsageError(
        f"label rule: expected '<index> >= <number>' or '<index> otsu else <number>', got {text!r}; for example 'ndwi >= -0.25'"
    )

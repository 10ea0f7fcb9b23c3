"""A rule that labels water from an image: an index and a threshold, said in one line of a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.errors import UsageError
from seawall.labels.threshold import Threshold, fixed, otsu
from seawall.labels.water import water_index

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

"""Rules that label an image without a label file; the one reader of their text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from seawall import registry
from seawall.errors import UsageError
from seawall.labels.threshold import WaterThreshold, fixed, otsu
from seawall.labels.water_indices import IndexField, WaterIndex, parse_index

UNDEFINED_LABEL = 255
"""Label of a pixel that a rule says nothing about; the value of a pixel without a label in chip files."""

REPORT_RULE = "ndwi >= -0.25"
"""The rule of the SRIP report; it also labels wet soil and shadow as water."""

_DECIMAL = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_FIXED = re.compile(rf"(.+?)\s*(>=|>|<=|<)\s*{_DECIMAL}")
_OTSU = re.compile(rf"(.+?)\s+otsu(?:\s+else\s+{_DECIMAL})?", re.IGNORECASE)


@dataclass(frozen=True)
class RuleLabel:
    """A label made by a rule.

    Args:
        label: (H, W) uint8: 0 land, 1 water, 255 where the rule says nothing, as it does of all unseen pixels.
        note: What was done, in one sentence for the index of a chip folder.
        threshold: What was used, and why; None for a rule without one.
    """

    label: NDArray[np.uint8]
    note: str
    threshold: WaterThreshold | None = None


@runtime_checkable
class LabelRule(Protocol):
    """A frozen dataclass that labels an image as water and land."""

    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str
    ) -> RuleLabel:
        """Return the label of an image.

        Args:
            image: (C, H, W) in data units; not written to.
            seen: (H, W) bool.
            bands: Band ids of the C channels.
            unit: Unit of the image.

        Raises:
            RadiometryError: The rule is not defined on this unit.
            DataError: A band is missing.
        """
        ...


@registry.register("label-rule", "threshold", smoke={"index": "ndwi", "at": -0.25})
@final
@dataclass(frozen=True)
class ThresholdRule:
    """Water where an index is on water's side of a threshold; written as "ndwi >= -0.25".

    Args:
        index: A water index, or its text.
        at: The threshold, in the unit of the index.
        inclusive: A pixel equal to the threshold is water.
    """

    index: IndexField
    at: float
    inclusive: bool = False

    def __post_init__(self) -> None:
        fixed(self.at)

    def __str__(self) -> str:
        return f"{self.index} {'>' if self.index.sign > 0 else '<'}{'=' if self.inclusive else ''} {self.at:g}"

    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str
    ) -> RuleLabel:
        """Label an image (C, H, W); pixels where the index is undefined get 255, never water."""
        index, defined = self.index(image, seen, bands, unit)
        return _water_label(index, defined, self.index, fixed(self.at, inclusive=self.inclusive), str(self))


@registry.register("label-rule", "otsu", paper="Otsu 1979", smoke={"index": "mndwi", "fallback": 0.0})
@final
@dataclass(frozen=True)
class OtsuRule:
    """Water on water's side of each image's Otsu threshold; written as "mndwi otsu else 0.1".

    Args:
        index: A water index, or its text.
        fallback: Threshold of an image whose histogram does not have two modes.
    """

    index: IndexField
    fallback: float

    def __post_init__(self) -> None:
        fixed(self.fallback)

    def __str__(self) -> str:
        return f"{self.index} otsu else {self.fallback:g}"

    def __call__(
        self, image: NDArray[np.float32], seen: NDArray[np.bool_], bands: Sequence[str], unit: str
    ) -> RuleLabel:
        """Label an image (C, H, W); pixels where the index is undefined get 255, never water."""
        index, defined = self.index(image, seen, bands, unit)
        low, high = self.index.span
        found = otsu(index, defined, fallback=self.fallback, low=low, high=high)
        return _water_label(index, defined, self.index, found, str(self))


def _water_label(
    values: NDArray[np.float32], defined: NDArray[np.bool_], index: WaterIndex, threshold: WaterThreshold, rule: str
) -> RuleLabel:
    label = threshold.water(values, defined, index.sign).astype(np.uint8)
    label[~defined] = UNDEFINED_LABEL
    return RuleLabel(label, f"labelled by {rule}: {threshold.reason}", threshold)


def parse_rule(text: str) -> LabelRule:
    """Return the label rule of a text.

    A water index with a threshold is written as "ndwi >= -0.25", "mndwi > 0", "vv < -15", "mndwi otsu" or
    "mndwi otsu else 0.1"; without `else` the fallback is the index's published threshold. Any other registered rule is
    written as its name and settings, "name setting=value".

    Raises:
        UsageError: The text is no rule, the index is unknown, or the comparison is not on water's side.

    Example:
        >>> str(parse_rule("NDWI >= -0.25"))
        'ndwi >= -0.25'
        >>> str(parse_rule("mndwi otsu"))
        'mndwi otsu else 0'
    """
    words = " ".join(text.split())
    if match := _FIXED.fullmatch(words):
        index = parse_index(match[1])
        if (index.sign > 0) != (match[2][0] == ">"):
            side, sign = ("above", ">") if index.sign > 0 else ("below", "<")
            raise UsageError(
                f"label rule: expected '{index} {sign} {match[3]}', for water is {side}, got {text!r}; turn it around"
            )
        return ThresholdRule(index, float(match[3]), inclusive=match[2].endswith("="))
    if match := _OTSU.fullmatch(words):
        index = parse_index(match[1])
        return OtsuRule(index, float(match[2] or index.threshold))
    return _parse_named_rule(words, text)


def _parse_named_rule(words: str, text: str) -> LabelRule:
    name = words.partition(" ")[0].lower()
    by_name = {entry.name for entry in registry.entries("label-rule")} - {"threshold", "otsu"}
    if name not in by_name:
        raise UsageError(
            "label rule: expected '<index> >= <number>', '<index> otsu else <number>' or '<rule> setting=value', "
            f"got {text!r}; for example '{REPORT_RULE}', or a rule of `seawall methods --kind label-rule`"
        )
    return registry.build("label-rule", name, registry.parse_settings("label-rule", words)[1])

"""Labels from images and vector layers: water indices, thresholds, agreement of sources, registration error."""

from seawall.labels.indices import (
    INDICES,
    REPORT,
    Labelled,
    Rule,
    awei_nsh,
    awei_sh,
    mndwi,
    ndwi,
    parse_rule,
    water_index,
)
from seawall.labels.threshold import Threshold, fixed, otsu

__all__ = [
    "INDICES",
    "REPORT",
    "Labelled",
    "Rule",
    "Threshold",
    "awei_nsh",
    "awei_sh",
    "fixed",
    "mndwi",
    "ndwi",
    "otsu",
    "parse_rule",
    "water_index",
]

"""Labels from images and vector layers: water indices, thresholds, agreement of sources, registration error."""

from seawall.labels.indices import (
    INDICES,
    REPORT_RULE,
    WATER_INDICES,
    Rule,
    RuleLabel,
    WaterIndex,
    awei_nsh,
    awei_sh,
    mndwi,
    ndwi,
    parse_rule,
    water_index,
)
from seawall.labels.threshold import WaterThreshold, fixed, otsu

__all__ = [
    "INDICES",
    "WATER_INDICES",
    "WaterIndex",
    "REPORT_RULE",
    "RuleLabel",
    "Rule",
    "WaterThreshold",
    "awei_nsh",
    "awei_sh",
    "fixed",
    "mndwi",
    "ndwi",
    "otsu",
    "parse_rule",
    "water_index",
]

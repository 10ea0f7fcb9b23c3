"""Labels from images: water indices, thresholds, and rules that join the two."""

from seawall.labels.rule import REPORT, Labelled, Rule, parse_rule
from seawall.labels.threshold import Threshold, fixed, otsu
from seawall.labels.water import INDICES, awei_nsh, awei_sh, mndwi, ndwi, water_index

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

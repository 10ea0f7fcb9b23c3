"""Figures from rows: pure functions of records with NumPy alone, so that reports need no torch."""

from seawall.figures.aggregate import figures
from seawall.figures.card import card
from seawall.figures.doubts import doubts, with_doubts
from seawall.figures.intervals import AVERAGES, Resamples
from seawall.figures.ratios import CLASSWISE, OVERALL, Tally, measure
from seawall.figures.suite import WORST, worst_case
from seawall.figures.worst import Candidates, worst_each, worst_pooled, worst_ratio

__all__ = [
    "AVERAGES",
    "CLASSWISE",
    "Candidates",
    "OVERALL",
    "Resamples",
    "Tally",
    "WORST",
    "card",
    "doubts",
    "figures",
    "measure",
    "with_doubts",
    "worst_case",
    "worst_each",
    "worst_pooled",
    "worst_ratio",
]

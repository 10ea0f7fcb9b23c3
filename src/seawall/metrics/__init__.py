"""Metrics: counts per chip first, ratios of counts last."""

from seawall.metrics.aggregate import figures
from seawall.metrics.calibration import Calibration, calibration_counts, edge_band, expected_calibration_error
from seawall.metrics.counts import confusion, count_rows, pooled, summarize
from seawall.metrics.object_sizes import Bodies
from seawall.metrics.ratios import (
    CLASSWISE,
    OVERALL,
    Tally,
    accuracy,
    f1,
    iou,
    measure,
    miou,
    precision,
    recall,
    specificity,
)
from seawall.metrics.srip import binarize, gray, otsu, scores_of, srip_scores
from seawall.metrics.worst_case import Candidates, worst_case, worst_each, worst_pooled, worst_ratio

dice = f1

__all__ = [
    "Bodies",
    "CLASSWISE",
    "Calibration",
    "Candidates",
    "OVERALL",
    "Tally",
    "accuracy",
    "binarize",
    "calibration_counts",
    "confusion",
    "count_rows",
    "dice",
    "edge_band",
    "expected_calibration_error",
    "f1",
    "figures",
    "gray",
    "iou",
    "measure",
    "miou",
    "otsu",
    "pooled",
    "precision",
    "recall",
    "scores_of",
    "specificity",
    "srip_scores",
    "summarize",
    "worst_case",
    "worst_each",
    "worst_pooled",
    "worst_ratio",
]

"""Uncertainty of a map: predictors of several passes, calibrated probabilities, and thresholds with a guarantee."""

"""How sure a map is: passes over one or many models, calibrated confidence, and thresholds with a guarantee."""

from seawall.uncertainty.conformal import Conformal, conformal_threshold, fit_conformal, missed_shares
from seawall.uncertainty.dropout import MonteCarloDropout
from seawall.uncertainty.predictor import (
    Ensemble,
    Prediction,
    Predictor,
    SinglePass,
    Symmetries,
    entropy,
    gather,
    margin,
)
from seawall.uncertainty.temperature import Scaled, Temperature, fit_temperature, temperature_of

__all__ = [
    "Conformal",
    "Ensemble",
    "MonteCarloDropout",
    "Prediction",
    "Predictor",
    "Scaled",
    "SinglePass",
    "Temperature",
    "Symmetries",
    "conformal_threshold",
    "entropy",
    "fit_conformal",
    "fit_temperature",
    "gather",
    "margin",
    "missed_shares",
    "temperature_of",
]

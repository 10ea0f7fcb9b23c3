"""Evaluation of models: model x method x chip to records, with sanity checks of robustness numbers."""

from seawall.evaluation.case import CLEAN_CASE, MEASURES, Case, SanityCheckCost, fit_set_attacks
from seawall.evaluation.evaluate import NON_FINITE, evaluate_model, missing_chips, write_examples
from seawall.evaluation.examples import write_example

__all__ = [
    "CLEAN_CASE",
    "MEASURES",
    "NON_FINITE",
    "SanityCheckCost",
    "Case",
    "evaluate_model",
    "fit_set_attacks",
    "missing_chips",
    "write_example",
    "write_examples",
]

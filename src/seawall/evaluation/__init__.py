"""The matrix model x method x chip, as rows."""

from seawall.evaluation.case import CLEAN, MEASURES, Asked, Case, fitted
from seawall.evaluation.evaluate import NON_FINITE, at_rest, evaluate, missing, write_examples
from seawall.evaluation.examples import write_example

__all__ = [
    "CLEAN",
    "MEASURES",
    "NON_FINITE",
    "Asked",
    "Case",
    "at_rest",
    "evaluate",
    "fitted",
    "missing",
    "write_example",
    "write_examples",
]

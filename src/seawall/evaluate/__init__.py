"""The matrix model x method x chip, as rows."""

from seawall.evaluate.case import CLEAN, MEASURES, Asked, Case, fitted
from seawall.evaluate.example import write_example
from seawall.evaluate.matrix import NON_FINITE, at_rest, evaluate, missing, write_examples

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

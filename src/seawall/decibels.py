"""Backscatter in decibels and the linear power in which it may be averaged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seawall.types import DECIBEL_UNITS, Unit


def is_decibels(unit: Unit) -> bool:
    """Return whether values are logarithmic."""
    return unit in DECIBEL_UNITS


def to_power(image: Tensor, unit: Unit) -> Tensor:
    """Return values that may be averaged: linear power for decibels, else the values themselves."""
    # torch.pow rounds the last elements of a tensor differently, so that its values would depend on the batch
    return torch.exp(image * (math.log(10) / 10)) if is_decibels(unit) else image


def from_power(image: Tensor, unit: Unit) -> Tensor:
    """Undo `to_power`; power is at least 1e-10."""
    return 10 * torch.log10(image.clamp_min(1e-10)) if is_decibels(unit) else image

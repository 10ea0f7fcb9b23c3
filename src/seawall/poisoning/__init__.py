"""Poisoned training chips: backdoors, clean-label poisons, and their detection."""

from seawall.label_noise.build import noise_text, parse_noise
from seawall.label_noise.erode_dilate import assign_thirds
from seawall.label_noise.label_difference import Realized, apply, realized
from seawall.label_noise.label_view import meters_of, rings_of
from seawall.label_noise.teacher import model_teacher, saliency_teacher

__all__ = [
    "Realized",
    "apply",
    "assign_thirds",
    "meters_of",
    "model_teacher",
    "noise_text",
    "parse_noise",
    "realized",
    "rings_of",
    "saliency_teacher",
]

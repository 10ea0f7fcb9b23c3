"""Wrong labels on purpose: label noise and morphological attacks within exact budgets, and records of what they did."""

from seawall.poison.budget import meters_of, rings_of
from seawall.poison.realized import Realized, apply, realized
from seawall.poison.teacher import model_teacher, saliency_teacher
from seawall.poison.text import noise_text, parse_noise
from seawall.poison.thirds import assign_thirds

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

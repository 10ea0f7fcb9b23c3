"""seawall: robust semantic segmentation of Sentinel imagery, in physical units.

The public names are imported when they are first used, so that importing seawall loads neither torch nor rasterio.
The verb `report` is in `seawall.api`, because a package here has its name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from seawall.api import (
        area,
        attack,
        audit_labels,
        calibrate,
        certify,
        compare_labels,
        corrupt,
        curate,
        detect_attacks,
        doctor,
        evaluate,
        find_poisons,
        flip_bits,
        harden,
        make_key,
        methods,
        poison,
        predict,
        run,
        sensitivity,
        stress,
        train,
    )
    from seawall.data.chips import ChipFolder
    from seawall.data.loader import patches, whole_chips
    from seawall.inference.predict import predict_many, predict_scene
    from seawall.models.adapter import adapt
    from seawall.models.weights import load_model, save_model
    from seawall.recipe.recipe import Recipe, read_recipe
    from seawall.registry import build, entries, find, register
    from seawall.result import Result
    from seawall.rng import Keys
    from seawall.threat import ThreatModel, parse_threat
    from seawall.types import Batch, ModelSpec

_HOMES = {
    "seawall.api": (
        "area",
        "attack",
        "audit_labels",
        "calibrate",
        "certify",
        "compare_labels",
        "corrupt",
        "curate",
        "detect_attacks",
        "doctor",
        "evaluate",
        "find_poisons",
        "flip_bits",
        "harden",
        "make_key",
        "methods",
        "poison",
        "predict",
        "run",
        "sensitivity",
        "stress",
        "train",
    ),
    "seawall.data.chips": ("ChipFolder",),
    "seawall.data.loader": ("patches", "whole_chips"),
    "seawall.inference.predict": ("predict_many", "predict_scene"),
    "seawall.rng": ("Keys",),
    "seawall.models.adapter": ("adapt",),
    "seawall.models.weights": ("load_model", "save_model"),
    "seawall.recipe.recipe": ("Recipe", "read_recipe"),
    "seawall.registry": ("build", "entries", "find", "register"),
    "seawall.threat": ("ThreatModel", "parse_threat"),
    "seawall.result": ("Result",),
    "seawall.types": ("Batch", "ModelSpec"),
}

__all__ = [
    "Batch", "ChipFolder", "Keys", "ModelSpec", "Recipe", "Result", "ThreatModel", "adapt", "area", "attack", "audit_labels", "build", "calibrate",
    "certify", "compare_labels", "corrupt", "curate", "detect_attacks", "doctor", "entries", "evaluate", "find", "find_poisons", "flip_bits",
    "harden", "load_model", "make_key", "methods", "parse_threat", "patches", "poison", "predict", "predict_many", "predict_scene", "read_recipe",
    "register", "run", "save_model", "sensitivity", "stress", "train", "whole_chips",
]  # fmt: skip


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'seawall' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

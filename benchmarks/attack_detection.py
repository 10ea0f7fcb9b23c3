from __future__ import annotations

import argparse

from study import (
    LOSS,
    recipe_by_group,
    training_settings,
)

from seawall.recipe.recipe import Recipe

MEMBERS = 3
PLAIN, DROPOUT = "plain", "dropout"


def recipe(given: argparse.Namespace, seed: int, member: int, dropout: float = 0.0) -> Recipe:
    """Return what one network is trained by; a member of an ensemble has weights and patches of its own."""
    network = {"width": given.width, "dropout": dropout}
    section = {
        "objective": {"name": "supervised", "settings": {"loss": LOSS}},
        "settings": training_settings(given, 64, 5),
    }
    return recipe_by_group(
        {
            "name": "attack-detection",
            "seed": seed + 100 * member,
            "model": {"name": "unet", "settings": network},
            "training": section,
        }
    )

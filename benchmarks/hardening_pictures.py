"""Pictures of hardening for the documentation: water maps of a plain and a hardened network, and of an index, under attack.

Trains both networks on simulated scenes with the same steps (five minutes on one thread), attacks another scene within
growing budgets by PGD, the index by its exact worst case, and draws the maps: water that the map and the truth have is
blue, water that the map misses is orange, land that it calls water is red.
Run: `python benchmarks/hardening_pictures.py docs/images/hardening`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from pictures import SPEC, Picture, draw_sheets, titled, trained, true_color, water_map
from torch import nn

from seawall import registry
from seawall.evaluation.exact import ExactWorstCase
from seawall.models.index_unet import IndexUNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.rng import Keys
from seawall.threat.parser import parse_threat
from seawall.types import Attack, Batch

BUDGETS = ("0.25%", "0.5%", "1%", "2%")


def attacked(model: nn.Module, attack: Attack, scene: Batch) -> Iterator[tuple[str, Batch]]:
    """Yield every budget with the scene attacked within it."""
    for budget in BUDGETS:
        image = attack(model, scene, parse_threat(f"linf {budget} reflectance", SPEC), Keys(0, scene.chips))
        yield budget, replace(scene, image=image)


def row(model: nn.Module, attack: Attack, scene: Batch, words: str) -> list[Picture]:
    """Return the maps of the clean scene and within every budget."""
    maps = [water_map(model, after, f"{words}, {budget}") for budget, after in attacked(model, attack, scene)]
    return [water_map(model, scene, f"{words}, clean"), *maps]


def attacked_views(model: nn.Module, attack: Attack, scene: Batch) -> list[Picture]:
    """Return the scene as it looks clean and attacked within every budget."""
    views = [
        titled(true_color(after), f"plain U-Net attacked, {budget}") for budget, after in attacked(model, attack, scene)
    ]
    return [titled(true_color(scene), "simulated scene"), *views]


def sheets(chips: Batch, scene: Batch, plain: nn.Module) -> Mapping[str, Picture]:
    """Return the maps of every network, clean and attacked, below what the attacked scene looks like."""
    within = {"threat": "linf 2% reflectance", "draw": "squared"}
    hardened = trained(chips, IndexUNet(8, 3), "n-fgsm", within)
    pgd = registry.build("attack", "pgd", {"steps": 20})
    index = WaterIndexThreshold("mndwi")(SPEC)
    rows = [
        attacked_views(plain, pgd, scene),
        row(plain, pgd, scene, "plain U-Net"),
        row(index, ExactWorstCase(), scene, "MNDWI > 0"),
        row(hardened, pgd, scene, "hardened"),
    ]
    return {"water-maps.jpg": np.vstack([np.hstack(panels) for panels in rows])}


if __name__ == "__main__":
    draw_sheets(__doc__, sheets)

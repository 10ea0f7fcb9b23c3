"""Pictures of hardening for the documentation: water maps of a plain and a hardened network, and of an index, under attack.

Trains both networks on simulated scenes with the same steps (five minutes on one thread), attacks another scene within
growing budgets by PGD, the index by its exact worst case, and draws the maps: water that the map and the truth have is
blue, water that the map misses is orange, land that it calls water is red.
Run: `python benchmarks/hardening_pictures.py docs/images/hardening`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from weight_fault_pictures import SPEC, scenes, titled, trained, true_color, water_map

from seawall import registry
from seawall.evaluation.exact import ExactWorstCase
from seawall.io import write_atomic
from seawall.models.index_unet import IndexUNet
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.rng import Keys
from seawall.threat.parser import parse_threat
from seawall.types import Attack, Batch

BUDGETS = ("0.25%", "0.5%", "1%", "2%")
SHOWN = 27
"""Seed of the scene that is drawn; the networks learn from others."""


def row(model: nn.Module, attack: Attack, scene: Batch, words: str) -> list[NDArray[np.uint8]]:
    """Return the maps of the clean scene and within every budget."""
    panels = [water_map(model, scene, f"{words}, clean")]
    for budget in BUDGETS:
        threat = parse_threat(f"linf {budget} reflectance", SPEC)
        image = attack(model, scene, threat, Keys(0, scene.chips))
        panels.append(water_map(model, replace(scene, image=image), f"{words}, {budget}"))
    return panels


def attacked_views(model: nn.Module, attack: Attack, scene: Batch) -> list[NDArray[np.uint8]]:
    """Return the scene as it looks clean and attacked within every budget."""
    panels = [titled(true_color(scene), "simulated scene")]
    for budget in BUDGETS:
        image = attack(model, scene, parse_threat(f"linf {budget} reflectance", SPEC), Keys(0, scene.chips))
        panels.append(titled(true_color(replace(scene, image=image)), f"plain U-Net attacked, {budget}"))
    return panels


def main() -> None:
    """Train, attack, draw."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("folder", type=Path)
    folder = ask.parse_args().folder
    torch.set_num_threads(1)
    chips, scene = scenes(range(1, 9)), scenes([SHOWN])
    plain = trained(chips, UNet(8, 3), "supervised", {})
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
    sheet = np.vstack([np.hstack(panels) for panels in rows])
    folder.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])
    write_atomic(folder / "water-maps.jpg", data.tobytes())


if __name__ == "__main__":
    main()

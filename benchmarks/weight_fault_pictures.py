"""Pictures of flipped weight bits for the documentation: water maps of a small U-Net before and after flips.

Trains the network on simulated scenes (two minutes on one thread), flips bits of its 8-bit weights by the progressive
search and at random, and draws the maps of another scene: water that the map and the truth have is blue, water that
the map misses is orange, land that it calls water is red.
Run: `python benchmarks/weight_fault_pictures.py docs/images/weight-faults`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from seawall import registry
from seawall.geo.preview import Stretch, rgb_channels
from seawall.io import write_atomic
from seawall.models.unet import UNet
from seawall.rng import Keys
from seawall.simulate.scene import simulate_s2
from seawall.types import Batch, ModelSpec, Setting
from seawall.weight_faults.damage import count_class
from seawall.weight_faults.int8 import int8_weights
from seawall.weight_faults.search import ProgressiveBitSearch, RandomFlips, WeightFault

BANDS = ("B02", "B03", "B04", "B08", "B11")
SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
SCENE, PANEL, TITLE, STEPS = 256, 256, 30, 250
BLUE, ORANGE, RED, LAND, UNSEEN = (60, 120, 216), (240, 150, 40), (205, 45, 45), (236, 234, 226), (150, 150, 150)
SHOWN = 27
"""Seed of the scene that is drawn; the network learns from others."""
SHOWN_WHITE = 0.35
"""Reflectance that is shown as white."""


def scenes(seeds: Sequence[int]) -> Batch:
    """Return simulated scenes without clouds as a batch."""
    made = [simulate_s2(f"scene{seed}", SCENE, BANDS, seed=seed, clouds=False) for seed in seeds]
    image = torch.stack([torch.from_numpy(one.image) for one in made])
    label = torch.stack([torch.from_numpy(one.water.astype(np.int64)) for one in made])
    seen = torch.stack([torch.from_numpy(one.seen) for one in made])
    return Batch.of(image, label, seen=seen, chips=tuple(f"scene{seed}" for seed in seeds))


def trained(chips: Batch, architecture: UNet, objective: str, settings: Mapping[str, Setting]) -> nn.Module:
    """Return a small network that was trained on random patches."""
    torch.manual_seed(0)
    model = architecture(SPEC)
    mean = chips.image.movedim(1, 0)[:, chips.seen]
    model.standardize.fit(mean.mean(1).tolist(), mean.std(1).tolist())
    loss = registry.build("objective", objective, {"loss": "ce + dice", **settings})
    rule = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(STEPS):
        batch = cut(chips, step)
        rule.zero_grad()
        loss(model, batch, Keys(step, batch.chips)).backward()
        rule.step()
    return model.eval()


def cut(chips: Batch, step: int) -> Batch:
    """Return a patch of 64 pixels of each scene."""
    row, col = np.random.default_rng(step).integers(0, SCENE - 64, 2).tolist()
    part = (..., slice(row, row + 64), slice(col, col + 64))
    return Batch(chips.image[part], chips.label[part], chips.seen[part], chips.valid[part], chips.chips)


def water_map(model: nn.Module, batch: Batch, title: str) -> NDArray[np.uint8]:
    """Return the map of a scene against the truth, with its IoU in the title."""
    with torch.no_grad():
        says = model(batch.image)[0].argmax(0).numpy() == 1
    truth, seen = batch.label[0].numpy() == 1, batch.seen[0].numpy()
    picture = np.full((*truth.shape, 3), LAND, np.uint8)
    picture[says & truth], picture[~says & truth], picture[says & ~truth], picture[~seen] = BLUE, ORANGE, RED, UNSEEN
    iou = count_class(model, [batch], 1).iou or 0.0
    return titled(picture, f"{title}: IoU {iou:.2f}")


def true_color(scene: Batch) -> NDArray[np.uint8]:
    """Return the picture of a scene."""
    stretch = Stretch(np.zeros(3, np.float32), SHOWN_WHITE, 0.65)
    return stretch(scene.image[0].numpy()[rgb_channels(BANDS)], scene.seen[0].numpy())


def titled(picture: NDArray[np.uint8], words: str) -> NDArray[np.uint8]:
    """Return a picture of `PANEL` pixels with words above it."""
    panel = np.full((PANEL + TITLE, PANEL + 8, 3), 255, np.uint8)
    panel[TITLE:, 4:-4] = cv2.resize(picture, (PANEL, PANEL), interpolation=cv2.INTER_NEAREST)
    cv2.putText(panel, words, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return panel


def maps_after(
    model: nn.Module, fault: WeightFault, chips: Batch, scene: Batch, at: Sequence[int], words: str
) -> list[NDArray[np.uint8]]:
    """Return the maps after certain numbers of flips."""
    panels, done = [], 0
    with int8_weights(model) as weights:
        if 0 in at:
            panels.append(water_map(model, scene, "8-bit weights"))
        for flips in islice(fault(weights, chips, 0), max(at)):
            done += len(flips)
            if done in at:
                panels.append(water_map(model, scene, f"{done} {words}{'s' if done > 1 else ''}"))
            if done >= max(at):
                break
    return panels


def main() -> None:
    """Train, flip, draw."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("folder", type=Path)
    folder = ask.parse_args().folder
    torch.set_num_threads(1)
    chips, scene = scenes(range(1, 9)), scenes([SHOWN])
    model = trained(chips, UNet(8, 3), "supervised", {})
    rgb = true_color(scene)
    truth = np.where(scene.label[0].numpy()[..., None] == 1, np.array(BLUE, np.uint8), np.array(LAND, np.uint8))
    top = [titled(rgb, "simulated scene"), titled(truth, "true water")]
    top += maps_after(model, ProgressiveBitSearch(), chips, scene, (0,), "")
    search = maps_after(model, ProgressiveBitSearch(), chips, scene, (1, 2, 3, 4), "searched flip")
    control = maps_after(model, RandomFlips(0.0), chips, scene, (1000,), "random flip")
    sheet = np.vstack([np.hstack([*top, *control]), np.hstack(search)])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "water-maps.png", cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())


if __name__ == "__main__":
    main()

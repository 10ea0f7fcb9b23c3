"""What the pictures for the documentation share: simulated scenes, a small network trained on them, panels with words, and files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
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

Picture = NDArray[np.uint8]

BANDS = ("B02", "B03", "B04", "B08", "B11")
SPEC = ModelSpec(BANDS, ("land", "water"), "reflectance", 10.0)
SCENE, PANEL, TITLE, STEPS = 256, 256, 30, 250
BLUE, ORANGE, RED, LAND, UNSEEN = (60, 120, 216), (240, 150, 40), (205, 45, 45), (236, 234, 226), (150, 150, 150)
SHOWN = 27
"""Seed of the scene that is drawn; the networks learn from others."""
SHOWN_WHITE = 0.35
"""Reflectance that is shown as white."""


def draw_sheets(
    doc: str | None, draw: Callable[[Batch, Batch, nn.Module], Mapping[str, Picture]], quality: int = 75
) -> None:
    """Train a plain network, have sheets drawn from the chips, the scene that is shown and the network, and write them.

    Args:
        doc: What the command line says of the script.
        draw: Called as draw(chips, scene, network); returns the sheets by the name of their file.
        quality: Of a JPEG file.
    """
    ask = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("folder", type=Path)
    folder = ask.parse_args().folder
    torch.set_num_threads(1)
    chips, scene = scenes(range(1, 9)), scenes([SHOWN])
    for name, sheet in draw(chips, scene, trained(chips, UNet(8, 3), "supervised", {})).items():
        write_sheet(folder / name, sheet, quality)


def write_sheet(path: Path, sheet: Picture, quality: int) -> int:
    """Write a sheet in the format that its name says, and return its bytes."""
    how = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    _, data = cv2.imencode(path.suffix, sheet[..., ::-1], how)
    write_atomic(path, data.tobytes())
    return len(data)


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


def water_map(model: nn.Module, batch: Batch, title: str) -> Picture:
    """Return the map of a scene against the truth, with its IoU in the title."""
    with torch.no_grad():
        says = model(batch.image)[0].argmax(0).numpy() == 1
    truth, seen = batch.label[0].numpy() == 1, batch.seen[0].numpy()
    picture = np.full((*truth.shape, 3), LAND, np.uint8)
    picture[says & truth], picture[~says & truth], picture[says & ~truth], picture[~seen] = BLUE, ORANGE, RED, UNSEEN
    iou = count_class(model, [batch], 1).iou or 0.0
    return titled(picture, f"{title}: IoU {iou:.2f}")


def true_color(scene: Batch) -> Picture:
    """Return the picture of a scene."""
    stretch = Stretch(np.zeros(3, np.float32), SHOWN_WHITE, 0.65)
    return stretch(scene.image[0].numpy()[rgb_channels(BANDS)], scene.seen[0].numpy())


def titled(picture: Picture, words: str) -> Picture:
    """Return a picture of `PANEL` pixels with words above it."""
    panel = np.full((PANEL + TITLE, PANEL + 8, 3), 255, np.uint8)
    panel[TITLE:, 4:-4] = cv2.resize(picture, (PANEL, PANEL), interpolation=cv2.INTER_NEAREST)
    cv2.putText(panel, words, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return panel

"""Pictures of every keyed transform for the documentation: a part of a simulated scene, what a network gets of it, and a wrong key.

One sheet per transform: the clean image, the transformed one with blocks of 2, 4 and 8 pixels, and that of 4 decrypted with
another key. Red, green and blue of six bands, reflectance 0 to 0.35 scaled to [0, 1] before the transform, enlarged.
Run: `python benchmarks/keyed_pictures.py docs/images/keyed-transforms`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import torch
from perturbation_pictures import SIDE, WHITE, side_by_side, titled
from pictures import Picture, write_sheet
from torch import Tensor

from seawall import registry
from seawall.geo.preview import rgb_channels
from seawall.keyed_transforms.keys import public_key
from seawall.simulate.scene import simulate_s2

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
BLOCKS = (2, 4, 8)
PART = 96
"""Side in pixels of the part of the scene that is shown."""


def panel(image: Tensor) -> Picture:
    """Return a scaled image (1, C, H, W) as a picture of `SIDE` pixels, brightened as pictures of reflectance are."""
    rgb = image[0, list(rgb_channels(BANDS))].clamp(0, 1).pow(0.65).mul(255).round().byte()
    return cv2.resize(rgb.permute(1, 2, 0).numpy(), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def sheet(name: str, image: Tensor) -> Picture:
    """Return the clean part beside the transformed ones and the one that a wrong key decrypts."""
    shown = [("clean", image)]
    for block in BLOCKS:
        transform = registry.build("keyed-transform", name, {"block": block})(public_key("pictures"), len(BANDS))
        shown.append((f"{name}, blocks of {block} pixels", transform.encrypt(image)))
    other = registry.build("keyed-transform", name, {"block": 4})(public_key("another"), len(BANDS))
    shown.append(("blocks of 4, decrypted with another key", other.decrypt(shown[2][1])))
    return side_by_side([titled(panel(one), words) for words, one in shown])


def main() -> None:
    """Write a sheet per registered keyed transform."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--scene", default="pictures-9")
    parser.add_argument("--row", type=int, default=400)
    parser.add_argument("--col", type=int, default=384)
    asked = parser.parse_args()
    scene = simulate_s2(asked.scene, 512, BANDS, clouds=False)
    part = scene.image[:, asked.row : asked.row + PART, asked.col : asked.col + PART]
    image = (torch.from_numpy(part[None]) / WHITE).clamp(0, 1)
    total = 0
    for entry in registry.entries("keyed-transform"):
        total += write_sheet(asked.out / f"{entry.name}.jpg", sheet(entry.name, image), 60)
    print(f"{total / 1e6:.2f} MB in {asked.out}")


if __name__ == "__main__":
    main()

"""Pictures of every corruption for the documentation: a whole simulated scene, clean and at three severities.

One contact sheet per corruption, with name, quantity and level. The picture of optical scenes is red, green, blue, that
of radar scenes VV, VH, VV. Optical panels of a sheet have one
stretch from reflectance 0, made of all of them, radar panels that of the clean one; unseen pixels are magenta. A
corruption that changes single pixels is shown at a part of the scene, enlarged.
Run: `python benchmarks/perturbation_pictures.py docs/images/perturbations`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from pictures import Picture, write_sheet

from seawall.chip_context import ChipContext
from seawall.corruptions.build import fitting_corruptions, parse_corruption
from seawall.geo.preview import Stretch, rgb_channels
from seawall.rng import Keys
from seawall.simulate.scene import SimScene, simulate_s1, simulate_s2
from seawall.types import Batch, Corruption

SEVERITIES = (0.3, 0.6, 1.0)
SIDE = 300
"""Side of a panel in pixels."""
TITLE = 34
FINE = (
    "defocus", "jitter", "jpeg2000", "misregistration", "mtf", "quantization", "shot-noise", "speckle", "stripes", "coarse-grid",
    "geolocation", "shift", "transparency",
)  # fmt: skip
"""Corruptions of single pixels, which a reduced picture would not show."""
UNSEEN = (255, 0, 255)
WHITE = 0.35
"""Reflectance that is shown as white at most, so that the ground beside clouds and snow is not dark."""
COMPOSED = {"haze-and-shot-noise": "haze + shot-noise"}


def batch_of(scene: SimScene) -> Batch:
    image, label, seen = scene.image[None], scene.water[None].astype(np.int64), scene.seen[None]
    return Batch(
        torch.from_numpy(image), torch.from_numpy(label), torch.from_numpy(seen), torch.from_numpy(seen), ("scene",)
    )


def panel(batch: Batch, stretch: Stretch, bands: tuple[str, ...], part: slice) -> Picture:
    """Return a batch of one as a picture of `SIDE` pixels."""
    seen = batch.seen[0].numpy()
    rgb = stretch(batch.image[0].numpy()[rgb_channels(bands)], seen)
    rgb[~seen] = UNSEEN
    rgb = rgb[part, part]
    how = cv2.INTER_AREA if rgb.shape[0] > SIDE else cv2.INTER_NEAREST
    return cv2.resize(rgb, (SIDE, SIDE), interpolation=how)


def titled(picture: Picture, words: str) -> Picture:
    head = np.full((TITLE, SIDE, 3), 255, np.uint8)
    scale = min(0.46, 0.44 * (SIDE - 28) / cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.46, 1)[0][0])
    cv2.putText(head, words, (4, 22), cv2.FONT_HERSHEY_SIMPLEX, scale, (20, 20, 20), 1, cv2.LINE_AA)
    return np.concatenate([head, picture])


def stretch_of(batches: list[Batch], scene: SimScene) -> Stretch:
    """Return one stretch for several batches, for reflectance from 0 so that colors are those of the ground."""
    images = np.concatenate([one.image[0].numpy()[rgb_channels(scene.bands)] for one in batches], 1)
    made = Stretch.of(images, np.concatenate([one.seen[0].numpy() for one in batches]))
    if scene.unit != "reflectance":
        return made
    return Stretch(np.zeros_like(made.low), min(made.range + float(made.low.max()), WHITE), 0.65)


def contact_sheet(name: str, corruption: Corruption, scene: SimScene) -> Picture:
    """Return the clean scene beside three severities."""
    batch, bands = batch_of(scene), scene.bands
    keys = Keys(0, batch.chips, ("corrupt", name))
    made = [batch, *(corruption(batch, severity, keys) for severity in SEVERITIES)]
    stretch = stretch_of(made if scene.unit == "reflectance" else made[:1], scene)
    middle = scene.image.shape[1] // 2
    part = slice(middle - SIDE // 4, middle + SIDE // 4) if name in FINE else slice(None)
    words = [f"{name}: clean{', enlarged' if name in FINE else ''}"]
    for severity in SEVERITIES:
        level = float(f"{corruption.level(severity):.3g}")
        words.append(f"{corruption.quantity} = {level:g} {corruption.unit}".rstrip())
    panels = [titled(panel(one, stretch, bands, part), text) for one, text in zip(made, words, strict=True)]
    return side_by_side(panels)


def side_by_side(panels: Sequence[Picture]) -> Picture:
    """Return titled panels with gaps between them."""
    gap = np.full((SIDE + TITLE, 4, 3), 255, np.uint8)
    return np.concatenate([part for one in panels for part in (one, gap)][:-1], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--quality", type=int, default=60)
    parser.add_argument("--scene", default="pictures-9")
    asked = parser.parse_args()
    total = 0
    optical = simulate_s2(asked.scene, asked.size, ("B02", "B03", "B04", "B08", "B11", "B12"), clouds=False)
    radar = simulate_s1(asked.scene, asked.size)
    done: set[str] = set()
    for scene in (optical, radar):
        chips = ChipContext(10.0, scene.bands, scene.unit, ("land", "water"))
        found, _ = fitting_corruptions(chips)
        if scene is optical:
            found |= {name: parse_corruption(text, chips) for name, text in COMPOSED.items()}
        for name, corruption in found.items():
            if name in done or (asked.only and name not in asked.only):
                continue
            done.add(name)
            total += write_sheet(asked.out / f"{name}.jpg", contact_sheet(name, corruption, scene), asked.quality)
    print(f"{len(done)} sheets, {total / 1e6:.2f} MB in {asked.out}")


if __name__ == "__main__":
    main()

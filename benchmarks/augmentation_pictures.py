"""Pictures of augmentation for the documentation: one part of a simulated scene as each method shows it to the network.

`draws.jpg` has a row per method, the part as it is and six draws; `sensitivity.jpg` has haze and turbid water at severities of
equal harm to a small U-Net, with the kernel distance and the mean IoU that were measured there. The network, which also
tells where the input gradient is large, is trained on other scenes (a minute on one thread). Unseen pixels are magenta.
Run: `python benchmarks/augmentation_pictures.py docs/images/augmentation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from pictures import SPEC, Picture, cut, draw_sheets, titled, true_color
from torch import nn

from seawall import registry
from seawall.defenses.corrupted_batches import corrupt_each, training_corruptions
from seawall.defenses.sensitivity import SensitivityProbe
from seawall.rng import Keys
from seawall.training.objectives.augmentation import ChangedImages
from seawall.training.objectives.augmix import AugMix
from seawall.types import Batch, SegmentationModel

ROW, COL, PATCH = 100, 60, 96
"""Upper left corner and side in pixels of the part of the scene that is drawn."""
DRAWS, LEVELS, SAMPLE = 6, 6, 6
"""Pictures per row of either sheet; patches of each of the other scenes that the sensitivity is measured on."""
MAGENTA = (255, 0, 255)
CURVES = ("haze", "turbid-water")


def picture(batch: Batch, index: int, words: str) -> Picture:
    """Return a chip of a batch with words above it."""
    one = batch.select([index])
    rgb = np.ascontiguousarray(true_color(one))
    rgb[~one.seen[0].numpy()] = MAGENTA
    return titled(rgb, words)


def changes(model: nn.Module) -> Mapping[str, Callable[[Batch, Keys], Batch]]:
    """Return what each method does to a batch."""
    net = cast(SegmentationModel, model)

    def changed(name: str) -> Callable[[Batch, Keys], Batch]:
        objective = registry.build("objective", name)
        if isinstance(objective, AugMix):
            return lambda batch, keys: objective.mixture(SPEC, batch, keys)
        return lambda batch, keys: cast(ChangedImages, objective).changed(net, batch, keys)

    names = ("uniform-augmentation", "rand-augment", "trivial-augment", "augmix", "gradient-sensitive-augmentation")
    return {name: changed(name) for name in names}


def draws(model: nn.Module, part: Batch) -> Picture:
    """Return a row per method: the part as it is, and as it is drawn."""
    chips = tuple(f"draw{i}" for i in range(DRAWS))
    many = Batch(*(torch.cat([one] * DRAWS) for one in (part.image, part.label, part.seen, part.valid)), chips)
    rows = []
    for name, change in changes(model).items():
        after = change(many, Keys(0, chips).fold(name))
        clean = picture(part, 0, name.removesuffix("-augmentation"))
        rows.append(np.hstack([clean, *(picture(after, i, "") for i in range(DRAWS))]))
    return np.vstack(rows)


def equal_harm(model: nn.Module, sample: Sequence[Batch], part: Batch) -> Picture:
    """Return a row per corruption at severities whose kernel distances are equally spaced."""
    known = training_corruptions((), SPEC)
    rows = []
    for name in CURVES:
        probe = SensitivityProbe(model, sample, 0)
        curve = probe.curve(name, known[name], LEVELS)
        panels = [picture(part, 0, f"{name} 0: mean IoU {probe.clean_miou:.2f}")]
        for severity in curve.severities:
            point = probe.point(known[name], severity)
            after = corrupt_each(part, [[(known[name], severity)]], Keys(0, part.chips))
            panels.append(picture(after, 0, f"{severity:.2f}: {point.distance:.3f}, IoU {point.miou:.2f}"))
        rows.append(np.hstack(panels))
    return np.vstack(rows)


def sheets(chips: Batch, scene: Batch, model: nn.Module) -> Mapping[str, Picture]:
    """Return the draws of every method, and severities of equal harm."""
    where = (..., slice(ROW, ROW + PATCH), slice(COL, COL + PATCH))
    part = Batch(scene.image[where], scene.label[where], scene.seen[where], scene.valid[where], scene.chips)
    sample = [cut(chips, i) for i in range(SAMPLE)]
    return {"draws.jpg": draws(model, part), "sensitivity.jpg": equal_harm(model, sample, part)}


if __name__ == "__main__":
    draw_sheets(__doc__, sheets, quality=70)

"""Pictures of flipped weight bits for the documentation: water maps of a small U-Net before and after flips.

Trains the network on simulated scenes (two minutes on one thread), flips bits of its 8-bit weights by the progressive
search and at random, and draws the maps of another scene: water that the map and the truth have is blue, water that
the map misses is orange, land that it calls water is red.
Run: `python benchmarks/weight_fault_pictures.py docs/images/weight-faults`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from pictures import BLUE, LAND, Picture, draw_sheets, titled, true_color, water_map
from torch import nn

from seawall.types import Batch
from seawall.weight_faults.int8 import int8_weights
from seawall.weight_faults.search import ProgressiveBitSearch, RandomFlips, WeightFault


def maps_after(
    model: nn.Module, fault: WeightFault, chips: Batch, scene: Batch, at: Sequence[int], words: str
) -> list[Picture]:
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


def sheets(chips: Batch, scene: Batch, model: nn.Module) -> Mapping[str, Picture]:
    """Return the scene, the truth and the maps before and after flips."""
    truth = np.where(scene.label[0].numpy()[..., None] == 1, np.array(BLUE, np.uint8), np.array(LAND, np.uint8))
    top = [titled(true_color(scene), "simulated scene"), titled(truth, "true water")]
    top += maps_after(model, ProgressiveBitSearch(), chips, scene, (0,), "")
    search = maps_after(model, ProgressiveBitSearch(), chips, scene, (1, 2, 3, 4), "searched flip")
    control = maps_after(model, RandomFlips(0.0), chips, scene, (1000,), "random flip")
    return {"water-maps.png": np.vstack([np.hstack([*top, *control]), np.hstack(search)])}


if __name__ == "__main__":
    draw_sheets(__doc__, sheets)

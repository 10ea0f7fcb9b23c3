"""What the rounds of Paul and Ganju give on their own kind of image: water IoU on held-out blocks of one flood, and CPU-minutes.

Trains on the ETCI tiles (SEAWALL_DATA), 8-bit pictures of VV and VH from one pass, as in the paper: U-Net and U-Net++ with MobileNetV2
on VV, VH and their ratio. A tenth of the training tiles has labels, "all" has those of all. Blocks of 5 by 8 tiles stay together. Without
pre-trained weights and with few tiles it is the method that is measured, not the paper's figures. Every finished cell is a JSON line in
`--out`/cells.jsonl; a run that was stopped goes on where it stopped.

    python benchmarks/radar_rounds.py --out runs/radar-rounds                # all methods, 3 seeds
    python benchmarks/radar_rounds.py --out runs/radar-rounds --table        # print what is there
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from cross_validation import placed
from few_labels import CHIPS, add_method, objective
from study import LOSS, Cells, SplitChips, cells_of_methods, method_table, quiet_run, recipe_by_group, training_settings

from seawall.pipeline.data import load_chips, make_split
from seawall.recipe.recipe import Recipe

NETWORK = {"encoder": "mobilenetv2"}
ROUNDS = {
    "name": "paul-ganju",
    "settings": {"beside": "ratio-unet++", "beside_settings": NETWORK, "tile": 64, "settings": {"epochs": 4}},
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "all": {"model": "ratio-unet"},
    "chips": {"model": "ratio-unet", "supervision": CHIPS},
    "paul-ganju": {"model": "ratio-unet", "supervision": CHIPS, "rounds": ROUNDS},
    "all, U-Net++": {"model": "ratio-unet++"},
    "all, without the ratio": {"model": "unet"},
}
"""Model and training keys, in the order in which they are trained."""


def recipe(given: argparse.Namespace, method: str, seed: int) -> Recipe:
    """Return what one network is trained by."""
    asked = dict(METHODS[method])
    model = asked.pop("model")
    return recipe_by_group(
        {
            "name": "radar-rounds",
            "seed": seed,
            "data": {"source": "$SEAWALL_DATA", "kind": "index", "select": "etci_", "sensor": "s1"},
            "model": {"name": model, "settings": NETWORK},
            "training": {
                "objective": objective("supervised", loss=LOSS),
                "settings": training_settings(given, 64, 3),
                **asked,
            },
        }
    )


def measure(given: argparse.Namespace, cells: Cells, seed: int) -> None:
    """Add the cells of one seed."""
    run = quiet_run(recipe(given, "all", seed), given.out)
    chips = placed(load_chips(run, given.out / "chips")[0])
    held = SplitChips(chips, make_split(run, chips))
    for method in given.methods:
        add_method(cells, held, method, recipe(given, method, seed), given.out, seed)


def main() -> None:
    """Train, measure, print the table."""
    _, cells = cells_of_methods(__doc__, "runs/radar-rounds", METHODS, "table", measure)
    print("\n".join(method_table(cells, METHODS, "chips")))


if __name__ == "__main__":
    main()

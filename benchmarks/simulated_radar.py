"""What radar images that are simulated over the masks of other chips give on real ones, by the folds of the cross-validation.

The masks are the labels of the OMBRIA chips, which are all that is taken of them; where these chips lie is not published. "simulated":
trained on the simulated chips alone. "simulated, then real": a training on the real chips of the other folds that starts from these weights.
Both stand with "base" and "VH alone", which have real chips alone, in the cells of `benchmarks/cross_validation.py`.

    python benchmarks/simulated_radar.py --out runs/cv                 # 3 seeds, both polarizations and VH alone
    python benchmarks/simulated_radar.py --out runs/cv --seeds 0
"""

from __future__ import annotations

from pathlib import Path

import torch
from cross_validation import BASE, DATA, CrossValidation
from study import StudyParser, billed_training, folder_of, quiet_run

from seawall.data.curate import curate_chips
from seawall.data.splits import Split
from seawall.pipeline.data import load_chips
from seawall.recipe.recipe import change_recipe

REAL = "sen1floods11"
INPUTS = {"": [], ", VH alone": ["inputs=['VH']"]}
"""Names and changes of the recipe."""


def simulated_chips(home: Path) -> Path:
    """Return the folder of the simulated chips, one for each mask."""
    masks = change_recipe(BASE, [*DATA["ombria"], "data.sensor=s1"])
    chips, _ = load_chips(quiet_run(masks, home), home / "masks")
    return curate_chips(str(chips.root), home / "radar", kind="radar-of-masks").folder.root


def measure(bench: CrossValidation, radar: Path, inputs: str, seed: int) -> None:
    """Add the missing cells of a seed."""
    alone, then = f"simulated{inputs}", f"simulated{inputs}, then real"
    if all(bench.has(name, seed, number, "plain") for name in (alone, then) for number in range(len(bench.folds()))):
        return
    home, changes = bench.given.out / "simulated-radar", [*INPUTS[inputs], f"seed={seed}"]
    order = change_recipe(BASE, [f"data.source={radar}", "data.kind=chips", "data.sensor=s1", *changes])
    chips, _ = load_chips(quiet_run(order, home), home / "chips")
    folder = folder_of(home, alone, seed)
    everything = Split(tuple(row.id for row in chips.rows), (), (), "all")
    model, minutes = billed_training(order, folder, chips, everything)
    weights = folder / "models/unet/model.safetensors"
    for number, fold in enumerate(bench.folds()):
        bench.add(alone, seed, number, "plain", model, minutes)
        order = change_recipe(BASE, [*DATA[REAL], *changes, f"training.start={weights}"])
        tuned, more = billed_training(order, Path(f"{folder}-f{number}"), bench.chips, fold)
        bench.add(then, seed, number, "plain", tuned, minutes + more)


def main() -> None:
    """Train, measure, print the table."""
    ask = StudyParser(__doc__, "runs/cross-validation")
    ask.add_seeds()
    ask.add_argument("--folds", type=int, default=5)
    given = ask.parse_args()
    torch.set_num_threads(1)
    bench = CrossValidation.of(given, REAL)
    radar = simulated_chips(given.out / "simulated-radar")
    for seed in given.seeds:
        for inputs in INPUTS:
            measure(bench, radar, inputs, seed)
    print("\n".join(bench.table()))


if __name__ == "__main__":
    main()

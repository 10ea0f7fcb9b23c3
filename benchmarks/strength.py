"""How much water IoU each attack and suite takes for its passes, on a U-Net trained clean and one trained adversarially.

Goals: seawall's suite at 300 passes is not above SEA at 900, and at 30 not above the best published single attack at
100. Trains both networks on the real chips (SEAWALL_DATA) or on simulated scenes, unless weights are given.

    python benchmarks/strength.py                                    # the whole table
    python benchmarks/strength.py --chips 8 --size 96 --share 0.34   # a third of every member's passes
    python benchmarks/strength.py --halmosi-only --chips 3 --size 48 --width 8 --epochs 12   # its 3 000 passes on one net

`--share` shortens every run alike, so what is compared stays comparable.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from study import recipe_by_group
from torch import Tensor

from seawall.attacks.apgd import APGD
from seawall.attacks.fgsm import BIM, MIFGSM
from seawall.attacks.losses import (
    BalancedCrossEntropy,
    CosPGDLoss,
    JensenShannon,
    MaskedCrossEntropy,
    SegPGDLoss,
    TsallisCrossEntropy,
)
from seawall.attacks.pgd import PGD, PAdam
from seawall.attacks.square import Square
from seawall.attacks.suites import SEA, Halmosi, Member, Seawall, Suite
from seawall.data.loader import whole_chips
from seawall.evaluation.sanity_checks import SanityChecks
from seawall.metrics.worst_case import worst_each, worst_ratio
from seawall.models.weights import load_model
from seawall.pipeline.context import RunContext
from seawall.pipeline.data import load_chips, make_split
from seawall.pipeline.training import train_network
from seawall.recipe.recipe import Recipe
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.threat.parser import parse_threat
from seawall.types import Attack, Batch, SegmentationModel


def recipe(given: argparse.Namespace, adversarial: bool) -> Recipe:
    """Return what the networks are trained by."""
    objective: dict[str, object] = {"name": "supervised"}
    if adversarial:
        settings = {
            "threat": given.train_threat,
            "attack": "pgd",
            "attack_settings": {"steps": 3, "step": 0.5, "keep": "last"},
        }
        objective = {"name": "adversarial", "settings": settings}
    return recipe_by_group(
        {
            "name": "strength",
            "model": {"name": "unet", "settings": {"width": given.width, "depth": 3}},
            "training": {"objective": objective, "settings": {"epochs": given.epochs, "patch": 96, "batch": 8}},
        }
    )


def networks(given: argparse.Namespace, home: Path) -> Iterator[tuple[str, SegmentationModel, Batch]]:
    """Yield each network with the chips that it is attacked on."""
    both = (("clean", given.clean), ("adversarial", given.adversarial))
    for name, weights in both[:1] if given.halmosi_only else both:
        run = RunContext(recipe(given, name == "adversarial"), home / name, given.device, True, lambda *_: None)
        chips, _ = load_chips(run, home / "chips")
        split = make_split(run, chips)
        model = load_model(weights) if weights else train_network(run, chips, split, run.recipe.networks[0])
        yield (
            name,
            cast(SegmentationModel, model.to(given.device).eval()),
            some(whole_chips(chips, split.test), given).to(given.device),
        )


def some(batches: Iterator[Batch], given: argparse.Namespace) -> Batch:
    """Return evenly picked chips that hold both water and land, cut to their middle."""
    found = []
    for batch in batches:
        for i in range(len(batch)):
            one = cut(batch.select([i]), given.size)
            share = float(((one.label == 1) & one.valid).sum() / one.valid.sum().clamp_min(1))
            if 0.02 < share < 0.95:
                found.append(one)
    picked = found[:: max(1, len(found) // given.chips)][: given.chips]
    parts = [torch.cat([getattr(one, name) for one in picked]) for name in ("image", "label", "seen", "valid")]
    return Batch(parts[0], parts[1], parts[2], parts[3], tuple(one.chips[0] for one in picked))


def cut(one: Batch, size: int) -> Batch:
    rows, cols = ((max(0, n - size) // 2, min(size, n)) for n in one.image.shape[2:])
    there = (..., slice(rows[0], sum(rows)), slice(cols[0], sum(cols)))
    return Batch(one.image[there], one.label[there], one.seen[there], one.valid[there], one.chips)


Counts = tuple[np.ndarray, np.ndarray]


def counted(model: SegmentationModel, batch: Batch, image: Tensor) -> Counts:
    with torch.no_grad():
        says = (model(image).argmax(1) == 1) & batch.valid
    true = (batch.label == 1) & batch.valid
    overlap, union = (true & says).flatten(1).sum(1), (true | says).flatten(1).sum(1)
    return overlap.double().cpu().numpy(), union.double().cpu().numpy()


def struck(model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys, attack: Attack) -> Counts:
    return counted(model, batch, attack(model, batch, threat, keys))


def worst(held: list[Counts]) -> tuple[float, float]:
    """Return the water IoU of the worst case, pooled (exact) and mean per chip."""
    top, bottom = (np.stack(part) for part in zip(*held, strict=True))
    there = np.ones(top.shape, bool)
    each = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    return worst_ratio(top, bottom, there)[0], float(np.nanmean(worst_each(each, there)[0]))


def singles(steps: int) -> Mapping[str, Attack]:
    """The published attacks that one would run alone."""
    return {
        "bim": BIM(steps=steps, step=0.1), "pgd": PGD(steps=steps, step=0.1), "mifgsm": MIFGSM(steps=steps, step=0.1),
        "segpgd": PGD(loss=SegPGDLoss(), steps=steps, step=0.1), "cospgd": PGD(loss=CosPGDLoss(), steps=steps, step=0.1), "padam-ce": PAdam(steps=steps),
        "apgd-ce": APGD(steps=steps), "masked-ce": APGD(loss=MaskedCrossEntropy(), steps=steps), "balanced-ce": APGD(loss=BalancedCrossEntropy(), steps=steps),
        "js": APGD(loss=JensenShannon(), steps=steps), "tsallis": APGD(loss=TsallisCrossEntropy(), steps=steps), "square": Square(steps=steps),
    }  # fmt: skip


def main() -> None:
    """Print one JSON line per attack, suite and goal."""
    given = asked()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(given.home or folder)
        for name, model, batch in networks(given, home):
            spec = model.spec
            threat, keys = parse_threat(given.threat, spec), Keys(0, batch.chips)
            facts = {"model": name, "threat": str(threat), "chips": len(batch)}

            def say(of: dict[str, object] = facts, **row: object) -> None:
                print(json.dumps({**of, **row}), flush=True)

            if not given.halmosi_only:
                answers = SanityChecks()(model, batch, threat, keys)
                say(flags=answers.flags, asked={k: round(v, 4) for k, v in answers.accuracy.items()})
            clean = counted(model, batch, batch.image)
            say(attack="clean", passes=0, pooled=round(worst([clean])[0], 4), per_chip=round(worst([clean])[1], 4))

            compare(given, partial(struck, model, batch, threat, keys), say)


def compare(given: argparse.Namespace, run: Callable[[Attack], Counts], say: Callable[..., None]) -> None:
    """Run everything on one network."""

    def shorter(steps: int) -> int:
        return max(10, round(given.share * steps))

    def told(attack: str, passes: int, held: list[Counts], start: float) -> float:
        pooled, per_chip = worst(held)
        say(
            attack=attack,
            passes=passes,
            pooled=round(pooled, 4),
            per_chip=round(per_chip, 4),
            seconds=round(time.perf_counter() - start, 1),
        )
        return pooled

    def suite(name: str, made: Suite) -> float:
        begun, held, members = time.perf_counter(), [], made.members()
        for member in members:
            start = time.perf_counter()
            held.append(run(member.attack))
            told(f"{name}: {member.name}", member.passes, [held[-1]], start)
        return told(name, total(members), held, begun)

    if given.halmosi_only:
        suite("halmosi", Halmosi(given.share))
        suite("seawall 300", Seawall(300))
        return
    alone = {}
    for name, attack in singles(shorter(100)).items():
        start = time.perf_counter()
        alone[name] = told(name, shorter(100), [run(attack)], start)
    own = {passes: suite(f"seawall {passes}", Seawall(shorter(passes))) for passes in (300, 100, 30)}
    sea = suite("sea", SEA(shorter(300)))
    if not given.skip_halmosi:
        suite("halmosi", Halmosi(given.share))
    best = min(alone, key=lambda name: alone[name])
    say(goal="300 against SEA's 900", kept=own[300] <= sea, ours=round(own[300], 4), theirs=round(sea, 4))
    say(
        goal=f"30 against {best} at 100",
        kept=own[30] <= alone[best],
        ours=round(own[30], 4),
        theirs=round(alone[best], 4),
    )


def total(members: tuple[Member, ...]) -> int:
    return sum(member.passes for member in members)


def asked() -> argparse.Namespace:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--clean", type=Path, help="weights of a network that was trained clean")
    ask.add_argument("--adversarial", type=Path, help="weights of a network that was trained adversarially")
    ask.add_argument("--home", default="", help="keep chips and training there")
    ask.add_argument("--threat", default="linf 2% reflectance")
    ask.add_argument("--train-threat", default="linf 1% reflectance")
    ask.add_argument("--epochs", type=int, default=30)
    ask.add_argument("--width", type=int, default=16)
    ask.add_argument("--chips", type=int, default=32)
    ask.add_argument("--size", type=int, default=128)
    ask.add_argument("--share", type=float, default=1.0)
    ask.add_argument("--skip-halmosi", action="store_true")
    ask.add_argument(
        "--halmosi-only", action="store_true", help="the clean network alone, Halmosi's set and seawall at 300"
    )
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--device", default="cpu")
    return ask.parse_args()


if __name__ == "__main__":
    main()

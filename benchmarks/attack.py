"""One attack step against a bare forward and backward pass of the same network and batch.

Bare: model(x), mean cross-entropy, gradient to x; parameters frozen, eval mode, nothing else. The attacks do the same
and in addition project, judge every image, keep the best and let broken images leave. Interleaved in one process, so
that other load hits both. Run: `python benchmarks/attack.py --rounds 7`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from seawall.attacks.apgd import APGD
from seawall.attacks.fgsm import BIM
from seawall.attacks.losses import SegPGDLoss
from seawall.attacks.pgd import PGD
from seawall.models.unet import UNet
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B02", "B03", "B04", "B08", "B11", "B12"), ("land", "water"), "reflectance", 10.0)
GOAL = 1.05


def ground(images: int, size: int, device: str) -> Batch:
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(images, len(SPEC.bands), size, size, generator=draw) * 0.4
    label = torch.randint(0, 2, (images, size, size), generator=draw)
    return Batch.of(image, label, valid=torch.rand(label.shape, generator=draw) > 0.1).to(device)


def seconds(work: Callable[[], object], device: str) -> float:
    if device == "cpu":  # processor time of one thread: other load on the machine hardly shows
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the ratio of each attack's step to the bare pass, the median of interleaved rounds."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--rounds", type=int, default=7)
    ask.add_argument("--steps", type=int, default=20)
    ask.add_argument("--images", type=int, default=4)
    ask.add_argument("--size", type=int, default=256)
    ask.add_argument("--width", type=int, default=16)
    ask.add_argument("--device", default="cpu")
    given = ask.parse_args()
    torch.set_num_threads(1)
    batch = ground(given.images, given.size, given.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet(width=given.width)(SPEC).to(given.device).eval()
    threat = ThreatModel("linf", 1e-4, low=0.0)  # too small to break a chip, so that none leaves
    keys = Keys(0, batch.chips)
    steps = given.steps

    def bare() -> None:
        for _ in range(steps):
            x = batch.image.detach().requires_grad_()
            torch.autograd.grad(functional.cross_entropy(model(x), batch.label), x)

    attacks = {
        "bim, last": BIM(steps=steps, keep="last"),
        "bim": BIM(steps=steps),
        "pgd": PGD(steps=steps),
        "segpgd": PGD(loss=SegPGDLoss(), steps=steps),
        "apgd": APGD(steps=steps),
    }
    works = {"bare": bare} | {
        name: (lambda attack=attack: attack(model, batch, threat, keys)) for name, attack in attacks.items()
    }
    model.requires_grad_(False)
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.rounds):
        for name, work in works.items():
            times[name].append(seconds(work, given.device) / steps)
    for name, spent in times.items():
        ratio = statistics.median(t / b for t, b in zip(spent, times["bare"], strict=True))
        row = {"attack": name, "ms_per_step": round(1e3 * statistics.median(spent), 2), "ratio": round(ratio, 3)}
        print(json.dumps(row | {"goal": GOAL, "steps": steps, "images": given.images, "size": given.size}))


if __name__ == "__main__":
    main()

"""Chips per second of every corruption, beside plain NumPy and OpenCV renditions of image-corruption formulas.

Optical chips have 512 x 512 pixels of 6 bands, radar chips 2 polarizations. The peer of a row is what `imagecorruptions`
computes for that name (gaussian noise, defocus, fog by diamond-square) on the first three bands; the corruption runs on
the same three bands. That package needs NumPy 1, so that its formulas are written out here; `--peer PYTHON` also times
the package itself, in an interpreter that has it. Processor time of one thread, interleaved.
Run: `python benchmarks/perturbations.py --rounds 3`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from seawall.chip_context import ChipContext
from seawall.corruptions.build import build_corruption
from seawall.registry import entries, find
from seawall.rng import Keys
from seawall.testing.corruptions import OPTICAL_CHIPS, RADAR_CHIPS, lake_chips
from seawall.types import Setting

SEVERITY = 0.6
RGB = ChipContext(10.0, ("B04", "B03", "B02"), "reflectance", ("land", "water"))
SETTINGS: dict[str, dict[str, Setting]] = {"composition": {"members": "haze + shot-noise"}}
PLAIN_LEVEL = {"shot-noise": 0.18, "defocus": 6, "haze": 2.5}


def gaussian_noise(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Severity 3 of ImageNet-C: additive normal noise of standard deviation .18, clipped."""
    x = image / 255.0
    return np.clip(x + draw.normal(size=x.shape, scale=PLAIN_LEVEL["shot-noise"]), 0, 1) * 255


def defocus_blur(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Severity 3 of ImageNet-C: a disk of radius 6, blurred by half a pixel."""
    radius = int(PLAIN_LEVEL["defocus"])
    y, x = np.mgrid[-8:9, -8:9]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    disk = cv2.GaussianBlur(disk / disk.sum(), (3, 3), 0.5)
    return np.clip(np.stack([cv2.filter2D(image[..., i] / 255.0, -1, disk) for i in range(3)], -1), 0, 1) * 255


def fog(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Severity 3 of ImageNet-C: a diamond-square height map is added and the maximum kept."""
    x, amount = image / 255.0, PLAIN_LEVEL["haze"]
    highest = x.max()
    x = x + amount * diamond_square(512, 1.7, draw)[: x.shape[0], : x.shape[1], None]
    return np.clip(x * highest / (highest + amount), 0, 1) * 255


def diamond_square(size: int, decay: float, draw: np.random.Generator) -> np.ndarray:
    """A periodic height map in [0, 1]; `size` is a power of two."""
    field, step, spread = np.zeros((size, size)), size, 100.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        total = corners + np.roll(corners, -1, 0)
        total += np.roll(total, -1, 1)
        field[half::step, half::step] = total / 4 + spread * draw.uniform(-spread, spread, total.shape)
        middle = field[half::step, half::step]
        left = middle + np.roll(middle, 1, 0) + corners + np.roll(corners, -1, 1)
        field[::step, half::step] = left / 4 + spread * draw.uniform(-spread, spread, left.shape)
        above = middle + np.roll(middle, 1, 1) + corners + np.roll(corners, -1, 0)
        field[half::step, ::step] = above / 4 + spread * draw.uniform(-spread, spread, above.shape)
        step, spread = half, spread / decay
    field -= field.min()
    return field / field.max()


PLAIN: dict[str, tuple[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]] = {
    "shot-noise": ("gaussian_noise", gaussian_noise), "defocus": ("defocus_blur", defocus_blur), "haze": ("fog", fog),
}  # fmt: skip


def rate(work: Callable[[], object], chips: int) -> float:
    start = time.thread_time()  # other load on the machine hardly shows
    work()
    return chips / (time.thread_time() - start)


def speed(name: str, context: ChipContext, chips: int, size: int, rounds: int) -> float:
    """Return chips per second of one corruption."""
    corruption = build_corruption(name, SETTINGS.get(name, {}), context)
    batch = lake_chips(context, chips, size)
    keys = Keys(0, batch.chips)
    return statistics.median(rate(lambda: corruption(batch, SEVERITY, keys), chips) for _ in range(rounds))


def plain_speed(name: str, chips: int, size: int, rounds: int) -> float:
    """Return chips per second of the plain rendition, 8-bit in and out."""
    draw, work = np.random.default_rng(0), PLAIN[name][1]
    images = draw.integers(0, 255, (chips, size, size, 3), dtype=np.uint8)
    return statistics.median(
        rate(lambda: [work(one, draw).astype(np.uint8) for one in images], chips) for _ in range(rounds)
    )


PEER = """
import json, statistics, sys, time
import cv2, numpy as np
from imagecorruptions import corrupt
cv2.setNumThreads(1)
names, chips, size, rounds = json.loads(sys.argv[1])
images = np.random.default_rng(0).integers(0, 255, (chips, size, size, 3), dtype=np.uint8)
out = {}
for name in names:
    rates = []
    for _ in range(rounds):
        start = time.thread_time()
        for one in images:
            corrupt(one, corruption_name=name, severity=3)
        rates.append(chips / (time.thread_time() - start))
    out[name] = statistics.median(rates)
print(json.dumps(out))
"""


def package_speed(python: str, chips: int, size: int, rounds: int) -> dict[str, float]:
    """Return chips per second of the package itself, by the interpreter that has it."""
    order = json.dumps([[name for name, _ in PLAIN.values()], chips, size, rounds])
    done = subprocess.run([python, "-c", PEER, order], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chips", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--peer", default="", help="a Python that has imagecorruptions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for entry in entries("corruption"):
        if given.only not in entry.name:
            continue
        context = RADAR_CHIPS if "radar" in find("corruption", entry.name).traits else OPTICAL_CHIPS
        found = speed(entry.name, context, given.chips, given.size, given.rounds)
        print(f"{entry.name:18} {found:8.1f} chips/s of {len(context.bands)} bands", flush=True)
    package = package_speed(given.peer, given.chips, given.size, given.rounds) if given.peer else {}
    for name, (peer, _) in PLAIN.items():
        ours = speed(name, RGB, given.chips, given.size, given.rounds)
        plain = plain_speed(name, given.chips, given.size, given.rounds)
        beside = f", package {package[peer]:.1f}" if peer in package else ""
        print(f"RGB {name:14} {ours:8.1f} chips/s, plain {peer} {plain:.1f}{beside}", flush=True)


if __name__ == "__main__":
    main()

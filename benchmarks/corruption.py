"""Chips per second of every label noise on 512x512 masks, beside plain OpenCV morphology for the rings.

The peer of erosion, dilation, opening and closing is what the report does by hand: call OpenCV, count the changed
pixels, stop at the budget, on the same masks to the same iteration, without unknown pixels, keys or records. Both
sides take and give int64 labels. Interleaved in one process on one thread.
Run: `python benchmarks/corruption.py --rounds 5`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import cast

import cv2
import numpy as np
import torch

from seawall.label_noise.build import noise_text
from seawall.registry import build, entries
from seawall.rng import Keys
from seawall.types import Batch, LabelNoise, Setting

BUDGET = 0.1
SETTINGS: dict[str, dict[str, Setting]] = {
    "class-dependent": {"matrix": [[0.9, 0.1], [0.2, 0.8]]},
    "index-threshold": {"bands": ["B03", "B08"]},
    "shift": {"budget": 30.0, "gsd_m": 10.0},
    "stale": {"source": "level:4"},
    "wrong-source": {"source": "coarse:8"},
}
PLAIN = {
    "erode": (cv2.erode,),
    "dilate": (cv2.dilate,),
    "open": (cv2.erode, cv2.dilate),
    "close": (cv2.dilate, cv2.erode),
}


def water(chips: int, size: int) -> Batch:
    """Make blobs of water with a third of the ground, and bands that show them."""
    draw = np.random.default_rng(0)
    fields = [cv2.GaussianBlur(draw.standard_normal((size, size), np.float32), (0, 0), 12) for _ in range(chips)]
    label = torch.from_numpy(np.stack([f > np.quantile(f, 2 / 3) for f in fields]).astype(np.int64))
    dark = torch.stack([torch.where(label == 1, 0.06, 0.09), torch.where(label == 1, 0.02, 0.25)], 1)
    noise = torch.from_numpy(draw.normal(0, 0.01, (chips, 2, size, size)).astype(np.float32))
    return Batch.of(dark + noise, label)


def plainly(name: str, labels: np.ndarray) -> np.ndarray:
    """Do as the report does, without going over the budget: iterate a 3x3 kernel while it holds."""
    square = np.ones((3, 3), np.uint8)
    out = []
    for label in labels:
        mask = label.astype(np.uint8)
        room, best, state = BUDGET * mask.size, mask, mask
        for n in range(1, 101):
            if len(PLAIN[name]) == 1:
                state = PLAIN[name][0](state, square)
                found = state
            else:
                found = mask
                for step in PLAIN[name]:
                    found = step(found, square, iterations=n)
            if cv2.countNonZero(cv2.absdiff(found, mask)) > room:
                break
            best = found
        out.append(best.astype(np.int64))
    return np.stack(out)


def rate(work: Callable[[], object], chips: int) -> float:
    start = time.thread_time()  # processor time of one thread: other load on the machine hardly shows
    work()
    return chips / (time.thread_time() - start)


def compare(name: str, noise: LabelNoise, batch: Batch, rounds: int) -> dict[str, object]:
    keys, labels, chips = Keys(0, batch.chips), batch.label.numpy(), len(batch)
    row: dict[str, object] = {"noise": noise_text(noise)}
    if name not in PLAIN:
        return row | {"chips_per_s": statistics.median(rate(lambda: noise(batch, keys), chips) for _ in range(rounds))}
    same = np.array_equal(noise(batch, keys).label.numpy(), plainly(name, labels))
    pairs = [
        (rate(lambda: noise(batch, keys), chips), rate(lambda: plainly(name, labels), chips)) for _ in range(rounds)
    ]
    ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
    return row | {"chips_per_s": ours, "cv2_chips_per_s": peer, "ratio": ours / peer, "same": same}


def measure(rounds: int, chips: int, size: int) -> list[dict[str, object]]:
    batch = water(chips, size)
    rows = []
    for entry in entries("noise"):
        noise = build("noise", entry.name, SETTINGS.get(entry.name, {"budget": BUDGET}))
        rows.append(compare(entry.name, cast(LabelNoise, noise), batch, rounds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chips", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = measure(given.rounds, given.chips, given.size)
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        peer = (
            f"  cv2 {row['cv2_chips_per_s']:8.1f}  ratio {row['ratio']:.2f}  same {row['same']}"
            if "ratio" in row
            else ""
        )
        print(f"{row['noise']!s:52} {row['chips_per_s']:8.1f} chips/s{peer}")


if __name__ == "__main__":
    main()

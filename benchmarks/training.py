"""Training step of `seawall.training.loop.fit` against a bare PyTorch loop with the same network, loss, optimizer and batches.

Rounds of the two alternate in one process, so that the machine's mood hits both; what is printed is the median of
the per-round ratios and its quartiles. Goal: at most 1.05.

    python benchmarks/training.py [--rounds 9] [--steps 12] [--width 16] [--patch 128]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from seawall.models.unet import UNet
from seawall.training.loop import Training, fit
from seawall.training.objectives.supervised import Supervised
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B02", "B03", "B04", "B08", "B11", "B12"), ("land", "water"), "reflectance", 10.0)


def make(width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = UNet(width)(SPEC)
    model.standardize.fit([0.2] * 6, [0.1] * 6)
    return model.train()


def batches(steps: int, size: int, patch: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(size, 6, patch, patch, generator=draw)
    label = (image[:, 1] > image[:, 3]).long()
    return [Batch.of(image, label, chips=[f"{i}.{j}" for j in range(size)]) for i in range(steps)]


def bare(width: int, data: list[Batch]) -> float:
    model = make(width)
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": rest, "weight_decay": 0.0}], lr=1e-3)
    start = time.perf_counter()
    for batch in data:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(batch.image), batch.label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    return (time.perf_counter() - start) / len(data)


def ours(width: int, data: list[Batch], patch: int) -> float:
    model = make(width)
    training = Training(epochs=1, steps_per_epoch=len(data), batch=len(data[0]), patch=patch, tensorboard=False)
    ticks: list[float] = []

    def feed(epoch: int) -> list[Batch]:
        ticks.append(time.perf_counter())
        return data

    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            Supervised(),
            feed,
            None,
            training,
            Path(folder),
            device="cpu",
            progress=lambda done, total, note: ticks.append(time.perf_counter()),
        )
    return (ticks[-1] - ticks[0]) / len(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    asked = parser.parse_args()
    data = batches(asked.steps, asked.batch, asked.patch)
    bare(asked.width, data[:2]), ours(asked.width, data[:2], asked.patch)
    ratios, steps = [], []
    for turn in range(asked.rounds):
        first, second = (
            (bare(asked.width, data), None) if turn % 2 == 0 else (None, ours(asked.width, data, asked.patch))
        )
        theirs = first if first is not None else bare(asked.width, data)
        mine = second if second is not None else ours(asked.width, data, asked.patch)
        ratios.append(mine / theirs)
        steps.append(theirs)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"bare step {1e3 * statistics.median(steps):.1f} ms, {torch.get_num_threads()} threads, {asked.rounds} rounds"
    )
    print(f"training step, seawall / bare: median {middle:.3f} (quartiles {low:.3f} to {high:.3f}; goal 1.05)")


if __name__ == "__main__":
    main()

"""kill -9 and the signals that ask to stop: everything visible is whole, and the resumed run ends with the same bits.

Run as a script, this file is the victim's harness: it forks children that are killed or asked to stop at chosen points
(the n-th batch, fsync or rename of a run) or killed at random times, and trains on until one ends by itself.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def victim(folder: Path, kind: str, count: int, number: int = signal.SIGKILL) -> None:
    """Train in this process; send it a signal at the count-th call of `kind`."""
    import torch

    from seawall.models.unet import UNet
    from seawall.training.loop import Training, fit
    from seawall.training.objectives.supervised import Supervised
    from seawall.types import Batch, ModelSpec

    torch.set_num_threads(1)
    left = [count]

    def tick(name: str) -> None:
        if name == kind:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

    def deadly(name: str):
        real = getattr(os, name)

        def call(*args, **kwargs):
            tick(name)
            out = real(*args, **kwargs)
            tick(f"after {name}")
            return out

        setattr(os, name, call)

    for name in ("fsync", "replace"):
        deadly(name)

    def feed(epoch: int):
        for index in range(4):
            tick("batch")
            draw = torch.Generator().manual_seed(100 * epoch + index)
            image = torch.rand(2, 2, 16, 16, generator=draw)
            yield Batch.of(
                image, (image[:, 0] > image[:, 1]).long(), chips=[f"a@{epoch}.{index}", f"b@{epoch}.{index}"]
            )

    def check(model: torch.nn.Module) -> dict[str, float | None]:
        return {"val.iou.water": model(torch.ones(1, 2, 16, 16)).sum().item()}

    torch.manual_seed(0)
    model = UNet(4, 1, dropout=0.1)(ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0))
    model.standardize.fit([0.5, 0.5], [0.3, 0.3])
    training = Training(epochs=3, steps_per_epoch=4, batch=2, lr=1e-2, save_s=1e-9, tensorboard=False)
    fit(model, Supervised(), feed, check, training, folder, device="cpu")


def attempt(folder: Path, kind: str, count: int, seconds: float = 0.0, number: int = signal.SIGKILL) -> bool:
    """Fork a victim and return whether it ended by itself."""
    from seawall.errors import StoppedError

    child = os.fork()
    if child == 0:
        status = 1
        try:
            victim(folder, kind, count, number)
            status = 0
        except StoppedError as stopped:
            status = stopped.exit_code
        finally:
            os._exit(status)
    if seconds:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    asked = number != signal.SIGKILL and os.waitstatus_to_exitcode(status) == StoppedError.exit_code
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) and not asked:
        raise SystemExit(f"the victim failed instead of dying at {kind} {count}")
    return os.WIFEXITED(status) and not asked


def look(folder: Path) -> None:
    """Open every artifact that has its final name."""
    from seawall.models.weights import unpack_safetensors

    for path in (*folder.glob("*.safetensors"), *folder.glob("checkpoints/*.safetensors")):
        unpack_safetensors(path)
    if (folder / "history.jsonl").exists():
        read(folder)


def harness(home: Path, timed: int) -> None:
    victim(home / "first", "never", 0)  # what a first training imports is loaded once here, and not by every child

    began = time.monotonic()
    assert attempt(home / "whole", "never", 0)
    usual = time.monotonic() - began
    want = (home / "whole" / "model.safetensors").read_bytes()
    plans = [
        (kind, count, 0.0, signal.SIGKILL)
        for kind in ("batch", "fsync", "replace", "after replace")
        for count in (1, 2, 5, 7, 11)
    ]
    plans += [("batch", count, 0.0, number) for number in (signal.SIGINT, signal.SIGTERM) for count in (1, 6, 12)]
    draw = random.Random(0)
    plans += [("never", 0, draw.uniform(0.02, usual), signal.SIGKILL) for _ in range(timed)]
    deaths = 0
    for turn, (kind, count, seconds, number) in enumerate(plans):
        folder = home / str(turn)
        for _ in range(3):
            deaths += not attempt(folder, kind, count, seconds, number)
            look(folder)
        assert attempt(folder, "never", 0)
        look(folder)
        assert (folder / "model.safetensors").read_bytes() == want, (kind, count, seconds, number)
        rows = [[{**row, "seconds": 0, "cpu_seconds": 0} for row in read(path)] for path in (folder, home / "whole")]
        assert rows[0] == rows[1]
        assert not list(folder.rglob("*.part"))
    print(f"deaths {deaths}")


def read(folder: Path):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def run(home: Path, timed: int) -> int:
    done = subprocess.run(
        [sys.executable, __file__, str(home), str(timed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-500:]
    return int(done.stdout.split("deaths ")[-1])


@pytest.mark.slow
def test_killed_anywhere_it_resumes_to_the_same_bits(tmp_path: Path) -> None:
    assert run(tmp_path, timed=4) >= 50


if __name__ == "__main__":
    harness(Path(sys.argv[1]), int(sys.argv[2]))

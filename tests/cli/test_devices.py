"""Several processes share a training: through the verbs, to the end, failing, killed and stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from _thread import interrupt_main
from pathlib import Path

import pytest
import torch

from seawall.errors import DataError, RunError, StoppedError, UsageError
from seawall.models.weights import load_model
from seawall.recipe.recipe import Recipe
from seawall.training.launch import run_processes
from terminal import cli
from tiny import pair

SMALL = (
    "model.settings.width=4", "model.settings.depth=1", "model.settings.norm=pixel", "training.settings.epochs=2",
    "training.settings.steps_per_epoch=3", "training.settings.patch=16", "training.settings.batch=3",
    "training.objective.settings.loss=ce",  # a mean over pixels: region losses see the images of one process
)  # fmt: skip
WORDS = tuple(word for change in SMALL for word in ("--set", change))


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    for i in range(6):
        pair(tmp_path / "pairs", f"place{i}", f"chip{i}", seed=i)
    assert cli("curate", tmp_path / "pairs", "--out", tmp_path / "chips").code == 0
    return tmp_path / "chips"


@pytest.mark.slow
def test_two_processes_train_as_one_through_the_verb(tmp_path: Path, chips: Path) -> None:
    facts = []
    for count in (1, 2):
        out = tmp_path / f"run{count}"
        done = cli("train", chips, "--out", out, "--device", "cpu", "--devices", str(count), *WORDS, "--json")
        assert done.code == 0, done.err
        facts.append(json.loads(done.out)["facts"]["weights"])
    one, two = map(load_model, facts)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    history = (Path(facts[1]).parent / "history.jsonl").read_text().splitlines()
    assert len(history) == 2 and json.loads(history[0])["val.iou.water"] is not None
    refused = cli("train", chips, "--out", tmp_path / "run2", "--device", "cpu", *WORDS)
    refused.refused(1, r"training\.devices 1 \(was 2\)")


def test_devices_that_are_not_there_are_refused(chips: Path) -> None:
    cli("train", chips, "--devices", "0").refused(2, r"training\.devices")


@pytest.mark.parametrize(("words", "count"), [((), 1), (("--devices", "2"), 2)])
def test_a_run_takes_the_devices_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], count: int
) -> None:
    asked = []

    def execute(recipe: Recipe, *_: object, **__: object) -> None:
        asked.append(recipe.training.devices)
        raise StoppedError("x: expected no more, got asked; stop")

    monkeypatch.setattr("seawall.pipeline.run.run_recipe", execute)
    (tmp_path / "r.toml").write_text('name = "x"')
    assert cli("run", tmp_path / "r.toml", *words).code == 130
    assert asked == [count]


WORKER = """
import os, signal, sys, time
from seawall.errors import DataError, RunError
from seawall.training.launch import run_worker

class OtherProcessError(RunError):
    pass

def run(job, progress):
    rank, kind = int(os.environ["RANK"]), job["kind"]
    assert os.environ["WORLD_SIZE"] == "2" and os.environ["LOCAL_RANK"] == str(rank)
    print("a word of a library on standard output")
    progress(1, 2, f"from {rank}")
    if kind == "error":
        if rank == 0:
            raise OtherProcessError("an echo")
        time.sleep(0.2)
        raise DataError("the cause")
    if kind == "bug" and rank == 1:
        raise ValueError("a bug")
    if kind == "killed" and rank == 1:
        print("Killed by the memory watch", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "asked":
        open(job["ready"] + str(rank), "w").close()
    if kind in ("bug", "killed", "asked"):
        time.sleep(60)
    progress(2, 2, "done")

if __name__ == "__main__":
    run_worker(run)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fake_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("seawall.training.launch.GRACE_S", 2.0)
    return "fake_worker"


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("error", DataError, "^the cause$"),
        ("bug", RunError, "ValueError: a bug"),
        ("killed", RunError, "exit code -9 of process 1 .Killed by the memory watch.*last checkpoint"),
    ],
)
def test_the_error_that_began_it_is_raised_and_nobody_hangs(
    module: str, kind: str, error: type[Exception], says: str
) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=says):
        run_processes(module, {"kind": kind}, 2, "train x", lambda done, total, note: None)
    assert time.monotonic() - began < 50


def test_progress_is_that_of_the_first_process(module: str) -> None:
    told: list[tuple[int, int, str]] = []
    run_processes(module, {"kind": "fine"}, 2, "train x", lambda *tick: told.append(tick))
    assert told == [(1, 2, "from 0"), (2, 2, "done")]


def test_a_stop_reaches_every_process(module: str, tmp_path: Path) -> None:
    ready = [tmp_path / f"ready{rank}" for rank in range(2)]

    def stop() -> None:
        while not all(path.exists() for path in ready):
            time.sleep(0.05)
        interrupt_main(signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="goes on"):
        run_processes(module, {"kind": "asked", "ready": str(tmp_path / "ready")}, 2, "train x", lambda *tick: None)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_processes_end_with_the_one_that_started_them(module: str, tmp_path: Path) -> None:
    code = (
        "from seawall.training.launch import run_processes\n"
        f"run_processes('fake_worker', {{'kind': 'asked', 'ready': {str(tmp_path / 'ready')!r}}}, 2, 'x', print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
                break
            time.sleep(0.05)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert len(children) == 2
    finally:
        parent.kill()
        parent.wait()
    for _ in range(400):
        if not any(Path(f"/proc/{child}").exists() and "Z" not in state(child) for child in children):
            return
        time.sleep(0.05)
    pytest.fail("a process outlived the one that started it")


def state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def test_an_index_and_several_devices_contradict_each_other() -> None:
    from seawall.training.configuration import Training
    from seawall.training.distributed import start_fabric

    with pytest.raises(UsageError, match=r"CUDA|devices: expected 1 with 'cuda:0', got 2"):
        start_fabric("cuda:0", 2, Training())
    if torch.cuda.is_available():
        with pytest.raises(UsageError, match="expected at most"):
            start_fabric("cuda", torch.cuda.device_count() + 1, Training())

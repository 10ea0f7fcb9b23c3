"""The loop: it learns, resumes to the bit, stops when asked, and refuses what would mislead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seawall.errors import ModelError, RunError, StoppedError, UsageError
from seawall.files import RunLock
from seawall.history import read_history
from seawall.learning.supervised import Supervised
from seawall.losses import CE
from seawall.models.threshold import Threshold
from seawall.models.unet import UNet
from seawall.models.weights import load_model, read_spec
from seawall.registry import build
from seawall.train import DivergedError, Training, fit, make_training
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
QUICK = Training(epochs=3, steps_per_epoch=4, batch=4, patch=16, lr=1e-2, warmup=0.0, save_s=1e-9, tensorboard=False)
QUIET = Supervised()


def make(norm: str = "batch", dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    model = UNet(4, 1, norm, dropout)(SPEC)
    model.standardize.fit([0.3, 0.3], [0.2, 0.2])
    return model


def toy(epoch: int, batches: int = 4, size: int = 4, side: int = 16) -> list[Batch]:
    """Water where the green band is the brighter one; a tenth of the pixels has no label."""
    draw = torch.Generator().manual_seed(epoch)
    made = []
    for index in range(batches):
        image = 0.6 * torch.rand(size, 2, side, side, generator=draw)
        valid = torch.rand(size, side, side, generator=draw) > 0.1
        label = torch.where(valid, (image[:, 0] > image[:, 1]).long(), 255)
        made.append(Batch.of(image, label, valid=valid, chips=[f"c{i}@{epoch}.{index}" for i in range(size)]))
    return made


def accuracy(model: torch.nn.Module) -> dict[str, float | None]:
    batch = toy(99, 1)[0]
    with torch.no_grad():
        right = (model(batch.image).argmax(1) == batch.label) & batch.valid
    return {"val.iou.water": right.sum().item() / batch.valid.sum().item(), "val.nothing": float("nan")}


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_it_learns_and_leaves_whole_files(tmp_path: Path) -> None:
    training = Training(epochs=6, steps_per_epoch=8, batch=4, lr=2e-2, tensorboard=True)
    told: list[tuple[int, int, str]] = []
    model = make().eval()
    history = fit(
        model,
        QUIET,
        lambda epoch: toy(epoch, 8),
        accuracy,
        training,
        tmp_path,
        progress=lambda *tick: told.append(tick),
    )
    assert history.ending == "finished"
    assert history.best is not None and history.best > 0.85
    assert accuracy(load_model(tmp_path / "model.safetensors"))["val.iou.water"] == history.best
    assert accuracy(model)["val.iou.water"] == history.best
    assert not model.training
    assert read_history(tmp_path / "history.jsonl") == history.rows
    assert [row["step"] for row in history.rows] == [8, 16, 24, 32, 40, 48]
    assert history.rows[0]["val.nothing"] is None
    assert (
        max(row["val.iou.water"] for row in history.rows)
        == history.best
        == history.rows[history.best_epoch]["val.iou.water"]
    )
    assert told[-1][:2] == (48, 48) and "epoch 6/6" in told[-1][2]
    assert list((tmp_path / "tb").glob("events*"))
    assert not (tmp_path / ".lock").exists()
    assert read_spec(tmp_path / "model.safetensors") == model.spec


def test_the_callers_random_stream_is_left_alone(tmp_path: Path) -> None:
    model = make()
    before = torch.get_rng_state()
    fit(model, QUIET, toy, None, QUICK, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("norm", ["batch", "pixel"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, norm: str, optimizer: str) -> None:
    training = make_training({**vars(QUICK), "optimizer": optimizer, "lr": 1e-3, "schedule": "onecycle", "warmup": 0.3})
    fit(make(norm, 0.2), QUIET, toy, accuracy, training, tmp_path / "whole")

    def stopping(epoch: int):
        for index, batch in enumerate(toy(epoch)):
            if (epoch, index) in {(1, 2)}:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="epoch 1, step 3") as caught:
        fit(make(norm, 0.2), QUIET, stopping, accuracy, training, tmp_path / "cut")
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) == before
    torch.manual_seed(123)  # what the process draws in between means nothing
    fit(make(norm, 0.2), QUIET, toy, accuracy, training, tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    rows = [
        [{**row, "seconds": 0} for row in read_history(tmp_path / name / "history.jsonl")] for name in ("cut", "whole")
    ]
    assert rows[0] == rows[1]


def test_mixed_precision_trains_and_keeps_full_weights(tmp_path: Path) -> None:
    mixed = make_training({**vars(QUICK), "precision": "bf16-mixed"})
    kinds = set()

    def spying(model, batch, keys):
        kinds.add(model(batch.image).dtype)
        return QUIET(model, batch, keys)

    history = fit(make(), spying, toy, accuracy, mixed, tmp_path)
    assert kinds == {torch.bfloat16}
    assert history.best is not None
    assert load_model(tmp_path / "model.safetensors").network.head.weight.dtype == torch.float32


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    first = fit(make(), QUIET, toy, accuracy, QUICK, tmp_path)

    def never(epoch: int):
        raise AssertionError("fed again")

    model = make()
    again = fit(model, QUIET, never, accuracy, QUICK, tmp_path)
    assert again == first
    assert torch.equal(model.network.head.weight, load_model(tmp_path / "model.safetensors").network.head.weight)


def test_a_resume_with_other_settings_is_refused_naming_them(tmp_path: Path) -> None:
    fit(make(), QUIET, toy, accuracy, QUICK, tmp_path, context={"data": "a"})
    before = bits(tmp_path)
    other = make_training({**vars(QUICK), "lr": 0.5, "clip": 0.0})
    with pytest.raises(RunError, match=r"training\.clip 0\.0 \(was 1\.0\), training\.lr 0\.5 \(was 0\.01\)"):
        fit(make(), QUIET, toy, accuracy, other, tmp_path, context={"data": "a"})
    with pytest.raises(RunError, match=r"context\.data b \(was a\)"):
        fit(make(), QUIET, toy, accuracy, QUICK, tmp_path, context={"data": "b"})
    with pytest.raises(RunError, match="objective"):
        fit(make(), Supervised(CE(smoothing=0.1)), toy, accuracy, QUICK, tmp_path, context={"data": "a"})
    with pytest.raises(RunError, match="seed 1"):
        fit(make(), QUIET, toy, accuracy, QUICK, tmp_path, context={"data": "a"}, seed=1)
    model = make()
    model.standardize.fit([0.1, 0.1], [0.2, 0.2])
    with pytest.raises(RunError, match="normalization"):
        fit(model, QUIET, toy, accuracy, QUICK, tmp_path, context={"data": "a"})
    assert bits(tmp_path) == before
    fit(make(), QUIET, toy, accuracy, other, tmp_path, resume=False)
    assert bits(tmp_path) != before


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    fit(make(), QUIET, toy, accuracy, QUICK, tmp_path / "whole")

    def broken(epoch: int):
        yield from toy(epoch)[: 2 if epoch == 1 else 4]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        fit(make(), QUIET, broken, accuracy, QUICK, tmp_path / "cut")
    newest, _ = sorted((tmp_path / "cut" / "checkpoints").iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-7])
    fit(make(), QUIET, toy, accuracy, QUICK, tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    for path in (tmp_path / "cut" / "checkpoints").iterdir():
        path.write_bytes(b"\x80\x04not a checkpoint")
    with pytest.raises(RunError, match=r"pickle.*resume=False"):
        fit(make(), QUIET, toy, accuracy, QUICK, tmp_path / "cut")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(make(), QUIET, toy, accuracy, QUICK, tmp_path / "whole")
    real = os.fsync

    def filling(epoch: int):
        for index, batch in enumerate(toy(epoch)):
            if (epoch, index) == (1, 1):
                monkeypatch.setattr(
                    "os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
                )
            yield batch

    with pytest.raises(RunError, match=r"No space left.*free the disk"):
        fit(make(), QUIET, filling, accuracy, QUICK, tmp_path / "cut")
    monkeypatch.setattr("os.fsync", real)
    assert not list((tmp_path / "cut").rglob("*.part"))
    fit(make(), QUIET, toy, accuracy, QUICK, tmp_path / "cut")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_nan_is_an_error_that_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    def poisoned(epoch: int):
        for index, batch in enumerate(toy(epoch)):
            if (epoch, index) == (1, 2):
                batch.image[0, 0, 0, 0] = float("inf")
            yield batch

    with pytest.raises(DivergedError, match=r"epoch 1, step 2.*training\.lr"):
        fit(make(), QUIET, poisoned, accuracy, QUICK, tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir())
    assert newest.name == "000001-000000002.safetensors"
    fit(make(), QUIET, toy, accuracy, QUICK, tmp_path)
    load_model(tmp_path / "model.safetensors")


def test_accumulation_is_the_larger_batch(tmp_path: Path) -> None:
    once = make_training({**vars(QUICK), "batch": 8})
    twice = make_training({**vars(QUICK), "accumulate": 2})

    def halves(epoch: int):
        for batch in toy(epoch, 4, 8):
            yield batch.select(range(4))
            yield batch.select(range(4, 8))

    one, two = make("pixel"), make("pixel")
    fit(one, QUIET, lambda epoch: toy(epoch, 4, 8), None, once, tmp_path / "once")
    fit(two, QUIET, halves, None, twice, tmp_path / "twice")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_an_epoch_without_a_valid_pixel_changes_nothing(tmp_path: Path) -> None:
    blind = [Batch.of(b.image, b.label, valid=torch.zeros_like(b.valid), chips=b.chips) for b in toy(0)]
    training = make_training({**vars(QUICK), "weight_decay": 0.0, "epochs": 1, "accumulate": 2, "steps_per_epoch": 2})
    model = make("pixel")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = fit(model, QUIET, lambda epoch: blind, None, training, tmp_path)
    assert history.rows[0]["loss"] == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_patience_and_the_choice_of_the_best(tmp_path: Path) -> None:
    values = iter([None, 0.5, 0.7, 0.6, None, 0.9])
    training = make_training({**vars(QUICK), "epochs": 6, "steps_per_epoch": 1, "patience": 2})
    history = fit(make(), QUIET, toy, lambda model: {"val.iou.water": next(values)}, training, tmp_path)
    assert (history.ending, history.best, history.best_epoch, len(history.rows)) == ("early", 0.7, 2, 5)
    assert [row["best"] for row in history.rows] == [True, True, True, False, False]
    lower = make_training({**vars(training), "patience": 0, "better": "lower", "check_every": 2})
    values = iter([0.5, 0.2, 0.4])
    history = fit(make(), QUIET, toy, lambda model: {"val.iou.water": next(values)}, lower, tmp_path / "lower")
    assert (history.ending, history.best, history.best_epoch) == ("finished", 0.2, 3)
    assert "val.iou.water" not in history.rows[0]


def test_what_cannot_train_is_refused(tmp_path: Path) -> None:
    for model, training, check, error, word in (
        (UNet(4, 1)(SPEC), QUICK, None, ModelError, "standardize.fit"),
        (Threshold("ndwi")(SPEC), QUICK, None, ModelError, "parameters"),
        (torch.nn.Conv2d(2, 2, 1), QUICK, None, ModelError, "adapt"),
        (make(), make_training({**vars(QUICK), "patience": 2}), None, UsageError, "patience"),
        (make(), make_training({**vars(QUICK), "monitor": "val.iou.watr"}), accuracy, UsageError, "did you mean"),
        (make(), make_training({**vars(QUICK), "steps_per_epoch": 9}), None, UsageError, "count=36"),
    ):
        with pytest.raises(error, match=word):
            fit(model, QUIET, toy, check, training, tmp_path / "x", resume=False)
    for device in ("gpu", "cuda:x", "cpu:-1"):
        with pytest.raises(UsageError, match="device"):
            fit(make(), QUIET, toy, None, QUICK, tmp_path / "x", device=device)
    with RunLock(tmp_path / "held"), pytest.raises(RunError, match="held by process"):
        fit(make(), QUIET, toy, None, QUICK, tmp_path / "held")


def test_settings_are_checked_and_typos_guessed() -> None:
    for settings, word in (
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": "many"}, "training.epochs"),
        ({"epochs": 0}, "at least 1"),
        ({"lr": 0.0}, "above 0"),
        ({"warmup": 1.0}, "share"),
        ({"schedule": "onecycle", "warmup": 0.0}, "onecycle"),
        ({"schedule": "cosin"}, "training.schedule"),
        ({"clip": -1.0}, "at least 0"),
    ):
        with pytest.raises(UsageError, match=word):
            make_training(settings)


def test_supervised_is_registered_and_reads_losses_from_recipes() -> None:
    assert build("objective", "supervised", {"loss": "ce + dice"}) == Supervised(build("loss", "sum"))
    assert build("objective", "supervised") == Supervised(CE())
    with pytest.raises(UsageError, match="did you mean 'dice'"):
        build("objective", "supervised", {"loss": "dise"})


PARALLEL = """
import sys, runpy
from pathlib import Path
import torch
torch.set_num_threads(1)
toys = runpy.run_path(sys.argv[1])
for name in ("first", "second"):
    history = toys["train_unevenly"](Path(sys.argv[2]) / name, devices=2)
    print("RANK DONE", history.best, flush=True)
"""


def train_unevenly(folder: Path, devices: int):
    training = make_training({**vars(QUICK), "batch": 5, "accumulate": 2, "steps_per_epoch": 2})

    def feed(epoch: int):
        # Every second batch has one image: one of two processes is left without.
        for index, batch in enumerate(toy(epoch, 4, 5)):
            yield batch if index % 2 == 0 else batch.select([0])

    return fit(make("pixel"), QUIET, feed, accuracy, training, folder, device="cpu", devices=devices)


@pytest.mark.slow
def test_two_processes_train_as_one_and_can_train_twice(tmp_path: Path) -> None:
    train_unevenly(tmp_path / "alone", devices=1)
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    done = subprocess.run(
        [sys.executable, str(script), __file__, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("RANK DONE") == 4
    assert bits(tmp_path / "first") == bits(tmp_path / "second")
    one, two = (load_model(tmp_path / name / "model.safetensors") for name in ("alone", "first"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    losses = [[row["loss"] for row in read_history(tmp_path / name / "history.jsonl")] for name in ("alone", "first")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

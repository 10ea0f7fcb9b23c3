"""The loop: it learns, resumes to the bit, stops when asked, and refuses what would mislead."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tomllib
from _thread import interrupt_main
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seawall.errors import DataError, ModelError, RecipeError, RunError, StoppedError, UsageError
from seawall.io import RunLock
from seawall.losses.segmentation import CrossEntropyLoss
from seawall.models.unet import UNet
from seawall.models.water_index import WaterIndexThreshold
from seawall.models.weights import load_model, read_spec
from seawall.recipe.recipe import make_recipe
from seawall.registry import build
from seawall.training import loop
from seawall.training.checkpoint import History
from seawall.training.configuration import learning_rate
from seawall.training.distributed import OtherProcessError, all_reduce_gradients, on_rank_zero
from seawall.training.loop import DivergedError, Training, fit
from seawall.training.objectives.supervised import Supervised
from seawall.types import Batch, ModelSpec
from seawall.version import code_version

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


def read_rows(path: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    assert read_rows(tmp_path / "history.jsonl") == list(history.rows)
    assert [row["step"] for row in history.rows] == [8, 16, 24, 32, 40, 48]
    assert history.rows[0]["val.nothing"] is None
    assert (
        max(row["val.iou.water"] for row in history.rows)
        == history.best
        == list(history.rows)[history.best_epoch]["val.iou.water"]
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
    training = replace(QUICK, optimizer=optimizer, lr=1e-3, schedule="onecycle", warmup=0.3)
    fit(make(norm, 0.2), QUIET, toy, accuracy, training, tmp_path / "whole")

    def stopping(epoch: int):
        for index, batch in enumerate(toy(epoch)):
            if (epoch, index) in {(1, 2)}:
                interrupt_main(signal.SIGTERM)
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
        [{**row, "seconds": 0, "cpu_seconds": 0} for row in read_rows(tmp_path / name / "history.jsonl")]
        for name in ("cut", "whole")
    ]
    assert rows[0] == rows[1]


def test_mixed_precision_trains_and_keeps_full_weights(tmp_path: Path) -> None:
    mixed = replace(QUICK, precision="bf16-mixed")
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
    other = replace(QUICK, lr=0.5, clip=0.0)
    with pytest.raises(RunError, match=r"training\.clip 0\.0 \(was 1\.0\), training\.lr 0\.5 \(was 0\.01\)"):
        fit(make(), QUIET, toy, accuracy, other, tmp_path, context={"data": "a"})
    with pytest.raises(RunError, match=r"context\.data b \(was a\)"):
        fit(make(), QUIET, toy, accuracy, QUICK, tmp_path, context={"data": "b"})
    with pytest.raises(RunError, match="objective"):
        fit(make(), Supervised(CrossEntropyLoss(smoothing=0.1)), toy, accuracy, QUICK, tmp_path, context={"data": "a"})
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
    once = replace(QUICK, batch=8)
    twice = replace(QUICK, accumulate=2)

    def halves(epoch: int):
        for batch in toy(epoch, 4, 8):
            yield batch.select(range(4))
            yield batch.select(range(4, 8))

    one, two = make("pixel"), make("pixel")
    fit(one, QUIET, lambda epoch: toy(epoch, 4, 8), None, once, tmp_path / "once")
    fit(two, QUIET, halves, None, twice, tmp_path / "twice")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_batches_of_a_step_count_by_their_valid_pixels(tmp_path: Path) -> None:
    whole, sparse = toy(0, 1, 4)[0], toy(1, 1, 4)[0]
    few = torch.zeros_like(sparse.valid)
    few[0, 0, :3] = True
    sparse = Batch.of(sparse.image, sparse.label, valid=few & sparse.valid, chips=sparse.chips)
    both = Batch(
        *(torch.cat([getattr(b, n) for b in (whole, sparse)]) for n in ("image", "label", "seen", "valid")),
        (*whole.chips, *sparse.chips),
    )
    training = replace(QUICK, epochs=1, steps_per_epoch=1, optimizer="sgd", clip=0.0)
    one, two = make("pixel"), make("pixel")
    fit(one, QUIET, lambda epoch: [both], None, training, tmp_path / "one")
    fit(two, QUIET, lambda epoch: [whole, sparse], None, replace(training, accumulate=2), tmp_path / "two")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_epoch_without_a_valid_pixel_changes_nothing(tmp_path: Path) -> None:
    blind = [Batch.of(b.image, b.label, valid=torch.zeros_like(b.valid), chips=b.chips) for b in toy(0)]
    training = replace(QUICK, weight_decay=0.0, epochs=1, accumulate=2, steps_per_epoch=2)
    model = make("pixel")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    history = fit(model, QUIET, lambda epoch: blind, None, training, tmp_path)
    assert history.rows[0]["loss"] == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_patience_and_the_choice_of_the_best(tmp_path: Path) -> None:
    values = iter([None, 0.5, 0.7, 0.6, None, 0.9])
    training = replace(QUICK, epochs=6, steps_per_epoch=1, patience=2)
    history = fit(make(), QUIET, toy, lambda model: {"val.iou.water": next(values)}, training, tmp_path)
    assert (history.ending, history.best, history.best_epoch, len(history.rows)) == ("early", 0.7, 2, 5)
    assert [row["best"] for row in history.rows] == [True, True, True, False, False]
    lower = replace(training, patience=0, better="lower", check_every=2)
    values = iter([0.5, 0.2, 0.4])
    history = fit(make(), QUIET, toy, lambda model: {"val.iou.water": next(values)}, lower, tmp_path / "lower")
    assert (history.ending, history.best, history.best_epoch) == ("finished", 0.2, 3)
    assert "val.iou.water" not in history.rows[0]


def test_the_last_weights_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    def train(**settings: object) -> tuple[History, dict[str, torch.Tensor]]:
        values = iter([0.9, 0.5, 0.7])
        training = replace(QUICK, epochs=3, steps_per_epoch=1, **settings)  # type: ignore[arg-type]
        home = tmp_path / "-".join(map(str, settings.values()))
        history = fit(make(), QUIET, toy, lambda model: {"val.iou.water": next(values)}, training, home)
        return history, dict(load_model(history.weights).state_dict())

    best, first = train(keep="best")
    last, final = train(keep="last")
    # the loop never chooses where there is no validation, so its weights are those after the last step
    unchosen = fit(make(), QUIET, toy, None, replace(QUICK, epochs=3, steps_per_epoch=1), tmp_path / "none").weights
    assert ([row["best"] for row in best.rows], best.best_epoch, best.best) == ([True, False, False], 0, 0.9)
    assert ([row["best"] for row in last.rows], last.best_epoch, last.best) == ([True, True, True], 2, 0.7)
    assert all(torch.equal(final[name], tensor) for name, tensor in load_model(unchosen).state_dict().items())
    assert any(not torch.equal(final[name], first[name]) for name in final)


def test_what_cannot_train_is_refused(tmp_path: Path) -> None:
    for model, training, check, error, word in (
        (UNet(4, 1)(SPEC), QUICK, None, ModelError, "standardize.fit"),
        (WaterIndexThreshold("ndwi")(SPEC), QUICK, None, ModelError, "parameters"),
        (torch.nn.Conv2d(2, 2, 1), QUICK, None, ModelError, "adapt"),
        (make(), replace(QUICK, patience=2), None, UsageError, "patience"),
        (make(), replace(QUICK, monitor="val.iou.watr"), accuracy, UsageError, "did you mean"),
        (make(), replace(QUICK, steps_per_epoch=9), None, UsageError, "count=36"),
    ):
        with pytest.raises(error, match=word):
            fit(model, QUIET, toy, check, training, tmp_path / "x", resume=False)
    for device in ("gpu", "cuda:x", "cpu:-1"):
        with pytest.raises(UsageError, match="device"):
            fit(make(), QUIET, toy, None, QUICK, tmp_path / "x", device=device)
    with RunLock(tmp_path / "held"), pytest.raises(RunError, match="held by process"):
        fit(make(), QUIET, toy, None, QUICK, tmp_path / "held")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown key 'training.epoch'; did you mean 'epochs'?"),
        (
            {"epochs": "many"},
            "training.epochs: expected a valid integer, unable to parse string as an integer, got 'many'",
        ),
        ({"epochs": 0}, "training.epochs: expected greater than 0, got 0; see docs/recipes.md"),
        ({"lr": 0.0}, "training.lr: expected greater than 0, got 0.0; see docs/recipes.md"),
        ({"lr": float("inf")}, "training.lr: expected a finite number, got inf"),
        ({"warmup": 1.0}, "training.warmup: expected less than 1, got 1.0"),
        ({"schedule": "onecycle", "warmup": 0.0}, "training.warmup: expected a share above 0 for onecycle, got 0.0"),
        ({"schedule": "cosin"}, "training.schedule: expected 'constant', 'cosine', 'poly' or 'onecycle', got 'cosin'"),
        (
            {"keep": "last", "patience": 3},
            'training.patience: expected 0 with keep = "last", which keeps the weights at the end of all epochs, got 3',
        ),
        ({"clip": -1.0}, "training.clip: expected greater than or equal to 0, got -1.0"),
        ({"weight_decay": float("nan")}, "training.weight_decay: expected greater than or equal to 0, got nan"),
    ],
)
def test_python_and_a_recipe_refuse_a_setting_in_the_same_words(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        Training(**settings)  # type: ignore[arg-type]
    of_recipe = "recipe: " + message.replace("training.", "training.settings.", 1)
    with pytest.raises(RecipeError, match=f"^{re.escape(of_recipe)}"):
        make_recipe({"name": "x", "training": {"settings": settings}})


def test_settings_of_a_recipe_stay_as_they_are_written() -> None:
    recipe = make_recipe({"name": "x", "training": {"settings": {"lr": 1}}})
    assert recipe.training.settings == {"lr": 1}, "a new default would change the id of every recipe"
    assert make_recipe(tomllib.loads(recipe.to_toml())).id == recipe.id


def test_supervised_is_registered_and_reads_losses_from_recipes() -> None:
    assert build("objective", "supervised", {"loss": "ce + dice"}) == Supervised(build("loss", "sum"))
    assert build("objective", "supervised") == Supervised(CrossEntropyLoss())
    with pytest.raises(UsageError, match="did you mean 'dice'"):
        build("objective", "supervised", {"loss": "dise"})


def moved(folder: Path, clip: float) -> float:
    """How far one step of plain descent at rate 1 moves the weights."""
    settings = {"epochs": 1, "steps_per_epoch": 1, "optimizer": "sgd", "schedule": "constant", "lr": 1.0}
    training = replace(QUICK, **settings, weight_decay=0.0, clip=clip)
    model = make("pixel")
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, QUIET, toy, None, training, folder)
    return float(sum(((a - b.detach()) ** 2).sum() for a, b in zip(before, model.parameters(), strict=True))) ** 0.5


def test_clipping_bounds_the_gradient_of_a_step(tmp_path: Path) -> None:
    nesterov = 1.9  # the first step of Nesterov momentum 0.9 is g + 0.9 g
    free = moved(tmp_path / "free", 0.0) / nesterov
    assert free > 0.1
    assert moved(tmp_path / "loose", 10 * free) == pytest.approx(nesterov * free, rel=1e-4)
    assert moved(tmp_path / "tight", free / 4) == pytest.approx(nesterov * free / 4, rel=1e-3)


def test_decay_is_of_convolutions_alone_and_the_rate_follows_the_schedule(tmp_path: Path) -> None:
    blind = [Batch.of(b.image, b.label, valid=torch.zeros_like(b.valid), chips=b.chips) for b in toy(0)]
    settings = {"epochs": 2, "steps_per_epoch": 2, "schedule": "cosine", "warmup": 0.25, "lr": 0.1, "weight_decay": 0.5}
    training = replace(QUICK, **settings)
    model = make("pixel")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    history = fit(model, QUIET, lambda epoch: blind, None, training, tmp_path)
    rates = [0.1, 0.1, 0.05, 0.0]  # warm-up of one step, then a cosine down to 0
    factor = math.prod(1 - rate * 0.5 for rate in rates)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name] * (factor if p.ndim > 1 else 1.0))
    assert [row["lr"] for row in history.rows] == pytest.approx([0.1, 0.0])


class Twin:
    """Two processes that compute the same: every sum over them is twice what one has."""

    world_size = 2

    def all_reduce(self, data: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        return 2 * data


def test_gradients_are_summed_and_running_statistics_averaged() -> None:
    model = make("batch").train()
    batch = toy(0)[0]
    QUIET(model, batch, None).backward()
    before = [p.grad.clone() for p in model.parameters()]
    running = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss, failed = all_reduce_gradients(Twin(), model, torch.tensor(1.5))
    assert (float(loss), failed) == (3.0, False)
    for a, p in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * a)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, running[name])
    assert all_reduce_gradients(Twin(), model, torch.tensor(1.5), True)[1]


class Pair:
    """One of two processes; `other` is what the other one adds to every sum, or broadcasts."""

    world_size = 2

    def __init__(self, first: bool, other: object = None) -> None:
        self.is_global_zero, self.other, self.sent = first, other, []

    def all_reduce(self, data: torch.Tensor, reduce_op: str) -> torch.Tensor:
        return data + torch.cat([torch.tensor([0.0, float(self.other)]), torch.zeros(len(data) - 2)])

    def broadcast(self, value: object) -> object:
        self.sent.append(value)
        return value if self.is_global_zero else self.other


def test_a_failure_of_one_process_is_told_to_the_others() -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    first = Pair(True)
    with pytest.raises(OSError, match="disk"):
        on_rank_zero(first, fail)
    assert first.sent == [(False, None)]
    assert on_rank_zero(first, lambda: 7) == 7
    with pytest.raises(OtherProcessError):
        on_rank_zero(Pair(False, (False, None)), fail)
    assert on_rank_zero(Pair(False, (True, 7)), fail) == 7, "only the first one works"
    model = make("pixel")
    for mine, other in ((False, 0), (True, 0), (False, 1), (True, 1)):
        assert all_reduce_gradients(Pair(True, other), model, torch.tensor(1.0), mine)[1] is (mine or bool(other))


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    told: list[float] = []

    def hear(done: int, total: int, note: str) -> None:
        told.append(float(note.split("loss ")[1].split(",")[0]))

    history = fit(make(), QUIET, toy, None, QUICK, tmp_path, progress=hear)
    means = [sum(told[i : i + 4]) / 4 for i in range(0, 12, 4)]
    assert [row["loss"] for row in history.rows] == pytest.approx(means, abs=1e-4)


def test_layers_that_draw_draw_anew_at_every_step(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        drawn: list[float] = []

        def spying(model, batch, keys, drawn=drawn):
            drawn.append(torch.rand(()).item())
            return QUIET(model, batch, keys)

        fit(make(dropout=0.2), spying, toy, None, QUICK, tmp_path / name)
        runs.append(drawn)
    assert len(set(runs[0])) == len(runs[0]) == 12
    assert runs[0] == runs[1]


def test_of_two_equal_checks_the_earlier_one_counts(tmp_path: Path) -> None:
    values = iter([0.5, 0.7, 0.7])
    history = fit(make(), QUIET, toy, lambda model: {"val.iou.water": next(values)}, QUICK, tmp_path)
    assert history.best_epoch == 1
    values = iter([0.5, 0.7, 0.7])
    lower = replace(QUICK, better="lower")
    history = fit(make(), QUIET, toy, lambda model: {"val.iou.water": next(values)}, lower, tmp_path / "lower")
    assert history.best_epoch == 0


@pytest.mark.parametrize("when", ["last step", "last check", "end"])
def test_a_stop_that_comes_last_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    fit(make(), QUIET, toy, accuracy, QUICK, tmp_path / "whole")

    def stop() -> None:
        interrupt_main(signal.SIGINT)

    def feed(epoch: int):
        for index, batch in enumerate(toy(epoch)):
            if (when, epoch, index) == ("last step", 2, 3):
                stop()
            yield batch

    calls = []

    def checking(model: torch.nn.Module) -> dict[str, float | None]:
        calls.append(1)
        if when == "last check" and len(calls) == 3:
            stop()
        return accuracy(model)

    if when == "end":
        real = loop.load_model
        monkeypatch.setattr(loop, "load_model", lambda *args, **kwargs: (stop(), real(*args, **kwargs))[1])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError, match="goes on from there"):
        fit(make(), QUIET, feed, checking, QUICK, tmp_path / "cut")
    assert signal.getsignal(signal.SIGINT) == before
    monkeypatch.undo()
    again = fit(make(), QUIET, lambda epoch: pytest.fail("fed again"), accuracy, QUICK, tmp_path / "cut")
    assert again.ending == "finished"
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_a_metric_that_is_never_defined_keeps_the_last_weights(tmp_path: Path) -> None:
    model, training = make(), replace(QUICK, patience=1)
    history = fit(model, QUIET, toy, lambda model: {"val.iou.water": None}, training, tmp_path / "none")
    assert (history.ending, history.best, history.best_epoch) == ("finished", None, 2)
    plain = make()
    fit(plain, QUIET, toy, None, training_without_patience(), tmp_path / "plain")
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def training_without_patience() -> Training:
    return replace(QUICK, patience=0)


def test_the_default_monitor_goes_by_the_classes_and_a_wrong_one_is_refused_at_once(tmp_path: Path) -> None:
    spec = ModelSpec(("B03", "B08"), ("field", "forest"), "reflectance", 10.0)
    torch.manual_seed(0)
    model = UNet(4, 1)(spec)
    model.standardize.fit([0.3, 0.3], [0.2, 0.2])
    history = fit(model, QUIET, toy, lambda model: {"val.iou.mean": 0.5}, QUICK, tmp_path / "mean")
    assert (history.monitor, history.best) == ("val.iou.mean", 0.5)

    def fed(epoch: int):
        raise AssertionError("no step may be taken")

    wrong = replace(QUICK, monitor="val.iou.watr")
    with pytest.raises(UsageError, match=r"did you mean 'val\.iou\.water'"):
        fit(make(), QUIET, fed, accuracy, wrong, tmp_path / "x", metrics=["val.iou.land", "val.iou.water"])
    assert not (tmp_path / "x").exists()


class Seekable:
    """A feed that says where it was asked to begin."""

    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        self.stop_at, self.asked = stop_at, []

    def __call__(self, epoch: int):
        return self.starting_at(epoch, 0)

    def starting_at(self, epoch: int, batch: int):
        self.asked.append((epoch, batch))
        for index, made in list(enumerate(toy(epoch, 8)))[batch:]:
            if (epoch, index) == self.stop_at:
                interrupt_main(signal.SIGTERM)
            yield made


def test_a_resume_inside_an_epoch_does_not_make_what_was_done(tmp_path: Path) -> None:
    training = replace(QUICK, accumulate=2)
    fit(make(), QUIET, Seekable(), accuracy, training, tmp_path / "whole")
    with pytest.raises(StoppedError, match="epoch 1, step 3"):
        fit(make(), QUIET, Seekable((1, 5)), accuracy, training, tmp_path / "cut")
    rest = Seekable()
    fit(make(), QUIET, rest, accuracy, training, tmp_path / "cut")
    assert rest.asked == [(1, 6), (2, 0)]
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")


def test_a_resume_with_other_code_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoppedError):
        fit(make(), QUIET, Seekable((1, 1)), accuracy, QUICK, tmp_path)
    monkeypatch.setattr(loop, "code_version", lambda: "9.9+new")
    told: list[str] = []
    history = fit(make(), QUIET, toy, accuracy, QUICK, tmp_path, progress=lambda done, total, note: told.append(note))
    assert history.versions == (code_version(), "9.9+new")
    assert told[0] == f"goes on with seawall 9.9+new, begun with {code_version()}"


def test_settings_that_change_no_weight_may_change_on_resume(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        fit(make(), QUIET, Seekable((1, 1)), accuracy, QUICK, tmp_path)
    other = replace(QUICK, save_s=60.0, tensorboard=True, workers=0)
    assert fit(make(), QUIET, toy, accuracy, other, tmp_path).ending == "finished"


PARALLEL = """
import os, sys, runpy
from pathlib import Path
import torch
torch.set_num_threads(1)
toys = runpy.run_path(sys.argv[1])
home = Path(sys.argv[2])
for name in ("first", "second"):
    history = toys["train_unevenly"](home / name, devices=2)
    print("RANK DONE", history.best, flush=True)
toys["one_step_of_batch_norm"](home / "batch", devices=2)
for name in toys["FAILURES"]:
    os.write(1, f"FAILED {name} {toys['failing'](home / name, name)}\\n".encode())  # in one piece
"""


def train_unevenly(folder: Path, devices: int):
    training = replace(QUICK, batch=5, accumulate=2, steps_per_epoch=2)

    def feed(epoch: int):
        # Every second batch has one image: one of two processes is left without.
        for index, batch in enumerate(toy(epoch, 4, 5)):
            yield batch if index % 2 == 0 else batch.select([0])

    return fit(make("pixel"), QUIET, feed, accuracy, training, folder, device="cpu", devices=devices)


def one_step_of_batch_norm(folder: Path, devices: int) -> None:
    training = replace(QUICK, epochs=1, steps_per_epoch=1)
    fit(make(), QUIET, toy, None, training, folder, device="cpu", devices=devices)


FAILURES = ("feed", "objective", "check", "lock", "weights")


def failing(folder: Path, what: str) -> str:
    """Train on two processes with a fault in one of them; return what is raised on this one."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    seen = []

    def feed(epoch: int):
        for index, batch in enumerate(toy(epoch)):
            if (what, rank, epoch, index) == ("feed", 1, 1, 2):
                raise OSError("a chip is gone")
            yield batch

    def objective(model, batch, keys):
        seen.append(1)
        if (what, rank, len(seen)) == ("objective", 1, 3):
            raise DataError("a label is wrong")
        return QUIET(model, batch, keys)

    def check(model: torch.nn.Module) -> dict[str, float | None]:
        if what == "check":
            raise OSError("validation is gone")
        if what == "weights":
            with torch.no_grad():
                model.network.head.weight.fill_(float("nan"))
        return {"val.iou.water": 0.5}

    held = RunLock(folder) if what == "lock" and rank == 0 else contextlib.nullcontext()
    try:
        with held:
            fit(make(), objective, feed, check, QUICK, folder, device="cpu", devices=2)
    except Exception as bad:
        return f"{rank} {type(bad).__name__}"
    return f"{rank} nothing"


@pytest.mark.slow
def test_two_processes_train_as_one_and_fail_as_one(tmp_path: Path) -> None:
    train_unevenly(tmp_path / "alone", devices=1)
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    done = subprocess.run(
        [sys.executable, str(script), __file__, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("RANK DONE") == 4
    assert bits(tmp_path / "first") == bits(tmp_path / "second")
    one, two = (load_model(tmp_path / name / "model.safetensors") for name in ("alone", "first"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    losses = [[row["loss"] for row in read_rows(tmp_path / name / "history.jsonl")] for name in ("alone", "first")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    told = {line.removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED")}
    assert told == {
        "feed 0 OtherProcessError", "feed 1 OSError", "objective 0 OtherProcessError", "objective 1 DataError",
        "check 0 OSError", "check 1 OtherProcessError", "lock 0 RunError", "lock 1 OtherProcessError",
        "weights 0 DivergedError", "weights 1 OtherProcessError",
    }  # fmt: skip
    batch_statistics_are_averaged(load_model(tmp_path / "batch" / "model.safetensors"))


def batch_statistics_are_averaged(trained: torch.nn.Module) -> None:
    """Each process saw every second image of the batch, in train mode."""
    batch, states = toy(0)[0], []
    for rank in range(2):
        model = make().train()
        model(batch.image[rank::2])
        states.append(dict(model.named_buffers()))
    running = {name: buffer for name, buffer in trained.named_buffers() if "running_" in name}
    assert len(running) > 4
    for name, buffer in running.items():
        torch.testing.assert_close(buffer, (states[0][name] + states[1][name]) / 2, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(states[0][name], states[1][name], rtol=1e-4), "the two halves differ"


def test_the_rate_falls_once_per_snapshot() -> None:
    training = Training(epochs=6, steps_per_epoch=5, snapshots=3, schedule="cosine", warmup=0.0, lr=1.0)
    rates = [learning_rate(training, step) for step in range(30)]
    assert rates[:10] == rates[10:20] == rates[20:] and rates[0] == 1.0 and rates[9] == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(UsageError, match="a divisor of the 6 epochs"):
        Training(epochs=6, snapshots=4)

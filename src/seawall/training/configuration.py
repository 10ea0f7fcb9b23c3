"""Settings of a training, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationInfo, field_validator

from seawall.settings import settings

NOT_DECIDING = ("save_s", "tensorboard", "workers")
"""Settings that change no weight: a resume may change them, and no id depends on them."""

MEAN_IOU = "val.iou.mean"


def default_monitor(classes: Sequence[str]) -> str:
    """Return the metric that selects the weights by default.

    Example:
        >>> default_monitor(("land", "water")), default_monitor(("forest", "field"))
        ('val.iou.water', 'val.iou.mean')
    """
    return "val.iou.water" if "water" in classes else MEAN_IOU


@settings("training", "see docs/recipes.md")
class Training:
    """Settings of one training.

    Args:
        epochs: Rounds; after each the model is checked, logged and saved.
        steps_per_epoch: Optimizer steps per round.
        batch: Patches per batch.
        patch: Side of a patch in pixels.
        accumulate: Batches per step; their gradients are averaged over all valid pixels.
        lr: Highest learning rate.
        optimizer: "adamw", or "sgd" with Nesterov momentum 0.9.
        weight_decay: Decay of the convolutions; norms and biases do not decay.
        schedule: "constant", "cosine" to zero, "poly" (power 0.9), or "onecycle", which starts at lr / 25,
            rises along a cosine during the warm-up and falls along one to lr / 10000.
        warmup: Share of all steps over which the rate rises; linearly except in "onecycle".
        clip: Largest norm of the gradient; 0 does not clip.
        ema: Decay of the moving average of the weights, which is then validated and kept instead of them, batch-norm
            statistics included; 0 keeps none. 0.995 is common.
        precision: "32-true", or mixed precision, which is faster on some hardware.
        keep: Weights that are kept: "best", those of the check with the best value of `monitor`, or "last". With few validation
            chips the best check is one of chance.
        patience: Checks without improvement until training stops; 0 never stops early.
        monitor: Validation metric that selects the best weights; "" is "val.iou.water" where there is such a class,
            and the mean over the classes, "val.iou.mean", where there is none.
        better: Whether a higher or a lower value of it is better.
        halt: Validation metric that ends the training as soon as it is above 0, such as "val.robust.overfitting"; "" for
            none. The weights that are kept are the best ones by `monitor`.
        snapshots: Cycles of the learning rate, each ending in a snapshot of the weights, snapshot-1.safetensors and so on beside the
            weights that are kept; the members of a snapshot ensemble. 0 for one cycle and none. The epochs are a multiple of it.
        check_every: Epochs between checks; the last epoch is always checked.
        save_s: Seconds between checkpoints inside an epoch; 0 saves after epochs only.
        tensorboard: Write curves for TensorBoard beside the JSON lines.
        workers: Threads that read patches ahead; the batches are the same whatever their number.

    Raises:
        UsageError: A setting is unknown (the message guesses), has a wrong type or is out of its range.

    Example:
        >>> Training(epochs=3).steps
        150
    """

    epochs: PositiveInt = 30
    steps_per_epoch: PositiveInt = 50
    batch: PositiveInt = 8
    patch: PositiveInt = 96
    accumulate: PositiveInt = 1
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: NonNegativeFloat = 0.01
    schedule: Literal["constant", "cosine", "poly", "onecycle"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip: NonNegativeFloat = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    keep: Literal["best", "last"] = "best"
    patience: NonNegativeInt = 0
    monitor: str = ""
    better: Literal["higher", "lower"] = "higher"
    halt: str = ""
    snapshots: NonNegativeInt = 0
    check_every: PositiveInt = 1
    save_s: NonNegativeFloat = 60.0
    tensorboard: bool = True
    workers: NonNegativeInt = 2

    @field_validator("warmup")
    @classmethod
    def _check_warmup(cls, warmup: float, before: ValidationInfo) -> float:
        if warmup == 0 and before.data.get("schedule") == "onecycle":
            raise ValueError("a share above 0 for onecycle")
        return warmup

    @field_validator("patience")
    @classmethod
    def _check_patience(cls, patience: int, before: ValidationInfo) -> int:
        if patience and before.data.get("keep") == "last":
            raise ValueError('0 with keep = "last", which keeps the weights at the end of all epochs')
        return patience

    @field_validator("snapshots")
    @classmethod
    def _check_snapshots(cls, snapshots: int, before: ValidationInfo) -> int:
        if snapshots and before.data.get("epochs", 0) % snapshots:
            raise ValueError(f"a divisor of the {before.data['epochs']} epochs")
        return snapshots

    def snapshot_at(self, epoch: int) -> int:
        """Return the number of the snapshot at the end of an epoch, from 1; 0 for none.

        Example:
            >>> [Training(epochs=6, snapshots=2).snapshot_at(epoch) for epoch in range(6)]
            [0, 0, 1, 0, 0, 2]
        """
        length = self.epochs // self.snapshots if self.snapshots else self.epochs + 1
        return 0 if (epoch + 1) % length else (epoch + 1) // length

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def patches_per_epoch(self) -> int:
        """Number of patches per epoch that a feed must give: `patches(..., count=training.patches_per_epoch)`."""
        return self.steps_per_epoch * self.accumulate * self.batch


@settings("training.pretraining.masking", "see docs/few-labels.md")
class Masking:
    """What is hidden of an image that a network has to reconstruct.

    Args:
        block: Side of a block in pixels.
        share: Share of the blocks that are hidden, in all bands.
        bands: Probability that a band is hidden as a whole.
    """

    block: PositiveInt = 8
    share: Annotated[float, Field(gt=0, le=1)] = 0.6
    bands: Annotated[float, Field(ge=0, lt=1)] = 0.2


def learning_rate(training: Training, step: int) -> float:
    """Return the learning rate of a step in 0..steps - 1: a pure function, so that resuming needs no state.

    With snapshots the schedule is run once per cycle.

    Example:
        >>> training = Training(epochs=1, steps_per_epoch=11, schedule="cosine", warmup=0.0, lr=2.0)
        >>> [round(learning_rate(training, step), 3) for step in (0, 5, 10)]
        [2.0, 1.0, 0.0]
    """
    steps = training.steps // max(1, training.snapshots)
    step %= steps
    warmup = math.ceil(training.warmup * steps)
    if step < warmup:
        share = (step + 1) / warmup
        if training.schedule != "onecycle":
            return training.lr * share
        return training.lr * (1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * share)) / 2)
    share = (step - warmup) / max(1, steps - 1 - warmup)
    falling = (1 + math.cos(math.pi * share)) / 2
    factor: Mapping[str, float] = {
        "constant": 1.0,
        "cosine": falling,
        "poly": math.pow(1 - share, 0.9),
        "onecycle": 1e-4 + (1 - 1e-4) * falling,
    }
    return training.lr * factor[training.schedule]

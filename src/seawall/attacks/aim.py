"""What a running attack pushes at, checked once: the model's contract, the labels, the goal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from seawall.attacks.goal import Goal
from seawall.errors import DataError, ModelError, UsageError
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@dataclass(frozen=True)
class Aim:
    """Which pixels count, and the class that each is pushed from or to.

    Args:
        label: (B, H, W) int64: the class to leave, or with `targeted` the class to reach. Class 0 where not valid.
        valid: (B, H, W) bool: the pixels that count.
        targeted: Whether `label` is to be reached.
        truth: The class to leave when the target moves with the model at every step; else None.
        progress: How far the attack is, from 0 to just below 1; losses with a schedule read it.
    """

    label: Tensor
    valid: Tensor
    targeted: bool = False
    truth: Tensor | None = None
    progress: float = 0.0

    def select(self, indices: Tensor) -> Aim:
        """Return the aim at the chosen images."""
        truth = None if self.truth is None else self.truth[indices]
        return replace(self, label=self.label[indices], valid=self.valid[indices], truth=truth)

    def seen_with(self, logits: Tensor, progress: float) -> Aim:
        """Return the aim at this step: a moving target follows the logits."""
        label = self.label if self.truth is None else logits.detach().argmin(1)
        return replace(self, label=label, progress=progress)

    def hits(self, logits: Tensor) -> Tensor:
        """Return the count (B,) of valid pixels that are where the adversary wants them."""
        label, targeted = (self.label, self.targeted) if self.truth is None else (self.truth, False)
        same = classes(logits) == label
        return ((same if targeted else ~same) & self.valid).flatten(1).sum(1)


def take_aim(model: SegmentationModel, batch: Batch, goal: Goal) -> Aim:
    """Return what to push at; goals that read the clean prediction cost one forward pass.

    Raises:
        UsageError: The model has no class of the goal's name.
    """
    logits = None
    if goal.reads:
        with torch.no_grad():
            logits = check_logits(model(batch.image), batch.image, len(model.spec.classes))
    label = torch.where(batch.valid, goal.pixels(model.spec, batch, logits), 0)
    return Aim(label, batch.valid, goal.targeted, label if goal.moving else None)


def check(name: str, model: SegmentationModel, batch: Batch, threat: ThreatModel) -> None:
    """Refuse what no attack can mean.

    Raises:
        UsageError: The threat's unit is not the model's.
        DataError: Other bands than the model's, or a valid label that is no class.
    """
    spec = model.spec
    if threat.unit != spec.unit:
        raise UsageError(f"{name}: expected a threat in {spec.unit}, the model's unit, got {threat.unit}; convert eps")
    if batch.image.shape[1] != len(spec.bands):
        raise DataError(
            f"{name}: expected {len(spec.bands)} bands ({', '.join(spec.bands)}), got {batch.image.shape[1]}; "
            "select the model's bands"
        )
    labels = batch.label[batch.valid]
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(spec.classes)):
        raise DataError(
            f"{name}: expected labels from 0 to {len(spec.classes) - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}; map the values or mark those pixels invalid"
        )


def check_logits(logits: Tensor, image: Tensor, classes: int) -> Tensor:
    """Return the logits if they are (B, K, H, W) on the image's grid.

    Raises:
        ModelError: They are not.
    """
    wanted = (image.shape[0], classes, *image.shape[2:])
    if tuple(logits.shape) != wanted:
        raise ModelError(f"model: expected logits of shape {wanted}, got {tuple(logits.shape)}; wrap it with adapt()")
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def classes(logits: Tensor) -> Tensor:
    """Return the predicted class (B, H, W); the quick way for two classes."""
    return (logits[:, 1] > logits[:, 0]).long() if logits.shape[1] == 2 else logits.argmax(1)


@contextmanager
def as_found(model: SegmentationModel) -> Iterator[None]:
    """Gradients on, the model in eval mode with frozen parameters; all back as it was, also after an exception."""
    with torch.inference_mode(False), torch.enable_grad():
        if not isinstance(model, nn.Module):
            yield
            return
        with _frozen(model):
            yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def usable(batch: Batch) -> Batch:
    """Return a batch that autograd accepts: it refuses tensors that were made in inference mode."""
    if not batch.image.is_inference():
        return batch
    return Batch(batch.image.clone(), batch.label.clone(), batch.seen.clone(), batch.valid.clone(), batch.chips)

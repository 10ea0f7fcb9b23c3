"""Goals of an attack (untargeted, towards a class, hide a class, least likely class), its target, and the checks of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import PlainValidator
from scipy import ndimage
from torch import Tensor, nn

from seawall import registry
from seawall.errors import DataError, ModelError, UsageError
from seawall.modules import eval_mode
from seawall.registry import register
from seawall.threat.model import ThreatModel
from seawall.types import Batch, ModelSpec, SegmentationModel, Setting, unit_text, units_of


@runtime_checkable
class AttackGoal(Protocol):
    """What the adversary wants of every valid pixel; `str(goal)` is the text that recipes use."""

    @property
    def targeted(self) -> bool:
        """Whether pixels are pushed to the class of `class_map`, and not away from it."""

    @property
    def moving(self) -> bool:
        """Whether the target follows the model at every step."""

    @property
    def needs_logits(self) -> bool:
        """Whether the goal needs the model's logits on the clean image, one more forward pass."""

    def class_map(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) of each pixel that it is pushed to or away from."""


@register("goal", "untargeted")
@dataclass(frozen=True)
class Untargeted:
    """As many valid pixels as possible wrong.

    Args:
        truth: Wrong against the "label", or against the model's own "prediction" on the clean image, which reveals
            nothing of the label to the adversary.
    """

    truth: Literal["label", "prediction"] = "label"
    targeted: ClassVar[bool] = False
    moving: ClassVar[bool] = False

    @property
    def needs_logits(self) -> bool:
        """Whether the goal needs the model's logits on the clean image, one more forward pass."""
        return self.truth == "prediction"

    def class_map(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) that pixels are pushed away from."""
        return batch.label if logits is None else logits.argmax(1)

    def __str__(self) -> str:
        return "untargeted" if self.truth == "label" else "untargeted prediction"


UNTARGETED = Untargeted()
UNTARGETED_PREDICTION = Untargeted("prediction")


@register("goal", "towards", smoke={"klass": "water"})
@dataclass(frozen=True)
class Towards:
    """Every valid pixel predicted as one class.

    Args:
        klass: Name of the class.
    """

    klass: str
    targeted: ClassVar[bool] = True
    moving: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False

    def class_map(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) that pixels are pushed to."""
        return torch.full_like(batch.label, spec.klass(self.klass))

    def __str__(self) -> str:
        return f"towards {self.klass}"


@register("goal", "hide", paper="arXiv:1703.01101", smoke={"klass": "water"})
@dataclass(frozen=True)
class Hide:
    """No pixel predicted as one class, all others as they were predicted.

    A pixel predicted as the class is pushed to the prediction of the nearest seen pixel of another class. Where the
    class fills a chip, to its own runner-up.

    Args:
        klass: Name of the class.

    Paper: Fischer et al. 2017, arXiv:1703.01101, section 3.
    """

    klass: str
    targeted: ClassVar[bool] = True
    moving: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = True

    def class_map(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) that pixels are pushed to."""
        if logits is None:
            raise UsageError(f"goal {self}: expected logits of the clean image, got none; pass the model's output")
        klass = spec.klass(self.klass)
        prediction = logits.argmax(1)
        other = logits.index_fill(1, torch.tensor([klass], device=logits.device), -torch.inf).argmax(1)
        filled = nearest_other(prediction, batch.seen, klass)
        target = torch.where(filled >= 0, filled, other)
        return torch.where(prediction == klass, target, prediction)

    def __str__(self) -> str:
        return f"hide {self.klass}"


@register("goal", "least-likely", paper="arXiv:1711.09856")
@dataclass(frozen=True)
class LeastLikely:
    """Every valid pixel predicted as the class of its smallest logit.

    Args:
        moving: Whether the target follows the model at every step (Arnab et al.) or stays as on the clean image.
            A moving target is never reached, so the best image is then the most wrong one.
    """

    moving: bool = False
    targeted: ClassVar[bool] = True

    @property
    def needs_logits(self) -> bool:
        """Whether the goal needs the model's logits on the clean image, one more forward pass."""
        return not self.moving

    def class_map(self, spec: ModelSpec, batch: Batch, logits: Tensor | None) -> Tensor:
        """Return the class (B, H, W) that pixels are pushed to; the label where the target moves."""
        return batch.label if logits is None else logits.argmin(1)

    def __str__(self) -> str:
        return "least-likely moving" if self.moving else "least-likely"


def nearest_other(prediction: Tensor, seen: Tensor, klass: int) -> Tensor:
    """Return for every pixel the class of the nearest seen pixel that is not `klass`; -1 where an image has none.

    Example:
        >>> row = torch.tensor([[[0, 2, 2, 1]]])
        >>> nearest_other(row, torch.ones_like(row, dtype=torch.bool), 2)
        tensor([[[0, 0, 1, 1]]])
    """
    maps = prediction.cpu().numpy()
    sources = (prediction.ne(klass) & seen).cpu().numpy()
    filled = np.full_like(maps, -1)
    for image, source, out in zip(maps, sources, filled, strict=True):
        if source.any():
            rows, cols = ndimage.distance_transform_edt(~source, return_distances=False, return_indices=True)
            out[...] = image[rows, cols]
    return torch.from_numpy(filled).to(prediction.device)


def parse_goal(given: object) -> AttackGoal:
    """Return the goal of a text such as "hide water"; a goal passes through.

    After the name of the goal come `setting=value`, the names of switches, or the value of the first setting.

    Raises:
        UsageError: The text is no goal.
        ValueError: Neither a goal nor text.

    Example:
        >>> parse_goal("towards land"), parse_goal("least-likely moving")
        (Towards(klass='land'), LeastLikely(moving=True))
    """
    if isinstance(given, AttackGoal) and not isinstance(given, type):
        return given
    if not isinstance(given, str):
        raise ValueError('a goal or its text, such as "hide water"')
    name, *words = given.split() or [""]
    settings: dict[str, Setting] = {}
    known = {f.name: f.type for f in fields(registry.find("goal", name).make)}
    switches = {key for key, type_ in known.items() if type_ in ("bool", bool)}
    value = [word for word in words if "=" not in word and word not in switches]
    settings |= dict.fromkeys(switches.intersection(words), True)
    settings |= {key: text for key, found, text in (word.partition("=") for word in words) if found}
    if value and not known:
        raise UsageError(f"goal: expected {name!r} alone, got {given!r}; it has no settings")
    return registry.build("goal", name, settings | ({next(iter(known)): " ".join(value)} if value else {}))


Goal = Annotated[AttackGoal, PlainValidator(parse_goal)]
"""A goal, in Python as a value and in recipes as text: `goal = "hide water"`."""


@dataclass(frozen=True)
class AttackTarget:
    """Which pixels of a batch count, and the class that each is pushed from or to.

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

    def select(self, indices: Tensor) -> AttackTarget:
        """Return the target of the chosen images."""
        truth = None if self.truth is None else self.truth[indices]
        return replace(self, label=self.label[indices], valid=self.valid[indices], truth=truth)

    def at_step(self, logits: Tensor, progress: float) -> AttackTarget:
        """Return the target at this step: a moving target follows the logits."""
        label = self.label if self.truth is None else logits.detach().argmin(1)
        return replace(self, label=label, progress=progress)

    def successes(self, logits: Tensor) -> Tensor:
        """Return the count (B,) of valid pixels that are predicted as the adversary wants."""
        label, targeted = (self.label, self.targeted) if self.truth is None else (self.truth, False)
        same = predicted_classes(logits) == label
        return ((same if targeted else ~same) & self.valid).flatten(1).sum(1)


def make_target(model: SegmentationModel, batch: Batch, goal: Goal) -> AttackTarget:
    """Return the target of a goal; goals that need the logits of the clean images cost one forward pass.

    Raises:
        UsageError: The model has no class of the goal's name.
    """
    logits = None
    if goal.needs_logits:
        with torch.no_grad():
            logits = check_logits(model(batch.image), batch.image, len(model.spec.classes))
    label = torch.where(batch.valid, goal.class_map(model.spec, batch, logits), 0)
    return AttackTarget(label, batch.valid, goal.targeted, label if goal.moving else None)


def with_predicted_labels(model: SegmentationModel, batch: Batch) -> Batch:
    """Return the batch with the model's own prediction on all seen pixels as the label, which tells nothing of the true one."""
    with torch.no_grad():
        own = model(batch.image).argmax(1)
    return replace(batch, label=own, valid=batch.seen)


def check_attack_inputs(name: str, model: SegmentationModel, batch: Batch, threat: ThreatModel) -> None:
    """Check that threat, bands and labels fit the model.

    Raises:
        UsageError: The threat's unit is not the model's.
        DataError: Other bands than the model's, or a valid label that is no class.
    """
    spec = model.spec
    units, asked = (units_of(unit, len(spec.bands)) for unit in (spec.unit, threat.unit))
    touched = range(len(units)) if threat.bands is None else threat.bands
    if len(asked) != len(units) or any(asked[band] != units[band] for band in touched if band < len(units)):
        raise UsageError(
            f"{name}: expected a threat in {unit_text(spec.unit)}, the model's unit, got {unit_text(threat.unit)}; convert eps, or name the "
            "bands that are in its unit"
        )
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


def check_gradient(logits: Tensor) -> None:
    """Check that logits of an image with gradients on have a gradient to it.

    Raises:
        ModelError: They do not, as those of a model that counts, sorts or searches.
    """
    if not logits.requires_grad:
        raise ModelError(
            "model: expected logits with a gradient to the image, got none; use a black-box attack: square, transfer or random"
        )


def predicted_classes(logits: Tensor) -> Tensor:
    """Return the predicted class (B, H, W), by one comparison where there are two classes."""
    return (logits[:, 1] > logits[:, 0]).long() if logits.shape[1] == 2 else logits.argmax(1)


@contextmanager
def attack_mode(model: SegmentationModel) -> Iterator[None]:
    """Gradients on, the model in eval mode with frozen parameters; everything is restored, also after an exception."""
    with torch.inference_mode(False), torch.enable_grad():
        if not isinstance(model, nn.Module):
            yield
            return
        with eval_mode(model), _frozen_parameters(model):
            yield


@contextmanager
def _frozen_parameters(model: nn.Module) -> Iterator[None]:
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def autograd_ready(batch: Batch) -> Batch:
    """Return a batch that autograd accepts: it refuses tensors that were made in inference mode."""
    if not batch.image.is_inference():
        return batch
    return batch.copy()

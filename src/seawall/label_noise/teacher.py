"""Label noise chosen by a teacher model: where it is least certain, and where a wrong label raises its loss most.

A teacher is anything that turns a batch into logits (B, K, H, W). Without a model there is "bands": a linear
discriminant fitted to each chip's own pixels, so that chips do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seawall.arrays import BoolArray, DoubleArray
from seawall.errors import DataError, UsageError
from seawall.label_noise.label_view import (
    BudgetOf,
    Label,
    LabelView,
    allowance,
    change_labels,
    check_budget,
    check_class,
    meters_to_pixels,
)
from seawall.label_noise.morphology import shoreline_distance
from seawall.label_noise.pixels import Side, candidates
from seawall.label_noise.sources import stored_array
from seawall.modules import eval_mode, to_device_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Loss

Teacher = Callable[[Batch], Tensor]
"""Maps a batch to logits or log-probabilities (B, K, H, W), or to (B, H, W): how much a flip of each pixel harms."""

ABSENT_LOGIT = -1e4
"""Logit of a class that a chip does not have: finite, so that differences stay ordered."""


def model_teacher(model: Callable[[Tensor], Tensor]) -> Teacher:
    """Return a teacher that calls a model in eval mode and without gradients; the model's modes are restored."""

    def teach(batch: Batch) -> Tensor:
        with torch.no_grad(), eval_mode(model) if isinstance(model, nn.Module) else nullcontext():
            return model(to_device_of(model, batch).image)

    return teach


def saliency_teacher(model: nn.Module, loss: Loss) -> Teacher:
    """Return a teacher that gives each pixel the absolute gradient of a loss to its bands, summed over the bands.

    The model is called in eval mode, chip by chip; its modes and its gradients are not changed.
    """

    def teach(batch: Batch) -> Tensor:
        planes = []
        for i in range(len(batch)):
            chip = to_device_of(model, batch.select([i]))
            image = chip.image.detach().clone().requires_grad_()
            with torch.enable_grad(), eval_mode(model):
                value = loss(model(image), chip.label, chip.valid)
                (grad,) = torch.autograd.grad(value, image)
            planes.append(grad.abs().sum(1))
        return torch.cat(planes)

    return teach


def teacher_scores(name: str, teacher: str | Teacher, batch: Batch, classes: int) -> Callable[[LabelView], DoubleArray]:
    """Return a function from a chip to its scores, of "bands", a callable, or a folder of `<chip>.npy`.

    Raises:
        DataError: The scores are not finite or lie on another grid.
    """
    if teacher == "bands":
        return lambda view: linear_discriminant(batch.image[view.index].detach().cpu().numpy(), view, classes)
    plane = tuple(batch.label.shape[1:])
    if callable(teacher):
        found = teacher(batch).detach().cpu().numpy().astype(np.float64)
        return lambda view: _check_scores(name, found[view.index], plane, classes, view.valid)

    def stored(view: LabelView) -> DoubleArray:
        array = stored_array(name, teacher, batch.chips[view.index]).astype(np.float64)
        return _check_scores(name, array, plane, classes, view.valid)

    return stored


def linear_discriminant(image: NDArray[np.float32], view: LabelView, classes: int) -> DoubleArray:
    """Fit a linear discriminant to a chip's valid pixels and return its logits, (K, H, W).

    Args:
        image: (C, H, W) in data units.
        view: The chip; invalid pixels do not count.
        classes: K; a class that the chip lacks gets `ABSENT`.
    """
    pixels = image.reshape(len(image), -1).T.astype(np.float64)
    flat, valid = view.label.ravel(), view.valid.ravel()
    logits = np.full((classes, len(flat)), ABSENT_LOGIT)
    present = [k for k in range(classes) if np.any(flat[valid] == k)]
    if not present:
        return logits.reshape(classes, *view.label.shape)
    means = np.stack([pixels[valid & (flat == k)].mean(0) for k in present])
    at = np.searchsorted(present, flat[valid]).clip(max=len(present) - 1)
    known = np.isin(flat[valid], present)
    spread = (pixels[valid] - means[at])[known]
    scale = spread.T @ spread / max(len(spread), 1)
    ridge = 1e-6 * max(float(np.trace(scale)) / len(scale), 1e-12)
    weight = np.linalg.solve(scale + ridge * np.eye(len(scale)), means.T)
    prior = np.log([np.count_nonzero(flat[valid] == k) for k in present])
    with np.errstate(invalid="ignore", over="ignore"):
        logits[present] = (pixels @ weight - 0.5 * np.sum(means.T * weight, 0) + prior).T
    return logits.reshape(classes, *view.label.shape)


def _check_scores(
    name: str, scores: DoubleArray, plane: tuple[int, ...], classes: int, valid: BoolArray
) -> DoubleArray:
    if scores.shape not in (plane, (classes, *plane)):
        raise DataError(
            f"{name}: expected scores of shape {(classes, *plane)}, got {scores.shape}; call the teacher on whole chips"
        )
    if not np.isfinite(scores[..., valid]).all():
        raise DataError(f"{name}: expected finite scores, got NaN or infinity; check the teacher")
    return scores


def _logit_of(logits: DoubleArray, label: Label) -> DoubleArray:
    found = np.take_along_axis(logits, label.clip(0, len(logits) - 1)[None], 0)[0]
    return np.where(label < len(logits), found, ABSENT_LOGIT)


@register("noise", "feature-dependent", paper="arXiv:2003.10471", smoke={"budget": 0.1})
@final
@dataclass(frozen=True)
class FeatureDependent:
    """The pixels that a teacher is least certain of get its second most probable class.

    Args:
        budget: Share of the valid pixels that change, exact to the pixel.
        classes: How many classes there are.
        teacher: "bands", a folder with logits (K, H, W) as one `<chip>.npy` per chip, or a callable.

    Paper: Algan and Ulusoy 2020. Differs: "bands" is a linear discriminant instead of a distilled network, and the
    least certain pixels are taken over all classes together.
    """

    budget: float
    classes: int = 2
    teacher: str | Teacher = "bands"

    def __post_init__(self) -> None:
        check_budget("feature-dependent", self.budget)
        if self.classes < 2:
            raise UsageError(f"feature-dependent.classes: expected at least 2, got {self.classes}; give their number")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with the least certain pixels wrong.

        Raises:
            DataError: The teacher lacks a chip, or its scores are no logits of the chips.
        """
        scores_of = teacher_scores("feature-dependent", self.teacher, batch, self.classes)
        own = keys.fold("feature-dependent")
        return change_labels(batch, own, 0, lambda view: self._change(view, scores_of))

    def _change(self, view: LabelView, scores_of: Callable[[LabelView], DoubleArray]) -> Label:
        count = allowance(self.budget, view.pixels)
        if count == 0:
            return view.label
        logits = scores_of(view)
        if logits.ndim == 2:
            raise DataError("feature-dependent: expected logits (K, H, W), got one plane; give logits of every class")
        others = logits.copy()
        others[view.label.clip(0, self.classes - 1), *np.indices(view.label.shape)] = -np.inf
        margin = _logit_of(logits, view.label) - others.max(0)
        at = view.lowest(view.valid, margin, count)
        return np.where(at, others.argmax(0), view.label)


@register("noise", "gradient-directed", smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class GradientDirected:
    """The shoreline moves where the teacher's loss changes most.

    The loss is cross-entropy: its derivative along a change of the label from class y to class t is the logit of y
    minus the logit of t, so pixels that the teacher classifies correctly with most confidence go first. A teacher that
    gives (B, H, W) instead ranks the flips itself, such as by the gradient of another loss.

    Args:
        budget: What may change: a share, exact to the pixel while there are pixels within reach, or with
            `of="meters"` every pixel within that distance of the shoreline flips whose flip raises the loss.
        of: Share of all "valid" pixels, share of the pixels of the "class", or shoreline "meters".
        reach_px: With a share as budget, only pixels within so many rings of the shoreline flip.
        side: "both", only "remove" from the class, or only "add" to it.
        teacher: "bands", a folder with one `<chip>.npy` per chip, or a callable.
        classes: How many classes there are.
        klass: The class index that the shoreline is of.
        gsd_m: Meters per pixel, needed for `of="meters"`.
    """

    budget: float
    of: BudgetOf = "valid"
    reach_px: int = 5
    side: Side = "both"
    teacher: str | Teacher = "bands"
    classes: int = 2
    klass: int = 1
    gsd_m: float | None = None

    def __post_init__(self) -> None:
        check_budget("gradient-directed", self.budget, self.of, self.gsd_m)
        check_class("gradient-directed", self.klass)
        if self.reach_px < 1 or self.classes <= self.klass:
            raise UsageError(
                f"gradient-directed: expected reach_px from 1 and klass below {self.classes} classes, got "
                f"{self.reach_px} and {self.klass}; correct them"
            )

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with its shorelines moved.

        Raises:
            DataError: The teacher lacks a chip, or its scores are not of the chips' shape.
        """
        scores_of = teacher_scores("gradient-directed", self.teacher, batch, self.classes)
        own = keys.fold("gradient-directed")
        return change_labels(batch, own, self.klass, lambda view: self._change(view, scores_of))

    def _change(self, view: LabelView, scores_of: Callable[[LabelView], DoubleArray]) -> Label:
        if self.budget == 0 or not view.mask.any() or not view.rest.any():
            return view.label
        distance = shoreline_distance(view)
        scores = scores_of(view)
        target = np.where(view.mask, view.nearest_other_class, self.klass)
        harm = scores if scores.ndim == 2 else _logit_of(scores, view.label) - _logit_of(scores, target)
        within = candidates(view, self.side)
        if self.of == "meters" and self.gsd_m is not None:
            return view.flip(within & (distance <= float(meters_to_pixels(self.budget, self.gsd_m))) & (harm > 0))
        within = within & (distance <= self.reach_px)
        count = allowance(self.budget, int(np.count_nonzero(view.mask)) if self.of == "class" else view.pixels)
        return view.flip(view.lowest(within, -harm, count))

"""Faults chosen by what a model knows: where it is unsure, and where a wrong shoreline hurts it most.

A teacher is anything that turns a batch into logits (B, K, H, W). Without a model there is "bands": a linear
discriminant fitted to each chip's own pixels, so that no chip knows of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seawall.arrays import BoolArray, DoubleArray
from seawall.errors import DataError, UsageError
from seawall.label_noise.label_view import Ground, Label, Of, allowance, check_budget, check_class, relabel, rings_of
from seawall.label_noise.morphology import distance
from seawall.label_noise.pixels import Side, candidates
from seawall.label_noise.sources import stored_array
from seawall.modules import to_device_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, Loss

Teacher = Callable[[Batch], Tensor]
"""From a batch to logits or log-probabilities (B, K, H, W), or to a harm (B, H, W) that is higher where a flip hurts."""

ABSENT = -1e4
"""Logit of a class that a chip does not have: finite, so that differences stay ordered."""


def model_teacher(model: Callable[[Tensor], Tensor]) -> Teacher:
    """Return a teacher that asks a model, in evaluation mode and without gradients; its mode is put back."""

    def teach(batch: Batch) -> Tensor:
        with torch.no_grad():
            return _in_evaluation(model, to_device_of(model, batch).image)

    return teach


def saliency_teacher(model: nn.Module, loss: Loss) -> Teacher:
    """Return a teacher that gives the harm of each pixel as the gradient of a loss: summed over bands, per chip.

    The model is asked in evaluation mode, chip by chip, and keeps its mode and its gradients.
    """

    def teach(batch: Batch) -> Tensor:
        planes = []
        for i in range(len(batch)):
            asked = to_device_of(model, batch.select([i]))
            image = asked.image.detach().clone().requires_grad_()
            with torch.enable_grad():
                value = loss(_in_evaluation(model, image), asked.label, asked.valid)
                (grad,) = torch.autograd.grad(value, image)
            planes.append(grad.abs().sum(1))
        return torch.cat(planes)

    return teach


def _in_evaluation(model: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        return model(image)
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was


def scores(name: str, teacher: str | Teacher, batch: Batch, classes: int) -> Callable[[Ground], DoubleArray]:
    """Return where a chip's scores come from: "bands", a callable, or a folder of `<chip>.npy`.

    Raises:
        DataError: The scores are not finite or lie on another grid.
    """
    if teacher == "bands":
        return lambda ground: discriminant(batch.image[ground.index].detach().cpu().numpy(), ground, classes)
    plane = tuple(batch.label.shape[1:])
    if callable(teacher):
        said = teacher(batch).detach().cpu().numpy().astype(np.float64)
        return lambda ground: _checked(name, said[ground.index], plane, classes, ground.valid)

    def stored(ground: Ground) -> DoubleArray:
        found = stored_array(name, teacher, batch.chips[ground.index]).astype(np.float64)
        return _checked(name, found, plane, classes, ground.valid)

    return stored


def discriminant(image: NDArray[np.float32], ground: Ground, classes: int) -> DoubleArray:
    """Fit a linear discriminant to a chip's valid pixels and return its logits, (K, H, W).

    Args:
        image: (C, H, W) in data units.
        ground: The chip; invalid pixels do not count.
        classes: K; a class that the chip lacks gets `ABSENT`.
    """
    pixels = image.reshape(len(image), -1).T.astype(np.float64)
    flat, valid = ground.label.ravel(), ground.valid.ravel()
    logits = np.full((classes, len(flat)), ABSENT)
    there = [k for k in range(classes) if np.any(flat[valid] == k)]
    if not there:
        return logits.reshape(classes, *ground.label.shape)
    means = np.stack([pixels[valid & (flat == k)].mean(0) for k in there])
    at = np.searchsorted(there, flat[valid]).clip(max=len(there) - 1)
    known = np.isin(flat[valid], there)
    spread = (pixels[valid] - means[at])[known]
    scale = spread.T @ spread / max(len(spread), 1)
    ridge = 1e-6 * max(float(np.trace(scale)) / len(scale), 1e-12)
    weight = np.linalg.solve(scale + ridge * np.eye(len(scale)), means.T)
    prior = np.log([np.count_nonzero(flat[valid] == k) for k in there])
    with np.errstate(invalid="ignore", over="ignore"):
        logits[there] = (pixels @ weight - 0.5 * np.sum(means.T * weight, 0) + prior).T
    return logits.reshape(classes, *ground.label.shape)


def _checked(name: str, said: DoubleArray, plane: tuple[int, ...], classes: int, valid: BoolArray) -> DoubleArray:
    if said.shape not in (plane, (classes, *plane)):
        raise DataError(
            f"{name}: expected scores of shape {(classes, *plane)}, got {said.shape}; ask the teacher about whole chips"
        )
    if not np.isfinite(said[..., valid]).all():
        raise DataError(f"{name}: expected finite scores, got NaN or infinity; check the teacher")
    return said


def _at(logits: DoubleArray, label: Label) -> DoubleArray:
    found = np.take_along_axis(logits, label.clip(0, len(logits) - 1)[None], 0)[0]
    return np.where(label < len(logits), found, ABSENT)


@register("noise", "feature-dependent", paper="arXiv:2003.10471", smoke={"budget": 0.1})
@final
@dataclass(frozen=True)
class FeatureDependent:
    """The pixels that a teacher is least sure of get its runner-up class.

    Args:
        budget: Share of the valid pixels that change, met to the pixel.
        classes: How many classes there are.
        teacher: "bands", a folder with logits (K, H, W) as one `<chip>.npy` per chip, or a callable.

    Paper: Algan and Ulusoy 2020. Differs: "bands" is a linear discriminant instead of a distilled network, and the
    least sure pixels are taken over all classes together.
    """

    budget: float
    classes: int = 2
    teacher: str | Teacher = "bands"

    def __post_init__(self) -> None:
        check_budget("feature-dependent", self.budget)
        if self.classes < 2:
            raise UsageError(f"feature-dependent.classes: expected at least 2, got {self.classes}; give their number")

    def __call__(self, batch: Batch, keys: Keys) -> Batch:
        """Return the batch with the hard pixels wrong.

        Raises:
            DataError: The teacher lacks a chip, or its scores are no logits of the chips.
        """
        ask = scores("feature-dependent", self.teacher, batch, self.classes)
        own = keys.fold("feature-dependent")
        return relabel(batch, own, 0, lambda ground: self._change(ground, ask))

    def _change(self, ground: Ground, ask: Callable[[Ground], DoubleArray]) -> Label:
        count = allowance(self.budget, ground.pixels)
        if count == 0:
            return ground.label
        logits = ask(ground)
        if logits.ndim == 2:
            raise DataError(
                "feature-dependent: expected logits (K, H, W), got one plane; a harm has no runner-up class"
            )
        others = logits.copy()
        others[ground.label.clip(0, self.classes - 1), *np.indices(ground.label.shape)] = -np.inf
        margin = _at(logits, ground.label) - others.max(0)
        at = ground.first(ground.valid, margin, count)
        return np.where(at, others.argmax(0), ground.label)


@register("noise", "gradient-directed", smoke={"budget": 0.05})
@final
@dataclass(frozen=True)
class GradientDirected:
    """The shoreline moves where the teacher's loss says that it hurts most.

    The loss is cross-entropy: its derivative along a change of the label from class y to class t is the logit of y
    minus the logit of t, so pixels that the teacher rightly holds for sure go first. A teacher that gives a plane
    (B, H, W) instead says itself how much each flip hurts, such as from the gradient of any other loss.

    Args:
        budget: What may change: a share, met to the pixel while there are pixels within reach, or with
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
    of: Of = "valid"
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
        """Return the batch with its shorelines moved where it hurts.

        Raises:
            DataError: The teacher lacks a chip, or its scores are not of the chips' shape.
        """
        ask = scores("gradient-directed", self.teacher, batch, self.classes)
        own = keys.fold("gradient-directed")
        return relabel(batch, own, self.klass, lambda ground: self._change(ground, ask))

    def _change(self, ground: Ground, ask: Callable[[Ground], DoubleArray]) -> Label:
        if self.budget == 0 or not ground.mask.any() or not ground.rest.any():
            return ground.label
        rings = np.where(ground.mask, distance(ground.rest), distance(ground.mask))
        said = ask(ground)
        target = np.where(ground.mask, ground.nearest_other, self.klass)
        harm = said if said.ndim == 2 else _at(said, ground.label) - _at(said, target)
        within = candidates(ground, self.side)
        if self.of == "meters" and self.gsd_m is not None:
            return ground.flip(within & (rings <= float(rings_of(self.budget, self.gsd_m))) & (harm > 0))
        within = within & (rings <= self.reach_px)
        count = allowance(self.budget, int(np.count_nonzero(ground.mask)) if self.of == "class" else ground.pixels)
        return ground.flip(ground.first(within, -harm, count))

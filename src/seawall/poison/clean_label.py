"""Clean-label poisons: masks stay right, pixels change by at most eps, and a region of another image flips.

Both need the adversary's model of the victim. What they return must be judged by `victims`: networks trained from
scratch with fresh seeds, against random noise of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.keys import Keys
from seawall.poison.target import Target, column
from seawall.poison.unrolled import said, trained_weights, training_loss, unroll
from seawall.registry import register
from seawall.types import Batch

Eps = float | tuple[float, ...]


@dataclass(frozen=True)
class Crafted:
    """A crafted poison.

    Args:
        batch: The poisoned chips: labels as they were, images within eps.
        losses: The adversary's loss after each step, of the restart that was kept.
    """

    batch: Batch
    losses: tuple[float, ...]


@register("poison", "gradient-matching", paper="arXiv:2009.02276", smoke={"eps": 0.02, "steps": 3})
@final
@dataclass(frozen=True)
class GradientMatching:
    """Chips whose training gradient points where the wrong target's gradient would: learning them flips the target.

    Call `craft`. The model is one that was trained on the clean chips.

    Paper: Geiping et al. 2021, arXiv:2009.02276, eq. 3 and algorithm 1 (signed Adam, step falling tenfold at 3/8, 5/8
    and 7/8 of the steps). Differs: the target is a region of pixels, and the augmentation is flips.

    Args:
        eps: Largest change of any value, in data units, one number or one per band.
        steps: Gradient steps of the craft.
        restarts: Random starts; the one of lowest loss is kept.
        step: First step length as a share of eps.
        flips: Flip chips at random in every step, as training does.
    """

    eps: Eps = 0.02
    steps: int = 250
    restarts: int = 1
    step: float = 0.1
    flips: bool = True

    def __post_init__(self) -> None:
        _check("gradient-matching", self.eps, self.steps, self.step)
        if self.restarts < 1:
            raise UsageError(f"gradient-matching.restarts: expected at least 1, got {self.restarts}; 8 in the paper")

    def craft(self, model: nn.Module, target: Target, batch: Batch, keys: Keys) -> Crafted:
        """Return poisoned chips for a target; with an eps of 0 they stay as they are."""
        with in_evaluation([model]):
            wrong = self._aim(model, target)
            tries = [self._descend(model, wrong, batch, keys.fold("restart", n)) for n in range(self.restarts)]
        return min(tries, key=lambda crafted: crafted.losses[-1])

    def _aim(self, model: nn.Module, target: Target) -> list[Tensor]:
        weights = trained_weights(model)
        loss = target.loss(said(model, weights, target.batch.image))
        return [g.detach() for g in torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)]

    def _descend(self, model: nn.Module, wrong: Sequence[Tensor], batch: Batch, keys: Keys) -> Crafted:
        noise = Noise(batch, self.eps, keys)
        weights, losses = trained_weights(model), list[float]()
        for step in range(self.steps):
            shown = noise.shown()
            turned = (
                flip(replace(batch, image=shown), keys.fold("flip", step))
                if self.flips
                else replace(batch, image=shown)
            )
            loss = training_loss(model, weights, turned)
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
            apart = 1 - cosine(grads, wrong)
            losses.append(float(apart.detach()))
            fallen = sum(step >= share * self.steps for share in (3 / 8, 5 / 8, 7 / 8))
            noise.descend(torch.autograd.grad(apart, noise.offset)[0].sign(), self.step * 0.1**fallen)
        return Crafted(replace(batch, image=noise.shown().detach()), tuple(losses))


@register(
    "poison", "meta-poison", paper="arXiv:2004.00225", smoke={"eps": 0.02, "steps": 2, "surrogates": 2, "epochs": 2}
)
@final
@dataclass(frozen=True)
class MetaPoison:
    """Chips that flip the target after a few training steps on them, over many networks at different ages.

    Call `craft`. In every craft step each surrogate is unrolled from where it stands, then goes on by an epoch of
    clean training; the surrogates start at evenly spaced ages and begin anew when they reach the last epoch.

    Paper: Huang et al. 2020, arXiv:2004.00225, algorithm 1. Differs: the target is a region of pixels, the loss its
    margin; no recoloring; settings for a small network on a CPU (the paper: 24 surrogates, 60 steps).

    Args:
        eps: Largest change of any value, in data units, one number or one per band.
        steps: Craft steps.
        surrogates: Networks.
        epochs: Age at which a surrogate begins anew.
        unrolled: Steps that are differentiated through; poisons are in the first one only.
        lr: Learning rate of the surrogates.
        mini: Chips per batch, the poisoned ones included.
        step: First step length as a share of eps; it falls tenfold every third of the steps.
    """

    eps: Eps = 0.02
    steps: int = 30
    surrogates: int = 4
    epochs: int = 8
    unrolled: int = 2
    lr: float = 0.1
    mini: int = 8
    step: float = 0.2

    def __post_init__(self) -> None:
        _check("meta-poison", self.eps, self.steps, self.step)
        if min(self.surrogates, self.epochs, self.unrolled, self.mini) < 1 or not self.lr > 0:
            raise UsageError(
                "meta-poison: expected surrogates, epochs, unrolled and mini of at least 1 and lr above 0, got "
                f"{self.surrogates}, {self.epochs}, {self.unrolled}, {self.mini} and {self.lr}; raise them"
            )

    def craft(
        self, make: Callable[[int], nn.Module], target: Target, batch: Batch, clean: Batch, keys: Keys
    ) -> Crafted:
        """Return poisoned chips for a target.

        Args:
            make: From a seed to a network with fresh weights.
            target: What shall flip.
            batch: The chips to poison.
            clean: All other training chips.
            keys: One stream per chip of `batch`.
        """
        noise, losses = Noise(batch, self.eps, keys), list[float]()
        nets = [make(m) for m in range(self.surrogates)]
        ages = [m * self.epochs // self.surrogates for m in range(self.surrogates)]
        for net, age in zip(nets, ages, strict=True):
            for epoch in range(age):
                self._learn(net, clean, keys.fold("young", epoch))
        for step in range(self.steps):
            total = torch.zeros((), device=batch.image.device)
            grad = torch.zeros_like(noise.offset)
            for net in nets:
                batches = self._batches(replace(batch, image=noise.shown()), clean, keys.fold("mini", step))
                with in_evaluation([net]):
                    loss = unroll(net, batches, self.lr, target.margin, target.batch.image) / len(nets)
                    grad += torch.autograd.grad(loss, noise.offset)[0]
                total += loss.detach()
            losses.append(float(total))
            noise.descend(grad, self.step * 0.1 ** (3 * step // self.steps))
            for m in range(self.surrogates):
                ages[m] += 1
                if ages[m] > self.epochs:
                    nets[m], ages[m] = make(self.surrogates * (step + 1) + m), 0
                self._learn(nets[m], clean, keys.fold("grow", step))
        return Crafted(replace(batch, image=noise.shown().detach()), tuple(losses))

    def _batches(self, poisoned: Batch, clean: Batch, keys: Keys) -> list[Batch]:
        rng = Keys(keys.seed, ("order",), keys.path).numpy(0)
        rest = max(0, min(self.mini - len(poisoned), len(clean)))
        first = join(poisoned, clean.select(rng.permutation(len(clean))[:rest].tolist()))
        later = [clean.select(rng.permutation(len(clean))[: self.mini].tolist()) for _ in range(self.unrolled - 1)]
        return [first, *later]

    def _learn(self, net: nn.Module, clean: Batch, keys: Keys) -> None:
        """Train for an epoch of plain descent."""
        net.train()
        order = Keys(keys.seed, ("order",), keys.path).numpy(0).permutation(len(clean)).tolist()
        parameters = [p for p in net.parameters() if p.requires_grad]
        for start in range(0, len(order), self.mini):
            part = clean.select(order[start : start + self.mini])
            loss = training_loss(net, dict(net.named_parameters()), part)
            grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
            with torch.no_grad():
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter.sub_(self.lr * grad)


class Noise:
    """The change of the images under craft: Adam in units of eps, never beyond eps or below what an image may hold.

    Args:
        batch: The chips.
        eps: In data units.
        keys: Gives the random start.
    """

    def __init__(self, batch: Batch, eps: Eps, keys: Keys) -> None:
        self.batch = batch
        self.eps = column(eps, batch.image)
        # reflectance stays at or above 0 where it was; decibels are below 0 and have no floor
        floor = float(batch.image.min()) >= -1.0
        low = torch.minimum(batch.image, torch.zeros_like(batch.image)) - batch.image
        self.low = torch.maximum(-self.eps, low) if floor else (-self.eps).expand_as(batch.image)
        start = keys.fold("start").normal(batch.image.shape[1:]).to(batch.image)
        self.offset = self._boxed(start * self.eps).requires_grad_()
        self.first, self.second = torch.zeros_like(self.offset), torch.zeros_like(self.offset)
        self.count = 0

    def shown(self) -> Tensor:
        """Return the images with their change, differentiable in it."""
        return self.batch.image + self.offset

    def descend(self, grad: Tensor, length: float) -> None:
        """Take a step of Adam whose length is a share of eps."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * grad
        self.second = 0.999 * self.second + 0.001 * grad.square()
        mean, spread = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        moved = self.offset.detach() - length * self.eps * mean / (spread.sqrt() + 1e-12)
        self.offset = self._boxed(moved).requires_grad_()

    def _boxed(self, offset: Tensor) -> Tensor:
        boxed = torch.minimum(torch.maximum(offset, self.low), self.eps.expand_as(offset))
        return torch.where(self.batch.seen[:, None], boxed, torch.zeros_like(boxed)).detach()


def cosine(one: Sequence[Tensor], two: Sequence[Tensor]) -> Tensor:
    """Return the cosine between two gradients over all parameters."""
    dot = torch.stack([(a * b).sum() for a, b in zip(one, two, strict=True)]).sum()
    norms = [torch.stack([g.square().sum() for g in grads]).sum().clamp_min(1e-30).sqrt() for grads in (one, two)]
    return dot / (norms[0] * norms[1])


def flip(batch: Batch, keys: Keys) -> Batch:
    """Return the chips flipped at random, each by its own key; differentiable."""
    draws = keys.uniform((2,))
    parts = list[Batch]()
    for i in range(len(batch)):
        one, axes = batch.select([i]), [axis for axis in (0, 1) if draws[i, axis] < 0.5]
        planes = {
            name: getattr(one, name).flip([axis - 2 for axis in axes]) for name in ("image", "label", "seen", "valid")
        }
        parts.append(replace(one, **planes) if axes else one)
    return join(*parts)


def join(*parts: Batch) -> Batch:
    """Return several batches as one."""
    planes = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("image", "label", "seen", "valid")}
    return Batch(**planes, chips=tuple(chip for part in parts for chip in part.chips))


@contextmanager
def in_evaluation(models: Sequence[nn.Module]) -> Iterator[None]:
    """Put models into eval mode, and back as they were."""
    was = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, mode in was:
            module.training = mode


def _check(name: str, eps: Eps, steps: int, step: float) -> None:
    values = (eps,) if isinstance(eps, int | float) else eps
    if not values or any(not math.isfinite(e) or e < 0 for e in values) or steps < 1 or not step > 0:
        raise UsageError(
            f"{name}: expected eps from 0 up in data units, steps from 1 and step above 0, got {eps}, {steps} and {step}; fix them"
        )

"""Clean-label poisons: masks stay right, pixels change by at most eps, and a region of another image flips.

Both need the adversary's model of the victim. Both differentiate its training gradient with respect to the images; that
gradient jumps wherever a ReLU opens or closes, which no derivative sees, so that on small networks the derivative tells
little about a step as long as eps. While a poison is crafted, ReLU is therefore rounded off (`smooth`). What they return must be judged by `victims`: networks trained from
scratch with fresh seeds, against random noise of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import UsageError
from seawall.poisoning.target import Target, column
from seawall.poisoning.unrolled_training import said, trained_weights, training_loss, unroll
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

Eps = float | tuple[float, ...]


@dataclass(frozen=True)
class Crafted:
    """A crafted poison.

    Args:
        batch: The poisoned chips: labels as they were, images within eps.
        losses: The adversary's loss at the random start and after each step, so that the last one is that of `batch`;
            of the restart that was kept. MetaPoison's are differences: see there.
    """

    batch: Batch
    losses: tuple[float, ...]


@register(
    "poison", "gradient-matching", paper="arXiv:2009.02276", smoke={"eps": 0.02, "steps": 3}, traits=("clean-label",)
)
@final
@dataclass(frozen=True)
class GradientMatching:
    """Chips whose training gradient points where the wrong target's gradient would: learning them flips the target.

    Call `craft`. The model is one that was trained on the clean chips.

    Paper: Geiping et al. 2021, arXiv:2009.02276, eq. 3 and algorithm 1 (signed Adam, step falling tenfold at 3/8, 5/8
    and 7/8 of the steps). Differs: the target is a region of pixels, and the augmentation is flips. Only weights that
    ask for gradients count, so that a victim that trains but its last layers is met by freezing the rest of the model.

    Args:
        eps: Largest change of any value, in data units, one number or one per band.
        steps: Gradient steps of the craft.
        restarts: Random starts; the one of lowest loss, without flips, is kept.
        step: First step length as a share of eps.
        flips: Flip chips at random in every step, as training does.
        smooth: Sharpness of the softplus in the place of every `nn.ReLU` while crafting; None keeps ReLU, as the paper.
    """

    eps: Eps = 0.02
    steps: int = 250
    restarts: int = 8
    step: float = 0.1
    flips: bool = True
    smooth: float | None = 5.0

    def __post_init__(self) -> None:
        _check("gradient-matching", self.eps, self.steps, self.step, self.smooth)
        if self.restarts < 1:
            raise UsageError(f"gradient-matching.restarts: expected at least 1, got {self.restarts}; 8 in the paper")

    def craft(self, model: nn.Module, target: Target, batch: Batch, keys: Keys) -> Crafted:
        """Return poisoned chips for a target; with an eps of 0 they stay as they are."""
        with in_evaluation([model]), rounded_off([model], self.smooth):
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
            turned = replace(batch, image=noise.shown())
            turned = flip(turned, keys.fold("flip", step)) if self.flips else turned
            apart = self._apart(model, weights, turned, wrong)
            losses.append(float(apart.detach()))
            fallen = sum(step >= share * self.steps for share in (3 / 8, 5 / 8, 7 / 8))
            noise.descend(torch.autograd.grad(apart, noise.offset)[0].sign(), self.step * 0.1**fallen)
        made = replace(batch, image=noise.shown().detach())
        losses.append(float(self._apart(model, weights, made, wrong).detach()))
        return Crafted(made, tuple(losses))

    def _apart(self, model: nn.Module, weights: Mapping[str, Tensor], batch: Batch, wrong: Sequence[Tensor]) -> Tensor:
        loss = training_loss(model, weights, batch)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        return 1 - cosine(grads, wrong)


@register(
    "poison",
    "meta-poison",
    paper="arXiv:2004.00225",
    smoke={"eps": 0.02, "steps": 2, "surrogates": 2, "epochs": 2},
    traits=("clean-label",),
)
@final
@dataclass(frozen=True)
class MetaPoison:
    """Chips that flip the target after a few training steps on them, over many networks at different ages.

    Call `craft`. In every craft step each surrogate is unrolled from where it stands, then goes on by an epoch of
    clean training; the surrogates start at evenly spaced ages and begin anew when they reach the last epoch.

    The target's loss follows the age of a surrogate far more than it follows the poison. So `Crafted.losses` are
    differences: the target's loss after the steps on poisoned chips, less that after the same steps, from the same
    weights, on the chips as they were. 0 is no effect, below 0 the poison helps.

    Paper: Huang et al. 2020, arXiv:2004.00225, algorithm 1. Differs: the target is a region of pixels, the loss its
    margin; no recoloring, which would change values beyond eps; settings for a small network on a CPU (the paper: 24
    surrogates, 60 steps).

    Args:
        eps: Largest change of any value, in data units, one number or one per band.
        steps: Craft steps.
        surrogates: Networks.
        epochs: Age at which a surrogate begins anew, as long as the victims train.
        unrolled: Steps that are differentiated through; poisons are in the first one only.
        lr: Learning rate of the unrolled steps.
        mini: Chips per batch, the poisoned ones included.
        step: First step length as a share of eps; it falls tenfold every third of the steps.
        adam: Learning rate of Adam, by which the surrogates grow between craft steps; None lets them grow by plain
            descent with `lr`.
        smooth: Sharpness of the softplus in the place of every `nn.ReLU` in the unrolled steps; None keeps ReLU, as
            the paper.
    """

    eps: Eps = 0.02
    steps: int = 30
    surrogates: int = 4
    epochs: int = 8
    unrolled: int = 2
    lr: float = 0.1
    mini: int = 8
    step: float = 0.2
    adam: float | None = 3e-3
    smooth: float | None = 5.0

    def __post_init__(self) -> None:
        _check("meta-poison", self.eps, self.steps, self.step, self.smooth)
        if min(self.surrogates, self.epochs, self.unrolled, self.mini) < 1 or not self.lr > 0:
            raise UsageError(
                "meta-poison: expected surrogates, epochs, unrolled and mini of at least 1 and lr above 0, got "
                f"{self.surrogates}, {self.epochs}, {self.unrolled}, {self.mini} and {self.lr}; raise them"
            )
        if self.adam is not None and not self.adam > 0:
            raise UsageError(f"meta-poison.adam: expected a learning rate above 0, got {self.adam}; 0.003 is usual")

    def craft(
        self, make: Callable[[int], nn.Module], target: Target, batch: Batch, clean: Batch, keys: Keys
    ) -> Crafted:
        """Return poisoned chips for a target.

        Args:
            make: From a seed to a network as the victim starts with: of fresh weights, or of published ones.
            target: What shall flip.
            batch: The chips to poison.
            clean: All other training chips.
            keys: One stream per chip of `batch`.
        """
        noise, losses = Noise(batch, self.eps, keys), list[float]()
        grown = [self._surrogate(make(m), m * self.epochs // self.surrogates) for m in range(self.surrogates)]
        for m, one in enumerate(grown):
            for epoch in range(one.age):
                self._learn(one, clean, keys.fold("young", m, epoch))
        for step in range(self.steps):
            effect, grad = self._effect(grown, target, noise, clean, keys.fold("mini", step))
            losses.append(effect)
            noise.descend(grad, self.step * 0.1 ** (3 * step // self.steps))
            for m, one in enumerate(grown):
                if one.age + 1 >= self.epochs:
                    grown[m] = self._surrogate(make(self.surrogates * (step + 1) + m), 0)
                else:
                    self._learn(one, clean, keys.fold("grow", step, m))
                    one.age += 1
        losses.append(self._effect(grown, target, noise, clean, keys.fold("mini", self.steps))[0])
        return Crafted(replace(batch, image=noise.shown().detach()), tuple(losses))

    def _effect(
        self, grown: Sequence[_Surrogate], target: Target, noise: Noise, clean: Batch, keys: Keys
    ) -> tuple[float, Tensor]:
        """Return what the poison changes in the target's loss, mean over the surrogates, and the loss's gradient."""
        effect, grad = 0.0, torch.zeros_like(noise.offset)
        for m, one in enumerate(grown):
            with in_evaluation([one.net]), rounded_off([one.net], self.smooth):
                poisoned, plain = (
                    unroll(one.net, batches, self.lr, target.margin, target.batch.image)
                    for batches in (
                        self._batches(replace(noise.batch, image=image), clean, keys.fold(m))
                        for image in (noise.shown(), noise.batch.image)
                    )
                )
                grad += torch.autograd.grad(poisoned, noise.offset)[0] / len(grown)
            effect += float((poisoned - plain).detach()) / len(grown)
        return effect, grad

    def _batches(self, poisoned: Batch, clean: Batch, keys: Keys) -> list[Batch]:
        rng = Keys(keys.seed, ("order",), keys.path).numpy(0)
        rest = max(0, min(self.mini - len(poisoned), len(clean)))
        first = join(poisoned, clean.select(rng.permutation(len(clean))[:rest].tolist()))
        later = [clean.select(rng.permutation(len(clean))[: self.mini].tolist()) for _ in range(self.unrolled - 1)]
        return [first, *later]

    def _surrogate(self, net: nn.Module, age: int) -> _Surrogate:
        weights = [p for p in net.parameters() if p.requires_grad]
        return _Surrogate(
            net, torch.optim.SGD(weights, self.lr) if self.adam is None else torch.optim.Adam(weights, self.adam), age
        )

    def _learn(self, one: _Surrogate, clean: Batch, keys: Keys) -> None:
        """Train for an epoch, with an order of its own."""
        one.net.train()
        order = Keys(keys.seed, ("order",), keys.path).numpy(0).permutation(len(clean)).tolist()
        for start in range(0, len(order), self.mini):
            part = clean.select(order[start : start + self.mini])
            one.descent.zero_grad()
            training_loss(one.net, dict(one.net.named_parameters()), part).backward()  # type: ignore[no-untyped-call]
            one.descent.step()


@dataclass
class _Surrogate:
    """A network in the place of a victim, how it is trained, and for how many epochs it was."""

    net: nn.Module
    descent: torch.optim.Optimizer
    age: int


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


@contextmanager
def rounded_off(models: Sequence[nn.Module], sharpness: float | None) -> Iterator[None]:
    """Put softplus(sharpness * x) / sharpness in the place of every ReLU, and ReLU back; None changes nothing."""

    def round_off(_: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        return functional.softplus(given[0], float(sharpness or 1.0))

    layers = [m for model in models for m in model.modules() if isinstance(m, nn.ReLU)] if sharpness else []
    hooks = [layer.register_forward_pre_hook(round_off) for layer in dict.fromkeys(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check(name: str, eps: Eps, steps: int, step: float, smooth: float | None) -> None:
    values = (eps,) if isinstance(eps, int | float) else eps
    if not values or any(not math.isfinite(e) or e < 0 for e in values) or steps < 1 or not step > 0:
        raise UsageError(
            f"{name}: expected eps from 0 up in data units, steps from 1 and step above 0, got {eps}, {steps} and {step}; fix them"
        )
    if smooth is not None and not (math.isfinite(smooth) and smooth > 0):
        raise UsageError(f"{name}.smooth: expected a sharpness above 0, got {smooth}; 5 is usual, None keeps ReLU")

"""Clean-label poisons: labels stay right, pixels change by at most eps, and training on them flips a target region.

Both need the adversary's model of the victim, and both differentiate its training gradient with respect to the images.
That gradient jumps wherever a ReLU switches, and the derivative does not include the jumps: on small networks it is of
little use for a step as long as eps. While a poison is crafted, a softplus replaces ReLU (`smooth`). A poison must be
measured by `evaluate_poison`: victims trained with fresh seeds, against random noise of the same size.
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
from seawall.modules import eval_mode
from seawall.poisoning.target import PoisonTarget, eps_per_band
from seawall.poisoning.unrolled_training import logits_with, trainable_weights, training_loss, unroll
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch

Eps = float | tuple[float, ...]


@dataclass(frozen=True)
class CraftedPoison:
    """A crafted poison.

    Args:
        batch: The poisoned chips: labels as they were, images within eps.
        losses: The adversary's loss at the random start and after each step, of the restart that was kept; the last
            one is that of `batch`. Those of MetaPoison are differences, see there.
    """

    batch: Batch
    losses: tuple[float, ...]


@register(
    "poison", "gradient-matching", paper="arXiv:2009.02276", smoke={"eps": 0.02, "steps": 3}, traits=("clean-label",)
)
@final
@dataclass(frozen=True)
class GradientMatching:
    """Chips whose training gradient has the direction of the target's: training on them flips the target.

    Call `craft`. The model is one that was trained on the clean chips.

    Paper: Geiping et al. 2021, arXiv:2009.02276, eq. 3 and algorithm 1 (signed Adam, step falling tenfold at 3/8, 5/8
    and 7/8 of the steps). Differs: the target is a region of pixels, and the augmentation is flips. Only weights that
    require gradients count: for a victim that trains its last layers only, freeze the others.

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
        _check_craft_settings("gradient-matching", self.eps, self.steps, self.step, self.smooth)
        if self.restarts < 1:
            raise UsageError(f"gradient-matching.restarts: expected at least 1, got {self.restarts}; 8 in the paper")

    def craft(self, model: nn.Module, target: PoisonTarget, batch: Batch, keys: Keys) -> CraftedPoison:
        """Return poisoned chips for a target; with an eps of 0 they stay as they are."""
        with eval_mode(model), smoothed_relu(model, self.smooth):
            wrong = self._target_gradient(model, target)
            tries = [self._descend(model, wrong, batch, keys.fold("restart", n)) for n in range(self.restarts)]
        return min(tries, key=lambda crafted: crafted.losses[-1])

    def _target_gradient(self, model: nn.Module, target: PoisonTarget) -> list[Tensor]:
        weights = trainable_weights(model)
        loss = target.loss(logits_with(model, weights, target.batch.image))
        return [g.detach() for g in torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)]

    def _descend(self, model: nn.Module, wrong: Sequence[Tensor], batch: Batch, keys: Keys) -> CraftedPoison:
        noise = PoisonPerturbation(batch, self.eps, keys)
        weights, losses = trainable_weights(model), list[float]()
        for step in range(self.steps):
            poisoned = replace(batch, image=noise.images())
            poisoned = random_flips(poisoned, keys.fold("flip", step)) if self.flips else poisoned
            distance = self._distance(model, weights, poisoned, wrong)
            losses.append(float(distance.detach()))
            fallen = sum(step >= share * self.steps for share in (3 / 8, 5 / 8, 7 / 8))
            noise.descend(torch.autograd.grad(distance, noise.offset)[0].sign(), self.step * 0.1**fallen)
        poisoned = replace(batch, image=noise.images().detach())
        losses.append(float(self._distance(model, weights, poisoned, wrong).detach()))
        return CraftedPoison(poisoned, tuple(losses))

    def _distance(
        self, model: nn.Module, weights: Mapping[str, Tensor], batch: Batch, wrong: Sequence[Tensor]
    ) -> Tensor:
        """Return 1 minus the cosine between the training gradient and the target's."""
        loss = training_loss(model, weights, batch)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        return 1 - gradient_cosine(grads, wrong)


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
    """Chips that flip the target after a few training steps on them, for surrogates of different ages.

    Call `craft`. In every craft step each surrogate is unrolled from its weights, then trained by an epoch on clean
    chips; the surrogates start at evenly spaced ages in epochs, and restart when they reach the last epoch.

    The target's loss depends far more on the age of a surrogate than on the poison. So `CraftedPoison.losses` are
    differences: the target's loss after the steps on poisoned chips, less that after the same steps, from the same
    weights, on the original chips. 0 is no effect, below 0 the poison works.

    Paper: Huang et al. 2020, arXiv:2004.00225, algorithm 1. Differs: the target is a region of pixels, the loss its
    margin; no recoloring, which would change values beyond eps; settings for a small network on a CPU (the paper: 24
    surrogates, 60 steps).

    Args:
        eps: Largest change of any value, in data units, one number or one per band.
        steps: Craft steps.
        surrogates: Number of surrogate networks.
        epochs: Age in epochs at which a surrogate restarts: as many as the victims train.
        unrolled: Steps that are differentiated through; poisons are in the first one only.
        lr: Learning rate of the unrolled steps.
        mini: Chips per batch, the poisoned ones included.
        step: First step length as a share of eps; it falls tenfold every third of the steps.
        adam: Learning rate of Adam, which trains the surrogates between craft steps; None is SGD with `lr`.
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
        _check_craft_settings("meta-poison", self.eps, self.steps, self.step, self.smooth)
        if min(self.surrogates, self.epochs, self.unrolled, self.mini) < 1 or not self.lr > 0:
            raise UsageError(
                "meta-poison: expected surrogates, epochs, unrolled and mini of at least 1 and lr above 0, got "
                f"{self.surrogates}, {self.epochs}, {self.unrolled}, {self.mini} and {self.lr}; raise them"
            )
        if self.adam is not None and not self.adam > 0:
            raise UsageError(f"meta-poison.adam: expected a learning rate above 0, got {self.adam}; 0.003 is usual")

    def craft(
        self, make: Callable[[int], nn.Module], target: PoisonTarget, batch: Batch, clean: Batch, keys: Keys
    ) -> CraftedPoison:
        """Return poisoned chips for a target.

        Args:
            make: Maps a seed to a network with the victim's first weights: fresh or published ones.
            target: The region that shall flip.
            batch: The chips to poison.
            clean: All other training chips.
            keys: One stream per chip of `batch`.
        """
        noise, losses = PoisonPerturbation(batch, self.eps, keys), list[float]()
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
        return CraftedPoison(replace(batch, image=noise.images().detach()), tuple(losses))

    def _effect(
        self, grown: Sequence[_Surrogate], target: PoisonTarget, noise: PoisonPerturbation, clean: Batch, keys: Keys
    ) -> tuple[float, Tensor]:
        """Return the change of the target's loss by the poison, mean over the surrogates, and the loss's gradient."""
        effect, grad = 0.0, torch.zeros_like(noise.offset)
        for m, one in enumerate(grown):
            with eval_mode(one.net), smoothed_relu(one.net, self.smooth):
                poisoned, plain = (
                    unroll(one.net, batches, self.lr, target.margin, target.batch.image)
                    for batches in (
                        self._batches(replace(noise.batch, image=image), clean, keys.fold(m))
                        for image in (noise.images(), noise.batch.image)
                    )
                )
                grad += torch.autograd.grad(poisoned, noise.offset)[0] / len(grown)
            effect += float((poisoned - plain).detach()) / len(grown)
        return effect, grad

    def _batches(self, poisoned: Batch, clean: Batch, keys: Keys) -> list[Batch]:
        rng = Keys(keys.seed, ("order",), keys.path).numpy(0)
        rest = max(0, min(self.mini - len(poisoned), len(clean)))
        first = concatenate_batches(poisoned, clean.select(rng.permutation(len(clean))[:rest].tolist()))
        later = [clean.select(rng.permutation(len(clean))[: self.mini].tolist()) for _ in range(self.unrolled - 1)]
        return [first, *later]

    def _surrogate(self, net: nn.Module, age: int) -> _Surrogate:
        weights = [p for p in net.parameters() if p.requires_grad]
        return _Surrogate(
            net, torch.optim.SGD(weights, self.lr) if self.adam is None else torch.optim.Adam(weights, self.adam), age
        )

    def _learn(self, one: _Surrogate, clean: Batch, keys: Keys) -> None:
        """Train a surrogate for an epoch, in an order drawn from the keys."""
        one.net.train()
        order = Keys(keys.seed, ("order",), keys.path).numpy(0).permutation(len(clean)).tolist()
        for start in range(0, len(order), self.mini):
            part = clean.select(order[start : start + self.mini])
            one.optimizer.zero_grad()
            training_loss(one.net, dict(one.net.named_parameters()), part).backward()  # type: ignore[no-untyped-call]
            one.optimizer.step()


@dataclass
class _Surrogate:
    """A network in the place of a victim, its optimizer, and the epochs that it was trained for."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    age: int


class PoisonPerturbation:
    """The perturbation of the images while a poison is crafted: Adam in units of eps, within eps and valid values.

    Args:
        batch: The chips.
        eps: In data units.
        keys: One stream per chip, for the random start.
    """

    def __init__(self, batch: Batch, eps: Eps, keys: Keys) -> None:
        self.batch = batch
        self.eps = eps_per_band(eps, batch.image)
        # reflectance stays at or above 0 where it was; decibels are below 0 and have no floor
        floor = float(batch.image.min()) >= -1.0
        low = torch.minimum(batch.image, torch.zeros_like(batch.image)) - batch.image
        self.low = torch.maximum(-self.eps, low) if floor else (-self.eps).expand_as(batch.image)
        start = keys.fold("start").normal(batch.image.shape[1:]).to(batch.image)
        self.offset = self._clamped(start * self.eps).requires_grad_()
        self.first, self.second = torch.zeros_like(self.offset), torch.zeros_like(self.offset)
        self.count = 0

    def images(self) -> Tensor:
        """Return the perturbed images, differentiable with respect to `offset`."""
        return self.batch.image + self.offset

    def descend(self, grad: Tensor, length: float) -> None:
        """Take a step of Adam; its length is a share of eps."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * grad
        self.second = 0.999 * self.second + 0.001 * grad.square()
        mean, spread = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        moved = self.offset.detach() - length * self.eps * mean / (spread.sqrt() + 1e-12)
        self.offset = self._clamped(moved).requires_grad_()

    def _clamped(self, offset: Tensor) -> Tensor:
        inside = torch.minimum(torch.maximum(offset, self.low), self.eps.expand_as(offset))
        return torch.where(self.batch.seen[:, None], inside, torch.zeros_like(inside)).detach()


def gradient_cosine(one: Sequence[Tensor], two: Sequence[Tensor]) -> Tensor:
    """Return the cosine between two gradients over all parameters."""
    dot = torch.stack([(a * b).sum() for a, b in zip(one, two, strict=True)]).sum()
    norms = [torch.stack([g.square().sum() for g in grads]).sum().clamp_min(1e-30).sqrt() for grads in (one, two)]
    return dot / (norms[0] * norms[1])


def random_flips(batch: Batch, keys: Keys) -> Batch:
    """Return the chips flipped at random, each by its own key; differentiable."""
    draws = keys.uniform((2,))
    parts = list[Batch]()
    for i in range(len(batch)):
        one, axes = batch.select([i]), [axis for axis in (0, 1) if draws[i, axis] < 0.5]
        planes = {
            name: getattr(one, name).flip([axis - 2 for axis in axes]) for name in ("image", "label", "seen", "valid")
        }
        parts.append(replace(one, **planes) if axes else one)
    return concatenate_batches(*parts)


def concatenate_batches(*parts: Batch) -> Batch:
    """Return several batches as one."""
    planes = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("image", "label", "seen", "valid")}
    return Batch(**planes, chips=tuple(chip for part in parts for chip in part.chips))


@contextmanager
def smoothed_relu(model: nn.Module, sharpness: float | None) -> Iterator[None]:
    """Replace every ReLU by softplus(sharpness * x) / sharpness, and restore it; None changes nothing."""

    def softplus(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return functional.softplus(inputs[0], float(sharpness or 1.0))

    layers = [m for m in model.modules() if isinstance(m, nn.ReLU)] if sharpness else []
    hooks = [layer.register_forward_pre_hook(softplus) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_craft_settings(name: str, eps: Eps, steps: int, step: float, smooth: float | None) -> None:
    values = (eps,) if isinstance(eps, int | float) else eps
    if not values or any(not math.isfinite(e) or e < 0 for e in values) or steps < 1 or not step > 0:
        raise UsageError(
            f"{name}: expected eps from 0 up in data units, steps from 1 and step above 0, got {eps}, {steps} and {step}; fix them"
        )
    if smooth is not None and not (math.isfinite(smooth) and smooth > 0):
        raise UsageError(f"{name}.smooth: expected a sharpness above 0, got {smooth}; 5 is usual, None keeps ReLU")

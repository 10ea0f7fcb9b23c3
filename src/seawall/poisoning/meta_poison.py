"""MetaPoison: poisons by gradient descent through a few steps of the training of surrogate networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from seawall.errors import UsageError
from seawall.modules import eval_mode
from seawall.poisoning.clean_label import (
    CraftedPoison,
    Eps,
    PoisonPerturbation,
    check_craft_settings,
    logits_with,
    smoothed_relu,
    trainable_weights,
    training_loss,
)
from seawall.poisoning.target import PoisonTarget
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch


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
        check_craft_settings("meta-poison", self.eps, self.steps, self.step, self.smooth)
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
        first = Batch.concatenated([poisoned, clean.select(rng.permutation(len(clean))[:rest].tolist())])
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


def unroll(
    model: nn.Module, batches: Sequence[Batch], lr: float, goal: Callable[[Tensor], Tensor], target: Tensor
) -> Tensor:
    """Return the adversary's loss after plain descent on each batch in turn, averaged over the steps.

    It is differentiable with respect to the images that require gradients; if none does, no graph is kept.

    Paper: Huang et al. 2020, arXiv:2004.00225, eqs. 4 to 6.

    Args:
        model: In eval mode, so that a step depends on its batch alone.
        batches: One per step.
        lr: Length of the steps.
        goal: Maps the target's logits to a scalar, lower being better for the adversary.
        target: (1, C, H, W) image.
    """
    weights: Mapping[str, Tensor] = trainable_weights(model)
    differentiable = any(batch.image.requires_grad for batch in batches)
    total = torch.zeros((), dtype=target.dtype, device=target.device)
    for batch in batches:
        loss = training_loss(model, weights, batch)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=differentiable, materialize_grads=True)
        weights = {name: w - lr * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        if not differentiable:
            weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
        total = total + goal(logits_with(model, weights, target))
    return total / max(1, len(batches))

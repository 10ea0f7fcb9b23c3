"""Gradient matching, also called Witches' Brew: poisons whose training gradient has the direction of the target's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        check_craft_settings("gradient-matching", self.eps, self.steps, self.step, self.smooth)
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
    return Batch.concatenated(parts)

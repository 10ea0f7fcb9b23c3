"""Universal perturbations: one noise for all images, or one tile for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from seawall.attacks.ascent import check_steps
from seawall.attacks.losses import CROSS_ENTROPY, LossSetting, class_probability
from seawall.attacks.target import (
    UNTARGETED_PREDICTION,
    AttackTarget,
    Goal,
    Hide,
    attack_mode,
    autograd_ready,
    check_attack_inputs,
    check_gradient,
    check_logits,
    make_target,
)
from seawall.errors import DataError, UsageError
from seawall.registry import register
from seawall.rng import Keys
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel


@runtime_checkable
class SetAttack(Protocol):
    """An attack that makes one noise for a set of images; `fitted` gives the attack that puts it on any image."""

    def fitted(
        self, model: SegmentationModel, batches: Sequence[Batch], threat: ThreatModel, keys: Keys
    ) -> FittedUniversal: ...


@dataclass(frozen=True, eq=False)
class FittedUniversal:
    """A universal noise, ready to be put on images.

    Args:
        attack: The attack that made it.
        noise: (C, H, W), or the tile (C, tile, tile).
    """

    attack: Universal
    noise: Tensor = field(repr=False)

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check_attack_inputs("universal", model, batch, threat)
        return self.attack.apply(self.noise, batch, threat)


@dataclass(frozen=True)
class UniversalNoise:
    """The settings of both universal attacks, and the fit of one noise or tile.

    Args:
        goal: What the adversary wants.
        steps: Gradient steps; one forward and one backward pass of each image.
        step: Step length, as a share of eps.
        tile: Side of the tile in pixels; 0 for noise of the images' size.
        weight: Weight of the pixels of the class to hide, and 1 - weight of the others.
        sure: Pixels that are as wanted with at least this probability do not count.
        loss: Per-pixel loss to ascend.
    """

    name: ClassVar[str] = "universal"
    goal: Goal = UNTARGETED_PREDICTION
    steps: int = 60
    step: float = 0.1
    tile: int = 0
    weight: float = 0.9
    sure: float = 0.75
    loss: LossSetting = CROSS_ENTROPY

    def __post_init__(self) -> None:
        check_steps(self.name, self.steps, self.step)
        if self.tile < 0 or not 0 < self.weight < 1 or not 0 < self.sure <= 1:
            raise UsageError(
                f"{self.name}: expected tile >= 0, 0 < weight < 1 and 0 < sure <= 1, got {self.tile}, {self.weight} and "
                f"{self.sure}; tile 0 is noise of the image's size"
            )

    def fit(self, model: SegmentationModel, batches: Sequence[Batch], threat: ThreatModel, keys: Keys) -> Tensor:
        """Return the noise (C, H, W), or the tile (C, tile, tile), for all images of the batches.

        Args:
            model: Any model with a spec.
            batches: Images to make it from; of one size unless `tile` is set.
            threat: What the adversary may do. The noise keeps eps per band; a region, bounds and unseen pixels are
                kept when it is applied.
            keys: Unused: the noise starts at zero.

        Raises:
            DataError: There is no image, or sizes differ and `tile` is 0.
        """
        shape = _noise_shape(batches, self.tile)
        if threat.radius == 0:
            return torch.zeros(shape)
        with attack_mode(model):
            batches = [autograd_ready(batch) for batch in batches]
            targets = [make_target(model, batch, self.goal) for batch in batches]
            weights = [self._pixel_weight(model, batch) for batch in batches]
            like = batches[0].image
            noise = torch.zeros(shape, dtype=like.dtype, device=like.device)
            everywhere = torch.ones(1, 1, *shape[1:], dtype=torch.bool, device=like.device)
            free = replace(threat, low=None, high=None, region=None)
            ball = free.around(torch.zeros_like(noise)[None], everywhere)
            images = sum(len(batch) for batch in batches)
            for i in range(self.steps):
                grad = torch.zeros_like(noise)
                for batch, target, weight in zip(batches, targets, weights, strict=True):
                    adv = self.apply(noise, batch, threat).requires_grad_()
                    logits = check_logits(model(adv), adv, len(model.spec.classes))
                    check_gradient(logits)
                    now = target.at_step(logits, i / self.steps)
                    counts = now.valid & ~self._already_sure(logits.detach(), now)
                    loss = torch.where(counts, self.loss(logits, now) * weight, 0.0)
                    mean = loss.flatten(1).sum(1) / now.valid.flatten(1).sum(1).clamp_min(1)
                    (each,) = torch.autograd.grad(mean.sum() / images, adv)
                    grad += _sum_over_tiles(each.sum(0), shape)
                noise = ball.project(noise[None] + self.step * ball.ascend(grad[None]))[0]
        return noise.detach()

    def apply(self, noise: Tensor, batch: Batch, threat: ThreatModel) -> Tensor:
        """Return the images with the noise on them, repeated to their size and projected into the threat."""
        height, width = batch.image.shape[2:]
        if self.tile:
            rows, cols = -(-height // noise.shape[1]), -(-width // noise.shape[2])
            noise = noise.repeat(1, rows, cols)[:, :height, :width]
        if noise.shape[1:] != (height, width):
            raise DataError(
                f"universal: expected noise of {height} x {width}, got {noise.shape[1]} x {noise.shape[2]}; fit it on images "
                "of that size, or a tile"
            )
        return threat.project(batch.image + noise.to(batch.image), batch.image, batch.image_seen).detach()

    def _pixel_weight(self, model: SegmentationModel, batch: Batch) -> Tensor:
        """Return the weight of each pixel, high where the class to hide was predicted."""
        if not isinstance(self.goal, Hide):
            return torch.ones_like(batch.label, dtype=batch.image.dtype)
        with torch.no_grad():
            hidden = model(batch.image).argmax(1) == model.spec.klass(self.goal.klass)
        return torch.where(hidden, self.weight, 1 - self.weight).to(batch.image)

    def _already_sure(self, logits: Tensor, target: AttackTarget) -> Tensor:
        """Return the pixels that do not count: p of the target class is high enough, or p of the class to leave low enough."""
        p = class_probability(logits, target)
        return p >= self.sure if target.targeted else p <= 1 - self.sure


@register("attack", "universal", paper="arXiv:1704.05712", smoke={"steps": 12, "tile": 4}, traits=("weak", "set"))
@dataclass(frozen=True)
class Universal(UniversalNoise):
    """One noise or tile for all images, by steps along the mean gradient of many images.

    A static target is `goal = "towards <class>"`, a dynamic one `goal = "hide <class>"`. A run fits the noise on the
    training part and `seawall attack` on the chips that it is given; the same noise is then put on every chip. Weak: one
    noise cannot suit every pixel. Periodic noise repeats a tile; its gradient is the mean over tiles. The settings are those
    of `UniversalNoise`.

    Paper: Metzen et al. 2017, arXiv:1704.05712, sections 3 and 4.
    """

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        """Return the batch with the one noise that was made for all of it."""
        check_attack_inputs(self.name, model, batch, threat)
        if not len(batch):
            return batch.image.detach().clone()
        return self.fitted(model, [batch], threat, keys)(model, batch, threat, keys)

    def fitted(
        self, model: SegmentationModel, batches: Sequence[Batch], threat: ThreatModel, keys: Keys
    ) -> FittedUniversal:
        """Return the attack that puts the noise of these batches on any image; see `fit`."""
        return FittedUniversal(self, self.fit(model, batches, threat, keys))


@register("attack", "universal-per-chip", paper="arXiv:1704.05712", smoke={"steps": 12, "tile": 4}, traits=("weak",))
@dataclass(frozen=True)
class UniversalPerChip(UniversalNoise):
    """The universal attack with a noise, or a tile, made for each chip alone: no other chip is needed.

    The settings are those of `UniversalNoise`.

    Paper: Metzen et al. 2017, arXiv:1704.05712, sections 3 and 4. Differs: the set is one chip.
    """

    name: ClassVar[str] = "universal-per-chip"

    def __call__(self, model: SegmentationModel, batch: Batch, threat: ThreatModel, keys: Keys) -> Tensor:
        check_attack_inputs(self.name, model, batch, threat)
        chips = [(batch.select([i]), keys.select([i])) for i in range(len(batch))]
        made = [self.apply(self.fit(model, [chip], threat, key), chip, threat) for chip, key in chips]
        return torch.cat(made) if made else batch.image.detach().clone()


def _noise_shape(batches: Sequence[Batch], tile: int) -> tuple[int, int, int]:
    sizes = {tuple(batch.image.shape[1:]) for batch in batches if len(batch)}
    if not sizes or (len(sizes) > 1 and not tile):
        raise DataError(f"universal: expected images of one size, got {sorted(sizes)}; set a tile, or give one size")
    bands, height, width = next(iter(sizes))
    return (bands, tile, tile) if tile else (bands, height, width)


def _sum_over_tiles(grad: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Add up the gradient (C, H, W) over the tiles."""
    bands, high, wide = shape
    rows, cols = -(-grad.shape[1] // high), -(-grad.shape[2] // wide)
    padded = torch.nn.functional.pad(grad, (0, cols * wide - grad.shape[2], 0, rows * high - grad.shape[1]))
    return padded.view(bands, rows, high, cols, wide).sum((1, 3))

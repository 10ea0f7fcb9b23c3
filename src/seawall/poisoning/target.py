"""The target of a clean-label poison, the choice of poisoned chips, and the evaluation with trained victims."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import DataError, UsageError
from seawall.label_noise.label_view import allowance
from seawall.losses.segmentation import masked_mean
from seawall.modules import eval_mode, to_device_of
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel


@dataclass(frozen=True)
class PoisonTarget:
    """A region of an image that stays unmodified, and the class that victims shall predict there.

    Args:
        batch: One image, with its true label.
        region: (1, H, W) bool: pixels that shall flip; only seen ones count.
        klass: The wanted class.
    """

    batch: Batch
    region: Tensor
    klass: int

    def __post_init__(self) -> None:
        if len(self.batch) != 1 or self.region.shape != self.batch.label.shape or self.region.dtype != torch.bool:
            raise DataError(
                f"target: expected one image and a bool region of {tuple(self.batch.label.shape)}, got {len(self.batch)} "
                f"images and {self.region.dtype} {tuple(self.region.shape)}; pass one chip"
            )
        if not bool((self.region & self.batch.seen).any()):
            raise DataError("target: expected a region with seen pixels, got none; choose another region")

    @property
    def pixels(self) -> Tensor:
        """Seen pixels of the region, (1, H, W)."""
        return self.region & self.batch.seen

    def wanted(self) -> Tensor:
        """The label with the wanted class in the region, (1, H, W)."""
        return torch.where(self.pixels, self.klass, self.batch.label)

    def loss(self, logits: Tensor) -> Tensor:
        """Return the mean cross-entropy of the wanted class over the region, which the poison minimizes."""
        return masked_mean(pixel_loss(logits, torch.full_like(self.batch.label, self.klass)), self.pixels)

    def margin(self, logits: Tensor) -> Tensor:
        """Return the mean over the region of the highest other logit minus the wanted one, not below 0."""
        own = logits[:, self.klass]
        rest = torch.cat([logits[:, : self.klass], logits[:, self.klass + 1 :]], 1).amax(1)
        return masked_mean((rest - own).clamp_min(0), self.pixels)

    def flipped(self, model: SegmentationModel) -> float:
        """Return the share of the region where a model predicts the wanted class, in the unmodified image."""
        with torch.no_grad(), eval_mode(model) if isinstance(model, nn.Module) else nullcontext():
            predicted = model(to_device_of(model, self.batch).image).argmax(1).to(self.region.device)
        return float((predicted == self.klass)[self.pixels].float().mean())


def choose_chips(ids: Sequence[str], share: float, seed: int) -> tuple[str, ...]:
    """Choose the chips to poison: as many as the share allows, in keyed order, so that a larger share is a superset.

    Example:
        >>> len(choose_chips([f"c{i}" for i in range(50)], 0.1, 0)), choose_chips(["a", "b"], 0.0, 0)
        (5, ())

    Raises:
        UsageError: The share is not in [0, 1].
    """
    if not math.isfinite(share) or not 0 <= share <= 1:
        raise UsageError(f"poison.share: expected a share of the chips in [0, 1], got {share}; 0.1 means 10 %")

    def draw(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}\x1fpoisoned\x1f{name}".encode(), digest_size=8).digest()

    return tuple(sorted(sorted(ids, key=draw)[: allowance(share, len(ids))]))


@dataclass(frozen=True)
class PoisonEvaluation:
    """The effect of poisoned chips on networks trained on them.

    Args:
        flipped: Share of the target's region with the wanted class, one per seed.
        control: The same after training on random perturbations of the same size.
        clean: The same after training on the original chips.
        quality: Figure of each poisoned network on clean chips, such as IoU; empty without `measure`.
        control_quality: The same of the control.
        clean_quality: The same of clean training.
    """

    flipped: tuple[float, ...]
    control: tuple[float, ...]
    clean: tuple[float, ...]
    quality: tuple[float, ...] = ()
    control_quality: tuple[float, ...] = ()
    clean_quality: tuple[float, ...] = ()

    @property
    def gain(self) -> float:
        """Mean flipped share less that of the control."""
        return sum(self.flipped) / len(self.flipped) - sum(self.control) / len(self.control)


TrainVictim = Callable[[Batch, int], SegmentationModel]
"""Maps training chips and a seed to a trained network; the seed decides its first weights and the order of chips."""


def evaluate_poison(
    target: PoisonTarget,
    clean: Batch,
    poisoned: Batch,
    control: Batch,
    learn: TrainVictim,
    seeds: Sequence[int],
    measure: Callable[[SegmentationModel], float] | None = None,
) -> PoisonEvaluation:
    """Train networks on poisoned, randomly perturbed and clean chips, and return how much of the target flips.

    Args:
        target: The region that shall flip.
        clean: All training chips.
        poisoned: The same chips, the poisoned ones replaced.
        control: The same chips, those replaced by `random_control`.
        learn: Trains a network.
        seeds: Of the victims; other ones than those of the craft.
        measure: Figure of a network on clean chips.

    Raises:
        UsageError: There is no seed, or the three batches are not of the same chips.
    """
    if not seeds or not clean.chips == poisoned.chips == control.chips:
        raise UsageError(
            f"evaluate_poison: expected seeds and three batches of the same chips, got {len(seeds)} seeds; pass them in one order"
        )
    shares, figures = list[tuple[float, ...]](), list[tuple[float, ...]]()
    for batch in (poisoned, control, clean):
        models = [learn(batch, seed) for seed in seeds]
        shares.append(tuple(target.flipped(model) for model in models))
        figures.append(tuple(measure(model) for model in models) if measure else ())
    return PoisonEvaluation(*shares, *figures)


def insert_poisoned(batch: Batch, poisoned: Batch) -> Batch:
    """Return a batch with some of its chips replaced by poisoned ones.

    Raises:
        DataError: A poisoned chip is not in the batch.
    """
    unknown = [chip for chip in poisoned.chips if chip not in batch.chips]
    if unknown:
        raise DataError(f"poison: expected chips of the batch, got {unknown[0]!r}; poison chips of this batch")
    places = [batch.chips.index(chip) for chip in poisoned.chips]
    image, label = batch.image.clone(), batch.label.clone()
    image[places], label[places] = poisoned.image, poisoned.label
    return replace(batch, image=image, label=label)


def random_control(
    batch: Batch, eps: float | Sequence[float], keys: Keys, kind: Literal["sign", "uniform"] = "sign"
) -> Batch:
    """Return chips with random noise of the same size, the control of a poison.

    Args:
        batch: The chips to be perturbed.
        eps: In data units, one number or one per band.
        keys: One stream per chip.
        kind: "sign" changes every value by plus or minus eps, the largest allowed change; "uniform" draws within.
    """
    draw = keys.fold("control").uniform(batch.image.shape[1:], -1.0, 1.0).to(batch.image)
    noise = draw.sign() if kind == "sign" else draw
    return replace(
        batch, image=torch.where(batch.image_seen, batch.image + noise * eps_per_band(eps, batch.image), batch.image)
    )


def pixel_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy per pixel in the precision of the logits, which second derivatives need."""
    return functional.cross_entropy(logits, label.clamp(0, logits.shape[1] - 1), reduction="none")


def eps_per_band(eps: float | Sequence[float], image: Tensor) -> Tensor:
    """Return eps as (1, C, 1, 1) or a scalar tensor.

    Raises:
        UsageError: It is not finite, below 0, or not one per band.
    """
    values = [eps] if isinstance(eps, int | float) else list(eps)
    if not values or any(not math.isfinite(e) or e < 0 for e in values) or len(values) not in (1, image.shape[1]):
        raise UsageError(
            f"poison.eps: expected finite numbers from 0 up in data units, one or {image.shape[1]}, got {eps}; such as 0.02 reflectance"
        )
    return torch.tensor(values, dtype=image.dtype, device=image.device).view(1, -1, 1, 1)

"""What a poison aims at, which chips it may touch, and how its success is counted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from seawall.errors import DataError, UsageError
from seawall.label_noise.label_view import allowance
from seawall.losses.segmentation import masked_mean
from seawall.modules import to_device_of
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel


class Poison(Protocol):
    """A fault in training chips, put in on purpose: every chip of the batch is poisoned, each from its own key."""

    def __call__(self, batch: Batch, keys: Keys) -> Batch: ...


@dataclass(frozen=True)
class Target:
    """A region of an image that no one will touch, and the class that it shall be given.

    Args:
        batch: One image, with its true label.
        region: (1, H, W) bool: pixels that shall flip; only those that are seen count.
        klass: The class that they shall be given.
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
        """The label that the adversary wants, (1, H, W)."""
        return torch.where(self.pixels, self.klass, self.batch.label)

    def loss(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy of the wanted class over the region: what a poison lowers."""
        return masked_mean(pixel_loss(logits, torch.full_like(self.batch.label, self.klass)), self.pixels)

    def margin(self, logits: Tensor) -> Tensor:
        """Return the mean over the region of the highest other logit minus the wanted one, not below 0."""
        own = logits[:, self.klass]
        rest = torch.cat([logits[:, : self.klass], logits[:, self.klass + 1 :]], 1).amax(1)
        return masked_mean((rest - own).clamp_min(0), self.pixels)

    def flipped(self, model: SegmentationModel) -> float:
        """Return the share of the region that a model gives the wanted class, in the image as it is."""
        was = getattr(model, "training", False)
        if isinstance(model, torch.nn.Module):
            model.eval()
        with torch.no_grad():
            said = model(to_device_of(model, self.batch).image).argmax(1).to(self.region.device)
        if isinstance(model, torch.nn.Module):
            model.train(was)
        return float((said == self.klass)[self.pixels].float().mean())


def choose(ids: Sequence[str], share: float, seed: int) -> tuple[str, ...]:
    """Choose the chips that a poison touches: as many as the share allows, in keyed order, so that more are a superset.

    Example:
        >>> len(choose([f"c{i}" for i in range(50)], 0.1, 0)), choose(["a", "b"], 0.0, 0)
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
class Victims:
    """What poisoned chips did to networks that were trained from scratch.

    Args:
        flipped: Share of the target's region with the wanted class, one per fresh seed.
        control: The same after training on random perturbations of the same size.
        clean: The same after training on the chips as they were.
        quality: Clean figure of each poisoned network, such as IoU on other chips; empty if not asked for.
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
        """Mean share flipped beyond the control: what the craft adds to mere noise."""
        return sum(self.flipped) / len(self.flipped) - sum(self.control) / len(self.control)


Learn = Callable[[Batch, int], SegmentationModel]
"""From training chips and a seed to a network trained from scratch; the seed decides first weights and order."""


def victims(
    target: Target,
    clean: Batch,
    poisoned: Batch,
    control: Batch,
    learn: Learn,
    seeds: Sequence[int],
    measure: Callable[[SegmentationModel], float] | None = None,
) -> Victims:
    """Train fresh networks on poisoned, randomly perturbed and clean chips, and count flipped pixels in the clean target.

    Args:
        target: It is shown as it is.
        clean: All training chips.
        poisoned: The same chips with the poisoned ones in their places.
        control: The same with `random_control` in their places.
        learn: Trains a network.
        seeds: Of the victims; none that the poison was crafted with.
        measure: Clean quality of a network.

    Raises:
        UsageError: There is no seed, or the three batches are not of the same chips.
    """
    if not seeds or not clean.chips == poisoned.chips == control.chips:
        raise UsageError(
            f"victims: expected seeds and three batches of the same chips, got {len(seeds)} seeds; pass them in one order"
        )
    shares, figures = list[tuple[float, ...]](), list[tuple[float, ...]]()
    for batch in (poisoned, control, clean):
        models = [learn(batch, seed) for seed in seeds]
        shares.append(tuple(target.flipped(model) for model in models))
        figures.append(tuple(measure(model) for model in models) if measure else ())
    return Victims(*shares, *figures)


def insert(batch: Batch, poisoned: Batch) -> Batch:
    """Return a batch with some of its chips replaced by their poisoned selves.

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
    """Return chips with random noise of the same size: what any effect of a poison must beat.

    Args:
        batch: The chips to be perturbed.
        eps: In data units, one number or one per band.
        keys: One stream per chip.
        kind: "sign" puts every value at plus or minus eps, as strong as the constraint allows; "uniform" draws within.
    """
    draw = keys.fold("control").uniform(batch.image.shape[1:], -1.0, 1.0).to(batch.image)
    noise = draw.sign() if kind == "sign" else draw
    return replace(
        batch, image=torch.where(batch.seen[:, None], batch.image + noise * column(eps, batch.image), batch.image)
    )


def pixel_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy per pixel in the precision of the logits, which second derivatives need."""
    return functional.cross_entropy(logits, label.clamp(0, logits.shape[1] - 1), reduction="none")


def column(eps: float | Sequence[float], image: Tensor) -> Tensor:
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

"""Searches for the bits whose flips raise a loss most, and random flips as their control."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from seawall.class_names import main_class
from seawall.errors import DataError, UsageError
from seawall.losses.segmentation import masked_mean, pixel_cross_entropy, soft_overlap
from seawall.modules import to_device_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch
from seawall.weight_faults.int8 import BIT_VALUES, BITS, BitFlip, QuantizedLayer, QuantizedWeights, integers_to_bits

FaultObjective = Literal["ce", "soft-iou"]
FaultLabels = Literal["predicted", "given"]


@runtime_checkable
class WeightFault(Protocol):
    """Flips bits of 8-bit weights, round by round; each round is yielded after its bits were flipped.

    `batch` is what the adversary knows of the data. No bit is flipped twice. The rounds end where the fault has nothing
    left to flip.
    """

    def __call__(self, weights: QuantizedWeights, batch: Batch, seed: int) -> Iterator[tuple[BitFlip, ...]]: ...


@dataclass(frozen=True)
class AttackedLoss:
    """The loss of a network on the batch that bits are chosen on.

    Args:
        batch: Images, labels and the pixels that count, on the network's device.
        objective: "ce" is the mean cross-entropy of the valid pixels, "soft-iou" one minus the soft IoU of a class over them.
        klass: Index of that class.
    """

    batch: Batch
    objective: FaultObjective
    klass: int

    @staticmethod
    def of(weights: QuantizedWeights, batch: Batch, objective: FaultObjective, labels: FaultLabels) -> AttackedLoss:
        """Return the loss against the labels of the batch, or against what the unflipped network predicts.

        Raises:
            DataError: No pixel of the batch is valid.
        """
        batch = to_device_of(weights.model, batch)
        if not bool(batch.valid.any()):
            raise DataError("weight fault: expected an attack batch with valid pixels, got none; choose other chips")
        if labels == "predicted":
            with torch.no_grad():
                batch = replace(batch, label=weights.model(batch.image).argmax(1))
        return AttackedLoss(batch, objective, weights.spec.klass(main_class(weights.spec.classes)))

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the loss, a scalar; invalid pixels have no part in it."""
        batch, logits = self.batch, model(self.batch.image)
        if self.objective == "ce":
            return masked_mean(pixel_cross_entropy(logits, batch.label), batch.valid)
        both, mass = soft_overlap(logits, batch.label, batch.valid)
        return 1 - (both[self.klass] + 1) / (mass[self.klass] - both[self.klass] + 1)

    def value(self, model: nn.Module) -> float:
        """Return the loss as a number."""
        with torch.no_grad():
            return float(self(model))

    def gradients(self, weights: QuantizedWeights) -> tuple[float, dict[str, Tensor]]:
        """Return the loss and its gradient (N) by the integers that each layer computes with."""
        with torch.enable_grad():
            loss = self(weights.model)
            parameters = [layer.parameter for layer in weights.layers.values()]
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        pairs = zip(weights.layers.items(), filled, strict=True)
        return float(loss.detach()), {name: grad.reshape(-1) * layer.step for (name, layer), grad in pairs}


@dataclass(frozen=True)
class CandidateBits:
    """Bits of one layer that may flip, the largest predicted rise of the loss first.

    Args:
        index: (M) weight of each.
        bit: (M) bit of each.
        rise: (M) first-order change of the loss, above 0.
    """

    index: Tensor
    bit: Tensor
    rise: Tensor

    @staticmethod
    def of(layer: QuantizedLayer, gradient: Tensor, k_top: int, most: int) -> CandidateBits:
        """Return the best bits among the `k_top` weights with the largest gradient; 0 takes all weights.

        A bit may flip where that raises the loss to first order, which a zero gradient never does, and once only.

        Args:
            layer: The layer.
            gradient: (N) of the loss by the integers that it computes with.
            k_top: Weights whose bits are compared.
            most: Bits that are returned at most.
        """
        count = len(gradient) if k_top == 0 else min(k_top, len(gradient))
        top = gradient.abs().topk(count).indices
        bits = torch.arange(BITS, device=top.device).repeat(len(top))
        index = top.repeat_interleave(BITS)
        values = torch.tensor(BIT_VALUES, device=top.device, dtype=gradient.dtype)[bits]
        is_set = integers_to_bits(layer.integers[top]).reshape(-1)
        flipped = layer.integers[index].to(gradient.dtype) + torch.where(is_set, -values, values)
        rise = layer.changes(index, flipped, gradient)
        rise = rise.masked_fill(layer.flipped_bits()[top].reshape(-1), 0.0)
        order = rise.argsort(descending=True, stable=True)[:most]
        order = order[rise[order] > 0]
        return CandidateBits(index[order], bits[order], rise[order])


@register("fault", "progressive-bit-search", paper="arXiv:1903.12269", smoke={"k_top": 4})
@dataclass(frozen=True)
class ProgressiveBitSearch:
    """The bit whose flip raises the loss most: the best by gradient within each layer, the best by measured loss among layers.

    A round flips one bit; only where no layer raises the loss are two bits of a layer tried, then three, and so on.

    Paper: Rakin et al. 2019, arXiv:1903.12269, section 3. Differs: a zero gradient allows no flip, no bit is flipped
    twice, and the predicted change is that after a defense, so that the search knows it.

    Args:
        k_top: Weights per layer whose bits are compared, those with the largest gradient; 0 compares all.
        objective: "ce", the cross-entropy over valid pixels, or "soft-iou", one minus the soft IoU of water.
        labels: Against which labels: "predicted" by the unflipped network, as in the paper, or those "given".
        most: Bits of one layer that are tried together at most; then the search ends.
        spared: Weights whose name has this text in it lie in protected memory and are left alone, such as "head"; "" for none.
    """

    k_top: Annotated[int, Field(ge=0)] = 10
    objective: FaultObjective = "ce"
    labels: FaultLabels = "predicted"
    most: Annotated[int, Field(ge=1)] = 8
    spared: str = ""

    def __call__(self, weights: QuantizedWeights, batch: Batch, seed: int) -> Iterator[tuple[BitFlip, ...]]:
        """Yield the bits of each round, once they are flipped."""
        if self.spared and not 0 < sum(self.spared in name for name in weights.layers) < len(weights.layers):
            raise UsageError(
                f"progressive-bit-search.spared: expected a text that some weights have in their name, not all, got {self.spared!r}; "
                f"they are {', '.join(weights.layers)}"
            )
        loss = AttackedLoss.of(weights, batch, self.objective, self.labels)
        while flips := self.next_round(weights, loss):
            yield flips

    def next_round(self, weights: QuantizedWeights, loss: AttackedLoss) -> tuple[BitFlip, ...]:
        """Flip the bits of one round and return them; none where no layer raises the loss."""
        before, gradients = loss.gradients(weights)
        found = {
            name: CandidateBits.of(layer, gradients[name], self.k_top, self.most)
            for name, layer in weights.layers.items()
            if not (self.spared and self.spared in name)
        }
        for count in range(1, self.most + 1):
            able = {name: bits for name, bits in found.items() if len(bits.index) >= count}
            losses = {name: _loss_with(weights, name, bits, count, loss) for name, bits in able.items()}
            best = max(losses, key=lambda name: losses[name], default="")
            if best and losses[best] > before:
                chosen = zip(found[best].index[:count].tolist(), found[best].bit[:count].tolist(), strict=True)
                return tuple(weights.flip(best, index, bit) for index, bit in chosen)
        return ()


@register("fault", "exhaustive-bit-search", smoke={"labels": "given"})
@dataclass(frozen=True)
class ExhaustiveBitSearch:
    """The bit whose flip raises the loss most, of all bits of all weights, each measured by a forward pass.

    8 passes per weight and flip: for networks of a few hundred weights, as a reference of the progressive search.

    Args:
        objective: As of `ProgressiveBitSearch`.
        labels: As of `ProgressiveBitSearch`.
    """

    objective: FaultObjective = "ce"
    labels: FaultLabels = "predicted"

    def __call__(self, weights: QuantizedWeights, batch: Batch, seed: int) -> Iterator[tuple[BitFlip, ...]]:
        """Yield the bit of each round, once it is flipped."""
        loss = AttackedLoss.of(weights, batch, self.objective, self.labels)
        while True:
            best, where = loss.value(weights.model), None
            for name, layer in weights.layers.items():
                for index, bit in (~layer.flipped_bits()).nonzero().tolist():
                    value = loss_after(weights, name, ((index, bit),), loss.value)
                    if value > best:
                        best, where = value, (name, index, bit)
            if where is None:
                return
            yield (weights.flip(*where),)


@register("fault", "random-flips")
@dataclass(frozen=True)
class RandomFlips:
    """Bits that are drawn with equal probability among all bits of all weights: the control of every search.

    Args:
        growth: Bits of a round, as a share of those flipped before; at least one. 0 flips one bit per round.
    """

    growth: float = 0.125

    def __post_init__(self) -> None:
        if not 0 <= self.growth <= 1:
            raise UsageError(f"random-flips.growth: expected a share in [0, 1], got {self.growth}; 0 flips one by one")

    def __call__(self, weights: QuantizedWeights, batch: Batch, seed: int) -> Iterator[tuple[BitFlip, ...]]:
        """Yield the bits of each round, once they are flipped; the batch has no part in it."""
        order = Keys(seed, ("weights",), ("random-flips",)).numpy(0).permutation(weights.size * BITS)
        done = 0
        while done < len(order):
            count = min(max(1, int(self.growth * done)), len(order) - done)
            yield tuple(flip_numbered(weights, int(number)) for number in order[done : done + count])
            done += count


def flip_numbered(weights: QuantizedWeights, number: int) -> BitFlip:
    """Flip the bit of a number, which counts the bits of all weights of all layers in turn."""
    for name, layer in weights.layers.items():
        if number < len(layer.integers) * BITS:
            return weights.flip(name, number // BITS, number % BITS)
        number -= len(layer.integers) * BITS
    raise UsageError(f"flip: expected a bit below {weights.size * BITS}, got one beyond; count from 0")


def loss_after(
    weights: QuantizedWeights, name: str, bits: tuple[tuple[int, int], ...], value: Callable[[nn.Module], float]
) -> float:
    """Return the loss with some bits of a layer flipped; afterwards they are as before."""
    for index, bit in bits:
        weights.flip(name, index, bit)
    try:
        return value(weights.model)
    finally:
        for index, bit in bits:
            weights.flip(name, index, bit)


def _loss_with(
    weights: QuantizedWeights, name: str, candidates: CandidateBits, count: int, loss: AttackedLoss
) -> float:
    bits = zip(candidates.index[:count].tolist(), candidates.bit[:count].tolist(), strict=True)
    return loss_after(weights, name, tuple(bits), loss.value)

"""Weights as 8-bit integers, one step size per layer, inside a network that computes with them.

Numbers are two's complement: bit 7 weighs -128, the others 2**bit. A trained weight is in -127..127; -128 is reached by
a flip alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from seawall.errors import ModelError, UsageError
from seawall.models.weights import spec_of
from seawall.modules import eval_mode
from seawall.types import ModelSpec
from seawall.weight_faults.defense import FittedDefense, WeightDefense

BITS = 8
LARGEST_INTEGER = 127
BIT_VALUES = (1, 2, 4, 8, 16, 32, 64, -128)
"""What bit 0 to bit 7 add to an integer."""


def integers_to_bits(integers: Tensor) -> Tensor:
    """Return the bits (..., 8) of int8 numbers, bit 0 first.

    Example:
        >>> integers_to_bits(torch.tensor([-127], dtype=torch.int8)).int().tolist()
        [[1, 0, 0, 0, 0, 0, 0, 1]]
    """
    shifts = torch.arange(BITS, device=integers.device)
    return ((integers.to(torch.int64)[..., None] >> shifts) & 1).bool()


def bits_to_integers(bits: Tensor) -> Tensor:
    """Return the int8 numbers of bits (..., 8), bit 0 first."""
    values = torch.tensor(BIT_VALUES, device=bits.device)
    return (bits * values).sum(-1).to(torch.int8)


def flip_integer(integer: int, bit: int) -> int:
    """Return an 8-bit number with one bit flipped.

    Example:
        >>> flip_integer(5, 7), flip_integer(-128, 7), flip_integer(-1, 0)
        (-123, 0, -2)
    """
    return integer - BIT_VALUES[bit] if integer >> bit & 1 else integer + BIT_VALUES[bit]


def weight_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of convolutions, transposed convolutions and linear layers, by the name of the parameter.

    Biases, norms and weights that are computed from other parameters are not among them; a shared weight is there once.

    Raises:
        ModelError: There is none, or one is not finite.
    """
    found: dict[str, nn.Parameter] = {}
    for name, part in model.named_modules():
        own = part._parameters.get("weight") if isinstance(part, _ConvNd | nn.Linear) else None
        if (
            own is not None
            and own.is_floating_point()
            and own.numel()
            and all(own is not one for one in found.values())
        ):
            found[f"{name}.weight" if name else "weight"] = own
    if not found:
        raise ModelError(
            f"{type(model).__name__}: expected a network with convolutions or linear layers, got none with weights; "
            "a threshold on an index has no weights whose bits could flip"
        )
    for name, weight in found.items():
        if not bool(weight.isfinite().all()):
            raise ModelError(f"{name}: expected finite weights, got some that are not; load the weights again")
    return found


@dataclass(frozen=True)
class BitFlip:
    """One flipped bit.

    Args:
        layer: Name of the weight.
        index: Which of its numbers, counted in row-major order.
        bit: From 0 to 7; 7 is the sign.
        before: The integer before.
        after: The integer after.
    """

    layer: str
    index: int
    bit: int
    before: int
    after: int


class QuantizedLayer:
    """The weight of one layer as 8-bit integers, read through a defense where there is one.

    Args:
        name: Name of the weight.
        parameter: The weight, which `write` sets to what the layer computes with.
        defense: How integers are read; None reads them as they are.
    """

    def __init__(self, name: str, parameter: nn.Parameter, defense: WeightDefense | None) -> None:
        values = parameter.detach().reshape(-1).float()
        self.name, self.parameter = name, parameter
        self.step = float(values.abs().max()) / LARGEST_INTEGER
        scaled = values / self.step if self.step else values
        self.integers = scaled.round().clamp(-LARGEST_INTEGER, LARGEST_INTEGER).to(torch.int8)
        self.trained = self.integers.clone()
        self.defense = None if defense is None else FittedDefense.of(defense, self.integers)

    def read(self) -> Tensor:
        """Return the integers (N) that the layer computes with: those in memory, after the defense."""
        return self.integers if self.defense is None else self.defense.read(self.integers)

    def write(self) -> None:
        """Set the weight to step size times integers."""
        with torch.no_grad():
            self.parameter.copy_((self.read().float() * self.step).reshape(self.parameter.shape))

    def changes(self, indices: Tensor, flipped: Tensor, gradient: Tensor) -> Tensor:
        """Return the first-order change of the loss for single changes of integers.

        Args:
            indices: (M) which integer changes.
            flipped: (M) what it becomes.
            gradient: (N) of the loss by the integers that the layer computes with.
        """
        if self.defense is None:
            return gradient[indices] * (flipped - self.integers[indices].to(flipped.dtype))
        return self.defense.changes(self.integers, indices, flipped, gradient)

    def flipped_bits(self) -> Tensor:
        """Return which bits (N, 8) differ from the trained ones."""
        return integers_to_bits(self.integers) != integers_to_bits(self.trained)


class QuantizedWeights:
    """The 8-bit weights of a network, whose bits can be flipped; made by `int8_weights`.

    Args:
        model: The network; it computes with these weights.
        layers: Its layers by name.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> None:
        self.model, self.layers = model, layers

    @property
    def spec(self) -> ModelSpec:
        """The specification of the network."""
        return spec_of(self.model)

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(len(layer.integers) for layer in self.layers.values())

    def flip(self, layer: str, index: int, bit: int) -> BitFlip:
        """Flip one bit in the memory of a layer; the network computes with it at once.

        Raises:
            UsageError: There is no such layer, weight or bit.
        """
        if layer not in self.layers or not 0 <= bit < BITS or not 0 <= index < len(self.layers[layer].integers):
            raise UsageError(
                f"flip: expected a layer, a weight and a bit from 0 to 7, got {layer!r}, {index} and {bit}; see `layers`"
            )
        integers = self.layers[layer].integers
        before = int(integers[index])
        after = flip_integer(before, bit)
        integers[index] = after
        self.layers[layer].write()
        return BitFlip(layer, index, bit, before, after)

    def hamming_distance(self) -> int:
        """Return the number of bits that differ from the trained ones."""
        return sum(int(layer.flipped_bits().sum()) for layer in self.layers.values())

    def integers(self) -> dict[str, Tensor]:
        """Return the integers in memory, by layer; flips change them in place."""
        return {name: layer.integers for name, layer in self.layers.items()}


@contextmanager
def int8_weights(model: nn.Module, defense: WeightDefense | None = None) -> Iterator[QuantizedWeights]:
    """Let a network compute with 8-bit weights in eval mode; afterwards its weights and modes are as before, to the bit.

    Args:
        model: Any module with a `spec` and layers that have weights.
        defense: How integers are read from memory; None reads them as they are.

    Raises:
        ModelError: The model has no specification or no weights, or one is not finite.
    """
    spec_of(model)
    parameters = weight_parameters(model)
    kept = {name: (one.detach().clone(), one.requires_grad) for name, one in parameters.items()}
    with eval_mode(model):
        try:
            layers = {name: QuantizedLayer(name, one, defense) for name, one in parameters.items()}
            for layer in layers.values():
                layer.parameter.requires_grad_(True)
                layer.write()
            yield QuantizedWeights(model, layers)
        finally:
            for name, one in parameters.items():
                values, wanted = kept[name]
                with torch.no_grad():
                    one.copy_(values)
                one.requires_grad_(wanted)

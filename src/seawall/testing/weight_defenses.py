"""What every defense of 8-bit weights must keep."""

from __future__ import annotations

import torch
from torch import Tensor

from seawall.registry import Entry
from seawall.testing.assertions import made, quiet_random, same_snapshot, snapshot
from seawall.testing.faults import flat_network
from seawall.weight_faults.defense import FittedDefense, WeightDefense
from seawall.weight_faults.int8 import BITS, flip_integer, int8_weights


def check_trained_weights_are_read_as_they_are(entry: Entry) -> None:
    """Without a flip the network computes with the same integers as without the defense, of any number of weights."""
    for count in (1, 7, 8, 50):
        integers = _integers(count)
        assert torch.equal(_fitted(entry, integers).read(integers).to(torch.int8), integers), f"{count} weights changed"


def check_flips_do_less(entry: Entry) -> None:
    """Over all flips of a bit, and over all of the sign bit, the integers move less than without the defense, squared."""
    integers = _integers(50)
    fitted = _fitted(entry, integers)
    own, moved = torch.zeros(BITS), torch.zeros(BITS)
    for index in range(len(integers)):
        for bit in range(BITS):
            flipped = integers.clone()
            flipped[index] = flip_integer(int(integers[index]), bit)
            own[bit] += (flipped.float() - integers.float()).square().sum()
            moved[bit] += (fitted.read(flipped).float() - integers.float()).square().sum()
    assert moved.sum() < own.sum() and moved[-1] < own[-1], f"moved {moved.tolist()}, without it {own.tolist()}"


def check_reading_leaves_the_memory(entry: Entry) -> None:
    """Reading draws no random number and does not write to the integers in memory."""
    integers = _integers(50)
    kept = integers.clone()
    with quiet_random():
        _fitted(entry, integers).read(integers)
    assert torch.equal(integers, kept), "reading wrote to the memory"


def check_predicted_change_is_that_of_reading(entry: Entry) -> None:
    """The first-order change that a search is told is the gradient times the change of what is read."""
    integers, gradient = _integers(50), torch.cos(torch.arange(50.0))
    fitted = _fitted(entry, integers)
    at, bit = torch.arange(50), 7
    flipped = torch.tensor([flip_integer(int(one), bit) for one in integers], dtype=torch.float32)
    told = fitted.changes(integers, at, flipped, gradient)
    for index in range(50):
        after = integers.clone()
        after[index] = int(flipped[index])
        real = float(((fitted.read(after) - fitted.read(integers)) * gradient).sum())
        assert abs(real - float(told[index])) < 1e-3, f"weight {index}: told {told[index]}, real {real}"


def check_weights_come_back_through_it(entry: Entry) -> None:
    """A network behind the defense is as before afterwards, to the bit."""
    model = flat_network()
    before = snapshot(model)
    with int8_weights(model, made(entry, WeightDefense)) as weights:
        weights.flip(next(iter(weights.layers)), 0, 7)
    assert same_snapshot(before, snapshot(model)), "the model is not as it was"


def _integers(count: int) -> Tensor:
    return (100 * torch.sin(torch.arange(count) * 1.3 + 0.4)).round().to(torch.int8)


def _fitted(entry: Entry, integers: Tensor) -> FittedDefense:
    return FittedDefense.of(made(entry, WeightDefense), integers)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]

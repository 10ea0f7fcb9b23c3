"""Defenses that bound what a flipped bit can do: 8-bit weights are read through limits of their group.

A group is a run of consecutive weights of a layer. Limits are taken of the trained weights and count as safe: they are
far fewer numbers, which fit into protected memory. Trained weights are read as they are, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from seawall.errors import UsageError
from seawall.registry import build, parse_settings, register


@runtime_checkable
class WeightDefense(Protocol):
    """How integers of groups are read.

    `limits` gives numbers (R, L) of trained groups (R, G); `read` gives the integers (R, G) of groups as they are in
    memory, within the limits of each.
    """

    group: int

    def limits(self, groups: Tensor) -> Tensor: ...
    def read(self, groups: Tensor, limits: Tensor) -> Tensor: ...


@register("weight-defense", "clipping", smoke={"group": 8})
@dataclass(frozen=True)
class Clipping:
    """Integers are clipped to the trained range of their group, or of the whole layer.

    With one range for the layer only the far side of an uneven layer and -128 are out of range, since the largest weight
    of every layer is 127.

    Args:
        group: Weights per group; 0 for the whole layer.
    """

    group: int = 0

    def __post_init__(self) -> None:
        check_group("clipping", self.group)

    def limits(self, groups: Tensor) -> Tensor:
        """Return the smallest and the largest integer of each group."""
        return torch.stack([groups.amin(1), groups.amax(1)], 1)

    def read(self, groups: Tensor, limits: Tensor) -> Tensor:
        """Return the integers within the range."""
        return groups.clamp(limits[:, :1], limits[:, 1:])


@register("weight-defense", "reconstruction", paper="Li et al., DAC 2020", smoke={"group": 8})
@dataclass(frozen=True)
class Reconstruction:
    """Integers are made again from the mean of their group and their deviation from it, clipped to the largest trained one.

    A flip of one weight moves the mean by a share of it, so what the clipping leaves is spread over the group.

    Paper: Li et al. 2020, "Defending Bit-Flip Attack through DNN Weight Reconstruction". Differs: the text of the paper
    was not at hand, so grouping, averaging and clipping follow its abstract; the mean is rounded to an integer, and the
    limit is one per group, so that trained weights stay as they are.

    Args:
        group: Weights per group; 0 for the whole layer.
    """

    group: int = 16

    def __post_init__(self) -> None:
        check_group("reconstruction", self.group)

    def limits(self, groups: Tensor) -> Tensor:
        """Return the largest distance from the mean of each group."""
        return (groups - _rounded_mean(groups)).abs().amax(1, keepdim=True)

    def read(self, groups: Tensor, limits: Tensor) -> Tensor:
        """Return the mean of each group plus the deviations from it, within the limit."""
        mean = _rounded_mean(groups)
        return mean + (groups - mean).clamp(-limits, limits)


@dataclass(frozen=True)
class FittedDefense:
    """A defense with the limits of one layer.

    Args:
        defense: The defense.
        group: Weights per group.
        limits: (R, L) numbers of every group.
    """

    defense: WeightDefense
    group: int
    limits: Tensor

    @staticmethod
    def of(defense: WeightDefense, integers: Tensor) -> FittedDefense:
        """Return the defense of a layer with these trained integers (N)."""
        group = min(defense.group or len(integers), len(integers))
        return FittedDefense(defense, group, defense.limits(cut_groups(integers, group)))

    def read(self, integers: Tensor) -> Tensor:
        """Return the integers (N) that the layer computes with."""
        read = self.defense.read(cut_groups(integers, self.group), self.limits)
        return read.reshape(-1)[: len(integers)]

    def changes(self, integers: Tensor, indices: Tensor, flipped: Tensor, gradient: Tensor) -> Tensor:
        """Return the first-order change of the loss for single changes of integers; see `QuantizedLayer.changes`."""
        which, place = indices // self.group, indices % self.group
        before = cut_groups(integers, self.group)[which]
        after = before.scatter(1, place[:, None], flipped[:, None].to(before.dtype))
        limits = self.limits[which]
        change = self.defense.read(after, limits) - self.defense.read(before, limits)
        return (change * cut_groups(gradient, self.group)[which]).sum(1)


def cut_groups(numbers: Tensor, group: int) -> Tensor:
    """Return the groups (R, G) of numbers (N), integers as int16; the last group is filled up with zeros.

    Example:
        >>> cut_groups(torch.arange(5, dtype=torch.int8), 3).tolist()
        [[0, 1, 2], [3, 4, 0]]
    """
    wide = numbers if numbers.is_floating_point() else numbers.short()
    return functional.pad(wide, (0, -len(wide) % group)).reshape(-1, group)


def parse_defense(text: str) -> WeightDefense:
    """Return the defense of a text such as "clipping group=64".

    Raises:
        UsageError: The name or a setting is unknown.
    """
    return build("weight-defense", *parse_settings("weight-defense", text))


def check_group(name: str, group: int) -> None:
    """Check the size of a group.

    Raises:
        UsageError: It is negative or 1: a group of one weight would be a copy of the weights.
    """
    if group < 0 or group == 1:
        raise UsageError(f"{name}.group: expected 0 or a number of weights from 2 on, got {group}; 16 is common")


def _rounded_mean(groups: Tensor) -> Tensor:
    return groups.float().mean(1, keepdim=True).round().to(groups.dtype)

"""The threat set around given images, ready for a loop: bounds are computed once, a step is a clamp."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seawall.rng import Keys

INSIDE = 2e-6  # an l2 projection lands this share inside, so that rounding cannot put it outside again


@dataclass(frozen=True)
class Ball:
    """The images that an adversary may choose instead of `x`.

    Args:
        x: (B, C, H, W) clean images.
        low: Smallest value of each pixel; equals `x` where it may not be touched. With a spectrum it bounds the
            amount (B, 1, H, W) that is added along it.
        high: Largest value, likewise.
        eps: (1, C, 1, 1) budget per band; (1, 1, 1, 1) with a spectrum.
        norm: "linf" or "l2".
        spectrum: (1, C, 1, 1) direction of additive haze, largest entry 1, or None.
    """

    x: Tensor
    low: Tensor
    high: Tensor
    eps: Tensor
    norm: str
    spectrum: Tensor | None = None

    def project(self, adv: Tensor) -> Tensor:
        """Return the image of the set that stands for `adv`: idempotent, and the identity inside."""
        if self.spectrum is None:
            boxed = torch.clamp(adv, self.low, self.high)
            return boxed if self.norm == "linf" else self._pull(boxed)
        along = (adv - self.x).mul(self.spectrum).sum(1, keepdim=True) / self.spectrum.square().sum().clamp_min(1e-30)
        amount = torch.clamp(along, self.low, self.high)
        if self.norm == "l2":
            amount = amount * self._share(amount)
        return self.x + amount * self.spectrum

    def ascend(self, grad: Tensor) -> Tensor:
        """Return the steepest ascent of length one budget, so that a step is a share of eps."""
        along = grad if self.spectrum is None else (grad * self.spectrum).sum(1, keepdim=True)
        move = along.sign() * self.eps if self.norm == "linf" else self._steepest(along)
        return move if self.spectrum is None else move * self.spectrum

    def start(self, keys: Keys) -> Tensor:
        """Return random images of the set, uniform in linf's box and in l2's ball before the bounds clip it."""
        shape = self.low.shape[1:]
        if self.norm == "linf":
            value = self.low + keys.uniform(shape).to(self.low) * (self.high - self.low)
            inside = torch.minimum(value, self.high)
            return inside if self.spectrum is None else self.x + inside * self.spectrum
        free = self._free()
        noise = torch.where(free, keys.normal(shape).to(self.low), 0.0)
        size = free.flatten(1).sum(1).clamp_min(1).to(self.low)
        radius = keys.fold("radius").uniform((1,))[:, 0].to(self.low) ** (1.0 / size)
        offset = noise * _column(radius / _norm(noise).clamp_min(1e-12)) * self._reach()
        return self.project(self.x + (offset if self.spectrum is None else offset * self.spectrum))

    def select(self, indices: Tensor) -> Ball:
        """Return the set around the chosen images."""
        return replace(self, x=self.x[indices], low=self.low[indices], high=self.high[indices])

    def within(self, mask: Tensor) -> Ball:
        """Return the part of the set that touches only `mask` (B, H, W)."""
        rest = self.x if self.spectrum is None else torch.zeros_like(self.low)
        there = mask[:, None]
        return replace(self, low=torch.where(there, self.low, rest), high=torch.where(there, self.high, rest))

    def _free(self) -> Tensor:
        return self.high > self.low

    def _reach(self) -> Tensor:
        # along a spectrum the l2 norm of the noise is the amount's times the spectrum's
        return self.eps if self.spectrum is None else self.eps / self.spectrum.square().sum().sqrt().clamp_min(1e-15)

    def _pull(self, boxed: Tensor) -> Tensor:
        # the box holds x, so pulling towards x stays in the box
        offset = boxed - self.x
        share = self._share(offset)
        return torch.where(share < 1, self.x + offset * share, boxed)

    def _share(self, offset: Tensor) -> Tensor:
        reach = self._reach()
        length = _norm(torch.where(reach > 0, offset / reach.clamp_min(1e-30), 0.0))
        return _column(torch.where(length > 1, (1 - INSIDE) / length, 1.0))

    def _steepest(self, along: Tensor) -> Tensor:
        reach = self._reach()
        weighted = torch.where(self._free(), along, 0.0) * reach
        largest = weighted.flatten(1).abs().amax(1).clamp_min(torch.finfo(weighted.dtype).tiny)
        scaled = weighted / _column(largest)  # squares of tiny gradients would underflow
        return scaled * reach / _column(_norm(scaled).clamp_min(1e-12))


def _norm(offset: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(offset.flatten(1), dim=1)
    return length


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]

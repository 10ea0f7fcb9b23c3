"""Temperature scaling: one number that makes confidence honest and changes no class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from seawall.errors import DataError, UsageError
from seawall.modules import to_device_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel

COLDEST, HOTTEST = 0.01, 100.0


@register("uncertainty", "temperature", paper="arXiv:1706.04599", smoke={"value": 1.5})
@dataclass(frozen=True)
class Temperature:
    """Divide the logits by one number.

    Args:
        value: Above 1 softens, below 1 sharpens; find it with `fit_temperature`.

    Paper: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.value) and self.value > 0):
            raise UsageError(f"temperature.value: expected a positive number, got {self.value}; 1 changes nothing")

    def __call__(self, model: SegmentationModel) -> Scaled:
        return Scaled(model, self.value)


class Scaled(nn.Module):
    """A model with its logits divided by a temperature: the classes stay, the confidence does not."""

    def __init__(self, model: SegmentationModel, temperature: float) -> None:
        super().__init__()
        self.spec = model.spec
        self.inner = model
        self.temperature = temperature

    @property
    def reach(self) -> int | None:
        """See `Segmenter`; the inner model's."""
        return cast(int | None, self.inner.reach)  # type: ignore[attr-defined]

    @property
    def stride(self) -> int:
        """See `Segmenter`; the inner model's."""
        return cast(int, self.inner.stride)  # type: ignore[attr-defined]

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W)."""
        return self.inner(image) / self.temperature


def fit_temperature(
    model: SegmentationModel, batches: Iterable[Batch], *, pixels: int | None = 20000, seed: int = 0
) -> Temperature:
    """Find the temperature with the smallest negative log likelihood on held-out chips.

    Args:
        model: In eval mode.
        batches: Chips that the model was not trained on.
        pixels: Most valid pixels taken per chip, by chance; all where None.
        seed: Seed of that chance.

    Raises:
        DataError: There is no valid pixel.
    """
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        keys = Keys(seed, batch.chips, ("temperature",))
        with torch.no_grad():
            out = model(to_device_of(model, batch).image).cpu().double()
        for i in range(len(batch)):
            at = batch.valid[i].cpu().flatten().nonzero()[:, 0]
            if pixels is not None and len(at) > pixels:
                at = at[torch.randperm(len(at), generator=keys.generator(i))[:pixels]]
            logits.append(out[i].flatten(1)[:, at].T)
            labels.append(batch.label[i].cpu().flatten()[at])
    if not sum(len(label) for label in labels):
        raise DataError("temperature: expected valid pixels, got none; give chips with labels")
    return Temperature(temperature_of(torch.cat(logits), torch.cat(labels)))


def temperature_of(logits: Tensor, label: Tensor) -> float:
    """Minimize the negative log likelihood, which is convex in the inverse temperature.

    Newton's method, held inside an interval that shrinks. A model that is never wrong would want temperature 0, one
    that is worse than chance infinity: the ends are 0.01 and 100.

    Args:
        logits: (N, K).
        label: (N,).

    Returns:
        The temperature.
    """
    z = logits.double()
    true = z.gather(1, label[:, None].long())[:, 0]
    low, high, beta = 1 / HOTTEST, 1 / COLDEST, 1.0
    for _ in range(200):
        p = torch.softmax(beta * z, 1)
        mean = (p * z).sum(1)
        slope = float((mean - true).mean())
        curve = float(((p * z.square()).sum(1) - mean.square()).mean())
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curve if curve > 1e-12 else -1.0
        new = step if low < step < high else (low * high) ** 0.5
        if abs(new - beta) <= 1e-10 * beta:
            break
        beta = new
    return 1 / beta

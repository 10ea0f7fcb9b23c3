"""Temperature scaling: one number that calibrates probabilities and changes no class."""

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

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


@register("uncertainty", "temperature", paper="arXiv:1706.04599", smoke={"value": 1.5})
@dataclass(frozen=True)
class Temperature:
    """Divide the logits by one number.

    Args:
        value: Above 1 lowers the confidence, below 1 raises it; `fit_temperature` returns it.

    Paper: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.value) and self.value > 0):
            raise UsageError(f"temperature.value: expected a positive number, got {self.value}; 1 changes nothing")

    def __call__(self, model: SegmentationModel) -> TemperatureScaled:
        return TemperatureScaled(model, self.value)


class TemperatureScaled(nn.Module):
    """A model with its logits divided by a temperature."""

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
    """Return the temperature with the smallest negative log likelihood on held-out chips.

    Args:
        model: In eval mode.
        batches: Chips that the model was not trained on.
        pixels: Most valid pixels per chip, drawn at random; None takes all.
        seed: Seed of the draw.

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
    """Return the temperature that minimizes the negative log likelihood, which is convex in its inverse.

    Newton's method inside a shrinking interval. The optimum is 0 for a model that is never wrong and infinite for one
    that is worse than chance: the result is clipped to 0.01 and 100.

    Args:
        logits: (N, K).
        label: (N,).

    Returns:
        The temperature.
    """
    z = logits.double()
    true = z.gather(1, label[:, None].long())[:, 0]
    low, high, beta = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
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

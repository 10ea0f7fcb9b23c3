"""Temperature scaling: dividing logits so that probabilities are calibrated; no class changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from seawall.errors import DataError, UsageError
from seawall.modules import to_device_of
from seawall.registry import register
from seawall.rng import Keys
from seawall.types import Batch, SegmentationModel
from seawall.uncertainty.predictor import Prediction, UncertainModel, passes_of

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
TemperatureKind = Literal["none", "global", "class", "local"]
TEMPERATURE_KINDS = get_args(TemperatureKind)
LOCAL_STEPS, LOCAL_RATE, LOCAL_DECAY = 200, 0.01, 1.0
"""Steps, learning rate and weight decay of the fit of a local temperature."""
LOCAL_BATCH, LOCAL_SIDE, LOCAL_CROPS = 8, 128, 256
"""Crops per step, their side in pixels, and chips of which one is kept in memory."""
LOCAL_RANGE = 5.0
"""Largest local temperature, and the inverse of the smallest: without a bound, single pixels are told to be sure of nothing, or of all."""
GATE_SPREAD = 0.05
"""Standard deviation of the first weights of its gates."""


class LogitDivisor(Protocol):
    """A positive number per pixel that logits are divided by."""

    @property
    def reach(self) -> int:
        """Pixels around a pixel that it depends on, beyond those of its logits."""
        ...

    def divisor(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return (B, 1, H, W), or one number."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Return the fitted numbers."""
        ...


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
        return TemperatureScaled(model, ClassTemperature((self.value,) * len(model.spec.classes)))


@dataclass(frozen=True)
class ClassTemperature:
    """Divide the logits of a pixel by the number of the class that it is predicted as; one number for all is `Temperature`.

    Args:
        values: One temperature per class.
    """

    values: tuple[float, ...]
    reach = 0

    def divisor(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return (B, 1, H, W)."""
        values = torch.tensor(self.values, dtype=logits.dtype, device=logits.device)
        return values[logits.argmax(1, keepdim=True)]

    def state(self) -> Mapping[str, Tensor]:
        """Return the temperatures."""
        return {"temperature.class": torch.tensor(self.values, dtype=torch.float64)}


class LocalTemperature(nn.Module):
    """Divide the logits of a pixel by a number that follows from logits and image around it.

    A soft tree of four leaves, whose gates and leaves are 5 x 5 convolutions with dilation 2 over the logits, less their mean,
    and the standardized image. Without training it is 1 everywhere.

    Args:
        bands: Number of bands.
        classes: Number of classes.

    Paper: Ding et al. 2021, arXiv:2008.05105, section 3.2. Differs: leaves are exponentials, which are positive.
    """

    reach = 4

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, bands, 1, 1))
        self.register_buffer("std", torch.ones(1, bands, 1, 1))
        self.tree = nn.Conv2d(bands + classes, 7, 5, padding=4, dilation=2)
        nn.init.zeros_(self.tree.weight)
        nn.init.zeros_(cast(Tensor, self.tree.bias))
        with torch.no_grad():  # equal gates would leave the leaves equal for ever
            self.tree.weight[:3].normal_(0, GATE_SPREAD, generator=torch.Generator().manual_seed(0))

    def divisor(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return (B, 1, H, W)."""
        seen = (image - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        found = self.tree(torch.cat([(logits - logits.mean(1, keepdim=True)).to(image.dtype), seen], 1))
        root, left, right = torch.sigmoid(found[:, :3]).unbind(1)
        leaves = found[:, 3:].clamp(-np.log(LOCAL_RANGE), np.log(LOCAL_RANGE)).exp().unbind(1)
        low = left * leaves[0] + (1 - left) * leaves[1]
        high = right * leaves[2] + (1 - right) * leaves[3]
        return (root * low + (1 - root) * high)[:, None]  # type: ignore[no-any-return]

    def state(self) -> Mapping[str, Tensor]:
        """Return the fitted numbers."""
        return {f"temperature.local.{name}": tensor.detach().cpu() for name, tensor in self.state_dict().items()}


def divisor_of(state: Mapping[str, Tensor], bands: int, classes: int) -> LogitDivisor | None:
    """Return what `LogitDivisor.state` gave the numbers of; None where there are none."""
    if "temperature.class" in state:
        return ClassTemperature(tuple(map(float, state["temperature.class"])))
    local = {name.removeprefix("temperature.local."): t for name, t in state.items() if ".local." in name}
    if not local:
        return None
    made = LocalTemperature(bands, classes)
    made.load_state_dict(local)
    return made.eval()


class TemperatureScaled(nn.Module):
    """A model with its logits divided; passes of a predictor are averaged before.

    Args:
        model: The model or predictor.
        scale: What the logits are divided by.
    """

    def __init__(self, model: SegmentationModel, scale: LogitDivisor) -> None:
        super().__init__()
        self.spec = model.spec
        self.inner = model
        self.scale = scale

    @property
    def passes(self) -> int:
        """Number of passes of the model."""
        return passes_of(self.inner)

    @property
    def reach(self) -> int | None:
        """See `Segmenter`."""
        inner = cast(int | None, self.inner.reach)  # type: ignore[attr-defined]
        return None if inner is None else inner + self.scale.reach

    @property
    def stride(self) -> int:
        """See `Segmenter`; the inner model's."""
        return cast(int, self.inner.stride)  # type: ignore[attr-defined]

    def predict(self, image: Tensor) -> Prediction:
        """Return the calibrated mean probability of images (B, C, H, W), and how far the passes disagreed before, with gradients."""
        if not isinstance(self.inner, UncertainModel):
            logits = self(image)
            return Prediction(torch.softmax(logits, 1), torch.zeros_like(logits[:, 0]), 1)
        found = self.inner.predict(image)
        logits = found.probability.clamp_min(torch.finfo(torch.float32).tiny).log()
        scaled = torch.softmax(logits / self.scale.divisor(logits, image), 1)
        return Prediction(scaled, found.mutual_information, found.passes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W)."""
        logits = self.inner(image)
        return logits / self.scale.divisor(logits, image)


def fit_temperature(
    model: SegmentationModel,
    batches: Iterable[Batch],
    kind: TemperatureKind = "global",
    *,
    pixels: int | None = 20000,
    seed: int = 0,
) -> LogitDivisor | None:
    """Return the temperature of a kind with the smallest negative log likelihood on held-out chips; None for none.

    Args:
        model: In eval mode.
        batches: Chips that the model was not trained on.
        kind: "global" is one number, "class" one per predicted class, "local" one per pixel from its surroundings.
        pixels: Most valid pixels per chip, drawn at random; None takes all. A local one takes a crop of each.
        seed: Seed of the draw.

    Raises:
        DataError: There is no valid pixel.
    """
    if kind == "none":
        return None
    if kind == "local":
        return _fit_local(model, batches, seed)
    classes = len(model.spec.classes)
    logits, labels = _sample_pixels(model, batches, pixels, seed)
    if kind == "global":
        return ClassTemperature((temperature_of(logits, labels),) * classes)
    guess = logits.argmax(1)
    values = [temperature_of(logits[at], labels[at]) if (at := guess == k).any() else 1.0 for k in range(classes)]
    return ClassTemperature(tuple(values))


def _sample_pixels(
    model: SegmentationModel, batches: Iterable[Batch], pixels: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) and labels (N,) of valid pixels."""
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
    return torch.cat(logits), torch.cat(labels)


class _Crop(NamedTuple):
    """A part of a chip that a local temperature is fitted to: (1, ., h, w) each."""

    draw: float
    logits: Tensor
    image: Tensor
    label: Tensor
    valid: Tensor


def _fit_local(model: SegmentationModel, batches: Iterable[Batch], seed: int) -> LocalTemperature:
    """Fit a local temperature by AdamW to a few crops per step; at most `LOCAL_CROPS` chips, one crop of each, are kept."""
    crops = _draw_crops(model, batches, seed)
    made = LocalTemperature(crops[0].image.shape[1], len(model.spec.classes))
    pixels = torch.cat([crop.image.flatten(2)[0] for crop in crops], 1)
    made.mean.copy_(pixels.mean(1).view(1, -1, 1, 1))  # type: ignore[operator]
    made.std.copy_(pixels.std(1).clamp_min(1e-6).view(1, -1, 1, 1))  # type: ignore[operator]
    to_device_of(model, made)
    optimizer = torch.optim.AdamW(made.parameters(), lr=LOCAL_RATE, weight_decay=LOCAL_DECAY)
    for step in range(LOCAL_STEPS):
        optimizer.zero_grad()
        chosen = [crops[(step * LOCAL_BATCH + i) % len(crops)] for i in range(min(LOCAL_BATCH, len(crops)))]
        total = sum(int(crop.valid.sum()) for crop in chosen)
        for crop in chosen:
            scaled = crop.logits / made.divisor(crop.logits, crop.image)
            nll = functional.cross_entropy(scaled, crop.label, reduction="none")
            (nll[crop.valid].sum() / max(total, 1)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return made.eval().requires_grad_(False)


def _draw_crops(model: SegmentationModel, batches: Iterable[Batch], seed: int) -> list[_Crop]:
    """Return a crop of each chip with a valid pixel, in an order that is drawn per chip; of too many chips those that come first.

    Raises:
        DataError: There is no valid pixel.
    """
    kept: list[_Crop] = []
    for chips in batches:
        batch, keys = to_device_of(model, chips), Keys(seed, chips.chips, ("temperature",))
        with torch.no_grad():
            logits = model(batch.image).detach()
        draws = keys.uniform((3,))
        for i in range(len(batch)):
            top, left = (int(draws[i, j] * max(batch.label.shape[j] - LOCAL_SIDE + 1, 1)) for j in (1, 2))
            at = (slice(i, i + 1), ..., slice(top, top + LOCAL_SIDE), slice(left, left + LOCAL_SIDE))
            valid = batch.valid[at]
            if valid.any():
                label = batch.label[at].masked_fill(~valid, 0)
                kept.append(
                    _Crop(float(draws[i, 0]), logits[at].clone(), batch.image[at].clone(), label, valid.clone())
                )
        kept = sorted(kept, key=lambda crop: crop.draw)[:LOCAL_CROPS]
    if not kept:
        raise DataError("temperature: expected valid pixels, got none; give chips with labels")
    return kept


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

"""How sensitive a network is to each corruption: curves of the kernel distance of its features, at few severities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from seawall.arrays import DoubleArray
from seawall.defenses.equal_harm import equal_harm_severities
from seawall.defenses.kernel_distance import kernel_distance
from seawall.errors import DataError
from seawall.metrics.counts import confusion
from seawall.metrics.ratios import ConfusionCounts, miou
from seawall.modules import eval_mode, feature_layers, forward_with_maps, masked_map_mean, named_layer, to_device_of
from seawall.rng import Keys
from seawall.types import Batch, Corruption


@dataclass(frozen=True)
class SensitivityPoint:
    """What a corruption does at one severity.

    Args:
        severity: In [0, 1].
        level: The physical quantity that it stands for.
        distance: Kernel distance between the features of the corrupted and of the clean chips.
        miou: Mean IoU over the classes, pooled over the chips; None without valid pixels.
    """

    severity: float
    level: float
    distance: float
    miou: float | None


@dataclass(frozen=True)
class SensitivityCurve:
    """What a corruption does to a network.

    Args:
        corruption: Its text, such as "haze".
        points: Measured severities, ascending; the first is 0.
        severities: Severities of equal harm, ascending; the last is 1.
    """

    corruption: str
    points: tuple[SensitivityPoint, ...]
    severities: tuple[float, ...]


class SensitivityProbe:
    """Measures a network on a sample of chips, in eval mode, and counts the passes of the sample.

    Features are the maps of a layer, averaged over the seen pixels of each chip, over their root mean square on the clean
    sample: the terms of the kernel are then in balance whatever the scale of the network. No label enters the distance.

    Args:
        model: The network.
        sample: Chips; those without seen pixels are left out.
        seed: Seed of what the corruptions draw.
        layer: Name of the layer; "" is the last one of the coarsest grid, where an encoder ends.
        extractor: Another network of the same bands to take the features from; None is the model itself.

    Raises:
        DataError: Fewer than two chips have seen pixels, or the layer gives no maps.
        UsageError: There is no such layer.
    """

    def __init__(
        self, model: nn.Module, sample: Iterable[Batch], seed: int, *, layer: str = "", extractor: nn.Module | None = None
    ) -> None:  # fmt: skip
        self.model, self.extractor, self.seed, self.passes = model, extractor or model, seed, 0
        self.sample = [to_device_of(model, part) for part in map(_with_seen_pixels, sample) if len(part)]
        if sum(map(len, self.sample)) < 2:
            raise DataError("sensitivity: expected at least two chips with seen pixels, got fewer; use more chips")
        name, self.layer = deepest_layer(self.extractor, self.sample[0], layer)
        self.features = f"{name} of {'the model itself' if extractor is None else type(extractor).__name__}"
        self.scale = 1.0
        self.clean, self.clean_miou = self._look(self.sample)
        self.scale = float(np.sqrt(np.square(self.clean).mean())) or 1.0
        self.clean = self.clean / self.scale

    def point(self, corruption: Corruption, severity: float) -> SensitivityPoint:
        """Measure a corruption at one severity."""
        parts = [
            corruption(part, severity, Keys(self.seed, part.chips).fold("sensitivity")) if severity else part
            for part in self.sample
        ]
        features, value = self._look(parts)
        left = np.array([bool(seen.any()) for part in parts for seen in part.seen])
        distance = kernel_distance(features[left], self.clean[left], paired=True)
        return SensitivityPoint(severity, corruption.level(severity), distance, value)

    def curve(
        self, name: str, corruption: Corruption, levels: int = 5, tolerance: float = 0.05, most: int = 8
    ) -> SensitivityCurve:
        """Measure the curve of a corruption, as `equal_harm_severities` asks for its severities."""
        zero = SensitivityPoint(0.0, corruption.level(0.0), 0.0, self.clean_miou)
        points: dict[float, SensitivityPoint] = {0.0: zero}

        def harm(severity: float) -> float:
            points[severity] = self.point(corruption, severity)
            return points[severity].distance

        measured, severities = equal_harm_severities(harm, levels, tolerance, most)
        return SensitivityCurve(name, tuple(points[s] for s in measured), severities)

    def _look(self, parts: Sequence[Batch]) -> tuple[DoubleArray, float | None]:
        """Return features (N, D) and the mean IoU of one pass of the sample."""
        rows, tables = list[DoubleArray](), list[Tensor]()
        with eval_mode(self.model), eval_mode(self.extractor), torch.no_grad():
            for part in parts:
                logits, maps = forward_with_maps(self.extractor, self.layer, part.image)
                if self.extractor is not self.model:
                    logits = self.model(part.image)
                rows.append(masked_map_mean(maps, part.seen).double().cpu().numpy())
                tables.append(confusion(logits.argmax(1), part.label, part.valid, logits.shape[1]).sum(0))
        self.passes += 1
        value = float(miou(ConfusionCounts.of(torch.stack(tables).sum(0).cpu().numpy())))
        return np.concatenate(rows) / self.scale, value if np.isfinite(value) else None


def deepest_layer(model: nn.Module, batch: Batch, name: str = "") -> tuple[str, nn.Module]:
    """Return a module by its name, or the last one of those whose maps have the fewest pixels, without the logits.

    Raises:
        DataError: The model has no feature maps before its logits.
        UsageError: There is no such module.
    """
    if name:
        return name, named_layer(model, name)
    layers = feature_layers(model, batch.image)[:-1]
    if not layers:
        raise DataError(
            f"sensitivity: expected a network with feature maps before its logits, got {type(model).__name__}; name a layer, or give an extractor"
        )
    fewest = min(pixels for _, pixels in layers)
    found = [layer for layer, pixels in layers if pixels == fewest][-1]
    return next(key for key, module in model.named_modules() if module is found), found


def severe_first(points: Sequence[SensitivityPoint]) -> list[SensitivityPoint]:
    """Return points by harm, the lowest mean IoU first; of equal ones the higher severity first."""
    return sorted(points, key=lambda p: (0.0 if p.miou is None else p.miou, -p.severity))


def _with_seen_pixels(batch: Batch) -> Batch:
    kept = batch.seen.flatten(1).any(1).nonzero()[:, 0].tolist()
    return batch if len(kept) == len(batch) else batch.select(kept)

"""The figures of the validation part, which select the weights: IoU on clean and on attacked chips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from seawall.attacks.fgsm import FGSM
from seawall.attacks.pgd import PGD
from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.metrics.counts import confusion
from seawall.modules import to_device_of
from seawall.recipe.sections import RobustnessSection
from seawall.rng import Keys
from seawall.threat.parser import parse_threat
from seawall.training.configuration import MEAN_IOU
from seawall.types import Attack, Batch, SegmentationModel

OVERFITTING_SHARE = 0.5
"""Several steps leave less than this share of the IoU that one step leaves: the network has learned against one step."""

ROBUST_IOU, SINGLE_STEP_IOU, OVERFITTING = "val.robust.iou", "val.fgsm.iou", "val.robust.overfitting"


def metric_names(classes: Sequence[str], robustness: RobustnessSection | None = None) -> list[str]:
    """Return the names of the validation metrics."""
    names = [*classes, "mean"]
    clean = [*(f"val.iou.{name}" for name in classes), MEAN_IOU]
    if robustness is None:
        return clean
    return [*clean, *(f"{kind}.{name}" for kind in (ROBUST_IOU, SINGLE_STEP_IOU) for name in names), OVERFITTING]


def validation_metrics(
    model: nn.Module, chips: ChipFolder, ids: Iterable[str], robustness: RobustnessSection | None = None
) -> dict[str, float | None]:
    """Return the metrics that select the best epoch: IoU per class, pooled over the validation chips, and their mean.

    The IoU of a class that is neither labelled nor predicted is undefined, None; the mean is over the others. With a
    threat there are also those after PGD ("val.robust.iou...") and after one step ("val.fgsm.iou..."), and
    "val.robust.overfitting": 1 where PGD leaves less than half of the mean IoU that one step leaves, else 0. That is
    catastrophic overfitting where the network is trained with single steps.
    """
    ids = tuple(ids)
    found = _pooled_iou(model, chips, ids)
    if robustness is not None:
        pgd = PGD(steps=robustness.steps)
        several = _pooled_iou(model, chips, ids, pgd, robustness.threat)
        single = _pooled_iou(model, chips, ids, FGSM(), robustness.threat)
        both = several[-1], single[-1]
        lost = None if both[0] is None or both[1] is None else float(both[0] < OVERFITTING_SHARE * both[1])
        found = [*found, *several, *single, lost]
    return dict(zip(metric_names(chips.classes, robustness), found, strict=True))


def _pooled_iou(
    model: nn.Module, chips: ChipFolder, ids: Sequence[str], attack: Attack | None = None, threat: str = ""
) -> list[float | None]:
    """Return the IoU of each class, pooled over chips, then the mean of those that are defined."""
    classes = len(chips.classes)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for batch, image in _attacked_chips(model, chips, ids, attack, threat):
        with torch.no_grad():
            pred = model(image).argmax(1).cpu()
        counts += confusion(pred, batch.label.cpu(), batch.valid.cpu(), classes).sum(0)
    hit = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - hit
    iou = [float(h / u) if u else None for h, u in zip(hit, union, strict=True)]
    defined = [value for value in iou if value is not None]
    return [*iou, sum(defined) / len(defined) if defined else None]


def _attacked_chips(
    model: nn.Module, chips: ChipFolder, ids: Sequence[str], attack: Attack | None, threat: str
) -> Iterator[tuple[Batch, Tensor]]:
    for stored in whole_chips(chips, ids):
        batch = to_device_of(model, stored)
        if attack is None:
            yield batch, batch.image
            continue
        net = cast(SegmentationModel, model)
        yield batch, attack(net, batch, parse_threat(threat, net.spec), Keys(0, batch.chips).fold("validation"))

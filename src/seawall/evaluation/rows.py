"""The records of one chip under one case, measure by measure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seawall.evaluation.case import MEASURES, Case
from seawall.metrics.boundary import boundary_counts, edge_band
from seawall.metrics.calibration import calibration_counts
from seawall.metrics.counts import SIZE_BINS, SizedObjects
from seawall.metrics.srip import srip_scores, to_gray
from seawall.records import Record, RecordLog, ThreatFacts
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel

NOT_PHYSICAL = "not-physical"
"""Flag of a budget on pictures of unknown stretch, which has no size in reflectance or dB."""

ChipRecords = Callable[[int, Record], Iterator[Record]]
"""Called with the index of a chip in the batch and its record without metric and value."""


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation of one model.

    Args:
        recipe: Recipe id.
        name: Model name in the rows.
        groups: Group of each chip; a chip that is not there is its own group.
        seed: Seed of all randomness.
        bins: Confidence bins of the calibration.
        bodies: Classes whose connected objects are counted by size; "water" or else all but the first.
        pixel_area_m2: One area, or one per chip; gsd squared where None.
        show: Chips to write as examples.
        examples: Folder of the examples.
    """

    recipe: str
    name: str
    groups: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    bins: int = 15
    bodies: tuple[str, ...] | None = None
    pixel_area_m2: float | Mapping[str, float] | None = None
    show: Collection[str] = ()
    examples: Path | None = None

    def done(self, log: RecordLog, case: Case, chip: str, classes: int) -> bool:
        """Return whether the log has all records of a chip under a case."""
        where = (self.recipe, self.name, case.method, case.threat_text, chip, self.groups.get(chip, chip))
        return all((*where, MEASURES[m], k) in log for m in case.applicable(classes) for k in self._ends(m))

    def row(self, case: Case, chip: str, flags: tuple[str, ...] = (), seconds: float = 0.0) -> Record:
        """Return the record of a chip without metric and value."""
        group = self.groups.get(chip, chip)
        threat = case.threat.facts if isinstance(case.threat, ThreatModel) else ThreatFacts()
        unphysical = (NOT_PHYSICAL,) if threat.unit == "stretched" else ()
        return Record(
            self.recipe, self.name, case.method, case.threat_text, chip, group, "", "", None, 0, (*case.flags, *flags, *unphysical), seconds,
            *threat, *case.corruption_facts,
        )  # fmt: skip

    def area(self, chip: str, gsd_m: float) -> float:
        """Return the area of a pixel in km2."""
        area = self.pixel_area_m2
        found = area.get(chip) if isinstance(area, Mapping) else area
        return (gsd_m**2 if found is None else found) / 1e6

    def _ends(self, measure: str) -> tuple[str, ...]:
        return self.bodies or () if measure == "sizes" else ("",)


class BatchCache:
    """A batch on its device, and the connected objects of its labels, which all cases share."""

    def __init__(self, batch: Batch, settings: EvaluationSettings) -> None:
        self.batch = batch
        self.settings = settings
        self._objects: dict[tuple[str, int], SizedObjects] = {}

    def objects(self, chip: str, klass: int) -> SizedObjects:
        """Return the connected objects of a class on a chip, found once for all cases."""
        if (chip, klass) not in self._objects:
            i = self.batch.chips.index(chip)
            truth = (self.batch.label[i] == klass).cpu().numpy()
            self._objects[chip, klass] = SizedObjects.of(truth, self.batch.valid[i].cpu().numpy())
        return self._objects[chip, klass]


def _srip_records(
    model: SegmentationModel, cache: BatchCache, batch: Batch, logits: Tensor, pred: Tensor
) -> ChipRecords:
    water = model.spec.klass("water") if "water" in model.spec.classes else 1
    share = torch.softmax(logits.float(), 1)[:, water].cpu().numpy()
    truth = (batch.label == water).cpu().numpy().astype(np.float32)
    valid = batch.valid.cpu().numpy()

    def rows(i: int, base: Record) -> Iterator[Record]:
        scores = srip_scores(to_gray(share[i]), to_gray(truth[i]), valid[i])
        pixels = int(valid[i].sum())
        for name in sorted(scores, key=lambda n: n == "accuracy"):
            yield base.measured(f"srip.{name}", scores[name], pixels)

    return rows


def _calibration_records(
    model: SegmentationModel, cache: BatchCache, batch: Batch, logits: Tensor, pred: Tensor
) -> ChipRecords:
    whole = calibration_counts(logits, batch.label, batch.valid, cache.settings.bins)
    edge = calibration_counts(logits, batch.label, edge_band(batch.label, batch.valid), cache.settings.bins)

    def rows(i: int, base: Record) -> Iterator[Record]:
        for prefix, held in (("calib", whole), ("calib.edge", edge)):
            for m in np.flatnonzero(held.count[i]):
                n = int(held.count[i, m])
                for kind in ("count", "correct", "confidence"):
                    yield base.measured(f"{prefix}.{kind}.{m}", float(getattr(held, kind)[i, m]), n)
        pixels = int(whole.count[i].sum())
        yield base.measured("calib.nll", float(whole.nll[i]), pixels)
        yield base.measured("calib.brier", float(whole.brier[i]), pixels)
        yield base.measured("calib.entropy", float(whole.entropy[i]), pixels)
        yield base.measured("calib.pixels", float(pixels), pixels)

    return rows


def _boundary_records(
    model: SegmentationModel, cache: BatchCache, batch: Batch, logits: Tensor, pred: Tensor
) -> ChipRecords:
    classes = model.spec.classes
    counts = boundary_counts(pred, batch.label, batch.valid, len(classes))

    def rows(i: int, base: Record) -> Iterator[Record]:
        pixels = int(batch.valid[i].sum())
        for klass, (tp, fp, fn) in zip(classes, counts[i].tolist(), strict=True):
            for name, value in (("tp", tp), ("fp", fp), ("fn", fn)):
                yield base.measured(f"boundary.{name}", float(value), pixels, klass)
        yield base.measured("boundary.pixels", float(pixels), pixels)

    return rows


def _object_size_records(
    model: SegmentationModel, cache: BatchCache, batch: Batch, logits: Tensor, pred: Tensor
) -> ChipRecords:
    predicted = pred.cpu().numpy()
    settings = cache.settings

    def rows(i: int, base: Record) -> Iterator[Record]:
        km2 = settings.area(base.chip, model.spec.gsd_m)
        for klass in settings.bodies or ():
            k = model.spec.klass(klass)
            objects = cache.objects(base.chip, k)
            yield from _size_bin_records(objects, predicted[i] == k, klass, km2, base)

    return rows


MEASURE_RECORDS: Mapping[str, Callable[[SegmentationModel, BatchCache, Batch, Tensor, Tensor], ChipRecords]] = {
    "srip": _srip_records,
    "calibration": _calibration_records,
    "boundary": _boundary_records,
    "sizes": _object_size_records,
    "hiding": lambda model, cache, batch, logits, pred: lambda i, base: iter(()),
    "counts": lambda model, cache, batch, logits, pred: lambda i, base: iter(()),
}


def _size_bin_records(
    objects: SizedObjects, predicted: NDArray[np.bool_], klass: str, km2: float, base: Record
) -> Iterator[Record]:
    counts = objects.counts(predicted)
    for b, name in enumerate(SIZE_BINS):
        tp, fp, fn = (int(counts[part][b]) for part in ("tp", "fp", "fn"))
        if not tp + fp + fn:
            continue
        for part, value in (("tp", tp), ("fp", fp), ("fn", fn), ("bodies", int(objects.per_bin[b]))):
            yield base.measured(f"size.{part}.{name}", float(value), tp + fn, klass)
        if tp + fn:
            yield base.measured(f"size.recall.{name}", tp / (tp + fn), tp + fn, klass)
    pixels = int(objects.valid.sum())
    lost, invented = (float(counts[part].sum()) * km2 for part in ("fn", "fp"))
    yield base.measured("area.lost_km2", lost, pixels, klass)
    yield base.measured("area.invented_km2", invented, pixels, klass)
    yield base.measured("area.true_km2", float(objects.truth.sum()) * km2, pixels, klass)


def fooled_and_preserved(before: Tensor, after: Tensor, valid: Tensor, klass: int) -> list[tuple[int, int, int, int]]:
    """Return per image: pixels of the class that were fooled, all of the class, others preserved, all others.

    Predictions alone count: a pixel is of the class where the clean image was predicted so.

    Example:
        >>> row = lambda *values: torch.tensor([[list(values)]])
        >>> fooled_and_preserved(row(1, 1, 0, 0), row(1, 0, 0, 1), row(1, 1, 1, 1).bool(), 1)
        [(1, 2, 1, 2)]
    """
    own, other = (before == klass) & valid, (before != klass) & valid
    parts = (own & (after != klass), own, other & (after == before), other)
    sums = torch.stack([part.flatten(1).sum(1) for part in parts], 1).tolist()
    return [(a, b, c, d) for a, b, c, d in sums]


def hiding_values(
    model: SegmentationModel, batch: Batch, pred: Tensor, klass: str
) -> list[tuple[tuple[str, str, float | None, int], ...]]:
    """Return metric, class, value and n of the records of each image. A chip without the class has no shares."""
    with torch.no_grad():
        before = model(batch.image).argmax(1)
    found: list[tuple[tuple[str, str, float | None, int], ...]] = []
    for fooled, own, kept, others in fooled_and_preserved(before, pred, batch.valid, model.spec.klass(klass)):
        found.append(
            (
                ("fooled", klass, fooled / own if own else None, own),
                ("preserved", klass, kept / others if own and others else None, others if own else 0),
                ("hiding.pixels", "", float(own + others), own + others),
            )
        )
    return found


def hiding_records(base: Record, values: tuple[tuple[str, str, float | None, int], ...]) -> Iterator[Record]:
    """Yield the records of one chip."""
    for metric, klass, value, n in values:
        yield base.measured(metric, value, n, klass)

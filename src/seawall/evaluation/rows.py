"""The rows of one chip under one case, measure by measure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seawall.evaluation.case import MEASURES, Case
from seawall.metrics.calibration import calibration_counts, edge_band
from seawall.metrics.object_sizes import NAMES, Bodies
from seawall.metrics.srip import gray, srip_scores
from seawall.records import Record, RecordLog, ThreatFacts
from seawall.threat.model import ThreatModel
from seawall.types import Batch, SegmentationModel

NOT_PHYSICAL = "not-physical"
"""Flag of a budget on pictures of unknown stretch: it has no size in reflectance or dB."""

Rows = Callable[[int, Record], Iterator[Record]]
"""Called with the place of a chip in the batch and the row that only lacks what was measured."""


@dataclass(frozen=True)
class Setting:
    """What all cells of a matrix row share.

    Args:
        recipe: Recipe id.
        name: Model name in the rows.
        groups: Group of each chip; a chip that is not there is its own group.
        seed: Seed of all randomness.
        bins: Confidence bins of the calibration.
        bodies: Classes whose bodies are sorted by size; "water" or else all but the first.
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
        """Tell whether the log has all that a case measures of a chip."""
        where = (self.recipe, self.name, case.method, case.spoken, chip, self.groups.get(chip, chip))
        return all((*where, MEASURES[m], k) in log for m in case.applicable(classes) for k in self._ends(m))

    def row(self, case: Case, chip: str, flags: tuple[str, ...] = (), seconds: float = 0.0) -> Record:
        """Return a row of a chip that only lacks what was measured."""
        group = self.groups.get(chip, chip)
        said = case.threat.facts if isinstance(case.threat, ThreatModel) else ThreatFacts()
        unphysical = (NOT_PHYSICAL,) if said.unit == "stretched" else ()
        return Record(
            self.recipe, self.name, case.method, case.spoken, chip, group, "", "", None, 0, (*case.flags, *flags, *unphysical), seconds,
            *said,
        )  # fmt: skip

    def area(self, chip: str, gsd_m: float) -> float:
        """Return the area of a pixel in km2."""
        area = self.pixel_area_m2
        found = area.get(chip) if isinstance(area, Mapping) else area
        return (gsd_m**2 if found is None else found) / 1e6

    def _ends(self, measure: str) -> tuple[str, ...]:
        return self.bodies or () if measure == "sizes" else ("",)


class Ground:
    """A batch on its device, and what of it does not depend on the case."""

    def __init__(self, batch: Batch, setting: Setting) -> None:
        self.batch = batch
        self.setting = setting
        self._bodies: dict[tuple[str, int], Bodies] = {}

    def bodies(self, chip: str, klass: int) -> Bodies:
        """Return the bodies of a class on a chip, found once for all cases."""
        if (chip, klass) not in self._bodies:
            i = self.batch.chips.index(chip)
            truth = (self.batch.label[i] == klass).cpu().numpy()
            self._bodies[chip, klass] = Bodies.of(truth, self.batch.valid[i].cpu().numpy())
        return self._bodies[chip, klass]


def _srip(model: SegmentationModel, ground: Ground, batch: Batch, logits: Tensor, pred: Tensor) -> Rows:
    water = model.spec.klass("water") if "water" in model.spec.classes else 1
    share = torch.softmax(logits.float(), 1)[:, water].cpu().numpy()
    truth = (batch.label == water).cpu().numpy().astype(np.float32)
    valid = batch.valid.cpu().numpy()

    def rows(i: int, base: Record) -> Iterator[Record]:
        scores = srip_scores(gray(share[i]), gray(truth[i]), valid[i])
        pixels = int(valid[i].sum())
        for name in sorted(scores, key=lambda n: n == "accuracy"):
            yield base.measured(f"srip.{name}", scores[name], pixels)

    return rows


def _calibration(model: SegmentationModel, ground: Ground, batch: Batch, logits: Tensor, pred: Tensor) -> Rows:
    whole = calibration_counts(logits, batch.label, batch.valid, ground.setting.bins)
    edge = calibration_counts(logits, batch.label, edge_band(batch.label, batch.valid), ground.setting.bins)

    def rows(i: int, base: Record) -> Iterator[Record]:
        for prefix, held in (("calib", whole), ("calib.edge", edge)):
            for m in np.flatnonzero(held.count[i]):
                n = int(held.count[i, m])
                for kind in ("count", "correct", "confidence"):
                    yield base.measured(f"{prefix}.{kind}.{m}", float(getattr(held, kind)[i, m]), n)
        pixels = int(whole.count[i].sum())
        yield base.measured("calib.nll", float(whole.nll[i]), pixels)
        yield base.measured("calib.brier", float(whole.brier[i]), pixels)
        yield base.measured("calib.pixels", float(pixels), pixels)

    return rows


def _sizes(model: SegmentationModel, ground: Ground, batch: Batch, logits: Tensor, pred: Tensor) -> Rows:
    says = pred.cpu().numpy()
    setting = ground.setting

    def rows(i: int, base: Record) -> Iterator[Record]:
        km2 = setting.area(base.chip, model.spec.gsd_m)
        for klass in setting.bodies or ():
            k = model.spec.klass(klass)
            bodies = ground.bodies(base.chip, k)
            yield from _size_rows(bodies, says[i] == k, klass, km2, base)

    return rows


PARTS: Mapping[str, Callable[[SegmentationModel, Ground, Batch, Tensor, Tensor], Rows]] = {
    "srip": _srip,
    "calibration": _calibration,
    "sizes": _sizes,
    "hiding": lambda model, ground, batch, logits, pred: lambda i, base: iter(()),
    "counts": lambda model, ground, batch, logits, pred: lambda i, base: iter(()),
}


def _size_rows(bodies: Bodies, says: NDArray[np.bool_], klass: str, km2: float, base: Record) -> Iterator[Record]:
    counts = bodies.counts(says)
    for b, name in enumerate(NAMES):
        tp, fp, fn = (int(counts[part][b]) for part in ("tp", "fp", "fn"))
        if not tp + fp + fn:
            continue
        for part, value in (("tp", tp), ("fp", fp), ("fn", fn), ("bodies", int(bodies.bodies[b]))):
            yield base.measured(f"size.{part}.{name}", float(value), tp + fn, klass)
        if tp + fn:
            yield base.measured(f"size.recall.{name}", tp / (tp + fn), tp + fn, klass)
    pixels = int(bodies.valid.sum())
    lost, invented = (float(counts[part].sum()) * km2 for part in ("fn", "fp"))
    yield base.measured("area.lost_km2", lost, pixels, klass)
    yield base.measured("area.invented_km2", invented, pixels, klass)
    yield base.measured("area.true_km2", float(bodies.truth.sum()) * km2, pixels, klass)


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


def hiding_rows(
    model: SegmentationModel, batch: Batch, pred: Tensor, klass: str
) -> list[tuple[tuple[str, str, float | None, int], ...]]:
    """Return per image what its rows say: metric, class, value, n. A chip without the class has no shares."""
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


def hiding_records(base: Record, said: tuple[tuple[str, str, float | None, int], ...]) -> Iterator[Record]:
    """Yield the rows of one chip."""
    for metric, klass, value, n in said:
        yield base.measured(metric, value, n, klass)

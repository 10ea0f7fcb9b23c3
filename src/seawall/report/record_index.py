"""Look up records and aggregates by model, method, threat, metric and class; each table cell keeps the key of its record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from seawall.errors import DataError
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.consistency import with_consistency_flags
from seawall.metrics.corruption_error import CorruptionError, corruption_errors
from seawall.metrics.worst_case import WORST, worst_case
from seawall.records import Record
from seawall.report.formatting import DASH, ThreatLabel, count_text, ratio_text
from seawall.report.run_facts import EstimatorFacts, NoiseFacts, SupervisionFacts

DISPLAY_NAMES = {
    "fcn-8s": "FCN-8s", "fcn-16s": "FCN-16s", "fcn-32s": "FCN-32s", "fcn-alexnet": "FCN-AlexNet", "segnet": "SegNet", "segformer": "SegFormer",
    "pspnet": "PSPNet", "linknet": "LinkNet", "deeplabv3+": "DeepLabV3+", "unet++": "U-Net++", "k-means": "k-means", "gaussian-mixture": "Gaussian mixture",
    "region-growing": "region growing", "split-and-merge": "split and merge", "patch-classifier": "patch classifier", "dense-labeling": "dense labeling", "unet": "U-Net", "dense-unet": "dense U-Net", "index-unet": "index U-Net", "anchored-unet": "anchored U-Net", "ndwi": "NDWI", "mndwi": "MNDWI", "awei_nsh": "AWEI", "awei_sh": "AWEI shadow",
    "awei-nsh": "AWEI", "awei-sh": "AWEI shadow", "otsu": "Otsu", "fgsm": "FGSM", "bim": "BIM", "pgd": "PGD", "apgd": "APGD",
    "segpgd": "SegPGD", "cospgd": "CosPGD", "dag": "DAG", "sea": "SEA", "clean": "clean", "random": "random noise", "none": "none hurts",
    "sigma0_db": "dB (sigma nought)", "gamma0_db": "dB (gamma nought)",
}  # fmt: skip


def display_name(name: str) -> str:
    """Return the name of a method, a unit or an architecture as readers write it, such as U-Net.

    Example:
        >>> display_name("unet"), display_name("mine")
        ('U-Net', 'mine')
    """
    return DISPLAY_NAMES.get(name, name)


CLEAN_METHOD = ("clean", "")
MeasurementKey = tuple[str, str, str]
"""Model, method, threat."""


@dataclass(frozen=True)
class ChipCounts:
    """True positives, false positives and false negatives of one class on one chip, in pixels."""

    chip: str
    group: str
    tp: float
    fp: float
    fn: float

    @property
    def union(self) -> float:
        """Pixels that are of the class in the label, the prediction or both."""
        return self.tp + self.fp + self.fn

    @property
    def iou(self) -> float | None:
        """Intersection over union; None where neither label nor prediction has the class."""
        return self.tp / self.union if self.union else None


@dataclass(frozen=True)
class TableCell:
    """One number of a table: its text, its interval, its description, the key of its record, its flags."""

    text: str
    title: str
    key: str = ""
    low: str = ""
    high: str = ""
    flags: tuple[str, ...] = ()
    best: bool = False


class RecordIndex:
    """Records in the order of the file, and the aggregates that are computed from their counts.

    Args:
        records: Rows of a run; aggregates are computed from the counts among them.
        klass: The class that figures of one class are about.
        noises: The label noise of each network that was trained on noisy labels, by its name.
        uncertain: The network and the estimator of each model that is one around a network, by its name.
        reference: The baseline that corruption errors are relative to; "" for none.
        supervision: What is known of the labels of each network that was trained on a part of them, by its name.
    """

    def __init__(
        self, records: Iterable[Record], klass: str, noises: Mapping[str, NoiseFacts] | None = None,
        uncertain: Mapping[str, EstimatorFacts] | None = None, reference: str = "",
        supervision: Mapping[str, SupervisionFacts] | None = None,
    ) -> None:  # fmt: skip
        given = with_consistency_flags(records)
        self.klass = klass
        self.noises = noises or {}
        self.uncertain = uncertain or {}
        self.reference = reference
        self.supervision = supervision or {}
        self._rows: dict[tuple[str, ...], Record] = {}
        self.rows = (*aggregate_records(given), *worst_case(given), *given)
        for record in self.rows:
            self._rows[_lookup_key(record)] = record
        self.measured = tuple(r for r in given if r.method != WORST)

    def threat(self, text: str) -> ThreatLabel:
        """Return a threat with the fields of its rows; its text alone where the rows have no fields."""
        return self._threats.get(text, ThreatLabel(text))

    @cached_property
    def _threats(self) -> Mapping[str, ThreatLabel]:
        return {r.threat: ThreatLabel(r.threat, r.adversary) for r in self.measured if r.norm}

    @cached_property
    def corrupted(self) -> Mapping[str, Sequence[CorruptionError]]:
        """What each corruption costs each model that was corrupted, by model; the last entry is the mean.

        Empty for a run that was stopped before all models were measured on the same chips.
        """
        models = dict.fromkeys(r.model for r in self.measured if r.severity)
        try:
            return {m: corruption_errors(self.measured, m, self.reference, self.klass) for m in models}
        except DataError:
            return {}

    @cached_property
    def noisy_models(self) -> Mapping[str, NoiseFacts]:
        """Networks that were trained on noisy labels, by base model, kind of noise and rate."""
        return _noisy_models(self.models, self.noises)

    def display_name(self, model: str) -> str:
        """Return a model's name for readers, with the noise of its training labels where there was one."""
        if model in self.uncertain:
            around = self.uncertain[model]
            return f"{self.display_name(around.model)} with {around.estimator}"
        if model not in self.noises:
            return display_name(model)
        noise = self.noises[model]
        return f"{display_name(noise.model)}, {noise.label}"

    def record(
        self, setup: MeasurementKey, metric: str, klass: str = "", group: str = "", chip: str = ""
    ) -> Record | None:
        """Return the row of a metric, or None where it was not measured."""
        return self._rows.get((*setup, chip, group, metric, klass))

    def value(self, setup: MeasurementKey, metric: str, klass: str = "", group: str = "") -> float | None:
        """Return the value of a metric, None where it was not measured or is undefined."""
        found = self.record(setup, metric, klass, group)
        return found.value if found else None

    @cached_property
    def setups(self) -> tuple[MeasurementKey, ...]:
        """Every (model, method, threat) that was measured, in the order of the file, without the worst case."""
        return tuple(dict.fromkeys((r.model, r.method, r.threat) for r in self.measured))

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Model names, in the order of the file."""
        return tuple(dict.fromkeys(model for model, _, _ in self.setups))

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Groups with a clean figure, sorted."""
        return tuple(sorted({r.group for r in self.measured if r.group and r.method == "clean"}))

    @cached_property
    def _counts(self) -> Mapping[tuple[MeasurementKey, str], Mapping[str, ChipCounts]]:
        counts: dict[tuple[MeasurementKey, str], dict[str, ChipCounts]] = {}
        for r in self.measured:
            if r.chip and r.metric in ("tp", "fp", "fn") and r.value is not None:
                chips = counts.setdefault(((r.model, r.method, r.threat), r.klass), {})
                c = chips.get(r.chip, ChipCounts(r.chip, r.group, 0, 0, 0))
                sums = {"tp": c.tp, "fp": c.fp, "fn": c.fn, r.metric: r.value}
                chips[r.chip] = ChipCounts(r.chip, r.group, sums["tp"], sums["fp"], sums["fn"])
        return counts

    def counts(self, setup: MeasurementKey, klass: str = "") -> Mapping[str, ChipCounts]:
        """Return the counts of every chip, for the page's class unless another is named."""
        return self._counts.get((setup, klass or self.klass), {})

    def chip_iou(self, setup: MeasurementKey, chip: str) -> TableCell:
        """Return the IoU of one chip, from its counts."""
        counts, row = self.counts(setup).get(chip), self.record(setup, "tp", self.klass, chip=chip)
        if counts is None or row is None:
            return TableCell(DASH, "not measured in this run")
        what = f"tp / (tp + fp + fn) of chip {chip} under {setup[1]} {setup[2]}".rstrip()
        return TableCell(ratio_text(counts.iou), what, record_key_text(row), flags=self.flags(setup))

    def class_of(self, metric: str) -> str:
        """Return the class that a metric is looked up with: the page's class, or "" for a metric of all classes."""
        per_class = ("iou", "boundary_iou", "f1", "precision", "recall", "dice", "specificity", "size", "area")
        return self.klass if metric.split(".")[0] in per_class else ""

    def seconds(self, setup: MeasurementKey) -> float | None:
        """Return the seconds over all chips; rows of one chip share one measurement."""
        spent: dict[str, float] = {}
        for r in self.measured:
            if (r.model, r.method, r.threat) == setup and r.chip:
                spent[r.chip] = max(spent.get(r.chip, 0.0), r.seconds)
        total = sum(spent.values())
        return total or None

    @cached_property
    def _flags(self) -> Mapping[MeasurementKey, tuple[str, ...]]:
        found: dict[MeasurementKey, dict[str, None]] = {}
        for r in self.rows:
            if r.flags:
                found.setdefault((r.model, r.method, r.threat), {}).update(dict.fromkeys(r.flags))
        return {setup: tuple(names) for setup, names in found.items()}

    def flags(self, setup: MeasurementKey) -> tuple[str, ...]:
        """Return the flags of all rows of a setup; the worst case has those of all attacks it is taken from."""
        return self._flags.get(setup, ())

    @property
    def flagged(self) -> Mapping[MeasurementKey, tuple[str, ...]]:
        """Every setup that carries a flag, the worst case included."""
        return self._flags

    def cell(
        self,
        setup: MeasurementKey,
        metric: str,
        klass: str | None = None,
        group: str = "",
        format_value: Callable[[float | None], str] = ratio_text,
    ) -> TableCell:
        """Return a metric as a table cell, with its interval where there is one.

        Args:
            setup: Model, method and threat.
            metric: Name of the metric.
            klass: Name of the class; None takes the page's class, or none for a metric of all classes.
            group: Group of the chips; "" for all.
            format_value: Turns the value and the ends of its interval into text.
        """
        name = self.class_of(metric) if klass is None else klass
        found = self.record(setup, metric, name, group)
        what = " · ".join(part for part in (metric, name, *setup, group) if part)
        if found is None:
            return TableCell(DASH, f"{what}: not measured in this run")
        flags = tuple(dict.fromkeys((*found.flags, *self.flags(setup))))
        if found.value is None:
            return TableCell(DASH, f"{what}: {undefined_reason(metric)}", record_key_text(found), flags=flags)
        ends = [self.value(setup, f"{metric}.{end}", name, group) for end in ("low", "high")]
        low, high = (format_value(end) if None not in ends else "" for end in ends)
        title = f"{what} · n = {count_text(found.n)}" + (f" · 95 % interval {low} to {high}" if low else "")
        return TableCell(format_value(found.value), title, record_key_text(found), low, high, flags)


def _lookup_key(record: Record) -> tuple[str, ...]:
    """Return the key for looking a record up; rows of a chip are found without their group."""
    group = "" if record.chip else record.group
    return (record.model, record.method, record.threat, record.chip, group, record.metric, record.klass)


def record_key_text(record: Record) -> str:
    """Return a record's key as one string, the value of the page's `data-key` attributes."""
    return "|".join(record.key)


def undefined_reason(metric: str) -> str:
    """Return why a metric has no value."""
    name = metric.split(".")[0]
    reasons = {
        "precision": "undefined, because nothing was predicted as this class",
        "recall": "undefined, because the labels hold no pixel of this class",
        "specificity": "undefined, because the labels hold no pixel outside this class",
        "accuracy": "undefined, because no pixel counts",
    }
    return reasons.get(name, "undefined, because neither labels nor predictions hold this class")


def _noisy_models(models: Sequence[str], noises: Mapping[str, NoiseFacts]) -> dict[str, NoiseFacts]:
    """Return the networks that were trained on noisy labels, by base model, kind of noise and rate.

    Args:
        models: Names in the rows.
        noises: The label noise of each such network, by its name.
    """
    found = {model: noises[model] for model in models if model in noises}
    first = {kind: i for i, kind in reversed(list(enumerate(noise.kind for noise in found.values())))}
    order = sorted(found.items(), key=lambda m: (m[1].model, first[m[1].kind], m[1].rate is None, m[1].rate or 0.0))
    return dict(order)

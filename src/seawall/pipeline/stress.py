"""The verb `stress`: a model under natural perturbations at several severities, beside a threshold model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seawall.chip_context import ChipContext
from seawall.class_names import main_class
from seawall.corruptions.build import corruption_name, fitting_corruptions, parse_corruption
from seawall.corruptions.severity import check_severity
from seawall.errors import ModelError, UsageError
from seawall.evaluation.case import COUNTED, Case, severity_cases
from seawall.inputs import Sample
from seawall.labels.rules import ThresholdRule
from seawall.metrics.corruption_error import CorruptionError, corruption_errors
from seawall.models.water_index import ThresholdNet, WaterIndexThreshold, parse_threshold
from seawall.models.weights import spec_of
from seawall.pipeline.trained_model import flag_facts, flags_of, measure_target, open_target, row_folder
from seawall.result import Failed, MutableRow, Progress
from seawall.types import Corruption, ModelSpec, SegmentationModel, unit_text

MEAN_ROW = "mean"


def stress_model(
    model: Path | SegmentationModel, data: Path | Sample, *, corruption: Sequence[str], severity: Sequence[float], baseline: str,
    out: Path | None, part: str, seed: int, device: str, progress: Progress, key: str = "",
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Measure a model and a baseline on clean and corrupted chips; the table has one row per corruption, the most harmful first.

    Raises:
        UsageError: A corruption is unknown or does not fit the chips, none fits, a severity is not above 0 and at most 1, or
            the baseline is no threshold on an index.
        ModelError: The chips lack a band of the baseline.
    """
    severities = distinct_severities(severity)
    target = open_target(model, data, part, device, key)
    spec = spec_of(target.net)
    chosen = choose_corruptions(corruption, ChipContext.of_model(spec, target.gsd_m))
    cases = [Case(measures=COUNTED), *severity_cases(chosen.corruptions, severities)]
    reference = threshold_model(baseline, spec)
    name, klass = type(target.net).__name__, main_class(spec.classes)
    with row_folder(out, data, Path("runs/stress")) as home:
        rows = measure_target(target, cases, home, seed, progress, name=name)
        if reference is not None:
            beside = replace(target, net=reference.net)
            rows += measure_target(beside, cases, home, seed, progress, name=reference.name)
    errors = corruption_errors(rows, name, reference.name if reference else "", klass)
    facts: MutableRow = {
        "class": klass,
        "baseline": reference.name if reference else "none fits these chips",
        **target.facts,
    }
    if home.exists():
        facts["rows"] = str(home / "records.jsonl")
    facts |= {f"left out {refused}": reason for refused, reason in chosen.refused.items()}
    return {**facts, **flag_facts(flags_of(rows))}, error_table(errors, severities), ()


@dataclass(frozen=True)
class ChosenCorruptions:
    """Corruptions by the name that the rows give them, and those that do not fit the chips, with the reason."""

    corruptions: Mapping[str, Corruption]
    refused: Mapping[str, str]


def choose_corruptions(texts: Sequence[str], chips: ChipContext) -> ChosenCorruptions:
    """Return the named corruptions, or without names every registered one that fits the chips.

    Raises:
        UsageError: A named corruption is unknown, does not fit or is named twice, or none fits.
    """
    if not texts:
        fit, refused = fitting_corruptions(chips)
        if not fit:
            raise UsageError(
                f"stress: expected a corruption that fits chips in {unit_text(chips.unit)}, got none; see `seawall methods --kind corruption`"
            )
        return ChosenCorruptions(fit, refused)
    names = [corruption_name(text) for text in texts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"corruption: expected each once, got {twice[0]!r} twice; leave one out")
    return ChosenCorruptions({name: parse_corruption(name, chips) for name in names}, {})


def distinct_severities(given: Sequence[float]) -> tuple[float, ...]:
    """Return the severities in ascending order, each once.

    Raises:
        UsageError: There is none, or one is not above 0 and at most 1; 0 is measured in any case, as the clean images.
    """
    found = tuple(sorted({check_severity("severity", float(one)) for one in given}))
    if not found or not found[0]:
        raise UsageError(
            f"severity: expected above 0 and at most 1, got {list(given)}; the clean images are measured in any case"
        )
    return found


@dataclass(frozen=True)
class NamedThreshold:
    """A threshold model and its name in the rows, such as "mndwi > 0"."""

    name: str
    net: ThresholdNet


def threshold_model(text: str, spec: ModelSpec) -> NamedThreshold | None:
    """Return the threshold model of a text such as "mndwi > 0"; of "" the first index that fits the bands, or None.

    Raises:
        UsageError: The text is no fixed threshold on a water index.
        ModelError: The bands, classes or unit are not the index's.
    """
    settings = parse_threshold("baseline", text) if text else WaterIndexThreshold()
    try:
        net = settings(spec)
    except ModelError:
        if text:
            raise
        return None
    return NamedThreshold(str(ThresholdRule(net.index, float(net.threshold))), net)


def error_table(errors: Sequence[CorruptionError], severities: Sequence[float]) -> list[MutableRow]:
    """Return a row per corruption, the most harmful first, and their mean as the last row."""
    each, mean = sorted(errors[:-1], key=lambda e: -(e.drop.value if e.drop.value is not None else -1.0)), errors[-1:]
    return [_error_row(entry, severities) for entry in (*each, *mean)]


def _error_row(entry: CorruptionError, severities: Sequence[float]) -> MutableRow:
    worst = entry.levels[-1] if entry.levels else None
    level = f"{worst.quantity} = {worst.level:g} {worst.level_unit}".rstrip() if worst else ""
    return {
        "corruption": entry.corruption or MEAN_ROW,
        "clean": entry.clean.value,
        **{f"at {severity:g}": iou.value for severity, iou in zip(severities, entry.iou, strict=True)},
        "drop": entry.drop.value, "drop.low": entry.drop.low, "drop.high": entry.drop.high,
        "ce": entry.error.value, "ce.low": entry.error.low, "ce.high": entry.error.high,
        "relative": entry.relative_error.value, "relative.low": entry.relative_error.low,
        "relative.high": entry.relative_error.high,
        "kept": entry.kept, "flags": ", ".join(entry.flags), "worst level": level,
    }  # fmt: skip

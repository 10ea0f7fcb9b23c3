"""The section on calibration: reliability diagrams and calibration errors."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.metrics.worst_case import WORST
from seawall.report.attack_effects import attacked_models, headline_budget
from seawall.report.charts import ReliabilityCurve, reliability_diagram, series_color
from seawall.report.elements import Chart, PageBlock, Section, Table, table_row
from seawall.report.formatting import ratio_text
from seawall.report.record_index import CLEAN_METHOD, MeasurementKey, RecordIndex, display_name

MAX_BINS = 100
MAX_CURVES = 5
"""Curves of one reliability diagram; of further setups only the table."""


def calibration_section(index: RecordIndex) -> Section | None:
    """Show accuracy against confidence for every setup whose calibration was measured; None where there is none."""
    setups = [s for s in index.setups if reliability_bins(index, s)]
    if not setups:
        return None
    shown = _diagram_setups(index, setups)
    series = [
        ReliabilityCurve(_setup_name(index, s), tuple(reliability_bins(index, s)), series_color(i), index.flags(s))
        for i, s in enumerate(shown)
    ]
    label = "Reliability diagram: share of right pixels against stated confidence"
    note = "Below the dashed line the model is surer than it should be. Larger marks hold more pixels."
    if len(shown) < len(setups):
        note += " Shown are the models on clean images and the attacks that take most; all are in the table."
    blocks: list[PageBlock] = [Chart("Is it as right as it is sure?", reliability_diagram(series, label), note)]
    metrics = [
        ("ece", "ECE", "expected calibration error: mean gap between confidence and accuracy"),
        ("ece.edge", "ECE at the shore", "within the band along class borders"),
        ("ece.worst_group", "ECE, worst place", "the place where it is largest"),
        ("nll", "NLL", "negative log-likelihood per pixel"),
        ("brier", "Brier", "mean squared error of the probabilities"),
        ("entropy", "Entropy", "mean entropy of the class probabilities, in nats: how unsure the model is"),
    ]
    kept = [m for m in metrics if any(index.record(s, m[0]) for s in setups)]
    if kept:
        rows = tuple(
            table_row(
                _setup_name(index, s),
                index.cell(s, "iou.pooled", klass=index.klass),
                *(index.cell(s, name, klass="", format_value=_three_digits) for name, _, _ in kept),
            )
            for s in setups
        )
        blocks.append(
            Table(
                "Calibration error",
                (("Model", ""), ("IoU", f"of {index.klass}, pooled"), *((head, why) for _, head, why in kept)),
                rows,
                "0 is perfect.",
                folded=len(rows) > 8,
            )
        )
    lead = "A pixel that the model is 90 % sure of should be right nine times out of ten."
    return Section("calibration", "How sure is it?", lead, blocks)


def _diagram_setups(index: RecordIndex, setups: Sequence[MeasurementKey]) -> list[MeasurementKey]:
    """Return the setups of the diagram: the first model clean and under its strongest attacks, then other models."""
    measured = set(setups)
    clean = [s for s in setups if s[1:] == CLEAN_METHOD and s[0] not in index.noises]
    harmful: list[MeasurementKey] = []
    for attacked in attacked_models(index):
        if clean and attacked.model == clean[0][0] and not harmful:
            size = headline_budget(attacked)
            mine = [s for m in attacked.methods if m != WORST and (s := attacked.setup(m, size)) in measured]
            harmful = sorted(mine, key=lambda s: _remaining_iou(index, s))
    return [*clean[:1], *harmful[:2], *clean[1:], *harmful[2:]][:MAX_CURVES] or list(setups[:MAX_CURVES])


def _remaining_iou(index: RecordIndex, setup: MeasurementKey) -> float:
    value = index.value(setup, "iou.pooled", index.klass)
    return 1.0 if value is None else value


def _three_digits(value: float | None) -> str:
    return ratio_text(value, 3)


def _setup_name(index: RecordIndex, setup: MeasurementKey) -> str:
    model, method, threat = setup
    return (
        index.display_name(model)
        if method == CLEAN_METHOD[0]
        else f"{index.display_name(model)}, {display_name(method)}, {index.threat(threat).budget}"
    )


def reliability_bins(index: RecordIndex, setup: MeasurementKey) -> list[tuple[float, float, float]]:
    """Return (confidence, accuracy, share of pixels) of every bin that holds pixels."""
    bins = []
    for i in range(MAX_BINS):
        n, correct, confidence = (
            index.value(setup, f"calib.{part}.{i}") for part in ("count", "correct", "confidence")
        )
        if n and correct is not None and confidence is not None:
            bins.append((confidence / n, correct / n, n))
    whole = sum(n for _, _, n in bins)
    return [(confidence, correct, n / whole) for confidence, correct, n in bins]

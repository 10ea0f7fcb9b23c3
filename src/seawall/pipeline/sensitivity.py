"""The sensitivity of a network to corruptions, on chips of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.data.selection import check_part, select_chips
from seawall.defenses.corrupted_batches import training_corruptions
from seawall.defenses.sensitivity import SensitivityCurve, SensitivityProbe
from seawall.models.weights import spec_of, split_of
from seawall.pipeline.trained_model import load_network
from seawall.result import Failed, MutableRow, Progress
from seawall.types import Corruption


def measure_sensitivity(
    weights: Path, chips: Path, *, corruption: Sequence[str], levels: int, layer: str, extractor: Path | None, part: str,
    seed: int, device: str, progress: Progress,
) -> tuple[MutableRow, list[MutableRow], Failed]:  # fmt: skip
    """Measure the curve of each corruption and choose its severities of equal harm.

    Args:
        weights: The network.
        chips: A chip folder.
        corruption: Texts such as "haze worst=0.4"; empty for those of the sensor that training uses.
        levels: Severities of equal harm per corruption.
        layer: Module whose features are compared; "" for the last one of the coarsest grid.
        extractor: Weights of another network to take the features from.
        part: Which chips to measure on.
        seed: Seed of what the corruptions draw.
        device: Where the networks run.
        progress: Called per corruption.

    Raises:
        UsageError: A corruption is unknown or of another sensor, or there is no such layer.
    """
    check_part(part)
    folder = ChipFolder.open(chips)
    model = load_network(weights, folder, device)
    chosen = select_chips(folder, split_of(model), part)
    other = None if extractor is None else load_network(extractor, folder, device)
    known = training_corruptions(corruption, spec_of(model))
    probe = SensitivityProbe(model, whole_chips(folder, chosen.ids), seed, layer=layer, extractor=other)
    table: list[MutableRow] = []
    for done, (name, one) in enumerate(known.items()):
        progress("sensitivity", done, len(known), name)
        table += _curve_rows(probe.curve(name, one, levels), one)
    progress("sensitivity", len(known), len(known), "")
    facts: MutableRow = {**chosen.facts(), "features": probe.features, "passes": probe.passes}
    return facts, table, []


def _curve_rows(curve: SensitivityCurve, corruption: Corruption) -> list[MutableRow]:
    """Return one row per measured or chosen severity, ascending."""
    met = {point.severity: point for point in curve.points}
    return [
        {
            "corruption": curve.corruption,
            "severity": severity,
            "level": round(corruption.level(severity), 4),
            "of": f"{corruption.quantity} ({corruption.unit})" if corruption.unit else corruption.quantity,
            "equal_harm": curve.severities.index(severity) + 1 if severity in curve.severities else None,
            "distance": met[severity].distance if severity in met else None,
            "miou": met[severity].miou if severity in met else None,
        }
        for severity in sorted({*met, *curve.severities})
    ]

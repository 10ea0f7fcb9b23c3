"""The sensitivity of networks to corruptions: curves on chips of a folder, for the verb and for a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from seawall.data.chips import ChipFolder
from seawall.data.loader import whole_chips
from seawall.data.selection import check_part, select_chips
from seawall.data.splits import Split
from seawall.defenses.corrupted_batches import training_corruptions
from seawall.defenses.sensitivity import SensitivityProbe
from seawall.io import write_atomic
from seawall.models.weights import spec_of, split_of
from seawall.pipeline.context import RunContext
from seawall.pipeline.trained_model import bands_of_model, load_network
from seawall.report.page import write_sensitivity_page
from seawall.report.run_facts import (
    SENSITIVITY_FIGURES,
    SensitivityCurveFacts,
    SensitivityFacts,
    SensitivityPointFacts,
)
from seawall.result import Failed, MutableRow, Progress


def measure_sensitivity(
    weights: Path, chips: Path, *, corruption: Sequence[str], levels: int, layer: str, extractor: Path | None, part: str,
    out: Path | None, seed: int, device: str, progress: Progress,
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
        out: Folder of the page and of the figures; None writes neither.
        seed: Seed of what the corruptions draw.
        device: Where the networks run.
        progress: Called per corruption.

    Raises:
        UsageError: A corruption is unknown or of another sensor, or there is no such layer.
    """
    check_part(part)
    folder = ChipFolder.open(chips).as_seen_by(bands_of_model(weights))
    model = load_network(weights, folder, device)
    chosen = select_chips(folder, split_of(model), part)
    other = None if extractor is None else load_network(extractor, folder, device)
    found = network_sensitivity(
        model, folder, chosen.ids, corruption, levels=levels, layer=layer, extractor=other, seed=seed, progress=progress
    )
    facts: MutableRow = {**chosen.facts(), "features": found.features, "passes": found.passes}
    if out is not None:
        name = weights.parent.name if weights.stem == "model" else weights.stem
        write_atomic(out / SENSITIVITY_FIGURES, json.dumps({name: found.model_dump()}))
        facts["page"] = str(write_sensitivity_page(out, name, f"{weights} on {chips}, {chosen.part}."))
    return facts, [row for curve in found.curves for row in _curve_rows(curve)], []


def network_sensitivity(
    model: nn.Module, chips: ChipFolder, ids: Sequence[str], corruption: Sequence[str], *, levels: int, layer: str,
    extractor: nn.Module | None, seed: int, progress: Progress,
) -> SensitivityFacts:  # fmt: skip
    """Measure a network on chips.

    Raises:
        UsageError: A corruption is unknown or of another sensor, or there is no such layer.
        DataError: Fewer than two chips have seen pixels.
    """
    known = training_corruptions(corruption, spec_of(model))
    probe = SensitivityProbe(model, whole_chips(chips, ids), seed, layer=layer, extractor=extractor)
    curves = []
    for done, (name, one) in enumerate(known.items()):
        progress("sensitivity", done, len(known), name)
        curve = probe.curve(name, one, levels)
        curves.append(
            SensitivityCurveFacts(
                corruption=name, quantity=one.quantity, unit=one.unit,
                points=tuple(SensitivityPointFacts(**asdict(point)) for point in curve.points),
                severities=curve.severities, levels=tuple(one.level(severity) for severity in curve.severities),
            )
        )  # fmt: skip
    progress("sensitivity", len(known), len(known), "")
    return SensitivityFacts(features=probe.features, chips=len(ids), passes=probe.passes, curves=tuple(curves))


def run_sensitivity(run: RunContext, chips: ChipFolder, split: Split, models: Mapping[str, nn.Module]) -> None:
    """Measure the networks of a run on its test part, as the recipe asks; what was measured with these settings stays."""
    settings = run.recipe.sensitivity
    if settings is None:
        return
    path, asked = run.folder / SENSITIVITY_FIGURES, settings.model_dump(mode="json")
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() and run.resume else {}
    for name, model in models.items():
        if before.get(name, {}).get("settings") == asked:
            continue
        found = network_sensitivity(
            model, chips, split.test, settings.corruptions, levels=settings.levels, layer=settings.layer, extractor=None,
            seed=run.recipe.seed, progress=run.progress,
        )  # fmt: skip
        before[name] = {**found.model_dump(), "settings": asked}
        write_atomic(path, json.dumps(before))


def _curve_rows(curve: SensitivityCurveFacts) -> list[MutableRow]:
    """Return one row per measured or chosen severity, ascending."""
    met = {point.severity: point for point in curve.points}
    level = dict(zip(curve.severities, curve.levels, strict=True)) | {p.severity: p.level for p in curve.points}
    return [
        {
            "corruption": curve.corruption,
            "severity": severity,
            "level": round(level[severity], 4),
            "of": f"{curve.quantity} ({curve.unit})" if curve.unit else curve.quantity,
            "equal_harm": curve.severities.index(severity) + 1 if severity in curve.severities else None,
            "distance": met[severity].distance if severity in met else None,
            "miou": met[severity].miou if severity in met else None,
        }
        for severity in sorted(level)
    ]

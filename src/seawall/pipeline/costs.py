"""What the models of a run cost, measured side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import nn

from seawall.inference.cost import measure_costs
from seawall.io import write_atomic
from seawall.pipeline.context import RunContext
from seawall.pipeline.reference import training_minutes
from seawall.recipe.sections import CostSection
from seawall.report.run_facts import COST_FIGURES, CostFacts


def measure_run_costs(run: RunContext, section: CostSection, models: Mapping[str, nn.Module]) -> None:
    """Measure the models of a run as a section of its recipe asks, and write `COST_FIGURES`; figures with these settings stay.

    Seconds of another day are no comparison, so a further model has all of them measured again.
    """
    path, asked = run.folder / COST_FIGURES, {**section.model_dump(mode="json"), "models": list(models)}
    if run.resume and path.exists() and json.loads(path.read_text(encoding="utf-8")).get("settings") == asked:
        return
    found = measure_costs(
        models, section.ways, size=section.size, repeats=section.repeats, progress=run.stage_progress("cost"),
    )  # fmt: skip
    facts = {
        name: CostFacts(
            parameters=cost.parameters, macs_per_pixel=cost.macs_per_pixel, reach=cost.reach, training_minutes=training_minutes(run, name),
            seconds=cost.seconds, slowest=cost.slowest, failed=cost.failed,
        ).model_dump(mode="json")
        for name, cost in found.items()
    }  # fmt: skip
    write_atomic(path, json.dumps({"settings": asked, "models": facts}))

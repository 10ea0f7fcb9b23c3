"""Weights of other trainings in the training of a network: to start from, or as its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import nn

from seawall.data.chips import ChipFolder
from seawall.data.joint import MISSING_SOURCE
from seawall.data.splits import Split
from seawall.errors import UsageError
from seawall.models.band_adaptation import adapt_bands
from seawall.models.weights import load_model, read_spec, split_of, weights_digest
from seawall.recipe.sections import TrainingSection
from seawall.training.protocols import GuidedObjective
from seawall.types import Objective, SegmentationModel


def start_from(section: TrainingSection, model: nn.Module, chips: ChipFolder, split: Split) -> str:
    """Load the weights to start from, and return the digest of their tensors; "" where there are none.

    Those of other bands are adapted where that is asked for; the normalization is then not theirs.

    Raises:
        ModelError: They do not fit the model or the chips.
        UsageError: They were trained or selected on chips of the test part, or on validation chips of this split.
    """
    if not (path := section.start):
        return ""
    if section.adapt_bands:
        adapt_bands(load_model(path, classes=chips.classes), model)
    else:
        load_model(path, bands=chips.bands, classes=chips.classes, unit=chips.unit, into=model)
    check_held_out("training.start", path, chips, split)
    return weights_digest(model)


def check_held_out(where: str, path: str, chips: ChipFolder, split: Split) -> None:
    """Check that weights were not trained on held-out chips, and not selected on those of the test part; unknown splits pass.

    Raises:
        UsageError: Names the first chip.
    """
    if (known := split_of(Path(path))) is None:
        return
    for id_ in (*split.val, *split.test):
        row = chips.row(id_)
        part = known.part(row.sha256, row.group)
        if part == "train" or (part == "val" and id_ in split.test):
            raise UsageError(
                f"{where}: expected weights that have not seen the held-out chips, got {path}, whose {part} part has {id_}; "
                "use the same seed and shares of the split"
            )


def guided(objective: Objective, chips: ChipFolder, split: Split) -> Objective:
    """Return an objective with the trained network that it names, if it names one.

    Args:
        objective: The objective.
        chips: The chips with all of their bands.
        split: Their split.

    Raises:
        ModelError: The weights cannot be read, or are for other classes or units.
        UsageError: The chips lack bands of it, a training chip lacks an image where pairs are asked for, or the
            network was trained or selected on held-out chips.
    """
    if not isinstance(objective, GuidedObjective):
        return objective
    path, where = objective.teacher, "training.objective.teacher"
    bands = read_spec(path).bands
    if missing := [band for band in bands if band not in chips.bands]:
        raise UsageError(
            f"{where}: expected chips with the bands of {path}, got none of {', '.join(missing)}; curate both sources into one "
            "folder, as --sensor s1,s2, and set inputs"
        )
    teacher = load_model(path, classes=chips.classes, unit=chips.with_bands(bands).unit)
    check_held_out(where, path, chips, split)
    absent = [id_ for id_ in split.train if any(flag.startswith(MISSING_SOURCE) for flag in chips.row(id_).flags)]
    if objective.paired and absent:
        raise UsageError(
            f"{where}: expected pairs of images, got {len(absent)} training chips with one alone, such as {absent[0]}; curate without "
            'unpaired = "keep", or train with the objective moment-matching'
        )
    return objective.guided_by(cast(SegmentationModel, teacher.requires_grad_(False)))

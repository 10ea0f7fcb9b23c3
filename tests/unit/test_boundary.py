"""Boundary IoU: the pixels near a boundary, by an independent definition, and its aggregates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from seawall.attacks.fgsm import FGSM
from seawall.evaluation.case import CLEAN_CASE, Case
from seawall.evaluation.evaluate import evaluate_model
from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.boundary import boundary_counts, boundary_reach
from seawall.models.water_index import WaterIndexThreshold
from seawall.records import RecordLog
from seawall.testing.fixtures import ground_batch
from seawall.threat.parser import parse_threat
from seawall.types import ModelSpec


def near(map_: np.ndarray, valid: np.ndarray, klass: int, reach: int) -> np.ndarray:
    others = (map_ != klass) & valid
    return (map_ == klass) & valid & binary_dilation(others, np.ones((2 * reach + 1, 2 * reach + 1)))


@pytest.mark.parametrize("reach", [1, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_counts_are_those_of_dilated_masks(reach: int, classes: int) -> None:
    rng = np.random.default_rng(classes)
    label, pred = (rng.integers(0, classes, (2, 6, 7)).repeat(4, 1).repeat(4, 2) for _ in range(2))
    valid = rng.random(label.shape) > 0.1
    valid[:, 8:12, 4:16] = False
    found = boundary_counts(*map(torch.from_numpy, (pred, label, valid)), classes, reach)
    for image in range(2):
        for k in range(classes):
            p, t = (near(map_[image], valid[image], k, reach) for map_ in (pred, label))
            assert found[image, k].tolist() == [(p & t).sum(), (p & ~t).sum(), (t & ~p).sum()]


def test_edges_of_the_image_and_invalid_pixels_are_no_boundary() -> None:
    label = torch.ones(1, 9, 9, dtype=torch.long)
    valid = torch.ones_like(label).bool()
    valid[:, 4] = False
    assert not boundary_counts(label, label, valid, 2).any()
    label[:, :4] = 0  # the classes do not touch: an invalid row is between them
    assert not boundary_counts(label, label, valid, 2, reach=1).any()
    assert boundary_counts(label, label, valid, 2, reach=2)[0].tolist() == [[9, 0, 0], [9, 0, 0]]


def test_a_shifted_shoreline_costs_the_boundary_more_than_the_area() -> None:
    label, pred = torch.zeros(1, 100, 100, dtype=torch.long), torch.zeros(1, 100, 100, dtype=torch.long)
    label[:, :, 50:] = 1
    pred[:, :, 52:] = 1
    assert boundary_reach(100, 100) == 3
    tp, fp, fn = boundary_counts(pred, label, label >= 0, 2)[0, 1].tolist()
    assert (tp, fp, fn) == (100, 200, 200)  # columns 52 of 50..52 and 52..54


def test_it_is_measured_without_an_attack_alone(tmp_path: Path) -> None:
    model = WaterIndexThreshold("ndwi")(ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0))
    attacked = Case("fgsm", FGSM(), parse_threat("linf 1% reflectance", model.spec))
    log = RecordLog(tmp_path / "rows.jsonl")
    written = evaluate_model(
        model, [ground_batch(images=3)], log=log, recipe="r", name="ndwi", attacks=[CLEAN_CASE, attacked]
    )
    rows = [r for r in written if r.metric.startswith("boundary.") and r.chip]
    assert {r.method for r in rows} == {"clean"} and {r.metric for r in rows} == {
        "boundary.tp", "boundary.fp", "boundary.fn", "boundary.pixels",
    }  # fmt: skip
    made = {(r.metric, r.klass): r.value for r in aggregate_records([r for r in written if r.chip])}
    sums = {
        name: sum(r.value or 0 for r in rows if (r.metric, r.klass) == (f"boundary.{name}", "water"))
        for name in ("tp", "fp", "fn")
    }
    assert made["boundary_iou.pooled", "water"] == pytest.approx(sums["tp"] / sum(sums.values()))
    assert made["boundary_iou.pooled.low", "water"] is not None

"""Aggregates from rows: by hand, from rows that lack some, and without torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.calibration import calibration_counts, expected_calibration_error
from seawall.records import Record


def row(
    chip: str, group: str, metric: str, value: float | None, klass: str = "", n: int = 100, **more: object
) -> Record:
    return Record("r", "unet", "clean", "", chip, group, metric, klass, value, n, **more)  # type: ignore[arg-type]


def found(rows: list[Record], group: str = "") -> dict[tuple[str, str], float | None]:
    return {(r.metric, r.klass): r.value for r in aggregate_records(rows) if r.group == group}


def test_importing_figures_loads_no_torch() -> None:
    code = "import sys, seawall.metrics.aggregate, seawall.metrics.consistency; sys.exit('torch' in sys.modules or 'rasterio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_srip_is_the_mean_over_chips_where_it_is_defined() -> None:
    rows = [row("a", "x", "srip.dice", 0.5), row("b", "y", "srip.dice", None), row("c", "y", "srip.dice", 0.9)]
    got = {r.metric: r for r in aggregate_records(rows)}
    assert got["srip.dice"].value == pytest.approx(0.7) and got["srip.dice"].n == 2
    low, high = got["srip.dice.low"].value, got["srip.dice.high"].value
    assert low == pytest.approx(0.5) and high == pytest.approx(0.9)


def test_calibration_of_the_pool_and_of_groups() -> None:
    g = torch.Generator().manual_seed(0)
    logits, label = torch.randn(4, 2, 9, 9, generator=g), torch.randint(0, 2, (4, 9, 9), generator=g)
    counts = calibration_counts(logits, label, torch.ones_like(label).bool())
    rows: list[Record] = []
    for i in range(4):
        group = "xy"[i // 2]
        for m in np.flatnonzero(counts.count[i]):
            kinds = ("count", "correct", "confidence")
            rows += [row(f"c{i}", group, f"calib.{kind}.{m}", float(getattr(counts, kind)[i, m])) for kind in kinds]
        rows += [
            row(f"c{i}", group, "calib.nll", float(counts.nll[i])),
            row(f"c{i}", group, "calib.brier", float(counts.brier[i])),
        ]
        rows.append(row(f"c{i}", group, "calib.pixels", 81.0))
    got = found(rows)
    assert got["ece", ""] == pytest.approx(expected_calibration_error(counts))
    half = [
        expected_calibration_error(calibration_counts(logits[at], label[at], torch.ones_like(label[at]).bool()))
        for at in (slice(0, 2), slice(2, 4))
    ]
    assert got["ece.per_group", ""] == pytest.approx(np.mean(half)) and got["ece.worst_group", ""] == pytest.approx(
        max(half)
    )
    assert got["nll", ""] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, label)), rel=1e-5)
    assert sum(v for (m, _), v in got.items() if m.startswith("calib.count.")) == 4 * 81
    assert got["ece.low", ""] <= got["ece.high", ""]


def test_sizes_and_areas_are_pooled() -> None:
    rows = []
    for chip, group, tp, fp, fn in (("a", "x", 8, 2, 0), ("b", "y", 0, 0, 10)):
        values = {"tp": tp, "fp": fp, "fn": fn, "bodies": 3}
        rows += [row(chip, group, f"size.{part}.10-99", v, "water") for part, v in values.items()]
        rows += [
            row(chip, group, f"area.{part}_km2", v, "water")
            for part, v in (("lost", fn / 100), ("invented", fp / 100), ("true", (tp + fn) / 100))
        ]
    got = found(rows)
    assert got["size.iou.10-99", "water"] == 8 / 20 and got["size.recall.10-99", "water"] == 8 / 18
    assert got["size.bodies.10-99", "water"] == 6
    assert got["area.lost_km2", "water"] == pytest.approx(0.1)
    assert got["area.lost_share", "water"] == pytest.approx(10 / 18)
    assert got["area.invented_share", "water"] == pytest.approx(2 / 18)
    assert got["area.lost_share.high", "water"] == 1.0


def test_share_of_no_water_is_undefined() -> None:
    rows = [row("a", "x", f"area.{part}_km2", 0.0, "water") for part in ("lost", "invented", "true")]
    assert found(rows)["area.lost_share", "water"] is None


def test_rows_of_one_class_without_pixels_give_what_they_can() -> None:
    rows = [row("a", "x", m, v, "water") for m, v in (("tp", 3.0), ("fp", 1.0), ("fn", 2.0))]
    got = found(rows)
    assert got["iou.pooled", "water"] == 0.5 and got["precision.pooled", "water"] == 0.75
    assert not any(m.startswith(("miou", "accuracy", "specificity", "pixels")) for m, _ in got)
    assert found(rows, "x")["iou.pooled", "water"] == 0.5


def test_flags_and_time_travel_to_the_aggregates() -> None:
    rows = [row("a", "x", m, 1.0, "water", flags=("gradients vanish",)) for m in ("tp", "fp", "fn")]
    rows += [row("a", "x", "pixels", 9.0, seconds=2.0), row("b", "x", "pixels", 9.0, seconds=1.0)]
    got = aggregate_records(rows)
    assert all(r.flags == ("gradients vanish",) for r in got)
    assert [r.seconds for r in got if r.metric == "pixels"] == [3.0] and sum(r.seconds for r in got) == 3.0


def test_models_and_threats_stay_apart() -> None:
    rows = [row("a", "x", m, 1.0, "water") for m in ("tp", "fp", "fn")]
    rows += [Record("r", "other", "pgd", "linf 1% reflectance", "a", "x", m, "water", 0.0, 9) for m in ("tp", "fp")]
    rows.append(Record("r", "other", "pgd", "linf 1% reflectance", "a", "x", "fn", "water", 5.0, 9))
    iou = {(r.model, r.method): r.value for r in aggregate_records(rows) if r.metric == "iou.pooled" and not r.group}
    assert iou == {("unet", "clean"): 1 / 3, ("other", "pgd"): 0.0}
    assert aggregate_records([]) == []

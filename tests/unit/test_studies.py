"""What the studies in benchmarks/ share: rows in a file, and figures over groups."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from seawall.records import Record, RecordLog


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("study")


def test_a_row_that_was_cut_off_is_not_read_and_the_next_one_takes_its_place(study, tmp_path):
    path = tmp_path / "new" / "cells.jsonl"
    rows = [{"seed": seed, "groups": {"a": [seed, 9]}} for seed in range(3)]
    kept = study.JsonLines(path)
    for row in rows:
        kept.append(row)
    whole = path.read_text()
    for cut in (whole[:-1], whole[:-2], whole[:-9]):  # without the end of the line, inside the row, at an inner brace
        path.write_text(cut)
        again = study.JsonLines(path)
        assert again.rows == rows[:2]
        assert path.read_text() == cut  # reading changes nothing: another process may be writing
        again.append(rows[2])
        assert path.read_text() == whole
        assert study.JsonLines(path).rows == again.rows == rows


def test_figures_over_seeds_and_groups(study):
    first = [{"a": [1, 2], "b": [3, 4]}, {"a": [0, 8]}]
    second = [{"a": [1, 4], "b": [1, 4]}]
    assert study.pooled(first)[0] == round(4 / 14, 4)
    assert study.difference(first, second)[0] == pytest.approx(4 / 14 - 2 / 8)
    assert study.mean_difference(first, second)[0] == pytest.approx((4 / 6 + 0 / 8) / 2 - 2 / 8)
    assert study.mean_iou(second)[0] == 0.25
    same = study.difference(first, first)
    assert same == (0.0, 0.0, 0.0)  # both are taken of the same redrawn groups
    # of two groups, both draws are "a" in a quarter of the resamples and "b" in another
    assert study.mean_iou([{"a": [1, 4], "b": [3, 4]}]) == (0.5, 0.25, 0.75)
    assert np.isnan(study.pooled([{"a": [0, 0]}])[0])


def test_a_mean_over_seeds_redraws_the_same_places_in_all_of_them(study):
    values = np.array(
        [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 4.0], [0.0, 0.0]]]
    )  # the second place is not in the second seed
    found = study.mean_over_seeds(values, lambda s: s[0] / s[1] if s[1] else np.nan)
    assert found == (pytest.approx((4 / 6 + 1 / 4) / 2), pytest.approx((1 / 2 + 1 / 4) / 2), pytest.approx(3 / 4))
    bins = np.array([[2.0, 2.0], [1.0, 2.0], [1.2, 1.9]])
    assert study.binned_ece(bins) == pytest.approx((0.2 + 0.1) / 4) and np.isnan(study.binned_ece(0 * bins))
    assert study.figure_text((0.5, -0.25, 1.5), 2) == ".50 (-.25 to 1.50)"


def test_label_uncertainty_pools_the_records_of_its_runs(study, tmp_path):
    label_uncertainty = importlib.import_module("label_uncertainty")
    runs = []
    for seed, hits in enumerate((6, 2)):
        rows = [
            Record("r", model, "clean", "", "c", "place", metric, klass, value, 10)
            for model in ("unet", f"only in {seed}")
            for metric, klass, value in (
                ("tp", "water", hits), ("fp", "water", 1), ("fn", "water", 1), ("pixels", "", 10), ("calib.pixels", "", 10), ("calib.nll", "", 2),
                ("calib.entropy", "", 4), ("calib.count.14", "", 10), ("calib.correct.14", "", 8), ("calib.confidence.14", "", 9.7),
                ("calib.edge.count.9", "", 10), ("calib.edge.correct.9", "", 5), ("calib.edge.confidence.9", "", 8),
            )
        ]  # fmt: skip
        runs.append(tmp_path / str(seed))
        RecordLog(runs[-1] / "records.jsonl").append(rows)
    lines = list(label_uncertainty.table(runs))
    cells = [cell.split(" (")[0] for cell in lines[2].strip("| ").split(" | ")]
    assert cells == ["unet", ".625", ".170", ".300", ".200", ".400"] and len(lines) == 3


def test_a_table_pairs_each_method_with_the_seeds_that_it_has(study, tmp_path):
    cells, groups = study.Cells(tmp_path / "cells.jsonl"), {"1": "a", "2": "a", "3": "b"}
    for method, seed, part, shared in (
        ("all", 0, "kept", 4), ("all", 1, "kept", 2), ("few", 1, "kept", 3), ("few", 1, "round 1", 1), ("more", 7, "kept", 3),
    ):  # fmt: skip
        cells.add(method, seed, part, "clean", {"1": [shared, 4], "2": [0, 2], "3": [1, 2]}, groups, 60.0)
    lines = [
        line.split(" | ")
        for line in study.method_table(study.Cells(cells.path), ["all", "few", "more", "absent"], "all")
    ]
    assert [(line[0], line[2], line[3].split(" (")[0]) for line in lines[2:]] == [
        ("| all", "0.625, 0.375", ""),
        ("| few", "0.500", "+0.125"),  # minus seed 1 alone, not both seeds
        ("| few, round 1", "0.250", "-0.125"),
        ("| more", "0.500", ""),  # the reference has no seed 7
    ]

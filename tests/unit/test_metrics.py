"""Counts and their ratios, by hand."""

import os

import numpy as np
import pytest
import torch

from seawall.errors import DataError, UsageError
from seawall.metrics.bootstrap import Resamples, percentile_interval
from seawall.metrics.boundary import edge_band
from seawall.metrics.counts import SIZE_BINS, SizedObjects, _count_wide, confusion, pooled_ratios, summarize
from seawall.metrics.ratios import ConfusionCounts, compute_ratio, f1, iou, miou, specificity


def test_counts_by_hand() -> None:
    label = torch.tensor([[[0, 0, 1, 1], [1, 0, 1, 7]]])
    pred = torch.tensor([[[0, 1, 1, 0], [1, 0, 1, 1]]])
    valid = torch.tensor([[[1, 1, 1, 1], [1, 0, 1, 0]]]).bool()
    assert confusion(pred, label, valid, 2).tolist() == [[[1, 1], [1, 3]]]


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 15, 16, 40])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_narrow_and_wide_counts_agree(classes: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(classes)
    label, pred = (torch.from_numpy(rng.integers(0, classes, (3, 9, 7))).to(dtype) for _ in range(2))
    valid = torch.from_numpy(rng.random((3, 9, 7)) > 0.3)
    want = np.zeros((3, classes, classes), int)
    for b, y, x in np.argwhere(valid.numpy()):
        want[b, label[b, y, x], pred[b, y, x]] += 1
    assert np.array_equal(confusion(pred, label, valid, classes).numpy(), want)
    assert np.array_equal(_count_wide(pred, label, valid, classes).numpy(), want)


@pytest.mark.parametrize("junk", [-1, 2, 255, 256, -32768, -9999, 2**40, -(2**63)])
@pytest.mark.parametrize("classes", [2, 3, 20])
def test_junk_counts_where_invalid_only(junk: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    label, pred = (torch.from_numpy(rng.integers(0, 2, (2, 6, 6))) for _ in range(2))
    valid = torch.from_numpy(rng.random((2, 6, 6)) > 0.5)
    clean = confusion(pred, label, valid, classes)
    for which in (label, pred):
        marked = which.masked_fill(~valid, junk)
        assert torch.equal(
            confusion(marked if which is pred else pred, marked if which is label else label, valid, classes), clean
        )
        if junk == 2 and classes > 2:
            continue
        broken = which.clone()
        broken[1][valid[1]] = junk
        with pytest.raises(DataError, match=r"expected (label|pred) in 0\.\.\d+ at valid pixels, got .* image 1"):
            confusion(broken if which is pred else pred, broken if which is label else label, valid, classes)


def test_shapes_are_checked_and_inputs_are_left_alone() -> None:
    label = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(DataError, match="one shape"):
        confusion(label[:, :1], label, label >= 0, 2)
    with pytest.raises(DataError, match="at least one class"):
        confusion(label, label, label >= 0, 0)
    pred, valid = label.to(torch.uint8), label >= 0
    confusion(pred, pred, valid, 3)
    assert not pred.any() and valid.all()
    assert confusion(label[:, :0], label[:, :0], valid[:, :0], 2).tolist() == [[[0, 0], [0, 0]]]
    strided = torch.arange(8).view(2, 2, 2) % 2
    assert torch.equal(
        confusion(strided.mT, strided.mT, strided.mT >= 0, 2), confusion(strided, strided, strided >= 0, 2)
    )


def test_ratios_by_hand() -> None:
    t = ConfusionCounts.of(np.array([[50, 10], [20, 20]]))
    assert iou(t).tolist() == [50 / 80, 20 / 50]
    assert f1(t).tolist() == [100 / 130, 40 / 70]
    assert specificity(t).tolist() == [20 / 40, 50 / 60]
    assert compute_ratio("precision", t).tolist() == [50 / 70, 20 / 30]
    assert compute_ratio("recall", t).tolist() == [50 / 60, 20 / 40]
    assert compute_ratio("accuracy", t).tolist() == [0.7]
    with pytest.raises(UsageError, match="did you mean 'recall'"):
        compute_ratio("recal", t)


def test_what_is_absent_is_undefined_and_takes_no_part_in_means() -> None:
    t = ConfusionCounts.of(np.array([[4, 0, 0], [0, 4, 0], [0, 0, 0]]))
    assert np.isnan(iou(t)[2]) and miou(t) == 1.0
    empty = pooled_ratios(np.zeros((2, 2), int), ("land", "water"))
    assert set(empty.values()) == {None}
    rows = summarize(np.zeros((3, 2, 2), int), ("land", "water"), ["a", "b", "b"])
    assert {r.value for r in rows if r.metric != "pixels"} == {None}


def test_three_averages_differ_as_they_should() -> None:
    chip = lambda tp, fp, fn: [[100 - tp - fp - fn, fp], [fn, tp]]  # noqa: E731
    counts = np.array([chip(80, 0, 0), chip(1, 0, 3), chip(0, 0, 0), chip(5, 5, 0)])
    rows = summarize(counts, ("land", "water"), ["river", "pond", "pond", "pond"])
    got = {(r.metric, r.group): r for r in rows if r.klass == "water"}
    assert got["iou.pooled", ""].value == 86 / 94 and got["iou.pooled", ""].n == 400
    assert got["iou.per_chip", ""].value == (1 + 0.25 + 0.5) / 3 and got["iou.per_chip", ""].n == 3
    assert got["iou.per_group", ""].value == pytest.approx((1 + 6 / 14) / 2) and got["iou.per_group", ""].n == 2
    assert got["iou.pooled", "pond"].value == 6 / 14 and got["iou.pooled", "river"].value == 1.0


def test_intervals_hold_the_figure_and_repeat() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 50, (40, 2, 2))
    groups = [f"g{i % 8}" for i in range(40)]
    first, again = (summarize(counts, ("land", "water"), groups, samples=400) for _ in range(2))
    assert first == again
    got = {(r.metric, r.klass): r.value for r in first if not r.group}
    for name in ("iou.pooled", "miou.per_chip", "accuracy.per_group"):
        klass = "water" if name.startswith("iou") else ""
        low, mid, high = (got[f"{name}{end}", klass] for end in (".low", "", ".high"))
        assert low is not None and mid is not None and high is not None and low < mid < high
    shuffled = rng.permutation(40)
    other = summarize(counts[shuffled], ("land", "water"), [groups[i] for i in shuffled], samples=400)
    for mine, theirs in zip(first, other, strict=True):
        assert mine.key == theirs.key and mine.value == pytest.approx(theirs.value, abs=1e-12)


def test_interval_is_the_spread_of_group_means() -> None:
    """The mean of n groups has a standard error of s / sqrt(n): the interval is 1.96 of them on either side."""
    rng = np.random.default_rng(0)
    draws = Resamples.over([f"g{i}" for i in range(400)], samples=4000)
    values = rng.normal(size=400)
    low, high = percentile_interval((draws.weights @ values / 400)[:, None])
    error = values.std() / 20
    assert low[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high[0] == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_one_group_has_no_interval() -> None:
    rows = summarize(np.ones((3, 2, 2), int), ("land", "water"), ["a"] * 3)
    assert all(r.value is None for r in rows if r.metric.endswith((".low", ".high")))
    assert any(r.value is not None for r in rows)


def test_summarize_checks_shapes() -> None:
    with pytest.raises(DataError, match="summarize"):
        summarize(np.ones((3, 2, 2), int), ("land",))
    with pytest.raises(DataError, match="group per chip"):
        summarize(np.ones((3, 2, 2), int), ("land", "water"), ["a"])


def test_bodies_by_hand() -> None:
    truth = np.zeros((40, 40), bool)
    truth[2:4, 2:4] = True  # a pond of 4
    truth[20:40, 10:30] = True  # a lake of 400
    valid = np.ones_like(truth)
    bodies = SizedObjects.of(truth, valid)
    assert bodies.per_bin.tolist() == [1, 0, 1, 0, 0, 0]
    says = truth.copy()
    says[2, 2] = False
    says[0, 0] = says[5, 5] = True  # beside the pond
    says[18, 20] = True  # beside the lake
    counts = bodies.counts(says)
    assert counts["tp"].tolist() == [3, 0, 400, 0, 0, 0]
    assert counts["fn"].tolist() == [1, 0, 0, 0, 0, 0]
    assert counts["fp"].tolist() == [2, 0, 1, 0, 0, 0]


def test_bodies_of_a_dry_chip_and_of_none_valid() -> None:
    dry = SizedObjects.of(np.zeros((4, 4), bool), np.ones((4, 4), bool))
    assert dry.counts(np.ones((4, 4), bool))["fp"].tolist() == [0] * (len(SIZE_BINS) - 1) + [16]
    blind = SizedObjects.of(np.ones((4, 4), bool), np.zeros((4, 4), bool))
    assert not any(c.any() for c in blind.counts(np.ones((4, 4), bool)).values())


def test_diagonal_pixels_are_one_body() -> None:
    assert SizedObjects.of(np.eye(12, dtype=bool), np.ones((12, 12), bool)).per_bin.tolist() == [0, 1, 0, 0, 0, 0]


def test_edge_band_by_hand() -> None:
    label = torch.zeros(1, 1, 12, dtype=torch.int64)
    label[..., 6:] = 1
    valid = torch.ones_like(label).bool()
    assert edge_band(label, valid, 2)[0, 0].nonzero()[:, 0].tolist() == [4, 5, 6, 7]
    valid[..., 6:] = False
    assert not edge_band(label, valid, 2).any()


def test_threads_and_forks_count_alike() -> None:
    rng = np.random.default_rng(0)
    pred, label = (torch.from_numpy(rng.integers(0, 2, (3, 300, 300))) for _ in range(2))
    valid = label >= 0
    want = confusion(pred, label, valid, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(confusion(pred, label, valid, 2), want)
        child = os.fork()
        if child == 0:  # a data loader's worker after its parent has counted
            os._exit(0 if torch.equal(confusion(pred, label, valid, 2), want) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)

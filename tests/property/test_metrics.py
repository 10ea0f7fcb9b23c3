"""What holds for every count: sums, permutations, void pixels, bounds."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.metrics.aggregate import aggregate_records
from seawall.metrics.bootstrap import Resamples, percentile_interval
from seawall.metrics.counts import SizedObjects, confusion, summarize
from seawall.metrics.ratios import ConfusionCounts, f1, iou, miou, recall
from seawall.metrics.srip import srip_scores
from seawall.records import Record

QUICK = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def scene(seed: int, classes: int = 3, chips: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    shape = (chips, *rng.integers(1, 12, 2))
    pred, label = (torch.from_numpy(rng.integers(0, classes, shape)) for _ in range(2))
    return pred, label, torch.from_numpy(rng.random(shape) < rng.random())


@QUICK
@given(seeds, st.integers(2, 20))
def test_counts_add_up_and_permute(seed: int, classes: int) -> None:
    pred, label, valid = scene(seed, classes)
    counts = confusion(pred, label, valid, classes)
    assert torch.equal(counts.sum((1, 2)), valid.sum((1, 2)))
    order = np.random.default_rng(seed).permutation(pred[0].numel())
    mixed = [x.flatten(1)[:, order].view_as(x) for x in (pred, label, valid)]
    assert torch.equal(confusion(*mixed, classes), counts)
    assert torch.equal(confusion(label, pred, valid, classes), counts.mT)
    assert torch.equal(confusion(pred.flip(0), label.flip(0), valid.flip(0), classes), counts.flip(0))


@QUICK
@given(seeds)
def test_void_pixels_and_columns_mean_nothing(seed: int) -> None:
    pred, label, valid = scene(seed)
    counts = confusion(pred, label, valid, 3)
    junk = torch.from_numpy(np.random.default_rng(seed).integers(-300, 300, label.shape))
    assert torch.equal(confusion(pred, torch.where(valid, label, junk), valid, 3), counts)
    wide = [
        torch.cat([x, junk.to(x.dtype) if x.dtype != torch.bool else torch.zeros_like(x)], -1)
        for x in (pred, label, valid)
    ]
    assert torch.equal(confusion(*wide, 3), counts)


@QUICK
@given(seeds)
def test_dice_and_iou_say_the_same_and_miou_is_below_mean_accuracy(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 30, (4, 3, 3)) * (
        np.random.default_rng(seed + 1).random((4, 3, 3)) < 0.7
    )
    t = ConfusionCounts.of(counts)
    j = iou(t)
    assert np.allclose(f1(t), 2 * j / (1 + j), equal_nan=True)
    there = np.isfinite(recall(t)).all(1)
    assert (miou(t)[there] <= recall(t).mean(1)[there] + 1e-12).all()


@QUICK
@given(seeds)
def test_one_chip_has_one_average(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 30, (1, 2, 2))
    got = {(r.metric, r.klass): r.value for r in summarize(counts, ("land", "water"), ["g"]) if not r.group}
    for name in ("iou", "recall", "f1"):
        three = {got[f"{name}.{how}", "water"] for how in ("pooled", "per_chip", "per_group")}
        assert len(three) == 1
    assert got["miou.pooled", ""] == got["miou.per_chip", ""]


@QUICK
@given(seeds, st.integers(2, 12))
def test_every_figure_is_in_bounds_and_finite_or_undefined(seed: int, chips: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (chips, 2, 2)) * (rng.random((chips, 1, 1)) < 0.6)
    groups = [f"g{g}" for g in rng.integers(0, 4, chips)]
    for row in summarize(counts, ("land", "water"), groups, samples=60):
        if row.metric != "pixels":
            assert row.value is None or -1e-12 <= row.value <= 1 + 1e-12
        if row.metric.endswith(".low") and row.value is None:
            continue


@QUICK
@given(seeds)
def test_figures_do_not_depend_on_the_order_of_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        Record("r", "m", "clean", "", f"c{i}", f"g{i % 3}", metric, "water", float(rng.integers(0, 50)), 100)
        for i in range(6)
        for metric in ("tp", "fp", "fn")
    ]
    rows += [Record("r", "m", "clean", "", f"c{i}", f"g{i % 3}", "pixels", "", 200.0, 200) for i in range(6)]
    mixed = [rows[i] for i in rng.permutation(len(rows))]
    a, b = aggregate_records(rows, samples=50), aggregate_records(mixed, samples=50)
    assert a == b
    assert aggregate_records([*rows, *a], samples=50) == a  # aggregates among the rows mean nothing


@QUICK
@given(seeds, st.integers(2, 9))
def test_resamples_draw_as_many_groups_as_there_are(seed: int, groups: int) -> None:
    draws = Resamples.over([f"g{i % groups}" for i in range(3 * groups)], 20, seed)
    assert (draws.weights.sum(1) == groups).all() and (draws.member.sum(0) == 1).all()
    low, high = percentile_interval(draws.weights)
    assert (low <= high).all()


@QUICK
@given(seeds)
def test_sizes_add_up_to_the_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 30, 2))
    truth, says, valid = (rng.random(shape) < rng.random() for _ in range(3))
    bodies = SizedObjects.of(truth, valid)
    counts = bodies.counts(says)
    assert counts["tp"].sum() == (truth & says & valid).sum()
    assert counts["fp"].sum() == (~truth & says & valid).sum()
    assert counts["fn"].sum() == (truth & ~says & valid).sum()
    turned = SizedObjects.of(truth[::-1], valid[::-1]).counts(says[::-1])
    assert all(np.array_equal(counts[p], turned[p]) for p in ("tp", "fn"))


@QUICK
@given(seeds)
def test_srip_of_land_and_water_exchanged(seed: int) -> None:
    """Macro averages of two-level pictures do not know which side is water; Dice and specificity do."""
    rng = np.random.default_rng(seed)
    p, t = ((rng.random((6, 6)) < 0.5).astype(np.uint8) * 255 for _ in range(2))
    if min(p.min(), t.min()) == 255 or max(p.max(), t.max()) == 0:
        return
    mine, other = srip_scores(p, t), srip_scores(255 - p, 255 - t)
    for name in ("iou", "accuracy", "precision", "recall", "f1"):
        assert mine[name] == other[name] or abs((mine[name] or 0) - (other[name] or 0)) < 1e-12

"""Our counts against independent implementations: torchmetrics, scikit-learn, SciPy."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassSpecificity,
)

from seawall.metrics.bootstrap import Resamples, percentile_interval
from seawall.metrics.calibration import calibration_counts, expected_calibration_error
from seawall.metrics.counts import confusion, pooled_ratios
from seawall.metrics.ratios import ConfusionCounts, compute_ratio, iou


def scene(classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (4, 40, 30), generator=g)
    pred = torch.where(
        torch.rand(4, 40, 30, generator=g) < 0.6, label, torch.randint(0, classes, (4, 40, 30), generator=g)
    )
    valid = torch.rand(4, 40, 30, generator=g) > 0.2
    return pred, label.masked_fill(~valid, 255), valid


@pytest.mark.parametrize("classes", [2, 3, 11, 17])
def test_pooled_ratios(classes: int) -> None:
    pred, label, valid = scene(classes)
    t = ConfusionCounts.of(confusion(pred, label, valid, classes).sum(0).numpy())
    common = {"num_classes": classes, "average": "none", "ignore_index": 255}
    for name, theirs in (
        ("iou", MulticlassJaccardIndex(**common)), ("precision", MulticlassPrecision(**common)),
        ("recall", MulticlassRecall(**common)), ("f1", MulticlassF1Score(**common)),
        ("specificity", MulticlassSpecificity(**common)),
    ):  # fmt: skip
        assert compute_ratio(name, t) == pytest.approx(theirs(pred, label).numpy(), abs=1e-6), name
    micro = MulticlassAccuracy(num_classes=classes, average="micro", ignore_index=255)(pred, label)
    assert compute_ratio("accuracy", t)[0] == pytest.approx(float(micro), abs=1e-6)
    macro = MulticlassJaccardIndex(num_classes=classes, ignore_index=255)(pred, label)
    assert compute_ratio("miou", t)[0] == pytest.approx(float(macro), abs=1e-6)


def test_counts_and_iou_against_scikit_learn() -> None:
    pred, label, valid = scene(3)
    counts = confusion(pred, label, valid, 3)
    for i in range(4):
        truth, guess = label[i][valid[i]].numpy(), pred[i][valid[i]].numpy()
        assert np.array_equal(counts[i].numpy(), confusion_matrix(truth, guess, labels=[0, 1, 2]))
        assert iou(ConfusionCounts.of(counts[i].numpy())) == pytest.approx(jaccard_score(truth, guess, average=None))
    assert pooled_ratios(counts, ("a", "b", "c"))["iou.b"] is not None


@pytest.mark.parametrize("classes", [2, 5])
def test_calibration_error(classes: int) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, classes, 40, 30, generator=g) * 2
    _, label, valid = scene(classes, 1)
    ours = expected_calibration_error(calibration_counts(logits, label, valid, 15))
    theirs = MulticlassCalibrationError(num_classes=classes, n_bins=15, ignore_index=255)(logits.softmax(1), label)
    assert ours == pytest.approx(float(theirs), abs=2e-6)
    wide = calibration_counts(
        torch.stack([torch.zeros(4, 40, 30), torch.full((4, 40, 30), 3.0)], 1), label.clamp(max=1), valid, 15
    )
    alike = BinaryCalibrationError(n_bins=15, ignore_index=255)
    flat = torch.sigmoid(torch.full((4, 40, 30), 3.0))
    assert expected_calibration_error(wide) == pytest.approx(
        float(alike(flat, torch.where(valid, label.clamp(max=1), 255))),
        abs=3e-5,  # theirs adds 4800 equal float32 numbers
    )


def test_interval_against_scipy() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(30)
    draws = Resamples.over([f"{i:02d}" for i in range(30)], samples=8000)
    low, high = percentile_interval((draws.weights @ values / 30)[:, None])
    theirs = stats.bootstrap((values,), np.mean, n_resamples=8000, method="percentile", rng=1).confidence_interval
    assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), abs=0.01)

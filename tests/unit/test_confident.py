"""Confident learning: by hand, with holes in the labels, in pieces, and against an independent implementation."""

import numpy as np
import pytest

from seawall.errors import DataError
from seawall.label_audit.confident_learning import (
    OutOfSample,
    compare_second_source,
    find_label_issues,
    precision_recall,
    softmin,
)


def world(seed: int, chips: int = 4, classes: int = 2, size: int = 24, flips: float = 0.1):
    """Chips whose model is good but unsure in places, with known wrong labels."""
    rng = np.random.default_rng(seed)
    made, wrong = [], []
    for i in range(chips):
        truth = rng.integers(0, classes, (size, size))
        logits = rng.normal(0, 0.8, (classes, size, size)) + 2.5 * (np.arange(classes)[:, None, None] == truth)
        probs = np.exp(logits) / np.exp(logits).sum(0)
        bad = rng.random((size, size)) < flips
        label = np.where(bad, (truth + rng.integers(1, classes, truth.shape)) % classes, truth)
        made.append(OutOfSample(f"c{i}", probs.astype(np.float32), label, np.ones((size, size), bool)))
        wrong.append(bad)
    return made, wrong


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (2, 1), (4, 2)])
def test_equals_cleanlab_where_everything_is_labelled(classes, seed):
    filters = pytest.importorskip("cleanlab.segmentation.filter")
    ranks = pytest.importorskip("cleanlab.segmentation.rank")
    made, _ = world(seed, classes=classes)
    labels, probs = np.stack([o.label for o in made]), np.stack([o.probs for o in made])
    theirs = filters.find_label_issues(labels, probs, downsample=1, n_jobs=1, verbose=False)
    found = find_label_issues(lambda: made, classes)
    assert np.array_equal(np.stack([found.mask(o) for o in made]), theirs)
    scores, _ = ranks.get_label_quality_scores(labels, probs, verbose=False)
    assert np.allclose([softmin(o.quality) for o in made], scores, atol=1e-6)


def test_thresholds_and_joint_by_hand():
    probs = np.array([[[0.9, 0.7, 0.2, 0.4]], [[0.1, 0.3, 0.8, 0.6]]], np.float32)
    chip = OutOfSample("a", probs, np.array([[0, 1, 1, 0]]), np.ones((1, 4), bool))
    found = find_label_issues(lambda: [chip], 2)
    assert np.allclose(found.thresholds, [(0.9 + 0.4) / 2, (0.3 + 0.8) / 2])
    assert found.joint.tolist() == [[1, 1], [1, 1]]
    assert found.issues == 2
    assert found.mask(chip).tolist() == [[False, True, False, True]]
    assert np.allclose(found.transition(), [[0.5, 0.5], [0.5, 0.5]])


def test_unlabelled_pixels_are_neither_counted_nor_suspected():
    made, _ = world(3)
    rng = np.random.default_rng(0)
    holes = [rng.random(o.valid.shape) < 0.3 for o in made]
    some = [
        OutOfSample(o.chip, np.where(h, np.nan, o.probs).astype(np.float32), np.where(h, 255, o.label), ~h)
        for o, h in zip(made, holes, strict=True)
    ]
    found = find_label_issues(lambda: some, 2)
    flat = OutOfSample(
        "flat", np.concatenate([o.valid_probs for o in some], 1)[:, None], np.concatenate([o.given for o in some])[None],
        np.ones((1, sum(len(o.given) for o in some)), bool),
    )  # fmt: skip
    alone = find_label_issues(lambda: [flat], 2)
    assert (found.issues, found.cut, found.ties) == (alone.issues, alone.cut, alone.ties)
    masks = [found.mask(o) for o in some]
    assert not any((m & h).any() for m, h in zip(masks, holes, strict=True))
    assert np.array_equal(np.concatenate([m[o.valid] for m, o in zip(masks, some, strict=True)]), alone.mask(flat)[0])


def test_ties_at_the_cut_are_met_to_the_pixel_and_asking_twice_says_the_same():
    probs = np.full((2, 4, 4), 0.5, np.float32)
    probs[0], probs[1] = 0.25, 0.75
    label = np.zeros((4, 4), int)
    label[2:] = 1
    chip = OutOfSample("a", probs, label, np.ones((4, 4), bool))
    found = find_label_issues(lambda: [chip], 2)
    assert found.issues == 8
    assert int(found.mask(chip).sum()) == 8
    assert np.array_equal(found.mask(chip), found.mask(chip))


def test_injected_faults_are_found_and_the_transition_is_estimated():
    made, wrong = world(5, chips=6, size=64, flips=0.2)
    found = find_label_issues(lambda: made, 2)
    precision, recall = precision_recall([found.mask(o) for o in made], wrong)
    assert precision > 0.85
    assert recall > 0.6
    assert abs(found.transition()[0, 1] - 0.2) < 0.04


@pytest.mark.parametrize("case", ["nothing valid", "one class", "no chips"])
def test_poor_input_has_a_defined_result(case):
    made, _ = world(0, chips=1)
    chip = made[0]
    if case == "nothing valid":
        chips = [OutOfSample("a", chip.probs, chip.label, np.zeros_like(chip.valid))]
    elif case == "one class":
        probs = np.stack([np.full((4, 4), 0.99, np.float32), np.full((4, 4), 0.01, np.float32)])
        chips = [OutOfSample("a", probs, np.zeros((4, 4), int), np.ones((4, 4), bool))]
    else:
        chips = []
    found = find_label_issues(lambda: chips, 2)
    assert found.issues == 0
    assert np.allclose(found.transition(), np.eye(2))
    assert not any(found.mask(o).any() for o in chips)
    assert softmin(np.zeros(0)) is None


def test_a_second_witness():
    probs = np.array([[[0.1, 0.9, 0.1]], [[0.9, 0.1, 0.9]]], np.float32)
    chip = OutOfSample("a", probs, np.array([[0, 1, 0]]), np.ones((1, 3), bool))
    share, against = compare_second_source(chip, np.ones((1, 3), bool), np.array([[True, True, False]]))
    assert share == 0.5
    assert against.tolist() == [[True, False, False]]
    # the rule is against the first and the third label, the model agrees with the rule on the first alone
    probs = np.array([[[0.1, 0.9, 0.8]], [[0.9, 0.1, 0.2]]], np.float32)
    chip = OutOfSample("b", probs, np.array([[0, 1, 0]]), np.ones((1, 3), bool))
    share, against = compare_second_source(chip, np.ones((1, 3), bool), np.ones((1, 3), bool))
    assert share == pytest.approx(1 / 3)
    assert against.tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": np.full((24, 24), 255)}, "mark such pixels invalid"),
        ({"probs": np.full((2, 24, 24), 3.0, np.float32)}, "softmax"),
        ({"valid": np.ones((2, 2), bool)}, "align"),
    ],
)
def test_predictions_that_do_not_fit_their_label_are_refused(change, says):
    chip = world(0, chips=1)[0][0]
    fields = {"chip": "a", "probs": chip.probs, "label": chip.label, "valid": chip.valid}
    with pytest.raises(DataError, match=says):
        OutOfSample(**{**fields, **change})


def test_the_transition_says_which_class_became_which():
    """A fifth of the water is labelled land and next to no land water; the other way round nothing is alike."""
    rng = np.random.default_rng(7)
    truth = rng.random((200, 200)) < 0.4
    label = np.where(truth & (rng.random(truth.shape) < 0.2), False, truth)
    label = np.where(~truth & (rng.random(truth.shape) < 0.02), True, label).astype(int)
    logits = np.stack([np.where(truth, -2.0, 2.0), np.where(truth, 2.0, -2.0)]) + rng.normal(0, 0.5, (2, 200, 200))
    probs = (np.exp(logits) / np.exp(logits).sum(0)).astype(np.float32)
    found = find_label_issues(lambda: [OutOfSample("a", probs, label, np.ones_like(truth))], 2)
    assert np.allclose(found.transition(), [[0.98, 0.02], [0.2, 0.8]], atol=0.015)
    assert found.joint[0, 1] > 5 * found.joint[1, 0]  # rows of the counts are the given labels


def test_a_second_witness_knows_one_class_only():
    """Water is class 2; a rule that says dry does not contradict forest, which is class 1."""
    probs = np.zeros((3, 1, 3), np.float32)
    probs[1, 0, :2], probs[2, 0, 2] = 1, 1
    chip = OutOfSample("a", probs, np.array([[1, 2, 0]]), np.ones((1, 3), bool))
    share, against = compare_second_source(chip, np.array([[False, False, True]]), np.ones((1, 3), bool), 2)
    assert share == pytest.approx(1 / 3)
    assert against.tolist() == [[False, True, True]]

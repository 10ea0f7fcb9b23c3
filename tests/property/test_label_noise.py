"""What every label noise promises, on drawn masks: budgets, unseen pixels, keys, identity at zero."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seawall.label_noise.erode_dilate import Close, Dilate, Erode, Open, Thirds
from seawall.label_noise.geometry import DropObjects, Jitter, MergeObjects, Shift, connected_objects
from seawall.label_noise.label_difference import apply_noise, label_differences
from seawall.label_noise.label_view import LabelView, allowance
from seawall.label_noise.morphology import shoreline_distance
from seawall.label_noise.pixels import ClassDependent, Patches, Pixels, Symmetric
from seawall.label_noise.sources import IndexThreshold, Stale, WrongSource
from seawall.label_noise.teacher import FeatureDependent, GradientDirected
from seawall.registry import build, entries
from seawall.rng import Keys
from seawall.types import Batch

RINGS = [Erode, Dilate, Open, Close]
SHARES = {
    "erode": lambda b: Erode(budget=b),
    "erode exact": lambda b: Erode(budget=b, exact=True),
    "dilate": lambda b: Dilate(budget=b, kernel="srip"),
    "dilate exact": lambda b: Dilate(budget=b, exact=True, kernel=5),
    "open exact": lambda b: Open(budget=b, exact=True),
    "close exact": lambda b: Close(budget=b, exact=True),
    "thirds": lambda b: Thirds(budget=b, exact=True),
    "symmetric": lambda b: Symmetric(budget=b, classes=3),
    "class-dependent": lambda b: ClassDependent(((0.0, 1.0, 0.0), (0.5, 0.0, 0.5), (0.0, 1.0, 0.0)), budget=b),
    "pixels": lambda b: Pixels(budget=b),
    "patches": lambda b: Patches(budget=b, length_px=1.5),
    "jitter": lambda b: Jitter(budget=b),
    "drop-objects": lambda b: DropObjects(budget=b),
    "merge-objects": lambda b: MergeObjects(budget=b, width_px=1),
    "feature-dependent": lambda b: FeatureDependent(budget=b, classes=3),
    "gradient-directed": lambda b: GradientDirected(budget=b, classes=3),
    "stale": lambda b: Stale("level:2", budget=b),
    "wrong-source": lambda b: WrongSource("coarse:2", budget=b),
    "index-threshold": lambda b: IndexThreshold(("B03", "B08"), budget=b),
}
FILLS_ALWAYS = {"symmetric", "pixels", "patches", "feature-dependent"}
BUDGETS = st.one_of(st.sampled_from([0.0, 0.1, 0.29, 0.5, 1.0]), st.floats(0, 1))


@st.composite
def batches(draw, classes=3):
    shape = (2, draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    label = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, classes - 1)))
    if draw(st.booleans()):  # blobs instead of salt
        label = np.repeat(np.repeat(label, 3, 1), 3, 2)[:, : shape[1], : shape[2]]
    seen = draw(hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(True)))
    valid = seen & draw(hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.just(True)))
    image = np.random.default_rng(draw(st.integers(0, 99))).random((2, 2, *shape[1:]), np.float32) * 0.3
    label, seen, valid = (torch.from_numpy(plane) for plane in (label, seen, valid))
    return Batch(torch.from_numpy(image), label, seen, valid, ("a", "b"))


def changes(noise, batch, seed=0):
    after = noise(batch, Keys(seed, batch.chips))
    return after, label_differences(batch.label, after.label, batch.valid)


@pytest.mark.parametrize("name", SHARES)
@given(batch=batches(), budget=BUDGETS)
@settings(max_examples=25, deadline=None)
def test_never_more_than_the_budget_and_only_valid_labels(name, batch, budget):
    after, done = changes(SHARES[name](budget), batch)
    for chip in done:
        assert chip.changed <= budget * chip.valid + 1e-9
    assert torch.equal(after.label[~batch.valid], batch.label[~batch.valid])
    assert after.image is batch.image and after.valid is batch.valid and after.seen is batch.seen
    if budget == 0:
        assert torch.equal(after.label, batch.label)
    if name in FILLS_ALWAYS:
        assert [chip.changed for chip in done] == [allowance(budget, chip.valid) for chip in done]


@pytest.mark.parametrize("make", RINGS)
@given(batch=batches(), budget=BUDGETS, klass=st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_exact_rings_meet_the_budget_or_had_no_more_pixels(make, batch, budget, klass):
    _, most = changes(make(budget=1.0, klass=klass), batch)
    _, done = apply_noise(make(budget=budget, klass=klass, exact=True), batch, Keys(0, batch.chips))
    for chip, limit in zip(done, most, strict=True):
        assert chip.allowed == allowance(budget, chip.valid)
        assert chip.changed == min(chip.allowed, limit.changed)
        assert chip.short == max(0, chip.allowed - limit.changed)


@given(batch=batches(), budget=BUDGETS, exact=st.booleans(), kernel=st.sampled_from([3, 5, "srip"]))
@settings(max_examples=60, deadline=None)
def test_erosion_lies_within_the_mask_and_the_mask_within_dilation(batch, budget, exact, kernel):
    mask = (batch.label == 1) & batch.valid
    small, large = (
        (make(budget=budget, exact=exact, kernel=kernel)(batch, Keys(0, batch.chips)).label == 1) & batch.valid
        for make in (Erode, Dilate)
    )
    opened, closed = (
        (make(budget=budget, exact=exact, kernel=kernel)(batch, Keys(0, batch.chips)).label == 1) & batch.valid
        for make in (Open, Close)
    )
    assert not (small & ~mask).any() and not (mask & ~large).any()
    assert not (opened & ~mask).any() and not (mask & ~closed).any()


@given(batch=batches(classes=2), n=st.integers(1, 4), kernel=st.sampled_from([3, 5, 7]))
@settings(max_examples=60, deadline=None)
def test_duality(batch, n, kernel):
    keys = Keys(0, batch.chips)
    turned = replace(batch, label=1 - batch.label)
    for one, other in ((Erode, Dilate), (Open, Close)):
        direct = one(budget=1.0, iterations=n, kernel=kernel)(batch, keys).label
        dual = 1 - other(budget=1.0, iterations=n, kernel=kernel)(turned, keys).label
        assert torch.equal(direct[batch.valid], dual[batch.valid])


@pytest.mark.parametrize("make", [*RINGS, Pixels, Patches, Symmetric, Jitter, FeatureDependent])
@given(batch=batches(classes=2), low=st.floats(0, 1), high=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_larger_budget_changes_a_superset(make, batch, low, high):
    assume(low <= high)
    extra = {"exact": True} if make in RINGS else {}
    less, more = (make(budget=b, **extra)(batch, Keys(0, batch.chips)).label != batch.label for b in (low, high))
    assert not (less & ~more).any()


@pytest.mark.parametrize("name", SHARES)
@given(batch=batches(), budget=BUDGETS, data=st.data())
@settings(max_examples=12, deadline=None)
def test_neither_other_chips_nor_invalid_labels_nor_unseen_pixels_matter(name, batch, budget, data):
    noise = SHARES[name](budget)
    whole = noise(batch, Keys(7, batch.chips)).label
    alone = noise(batch.select([1]), Keys(7, ("b",))).label[0]
    assert torch.equal(whole[1], alone)
    noisy = batch.label.clone()
    noisy[~batch.valid] = data.draw(st.integers(0, 2))
    image = batch.image.masked_fill(~batch.seen[:, None], float(data.draw(st.sampled_from([0.0, 5.0]))))
    again = noise(replace(batch, label=noisy, image=image), Keys(7, batch.chips)).label
    assert torch.equal(again[batch.valid], whole[batch.valid])


@given(eta=st.floats(0, 1), classes=st.integers(2, 5), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_symmetric_rates_approach_their_matrix(eta, classes, seed):
    label = torch.arange(64 * 64).reshape(1, 64, 64) % classes
    batch = Batch.of(torch.zeros(1, 1, 64, 64), label)
    _, (done,) = changes(Symmetric(eta, classes), batch, seed)
    assert done.changed == allowance(eta, 4096)
    for i, j in np.ndindex(classes, classes):
        expected = 1 - eta if i == j else eta / (classes - 1)
        spread = math.sqrt(expected * (1 - expected) / done.count(i))
        assert abs(done.rate(i, j) - expected) < 5.5 * spread + 2 / done.count(i)


@given(data=st.data(), classes=st.integers(2, 4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_class_dependent_rates_are_the_matrix_to_the_pixel(data, classes, seed):
    draws = data.draw(hnp.arrays(np.float64, (classes, classes), elements=st.floats(0.01, 1)))
    matrix = draws / draws.sum(1, keepdims=True)
    label = torch.arange(40 * 40).reshape(1, 40, 40) % classes
    batch = Batch.of(torch.zeros(1, 1, 40, 40), label)
    _, (done,) = changes(ClassDependent(tuple(map(tuple, matrix.tolist()))), batch, seed)
    for i, j in np.ndindex(classes, classes):
        n = done.count(i)
        if i != j:
            assert matrix[i, j] * n - 1 < done.transitions.get((i, j), 0) <= matrix[i, j] * n + 1e-9


@given(batch=batches(), meters=st.floats(0, 60), gsd_m=st.sampled_from([1.0, 10.0, 20.0]))
@settings(max_examples=40, deadline=None)
def test_meters_are_never_exceeded(batch, meters, gsd_m):
    keys = Keys(0, batch.chips)
    rings = Dilate(budget=meters, of="meters", gsd_m=gsd_m)(batch, keys)
    for chip, before, after, valid in zip(range(2), batch.label, rings.label, batch.valid, strict=True):
        view = LabelView(before.numpy(), valid.numpy(), 1, keys, chip)
        moved = (before != after).numpy()
        assert (
            not moved.any()
            or (shoreline_distance(view, "euclidean")[moved]).max() <= meters / gsd_m * math.sqrt(2) + 1e-4
        )
        wavering = Jitter(budget=meters, of="meters", gsd_m=gsd_m)
        jittered = wavering.change(view) != view.label
        assert not jittered.any() or (shoreline_distance(view, "euclidean")[jittered] - 0.5).max() < meters / gsd_m
        if meters == 0 or meters >= gsd_m:  # a shift by less than a pixel is refused
            rows, cols = Shift(budget=meters, gsd_m=gsd_m).step(view)
            assert math.hypot(rows, cols) * gsd_m <= meters * (1 + 1e-9)
            assert meters == 0 or math.hypot(rows, cols) > meters / gsd_m - 0.6


@given(batch=batches(classes=2), budget=BUDGETS, order=st.sampled_from(["keyed", "small", "large"]))
@settings(max_examples=40, deadline=None)
def test_objects_go_whole(batch, budget, order):
    after = DropObjects(budget=budget, order=order)(batch, Keys(0, batch.chips)).label
    for before, now, valid in zip(batch.label, after, batch.valid, strict=True):
        cells, _ = connected_objects(((before == 1) & valid).numpy())
        gone = ((before != now) & valid).numpy()
        for i in range(1, cells.max() + 1):
            assert gone[cells == i].all() or not gone[cells == i].any()


@given(batch=batches(classes=2), budget=BUDGETS)
@settings(max_examples=40, deadline=None)
def test_merging_only_adds_and_never_makes_more_objects(batch, budget):
    after = MergeObjects(budget=budget, width_px=1)(batch, Keys(0, batch.chips)).label
    for before, now, valid in zip(batch.label, after, batch.valid, strict=True):
        was, is_ = ((before == 1) & valid).numpy(), ((now == 1) & valid).numpy()
        assert not (was & ~is_).any()
        if valid.all():
            assert connected_objects(is_)[0].max() <= connected_objects(was)[0].max()


@pytest.mark.parametrize("entry", entries("noise"), ids=lambda entry: entry.name)
@pytest.mark.parametrize("case", ["nothing valid", "one pixel", "one class", "one valid pixel"])
def test_poor_chips_have_a_defined_result(entry, case):
    side = 1 if case == "one pixel" else 6
    label = torch.zeros(1, side, side, dtype=torch.int64)
    if case != "one class":
        label[:, ::2] = 1
    valid = torch.full_like(label, case != "nothing valid", dtype=torch.bool)
    if case == "one valid pixel":
        valid[:] = False
        valid[0, 2, 3] = True
    batch = Batch.of(torch.rand(1, 2, side, side), label, valid=valid)
    noise = build("noise", entry.name, entry.smoke)
    after = noise(batch, Keys(0, batch.chips))
    assert after.label.dtype == torch.int64
    assert torch.equal(after.label[~valid], label[~valid])
    assert torch.equal(after.label, noise(batch, Keys(0, batch.chips)).label)

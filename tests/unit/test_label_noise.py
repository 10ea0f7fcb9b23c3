"""Label noises on chips small enough to know the answer."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from seawall.errors import DataError, RadiometryError, UsageError
from seawall.label_noise.build import budget_text, noise_text, parse_noise
from seawall.label_noise.erode_dilate import Dilate, Erode, Thirds, assign_thirds
from seawall.label_noise.geometry import DropObjects, Jitter, MergeObjects, Shift
from seawall.label_noise.label_difference import apply_noise, label_differences
from seawall.label_noise.pixels import ClassDependent, Patches, Pixels, Symmetric
from seawall.label_noise.sources import IndexThreshold, Stale, WrongSource
from seawall.label_noise.teacher import FeatureDependent, GradientDirected, model_teacher, saliency_teacher
from seawall.rng import Keys
from seawall.types import Batch


def chips(label, *, image=None, valid=None, names=("a",)):
    label = torch.as_tensor(label, dtype=torch.int64)
    label = label[None] if label.ndim == 2 else label
    image = torch.zeros(len(label), 1, *label.shape[1:]) if image is None else torch.as_tensor(image)
    return Batch.of(image, label, valid=valid, chips=names)


def lake(size=32, radius=10):
    rows, cols = np.mgrid[:size, :size] - (size - 1) / 2
    return (np.hypot(rows, cols) < radius).astype(np.int64)


def run(noise, batch, seed=0):
    return noise(batch, Keys(seed, batch.chips)).label


def test_realized_counts_and_rates():
    before = torch.tensor([[[0, 0, 1, 1, 2]]])
    after = torch.tensor([[[0, 1, 1, 2, 2]]])
    done = label_differences(before, after, torch.tensor([[[True, True, True, True, False]]]))[0]
    assert (done.valid, done.changed, done.share) == (4, 2, 0.5)
    assert done.matrix(3) == ((0.5, 0.5, 0.0), (0.0, 0.5, 0.5), (None, None, None))
    assert done.row(10.0) == {
        "valid": 4,
        "changed": 2,
        "share": 0.5,
        "allowed": None,
        "short": None,
        "reach_px": 2,
        "reach_m": 20.0,
        "0->1": 1,
        "1->2": 1,
    }
    nothing = label_differences(before, after, torch.zeros_like(before, dtype=torch.bool))[0]
    assert (nothing.changed, nothing.share, nothing.rate(0, 1)) == (0, None, None)
    with pytest.raises(DataError, match="one shape"):
        label_differences(before, after[0], before > 0)


def test_realized_reach_is_the_width_of_the_ring():
    batch = chips(lake())
    for n in (1, 2, 3):
        _, (done,) = apply_noise(Erode(budget=1.0, iterations=n), batch, Keys(0, batch.chips))
        assert done.reach == n


def test_pixels_and_patches_flip_one_side_only():
    batch = chips(lake())
    water = int(batch.label.sum())
    for make in (Pixels, Patches):
        assert int(run(make(0.5, of="class", side="remove"), batch).sum()) == water - water // 2
        assert int(run(make(0.5, of="class", side="add"), batch).sum()) == water + water // 2
    assert run(Pixels(1.0, side="remove"), batch).sum() == 0
    assert run(Pixels(1.0, side="add"), batch).all()


def test_patches_are_gathered_and_pixels_are_not():
    batch = chips(np.zeros((128, 128), np.int64))

    def edges(label):
        return int((label[:, 1:] != label[:, :-1]).sum() + (label[:, :, 1:] != label[:, :, :-1]).sum())

    patches, strewn = run(Patches(0.2, length_px=6.0), batch), run(Pixels(0.2), batch)
    assert patches.sum() == strewn.sum()
    assert edges(patches) * 5 < edges(strewn)


def test_symmetric_reaches_every_other_class():
    batch = chips(np.zeros((60, 60), np.int64))
    counts = torch.bincount(run(Symmetric(0.6, classes=4), batch).ravel())
    assert counts[0] == 1440
    assert counts[1:].sum() == 2160
    assert (counts[1:] - 720).abs().max() < 5 * math.sqrt(720)


def test_class_dependent_counts_by_hand():
    batch = chips([[0] * 10, [1] * 10])
    label = run(ClassDependent(((0.7, 0.3), (0.0, 1.0))), batch)[0]
    assert label[0].sum() == 3 and label[1].sum() == 10
    half = run(ClassDependent(((0.0, 1.0), (1.0, 0.0)), budget=0.5), batch)[0]
    assert half[0].sum() == 5 and half[1].sum() == 5


def test_shift_by_hand():
    label = np.zeros((8, 8), np.int64)
    label[3, 3] = 1
    batch = chips(label)
    assert run(Shift(budget=20, gsd_m=10, bearing_deg=90), batch)[0, 3, 5] == 1  # to the east
    assert run(Shift(budget=20, gsd_m=10, bearing_deg=0), batch)[0, 1, 3] == 1  # to the north
    assert run(Shift(budget=19.9, gsd_m=10, bearing_deg=180), batch)[0, 4, 3] == 1
    diagonal = run(Shift(budget=15, gsd_m=10, bearing_deg=135), batch)[0]
    assert diagonal[4, 4] == 1 and diagonal.sum() == 1
    assert torch.equal(run(Shift(budget=900, gsd_m=10, bearing_deg=90), batch), batch.label)


def test_shift_keeps_labels_whose_source_is_unknown():
    valid = torch.ones(1, 1, 5, dtype=torch.bool)
    valid[0, 0, 1] = False
    batch = chips([[1, 0, 0, 0, 1]], valid=valid)
    assert run(Shift(budget=1, gsd_m=1, bearing_deg=90), batch).tolist() == [[[1, 0, 0, 0, 0]]]


def test_shift_directions_are_drawn_per_chip():
    names = tuple(f"c{i}" for i in range(200))
    batch = chips(np.repeat(lake(16, 4)[None], 200, 0), names=names)
    label = run(Shift(budget=3, gsd_m=1), batch)
    center = (label * torch.arange(16)).sum((1, 2)) / label.sum((1, 2)) - 7.5
    assert abs(float(center.mean())) < 0.6
    assert float(center.std()) == pytest.approx(3 / math.sqrt(2), rel=0.2)


def test_jitter_stays_near_the_shoreline_and_moves_both_ways():
    batch = chips(lake(64, 20))
    label = run(Jitter(budget=30, of="meters", gsd_m=10), batch)
    rows, cols = np.nonzero((label != batch.label)[0].numpy())
    away = abs(np.hypot(rows - 31.5, cols - 31.5) - 20)
    assert len(rows) > 20
    assert away.max() < 3 + 0.5
    _, (done,) = apply_noise(Jitter(budget=0.03), batch, Keys(0, batch.chips))
    assert done.changed == int(0.03 * 64 * 64)
    assert min(done.transitions[0, 1], done.transitions[1, 0]) > 10


def ponds():
    label = np.zeros((12, 20), np.int64)
    label[1:3, 1:3] = 1  # 4 pixels
    label[6:9, 1:4] = 1  # 9 pixels
    label[2:6, 8:12] = 1  # 16 pixels
    label[2:4, 14:16] = 1  # 4 pixels, two columns beside the large one
    return label


def test_drop_objects_by_size_and_number():
    batch = chips(ponds())
    assert run(DropObjects(0.25, of="class", order="small"), batch).sum() == 25
    assert run(DropObjects(0.5, of="class", order="large"), batch).sum() == 17
    # 20 pixels: the large one, then a small one; 9 pixels do not fit and are passed over
    assert run(DropObjects(20 / 33, of="class", order="large"), batch).sum() == 13
    assert run(DropObjects(0.5, of="objects", order="small"), batch).sum() == 25
    assert run(DropObjects(1.0, of="objects"), batch).sum() == 0


def test_merge_objects_bridges_the_narrowest_gap_first():
    batch = chips(ponds())
    label = run(MergeObjects(2 / 240, width_px=1), batch)[0]
    assert int(label.sum()) == 35
    assert label[2:4, 12:14].sum() == 2
    assert torch.equal(run(MergeObjects(1.0, reach_px=1.0), batch), batch.label)
    joined = run(MergeObjects(1.0, width_px=1), batch)[0].numpy()
    assert cv2.connectedComponents(joined.astype(np.uint8), connectivity=8)[0] == 2


def water_image(label, seed=0):
    """Reflectance of 2 bands whose NDWI is about 0.6 over water and -0.5 over land, with wet soil at -0.15."""
    green = np.where(label == 1, 0.08, 0.10)
    nir = np.where(label == 1, 0.02, 0.30)
    nir[:4] = np.where(label[:4] == 1, 0.02, 0.10 * 1.15 / 0.85)
    noise = np.random.default_rng(seed).normal(0, 0.001, (2, *label.shape))
    return (np.stack([green, nir]) + noise).astype(np.float32)[None]


def test_the_permissive_index_threshold_takes_wet_soil_for_water():
    label = lake()
    batch = chips(label, image=water_image(label))
    bands = ("B03", "B08")
    assert torch.equal(run(IndexThreshold(bands, "ndwi > 0"), batch), batch.label)
    assert torch.equal(run(IndexThreshold(bands, "ndwi otsu"), batch), batch.label)
    loose = run(IndexThreshold(bands), batch)[0]
    assert loose[:4].all() and torch.equal(loose[4:], batch.label[0, 4:])
    part = run(IndexThreshold(bands, budget=0.05), batch)[0]
    assert int((part != batch.label[0]).sum()) == int(0.05 * 1024)
    assert not (part[4:] != batch.label[0, 4:]).any()
    with pytest.raises(RadiometryError, match="reflectance"):
        run(IndexThreshold(bands, unit="stretched"), batch)
    with pytest.raises(DataError, match="swir1"):
        run(IndexThreshold(bands, "mndwi > 0"), batch)
    with pytest.raises(DataError, match="3 bands"):
        run(IndexThreshold((*bands, "B11")), batch)
    with pytest.raises(UsageError, match="label rule"):
        IndexThreshold(bands, "ndwi about 0")


def test_stale_and_wrong_source_from_a_folder_and_a_callable(tmp_path):
    batch = chips(lake())
    other = np.roll(lake(), 5, 0).astype(np.int16)
    other[0] = -1
    np.save(tmp_path / "a.npy", other)
    expected = torch.from_numpy(np.where(other < 0, lake(), other).astype(np.int64))[None]
    for make in (Stale, WrongSource):
        assert torch.equal(run(make(str(tmp_path)), batch), expected)
        assert torch.equal(run(make(lambda _: torch.from_numpy(other.astype(np.int64))[None]), batch), expected)
        _, (done,) = apply_noise(make(str(tmp_path), budget=0.01), batch, Keys(0, batch.chips))
        assert done.changed == 10


def test_a_second_source_that_does_not_fit_is_named(tmp_path):
    batch = chips(lake(), names=("../a",))
    np.save(tmp_path.parent / "a.npy", lake())
    with pytest.raises(DataError, match="got neither"):
        run(Stale(str(tmp_path)), batch)
    batch = chips(lake(), names=("a",))
    for bad, says in ((lake(16), "on the chip's grid"), (lake() * 0.5, "whole class indices")):
        np.save(tmp_path / "a.npy", bad)
        with pytest.raises(DataError, match=says):
            run(Stale(str(tmp_path)), batch)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY torn")
    with pytest.raises(DataError, match=r"a\.npy"):
        run(Stale(str(tmp_path)), batch)
    with pytest.raises(UsageError, match="level:4"):
        Stale("level:much")


def test_simulated_levels_move_one_way_per_chip_and_never_too_far():
    names = tuple(f"c{i}" for i in range(12))
    batch = chips(np.repeat(lake(48, 15)[None], 12, 0), names=names)
    grown = 0
    for before, after in zip(batch.label, run(Stale("level:4"), batch), strict=True):
        rows, cols = np.nonzero((before != after).numpy())
        assert len(rows) > 0
        assert abs(np.hypot(rows - 23.5, cols - 23.5) - 15).max() < 4.5
        assert bool((after >= before).all()) != bool((after <= before).all())
        grown += bool((after >= before).all())
    assert 1 <= grown <= 11


def test_a_coarse_source_is_a_majority_of_blocks():
    label = np.zeros((5, 6), np.int64)
    label[0:2, 0:1] = label[2, 2] = label[4, 4] = 1
    assert run(WrongSource("coarse:2"), chips(label))[0].tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_feature_dependent_takes_the_least_sure_pixels_and_the_runner_up():
    logits = torch.zeros(1, 3, 1, 4)
    logits[0, :, 0] = torch.tensor([[5.0, 2.0, 1.0, 0.0], [0.0, 1.5, 0.9, 3.0], [1.0, 0.0, 0.0, 2.9]])
    batch = chips([[0, 0, 0, 1]])
    ask = lambda _: logits  # noqa: E731
    # margins of the labels: 4, 0.5, 0.1, 0.1
    assert run(FeatureDependent(0.5, 3, ask), batch).tolist() == [[[0, 0, 1, 2]]]
    assert run(FeatureDependent(0.75, 3, ask), batch).tolist() == [[[0, 1, 1, 2]]]


def test_the_bands_teacher_finds_pixels_between_the_classes():
    label = lake()
    image = label[None, None].astype(np.float32) + np.random.default_rng(0).normal(0, 0.05, (1, 1, 32, 32)).astype("f4")
    image[0, 0, 16, 16] = 0.45  # a bright pixel in the lake, beyond the middle
    batch = chips(label, image=image)
    after = run(FeatureDependent(1 / 1024), batch)[0]
    assert after[16, 16] == 0
    assert int((after != batch.label[0]).sum()) == 1


def test_gradient_directed_flips_the_surest_shore_pixels_first():
    label = np.zeros((5, 8), np.int64)
    label[:, 4:] = 1
    harm = np.zeros((1, 5, 8), np.float32)
    harm[0, 2, 3], harm[0, 1, 4], harm[0, 0, 0] = 3.0, 2.0, 9.0
    batch = chips(label)
    ask = lambda _: torch.from_numpy(harm)  # noqa: E731
    after = run(GradientDirected(2 / 40, reach_px=1, teacher=ask), batch)[0]
    assert after[2, 3] == 1 and after[1, 4] == 0
    only = run(GradientDirected(1 / 40, reach_px=1, teacher=ask, side="remove"), batch)[0]
    assert only[1, 4] == 0 and int((only != batch.label[0]).sum()) == 1
    far = run(GradientDirected(1 / 40, reach_px=4, teacher=ask), batch)[0]
    assert far[0, 0] == 1
    meters = run(GradientDirected(10, of="meters", gsd_m=10, teacher=ask), batch)[0]
    assert int((meters != batch.label[0]).sum()) == 2


def test_gradient_directed_by_a_models_logits():
    class Bright(nn.Module):
        def forward(self, image):
            return torch.cat([-image, image], 1)

    label = np.zeros((5, 8), np.int64)
    label[:, 4:] = 1
    image = np.where(label, 1.0, -1.0)[None, None].astype(np.float32)
    image[0, 0, 3, 3] = -7.0
    image[0, 0, 1, 4] = 6.0
    model = Bright().train()
    batch = chips(label, image=image)
    after = run(GradientDirected(2 / 40, reach_px=1, teacher=model_teacher(model)), batch)[0]
    assert after[3, 3] == 1 and after[1, 4] == 0
    assert model.training


def test_a_saliency_teacher_is_per_chip_and_leaves_the_model_alone():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 1)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(logits, label, valid):
        return nn.functional.cross_entropy(logits, label, reduction="none")[valid].mean()

    batch = chips(np.stack([lake(), lake(32, 6)]), image=torch.rand(2, 1, 32, 32), names=("a", "b"))
    teach = saliency_teacher(model, loss)
    harm = teach(batch)
    assert harm.shape == batch.label.shape
    assert torch.equal(harm[1:], teach(batch.select([1])))
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_bad_teachers_are_named(tmp_path):
    batch = chips(lake())
    for say, words in ((torch.zeros(1, 3, 32, 32), "shape"), (torch.full((1, 2, 32, 32), math.nan), "finite")):
        with pytest.raises(DataError, match=words):
            run(FeatureDependent(0.1, teacher=lambda _, say=say: say), batch)
    with pytest.raises(DataError, match="got one plane"):
        run(FeatureDependent(0.1, teacher=lambda _: torch.zeros(1, 32, 32)), batch)
    with pytest.raises(DataError, match="got neither"):
        run(FeatureDependent(0.1, teacher=str(tmp_path)), batch)
    np.save(tmp_path / "a.npy", np.stack([1 - lake(), lake()]).astype(np.float32))
    assert int((run(FeatureDependent(0.1, teacher=str(tmp_path)), batch) != batch.label).sum()) == 102


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Symmetric(1.2), "at most 1"),
        (lambda: Symmetric(0.1, classes=1), "at least 2"),
        (lambda: ClassDependent(((0.5, 0.4), (0.0, 1.0))), "row 0"),
        (lambda: ClassDependent(((1.0,),)), "row 0"),
        (lambda: ClassDependent(((1.0, 0.0), (1.5, -0.5))), "row 1"),
        (lambda: Pixels(0.1, side="out"), "'both'"),
        (lambda: Patches(0.1, length_px=0), "above 0"),
        (lambda: Jitter(0.1, length_px=math.inf), "above 0"),
        (lambda: Shift(-1, gsd_m=10), "0 up"),
        (lambda: Shift(1, gsd_m=0), "above 0"),
        (lambda: Shift(9, gsd_m=10), "at least one pixel of 10 m"),
        (lambda: Shift(10, gsd_m=10, bearing_deg=math.nan), "degrees"),
        (lambda: DropObjects(0.1, order="random"), "'keyed'"),
        (lambda: DropObjects(0.1, of="meters"), "gsd_m"),
        (lambda: MergeObjects(0.1, width_px=0), "width_px"),
        (lambda: FeatureDependent(0.1, classes=1), "at least 2"),
        (lambda: GradientDirected(0.1, klass=2), "2 classes"),
        (lambda: Stale("x", budget=2), "at most 1"),
    ],
)
def test_impossible_settings_are_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_noise_from_text():
    assert parse_noise("dilate 10%") == Dilate(budget=0.1)
    assert parse_noise("dilate 29 %").budget == 0.29
    assert parse_noise("erode 30 m", {"gsd_m": 10.0}) == Erode(budget=30, of="meters", gsd_m=10.0)
    assert parse_noise("shift 25m gsd_m=10 bearing_deg=90") == Shift(25, 10, 90)
    assert parse_noise("thirds 20% kernel=3") == Thirds(budget=0.2, kernel=3)
    assert parse_noise("class-dependent matrix=[[0.5,0.5],[0,1]]").matrix == ((0.5, 0.5), (0.0, 1.0))
    assert parse_noise("stale source=level:3 budget=0.5") == Stale("level:3", 0.5)
    assert noise_text(Thirds(0.1, parts=assign_thirds(["a", "b"]))) == "thirds budget=0.1 parts=2 chips"
    assert noise_text(Erode(0.1)) == "erode budget=0.1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "such as 'dilate 10%'"),
        ("dilat 10%", "did you mean 'dilate'"),
        ("dilate ten", "'ten'"),
        ("dilate 110%", "at most 1"),
        ("dilate 10% kernels=3", "kernel"),
        ("dilate 10% exact=maybe", "exact"),
        ("erode 30 m", "gsd_m"),
    ],
)
def test_noise_text_that_cannot_be(text, says):
    with pytest.raises(UsageError, match=says):
        parse_noise(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dilate 10%", "at most 10 % of the valid pixels of each chip"),
        ("erode 30% of=class", "at most 30 % of the pixels of the class in each chip"),
        ("drop-objects 50% of=objects", "at most 50 % of the objects of the class in each chip"),
        ("thirds 20%", "at most 20 % of the valid pixels of each chip of two thirds of the chips"),
        ("dilate 30 m gsd_m=10", "shorelines moved by at most 30 m (3 px)"),
        ("dilate 3 px", "shorelines moved by at most 3 px"),
        ("shift 45 m gsd_m=30", "a shift by 45 m (1.5 px)"),
        ("class-dependent matrix=[[0.9,0.1],[0.2,0.8]]", "the whole matrix"),
        ("class-dependent 50% matrix=[[0.9,0.1],[0.2,0.8]]", "50 % of the matrix"),
        ("wrong-source source=coarse:8", "the whole other label"),
        ("stale 20% source=level:2", "the other label on at most 20 % of the valid pixels"),
    ],
)
def test_what_was_asked_for_in_words(text, says):
    settings = {"parts": {}} if text.startswith("thirds") else {}
    assert budget_text(parse_noise(text, settings)) == says

"""Region growing, split and merge: what a partition promises, and how a region gets its class."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from seawall.errors import DataError, ModelError, UsageError
from seawall.models.region_growing import RegionGrowing, evenly_spaced_markers, grow_regions, smoothed
from seawall.models.regions import RegionNet, region_means
from seawall.models.split_and_merge import SplitAndMerge, adjacent_regions, merge_regions, quadtree_blocks
from seawall.types import Batch, ModelSpec

SPEC = ModelSpec(("B03", "B08"), ("land", "water"), "reflectance", 10.0)
RADAR = ModelSpec(("VV",), ("land", "water"), "sigma0_db", 10.0)
EIGHT, FOUR = np.ones((3, 3)), ndimage.generate_binary_structure(2, 1)


def picture(seed: int, shape: tuple[int, int] = (24, 29), bands: int = 2, hidden: float = 0.1):
    """Return smooth ground with noise (H, W, C), in steps of 0.01 so that ties occur, and the seen pixels."""
    rng = np.random.default_rng(seed)
    ground = ndimage.gaussian_filter(rng.random((*shape, bands)), (3, 3, 0))
    ground = 0.4 * (ground - ground.min()) / np.ptp(ground) + 0.02 * rng.random((*shape, bands))
    return np.round(ground, 2) + 0.01, rng.random(shape) >= hidden


def pieces(regions: np.ndarray, structure: np.ndarray) -> int:
    """Return how many connected pieces the regions have together."""
    return sum(ndimage.label(regions == k, structure)[1] for k in range(regions.max() + 1))


def check_partition(regions: np.ndarray, seen: np.ndarray, structure: np.ndarray | None) -> None:
    """Every seen pixel is in one region, every region is connected, and regions are numbered by their first pixels."""
    assert np.array_equal(regions >= 0, seen)
    numbers, first = np.unique(regions[seen], return_index=True)
    assert np.array_equal(numbers, np.arange(len(numbers))) and (np.diff(first) > 0).all()
    assert structure is None or pieces(regions, structure) == len(numbers)


@pytest.mark.parametrize("neighbors", [4, 8])
def test_a_region_of_one_seed_is_the_flood_fill_of_opencv(neighbors) -> None:
    for seed in range(8):
        values, seen = picture(seed, bands=1)
        row, col = np.argwhere(seen)[seed * 20]
        markers = np.zeros(seen.shape, np.int64)
        markers[row, col] = 5
        # OpenCV fills pixels from its mask of obstacles, one pixel wider on each side
        mask = np.pad(~seen, 1, constant_values=True).astype(np.uint8)
        whole = np.round(values[..., 0] * 100).astype(np.int32)
        flags = neighbors | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (2 << 8)
        cv2.floodFill(whole.astype(np.float32), mask, (int(col), int(row)), 0, 5, 5, flags)
        regions = grow_regions(np.round(values * 100), seen, markers, tolerance=5, compare="seed", neighbors=neighbors)
        assert np.array_equal(regions == regions[row, col], mask[1:-1, 1:-1] == 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["seed", "mean"]), st.sampled_from([4, 8]))
def test_the_order_of_the_seeds_means_nothing(seed, compare, neighbors) -> None:
    values, seen = picture(seed)
    markers = evenly_spaced_markers(seen.shape, 5)
    order = np.random.default_rng(seed).permutation(markers.max()) + 1
    renamed = np.where(markers > 0, order[markers - 1], 0)
    grown = [
        grow_regions(values, seen, m, tolerance=0.05, compare=compare, neighbors=neighbors) for m in (markers, renamed)
    ]
    assert np.array_equal(*grown)
    check_partition(grown[0], seen, FOUR if neighbors == 4 else EIGHT)


def test_the_two_comparisons_differ_on_a_ramp() -> None:
    ramp = np.arange(9.0)[None, :, None]
    seen, marker = np.ones((1, 9), bool), np.zeros((1, 9), np.int64)
    marker[0, 0] = 1
    by_seed = grow_regions(ramp, seen, marker, tolerance=2.0, compare="seed")[0]
    assert (by_seed == 0).tolist() == [True] * 3 + [False] * 6  # 0, 1 and 2 are within 2 of the seed
    by_mean = grow_regions(ramp, seen, marker, tolerance=2.0, compare="mean")[0]
    # means 0, 0.5, 1, 1.5: the next pixels, 1, 2, 3 and 4, are 1, 1.5, 2 and 2.5 away
    assert (by_mean == 0).tolist() == [True] * 4 + [False] * 5


@pytest.mark.parametrize("compare", ["seed", "mean"])
def test_a_pixel_goes_to_the_most_similar_region_and_of_equal_ones_to_the_first(compare) -> None:
    seen, markers = np.ones((1, 3), bool), np.array([[2, 0, 1]])
    for middle, want in ((0.24, [0, 0, 1]), (0.26, [0, 1, 1]), (0.25, [0, 0, 1])):
        row = np.array([[[0.0], [middle], [0.5]]])
        assert grow_regions(row, seen, markers, tolerance=0.25 + 0.011, compare=compare)[0].tolist() == want


def test_of_equal_regions_the_one_with_the_first_seed_takes_a_pixel_from_any_side() -> None:
    markers = np.array([[1, 2], [1, 0]])  # the first one is on the left, the second above
    values = np.array([[[0.5], [0.0]], [[0.5], [0.25]]])
    for renamed in (markers, np.array([[2, 1], [2, 0]])):
        regions = grow_regions(values, np.ones((2, 2), bool), renamed, tolerance=0.25, compare="seed", neighbors=4)
        assert regions.tolist() == [[0, 1], [0, 0]]


def test_all_bands_must_be_similar_and_corners_count_where_asked() -> None:
    image = np.array([[[0.1, 0.1], [0.1, 0.4]], [[0.4, 0.1], [0.1, 0.1]]])
    seen = np.ones((2, 2), bool)
    assert grow_regions(image, seen, tolerance=0.1, neighbors=8).tolist() == [[0, 1], [2, 0]]
    assert len(np.unique(grow_regions(image, seen, tolerance=0.1, neighbors=4))) == 4


def test_a_refused_pixel_is_compared_again_when_the_mean_has_moved() -> None:
    # beside the seed 0 stands 0.35, which is refused until the ones have raised the mean
    image = np.array([[[0.35], [0.0], [0.2], [0.3], [0.4]]])
    marker = np.array([[0, 1, 0, 0, 0]])
    assert grow_regions(image, np.ones((1, 5), bool), marker, tolerance=0.22, compare="mean").max() == 0
    assert grow_regions(image, np.ones((1, 5), bool), marker, tolerance=0.22, compare="seed").max() > 0


def test_markers_that_are_many_wide_or_wrong() -> None:
    values, seen = picture(3)
    each = np.arange(1, seen.size + 1).reshape(seen.shape)  # as many markers as pixels
    assert len(np.unique(grow_regions(values, seen, each, tolerance=9.0)[seen])) == seen.sum()
    wide = np.zeros(seen.shape, np.int64)
    wide[:2], wide[-1] = 1, 1  # one marker of two pieces
    regions = grow_regions(values, seen, wide, tolerance=0.0)
    assert (regions[(wide > 0) & seen] == 0).all()
    unseen = np.where(seen, 0, 1)
    assert np.array_equal(grow_regions(values, seen, unseen, tolerance=0.1), grow_regions(values, seen, tolerance=0.1))
    with pytest.raises(DataError, match="of the image's shape"):
        grow_regions(values, seen, wide[:5], tolerance=0.1)


def test_hostile_images_have_a_defined_partition() -> None:
    constant, seen = np.full((7, 6, 2), 0.2), np.ones((7, 6), bool)
    for method in (
        RegionGrowing(),
        RegionGrowing(compare="seed", smoothing=1.0),
        SplitAndMerge(),
        SplitAndMerge(largest=1),
    ):
        assert (method.partition(constant, seen, "reflectance") == 0).all(), method
        assert (method.partition(constant, ~seen, "reflectance") == -1).all(), method
        assert method.partition(constant[:1, :1], seen[:1, :1], "reflectance").tolist() == [[0]]
    values, seen = picture(1, hidden=0.6)
    check_partition(RegionGrowing(spacing=4).partition(values, seen, "reflectance"), seen, EIGHT)
    check_partition(RegionGrowing(spacing=100).partition(values, seen, "reflectance"), seen, EIGHT)  # no marker inside


@pytest.mark.parametrize(
    "method",
    [
        RegionGrowing(),
        RegionGrowing(smoothing=1.5, compare="seed"),
        RegionGrowing(spacing=6),
        SplitAndMerge(largest=32),
    ],
    ids=repr,
)
def test_unseen_pixels_below_and_beside_an_image_change_no_region(method) -> None:
    values, seen = picture(5)
    alone = method.partition(values, seen, "reflectance")
    wide, known = np.pad(values, ((0, 11), (0, 40), (0, 0))), np.pad(seen, ((0, 11), (0, 40)))
    assert np.array_equal(method.partition(wide, known, "reflectance")[:24, :29], alone)


def test_smoothing_is_of_power_and_of_seen_pixels_alone() -> None:
    values = np.full((9, 9, 1), -10.0)
    values[4, 4] = 0.0
    seen = np.ones((9, 9), bool)
    got = smoothed(values, seen, 1.0, "sigma0_db")[..., 0]
    kernel = np.zeros((9, 9))
    kernel[4, 4] = 1
    share = ndimage.gaussian_filter(kernel, 1.0, mode="constant")
    np.testing.assert_allclose(got[2:7, 2:7], 10 * np.log10(share + 0.1 * (1 - share))[2:7, 2:7], atol=1e-2)
    seen[4, 4] = False
    np.testing.assert_allclose(smoothed(values, seen, 1.0, "sigma0_db")[seen], -10.0)


def deviation(values: np.ndarray) -> float:
    return float(values.std(0).max()) if len(values) else 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 4, 8, 32]))
def test_blocks_are_the_largest_uniform_ones(seed, largest) -> None:
    values, seen = picture(seed, (19, 30))
    blocks = quadtree_blocks(values, seen, spread=0.0301, largest=largest)
    assert np.array_equal(blocks >= 0, seen)

    def leaves(top: int, left: int, side: int) -> int:
        """Return the number of leaves of the quadtree in a block, and compare them with `blocks`."""
        block = (slice(top, top + side), slice(left, left + side))
        inside = values[block][seen[block]]
        if not len(inside):
            return 0
        if side == 1 or deviation(inside) <= 0.0301:
            assert len(np.unique(blocks[block][seen[block]])) == 1
            return 1
        half = side // 2
        return sum(leaves(top + r, left + c, half) for r in (0, half) for c in (0, half))

    count = sum(leaves(r, c, largest) for r in range(0, 19, largest) for c in range(0, 30, largest))
    assert count == blocks.max() + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.06]), st.sampled_from([0.01, 0.05]), st.sampled_from([0, 0.1]))
def test_merged_regions_are_uniform_and_no_pair_is_left_to_merge(seed, spread, difference, hidden) -> None:
    values, seen = picture(seed, hidden=hidden)
    blocks = quadtree_blocks(values, seen, spread=spread, largest=8)
    regions = merge_regions(values, blocks, spread=spread, difference=difference)
    check_partition(regions, seen, None if hidden else FOUR)  # a block that unseen pixels divide is one region
    assert all(len(np.unique(regions[blocks == k])) == 1 for k in range(blocks.max() + 1))  # blocks stay whole
    parts = [values[regions == k] for k in range(regions.max() + 1)]
    assert all(deviation(part) <= spread + 1e-9 for part in parts)
    pairs = {
        tuple(sorted((regions[r, c], regions[r + down, c + right])))
        for down, right in ((0, 1), (1, 0))
        for r in range(24 - down)
        for c in range(29 - right)
        if regions[r, c] >= 0 and regions[r + down, c + right] >= 0 and regions[r, c] != regions[r + down, c + right]
    }
    assert pairs == {tuple(pair) for pair in adjacent_regions(regions).tolist()}
    for one, other in pairs:
        apart = np.abs(parts[one].mean(0) - parts[other].mean(0)).max()
        union = deviation(np.concatenate([parts[one], parts[other]]))
        assert apart > difference - 1e-9 or union > spread - 1e-9


def test_the_most_similar_neighbors_are_merged_first() -> None:
    row = np.array([[[0.0], [0.04], [0.07], [0.3]]])
    blocks = np.array([[0, 1, 2, 3]])
    # 0.04 and 0.07 first; their mean 0.055 is then too far from 0, which 0.04 was not
    assert merge_regions(row, blocks, spread=1.0, difference=0.05).tolist() == [[0, 1, 1, 2]]
    # the union of all three would be uniform in their means, but not in its standard deviation
    assert merge_regions(row, blocks, spread=0.02, difference=0.06).tolist() == [[0, 1, 1, 2]]
    assert merge_regions(row, blocks, spread=0.03, difference=0.06).tolist() == [[0, 0, 0, 1]]


def test_means_of_decibels_are_of_power() -> None:
    image, regions = torch.tensor([[[-10.0, -20.0, -5.0]]]), torch.tensor([[0, 0, 1]])
    power = region_means(image, regions, "sigma0_db")[:, 0]
    np.testing.assert_allclose(power, [10 * np.log10(0.055), -5.0])
    assert region_means(image, regions, "reflectance")[0, 0] == -15.0
    row, blocks = np.array([[[-10.0], [-20.0], [-12.6]]]), np.array([[0, 0, 1]])
    # the mean of the power of the first region is -12.6 dB, that of its decibels -15
    assert merge_regions(row, blocks, spread=99, difference=0.1, unit="sigma0_db").max() == 0
    assert merge_regions(row, blocks, spread=99, difference=0.1).max() == 1


def chips(seed: int = 0, count: int = 3) -> Batch:
    """Lakes, dark in the near infrared, in bright land."""
    draw = torch.Generator().manual_seed(seed)
    blobs = torch.rand(count, 1, 8, 8, generator=draw)
    water = torch.nn.functional.interpolate(blobs, (32, 30), mode="bilinear")[:, 0] > 0.55
    image = torch.where(
        water[:, None], torch.tensor([0.06, 0.02])[:, None, None], torch.tensor([0.1, 0.3])[:, None, None]
    )
    image = image + 0.005 * torch.randn(count, 2, 32, 30, generator=draw)
    seen = torch.rand(water.shape, generator=draw) > 0.05
    return Batch(image * seen[:, None], water.long(), seen, seen, tuple(f"{seed}.{i}" for i in range(count)))


METHODS = [
    RegionGrowing(prototypes=8),
    RegionGrowing(prototypes=8, compare="seed", spacing=6),
    RegionGrowing(classes="ndwi > 0"),
    SplitAndMerge(prototypes=8),
    SplitAndMerge(classes="water-index"),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_regions_get_the_class_of_their_kind_on_new_chips(method) -> None:
    model = method(SPEC)
    if not model.fitted:
        with pytest.raises(ModelError, match="expected a fitted model"):
            model(chips().image)
        model.fit([chips()])
    new = chips(seed=7)
    logits, regions = model(new.image), model.regions(new.image)
    right = (logits.argmax(1) == new.label)[new.valid]
    assert right.float().mean() > 0.97
    assert (logits.movedim(1, -1)[~new.seen] == 0).all() and torch.equal(regions >= 0, new.seen)
    for of_chip, own in zip(regions, logits, strict=True):
        for k in range(int(of_chip.max()) + 1):
            assert len(own[:, of_chip == k].T.unique(dim=0)) == 1


def test_a_water_index_rule_is_of_the_mean_over_the_region() -> None:
    model = SplitAndMerge(classes="ndwi > 0.1", spread=9.0, difference=0.0, largest=4)(SPEC)
    assert isinstance(model, RegionNet) and model.fitted
    image = torch.rand(1, 2, 4, 8, generator=torch.Generator().manual_seed(3)) + 0.1
    image[0, :, 1, 1] = 0.0  # unseen
    index = (image[:, 0] - image[:, 1]) / (image[:, 0] + image[:, 1])
    seen = (image != 0).any(1)
    for cols in (slice(0, 4), slice(4, 8)):
        mean = index[:, :, cols][seen[:, :, cols]].mean()
        got = model(image)[:, 1, :, cols][seen[:, :, cols]]
        np.testing.assert_allclose(got, (10 * (mean - 0.1)).expand_as(got), rtol=1e-5)
    with pytest.raises(UsageError, match='expected "majority" to fit'):
        model.fit([chips()])
    backscatter = SplitAndMerge(classes="vv < -14", spread=99.0, largest=2)(RADAR)
    pair = torch.tensor([-10.0, -20.0]).reshape(1, 1, 1, 2)  # -12.6 dB in power: land; -15 dB in decibels: water
    assert (backscatter(pair).argmax(1) == 0).all()


@pytest.mark.parametrize("make", [RegionGrowing, SplitAndMerge])
def test_hostile_training_chips_of_regions(make) -> None:
    one = Batch.of(torch.full((1, 2, 5, 5), 0.2), torch.ones(1, 5, 5).long())
    model = make()(SPEC)  # 64 prototypes of one region
    model.fit([one])
    assert (model(torch.rand(1, 2, 6, 6)).argmax(1) == 1).all()
    assert (model(torch.zeros(2, 2, 5, 5)) == 0).all()  # all unseen
    blind = Batch.of(torch.zeros(1, 2, 5, 5), torch.zeros(1, 5, 5).long(), seen=torch.zeros(1, 5, 5).bool())
    with pytest.raises(DataError, match="seen pixels, got none"):
        make()(SPEC).fit([blind])
    with pytest.raises(DataError, match="expected labelled training pixels"):
        make()(SPEC).fit([Batch.of(one.image, one.label, valid=torch.zeros(1, 5, 5).bool())])
    with pytest.raises(ModelError, match="expected 2 bands"):
        model(torch.rand(1, 3, 5, 5))


def test_settings_of_regions_that_cannot_be_are_refused() -> None:
    for make, given_, word in (
        (RegionGrowing, {"tolerance": -1.0}, "tolerance"),
        (RegionGrowing, {"spacing": -1}, "spacing"),
        (RegionGrowing, {"smoothing": 99.0}, "smoothing"),
        (SplitAndMerge, {"spread": float("nan")}, "spread"),
        (SplitAndMerge, {"largest": 12}, "power of two"),
        (SplitAndMerge, {"prototypes": 0}, "1..1024"),
        (SplitAndMerge, {"prototypes": 8, "classes": "water-index"}, "expected none where a water index"),
        (RegionGrowing, {"classes": "mndwi"}, "known: majority"),
    ):
        with pytest.raises(UsageError, match=word):
            make(**given_)

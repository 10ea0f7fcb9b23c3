"""What must hold for any chip, any threshold and any split."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.data.chip_format import decode_image, encode_image
from seawall.data.chips import ChipFolder
from seawall.data.index import ChipHeader, ChipRow, dump_row, load_row
from seawall.data.raw_chips import chip_windows
from seawall.data.splits import check_disjoint, split_groups, split_summary
from seawall.geo.raster import Grid
from seawall.labels.rules import parse_rule
from seawall.labels.threshold import otsu

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31), st.booleans())
def test_any_image_survives_the_disk(bands, height, width, seed, whole):
    rng = np.random.default_rng(seed)
    image = (rng.integers(-9000, 32000, (bands, height, width)) * np.float32(1e-4)).astype(np.float32)
    seen = rng.random((height, width)) < rng.random()
    grid, names = Grid(height, width), tuple(f"b{i}" for i in range(bands))
    file = encode_image(image, seen, grid, names, 1e-4 if whole else None)
    stored = np.frombuffer(file.data, file.dtype, image.size, file.at).reshape(image.shape)
    out = np.empty_like(image)
    assert np.array_equal(decode_image(stored, file.gain, "reflectance", out), seen[None])
    np.testing.assert_allclose(out, np.where(seen, image, 0), atol=3e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 100), st.integers(0, 100)), min_size=3, max_size=60),
    st.integers(0, 99),
)
def test_any_split_is_disjoint_and_complete(chips, seed):
    rows = [
        ChipRow(f"c{i:02d}", f"g{g}", "i", "l", 10, 10, f"s{i}", "", "int16", 1e-4, 0, 0, 1.0, 1.0, (land, water))
        for i, (g, land, water) in enumerate(chips)
    ]
    folder = ChipFolder("x", HEADER, rows)
    if len(folder.groups()) < 3:
        return
    split = split_groups(folder, seed)
    check_disjoint(folder, split)
    assert sorted((*split.train, *split.val, *split.test)) == list(folder.ids) and all(split.parts().values())
    assert all(v is None or 0 <= v <= 1 for v in split_summary(folder, split)["water_share"].values())
    assert all(load_row(dump_row(row), "x") == row for row in rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 128))
def test_any_cut_is_disjoint_and_inside(height, width, chip):
    hits = np.zeros((height, width), int)
    for _, (row, col, tall, wide) in chip_windows((height, width), chip):
        assert tall <= chip and wide <= chip and row + tall <= height and col + wide <= width
        hits[row : row + tall, col : col + wide] += 1
    assert hits.max() <= 1 and hits[0, 0] == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["awei_nsh", "awei_sh", "mndwi", "ndwi"]), st.floats(-1, 1))
def test_unseen_is_never_water_and_a_higher_threshold_has_less(seed, name, at):
    rng = np.random.default_rng(seed)
    image = rng.uniform(-0.05, 0.6, (5, 9, 9)).astype(np.float32)
    image[:, rng.random((9, 9)) < 0.2] = rng.choice([0.0, np.nan])
    seen = rng.random((9, 9)) < 0.7
    bands = ("B02", "B03", "B08", "B11", "B12")
    label = parse_rule(f"{name} > {at:.6f}")(image, seen, bands, "reflectance").label
    more = parse_rule(f"{name} > {at - 0.1:.6f}")(image, seen, bands, "reflectance").label
    assert (label[~seen] == 255).all() and (label[~np.isfinite(image).all(0)] == 255).all()
    assert ((label == 1) <= (more == 1)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 400), st.floats(-0.5, 0.5))
def test_otsu_is_defined_for_anything_and_moves_with_the_values(seed, n, shift):
    values = np.random.default_rng(seed).normal(0, 0.1, n) + np.random.default_rng(seed + 1).integers(0, 2, n) * 0.6
    everywhere = np.ones(n, bool)
    found = otsu(values.astype(np.float32), everywhere, low=-5, high=5)
    moved = otsu((values + shift).astype(np.float32), everywhere, low=-5, high=5, fallback=0.0)
    assert np.isfinite(found.value) and found.method in ("otsu", "fallback")
    if found.method == moved.method == "otsu":
        assert abs(moved.value - found.value - shift) < 0.05

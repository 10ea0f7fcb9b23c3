"""Splits keep groups, pictures and ground apart, and say what is lacking."""

import time

import numpy as np
import pytest
import shapely
from pyproj import CRS, Transformer

from seawall.data.chips import ChipFolder
from seawall.data.footprints import overlaps, within_distance
from seawall.data.index import ChipHeader, ChipRow
from seawall.data.splits import (
    Split,
    check_disjoint,
    groups_without_water,
    kfold_groups,
    split_blocks,
    split_groups,
    split_summary,
)
from seawall.errors import DataError, UsageError

HEADER = ChipHeader(("B03", "B08"), "reflectance", ("land", "water"), 10.0)


def row(
    id_: str,
    group: str,
    water: float = 0.3,
    at: tuple[float, float] | None = None,
    sha: str = "",
    valid: int = 4096,
    crs: str = "EPSG:32631",
):
    wet = round(valid * water)
    place = {"transform": (10.0, 0.0, at[0], 0.0, -10.0, at[1]), "crs": crs} if at else {}
    return ChipRow(
        id_, group, f"images/{id_}.tif", f"labels/{id_}.tif", 64, 64, sha or id_, id_, "int16", 1e-4, 0, 0,
        1.0, valid / 4096, (valid - wet, wet), **place,
    )  # fmt: skip


def made(*rows: ChipRow, header: ChipHeader = HEADER, tmp="/nowhere") -> ChipFolder:
    return ChipFolder(tmp, header, sorted(rows, key=lambda r: r.id))


def many(groups: int = 20, seed: int = 0) -> ChipFolder:
    rng = np.random.default_rng(seed)
    return made(
        *(
            row(f"g{g:02d}c{c}", f"g{g:02d}", rng.uniform(0, 0.9))
            for g in range(groups)
            for c in range(rng.integers(1, 12))
        )
    )


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_parts_are_balanced(seed):
    folder = many(seed=seed)
    split = split_groups(folder, seed, val=0.2, test=0.2)
    parts = split.parts()
    assert sorted(sum(parts.values(), ())) == list(folder.ids)
    groups = [{folder.row(i).group for i in ids} for ids in parts.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    facts = split_summary(folder, split)
    for part, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert facts["chips_per_part"][part] / len(folder) == pytest.approx(share, abs=0.05)
    water = [facts["water_share"][part] for part in parts]
    assert max(water) - min(water) < 0.1


def test_the_seed_decides_and_nothing_else():
    folder = many()
    assert split_groups(folder, 1) == split_groups(made(*reversed(folder.rows)), 1)
    assert split_groups(folder, 1).test != split_groups(folder, 2).test


def test_no_part_stays_empty_and_too_few_groups_are_refused():
    folder = made(*(row(f"a{i}", "big") for i in range(50)), row("b", "b"), row("c", "c"))
    split = split_groups(folder, 0)
    assert split.train and split.val and split.test
    with pytest.raises(DataError, match="at least 3 separable groups, got 2"):
        split_groups(made(row("a", "a"), row("b", "b")))
    assert split_groups(made(row("a", "a"), row("b", "b")), val=0).val == ()
    with pytest.raises(UsageError, match="train on"):
        split_groups(folder, val=0.5, test=0.5)


def test_groups_with_the_same_picture_or_ground_stay_together():
    rows = [row(f"{g}{c}", g) for g in "abcdef" for c in range(3)]
    rows += [row("twin1", "t1", sha="same"), row("twin2", "t2", sha="same")]
    rows += [row("over1", "o1", at=(0, 0)), row("over2", "o2", at=(320, 0)), row("next", "o3", at=(960, 0))]
    folder = made(*rows)
    for seed in range(8):
        parts = {i: p for p, ids in split_groups(folder, seed).parts().items() for i in ids}
        assert parts["twin1"] == parts["twin2"] and parts["over1"] == parts["over2"]


@pytest.mark.parametrize(
    "rows,match",
    [
        ([row("a", "g"), row("b", "g")], "group"),
        ([row("a", "g", sha="s"), row("b", "h", sha="s")], "picture"),
        ([row("a", "g", at=(0, 0)), row("b", "h", at=(630, 0))], "shared ground"),
    ],
)
def test_overlap_is_proven(rows, match):
    folder = made(*rows)
    with pytest.raises(DataError, match=match):
        check_disjoint(folder, Split(("a",), (), ("b",)))
    with pytest.raises(DataError, match="in one part"):
        check_disjoint(folder, Split(("a",), ("a",), ()))
    with pytest.raises(DataError, match="once in train"):
        check_disjoint(folder, Split(("a", "a"), (), ()))


def test_neighbors_that_share_a_border_do_not_overlap():
    check_disjoint(made(row("a", "g", at=(0, 0)), row("b", "h", at=(640, 0))), Split(("a",), (), ("b",)))


def placed(id_: str, group: str, lon: float, lat: float, crs: str, pixel: float = 10.0, size: int = 64) -> ChipRow:
    """A chip whose center is at a longitude and latitude, in any coordinate system."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    half = pixel * size / 2
    plain = row(id_, group, at=(0, 0), crs=crs)
    corner = (pixel, 0.0, x - half, 0.0, -pixel, y + half)
    return ChipRow(**{**vars(plain), "transform": corner, "height": size, "width": size})


WKT_32632 = CRS.from_epsg(32632).to_wkt("WKT1_GDAL")


@pytest.mark.parametrize(
    "first,second",
    [
        (("EPSG:32632",), ("EPSG:32633",)),
        (("EPSG:32632",), (WKT_32632,)),
        (("EPSG:32632",), ("EPSG:4326", 1e-4)),
        (("EPSG:3857",), ("EPSG:3035",)),
    ],
    ids=["two zones", "name and WKT", "meters and degrees", "web and equal area"],
)
def test_one_ground_in_two_coordinate_systems_is_found(first, second):
    here = placed("a", "g", 12.0, 47.5, *first)
    with pytest.raises(DataError, match="shared ground"):
        check_disjoint(made(here, placed("b", "h", 12.004, 47.5, *second)), Split(("a",), (), ("b",)))
    check_disjoint(made(here, placed("b", "h", 12.02, 47.5, *second)), Split(("a",), (), ("b",)))
    rows = [placed(f"x{i}", f"x{i}", 1.0 + i, 40.0, "EPSG:32631") for i in range(5)]
    for seed in range(6):
        split = split_groups(made(here, placed("b", "h", 12.004, 47.5, *second), *rows), seed)
        parts = {i: p for p, ids in split.parts().items() for i in ids}
        assert parts["a"] == parts["b"]


@pytest.mark.parametrize(
    "first,second",
    [
        (("a", "g", 179.999, -17.0, "EPSG:32760"), ("b", "h", -179.999, -17.0, "EPSG:32701")),
        (("a", "g", 179.999, -17.0, "EPSG:4326", 1e-4), ("b", "h", -179.999, -17.0, "EPSG:4326", 1e-4)),
        (("a", "g", 179.999, -17.0, "EPSG:32760"), ("b", "h", -179.9965, -17.0, "EPSG:32701")),
        (("a", "g", 30.0, 90.0, "EPSG:3413"), ("b", "h", 200.0, 89.999, "EPSG:3995")),
        (("a", "g", 0.0, -90.0, "EPSG:3031", 1000.0), ("b", "h", 120.0, -89.8, "EPSG:3976", 10.0)),
    ],
    ids=["antimeridian", "antimeridian in degrees", "beyond the antimeridian", "north pole", "south pole"],
)
def test_ground_at_the_seams_of_the_earth_is_found(first, second):
    near_by, far = placed(*second), placed(second[0], second[1], second[2] + 40, second[3] * 0.9, *second[4:])
    with pytest.raises(DataError, match="shared ground"):
        check_disjoint(made(placed(*first), near_by), Split(("a",), (), ("b",)))
    if "pole" not in first[4] and abs(first[3]) < 80:
        check_disjoint(made(placed(*first), far), Split(("a",), (), ("b",)))


def test_chips_whose_bounds_meet_and_whose_ground_does_not_are_apart():
    """Zones turn chips against each other, so the corners of their bounds hold no ground."""
    first = placed("a", "g", 12.0, 47.5, "EPSG:32632")
    assert not list(overlaps([first, placed("b", "h", 12.00864, 47.50585, "EPSG:32633")]))
    assert list(overlaps([first, placed("b", "h", 12.0080, 47.5054, "EPSG:32633")]))


def test_neighbors_in_two_systems_that_share_a_border_do_not_overlap():
    left = row("a", "g", at=(500000, 5200000), crs="EPSG:32632")
    right = row("b", "h", at=(500640, 5200000), crs=WKT_32632)
    check_disjoint(made(left, right), Split(("a",), (), ("b",)))


def test_overlaps_agree_with_shapes_compared_one_by_one():
    rng = np.random.default_rng(0)
    systems = ["EPSG:32632", "EPSG:32633", "EPSG:3035"]
    rows = [
        placed(f"c{i}", "g", 12 + rng.uniform(-0.05, 0.05), 47.5 + rng.uniform(-0.05, 0.05), systems[i % 3])
        for i in range(60)
    ]
    to = {crs: Transformer.from_crs(crs, "EPSG:25832", always_xy=True) for crs in systems}

    def shape(r: ChipRow) -> shapely.Polygon:
        ring = [r.grid.point(y, x) for y, x in ((0, 0), (0, 64), (64, 64), (64, 0))]
        return shapely.Polygon([to[r.crs].transform(*point) for point in ring])

    expected = {
        (a.id, b.id) for i, a in enumerate(rows) for b in rows[i + 1 :] if shape(a).intersection(shape(b)).area > 50
    }
    found = {tuple(sorted(pair, key=lambda id_: int(id_[1:]))) for pair in overlaps(rows)}
    assert expected and found == expected


def test_many_chips_of_two_zones_are_compared_in_time():
    rows = [
        placed(f"{zone}{x:02d}{y:02d}", "g", 12 + 0.01 * x, 47 + 0.007 * y, f"EPSG:326{zone}")
        for zone in (32, 33)
        for x in range(25)
        for y in range(20)
    ]
    start = time.process_time()
    found = {frozenset(pair) for pair in overlaps(rows)}
    assert time.process_time() - start < 10
    assert all({f"32{x:02d}{y:02d}", f"33{x:02d}{y:02d}"} in found for x in range(25) for y in range(20))


def test_a_gap_counts_across_zones():
    places = [(11.99, 47.5, 32632), (12.01, 47.5, 32633), (14.0, 47.5, 32633), (16.0, 47.5, 32633)]
    rows = [placed(f"c{i}", f"g{i}", lon, lat, f"EPSG:{zone}") for i, (lon, lat, zone) in enumerate(places)]
    assert within_distance([rows[0], rows[2]], [rows[1], rows[3]], 2000.0).tolist() == [True, False]
    assert within_distance([rows[0], rows[2]], [rows[1], rows[3]], 1000.0).tolist() == [False, False]


def test_blocks_hold_chips_of_one_place_together():
    folder = made(
        *(
            row(f"r{y:02d}c{x:02d}", "one scene", (x % 5) / 5, at=(640.0 * x, -640.0 * y))
            for y in range(12)
            for x in range(12)
        )
    )
    split = split_blocks(folder, 3, block_m=1920)
    parts = {i: p for p, ids in split.parts().items() for i in ids}
    for y in range(12):
        for x in range(12):
            same = parts[f"r{y // 3 * 3:02d}c{x // 3 * 3:02d}"]
            assert parts[f"r{y:02d}c{x:02d}"] == same
    assert "blocks of 1920 m" in split.how
    gap = split_blocks(folder, 3, block_m=1920, gap_m=1000)
    assert set(gap.train) < set(split.train) and gap.test == split.test
    with pytest.raises(DataError, match="lower gap_m"):
        split_blocks(folder, 3, block_m=1920, gap_m=1e6)
    with pytest.raises(UsageError, match="block_m"):
        split_blocks(folder, 3, block_m=0)


def test_blocks_of_geographic_chips_are_in_meters_and_need_a_georeference():
    rows = [row(f"{i:02d}", "g", at=(0, 0)) for i in range(10)]
    degrees = [
        ChipRow(**{**vars(r), "transform": (1e-4, 0, 10 + 0.01 * i, 0, -1e-4, 50), "crs": "EPSG:4326"})
        for i, r in enumerate(rows)
    ]
    split = split_blocks(made(*degrees), 0, block_m=2000)  # 0.01 degrees: about 960 m in EPSG:6933
    assert len(split.train) + len(split.val) + len(split.test) == 10
    with pytest.raises(DataError, match="georeference"):
        split_blocks(made(row("a", "g"), row("b", "h"), row("c", "i")), block_m=1000)


def test_folds_cover_every_chip_once():
    folder = many(9)
    folds = kfold_groups(folder, 4, seed=2)
    assert sorted(sum((f.test for f in folds), ())) == list(folder.ids)
    assert all(not f.val and set(f.train).isdisjoint(f.test) for f in folds)
    with pytest.raises(UsageError, match="at least 2"):
        kfold_groups(folder, 1)
    with pytest.raises(DataError, match="12 separable"):
        kfold_groups(folder, 12)


def test_no_water_is_a_warning_not_a_crash():
    folder = made(row("a", "wet", 0.5), row("b", "dry", 0.0), row("c", "blank", 0.0, valid=0), row("d", "wet2", 0.1))
    assert groups_without_water(folder, folder.ids) == ("blank", "dry")
    facts = split_summary(folder, Split(("a", "d"), ("b",), ("c",)))
    assert facts["water_share"] == {"train": pytest.approx(0.3, abs=1e-3), "val": 0.0, "test": None}
    assert any("val: no water" in w for w in facts["warnings"]) and any(
        "test: no valid" in w for w in facts["warnings"]
    )
    all_dry = made(*(row(f"x{i}", f"g{i}", 0.0) for i in range(6)))
    assert split_groups(all_dry).test
    assert "no water in 6 groups" in split_summary(all_dry, split_groups(all_dry))["warnings"][-1]


def test_classes_without_water_have_no_water_share():
    header = ChipHeader(("B03", "B08"), "reflectance", ("forest", "urban"), 10.0)
    folder = made(*(row(f"x{i}", f"g{i}") for i in range(6)), header=header)
    facts = split_summary(folder, split_groups(folder))
    assert set(facts["water_share"].values()) == {None} and facts["warnings"] == []


def test_the_real_chips_split_by_group(real_chips, tmp_path):
    from seawall.data.curate import curate_chips

    folder = curate_chips(real_chips, tmp_path / "hls", select="hls_").folder
    split = split_groups(folder, 0)
    facts = split_summary(folder, split)
    assert sum(facts["chips_per_part"].values()) == 93 and min(facts["chips_per_part"].values()) >= 15
    assert max(facts["water_share"].values()) - min(facts["water_share"].values()) < 0.06
    assert any("no water in" in w for w in facts["warnings"])

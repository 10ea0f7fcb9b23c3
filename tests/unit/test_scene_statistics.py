"""Scenes unlike the training scenes: the vector of a window, the distance, its cut-off, and the causes in words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from affine import Affine

from seawall.errors import DataError, UsageError
from seawall.geo.grid import Grid
from seawall.geo.raster import write_cog
from seawall.inference.guarantee import judge_scene
from seawall.inference.scene import open_scene
from seawall.types import Batch, ModelSpec
from seawall.uncertainty.scene_statistics import (
    SceneStatistics,
    collect_windows,
    describe_windows,
    entry_names,
    fit_scene_statistics,
    window_slices,
)

BANDS = ("B03", "B08", "B11")


def draws(scenes=40, windows=3, entries=6, seed=0):
    """Scenes of normal vectors with correlated entries, in other units."""
    draw = np.random.default_rng(seed)
    mix = draw.normal(size=(entries, entries)) * np.logspace(0, 2, entries)
    centers = draw.normal(size=(scenes, 1, entries)) @ mix
    return {f"s{i:03}": centers[i] + 0.1 * draw.normal(size=(windows, entries)) @ mix for i in range(scenes)}


def names(entries=6):
    return tuple(f"entry{i}" for i in range(entries))


def image(seed=0, size=64, level=0.2):
    draw = np.random.default_rng(seed)
    return (level + 0.05 * draw.normal(size=(3, size, size))).astype(np.float32)


def test_the_vector_of_a_window_by_its_definition():
    x, seen = image(), np.ones((64, 64), bool)
    seen[:20] = False
    got = dict(
        zip(entry_names(BANDS, "reflectance"), describe_windows(x, seen, BANDS, "reflectance", 64)[0], strict=True)
    )
    inside = x[:, 20:].astype(np.float64)
    assert got["B08 mean"] == pytest.approx(inside[1].mean())
    assert got["B11 deviation"] == pytest.approx(inside[2].std())
    assert got["B03 95 % quantile"] == pytest.approx(np.percentile(inside[0], 95))
    steps = np.concatenate([np.diff(inside[1], axis=axis).ravel() for axis in (0, 1)])
    assert got["B08 gradient"] == pytest.approx(np.sqrt((steps**2).mean()))
    assert got["B03/B11 correlation"] == pytest.approx(np.corrcoef(inside[0].ravel(), inside[2].ravel())[0, 1])
    ndwi = (inside[0] - inside[1]) / (inside[0] + inside[1])
    assert got["NDWI 50 % quantile"] == pytest.approx(np.percentile(ndwi, 50), abs=1e-6)


@pytest.mark.parametrize("rubbish", [1e9, -9999.0, np.nan, np.inf])
def test_nodata_never_enters(rubbish):
    x, seen = image(), np.random.default_rng(1).random((3, 64, 64)) > 0.3
    filled = np.where(seen, x, np.float32(rubbish))
    with np.errstate(invalid="ignore"):
        assert np.array_equal(*(describe_windows(i, seen, BANDS, "reflectance", 32) for i in (x, filled)))
    assert describe_windows(x, np.zeros((64, 64), bool), BANDS, "reflectance").shape == (
        0,
        len(entry_names(BANDS, "reflectance")),
    )


def test_a_window_is_left_out_where_one_band_is_hardly_seen():
    seen = np.ones((3, 64, 64), bool)
    seen[1, :, :32] = np.random.default_rng(0).random((64, 32)) < 0.1
    assert len(describe_windows(image(), seen, BANDS, "reflectance", 32)) == 2


def test_windows_cover_an_image_and_are_spread_evenly_where_there_are_many():
    covered = np.zeros((100, 250), int)
    for at in window_slices(100, 250, 64):
        covered[at] += 1
    assert covered.min() == 1
    few = window_slices(6400, 6400, 64, most=16)
    assert len(few) == 16 and few[0][0].start == 0 and few[-1][0].stop == 6400
    assert len({rows.start // 1600 for rows, _ in few}) == 4


def test_the_score_is_the_mahalanobis_distance_with_the_shrinkage_of_ledoit_and_wolf():
    scenes = draws()
    fitted = fit_scene_statistics(scenes, names(), 32)
    means = np.stack([scenes[name].mean(0) for name in sorted(scenes)])
    z = (means - means.mean(0)) / means.std(0)
    n, d = z.shape
    sample = z.T @ z / n
    target = np.trace(sample) / d * np.eye(d)
    spread = np.mean([((np.outer(row, row) - sample) ** 2).sum() for row in z]) / n
    share = min(1.0, spread / ((sample - target) ** 2).sum())
    assert 0 < share < 1
    inverse = np.linalg.inv((1 - share) * sample + share * target)
    new = draws(seed=5)["s000"]
    away = (new - means.mean(0)) / means.std(0)
    wanted = np.median([np.sqrt(row @ inverse @ row) for row in away])
    assert fitted.judge(new).score == pytest.approx(wanted, rel=1e-9)


def test_familiar_scenes_are_flagged_as_often_as_promised_and_others_always():
    flagged = []
    for seed in range(25):
        both = draws(scenes=60, seed=seed)
        fitted = fit_scene_statistics({k: both[k] for k in sorted(both)[:30]}, names(), 32, alarms=0.1)
        flagged.append(np.mean([fitted.judge(both[k]).unusual for k in sorted(both)[30:]]))
        assert fitted.realized is not None and 0 <= fitted.realized <= 0.3
    assert 0.05 < np.mean(flagged) < 0.13  # 0.1 in expectation; a cut-off on scores that saw their own scene gives 0.3
    far = fitted.judge(both["s000"] + 30 * np.stack([v.mean(0) for v in both.values()]).std(0))
    assert far.unusual and far.p_value == pytest.approx(1 / 31)


def test_causes_name_the_entry_that_moved_with_its_number_and_the_range():
    scenes = {
        f"s{i:02}": describe_windows(image(i, level=0.1 + 0.01 * i), np.ones((64, 64), bool), BANDS, "reflectance", 32)
        for i in range(24)
    }
    fitted = fit_scene_statistics(scenes, entry_names(BANDS, "reflectance"), 32, alarms=0.05)
    x = image(99, level=0.2)
    assert not fitted.judge(describe_windows(x, np.ones((64, 64), bool), BANDS, "reflectance", 32)).unusual
    x[1] += 0.4
    found = fitted.judge(describe_windows(x, np.ones((64, 64), bool), BANDS, "reflectance", 32))
    assert found.unusual
    cause = next(text for text in found.causes if text.startswith("B08 "))
    entry = fitted.names.index(cause.split(" 0.")[0])
    assert cause.endswith(f"training {fitted.low[entry]:.3g} to {fitted.high[entry]:.3g}")
    assert len(found.causes) == len({text.split()[0] for text in found.causes}) <= 3


def test_the_first_cause_is_what_moved_most():
    draw = np.random.default_rng(0)
    scenes = {f"s{i:02}": draw.normal(size=(1, 5)) for i in range(60)}
    names_of = tuple(f"B{i:02} mean" for i in range(5))
    moved = np.array([[0.0, 8.0, 0.0, 30.0, -15.0]])
    found = fit_scene_statistics(scenes, names_of, 32).judge(moved)
    assert [text.split()[0] for text in found.causes] == ["B03", "B04", "B01"]


def test_a_combination_that_is_unusual_has_causes_too():
    draw = np.random.default_rng(0)
    level = draw.normal(size=60)
    scenes = {f"s{i:02}": np.array([[level[i], level[i] + 0.05 * draw.normal()]]) for i in range(60)}
    found = fit_scene_statistics(scenes, ("B03 mean", "B08 mean"), 32).judge(np.array([[1.5, -1.5]]))
    assert found.unusual and {text.split(" ")[0] for text in found.causes} == {"B03", "B08"}


def test_a_correlation_of_noise_does_not_decide_alone():
    names_of = ("B03 mean", "B03/B08 correlation")
    draw = np.random.default_rng(0)
    scenes = {f"s{i:02}": np.array([[draw.normal(), 0.99 + 0.001 * draw.normal()]]) for i in range(40)}
    fitted = fit_scene_statistics(scenes, names_of, 32)
    assert fitted.judge(np.array([[0.0, -1.0]])).score < 4
    assert fitted.judge(np.array([[2000.0, 0.99]])).score > 1000


def test_an_entry_that_never_varied_does_not_count():
    scenes = {name: np.concatenate([rows, np.full((len(rows), 1), 7.0)], 1) for name, rows in draws().items()}
    fitted = fit_scene_statistics(scenes, names(7), 32)
    moved = scenes["s000"] + np.array([0.0] * 6 + [1e6])
    assert fitted.judge(moved).score == fitted.judge(scenes["s000"]).score


def test_too_few_scenes_say_how_many_are_missing():
    with pytest.raises(UsageError, match=r"at least 19 clean groups .* got 12, 7 too few; add groups or allow 0\.077"):
        fit_scene_statistics(draws(scenes=12), names(), 32, alarms=0.05)
    assert fit_scene_statistics(draws(scenes=12), names(), 32, alarms=1 / 13).realized is None
    with pytest.raises(UsageError, match="inside"):
        fit_scene_statistics(draws(), names(), 32, alarms=0.0)
    with pytest.raises(DataError, match="finite"):
        fit_scene_statistics(draws() | {"bad": np.full((1, 6), np.nan)}, names(), 32)


def test_statistics_survive_being_stored_and_refuse_what_does_not_fit():
    fitted = fit_scene_statistics(draws(), names(), 32)
    again = SceneStatistics.of(fitted.plain(), fitted.tensors())
    new = draws(seed=3)["s001"]
    assert again.judge(new) == fitted.judge(new) and again.realized == fitted.realized
    with pytest.raises(DataError, match="precision"):
        SceneStatistics.of(fitted.plain(), {k: v for k, v in fitted.tensors().items() if k != "precision"})
    with pytest.raises(DataError, match="center"):
        SceneStatistics.of(fitted.plain() | {"names": list(names(5))}, fitted.tensors())
    for wrong in (new[:, :5], new[:0]):
        with pytest.raises(DataError, match="windows"):
            fitted.judge(wrong)


def test_windows_of_chips_are_gathered_by_scene_and_two_sources_keep_their_own_holes():
    x = torch.from_numpy(np.stack([image(i) for i in range(3)]))
    label = torch.zeros(3, 64, 64, dtype=torch.int64)
    batch = Batch.of(x, label, chips=("a", "b", "c"))
    found = collect_windows([batch], {"a": "one", "b": "one"}, BANDS, "reflectance", 32)
    assert {scene: len(rows) for scene, rows in found.items()} == {"one": 8, "c": 4}
    holes = torch.ones(3, 3, 64, 64, dtype=torch.bool)
    holes[:, 1, :, 40:] = False
    bands, unit = ("s1.VV", "s2.B03", "s2.B08"), ("sigma0_db", "reflectance", "reflectance")
    apart = collect_windows([replace(batch, seen_bands=holes)], {}, bands, unit, 64)["a"][0]
    at = entry_names(bands, unit).index("s2.B03 mean")
    assert apart[at] == pytest.approx(x[0, 1, :, :40].double().mean().item())
    assert "NDWI 5 % quantile" in entry_names(bands, unit) and "NDWI 5 % quantile" not in entry_names(
        ["VV"], "sigma0_db"
    )


def test_a_scene_of_two_sources_is_judged_where_each_is_seen(tmp_path):
    """The radar swath ends inside the scene: its fill there is no value."""
    bands, unit = ("s1.VV", "s1.VH", "s2.B03", "s2.B08"), ("sigma0_db", "sigma0_db", "reflectance", "reflectance")
    spec = ModelSpec(bands, ("land", "water"), unit, 10.0)

    def look(seed):
        draw = np.random.default_rng(seed)
        level, spread = np.array([-11, -17, 0.1, 0.2]), np.array([1, 1, 0.01, 0.02])
        x = (level + 0.8 * spread * draw.normal(size=4))[:, None, None] + spread[:, None, None] * draw.normal(
            size=(4, 96, 96)
        )
        x[:2, :, :60] = np.nan
        return x.astype(np.float32)

    def described(seed):
        x = look(seed)
        return describe_windows(np.nan_to_num(x), np.isfinite(x), bands, unit, 32)

    fitted = fit_scene_statistics({f"s{i:02}": described(i) for i in range(40)}, entry_names(bands, unit), 32)
    for seed in (100, 101):
        write_cog(
            tmp_path / f"{seed}.tif", look(seed), Grid(96, 96, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32633"),
            bands=bands, nodata=float("nan"), tags={"SEAWALL_UNIT": "sigma0_db"},
        )  # fmt: skip
        with open_scene(tmp_path / f"{seed}.tif", spec) as scene:
            found = judge_scene(scene, fitted)
        assert found == fitted.judge(described(seed))

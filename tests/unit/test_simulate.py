"""Simulated scenes: exact truth, the same pixels for the same id, hard enough, quick enough."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from seawall.errors import ImageryError, UsageError
from seawall.geo.radiometry import detect_unit
from seawall.simulate.noise_fields import meander, named_generator, parcels, power_law_noise
from seawall.simulate.scene import S1_LOOKS, S2_BANDS, observe_s1, radar_of_mask, simulate_s1, simulate_s2
from seawall.simulate.spectra import COVERS, MATERIALS
from seawall.simulate.terrain import make_terrain


def band(scene: object, name: str) -> np.ndarray:
    return scene.image[scene.bands.index(name)]  # type: ignore[attr-defined]


def ndwi(scene: object) -> np.ndarray:
    green, nir = band(scene, "B03"), band(scene, "B08")
    return (green - nir) / (green + nir + 1e-6)


def test_the_same_id_gives_the_same_pixels_and_another_does_not() -> None:
    one, two, other = (simulate_s2(name, 96) for name in ("a", "a", "b"))
    np.testing.assert_array_equal(one.image, two.image)
    assert (one.image != other.image).any()
    assert (simulate_s2("a", 96, seed=1).image != one.image).any()
    assert not one.grid.same_as(other.grid)


def test_a_band_does_not_depend_on_the_other_bands() -> None:
    whole = simulate_s2("a", 80)
    part = simulate_s2("a", 80, bands=("swir16", "B3"))
    assert part.bands == ("B11", "B03")
    np.testing.assert_array_equal(part.image, np.stack([band(whole, "B11"), band(whole, "B03")]))


def test_both_sensors_look_at_the_same_ground() -> None:
    optical, radar = simulate_s2("a", 96), simulate_s1("a", 96)
    np.testing.assert_array_equal(optical.water, radar.water)
    np.testing.assert_array_equal(optical.cover, radar.cover)
    assert (radar.unit, radar.image.shape) == ("sigma0_db", (2, 96, 96))
    assert radar.grid.same_as(optical.grid)


def test_truth_is_consistent() -> None:
    for name in "abcdef":
        scene = simulate_s2(name, 96)
        np.testing.assert_array_equal(scene.water, scene.cover == COVERS.index("water"))
        assert scene.image.dtype == np.float32 and np.isfinite(scene.image).all()
        assert scene.seen.all() and scene.cover.max() < len(scene.cover_names) == 8
        assert scene.water.any()


@pytest.mark.parametrize("clouds", [True, False])
def test_clouds_can_be_left_out(clouds: bool) -> None:
    hidden = [1 - simulate_s2(f"c{i}", 64, bands=("B02",), clouds=clouds).clear.mean() for i in range(12)]
    assert (max(hidden) > 0.05) == clouds


def test_clouds_do_not_change_the_truth() -> None:
    for i in range(4):
        with_, without = (simulate_s2(f"c{i}", 64, bands=("B02",), clouds=c) for c in (True, False))
        np.testing.assert_array_equal(with_.cover, without.cover)


def test_values_are_those_of_sentinel_2() -> None:
    scenes = [simulate_s2(f"v{i}", 128, clouds=False) for i in range(6)]
    image = np.concatenate([s.image.reshape(13, -1) for s in scenes], 1)
    low, high = np.percentile(image, (1, 99), axis=1)
    assert (low > -0.01).all() and (high < 0.6).all()
    assert image[S2_BANDS.index("B10")].mean() < 0.03
    dry = np.concatenate([~s.water.ravel() for s in scenes])
    assert image[S2_BANDS.index("B08"), dry].mean() > 2 * image[S2_BANDS.index("B08"), ~dry].mean()
    for s in scenes:
        assert detect_unit(s.image, s.seen, s.bands).kind == "reflectance"
        np.testing.assert_allclose(s.image * 1e4, np.round(s.image * 1e4), atol=2e-2)


def test_radar_values_are_those_of_sentinel_1() -> None:
    for name in "abcd":
        scene = simulate_s1(name, 128)
        assert detect_unit(scene.image, scene.seen, scene.bands).kind == "db"
        vv, vh = scene.image
        assert 4 < np.median(vv - vh) < 12
        assert np.median(vv[scene.water]) < np.median(vv[~scene.water]) - 3


def test_speckle_has_the_looks_of_the_product() -> None:
    """Over deep calm water the variance of power is mean squared over looks, plus the gusts."""
    ground = make_terrain("deep", 256)
    object.__setattr__(ground, "water_share", np.ones_like(ground.water_share))
    power = 10 ** (observe_s1(ground, ("VV",)).image[0] / 10)
    tiles = power.reshape(32, 8, 32, 8).transpose(0, 2, 1, 3).reshape(1024, 64)
    looks = np.median(tiles.mean(1) ** 2 / tiles.var(1))
    assert looks == pytest.approx(4.4, rel=0.15)


def test_a_threshold_is_good_but_wrong_in_places() -> None:
    hits = [0.0, 0.0]
    shares = []
    for i in range(24):
        scene = simulate_s2(f"h{i}", 128, bands=("B03", "B08"))
        guess = ndwi(scene) > 0
        hits[0] += (guess & scene.water).sum()
        hits[1] += (guess | scene.water).sum()
        shares.append(scene.water.mean())
    assert 0.55 < hits[0] / hits[1] < 0.92
    assert min(shares) < 0.2 and max(shares) > 0.5


def test_shorelines_are_mixed() -> None:
    share = make_terrain("a", 128).water_share
    between = (share > 0.05) & (share < 0.95)
    assert 0.002 < between.mean() < 0.4
    assert len(np.unique(np.round(share * 9))) == 10


def test_coarse_bands_carry_no_fine_detail() -> None:
    scene = simulate_s2("a", 240)
    detail = {
        name: np.abs(np.diff(band(scene, name), 2)).mean() / band(scene, name).mean() for name in ("B04", "B12", "B01")
    }
    assert detail["B04"] > detail["B12"] > detail["B01"]


@pytest.mark.parametrize(("size", "gsd_m"), [(16, 10.0), (37, 10.0), (128, 30.0), (65, 20.0)])
def test_any_size_and_pixel(size: int, gsd_m: float) -> None:
    scene = simulate_s2("x", size, gsd_m=gsd_m)
    assert scene.image.shape == (13, size, size)
    assert scene.grid.gsd_m() == gsd_m
    assert np.isfinite(simulate_s1("x", size, gsd_m=gsd_m).image).all()


def test_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match="size >= 16"):
        simulate_s2("a", 8)
    with pytest.raises(UsageError, match=r"gsd_m in 3\.\.60"):
        simulate_s1("a", 64, gsd_m=100)
    with pytest.raises(UsageError, match="use simulate_s1"):
        simulate_s2("a", 64, bands=("VV",))
    with pytest.raises(UsageError, match="VV or VH"):
        simulate_s1("a", 64, bands=("B03",))
    with pytest.raises(ImageryError, match="names of Sentinel bands"):
        simulate_s2("a", 64, bands=("pink",))


def test_materials_are_physical() -> None:
    for material in MATERIALS:
        assert material.cover in COVERS
        assert len(material.dry) == len(material.lush) == 13
        assert all(0 < value < 600 for value in (*material.dry, *material.lush))
        assert material.sigma0_db[0] > material.sigma0_db[1]


def test_noise_has_unit_variance_and_the_slope_asked() -> None:
    field, other = power_law_noise(named_generator("n"), (256, 256), 200, 3.0)
    assert field.std() == pytest.approx(1, rel=0.35)
    assert abs(np.corrcoef(field.ravel(), other.ravel())[0, 1]) < 0.25
    rough, smooth = (
        power_law_noise(named_generator("n"), (256, 256), 200, 2.0)[0],
        power_law_noise(named_generator("n"), (256, 256), 200, 4.0)[0],
    )
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(smooth)).mean()


def test_a_meander_passes_its_point_in_steps_of_one() -> None:
    line = meander(named_generator("m"), (10, 20), 0.3, 400, 60, 1.5)
    np.testing.assert_allclose(line[200], (10, 20))
    np.testing.assert_allclose(np.hypot(*np.diff(line, axis=0).T), 1, atol=1e-9)
    assert np.hypot(*(line[-1] - line[0])) < 330, "it winds"


def test_fields_tile_the_plane() -> None:
    ids = parcels(named_generator("p"), (90, 120), 15, 0.4)
    assert ids.shape == (90, 120)
    areas = np.unique(ids, return_counts=True)[1]
    assert 60 < np.median(areas) < 700


def test_radar_over_a_mask_has_its_water_and_the_speckle_of_the_looks() -> None:
    water = np.zeros((96, 128), bool)
    water[:48] = True
    image = radar_of_mask(water, "a")
    assert image.shape == (2, 96, 128) and np.isfinite(image).all()
    for band in image:
        assert np.median(band[:40]) < np.median(band[56:]) - 4, "water is darker"
    power = 10 ** (image[0, 4:40, 4:124].astype(float) / 10)
    trend = np.exp(gaussian_filter(np.log(power), 6))  # wind
    assert 0.8 / S1_LOOKS < np.var(power / trend) / np.mean(power / trend) ** 2 < 1.3 / S1_LOOKS
    assert np.array_equal(image, radar_of_mask(water, "a"))
    other = radar_of_mask(~water, "a")
    assert np.median(other[0, :40]) > np.median(other[0, 56:]) + 4, "the mask alone says where water is"
    with pytest.raises(UsageError, match="expected VV or VH"):
        radar_of_mask(water, "a", ("HH",))

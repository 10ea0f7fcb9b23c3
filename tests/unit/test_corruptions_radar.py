"""Radar corruptions against their moments and tables."""

import math

import pytest
import torch
from scipy.special import digamma, polygamma

from seawall.chip_context import ChipContext
from seawall.corruptions.build import build_corruption
from seawall.corruptions.radar import (
    BorderNoise,
    IncidenceAngle,
    RadarGain,
    RadioInterference,
    Speckle,
    ThermalNoise,
    added_looks,
    gamma_decibels,
)
from seawall.corruptions.radar_surface import WetSnow, WindOnWater, wind_backscatter
from seawall.errors import UsageError
from seawall.rng import Keys
from seawall.types import Batch, Corruption

BOTH = ("VV", "VH")


def sea(vv: float = -20.0, vh: float = -28.0, size: int = 64, water: bool = True) -> Batch:
    image = torch.tensor([vv, vh]).view(1, 2, 1, 1).expand(1, 2, size, size).clone()
    return Batch.of(image, torch.full((1, size, size), int(water)))


def run(corruption: Corruption, batch: Batch, severity: float = 1.0, seed: int = 0) -> Batch:
    return corruption(batch, severity, Keys(seed, batch.chips))


def power(decibels: torch.Tensor) -> torch.Tensor:
    return torch.pow(10.0, decibels.double() / 10)


@pytest.mark.parametrize(
    ("looks", "mean_db", "std_db"), [(1.0, -2.51, 5.57), (4.4, -0.51, 2.19), (10.0, -0.22, 1.41), (20.0, -0.11, 0.98)]
)
def test_speckle_has_the_moments_of_its_looks(looks: float, mean_db: float, std_db: float) -> None:
    draws = gamma_decibels(torch.randn(400_000, generator=torch.Generator().manual_seed(0)), looks)
    assert float(draws.mean()) == pytest.approx(mean_db, abs=0.03)
    assert float(draws.std()) == pytest.approx(std_db, rel=0.01)
    assert float(draws.mean()) == pytest.approx(4.343 * (digamma(looks) - math.log(looks)), abs=0.03)
    assert float(draws.std()) == pytest.approx(4.343 * math.sqrt(polygamma(1, looks)), rel=0.01)
    linear = power(draws)
    assert float(linear.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(linear.std()) == pytest.approx(looks**-0.5, rel=0.01)


def test_speckle_on_a_speckled_image_leaves_the_stated_looks() -> None:
    for added, result in ((10, 2.86), (5, 2.12), (3, 1.57), (2, 1.19)):
        assert added_looks(result) == pytest.approx(added, rel=0.02)
    calm = sea(size=512)
    speckled = calm.image + gamma_decibels(
        torch.randn(calm.image.shape, generator=torch.Generator().manual_seed(5)), 4.4
    )
    after = run(Speckle(BOTH, correlation_px=0.0), Batch.of(speckled, calm.label))
    linear = power(after.image[0, 0])
    assert float(linear.mean().square() / linear.var()) == pytest.approx(1.2, rel=0.03)
    assert float(linear.mean()) == pytest.approx(0.01, rel=0.02), "speckle has mean 1"
    bands = (after.image - speckled)[0].flatten(1)
    assert abs(float(torch.corrcoef(bands)[0, 1])) < 0.01, "polarizations are independent"


def test_neighboring_pixels_share_speckle_as_an_oversampled_product_does() -> None:
    added = run(Speckle(BOTH, correlation_px=1.0), sea(size=256)).image[0, 0]
    pairs = torch.stack([added[:, :-1].flatten(), added[:, 1:].flatten()])
    assert float(torch.corrcoef(pairs)[0, 1]) == pytest.approx(math.exp(-0.5), abs=0.03)
    apart = torch.stack([added[:, :-5].flatten(), added[:, 5:].flatten()])
    assert abs(float(torch.corrcoef(apart)[0, 1])) < 0.03


@pytest.mark.parametrize(("floor", "rise"), [(-25.0, 2.5), (-22.0, 4.1)])
def test_thermal_noise_adds_its_power(floor: float, rise: float) -> None:
    noise = ThermalNoise(BOTH, joint_db=0.0)
    after = run(noise, sea(vv=-24.0, size=256), (floor + 32) / 12)
    assert noise.level((floor + 32) / 12) == pytest.approx(floor)
    mean = 10 * math.log10(float(power(after.image[0, 0]).mean()))
    assert mean + 24 == pytest.approx(rise, abs=0.05)
    assert mean + 24 == pytest.approx(10 * math.log10(1 + 10 ** ((floor + 24) / 10)), abs=0.03)


def test_the_joint_of_two_subswaths_is_a_step_of_the_stated_size() -> None:
    floors = run(ThermalNoise(BOTH), sea(vv=-60.0, vh=-60.0, size=256), 0.5, seed=3).image[0, 0]
    columns = 10 * power(floors).mean(0).log10()
    assert float(columns[:8].mean() - columns[-8:].mean()) == pytest.approx(2.0, abs=0.3)


# upwind and crosswind sigma0 of VV by wind, at 31, 38.5 and 46 degrees
WIND = {
    31.0: {2: (-19.0, -20.9), 5: (-13.7, -15.8), 10: (-9.1, -12.6)},
    38.5: {2: (-23.3, -25.8), 5: (-17.9, -20.9), 10: (-12.4, -17.2)},
    46.0: {3: (-23.9, -27.0), 7: (-18.1, -22.7), 15: (-11.3, -16.7)},
}


def test_wind_brightens_open_water_in_vv_by_the_table_and_hardly_in_vh() -> None:
    for angle, row in WIND.items():
        for speed, (up, cross) in row.items():
            assert wind_backscatter("VV", float(speed), angle, 1.0) == pytest.approx(up)
            assert wind_backscatter("VV", float(speed), angle, 0.0) == pytest.approx(cross)
    assert wind_backscatter("VH", 18.0, 31.0, 1.0) == pytest.approx(0.218 * 18 - 29.07)
    assert wind_backscatter("VV", 0.01, 38.5, 1.0) < -45
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, :, 10:] = 1
    calm = Batch.of(sea(vv=-40.0, vh=-30.0).image, label)
    after = run(WindOnWater(BOTH, 10.0), calm, 10 / 12)
    far = after.image[0, :, 30, 60]
    assert -17.3 <= float(far[0]) <= -12.3 and float(far[1]) < -26.5
    assert torch.equal(after.image[0, :, :, :10], calm.image[0, :, :, :10]), "land is left alone"
    across = after.image[0, 0, 30, 10:]
    assert bool((across.diff() >= 0).all()) and float(across[0]) < float(across[-1]) - 5, "no waves at the shore"


def test_water_and_land_change_with_the_angle_by_their_own_slopes() -> None:
    for water, slopes in ((True, (0.53, 0.0)), (False, (0.2, 0.2))):
        moved = (run(IncidenceAngle(BOTH), sea(water=water), 0.5).image - sea().image)[0, :, 3, 3].abs()
        assert moved.tolist() == pytest.approx([4 * slope for slope in slopes], abs=1e-5)
    gain = (run(RadarGain(BOTH), sea(), 0.3).image - sea().image)[0]
    assert float(gain.abs().max()) == pytest.approx(0.3, abs=1e-5) and float(gain[0].std()) < 1e-6


def test_interference_fills_whole_lines_and_cross_polarization_most() -> None:
    after = run(RadioInterference(BOTH), sea(vv=-50.0, vh=-50.0)).image[0]
    assert torch.equal(after, after[:, :, :1].expand_as(after)), "a stripe runs across the whole range"
    hit = after[1, :, 0] > -40
    assert 3 <= int(hit.sum()) < 62
    single = after[:, hit, 0].min(1).values
    assert single.tolist() == pytest.approx([-14.0, -8.0], abs=0.1)


def test_border_noise_is_seen_dark_nonzero_and_not_valid() -> None:
    after = run(BorderNoise(BOTH), sea(size=100), 0.5)
    gone = ~after.valid[0]
    assert bool(after.seen.all()) and float(gone.float().mean()) == pytest.approx(0.1, abs=0.001)
    values = after.image[0, 0][gone]
    assert float(values.mean()) == pytest.approx(-35.0, abs=0.5) and float(values.std()) == pytest.approx(3.0, rel=0.2)
    assert len({int(row.sum()) for row in gone}) > 3, "the edge is ragged"


def test_wet_snow_darkens_patches_of_land_by_at_most_its_loss() -> None:
    moved = sea(water=False, size=128).image - run(WetSnow(BOTH, 10.0), sea(water=False, size=128), 0.5).image
    assert float(moved.max()) == pytest.approx(5.0, abs=1e-4) and float(moved.min()) >= 0
    assert float((moved[0, 0] > 0).float().mean()) == pytest.approx(0.6, abs=0.01)
    assert torch.equal(run(WetSnow(BOTH, 10.0), sea()).image, sea().image), "water is left alone"


@pytest.mark.parametrize(
    ("name", "context", "message"),
    [
        ("wind", ChipContext(10.0, ("HH",), "sigma0_db"), "wind.bands: expected some of VV, VH, got 'HH'"),
        ("speckle", ChipContext(10.0, ("B03",), "reflectance"), "speckle: expected images in decibels, got reflectance"),
        ("speckle", ChipContext(10.0, ("B03",), "sigma0_db"), "speckle.bands: expected some of VV, VH, HH, HV, got 'B03'"),
    ],
)  # fmt: skip
def test_what_has_no_model_is_refused_when_it_is_built(name: str, context: ChipContext, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_corruption(name, {}, context)

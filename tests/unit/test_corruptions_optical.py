"""Optical corruptions against their equations."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from seawall.chip_context import ChipContext
from seawall.corruptions.atmosphere import Cirrus, CloudCover, Haze
from seawall.corruptions.band_tables import aerosol_path
from seawall.corruptions.build import PHYSICAL_ORDER, STAGES, Composition, build_corruption, parse_corruption
from seawall.corruptions.calibration import (
    JPEG2000,
    ForgottenOffset,
    GainError,
    MissingBand,
    Quantization,
    Saturation,
)
from seawall.corruptions.noise import ShotNoise, Stripes
from seawall.corruptions.optics import BandMisregistration, Defocus, LineJitter, ReducedMTF, displace_lines
from seawall.corruptions.spatial import translate
from seawall.corruptions.surface import LowSun, Snow, SunGlint, TurbidWater, WaterIce, WetSoil, sediment_reflectance
from seawall.errors import UsageError
from seawall.registry import Entry, entries, find
from seawall.rng import Keys
from seawall.testing.corruptions import TWO_SOURCE_CHIPS
from seawall.types import Batch, Corruption, Setting

S2 = ("B02", "B03", "B04", "B08", "B11", "B12")
CHIPS = ChipContext(10.0, S2, "reflectance", ("land", "water"))
# path, added path and transmittance ratio for an added aerosol optical depth of 0.4; sun at 40 degrees
HAZE = {
    "B01": (0.085, 0.037, 0.77), "B02": (0.055, 0.033, 0.80), "B03": (0.033, 0.028, 0.83), "B04": (0.016, 0.021, 0.86),
    "B08": (0.006, 0.015, 0.90), "B11": (0.0, 0.0055, 0.96), "B12": (0.0, 0.0035, 0.97),
}  # fmt: skip


def flat(*values: float, size: int = 32, water: bool = False) -> Batch:
    """One chip whose bands are constant."""
    image = torch.tensor(values).view(1, -1, 1, 1).expand(1, -1, size, size).clone()
    return Batch.of(image, torch.full((1, size, size), int(water)))


def run(corruption: Corruption, batch: Batch, severity: float = 1.0, seed: int = 0) -> Batch:
    return corruption(batch, severity, Keys(seed, batch.chips))


def ripples(size: int, cycles: float) -> Tensor:
    """One band with a cosine along columns around 0.3, amplitude 0.1."""
    wave = torch.cos(2 * math.pi * cycles * torch.arange(size))
    return (0.3 + 0.1 * wave).expand(1, 1, size, size).clone()


def amplitude(image: Tensor, cycles: float) -> float:
    middle = image[0, 0, :, 24:-24] - 0.3  # away from mirrored edges
    wave = torch.cos(2 * math.pi * cycles * torch.arange(24, 24 + middle.shape[1]))
    return float((middle * wave).sum() / wave.square().sum() / len(middle)) / 0.1


@pytest.mark.parametrize("band", HAZE)
def test_haze_is_the_published_layer_and_contrast_falls_by_its_transmittance(band: str) -> None:
    path, added, ratio = HAZE[band]
    haze = Haze((band,), 10.0, product="toa", texture=0.0)
    assert haze.level(0.5) == pytest.approx(0.4)
    for rho in (0.0, 0.1, 0.6):
        got = float(run(haze, flat(rho), 0.5).image.mean())
        assert got == pytest.approx((rho - path) * ratio + path + added, abs=1e-6)
    fixed = path + added / (1 - ratio)
    assert run(haze, flat(fixed), 0.5).image[0, 0, 0, 0] == pytest.approx(fixed, abs=1e-6)
    dark, bright = (run(haze, flat(rho), 1.0).image for rho in (0.05, 0.45))
    torch.testing.assert_close(bright - dark, torch.full_like(dark, 0.4 * ratio**2), rtol=0, atol=1e-6)


def test_haze_of_surface_reflectance_is_what_the_correction_of_a_clear_day_leaves() -> None:
    # rho_toa = T0 rho + p; haze; back with the same T0 and p
    path, added, ratio = HAZE["B02"]
    mu = math.cos(math.radians(40))
    clear = math.exp(-(0.47 * 0.153 + 0.22 * 0.1 * (492.4 / 550) ** -1.3) * (1 + 1 / mu))
    toa = 0.1 * clear + path
    expected = ((toa - path) * ratio + path + added - path) / clear
    got = run(Haze(("B02",), 10.0, texture=0.0), flat(0.1), 0.5).image
    assert float(got.mean()) == pytest.approx(expected, abs=1e-6)


def test_haze_follows_the_sun_and_its_mean_over_a_textured_chip_is_the_stated_depth() -> None:
    assert aerosol_path(0.4, 20) / aerosol_path(0.4, 40) == pytest.approx(0.71, abs=0.01)
    assert aerosol_path(0.4, 60) / aerosol_path(0.4, 40) == pytest.approx(2.0, abs=0.1)
    black = flat(0.0, size=128)
    even, uneven = (run(Haze(("B12",), 10.0, texture=t), black).image for t in (0.0, 0.3))
    assert float(uneven.mean()) == pytest.approx(float(even.mean()), rel=0.01)
    assert float(uneven.std() / uneven.mean()) == pytest.approx(0.3, abs=0.03)


def test_a_cirrus_over_black_ground_shows_its_reflectance_in_b10() -> None:
    cirrus = Cirrus(("B10", "B03", "B11", "B12"), 10.0, texture=0.0)
    over_black = run(cirrus, flat(0.0, 0.0, 0.0, 0.0), 0.5).image[0, :, 0, 0]
    torch.testing.assert_close(over_black, 0.03 * torch.tensor([1.0, 1.0, 0.7, 0.5]))
    over_land = run(cirrus, flat(0.0, 0.4, 0.0, 0.0), 0.5).image[0, 1, 0, 0]
    assert float(over_land) == pytest.approx(0.97**2 * 0.4 + 0.03)


def test_shadows_fall_away_from_the_sun_by_height_times_tangent() -> None:
    def step(azimuth: float, zenith: float = 50.0, height: float = 1000.0) -> tuple[int, int]:
        return CloudCover(S2, 10.0, sun_azimuth_deg=azimuth, sun_zenith_deg=zenith, height_m=height).shadow_step()

    assert step(180) == (-119, 0)  # sun in the south: the shadow lies north, up
    assert step(90) == (0, -119)  # sun in the east: the shadow lies west, left
    assert step(0) == (119, 0)
    assert step(180, height=0.0) == (0, 0)


def test_without_height_all_shade_is_under_the_cloud_and_with_it_the_shade_is_the_moved_cloud() -> None:
    batch = flat(*([0.2] * 6), size=96)
    low = run(CloudCover(S2, 10.0, height_m=0.0), batch, 0.5)
    assert float((low.image[0, 0] - 0.2).abs().gt(1e-6).float().mean()) == pytest.approx(0.3, abs=0.01)
    high = CloudCover(S2, 30.0, height_m=1000.0, sun_azimuth_deg=180.0)
    after = run(high, batch, 0.5)
    up = -high.shadow_step()[0]
    assert up == 28
    clouds, shade = after.image[0, 0] > 0.3, after.image[0, 0] < 0.12
    inside = shade[:-up]  # the others are shaded by clouds outside the chip
    assert int(inside.sum()) > 20 and float(clouds[up:][inside].float().mean()) > 0.99
    assert float(after.image[0, 3].min()) == pytest.approx(0.2 * 0.07, abs=1e-3)  # full shade leaves the sky's share


def test_opaque_clouds_are_seen_but_no_longer_valid_and_cover_the_stated_share() -> None:
    batch = flat(*([0.1] * 6), size=128)
    after = run(CloudCover(S2, 10.0, height_m=0.0), batch, 1.0)
    covered = after.image[0, 0] > 0.1 + 1e-6
    assert float(covered.float().mean()) == pytest.approx(0.6, abs=0.01)
    assert bool(after.seen.all()) and 0.3 < float((~after.valid).float().mean()) < 0.6
    assert float(after.image[0, 0][~after.valid[0]].min()) > 0.35 and bool(covered[~after.valid[0]].all())


@pytest.mark.parametrize("rho", [0.0, 0.02, 0.3])
def test_the_variance_of_shot_noise_is_that_of_the_specification(rho: float) -> None:
    sigma, reference = 17.9e-4, math.pi * 103 / 1041.6
    noise = ShotNoise(("B08",), 10.0, sun_zenith_deg=0.0)
    added = run(noise, flat(rho, size=256), 1 / 8).image - rho
    expected = sigma**2 * (0.2 + 0.8 * rho / reference)
    spread = 3 * math.sqrt(2 / 256**2)
    assert float(added.var()) == pytest.approx(expected, rel=spread + 0.01)
    if rho == 0.02:
        assert math.sqrt(float(added.var())) == pytest.approx(9.0e-4, rel=0.02)


def test_noise_of_coarse_bands_is_repeated_and_that_of_coarse_pixels_averaged() -> None:
    batch = flat(0.1, 0.1, size=96)
    added = run(ShotNoise(("B11", "B03"), 10.0), batch).image - 0.1
    blocks = added[0, 0].view(48, 2, 48, 2)
    assert torch.equal(blocks, blocks[:, :1, :, :1].expand_as(blocks)), "a 20 m band has one draw per 2 x 2 pixels"
    assert not torch.equal(added[0, 1, ::2], added[0, 1, 1::2])
    fine, coarse = (run(ShotNoise(("B03",), gsd), flat(0.1, size=96)).image.std() for gsd in (10.0, 30.0))
    assert float(fine / coarse) == pytest.approx(3.0, rel=0.03)


def test_a_stripe_multiplies_its_whole_column() -> None:
    batch = flat(0.2, size=256)
    ratio = run(Stripes(("B03",), 10.0, dead=0, tilt_deg=0.0), batch).image[0, 0] / 0.2
    assert torch.equal(ratio, ratio[:1].expand_as(ratio))
    assert float(ratio[0].std()) == pytest.approx(0.01, rel=0.15)
    wide = run(Stripes(("B11",), 10.0, dead=0, tilt_deg=0.0), batch).image[0, 0, 0]
    assert torch.equal(wide[::2], wide[1::2]), "a 20 m column is two pixels wide"
    dead = run(Stripes(("B03",), 10.0, worst=1e-6, interpolated=False, tilt_deg=0.0), batch).image[0, 0]
    assert int((dead == 0).all(0).sum()) == 4 and bool((dead[:, (dead != 0).any(0)] != 0).all())


def test_the_image_is_moved_without_blur() -> None:
    draw = torch.Generator().manual_seed(0)
    image, seen = torch.rand(1, 2, 40, 48, generator=draw), torch.ones(1, 40, 48, dtype=torch.bool)
    down, right = torch.tensor([2.0, -3.0]).view(1, 2, 1, 1), torch.tensor([-1.0, 4.0]).view(1, 2, 1, 1)
    moved = translate(image, seen, down, right)
    for band, (d, r) in enumerate([(2, -1), (-3, 4)]):
        torch.testing.assert_close(
            moved[0, band, 5:-5, 5:-5], torch.roll(image[0, band], (d, r), (0, 1))[5:-5, 5:-5], atol=1e-5, rtol=0
        )
    half = translate(ripples(96, 0.4), torch.ones(1, 96, 96, dtype=torch.bool), torch.zeros(1), torch.full((1,), 0.5))
    wave = half[0, 0, 0, 24:-24] - 0.3
    expected = 0.1 * torch.cos(2 * math.pi * 0.4 * (torch.arange(24, 72) - 0.5))
    # bilinear interpolation would leave cos(pi .4) = 31 % of the amplitude
    assert float((wave - expected).abs().max()) < 0.01


def test_bands_are_displaced_apart_by_the_stated_spread_and_lines_by_the_stated_amplitude() -> None:
    ramp = torch.arange(64.0).expand(1, 400, 64, 64).clone() / 640
    moved = run(BandMisregistration(), Batch.of(ramp, torch.zeros(1, 64, 64, dtype=torch.int64)), 0.5)
    steps = (ramp - moved.image)[0, :, 32, 28:36].mean(1) * 640
    assert float(steps.std()) == pytest.approx(0.5, rel=0.12)
    image = torch.rand(1, 1, 8, 64, generator=torch.Generator().manual_seed(1))
    seen = torch.ones(1, 8, 64, dtype=torch.bool)
    out = displace_lines(image, seen, torch.full((1, 8), 3.0))
    torch.testing.assert_close(out[..., 4:], image[..., 1:-3], atol=1e-5, rtol=0)
    ramp = ramp[:, :1]
    lines = run(LineJitter(), Batch.of(ramp, torch.zeros(1, 64, 64, dtype=torch.int64)), 0.8).image - ramp
    assert float((lines[0, 0, :, 32] * 640).abs().max()) == pytest.approx(0.8, rel=0.03)


def test_the_transfer_at_nyquist_is_what_is_stated_on_the_native_grid() -> None:
    for severity in (0.44, 1.0):
        blur = ReducedMTF(("B02",), 10.0)
        got = amplitude(
            run(blur, Batch.of(ripples(96, 0.5), torch.zeros(1, 96, 96, dtype=torch.int64)), severity).image, 0.5
        )
        assert got == pytest.approx(blur.level(severity) / 0.26, abs=2e-3)
    assert ReducedMTF(("B02",), 10.0).level(0.44) == pytest.approx(0.15)
    coarse = run(
        ReducedMTF(("B11",), 10.0), Batch.of(ripples(96, 0.25), torch.zeros(1, 96, 96, dtype=torch.int64)), 0.44
    )
    assert amplitude(coarse.image, 0.25) == pytest.approx(0.15 / 0.26, abs=2e-3)


def test_a_disk_erases_the_frequency_of_its_first_zero() -> None:
    cycles = 3.8317 / (2 * math.pi * 3.0)
    batch = Batch.of(ripples(128, cycles), torch.zeros(1, 128, 128, dtype=torch.int64))
    assert abs(amplitude(run(Defocus(), batch).image, cycles)) < 0.02
    assert amplitude(run(Defocus(), batch, 0.01).image, cycles) > 0.99


def test_one_gain_for_all_bands_leaves_ratio_indices() -> None:
    def ndwi(batch: Batch) -> Tensor:
        green, nir = batch.image[0, :, 0, 0]
        return (green - nir) / (green + nir)

    batch = flat(0.08, 0.02)
    after = run(GainError(between_bands=0.0), batch)
    assert float((after.image / batch.image - 1).abs().mean()) == pytest.approx(0.05, abs=1e-6)
    assert float(ndwi(after)) == pytest.approx(0.6, abs=1e-6)
    assert float(ndwi(run(GainError(), batch))) != pytest.approx(0.6, abs=1e-4)
    assert float(ndwi(run(ForgottenOffset(), batch))) == pytest.approx(0.2, abs=1e-6)
    doubled = run(ForgottenOffset(mistake="doubled"), flat(0.25, 0.02, -0.01)).image[0, :, 0, 0]
    torch.testing.assert_close(doubled, torch.tensor([0.15, 0.0, -0.01]))


def test_rounding_errs_by_its_step_over_the_root_of_twelve() -> None:
    image = 0.3 * torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    batch = Batch.of(image, torch.zeros(1, 256, 256, dtype=torch.int64))
    error = run(Quantization(high=0.356), batch, 0.7).image - image  # 8 bits
    assert float(error.std()) == pytest.approx(4.0e-4, rel=0.02)


def test_saturation_lies_near_a_reflectance_of_one_and_scales_down() -> None:
    mu = math.cos(math.radians(40))
    limits = [limit * mu for limit in Saturation(("B01", "B02", "B04", "B08", "B12")).limits()]
    assert all(0.85 < limit < 1.06 for limit in limits)
    assert Saturation(("B10",)).limits()[0] * mu == pytest.approx(0.39, abs=0.01)
    image = run(Saturation(("B02", "B04"), worst=0.5), flat(0.9, 0.1)).image[0, :, 0, 0]
    assert float(image[0]) == pytest.approx(0.5 * Saturation(("B02",)).limits()[0], rel=1e-5)
    assert float(image[1]) == pytest.approx(0.1)


def test_jpeg2000_errs_by_more_at_a_higher_rate_and_keeps_negative_values() -> None:
    image = 0.05 + 0.02 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    image[0, 0, :4] = -0.02
    batch = Batch.of(image, torch.zeros(1, 64, 64, dtype=torch.int64))
    light, heavy = (float((run(JPEG2000(), batch, s).image - image).square().mean().sqrt()) for s in (1e-3, 1.0))
    assert light < 2e-3 < 5 * light < heavy < 0.025
    assert float(run(JPEG2000(), batch, 1e-3).image[0, 0, :2].mean()) == pytest.approx(-0.02, abs=2e-3)


@pytest.mark.parametrize("entry", [e for e in entries("corruption") if "joint" not in e.traits], ids=lambda e: e.name)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (33, 50)], ids=str)
def test_chips_of_any_shape_come_back_finite(entry: Entry, size: tuple[int, int]) -> None:
    radar = "radar" in entry.traits
    context = ChipContext(10.0, ("VV", "VH"), "sigma0_db", ("land", "water")) if radar else CHIPS
    settings: dict[str, Setting] = {"members": "haze + shot-noise"} if entry.name == "composition" else {}
    image = torch.rand(2, len(context.bands), *size, generator=torch.Generator().manual_seed(0)) * (
        -20 if radar else 0.5
    )
    batch = Batch.of(image, (image[:, 0] > image[:, 1]).long())
    after = run(build_corruption(entry.name, settings, context), batch)
    assert after.image.shape == image.shape and bool(after.image.isfinite().all())


def test_the_lost_lines_of_a_band_hold_the_mean_or_the_fill() -> None:
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    batch = Batch.of(image, torch.zeros(1, 20, 20, dtype=torch.int64))
    after = run(MissingBand(band=1), batch, 0.25).image
    assert torch.equal(after[0, [0, 2]], image[0, [0, 2]]) and torch.equal(after[0, 1, 5:], image[0, 1, 5:])
    torch.testing.assert_close(after[0, 1, :5], image[0, 1].mean().expand(5, 20))
    assert bool((run(MissingBand(band=1, fill="nodata"), batch).image[0, 1] == 0).all())
    with pytest.raises(UsageError, match="got 7; count from 0"):
        run(MissingBand(band=7), batch)


# load in g/m3: reflectance of B3, B4, B5, B6, B8, B8A, and NDWI of B3 and B8
SEDIMENT = {
    5: (0.036, 0.013, 0.010, 0.003, 0.002, 0.002, 0.89), 50: (0.111, 0.078, 0.067, 0.026, 0.020, 0.016, 0.70),
    300: (0.138, 0.143, 0.144, 0.094, 0.081, 0.068, 0.26), 1000: (0.143, 0.163, 0.172, 0.149, 0.142, 0.130, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("load", SEDIMENT)
def test_sediment_brightens_water_as_published(load: int) -> None:
    bands = ("B03", "B04", "B05", "B06", "B08", "B8A")
    got = [sediment_reflectance(band, load) for band in bands]
    assert got == pytest.approx(SEDIMENT[load][:6], abs=6e-4)
    assert (got[0] - got[4]) / (got[0] + got[4]) == pytest.approx(SEDIMENT[load][6], abs=0.02)
    water = run(TurbidWater(bands), flat(*[0.0] * 6, water=True), load / 1000).image[0, :, 5, 5]
    torch.testing.assert_close(water, torch.tensor(got))
    assert bool((run(TurbidWater(bands), flat(*[0.0] * 6)).image == 0).all()), "land is left alone"


def test_flat_ground_keeps_its_reflectance_and_slopes_follow_the_sun() -> None:
    batch = flat(*([0.2] * 6), size=48)
    torch.testing.assert_close(run(LowSun(S2, 10.0, slope_deg=0.0), batch).image, batch.image)
    water = flat(*([0.2] * 6), size=48, water=True)
    torch.testing.assert_close(run(LowSun(S2, 10.0), water).image, water.image)
    assert float(run(LowSun(S2, 10.0), batch).image.std()) > 0.02
    # a plane that faces the sun at its own zenith angle is lit at right angles: cos i = 1
    sun = LowSun(S2, 10.0, sun_azimuth_deg=90.0)
    rise_east = torch.full((1, 1, 1), -math.tan(math.radians(30)))
    light = sun._light(rise_east, torch.zeros(1, 1, 1), 30.0, torch.zeros(1, 1, 1, 1))
    assert float(light) == pytest.approx(1 / math.cos(math.radians(30)), rel=1e-6)
    away = sun._light(-rise_east, torch.zeros(1, 1, 1), 70.0, torch.full((1, 1, 1, 1), 0.1))
    assert float(away) == pytest.approx(0.1 / (math.cos(math.radians(70)) + 0.1), rel=1e-5)


def test_glint_hides_the_color_of_water_and_leaves_land() -> None:
    batch = flat(0.08, 0.02, water=True)
    green, nir = run(SunGlint(("B03", "B08"), 10.0, texture=0.0), batch).image[0, :, 9, 9]
    assert (float(green), float(nir)) == pytest.approx((0.23, 0.17))
    assert torch.equal(run(SunGlint(("B03", "B08"), 10.0), flat(0.08, 0.02)).image, flat(0.08, 0.02).image)


def test_snow_and_ice_have_their_spectra_and_ice_is_no_longer_counted() -> None:
    land, water = flat(0.1, 0.2, size=96), flat(0.05, 0.01, size=96, water=True)
    snowy = run(Snow(("B03", "B11"), 10.0), land)
    green, swir = snowy.image[0, :, snowy.image[0, 0] > 0.9].mean(1)
    assert float((green - swir) / (green + swir)) > 0.5, "the snow index of full cover"
    assert float((snowy.image[0, 0] > 0.1 + 1e-6).float().mean()) == pytest.approx(0.9, abs=0.01)
    icy = run(WaterIce(("B03", "B11"), 10.0), water, 0.5)
    assert bool(icy.seen.all()) and 0.3 < float((~icy.valid).float().mean()) < 0.45
    assert float(icy.image[0, 0][~icy.valid[0]].min()) > 0.3
    wet = run(WetSoil(("B03", "B11")), land).image[0, :, 0, 0]
    torch.testing.assert_close(wet, torch.tensor([0.055, 0.07]))
    assert torch.equal(run(WetSoil(("B03", "B11")), water).image, water.image)


def test_a_composition_acts_in_physical_order_whatever_the_order_of_its_text() -> None:
    batch = flat(*([0.2] * 6), size=24)
    one, other = (
        parse_corruption(text, CHIPS) for text in ("shot-noise + haze worst=0.4", "haze worst=0.4 + shot-noise")
    )
    assert torch.equal(run(one, batch).image, run(other, batch).image)
    haze, noise = parse_corruption("haze worst=0.4", CHIPS), parse_corruption("shot-noise", CHIPS)
    assert torch.equal(run(one, batch).image, run(noise, run(haze, batch)).image)
    assert not torch.equal(run(one, batch).image, run(haze, run(noise, batch)).image)
    assert isinstance(one, Composition) and [type(m).__name__ for m in one.ordered()] == ["Haze", "ShotNoise"]


def _built(entry: Entry, context: ChipContext) -> Corruption:
    return build_corruption(entry.name, {"source": "s2"} if "joint" in entry.traits else {}, context)


def test_the_physical_order_names_every_corruption_stage_by_stage() -> None:
    contexts = {True: ChipContext(10.0, ("VV", "VH"), "sigma0_db", ("land", "water")), False: CHIPS}
    built = {
        entry.name: _built(entry, TWO_SOURCE_CHIPS if "joint" in entry.traits else contexts["radar" in entry.traits])
        for entry in entries("corruption")
        if entry.name != "composition"
    }
    assert sorted(built) == sorted(PHYSICAL_ORDER)
    stages = [
        STAGES.index(built[name].stage) for name in PHYSICAL_ORDER if "radar" not in find("corruption", name).traits
    ]
    assert stages == sorted(stages)
    late = parse_corruption("saturation + nodata-wedge + shot-noise + gain + cirrus + stripes", CHIPS)
    assert isinstance(late, Composition)
    kinds = [type(member).__name__ for member in late.ordered()]
    assert kinds == ["Cirrus", "GainError", "Stripes", "ShotNoise", "Saturation", "NodataWedge"]


@pytest.mark.parametrize("entry", [e for e in entries("corruption") if e.name != "composition"], ids=lambda e: e.name)
def test_the_page_states_the_quantity_and_the_range_that_the_code_has(entry: Entry) -> None:
    context = ChipContext(10.0, ("VV", "VH"), "sigma0_db", ("land", "water")) if "radar" in entry.traits else CHIPS
    corruption = _built(entry, TWO_SOURCE_CHIPS if "joint" in entry.traits else context)
    page = (Path(__file__).parents[2] / "docs/perturbations.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{entry.name}` \| (.*) \|$", page, re.M)
    quantity, span, _source, masks = row.split(" | ")
    assert quantity == corruption.quantity
    assert span == f"{corruption.level(0):g} to {corruption.level(1):g} {corruption.unit}".strip()
    assert ("stay" in masks) == ("radiometric" in entry.traits) and ("move" in masks) == ("geometric" in entry.traits)


@pytest.mark.parametrize(
    ("text", "context", "message"),
    [
        ("haze", ChipContext(10.0, ("VV",), "sigma0_db"), "haze: expected images in reflectance, got sigma0_db"),
        ("haze", ChipContext(10.0, ("B03", "x9"), "reflectance"), "haze.bands: expected names of Sentinel bands, got 'x9'"),
        ("mtf", ChipContext(10.0, ("B03", "B10"), "reflectance"), "mtf.bands: expected some of B01.*got 'B10'"),
        ("haze worst=9", CHIPS, "haze.worst: expected above 0 and at most 4, got 9"),
        ("haze sun_zenith_deg=85", CHIPS, "haze.sun_zenith_deg: expected degrees from 0 to below 80, got 85"),
        ("coarse-grid", ChipContext(60.0, S2, "reflectance"), "coarse-grid: expected chips with pixels below 60 m, got 60 m"),
        ("haze + haze worst=0.2", CHIPS, r"composition.members: expected different single corruptions, got haze \+ haze"),
        ("glint klass=lake", CHIPS, "klass: unknown class 'lake'"),
        ("glint klass=2", CHIPS, "klass: expected a class of land, water, got 2"),
        ("hase", CHIPS, "corruption: unknown name 'hase'; did you mean 'haze'"),
        ("", CHIPS, "corruption: unknown name ''"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_when_it_is_built(text: str, context: ChipContext, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_corruption(text, context)


def test_a_class_is_named_or_counted() -> None:
    for klass, index in (("land", 0), ("1", 1)):
        glint = parse_corruption(f"glint klass={klass}", CHIPS)
        assert isinstance(glint, SunGlint) and glint.klass == index
    three = ChipContext(10.0, S2, "reflectance", ("field", "forest", "lake"))
    with pytest.raises(UsageError, match="klass: expected the class that the method is about"):
        parse_corruption("glint", three)


def test_chips_of_other_bands_than_it_was_built_for_are_refused() -> None:
    haze = build_corruption("haze", {}, CHIPS)
    with pytest.raises(UsageError, match=r"haze.bands: expected 2 as the image has channels, got 6"):
        run(haze, flat(0.1, 0.2))

"""Simulated Sentinel-2 and Sentinel-1 scenes with exact truth; the same id gives the same pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator

from seawall.arrays import BoolArray, ByteArray, FloatArray
from seawall.errors import UsageError
from seawall.geo.grid import Grid
from seawall.geo.sensors import OPTICAL_BANDS, SENSORS, Band, resolve_bands
from seawall.simulate.noise_fields import (
    blur,
    look_up,
    named_generator,
    power_law_noise,
    resize,
    smoothstep,
)
from seawall.simulate.spectra import (
    CLOUD_REFLECTANCE,
    COVERS,
    DIFFUSE_SHARE,
    backscatter_table,
    bottom_share,
    haze_color,
    land_tables,
    water_components,
)
from seawall.simulate.terrain import Terrain, make_terrain

S2_BANDS = OPTICAL_BANDS
PSF_SIGMA = 0.53
"""Width of the point-spread function in pixels of a band: a Gaussian that passes a quarter at the Nyquist frequency."""

S1_LOOKS = SENSORS["sentinel-1-grd"].looks


@dataclass(frozen=True)
class SimScene:
    """A simulated scene and its truth.

    Args:
        image: (C, H, W) float32: reflectance, or sigma0 in dB.
        seen: (H, W) bool.
        cover: (H, W) uint8 land cover, indices into `cover_names`; also of the ground under clouds.
        cover_names: Names of the classes.
        water: (H, W) bool: at least half of the pixel is water; also under clouds.
        bands: Band ids.
        grid: Its georeference, at a random place.
        unit: "reflectance" or "sigma0_db".
        clear: (H, W) bool: neither cloud nor cloud shadow hides the ground.
        facts: Parameters of the scene, for people.
    """

    image: FloatArray
    seen: BoolArray
    cover: ByteArray
    cover_names: tuple[str, ...]
    water: BoolArray
    bands: tuple[str, ...]
    grid: Grid
    unit: str
    clear: BoolArray
    facts: Mapping[str, str | float]


def simulate_s2(
    scene: str,
    size: int = 256,
    bands: Sequence[str] = S2_BANDS,
    gsd_m: float = 10.0,
    seed: int = 0,
    *,
    clouds: bool = True,
) -> SimScene:
    """Simulate a Sentinel-2 scene in reflectance.

    Args:
        scene: Id: the same id, size and seed give the same pixels.
        size: Rows and columns.
        bands: Band names.
        gsd_m: Pixel size in meters; coarser bands are sampled at their own pixel size and enlarged.
        seed: Seed of the experiment.
        clouds: Whether there may be clouds; about half of the scenes have none anyway.

    Raises:
        UsageError: The size or the pixel size is out of range.

    Example:
        >>> made = simulate_s2("delta-1", size=64, bands=("B03", "B08"))
        >>> made.image.shape, bool(made.water.any())
        ((2, 64, 64), True)
    """
    ids = resolve_bands(bands)
    if not set(ids) <= set(OPTICAL_BANDS):
        raise UsageError(f"simulate: expected Sentinel-2 bands, got {', '.join(bands)}; use simulate_s1 for radar")
    terrain = make_terrain(scene, size, gsd_m, seed)
    return observe_s2(terrain, ids, seed, clouds=clouds)


def simulate_s1(
    scene: str, size: int = 256, bands: Sequence[str] = ("VV", "VH"), gsd_m: float = 10.0, seed: int = 0
) -> SimScene:
    """Simulate a Sentinel-1 scene in dB over the ground of the Sentinel-2 scene of the same id.

    Raises:
        UsageError: The size or the pixel size is out of range.

    Example:
        >>> simulate_s1("delta-1", size=64).water.sum() == simulate_s2("delta-1", size=64).water.sum()
        np.True_
    """
    ids = resolve_bands(bands)
    if not set(ids) <= {"VV", "VH"}:
        raise UsageError(f"simulate: expected VV or VH, got {', '.join(bands)}; Sentinel-1 over land sends vertically")
    return observe_s1(make_terrain(scene, size, gsd_m, seed), ids, seed)


def observe_s2(terrain: Terrain, bands: Sequence[str], seed: int = 0, *, clouds: bool = True) -> SimScene:
    """Return a Sentinel-2 scene of a terrain: illumination, haze, clouds, point-spread function, noise, rounding."""
    atmosphere = _Atmosphere(terrain, seed, clouds)
    rng = named_generator(seed, terrain.scene, "noise", terrain.grid.height, terrain.gsd_m)
    seeds = dict(zip(OPTICAL_BANDS, rng.spawn(len(OPTICAL_BANDS)), strict=True))
    table = {band.id: band for band in SENSORS["sentinel-2-l1c"].bands}
    image = np.stack(
        [_apply_sensor(atmosphere.top_reflectance(name), table[name], terrain, seeds[name]) for name in bands]
    )
    return _sim_scene(terrain, image, tuple(bands), "reflectance", atmosphere.clear)


def observe_s1(terrain: Terrain, bands: Sequence[str] = ("VV", "VH"), seed: int = 0) -> SimScene:
    """Return a Sentinel-1 scene of a terrain: backscatter of each material, wind on water, gamma speckle."""
    rng = named_generator(seed, terrain.scene, "radar", terrain.grid.height, terrain.gsd_m)
    gust, patch = power_law_noise(rng, terrain.water_share.shape, 1500 / terrain.gsd_m, 3.2, step=2)
    streams = dict(zip(("VV", "VH"), rng.spawn(2), strict=True))
    calm = {"VV": -23.5 + 10.5 * terrain.params.wind, "VH": -29.0 + 5.0 * terrain.params.wind}
    image = []
    for name in bands:
        swell = np.power(np.float32(10), (np.float32(calm[name]) + np.float32(1.6) * gust) / np.float32(10))
        # Wet ground is brighter; lush leaves scatter more in cross polarization.
        lush = np.float32(0.6) + np.float32(1.0 if name == "VH" else 0.7) * terrain.vigor
        land = look_up(terrain.material, backscatter_table(name)) * lush * np.exp(np.float32(0.18) * patch)
        power = land + terrain.water_share * (swell - land)
        power = blur(power * terrain.texture, PSF_SIGMA * 10 / terrain.gsd_m + 0.2)
        power *= streams[name].standard_gamma(S1_LOOKS, power.shape, dtype=np.float32) * np.float32(1 / S1_LOOKS)
        image.append(np.float32(10) * np.log10(np.maximum(power, np.float32(1e-5))))
    clear = np.ones(terrain.water_share.shape, bool)
    return _sim_scene(terrain, np.stack(image).astype(np.float32), tuple(bands), "sigma0_db", clear)


def radar_of_mask(
    water: BoolArray, scene: str, bands: Sequence[str] = ("VV", "VH"), gsd_m: float = 10.0, seed: int = 0
) -> FloatArray:
    """Simulate a Sentinel-1 image in dB over a water mask (H, W): the land is that of a made-up scene.

    Args:
        water: Where there is water.
        scene: Id of the land, the wind and the speckle.
        bands: VV, VH or both.
        gsd_m: Pixel size in meters.
        seed: Seed of the experiment.

    Raises:
        UsageError: The pixel size is out of range, or there is no such band.

    Example:
        >>> image = radar_of_mask(np.arange(64 * 64).reshape(64, 64) % 64 < 32, "x")
        >>> bool(image[0, :, :28].mean() < image[0, :, 36:].mean() - 3)
        True
    """
    if not set(bands) <= {"VV", "VH"}:
        raise UsageError(f"simulate: expected VV or VH, got {', '.join(bands)}; Sentinel-1 over land sends vertically")
    height, width = water.shape
    terrain = make_terrain(scene, max(16, height, width), gsd_m, seed)
    share = np.zeros_like(terrain.water_share)
    share[:height, :width] = water
    return observe_s1(replace(terrain, water_share=share), bands, seed).image[:, :height, :width]


class _Atmosphere:
    """Illumination and atmosphere over a terrain."""

    def __init__(self, terrain: Terrain, seed: int, clouds: bool) -> None:
        self.terrain = terrain
        params, shape, gsd_m = terrain.params, terrain.water_share.shape, terrain.gsd_m
        rng = named_generator(seed, terrain.scene, "air", shape[0], gsd_m)
        drift, wisp = power_law_noise(rng, shape, 4000 / gsd_m, 3.6, step=4)
        self.haze = np.clip(params.haze * (1 + 0.35 * drift), 0, 0.12).astype(np.float32)
        self.cirrus = params.cirrus * smoothstep(wisp, -0.5, 2.0) if clouds else np.zeros(shape, np.float32)
        self.cloud, self.shadow, self.white = self._clouds(rng, params.cloud if clouds else 0.0, shape, gsd_m)
        self.clear = (self.cloud < 0.1) & (self.shadow < 0.25)
        self.wet = terrain.water_share
        self.glint = np.float32(params.glint) * (1 + np.float32(0.12) * wisp)

    def _clouds(
        self, rng: Generator, cover: float, shape: tuple[int, int], gsd_m: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        none = np.zeros(shape, np.float32)
        if cover == 0:
            return none, none, none
        sun = np.radians(self.terrain.params.sun)
        azimuth = self.terrain.params.azimuth
        throw = rng.uniform(500, 1400) / np.tan(sun) / gsd_m
        dx, dy = round(-throw * np.sin(azimuth)), round(throw * np.cos(azimuth))
        pad = max(abs(dx), abs(dy))
        big, puff = power_law_noise(rng, (shape[0] + 2 * pad, shape[1] + 2 * pad), rng.uniform(700, 2600) / gsd_m, 3.1)
        level = float(np.quantile(big[::4, ::4], 1 - cover))
        opacity = smoothstep(big, level - 0.2, level + 0.75)
        cloud = np.ascontiguousarray(opacity[pad : pad + shape[0], pad : pad + shape[1]])
        cast = opacity[pad - dy : pad - dy + shape[0], pad - dx : pad - dx + shape[1]]
        shadow = blur(np.ascontiguousarray(cast), 30 / gsd_m)
        white = 0.95 + 0.1 * puff[pad : pad + shape[0], pad : pad + shape[1]]
        return cloud, shadow, np.ascontiguousarray(white, np.float32)

    def top_reflectance(self, band: str) -> FloatArray:
        """Return the top-of-atmosphere reflectance of one band, before the sensor."""
        terrain, at = self.terrain, OPTICAL_BANDS.index(band)
        dry, lush = (look_up(terrain.material, table) for table in land_tables(band))
        land = dry + terrain.vigor * (lush - dry)
        land *= terrain.texture
        # A slope away from the sun and a cloud's shadow still get the diffuse light.
        diffuse = np.float32(DIFFUSE_SHARE[at])
        land *= terrain.shade * (1 - diffuse) + diffuse
        clear, sediment, algae, scum, glint = map(np.float32, water_components(band))
        water = clear + sediment * terrain.sediment + algae * terrain.algae + glint * self.glint
        water += scum * np.clip(np.float32(2.5) * terrain.algae - np.float32(1.5), 0, 1)
        water += np.float32(bottom_share(band)) * terrain.shallow * (land - water)
        np.maximum(water, np.float32(0.0005), out=water)
        light = land + self.wet * (water - land)
        if band == "B10":
            # Water vapor absorbs most of the ground's light here; cirrus remains.
            light *= np.float32(0.15)
        haze = self.haze * np.float32(haze_color((band,))[0])
        if self.shadow.any():
            light *= 1 - self.shadow * (1 - diffuse) * np.float32(0.92)
            light += self.cloud * (np.float32(CLOUD_REFLECTANCE[at] / 1000) * self.white - light)
        light += haze * (1 - np.float32(1.4) * light)
        if self.cirrus.any():
            light += self.cirrus * np.float32(0.9 if band == "B10" else 0.7 - 0.3 * (at > 10))
        return np.asarray(light, np.float32)


def _apply_sensor(light: FloatArray, band: Band, terrain: Terrain, rng: Generator) -> FloatArray:
    """Return a band as its sensor stores it: blurred, sampled at the band's pixel size, with noise, rounded to 1e-4."""
    height, width = light.shape
    factor = max(1, round(band.gsd_m / terrain.gsd_m))
    if factor > 1:
        rows, cols = -(-height // factor) * factor, -(-width // factor) * factor
        light = np.pad(light, ((0, rows - height), (0, cols - width)), mode="edge")
        light = resize(light, (rows // factor, cols // factor), cv2.INTER_AREA)
    # The average over a coarser pixel is a blur already: a box of one pixel has a standard deviation of 0.29.
    sigma = PSF_SIGMA * band.gsd_m / terrain.gsd_m if factor == 1 else float(np.sqrt(PSF_SIGMA**2 - 0.29**2))
    light = blur(light, sigma)
    # Photon noise grows with the root of the signal; `Band.noise` is published for reflectances around 0.1.
    zenith = np.float32((band.noise or 0.001) / np.sin(np.radians(terrain.params.sun)))
    light += (
        zenith
        * np.sqrt(np.maximum(light, 0) * 6 + np.float32(0.4))
        * rng.standard_normal(light.shape, dtype=np.float32)
    )
    if factor > 1:
        light = resize(light, (light.shape[0] * factor, light.shape[1] * factor))[:height, :width]
    stored = np.rint(light * np.float32(1e4))
    return np.asarray(np.clip(stored, -300, 20000) * np.float32(1e-4), np.float32)


def _sim_scene(terrain: Terrain, image: FloatArray, bands: tuple[str, ...], unit: str, clear: BoolArray) -> SimScene:
    seen = np.ones(terrain.water_share.shape, bool)
    facts: dict[str, str | float] = {
        name: getattr(terrain.params, name)
        for name in ("kind", "season", "haze", "sun", "sediment", "algae", "cloud", "wind")
    }
    return SimScene(image, seen, terrain.cover, COVERS, terrain.water, bands, terrain.grid, unit, clear, facts)

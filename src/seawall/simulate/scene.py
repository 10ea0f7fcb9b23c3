"""Sentinel-2 and Sentinel-1 scenes over made-up ground, with exact truth; the same id gives the same pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from seawall.arrays import BoolArray
from seawall.errors import UsageError
from seawall.geo.grid import Grid
from seawall.geo.sensors import OPTICAL, SENSORS, Band, resolve
from seawall.simulate.noise_fields import Field, blur, look_up, noise, ramp, resize, stream
from seawall.simulate.spectra import CLOUD, COVERS, DIFFUSE, bottom_share, land_tables, power_table, sky, water_parts
from seawall.simulate.terrain import Ground, make_ground
from seawall.types import FILL

ALL13 = OPTICAL
PSF = 0.53
"""Width of the point-spread function in pixels of a band: a Gaussian that passes a quarter at the Nyquist frequency."""

LOOKS = SENSORS["sentinel-1-grd"].looks


@dataclass(frozen=True)
class SimScene:
    """A simulated scene and its truth.

    Args:
        image: (C, H, W) float32: reflectance, or sigma0 in dB.
        seen: (H, W) bool.
        cover: (H, W) uint8 land cover, numbers into `cover_names`; the ground's, also under clouds.
        cover_names: Names of the classes.
        water: (H, W) bool: at least half of the pixel is water; the ground's, also under clouds.
        bands: Band ids.
        grid: Where it claims to be.
        unit: "reflectance" or "sigma0_db".
        clear: (H, W) bool: neither cloud nor cloud shadow hides the ground.
        facts: What kind of place and day it is, for people.
    """

    image: NDArray[np.float32]
    seen: BoolArray
    cover: NDArray[np.uint8]
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
    bands: Sequence[str] = ALL13,
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
        gsd_m: Pixel size; bands of coarser sensors are made at their own and enlarged.
        seed: Seed of the experiment.
        clouds: Whether there may be clouds; about half of the scenes have none anyway.

    Raises:
        UsageError: The size or the pixel size is out of range.

    Example:
        >>> made = simulate_s2("delta-1", size=64, bands=("B03", "B08"))
        >>> made.image.shape, bool(made.water.any())
        ((2, 64, 64), True)
    """
    ids = resolve(bands)
    if not set(ids) <= set(OPTICAL):
        raise UsageError(f"simulate: expected Sentinel-2 bands, got {', '.join(bands)}; use simulate_s1 for radar")
    ground = make_ground(scene, size, gsd_m, seed)
    return observe_s2(ground, ids, seed, clouds=clouds)


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
    ids = resolve(bands)
    if not set(ids) <= {"VV", "VH"}:
        raise UsageError(f"simulate: expected VV or VH, got {', '.join(bands)}; Sentinel-1 over land sends vertically")
    return observe_s1(make_ground(scene, size, gsd_m, seed), ids, seed)


def observe_s2(ground: Ground, bands: Sequence[str], seed: int = 0, *, clouds: bool = True) -> SimScene:
    """Look at ground with Sentinel-2: light, haze, clouds, point-spread function, noise, rounding."""
    air = _Air(ground, seed, clouds)
    rng = stream(seed, ground.scene, "noise", ground.grid.height, ground.gsd_m)
    seeds = dict(zip(OPTICAL, rng.spawn(len(OPTICAL)), strict=True))
    table = {band.id: band for band in SENSORS["sentinel-2-l1c"].bands}
    image = np.stack([_sense(air.look(name), table[name], ground, seeds[name]) for name in bands])
    return _scene(ground, image, tuple(bands), "reflectance", air.clear)


def observe_s1(ground: Ground, bands: Sequence[str] = ("VV", "VH"), seed: int = 0) -> SimScene:
    """Look at ground with Sentinel-1: backscatter of each material, wind on water, gamma speckle."""
    rng = stream(seed, ground.scene, "radar", ground.grid.height, ground.gsd_m)
    gust, patch = noise(rng, ground.water_share.shape, 1500 / ground.gsd_m, 3.2, step=2)
    streams = dict(zip(("VV", "VH"), rng.spawn(2), strict=True))
    calm = {"VV": -23.5 + 10.5 * ground.traits.wind, "VH": -29.0 + 5.0 * ground.traits.wind}
    image = []
    for name in bands:
        swell = np.power(np.float32(10), (np.float32(calm[name]) + np.float32(1.6) * gust) / np.float32(10))
        # Wet ground is brighter; leaves that are lush scatter more in cross polarization.
        lush = np.float32(0.6) + np.float32(1.0 if name == "VH" else 0.7) * ground.vigor
        land = look_up(ground.material, power_table(name)) * lush * np.exp(np.float32(0.18) * patch)
        power = land + ground.water_share * (swell - land)
        power = blur(power * ground.texture, PSF * 10 / ground.gsd_m + 0.2)
        power *= streams[name].standard_gamma(LOOKS, power.shape, dtype=np.float32) * np.float32(1 / LOOKS)
        image.append(np.float32(10) * np.log10(np.maximum(power, np.float32(1e-5))))
    clear = np.ones(ground.water_share.shape, bool)
    return _scene(ground, np.stack(image).astype(np.float32), tuple(bands), "sigma0_db", clear)


class _Air:
    """Light and air over the ground: reflectance of each band before the sensor."""

    def __init__(self, ground: Ground, seed: int, clouds: bool) -> None:
        self.ground = ground
        traits, shape, unit = ground.traits, ground.water_share.shape, ground.gsd_m
        rng = stream(seed, ground.scene, "air", shape[0], unit)
        drift, wisp = noise(rng, shape, 4000 / unit, 3.6, step=4)
        self.haze = np.clip(traits.haze * (1 + 0.35 * drift), 0, 0.12).astype(np.float32)
        self.cirrus = traits.cirrus * ramp(wisp, -0.5, 2.0) if clouds else np.zeros(shape, np.float32)
        self.cloud, self.shadow, self.white = self._clouds(rng, traits.cloud if clouds else 0.0, shape, unit)
        self.clear = (self.cloud < 0.1) & (self.shadow < 0.25)
        self.wet = ground.water_share
        self.glint = np.float32(traits.glint) * (1 + np.float32(0.12) * wisp)

    def _clouds(
        self, rng: np.random.Generator, cover: float, shape: tuple[int, int], unit: float
    ) -> tuple[Field, Field, Field]:
        none = np.zeros(shape, np.float32)
        if cover == 0:
            return none, none, none
        sun = np.radians(self.ground.traits.sun)
        azimuth = self.ground.traits.azimuth
        throw = rng.uniform(500, 1400) / np.tan(sun) / unit
        dx, dy = round(-throw * np.sin(azimuth)), round(throw * np.cos(azimuth))
        pad = max(abs(dx), abs(dy))
        big, puff = noise(rng, (shape[0] + 2 * pad, shape[1] + 2 * pad), rng.uniform(700, 2600) / unit, 3.1)
        level = float(np.quantile(big[::4, ::4], 1 - cover))
        opacity = ramp(big, level - 0.2, level + 0.75)
        cloud = np.ascontiguousarray(opacity[pad : pad + shape[0], pad : pad + shape[1]])
        cast = opacity[pad - dy : pad - dy + shape[0], pad - dx : pad - dx + shape[1]]
        shadow = blur(np.ascontiguousarray(cast), 30 / unit)
        white = 0.95 + 0.1 * puff[pad : pad + shape[0], pad : pad + shape[1]]
        return cloud, shadow, np.ascontiguousarray(white, np.float32)

    def look(self, band: str) -> Field:
        """Return the reflectance of one band at the top of this air, before the sensor."""
        ground, at = self.ground, OPTICAL.index(band)
        dry, lush = (look_up(ground.material, table) for table in land_tables(band))
        land = dry + ground.vigor * (lush - dry)
        land *= ground.texture
        # A slope away from the sun, and a cloud's shadow, keep the light of the sky.
        diffuse = np.float32(DIFFUSE[at])
        land *= ground.shade * (1 - diffuse) + diffuse
        clear, sediment, algae, scum, glint = map(np.float32, water_parts(band))
        water = clear + sediment * ground.sediment + algae * ground.algae + glint * self.glint
        water += scum * np.clip(np.float32(2.5) * ground.algae - np.float32(1.5), 0, 1)
        water += np.float32(bottom_share(band)) * ground.shallow * (land - water)
        np.maximum(water, np.float32(0.0005), out=water)
        light = land + self.wet * (water - land)
        if band == "B10":
            # Water vapor swallows the ground here; what is left is cirrus.
            light *= np.float32(0.15)
        haze = self.haze * np.float32(sky((band,))[0])
        if self.shadow.any():
            light *= 1 - self.shadow * (1 - diffuse) * np.float32(0.92)
            light += self.cloud * (np.float32(CLOUD[at] / 1000) * self.white - light)
        light += haze * (1 - np.float32(1.4) * light)
        if self.cirrus.any():
            light += self.cirrus * np.float32(0.9 if band == "B10" else 0.7 - 0.3 * (at > 10))
        return np.asarray(light, np.float32)


def _sense(light: Field, band: Band, ground: Ground, rng: np.random.Generator) -> Field:
    """Blur by the point-spread function, sample at the band's own pixels, add noise, round to 1e-4."""
    height, width = light.shape
    factor = max(1, round(band.gsd_m / ground.gsd_m))
    if factor > 1:
        rows, cols = -(-height // factor) * factor, -(-width // factor) * factor
        light = np.pad(light, ((0, rows - height), (0, cols - width)), mode="edge")
        light = resize(light, (rows // factor, cols // factor), cv2.INTER_AREA)
    # Averaging over a coarser pixel has already blurred: a box of one pixel is a Gaussian of 0.29.
    sigma = PSF * band.gsd_m / ground.gsd_m if factor == 1 else float(np.sqrt(PSF**2 - 0.29**2))
    light = blur(light, sigma)
    # Photon noise grows with the root of the signal; `noise` is published for reflectances around 0.1.
    zenith = np.float32((band.noise or 0.001) / np.sin(np.radians(ground.traits.sun)))
    light += (
        zenith
        * np.sqrt(np.maximum(light, 0) * 6 + np.float32(0.4))
        * rng.standard_normal(light.shape, dtype=np.float32)
    )
    if factor > 1:
        light = resize(light, (light.shape[0] * factor, light.shape[1] * factor))[:height, :width]
    stored = np.rint(light * np.float32(1e4))
    return np.asarray(np.clip(stored, -300, 20000) * np.float32(1e-4), np.float32)


def _scene(ground: Ground, image: NDArray[np.float32], bands: tuple[str, ...], unit: str, clear: BoolArray) -> SimScene:
    seen = np.ones(ground.water_share.shape, bool)
    image[:, ~seen] = FILL[unit]
    facts: dict[str, str | float] = {
        name: getattr(ground.traits, name)
        for name in ("kind", "season", "haze", "sun", "sediment", "algae", "cloud", "wind")
    }
    return SimScene(image, seen, ground.cover, COVERS, ground.water, bands, ground.grid, unit, clear, facts)

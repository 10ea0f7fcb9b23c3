"""Terrain of a simulated scene: the share of water in each pixel, and the material of the land."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from affine import Affine
from numpy.random import Generator

from seawall.arrays import BoolArray, ByteArray, FloatArray
from seawall.errors import UsageError
from seawall.geo.grid import Grid
from seawall.simulate.land_cover import LandCover
from seawall.simulate.noise_fields import (
    blur,
    distance_to_mask,
    meander,
    named_generator,
    power_law_noise,
)
from seawall.simulate.scene_parameters import SceneParameters, draw_scene_parameters
from seawall.simulate.spectra import COVERS, cover_table
from seawall.simulate.water import Water


@dataclass(frozen=True)
class Terrain:
    """The truth under a simulated scene.

    Args:
        scene: Its id.
        grid: Its georeference, at a random place.
        gsd_m: Pixel size in meters.
        params: Parameters of the scene.
        water_share: (H, W) share of each pixel that is water.
        material: (H, W) number of the land material.
        vigor: (H, W) where each material is between its dry (0) and lush (1) end.
        texture: (H, W) relative brightness of the land, around 1.
        shade: (H, W) relative illumination, around 1.
        shallow: (H, W) 1 at the waterline, falling to 0 with the depth.
        sediment: (H, W) sediment load of water, 0 to 1.
        algae: (H, W) algae in water, 0 to 1.
    """

    scene: str
    grid: Grid
    gsd_m: float
    params: SceneParameters
    water_share: FloatArray
    material: ByteArray
    vigor: FloatArray
    texture: FloatArray
    shade: FloatArray
    shallow: FloatArray
    sediment: FloatArray
    algae: FloatArray

    @property
    def water(self) -> BoolArray:
        """(H, W) bool: at least half of the pixel is water."""
        return self.water_share >= 0.5

    @property
    def cover(self) -> ByteArray:
        """(H, W) number of the land cover class in `COVERS`."""
        classes = np.asarray(cv2.LUT(self.material, cover_table()), np.uint8)
        classes[self.water] = COVERS.index("water")
        return classes


def make_terrain(scene: str, size: int = 256, gsd_m: float = 10.0, seed: int = 0) -> Terrain:
    """Make the terrain of a scene; the same id, size, pixel size and seed give the same terrain.

    Args:
        scene: Id.
        size: Rows and columns.
        gsd_m: Pixel size in meters, 3 to 60.
        seed: Seed of the experiment.

    Raises:
        UsageError: The size or the pixel size is out of range.
    """
    if size < 16 or not 3 <= gsd_m <= 60:
        raise UsageError(f"simulate: expected size >= 16 and gsd_m in 3..60, got {size} and {gsd_m}; change them")
    params = draw_scene_parameters(named_generator(seed, scene, "traits"))
    rng = named_generator(seed, scene, "ground", size, gsd_m)
    shape = (size, size)
    hills, rough = power_law_noise(rng, shape, 2600 / gsd_m, 3.4)
    moist, region = power_law_noise(rng, shape, 1800 / gsd_m, 3.0, step=2)
    water = Water(rng, params, shape, gsd_m, hills, rough)
    # A bridge is at most half a kilometer long.
    roads = _roads(rng, params, shape, gsd_m) & (distance_to_mask(water.share < 0.5) < 250 / gsd_m)
    # A bridge hides most of the water under it.
    share = np.where(roads, np.float32(0.3) * water.share, water.share)
    wet = share >= 0.5
    land = LandCover(rng, params, shape, gsd_m, wet, water.height, water.bars, roads & ~wet, hills, moist, region)
    sediment = np.clip(params.sediment + 0.12 * rough + 0.2 * water.stirred + 0.25 * water.shallow - 0.05, 0, 1)
    algae = np.clip(params.algae + 0.28 * moist * (1 - sediment), 0, 1)
    return Terrain(
        scene, _random_grid(scene, seed, size, gsd_m), gsd_m, params, share, land.material, land.vigor, land.texture,
        _shade(hills, params), water.shallow, sediment.astype(np.float32), algae.astype(np.float32),
    )  # fmt: skip


def _shade(hills: FloatArray, params: SceneParameters) -> FloatArray:
    down, right = np.gradient(blur(hills, 1.5))
    toward = right * np.float32(np.sin(params.azimuth)) - down * np.float32(np.cos(params.azimuth))
    return np.asarray(np.clip(1 + 9 * params.relief * toward, 0.25, 1.6), np.float32)


def _roads(rng: Generator, params: SceneParameters, shape: tuple[int, int], gsd_m: float) -> BoolArray:
    """Return up to two long roads with small bends."""
    canvas = np.zeros(shape, np.uint8)
    reach = float(np.hypot(*shape)) * 2
    for _ in range(int(rng.integers(0, 3))):
        through = shape[1] * rng.uniform(0.1, 0.9), shape[0] * rng.uniform(0.1, 0.9)
        line = meander(rng, through, params.heading + rng.uniform(0.7, 2.2), reach, 4000 / gsd_m, 0.25)
        cv2.polylines(canvas, [np.round(line).astype(np.int32)], False, 255, 1)
    return canvas > 0


def _random_grid(scene: str, seed: int, size: int, gsd_m: float) -> Grid:
    rng = named_generator(seed, scene, "place")
    zone = int(rng.integers(1, 61))
    east, north = 300_000 + 600 * int(rng.integers(0, 600)), 600_000 + 600 * int(rng.integers(0, 9000))
    return Grid(size, size, Affine(gsd_m, 0, east, 0, -gsd_m, north), f"EPSG:{32600 + zone}")

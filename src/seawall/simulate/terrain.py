"""A made-up piece of ground: where water is, to a ninth of a pixel, and what everything else is made of."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from affine import Affine
from numpy.typing import NDArray

from seawall.arrays import BoolArray
from seawall.errors import UsageError
from seawall.geo.grid import Grid
from seawall.simulate.land_cover import Land, Waters
from seawall.simulate.noise_fields import Field, Rng, blur, distance, meander, noise, stream
from seawall.simulate.scene_parameters import Traits, draw_traits
from seawall.simulate.spectra import COVERS, cover_table


@dataclass(frozen=True)
class Ground:
    """The truth under a simulated scene.

    Args:
        scene: Its id.
        grid: Where it claims to be.
        gsd_m: Pixel size in meters.
        traits: What kind of place it is.
        water_share: (H, W) share of each pixel that is water.
        material: (H, W) number of the land material.
        vigor: (H, W) where between its dry (0) and lush (1) end each material is.
        texture: (H, W) brightness of the land around 1.
        shade: (H, W) illumination around 1.
        shallow: (H, W) 1 at the waterline, falling to 0 with the depth.
        sediment: (H, W) sediment load of water, 0 to 1.
        algae: (H, W) algae in water, 0 to 1.
    """

    scene: str
    grid: Grid
    gsd_m: float
    traits: Traits
    water_share: Field
    material: NDArray[np.uint8]
    vigor: Field
    texture: Field
    shade: Field
    shallow: Field
    sediment: Field
    algae: Field

    @property
    def water(self) -> BoolArray:
        """(H, W) bool: at least half of the pixel is water."""
        return self.water_share >= 0.5

    @property
    def cover(self) -> NDArray[np.uint8]:
        """(H, W) number of the land cover class in `COVERS`."""
        classes = np.asarray(cv2.LUT(self.material, cover_table()), np.uint8)
        classes[self.water] = COVERS.index("water")
        return classes


def make_ground(scene: str, size: int = 256, gsd_m: float = 10.0, seed: int = 0) -> Ground:
    """Make the ground of a scene; the same id gives the same ground.

    Args:
        scene: Id: the seed of everything.
        size: Rows and columns.
        gsd_m: Pixel size in meters, 3 to 60.
        seed: Seed of the experiment.

    Raises:
        UsageError: The size or the pixel size is out of range.
    """
    if size < 16 or not 3 <= gsd_m <= 60:
        raise UsageError(f"simulate: expected size >= 16 and gsd_m in 3..60, got {size} and {gsd_m}; change them")
    traits = draw_traits(stream(seed, scene, "traits"))
    rng = stream(seed, scene, "ground", size, gsd_m)
    shape = (size, size)
    hills, rough = noise(rng, shape, 2600 / gsd_m, 3.4)
    moist, region = noise(rng, shape, 1800 / gsd_m, 3.0, step=2)
    water = Waters(rng, traits, shape, gsd_m, hills, rough)
    # Bridges are not longer than half a kilometer.
    roads = _roads(rng, traits, shape, gsd_m) & (distance(water.share < 0.5) * gsd_m < 250)
    # A bridge leaves less water to be seen under it.
    share = np.where(roads, np.float32(0.3) * water.share, water.share)
    wet = share >= 0.5
    land = Land(rng, traits, shape, gsd_m, wet, water.height, water.bars, roads & ~wet, hills, moist, region)
    sediment = np.clip(traits.sediment + 0.12 * rough + 0.2 * water.stirred + 0.25 * water.shallow - 0.05, 0, 1)
    algae = np.clip(traits.algae + 0.28 * moist * (1 - sediment), 0, 1)
    return Ground(
        scene, _place(scene, seed, size, gsd_m), gsd_m, traits, share, land.material, land.vigor, land.texture,
        _shade(hills, traits), water.shallow, sediment.astype(np.float32), algae.astype(np.float32),
    )  # fmt: skip


def _shade(hills: Field, traits: Traits) -> Field:
    down, right = np.gradient(blur(hills, 1.5))
    toward = right * np.float32(np.sin(traits.azimuth)) - down * np.float32(np.cos(traits.azimuth))
    return np.asarray(np.clip(1 + 9 * traits.relief * toward, 0.25, 1.6), np.float32)


def _roads(rng: Rng, traits: Traits, shape: tuple[int, int], gsd_m: float) -> BoolArray:
    """Return a few long roads that bend a little and cross rivers on bridges."""
    canvas = np.zeros(shape, np.uint8)
    reach = float(np.hypot(*shape)) * 2
    for _ in range(int(rng.integers(0, 3))):
        through = shape[1] * rng.uniform(0.1, 0.9), shape[0] * rng.uniform(0.1, 0.9)
        line = meander(rng, through, traits.heading + rng.uniform(0.7, 2.2), reach, 4000 / gsd_m, 0.25)
        cv2.polylines(canvas, [np.round(line).astype(np.int32)], False, 255, 1)
    return canvas > 0


def _place(scene: str, seed: int, size: int, gsd_m: float) -> Grid:
    rng = stream(seed, scene, "place")
    zone = int(rng.integers(1, 61))
    east, north = 300_000 + 600 * int(rng.integers(0, 600)), 600_000 + 600 * int(rng.integers(0, 9000))
    return Grid(size, size, Affine(gsd_m, 0, east, 0, -gsd_m, north), f"EPSG:{32600 + zone}")

"""Land cover of a simulated scene: fields, forests, towns, reeds, mud."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from scipy.special import ndtri

from seawall.arrays import BoolArray, ByteArray, FloatArray
from seawall.simulate.noise_fields import (
    distance_to_mask,
    look_up,
    parcels,
    power_law_noise,
    smoothstep,
)
from seawall.simulate.scene_parameters import SceneParameters
from seawall.simulate.spectra import material_index


class LandCover:
    """Maps of a scene's land, all (H, W): material, vigor and texture.

    Args:
        rng: Source of randomness.
        params: Parameters of the scene.
        shape: (H, W).
        gsd_m: Pixel size in meters.
        water: Where at least half of the pixel is water.
        height: Height over the river, in meters.
        bars: Sand bars of the rivers.
        roads: Roads on land.
        hills: Smooth relief of variance 1.
        moist: Soil moisture of variance 1.
        region: Field of variance 1 that parts farmland from forest.
    """

    material: ByteArray
    """Number of the material in `MATERIALS`."""
    vigor: FloatArray
    """Where each material is between its dry (0) and lush (1) end."""
    texture: FloatArray
    """Relative brightness, around 1."""

    def __init__(
        self, rng: Generator, params: SceneParameters, shape: tuple[int, int], gsd_m: float,
        water: BoolArray, height: FloatArray, bars: BoolArray, roads: BoolArray, hills: FloatArray, moist: FloatArray, region: FloatArray,
    ) -> None:  # fmt: skip
        self.rng, self.params, self.shape, self.gsd_m = rng, params, shape, gsd_m
        self.material = np.full(shape, material_index("grass"), np.uint8)
        grain, _ = power_law_noise(rng, shape, 200 / gsd_m, 2.0)
        patch, clump = power_law_noise(rng, shape, 700 / gsd_m, 2.9)
        self.vigor = np.clip(params.season + 0.2 * moist + 0.05 * grain, 0, 1).astype(np.float32)
        self.texture = (1 + 0.045 * grain + 0.05 * patch).astype(np.float32)
        self._fields(region)
        self._forests(region, moist, clump, hills)
        self._towns(patch)
        self.material[roads] = material_index("asphalt")
        self._shores(water, height, bars, moist, patch)
        # Crowns and roofs change from pixel to pixel: forests and towns have more contrast than meadows.
        rough = np.zeros(256, np.float32)
        rough[:] = 0.03
        for name, much in {
            "broadleaf": 0.09,
            "conifer": 0.1,
            "garden": 0.12,
            "pale roof": 0.15,
            "tile roof": 0.12,
        }.items():
            rough[material_index(name)] = much
        self.texture *= 1 + look_up(self.material, rough) * rng.standard_normal(shape, dtype=np.float32)
        np.clip(self.texture, 0.4, 1.8, out=self.texture)

    def _fields(self, region: FloatArray) -> None:
        rng, params = self.rng, self.params
        side = max(4.0, rng.uniform(140, 420) / self.gsd_m)
        ids = parcels(rng, self.shape, side, params.heading + rng.uniform(0, 1.5))
        count = int(ids.max()) + 1
        kinds = np.array([material_index(n) for n in ("crop", "young crop", "soil", "grass")], np.uint8)
        green = params.season
        shares = np.array([0.35 + 0.25 * green, 0.2, 0.3 - 0.2 * green, 0.15 - 0.1 * green])
        self.farmed = region < np.float32(_normal_quantile(params.farm))
        self.material = np.where(self.farmed, rng.choice(kinds, count, p=shares / shares.sum())[ids], self.material)
        # Neighboring fields are in different weeks of their season.
        ripe = rng.beta(0.4 + 1.6 * green, 0.4 + 1.6 * (1 - green), count).astype(np.float32)
        bright = rng.normal(1, 0.13, count).astype(np.float32)
        self.vigor = np.where(self.farmed, 0.2 * self.vigor + 0.8 * ripe[ids], self.vigor)
        self.texture *= np.where(self.farmed, bright[ids], np.float32(1))
        edge = np.zeros(self.shape, bool)
        edge[1:] |= ids[1:] != ids[:-1]
        edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
        edge &= self.farmed
        self.material[edge & (rng.random(count) < 0.15)[ids]] = material_index("broadleaf")
        self.material[edge & (rng.random(count) < 0.12)[ids]] = material_index("sand")

    def _forests(self, region: FloatArray, moist: FloatArray, clump: FloatArray, hills: FloatArray) -> None:
        params = self.params
        stand: FloatArray = -0.5 * region + 0.4 * moist + 0.7 * clump + np.float32(params.relief) * hills
        limit = np.quantile(stand[::4, ::4], 1 - 0.75 * params.forest)
        woods = np.asarray((stand > limit) & (~self.farmed | (clump > 1.5)), bool)
        needles = (hills + 0.5 * clump) > np.float32(_normal_quantile(1 - params.conifer))
        self.material[woods] = np.where(needles[woods], material_index("conifer"), material_index("broadleaf"))

    def _towns(self, patch: FloatArray) -> None:
        rng, gsd_m = self.rng, self.gsd_m
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32) * np.float32(gsd_m)
        for _ in range(self.params.towns):
            cx, cy = rng.uniform(0, self.shape[1] * gsd_m), rng.uniform(0, self.shape[0] * gsd_m)
            radius = float(np.exp(rng.normal(6.0, 0.55)))
            dense = 1.1 - np.hypot(x - cx, y - cy) / np.float32(radius) + 0.25 * patch
            inside = dense > 0.25
            rows, cols = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            if not len(rows):
                continue
            at = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
            turn = rng.uniform(0, np.pi)
            u = x[at] * np.float32(np.cos(turn)) + y[at] * np.float32(np.sin(turn))
            v = y[at] * np.float32(np.cos(turn)) - x[at] * np.float32(np.sin(turn))
            built = self._blocks(u, v, np.clip(dense[at], 0, 1))
            self.material[at][inside[at]] = built[inside[at]]
            self.texture[at][inside[at]] *= 0.85

    def _blocks(self, u: FloatArray, v: FloatArray, dense: FloatArray) -> ByteArray:
        """Return materials of street blocks: houses between gardens, some halls and parks."""
        rng = self.rng
        wide, long = np.float32(rng.uniform(70, 120)), np.float32(rng.uniform(100, 180))
        i, j = np.floor(u / wide).astype(np.int32) % 64, np.floor(v / long).astype(np.int32) % 64
        block = rng.random((64, 64), dtype=np.float32)[j, i]
        house = rng.random(u.shape, dtype=np.float32)
        roof = material_index("tile roof") if rng.random() < 0.6 else material_index("metal roof")
        built = np.where(house < 0.25 + 0.4 * dense, np.uint8(roof), np.uint8(material_index("garden")))
        built[(house > 0.85) & (dense > 0.4)] = material_index("pale roof")
        built[block < 0.06] = material_index("pale roof")
        built[(block > 0.94) & (dense < 0.8)] = material_index("metal roof")
        built[(block > 0.8) & (block < 0.88)] = material_index("garden")
        street = (np.mod(u, wide) < 11) | (np.mod(v, long) < 11)
        built[street] = material_index("asphalt")
        return np.asarray(built, np.uint8)

    def _shores(
        self, water: BoolArray, height: FloatArray, bars: BoolArray, moist: FloatArray, patch: FloatArray
    ) -> None:
        params = self.params
        away = distance_to_mask(water) * np.float32(self.gsd_m)
        low = height < np.float32(params.flood_m + 0.25 + 0.9 * params.wet)
        open_ = ~np.isin(
            self.material, [material_index(n) for n in ("asphalt", "tile roof", "pale roof", "metal roof")]
        )
        reed = (away < 130 * (1 + patch)) & low & (moist > 0.3) & open_
        self.material[reed] = material_index("reed")
        trees = (away < 70 * (1 + 0.8 * moist)) & (patch > 0.35) & open_ & ~reed
        self.material[trees] = material_index("broadleaf")
        mud = (
            (away < 12 + 60 * params.wet * smoothstep(patch, -1, 1.5))
            | (low & (patch < -0.3 + 1.3 * (params.wet - 0.5)))
        ) & open_
        mud &= ~reed & ~trees
        if params.flood_m < -1 and params.kind != "coast":
            mud &= away < 60
        self.material[mud] = material_index("mud")
        self.material[bars & open_] = np.where(moist[bars & open_] > 0.8, material_index("mud"), material_index("sand"))
        # Mud near the water is wet, farther away it dries.
        soaked = np.exp(-away / np.float32(60 + 160 * params.wet))
        self.vigor = np.where(mud, np.clip(soaked + 0.35 * params.wet, 0, 1), self.vigor).astype(np.float32)


def _normal_quantile(share: float) -> float:
    """Return the quantile of the standard normal distribution, with `share` clipped to 1e-4..1 - 1e-4."""
    return float(ndtri(min(max(share, 1e-4), 1 - 1e-4)))

"""What the dry ground is made of: fields, woods, towns, reeds, mud."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from seawall.imagery.fractal import Field, Rng, distance, look_up, noise, parcels, ramp
from seawall.imagery.spectra import number
from seawall.imagery.traits import Traits

Mask = NDArray[np.bool_]


class Land:
    """What the dry part is made of, how lush it is and how bright."""

    def __init__(
        self, rng: Rng, traits: Traits, shape: tuple[int, int], gsd_m: float,
        water: Mask, height: Field, bars: Mask, roads: Mask, hills: Field, moist: Field, region: Field,
    ) -> None:  # fmt: skip
        self.rng, self.traits, self.shape, self.unit = rng, traits, shape, gsd_m
        self.material = np.full(shape, number("grass"), np.uint8)
        grain, _ = noise(rng, shape, 200 / gsd_m, 2.0)
        patch, clump = noise(rng, shape, 700 / gsd_m, 2.9)
        self.vigor = np.clip(traits.season + 0.2 * moist + 0.05 * grain, 0, 1).astype(np.float32)
        self.texture = (1 + 0.045 * grain + 0.05 * patch).astype(np.float32)
        self._fields(region)
        self._woods(region, moist, clump, hills)
        self._towns(patch)
        self.material[roads] = number("asphalt")
        self._shores(water, height, bars, moist, patch)
        # A crown or roof every other pixel: forests and towns are rougher than meadows.
        rough = np.zeros(256, np.float32)
        rough[:] = 0.03
        for name, much in {
            "broadleaf": 0.09,
            "conifer": 0.1,
            "garden": 0.12,
            "pale roof": 0.15,
            "tile roof": 0.12,
        }.items():
            rough[number(name)] = much
        self.texture *= 1 + look_up(self.material, rough) * rng.standard_normal(shape, dtype=np.float32)
        np.clip(self.texture, 0.4, 1.8, out=self.texture)

    def _fields(self, region: Field) -> None:
        rng, traits = self.rng, self.traits
        side = max(4.0, rng.uniform(140, 420) / self.unit)
        ids = parcels(rng, self.shape, side, traits.heading + rng.uniform(0, 1.5))
        count = int(ids.max()) + 1
        kinds = np.array([number(n) for n in ("crop", "young crop", "soil", "grass")], np.uint8)
        green = traits.season
        shares = np.array([0.35 + 0.25 * green, 0.2, 0.3 - 0.2 * green, 0.15 - 0.1 * green])
        self.farmed = region < np.float32(_normal_quantile(traits.farm))
        self.material = np.where(self.farmed, rng.choice(kinds, count, p=shares / shares.sum())[ids], self.material)
        # Neighbors are at different weeks of their season: some ripe, some just sown.
        ripe = rng.beta(0.4 + 1.6 * green, 0.4 + 1.6 * (1 - green), count).astype(np.float32)
        bright = rng.normal(1, 0.13, count).astype(np.float32)
        self.vigor = np.where(self.farmed, 0.2 * self.vigor + 0.8 * ripe[ids], self.vigor)
        self.texture *= np.where(self.farmed, bright[ids], np.float32(1))
        edge = np.zeros(self.shape, bool)
        edge[1:] |= ids[1:] != ids[:-1]
        edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
        edge &= self.farmed
        self.material[edge & (rng.random(count) < 0.15)[ids]] = number("broadleaf")
        self.material[edge & (rng.random(count) < 0.12)[ids]] = number("sand")

    def _woods(self, region: Field, moist: Field, clump: Field, hills: Field) -> None:
        traits = self.traits
        stand: Field = -0.5 * region + 0.4 * moist + 0.7 * clump + np.float32(traits.relief) * hills
        limit = np.quantile(stand[::4, ::4], 1 - 0.75 * traits.forest)
        woods = np.asarray((stand > limit) & (~self.farmed | (clump > 1.5)), bool)
        needles = (hills + 0.5 * clump) > np.float32(_normal_quantile(1 - traits.conifer))
        self.material[woods] = np.where(needles[woods], number("conifer"), number("broadleaf"))

    def _towns(self, patch: Field) -> None:
        rng, unit = self.rng, self.unit
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32) * np.float32(unit)
        for _ in range(self.traits.towns):
            cx, cy = rng.uniform(0, self.shape[1] * unit), rng.uniform(0, self.shape[0] * unit)
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

    def _blocks(self, u: Field, v: Field, dense: Field) -> NDArray[np.uint8]:
        """Return street blocks: houses between gardens, a few big halls, a park here and there."""
        rng = self.rng
        wide, long = np.float32(rng.uniform(70, 120)), np.float32(rng.uniform(100, 180))
        i, j = np.floor(u / wide).astype(np.int32) % 64, np.floor(v / long).astype(np.int32) % 64
        block = rng.random((64, 64), dtype=np.float32)[j, i]
        house = rng.random(u.shape, dtype=np.float32)
        roof = number("tile roof") if rng.random() < 0.6 else number("metal roof")
        built = np.where(house < 0.25 + 0.4 * dense, np.uint8(roof), np.uint8(number("garden")))
        built[(house > 0.85) & (dense > 0.4)] = number("pale roof")
        built[block < 0.06] = number("pale roof")
        built[(block > 0.94) & (dense < 0.8)] = number("metal roof")
        built[(block > 0.8) & (block < 0.88)] = number("garden")
        street = (np.mod(u, wide) < 11) | (np.mod(v, long) < 11)
        built[street] = number("asphalt")
        return np.asarray(built, np.uint8)

    def _shores(self, water: Mask, height: Field, bars: Mask, moist: Field, patch: Field) -> None:
        traits = self.traits
        away = distance(water) * np.float32(self.unit)
        low = height < np.float32(traits.flood_m + 0.25 + 0.9 * traits.wet)
        open_ = ~np.isin(self.material, [number(n) for n in ("asphalt", "tile roof", "pale roof", "metal roof")])
        reed = (away < 130 * (1 + patch)) & low & (moist > 0.3) & open_
        self.material[reed] = number("reed")
        trees = (away < 70 * (1 + 0.8 * moist)) & (patch > 0.35) & open_ & ~reed
        self.material[trees] = number("broadleaf")
        mud = (
            (away < 12 + 60 * traits.wet * ramp(patch, -1, 1.5)) | (low & (patch < -0.3 + 1.3 * (traits.wet - 0.5)))
        ) & open_
        mud &= ~reed & ~trees
        if traits.flood_m < -1 and traits.kind != "coast":
            mud &= away < 60
        self.material[mud] = number("mud")
        self.material[bars & open_] = np.where(moist[bars & open_] > 0.8, number("mud"), number("sand"))
        # Mud near the water is soaked, further away it dries.
        soaked = np.exp(-away / np.float32(60 + 160 * traits.wet))
        self.vigor = np.where(mud, np.clip(soaked + 0.35 * traits.wet, 0, 1), self.vigor).astype(np.float32)


def _normal_quantile(share: float) -> float:
    """Return where the standard normal distribution has `share` below it."""
    return float(ndtri(min(max(share, 1e-4), 1 - 1e-4)))

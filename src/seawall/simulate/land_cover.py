"""What the dry ground is made of: fields, woods, towns, reeds, mud."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.special import ndtri

from seawall.arrays import BoolArray
from seawall.simulate.noise_fields import Field, Rng, blur, distance, look_up, meander, noise, parcels, ramp, resize
from seawall.simulate.scene_parameters import Traits
from seawall.simulate.spectra import number


class Land:
    """What the dry part is made of, how lush it is and how bright."""

    def __init__(
        self, rng: Rng, traits: Traits, shape: tuple[int, int], gsd_m: float,
        water: BoolArray, height: Field, bars: BoolArray, roads: BoolArray, hills: Field, moist: Field, region: Field,
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

    def _shores(self, water: BoolArray, height: Field, bars: BoolArray, moist: Field, patch: Field) -> None:
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


FINE = 3
"""Water is drawn this many times finer than the pixels, so that shoreline pixels know their share of it."""


class Waters:
    """Everything that water decides; made once, then only read.

    Args:
        rng: Where the randomness comes from.
        traits: What kind of place it is.
        shape: (H, W).
        gsd_m: Pixel size in meters.
        hills: Smooth relief of variance 1.
        rough: Rough relief of variance 1.
    """

    share: Field
    """Share of each pixel that is water."""
    height: Field
    """Height over the river, in meters."""
    shallow: Field
    """1 at the waterline, falling to 0 with the depth."""
    stirred: Field
    """1 in the river, where sediment stays up."""

    def __init__(
        self, rng: Rng, traits: Traits, shape: tuple[int, int], gsd_m: float, hills: Field, rough: Field
    ) -> None:
        self.rng, self.traits, self.shape, self.unit = rng, traits, shape, gsd_m
        self.canvas = np.zeros((shape[0] * FINE, shape[1] * FINE), np.uint8)
        self.sand = np.zeros(shape, np.uint8)
        self._rivers()
        river = resize(self.canvas, shape, cv2.INTER_AREA)
        away = distance(river >= 128) * np.float32(gsd_m)
        bumpy = 0.55 + 6 * traits.relief**2
        # A valley rises with the distance to the river; hills and small bumps make its contours.
        self.height = (np.float32(2.2) * (away / 700) ** np.float32(0.75) + bumpy * hills + 0.16 * rough).astype(
            np.float32
        )
        self.height -= np.float32(bumpy * 0.6)
        flooded = self._flooded(hills, rough)
        fine = resize(flooded, (shape[0] * FINE, shape[1] * FINE))
        self.canvas[fine < 0] = 255
        self._ponds()
        self.share = resize(self.canvas, shape, cv2.INTER_AREA) / np.float32(255)
        self.bars = self.sand > 0
        # Rivers and ponds fall off steeply from the bank, a flooded plain as gently as the plain itself.
        bank = np.exp(-distance(self.share < 0.5) * np.float32(gsd_m / 14))
        plain = np.exp(np.minimum(flooded, 0) * np.float32(2.2)) * (river < 128)
        self.shallow = np.where(flooded < 0, np.maximum(bank, plain), bank).astype(np.float32)
        self.stirred = blur((river > 128).astype(np.float32), 120 / gsd_m)

    def _flooded(self, hills: Field, rough: Field) -> Field:
        """Return a height over the nearest still water level: below 0 is water."""
        traits, deep = self.traits, np.float32(99)
        over = self.height - np.float32(traits.flood_m) if traits.flood_m > -1 else np.full(self.shape, deep)
        if traits.lakes > 0.005:
            basin = hills + 0.12 * rough
            level = np.quantile(basin[::4, ::4], traits.lakes)
            over = np.minimum(over, basin - np.float32(level))
        if traits.kind == "reservoir":
            ridged = np.abs(blur(hills, 80 / self.unit)) - 0.02 * rough
            level = np.quantile(ridged[::4, ::4], 0.2)
            over = np.minimum(over, ridged - np.float32(level))
        if traits.kind == "coast":
            y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)
            across = (x - self.shape[1] / 2) * np.cos(traits.heading) + (y - self.shape[0] / 2) * np.sin(traits.heading)
            coast = across / np.float32(self.shape[0]) + 0.07 * hills + 0.012 * rough + 0.12
            over = np.minimum(over, coast * 8)
            self.height = np.minimum(self.height, coast * 14 + np.float32(max(traits.flood_m, 0)))
        return np.asarray(over, np.float32)

    def _rivers(self) -> None:
        traits, rng, unit = self.traits, self.rng, self.unit
        reach = float(np.hypot(*self.shape)) * 3
        center = self.shape[1] * rng.uniform(0.3, 0.7), self.shape[0] * rng.uniform(0.3, 0.7)
        if traits.kind in ("lakes", "reservoir"):
            self._stream(center, traits.heading, reach, rng.uniform(12, 45) / unit, 0.9)
            return
        if traits.kind == "braided":
            self._braids(center, reach)
        else:
            old = meander(rng, center, traits.heading, reach, traits.bend_m / unit, min(1.9, traits.swing + 0.35))
            line = meander(rng, center, traits.heading, reach, traits.bend_m / unit, traits.swing)
            self._oxbows(old, traits.width_m / unit)
            self._river(line, traits.width_m / unit)
        for _ in range(int(rng.integers(1, 4))):
            start = self.shape[1] * rng.uniform(0, 1), self.shape[0] * rng.uniform(0, 1)
            self._stream(start, traits.heading + rng.uniform(0.6, 2.4), reach, rng.uniform(6, 28) / unit, 1.2)

    def _stream(self, through: tuple[float, float], heading: float, reach: float, width: float, swing: float) -> None:
        line = meander(self.rng, through, heading, reach, max(12.0, width * 14), swing)
        self._draw(line, np.full(len(line), width))

    def _braids(self, center: tuple[float, float], reach: float) -> None:
        rng, width = self.rng, self.traits.width_m / self.unit
        spine = meander(rng, center, self.traits.heading, reach, width * 22, 0.45)
        knots = max(5, int(len(spine) / (width * 1.5)))
        belt = np.interp(np.arange(len(spine)), np.linspace(0, len(spine), knots), rng.uniform(0.9, 2.2, knots))
        self._draw_sand(spine, width * belt)
        normal = np.stack([-np.gradient(spine[:, 1]), np.gradient(spine[:, 0])], 1)
        along = np.arange(len(spine))
        for thread in range(int(rng.integers(4, 8))):
            knots = max(5, int(len(spine) / (width * 2.2)))
            sway = np.interp(along, np.linspace(0, len(spine), knots), rng.normal(0, 0.5, knots)) * width
            broad = np.interp(along, np.linspace(0, len(spine), knots), rng.gamma(3, 0.045, knots)) * width
            self._draw(spine + normal * sway[:, None], np.maximum(broad * (1.6 if thread == 0 else 0.8), 0.5))

    def _oxbows(self, old: NDArray[np.float64], width: float) -> None:
        bend = self.traits.bend_m / self.unit
        inside = np.flatnonzero(((old > 0) & (old < np.array(self.shape[::-1]))).all(1))
        for _ in range(int(self.rng.integers(2, 7))):
            if len(inside) < 8:
                return
            start = int(self.rng.choice(inside))
            piece = old[start : start + int(bend * self.rng.uniform(0.25, 0.5))]
            if len(piece) > 8:
                taper = np.sin(np.linspace(0.15, np.pi - 0.15, len(piece))) ** 0.5
                self._draw(piece, width * self.rng.uniform(0.35, 0.75) * taper)

    def _river(self, line: NDArray[np.float64], width: float) -> None:
        heading = np.unwrap(np.arctan2(np.gradient(line[:, 1]), np.gradient(line[:, 0])))
        bend = np.gradient(gaussian_filter1d(heading, max(1.0, width / 2)))
        tight = np.clip(bend * width * 2.5, -1, 1)
        knots = max(4, int(len(line) / (width * 6)))
        vary = np.interp(np.arange(len(line)), np.linspace(0, len(line), knots), self.rng.normal(1, 0.12, knots))
        inner = np.stack([-np.sin(heading), np.cos(heading)], 1) * (np.sign(tight) * width * 0.42)[:, None]
        self._draw_sand(line + inner, width * 0.75 * np.abs(tight))
        self._draw(line, width * np.clip(vary + 0.12 * np.abs(tight), 0.5, 1.6))

    def _ponds(self) -> None:
        rng, unit = self.rng, self.unit
        area_km2 = self.shape[0] * self.shape[1] * unit**2 / 1e6
        for _ in range(int(rng.poisson(2.2 * self.traits.ponds * area_km2))):
            x, y = rng.uniform(0, self.canvas.shape[1]), rng.uniform(0, self.canvas.shape[0])
            long = float(np.exp(rng.normal(3.3, 0.6))) / unit * FINE
            box = ((x, y), (2 * long, 2 * long * rng.uniform(0.4, 1)), float(rng.uniform(0, 180)))
            if rng.random() < 0.4:
                cv2.fillPoly(self.canvas, [cv2.boxPoints(box).astype(np.int32)], 255)
            else:
                cv2.ellipse(self.canvas, box, 255, -1)

    def _draw(self, line: NDArray[np.float64], width: NDArray[np.float64]) -> None:
        _trace(self.canvas, line * FINE, width * FINE)

    def _draw_sand(self, line: NDArray[np.float64], width: NDArray[np.float64] | float) -> None:
        _trace(self.sand, line, np.broadcast_to(width, (len(line),)))


def _trace(canvas: NDArray[np.uint8], line: NDArray[np.float64], width: NDArray[np.float64]) -> None:
    """Draw a line of changing width; pieces outside the canvas are skipped."""
    height, wide = canvas.shape
    margin = float(width.max()) + 2
    stride = max(1, int(np.median(width) / 6 / max(1e-9, float(np.hypot(*np.diff(line[:2], axis=0)[0])))))
    line, width = line[::stride], width[::stride]
    near = np.all((line > -margin) & (line < np.array([wide, height]) + margin), axis=1)
    points = np.round(line * 8).astype(np.int32)
    for i in np.flatnonzero(near[:-1] & near[1:] & (width[:-1] >= 0.34)).tolist():
        cv2.line(canvas, points[i].tolist(), points[i + 1].tolist(), 255, max(1, round(width[i])), cv2.LINE_8, 3)

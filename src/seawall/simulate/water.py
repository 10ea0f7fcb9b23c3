"""Water of a simulated scene: rivers, floods, lakes, reservoirs, coasts and ponds."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter1d

from seawall.arrays import BoolArray, ByteArray, DoubleArray, FloatArray
from seawall.simulate.noise_fields import blur, distance_to_mask, meander, resize
from seawall.simulate.scene_parameters import SceneParameters

WATER_OVERSAMPLING = 3
"""Factor by which water is drawn finer than the pixels, so that shoreline pixels have fractional shares."""


class Water:
    """Maps of a scene's water and of the heights that follow from it, all (H, W).

    Args:
        rng: Source of randomness.
        params: Parameters of the scene.
        shape: (H, W).
        gsd_m: Pixel size in meters.
        hills: Smooth relief of variance 1.
        rough: Rough relief of variance 1.
    """

    share: FloatArray
    """Share of each pixel that is water."""
    height: FloatArray
    """Height over the river, in meters."""
    shallow: FloatArray
    """1 at the waterline, falling to 0 with the depth."""
    stirred: FloatArray
    """1 in the river, where sediment stays suspended, falling to 0 away from it."""
    bars: BoolArray
    """Sand bars of the rivers."""

    def __init__(
        self,
        rng: Generator,
        params: SceneParameters,
        shape: tuple[int, int],
        gsd_m: float,
        hills: FloatArray,
        rough: FloatArray,
    ) -> None:
        self.rng, self.params, self.shape, self.gsd_m = rng, params, shape, gsd_m
        self._fine_mask = np.zeros((shape[0] * WATER_OVERSAMPLING, shape[1] * WATER_OVERSAMPLING), np.uint8)
        self.sand = np.zeros(shape, np.uint8)
        self._rivers()
        river = resize(self._fine_mask, shape, cv2.INTER_AREA)
        away = distance_to_mask(river >= 128) * np.float32(gsd_m)
        bumpy = 0.55 + 6 * params.relief**2
        # A valley rises with the distance to the river; hills and small bumps make its contours.
        self.height = (np.float32(2.2) * (away / 700) ** np.float32(0.75) + bumpy * hills + 0.16 * rough).astype(
            np.float32
        )
        self.height -= np.float32(bumpy * 0.6)
        flooded = self._height_over_water(hills, rough)
        fine = resize(flooded, (shape[0] * WATER_OVERSAMPLING, shape[1] * WATER_OVERSAMPLING))
        self._fine_mask[fine < 0] = 255
        self._ponds()
        self.share = resize(self._fine_mask, shape, cv2.INTER_AREA) / np.float32(255)
        self.bars = self.sand > 0
        # Rivers and ponds fall off steeply from the bank, a flooded plain as gently as the plain itself.
        bank = np.exp(-distance_to_mask(self.share < 0.5) * np.float32(gsd_m / 14))
        plain = np.exp(np.minimum(flooded, 0) * np.float32(2.2)) * (river < 128)
        self.shallow = np.where(flooded < 0, np.maximum(bank, plain), bank).astype(np.float32)
        self.stirred = blur((river > 128).astype(np.float32), 120 / gsd_m)

    def _height_over_water(self, hills: FloatArray, rough: FloatArray) -> FloatArray:
        """Return the height over the nearest still water level, in meters; negative is water."""
        params, deep = self.params, np.float32(99)
        over = self.height - np.float32(params.flood_m) if params.flood_m > -1 else np.full(self.shape, deep)
        if params.lakes > 0.005:
            basin = hills + 0.12 * rough
            level = np.quantile(basin[::4, ::4], params.lakes)
            over = np.minimum(over, basin - np.float32(level))
        if params.kind == "reservoir":
            ridged = np.abs(blur(hills, 80 / self.gsd_m)) - 0.02 * rough
            level = np.quantile(ridged[::4, ::4], 0.2)
            over = np.minimum(over, ridged - np.float32(level))
        if params.kind == "coast":
            y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)
            across = (x - self.shape[1] / 2) * np.cos(params.heading) + (y - self.shape[0] / 2) * np.sin(params.heading)
            coast = across / np.float32(self.shape[0]) + 0.07 * hills + 0.012 * rough + 0.12
            over = np.minimum(over, coast * 8)
            self.height = np.minimum(self.height, coast * 14 + np.float32(max(params.flood_m, 0)))
        return np.asarray(over, np.float32)

    def _rivers(self) -> None:
        params, rng, gsd_m = self.params, self.rng, self.gsd_m
        reach = float(np.hypot(*self.shape)) * 3
        center = self.shape[1] * rng.uniform(0.3, 0.7), self.shape[0] * rng.uniform(0.3, 0.7)
        if params.kind in ("lakes", "reservoir"):
            self._stream(center, params.heading, reach, rng.uniform(12, 45) / gsd_m, 0.9)
            return
        if params.kind == "braided":
            self._braids(center, reach)
        else:
            old = meander(rng, center, params.heading, reach, params.bend_m / gsd_m, min(1.9, params.swing + 0.35))
            line = meander(rng, center, params.heading, reach, params.bend_m / gsd_m, params.swing)
            self._oxbows(old, params.width_m / gsd_m)
            self._river(line, params.width_m / gsd_m)
        for _ in range(int(rng.integers(1, 4))):
            start = self.shape[1] * rng.uniform(0, 1), self.shape[0] * rng.uniform(0, 1)
            self._stream(start, params.heading + rng.uniform(0.6, 2.4), reach, rng.uniform(6, 28) / gsd_m, 1.2)

    def _stream(self, through: tuple[float, float], heading: float, reach: float, width: float, swing: float) -> None:
        line = meander(self.rng, through, heading, reach, max(12.0, width * 14), swing)
        self._draw(line, np.full(len(line), width))

    def _braids(self, center: tuple[float, float], reach: float) -> None:
        rng, width = self.rng, self.params.width_m / self.gsd_m
        spine = meander(rng, center, self.params.heading, reach, width * 22, 0.45)
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

    def _oxbows(self, old: DoubleArray, width: float) -> None:
        bend = self.params.bend_m / self.gsd_m
        inside = np.flatnonzero(((old > 0) & (old < np.array(self.shape[::-1]))).all(1))
        for _ in range(int(self.rng.integers(2, 7))):
            if len(inside) < 8:
                return
            start = int(self.rng.choice(inside))
            piece = old[start : start + int(bend * self.rng.uniform(0.25, 0.5))]
            if len(piece) > 8:
                taper = np.sin(np.linspace(0.15, np.pi - 0.15, len(piece))) ** 0.5
                self._draw(piece, width * self.rng.uniform(0.35, 0.75) * taper)

    def _river(self, line: DoubleArray, width: float) -> None:
        heading = np.unwrap(np.arctan2(np.gradient(line[:, 1]), np.gradient(line[:, 0])))
        bend = np.gradient(gaussian_filter1d(heading, max(1.0, width / 2)))
        tight = np.clip(bend * width * 2.5, -1, 1)
        knots = max(4, int(len(line) / (width * 6)))
        vary = np.interp(np.arange(len(line)), np.linspace(0, len(line), knots), self.rng.normal(1, 0.12, knots))
        inner = np.stack([-np.sin(heading), np.cos(heading)], 1) * (np.sign(tight) * width * 0.42)[:, None]
        self._draw_sand(line + inner, width * 0.75 * np.abs(tight))
        self._draw(line, width * np.clip(vary + 0.12 * np.abs(tight), 0.5, 1.6))

    def _ponds(self) -> None:
        rng, gsd_m = self.rng, self.gsd_m
        area_km2 = self.shape[0] * self.shape[1] * gsd_m**2 / 1e6
        for _ in range(int(rng.poisson(2.2 * self.params.ponds * area_km2))):
            x, y = rng.uniform(0, self._fine_mask.shape[1]), rng.uniform(0, self._fine_mask.shape[0])
            long = float(np.exp(rng.normal(3.3, 0.6))) / gsd_m * WATER_OVERSAMPLING
            box = ((x, y), (2 * long, 2 * long * rng.uniform(0.4, 1)), float(rng.uniform(0, 180)))
            if rng.random() < 0.4:
                cv2.fillPoly(self._fine_mask, [cv2.boxPoints(box).astype(np.int32)], 255)
            else:
                cv2.ellipse(self._fine_mask, box, 255, -1)

    def _draw(self, line: DoubleArray, width: DoubleArray) -> None:
        _draw_line(self._fine_mask, line * WATER_OVERSAMPLING, width * WATER_OVERSAMPLING)

    def _draw_sand(self, line: DoubleArray, width: DoubleArray | float) -> None:
        _draw_line(self.sand, line, np.broadcast_to(width, (len(line),)))


def _draw_line(image: ByteArray, line: DoubleArray, width: DoubleArray) -> None:
    """Draw a line of changing width; pieces outside the image are skipped."""
    height, wide = image.shape
    margin = float(width.max()) + 2
    stride = max(1, int(np.median(width) / 6 / max(1e-9, float(np.hypot(*np.diff(line[:2], axis=0)[0])))))
    line, width = line[::stride], width[::stride]
    near = np.all((line > -margin) & (line < np.array([wide, height]) + margin), axis=1)
    points = np.round(line * 8).astype(np.int32)
    for i in np.flatnonzero(near[:-1] & near[1:] & (width[:-1] >= 0.34)).tolist():
        cv2.line(image, points[i].tolist(), points[i + 1].tolist(), 255, max(1, round(width[i])), cv2.LINE_8, 3)

"""Simulated scenes as a source of chips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np

from seawall import __version__
from seawall.data.raw_chips import RawChip, RejectedItem, SourceItem, chip_windows, sha256_text
from seawall.errors import UsageError, did_you_mean
from seawall.geo.radiometry import Hints, Scale
from seawall.geo.raster import Window
from seawall.registry import register
from seawall.simulate.noise_fields import named_generator
from seawall.simulate.scene import S2_BANDS, SimScene, simulate_s1, simulate_s2


@dataclass(frozen=True)
class SimulatedItem:
    """A chip of a simulated scene."""

    id: str
    group: str
    shape: tuple[int, int]
    scene: Simulated
    number: int
    window: Window

    @property
    def source(self) -> str:
        """Scene id and sensor."""
        return f"simulated {self.scene.sensor} {self.group}"

    @property
    def gsd_m(self) -> float | None:
        """Ground sampling distance in meters."""
        return self.scene.gsd_m

    def read(self) -> RawChip:
        """Simulate the scene (kept for its other chips) and cut the chip."""
        scene = _simulated_scene(self.scene, self.group)
        row, col, height, width = self.window
        down, right = self.scene.corner(self.group)
        row, col = row + down, col + right
        cut = (slice(row, row + height), slice(col, col + width))
        label = (scene.cover if self.scene.cover else scene.water)[cut].astype(np.float32)
        if not self.scene.under_clouds:
            label[~scene.clear[cut]] = np.nan
        image, step = scene.image[:, *cut], None
        if scene.unit == "reflectance":
            # Products come in steps of 1/10000; so do these chips, in half the bytes of floats.
            step = 1e-4
            image = (np.rint(image * 1e4) * np.float32(step)).astype(np.float32)
        grid = scene.grid.window(row, col, height, width)
        scale = Scale(1.0, 0.0, "reflectance" if scene.unit == "reflectance" else "sigma0_db", "simulated")
        hints = Hints("float32", scale.unit)
        return RawChip(image, scene.seen[cut], scene.bands, grid, hints, label, grid, step=step, scale=scale)

    def digest(self) -> str:
        """Digest of the simulation's settings and the version of the simulator."""
        return sha256_text(repr(self.scene), self.group, str(self.window), __version__)


@register("source", "simulated", smoke={"scenes": 2, "size": 32})
@dataclass(frozen=True)
class Simulated:
    """Simulated scenes; each scene is a group.

    Args:
        scenes: Number of scenes.
        size: Side of a scene in pixels.
        sensor: "s2" or "s1".
        bands: Bands to simulate; all of the sensor if empty.
        gsd_m: Ground sampling distance in meters.
        seed: Of the experiment.
        clouds: Whether there are clouds and shadows (s2).
        cover: Label the full land cover instead of land and water.
        under_clouds: Whether the exact label counts under clouds.
        frame: Side in pixels of the terrain from which a scene is cut at a random place. Terrain is generated around a
            river, so that a small one (0: the scene itself) has two to four times the water share of a large one.
    """

    scenes: int = 12
    size: int = 512
    sensor: Literal["s1", "s2"] = "s2"
    bands: tuple[str, ...] = ()
    gsd_m: float = 10.0
    seed: int = 0
    clouds: bool = True
    cover: bool = False
    under_clouds: bool = False
    frame: int = 0
    example: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @classmethod
    def claims(cls, place: Path) -> bool:
        """Return whether this is a number, of scenes, and no file of that name."""
        return str(place).isdigit() and not place.exists()

    def __post_init__(self) -> None:
        if self.scenes < 1 or self.size < 16:
            raise UsageError(
                f"simulated: expected at least 1 scene of 16 pixels, got {self.scenes} of {self.size}; raise them"
            )
        if self.frame and self.frame < self.size:
            raise UsageError(
                f"simulated.frame: expected 0 or at least the size of {self.size} pixels, got {self.frame}; raise it"
            )
        if self.sensor not in ("s1", "s2"):
            raise UsageError(f"simulated: unknown sensor {self.sensor!r}; {did_you_mean(self.sensor, ('s1', 's2'))}")

    def corner(self, scene: str) -> tuple[int, int]:
        """Return the first row and column of a scene in the frame; a function of the scene's id."""
        if not self.frame:
            return 0, 0
        rng = named_generator(self.seed, scene, "frame", self.frame, self.size)
        row, col = rng.integers(0, self.frame - self.size + 1, 2)
        return int(row), int(col)

    @property
    def product(self) -> str:
        """Product family with the same units."""
        return "sentinel-2-l2a" if self.sensor == "s2" else "sentinel-1-grd"

    @property
    def licence(self) -> str:
        """No restriction."""
        return "made up, no restriction"

    @property
    def label_map(self) -> Mapping[int, int] | None:
        """Labels are exact."""
        return None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the land cover, or land and water."""
        if not self.cover:
            return ("land", "water")
        return tuple(_simulated_scene(replace(self, size=64, frame=0), "sim-names").cover_names)

    def items(self, chip: int) -> tuple[list[SourceItem], list[RejectedItem]]:
        """Return the chips of all scenes."""
        digits = max(3, len(str(self.scenes - 1)))
        made: list[SourceItem] = []
        for number in range(self.scenes):
            scene = f"sim{number:0{digits}d}"
            for tag, window in chip_windows((self.size, self.size), chip):
                made.append(SimulatedItem(f"{scene}{tag}", scene, (window[2], window[3]), self, number, window))
        return made, []


@lru_cache(2)
def _simulated_scene(settings: Simulated, scene: str) -> SimScene:
    size, gsd_m, seed = settings.frame or settings.size, settings.gsd_m, settings.seed
    if settings.sensor == "s1":
        return simulate_s1(scene, size, settings.bands or ("VV", "VH"), gsd_m, seed)
    return simulate_s2(scene, size, settings.bands or S2_BANDS, gsd_m, seed, clouds=settings.clouds)

"""Parameters of a simulated scene: landform, land use, season, weather, light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class SceneParameters:
    """Parameters of a simulated scene; shares and densities are in [0, 1] where no unit is named.

    Args:
        kind: Landform: "meander", "braided", "lakes", "coast", "reservoir" or "flood".
        heading: General direction of the river, in radians.
        width_m: Width of the river.
        bend_m: Length along the river of one pair of bends.
        swing: Largest angle of the river to its heading, in radians.
        flood_m: Water level over the river's bank.
        lakes: Share of the scene that lies in lake basins.
        ponds: Density of ponds.
        relief: Height of the hills.
        forest: Forest cover.
        farm: Farmland cover.
        conifer: Share of the forest that is conifers.
        towns: Number of towns.
        season: From dry (0) to lush (1) vegetation.
        wet: Wetness of the soil.
        sediment: Sediment load of the water.
        algae: Algae in the water.
        glint: Strength of the sun glint.
        haze: Reflectance of the aerosol at 490 nm.
        cloud: Cloud cover.
        cirrus: Strength of cirrus.
        sun: Elevation of the sun in degrees.
        azimuth: Azimuth of the sun in radians.
        wind: Roughness of the water by wind.
    """

    kind: str
    heading: float
    width_m: float
    bend_m: float
    swing: float
    flood_m: float
    lakes: float
    ponds: float
    relief: float
    forest: float
    farm: float
    conifer: float
    towns: int
    season: float
    wet: float
    sediment: float
    algae: float
    glint: float
    haze: float
    cloud: float
    cirrus: float
    sun: float
    azimuth: float
    wind: float


def draw_scene_parameters(rng: Generator) -> SceneParameters:
    """Draw the parameters of a scene."""
    kind = str(
        rng.choice(["meander", "braided", "lakes", "coast", "reservoir", "flood"], p=[0.3, 0.1, 0.17, 0.13, 0.1, 0.2])
    )
    wide = {"braided": (260, 520), "coast": (120, 420), "flood": (60, 220)}.get(kind, (50, 260))
    width = float(rng.uniform(*wide))
    hilly = kind in ("reservoir", "lakes")
    return SceneParameters(
        kind=kind,
        heading=float(rng.uniform(0, 2 * np.pi)),
        width_m=width,
        bend_m=width * float(rng.uniform(11, 16)),
        swing=float(rng.uniform(0.4, 0.9) if kind == "braided" else rng.uniform(1.1, 1.85)),
        flood_m=float(rng.uniform(0.35, 1.5) if kind == "flood" else rng.uniform(-1.5, 0.45)),
        lakes=float(rng.uniform(0.08, 0.28) if kind == "lakes" else rng.uniform(0, 0.03)),
        ponds=float(rng.uniform(0, 1) ** 2),
        relief=float(rng.uniform(0.35, 1.0) if hilly else rng.uniform(0, 0.25)),
        forest=float(rng.beta(2, 3) if not hilly else rng.beta(4, 2)),
        farm=float(rng.beta(3, 2) if not hilly else rng.beta(1.5, 4)),
        conifer=float(rng.beta(1, 1.5)),
        towns=int(rng.integers(0, 4)),
        season=float(rng.beta(2, 1.6)),
        wet=float(rng.beta(2, 2)),
        sediment=float(rng.beta(1.1, 2.2) * (0.45 if hilly else 1.0)),
        algae=float(rng.beta(0.9, 3) * (0.4 if kind in ("flood", "coast", "braided") else 1.0)),
        glint=float(rng.choice([0.0, 0.15, 0.5, 1.0], p=[0.5, 0.25, 0.15, 0.1])),
        haze=float(rng.gamma(1.6, 0.011)),
        cloud=float(rng.choice([0.0, 0.04, 0.1, 0.25], p=[0.5, 0.25, 0.17, 0.08])),
        cirrus=float(rng.choice([0.0, 0.03, 0.1], p=[0.7, 0.2, 0.1])),
        sun=float(rng.uniform(28, 66)),
        azimuth=float(rng.uniform(np.radians(120), np.radians(200))),
        wind=float(rng.beta(1.5, 3)),
    )

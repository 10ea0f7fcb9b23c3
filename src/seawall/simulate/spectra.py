"""Reflectance per Sentinel-2 band and backscatter per polarization of the materials of simulated scenes.

Rounded from public spectral libraries (ECOSTRESS/ASTER, USGS) and field reviews of turbid waters, averaged over the
Sentinel-2 bands. Each material has two spectra, dry and lush, and the season interpolates between them; for soils the
second one is the wet soil.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.geo.sensors import OPTICAL_BANDS, RADAR_BANDS, SENSORS

COVERS = ("water", "wet soil", "bare soil", "cropland", "grassland", "forest", "marsh", "urban")
"""Land cover classes of simulated scenes."""

WATER_COMPONENTS = ("clear", "sediment", "algae", "scum", "glint")


@dataclass(frozen=True)
class Material:
    """A ground material.

    Args:
        name: Its name.
        cover: Land cover class that it counts as.
        dry: Reflectance of `OPTICAL_BANDS`, in thousandths.
        lush: The same of lush vegetation or wet soil.
        sigma0_db: Backscatter in dB, VV and VH.
    """

    name: str
    cover: str
    dry: tuple[int, ...]
    lush: tuple[int, ...]
    sigma0_db: tuple[float, float]


# B01  B02  B03  B04  B05  B06  B07  B08  B8A  B09  B10  B11  B12
MATERIALS = (
    Material(
        "mud",
        "wet soil",
        (52, 62, 88, 112, 122, 130, 136, 142, 148, 140, 4, 150, 104),
        (48, 57, 78, 88, 90, 84, 80, 74, 71, 52, 2, 46, 27),
        (-10.0, -18.5),
    ),
    Material(
        "soil",
        "bare soil",
        (82, 102, 148, 205, 225, 242, 256, 272, 284, 286, 6, 352, 302),
        (50, 62, 92, 128, 142, 156, 168, 180, 190, 188, 5, 224, 176),
        (-12.0, -20.5),
    ),
    Material(
        "sand",
        "bare soil",
        (140, 172, 232, 290, 306, 318, 330, 342, 350, 348, 8, 402, 366),
        (90, 110, 152, 192, 206, 214, 222, 230, 236, 226, 6, 232, 186),
        (-14.5, -23.5),
    ),
    Material(
        "crop",
        "cropland",
        (62, 80, 118, 158, 180, 222, 242, 262, 278, 280, 5, 332, 238),
        (22, 28, 62, 34, 96, 300, 382, 412, 436, 424, 4, 202, 96),
        (-10.5, -16.5),
    ),
    Material(
        "young crop",
        "cropland",
        (70, 88, 130, 178, 198, 222, 236, 252, 264, 264, 5, 330, 262),
        (40, 50, 88, 84, 132, 236, 278, 300, 314, 308, 4, 238, 146),
        (-11.5, -19.0),
    ),
    Material(
        "grass",
        "grassland",
        (56, 70, 104, 132, 158, 204, 222, 240, 254, 258, 5, 318, 220),
        (30, 38, 76, 52, 112, 254, 302, 324, 342, 336, 4, 226, 120),
        (-12.5, -19.5),
    ),
    Material(
        "broadleaf",
        "forest",
        (30, 36, 56, 62, 88, 152, 178, 196, 210, 208, 4, 186, 104),
        (15, 20, 42, 22, 64, 218, 284, 308, 326, 316, 3, 146, 62),
        (-8.5, -13.8),
    ),
    Material(
        "conifer",
        "forest",
        (18, 22, 36, 30, 52, 118, 144, 158, 168, 166, 3, 96, 46),
        (12, 16, 30, 18, 42, 124, 158, 174, 186, 180, 3, 82, 34),
        (-8.8, -14.2),
    ),
    Material(
        "reed",
        "marsh",
        (40, 48, 72, 84, 106, 142, 156, 166, 174, 160, 3, 146, 88),
        (24, 30, 58, 38, 80, 164, 198, 212, 220, 198, 3, 112, 52),
        (-7.5, -15.5),
    ),
    Material(
        "pale roof",
        "urban",
        (192, 222, 246, 260, 266, 270, 274, 280, 284, 284, 12, 286, 262),
        (168, 194, 216, 230, 236, 240, 244, 248, 252, 252, 12, 256, 232),
        (-1.0, -9.5),
    ),
    Material(
        "tile roof",
        "urban",
        (62, 74, 104, 176, 204, 224, 236, 248, 258, 258, 8, 296, 270),
        (54, 64, 90, 148, 172, 190, 202, 212, 222, 222, 8, 256, 230),
        (-3.0, -10.5),
    ),
    Material(
        "metal roof",
        "urban",
        (168, 176, 172, 160, 154, 150, 146, 144, 142, 140, 8, 118, 96),
        (140, 148, 144, 132, 128, 124, 122, 120, 118, 116, 8, 100, 82),
        (0.5, -8.5),
    ),
    Material(
        "asphalt",
        "urban",
        (66, 74, 86, 96, 100, 104, 108, 112, 116, 118, 6, 138, 130),
        (52, 58, 66, 72, 76, 80, 82, 86, 88, 90, 5, 104, 96),
        (-11.0, -19.0),
    ),
    Material(
        "garden",
        "urban",
        (58, 70, 100, 122, 146, 190, 208, 222, 236, 240, 5, 282, 200),
        (34, 42, 74, 60, 112, 228, 270, 290, 306, 300, 4, 222, 128),
        (-7.5, -13.5),
    ),
)
"""All land materials; the index is the number in a material map."""

# Reflectance of water: clear water plus sediment, algae, floating plants (scum) and sky glint, each weighted by 0 to 1.
_WATER_REFLECTANCE = {
    "clear": (30, 32, 30, 15, 11, 7, 6, 5, 4, 3, 1, 2, 1),
    "sediment": (46, 68, 122, 166, 164, 122, 118, 92, 82, 30, 0, 10, 6),
    "algae": (-6, -4, 24, 8, 46, 30, 34, 28, 26, 10, 0, 4, 2),
    "scum": (0, 8, 34, 20, 62, 150, 178, 192, 200, 150, 1, 62, 30),
    "glint": (30, 32, 34, 35, 35, 36, 36, 36, 36, 34, 2, 34, 32),
}

_BOTTOM_SHARE = (0.5, 0.55, 0.6, 0.45, 0.38, 0.22, 0.2, 0.2, 0.18, 0.05, 0.0, 0.03, 0.02)

CLOUD_REFLECTANCE = (720, 730, 740, 750, 755, 758, 760, 765, 765, 560, 60, 480, 380)
"""Reflectance of a thick cloud, in thousandths."""

DIFFUSE_SHARE = (0.58, 0.48, 0.38, 0.29, 0.26, 0.24, 0.22, 0.20, 0.19, 0.17, 0.1, 0.09, 0.06)
"""Diffuse share of the irradiance at the ground: what is left in a shadow."""


def material_index(material: str) -> int:
    """Return the index of a material in `MATERIALS`."""
    return [m.name for m in MATERIALS].index(material)


def land_tables(band: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the dry and the lush reflectance of each material, as look-up tables of 256 entries."""
    at = OPTICAL_BANDS.index(band)
    dry, lush = np.zeros(256, np.float32), np.zeros(256, np.float32)
    dry[: len(MATERIALS)] = [m.dry[at] / 1000 for m in MATERIALS]
    lush[: len(MATERIALS)] = [m.lush[at] / 1000 for m in MATERIALS]
    return dry, lush


def water_components(band: str) -> tuple[float, ...]:
    """Return the reflectance that each of `WATER_COMPONENTS` adds to water."""
    return tuple(_WATER_REFLECTANCE[name][OPTICAL_BANDS.index(band)] / 1000 for name in WATER_COMPONENTS)


def bottom_share(band: str) -> float:
    """Return the share of the bottom's reflectance in that of water at the waterline."""
    return _BOTTOM_SHARE[OPTICAL_BANDS.index(band)]


def backscatter_table(polarization: str) -> NDArray[np.float32]:
    """Return the linear backscatter of each material, as a look-up table of 256 entries."""
    at = RADAR_BANDS.index(polarization)
    table = np.zeros(256, np.float32)
    table[: len(MATERIALS)] = [10 ** (m.sigma0_db[at] / 10) for m in MATERIALS]
    return table


def cover_table() -> NDArray[np.uint8]:
    """Return the land cover class of each material, as a look-up table of 256 entries."""
    table = np.zeros(256, np.uint8)
    table[: len(MATERIALS)] = [COVERS.index(m.cover) for m in MATERIALS]
    return table


def haze_color(bands: Sequence[str]) -> NDArray[np.float64]:
    """Return the aerosol reflectance of each band relative to that at 490 nm."""
    centers = {band.id: band.center_nm for band in SENSORS["sentinel-2-l1c"].bands}
    return np.array([(490 / centers[band]) ** 1.6 for band in bands])

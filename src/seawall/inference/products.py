"""The products of a whole-scene map: encoded layers, areas counted from probabilities, and the result."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.arrays import ByteArray
from seawall.inference.tiling import Strip

LAYERS = ("class", "probability", "uncertainty")
"""Layers of the output buffer; see `layer_names` for the names of the products."""
NODATA = 255
STORED_STEPS = 250
"""Probability and uncertainty are stored as whole 1/250ths: value = stored * 0.004."""
SCALE = 1 / STORED_STEPS

ClassColor = tuple[int, int, int]

_USUAL_COLORS: Mapping[str, ClassColor] = {
    "land": (222, 211, 180),
    "water": (33, 102, 172),
    "river": (33, 102, 172),
    "lake": (67, 147, 195),
    "vegetation": (77, 146, 33),
    "forest": (39, 100, 25),
    "grass": (161, 215, 106),
    "soil": (191, 129, 45),
    "sand": (246, 232, 195),
    "urban": (178, 24, 43),
    "snow": (247, 247, 247),
    "cloud": (217, 217, 217),
    "shadow": (77, 77, 77),
}


@dataclass(frozen=True)
class ReportedClass:
    """The class that is reported, and which probabilities of it count as unsure.

    Args:
        klass: Index of the class whose probability, area and uncertainty are reported.
        unsure: Probabilities from the first up to the second are unsure.
    """

    klass: int
    unsure: tuple[float, float]


@dataclass(frozen=True)
class Totals:
    """Sums over pixels; they add up over the parts of a scene. Areas are None without georeference.

    Args:
        pixels: All pixels.
        seen: Pixels that the sensor saw.
        unsure: Seen pixels whose probability of the class is in the unsure range.
        class_pixels: Pixels per class.
        class_m2: Ground area per class.
        expected_m2: Sum of probability times area.
        low_m2: Area that is surely of the class: probability at or above the unsure range.
        high_m2: Area that may be of the class: probability in or above the unsure range.
        unsure_m2: Area in the unsure range.
    """

    pixels: int
    seen: int
    unsure: int
    class_pixels: tuple[int, ...]
    class_m2: tuple[float, ...] | None
    expected_m2: float | None
    low_m2: float | None
    high_m2: float | None
    unsure_m2: float | None

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.pixels + other.pixels,
            self.seen + other.seen,
            self.unsure + other.unsure,
            tuple(a + b for a, b in zip(self.class_pixels, other.class_pixels, strict=True)),
            None
            if self.class_m2 is None or other.class_m2 is None
            else tuple(a + b for a, b in zip(self.class_m2, other.class_m2, strict=True)),
            _plus(self.expected_m2, other.expected_m2),
            _plus(self.low_m2, other.low_m2),
            _plus(self.high_m2, other.high_m2),
            _plus(self.unsure_m2, other.unsure_m2),
        )

    def plain(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)

    @staticmethod
    def of(plain: Mapping[str, object]) -> Totals:
        """Return totals from what `plain` returned."""
        return Totals(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class SceneResult:
    """A whole-scene map: its files, areas and flags.

    Args:
        name: Name of the products.
        source: File name of the scene.
        files: Product ("class", the reported class, "uncertainty") to file name in the output folder.
        digests: Product to SHA-256 of its file.
        key: Digest of model, scene and settings; the same key is the same map.
        model: Digest of the model.
        scene: Digest of the scene file.
        classes: Class names; the class product holds their indices.
        klass: Class that the probabilities and areas below are of.
        unit: Physical unit that the model was given.
        radiometry: How the stored numbers became physical, and why.
        height: Rows.
        width: Columns.
        seen_share: Share of pixels that the sensor saw.
        share: Share of seen pixels of the class; None if nothing was seen.
        area_km2: Area of pixels of the class; None without georeference. So are all areas.
        expected_km2: Sum of probability times pixel area: the expected area, if the probabilities are calibrated.
        low_km2: Area that is surely of the class (probability at or above the unsure range).
        high_km2: Area that may be of the class (probability in or above the unsure range). [low, high] is what the
            threshold's choice can change; it is no confidence interval, for errors of neighboring pixels are alike.
        unsure_km2: Area in the unsure range.
        unsure_share: Share of seen pixels in the unsure range; None if nothing was seen.
        class_km2: Area per class.
        unsure: The unsure range.
        flags: Warnings about the numbers.
        tiles: Tiles of the plan.
        seconds: Time it took.
        reused: The products were complete already; nothing was computed.
    """

    name: str
    source: str
    files: Mapping[str, str]
    digests: Mapping[str, str]
    key: str
    model: str
    scene: str
    classes: tuple[str, ...]
    klass: str
    unit: str
    radiometry: str
    height: int
    width: int
    seen_share: float
    share: float | None
    area_km2: float | None
    expected_km2: float | None
    low_km2: float | None
    high_km2: float | None
    unsure_km2: float | None
    unsure_share: float | None
    class_km2: Mapping[str, float | None]
    unsure: tuple[float, float]
    flags: tuple[str, ...] = ()
    tiles: int = 0
    seconds: float = 0.0
    reused: bool = False

    def plain(self) -> dict[str, object]:
        """Return plain values for JSON, with area and share of the class under its own name too."""
        slug = slug_of(self.klass)
        return {**asdict(self), f"{slug}_share": self.share, f"{slug}_km2": self.area_km2}


def layer_names(klass: str) -> dict[str, str]:
    """Return the name of each layer's product: that of the probability is the class.

    Example:
        >>> layer_names("forest")
        {'class': 'class', 'probability': 'forest', 'uncertainty': 'uncertainty'}
    """
    slug = slug_of(klass)
    return {
        "class": "class",
        "probability": f"{slug}-probability" if slug in LAYERS else slug,
        "uncertainty": "uncertainty",
    }


def slug_of(name: str) -> str:
    """Return a class name that is safe in a file name and a JSON key.

    Example:
        >>> slug_of("bare soil")
        'bare_soil'
    """
    return re.sub(r"[^0-9A-Za-z_-]+", "_", name) or "class"


def encode_layers(strip: Strip, reported: ReportedClass) -> dict[str, ByteArray]:
    """Return the layers of a strip as bytes; unseen pixels are `NODATA` in each.

    Uncertainty is the entropy of the class probabilities over ln K, that of a uniform distribution.
    """
    p = strip.probability
    entropy = np.zeros(p.shape[1:], np.float32)
    for layer in p:
        entropy -= layer * np.log(np.maximum(layer, np.float32(1e-12)))
    entropy /= np.float32(np.log(max(len(p), 2)))
    layers = {
        "class": p.argmax(0).astype(np.uint8),
        "probability": _to_bytes(p[reported.klass]),
        "uncertainty": _to_bytes(entropy),
    }
    for layer in layers.values():
        layer[~strip.seen] = NODATA
    return layers


def count_strip(strip: Strip, reported: ReportedClass, areas_m2: NDArray[np.float64] | None) -> Totals:
    """Count a strip.

    Args:
        strip: Finished rows.
        reported: The class that is reported.
        areas_m2: (H,) ground area of a pixel in each row, or None.
    """
    p = strip.probability[reported.klass]
    winner = strip.probability.argmax(0)
    low, high = reported.unsure
    unsure = strip.seen & (p >= low) & (p < high)
    of_class = [strip.seen & (winner == k) for k in range(len(strip.probability))]

    def area(where: NDArray[np.generic]) -> float | None:
        return None if areas_m2 is None else float(where.sum(1, dtype=np.float64) @ areas_m2)

    areas = [area(where) for where in of_class]
    return Totals(
        pixels=strip.seen.size,
        seen=int(strip.seen.sum()),
        unsure=int(unsure.sum()),
        class_pixels=tuple(int(where.sum()) for where in of_class),
        class_m2=None if areas_m2 is None else tuple(a for a in areas if a is not None),
        expected_m2=area(p * strip.seen),
        low_m2=area(strip.seen & (p >= high)),
        high_m2=area(strip.seen & (p >= low)),
        unsure_m2=area(unsure),
    )


def class_palette(classes: Sequence[str]) -> dict[int, ClassColor]:
    """Return a color per class: a fixed one for common names, else one of evenly spread hues."""
    spread = [colorsys.hls_to_rgb(0.08 + 0.618034 * k % 1, 0.5, 0.55) for k in range(len(classes))]
    made: dict[int, ClassColor] = {}
    for k, name in enumerate(classes):
        red, green, blue = (round(255 * part) for part in spread[k])
        made[k] = _USUAL_COLORS.get(name.lower(), (red, green, blue))
    return made


def _to_bytes(share: NDArray[np.float32]) -> ByteArray:
    return np.clip(np.rint(share * STORED_STEPS), 0, STORED_STEPS).astype(np.uint8)


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b

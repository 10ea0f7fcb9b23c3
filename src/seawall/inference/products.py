"""The numbers of a whole-scene map: areas counted from probabilities, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seawall.inference.layers import CANNOT_TELL, ReportedClass, prediction_sets, slug_of
from seawall.inference.tiling import Strip
from seawall.uncertainty.area import AreaEstimate
from seawall.uncertainty.scene_statistics import Familiarity


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
        doubt_m2: Sum of probability times one less probability times area.
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
    doubt_m2: float | None
    low_m2: float | None
    high_m2: float | None
    unsure_m2: float | None

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(_sum(getattr(self, f.name), getattr(other, f.name)) for f in fields(Totals)))

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
        doubt_km2: Sum of probability times one less probability times pixel area.
        low_km2: Area of the pixels that surely are of the class, by the layer of sets.
        high_km2: Area of those that may be. [low, high] is no confidence interval: errors of neighboring pixels are alike.
        unsure_km2: Area of those that cannot be told.
        unsure_share: Share of seen pixels in the unsure range; None if nothing was seen.
        class_km2: Area per class.
        unsure: The unsure range, of probabilities; that of the map itself where its sets are by distance.
        statement: The area in a sentence.
        interval: The area with its interval and its corrected estimates; None without georeference.
        familiarity: Whether the scene looks like those that the network knows; None where nobody can say.
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
    doubt_km2: float | None
    low_km2: float | None
    high_km2: float | None
    unsure_km2: float | None
    unsure_share: float | None
    class_km2: Mapping[str, float | None]
    unsure: tuple[float, float] = (0.5, 0.5)
    statement: str = ""
    interval: AreaEstimate | None = None
    familiarity: Familiarity | None = None
    flags: tuple[str, ...] = ()
    tiles: int = 0
    seconds: float = 0.0
    reused: bool = False

    def plain(self) -> dict[str, object]:
        """Return plain values for JSON, with area and share of the class under its own name too."""
        slug = slug_of(self.klass)
        return {**asdict(self), f"{slug}_share": self.share, f"{slug}_km2": self.area_km2}


def count_strip(strip: Strip, classes: int, reported: ReportedClass, areas_m2: NDArray[np.float64] | None) -> Totals:
    """Count a strip.

    Args:
        strip: Finished rows.
        classes: Number of classes, whose probabilities are the first channels.
        reported: The class that is reported.
        areas_m2: (H,) ground area of a pixel in each row, or None.
    """
    p = strip.channels[reported.klass]
    winner = strip.channels[:classes].argmax(0)
    sets = np.where(strip.seen, prediction_sets(strip.channels[:classes], reported), 0)
    unsure = sets == CANNOT_TELL
    of_class = [strip.seen & (winner == k) for k in range(classes)]

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
        doubt_m2=area(p * (1 - p) * strip.seen),
        low_m2=area(sets == 1),
        high_m2=area(sets != 0),
        unsure_m2=area(unsure),
    )


def _sum(a: Any, b: Any) -> Any:
    """Return the sum of two counts, or of two tuples of counts; None where one is not known."""
    if a is None or b is None:
        return None
    return tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b

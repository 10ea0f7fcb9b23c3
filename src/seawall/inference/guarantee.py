"""What a map promises: sets of pixels with controlled risks, an area with an interval, and whether the scene looks familiar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch

from seawall.arrays import ByteArray
from seawall.bands import channels_of_sources
from seawall.errors import ImageryError, UsageError
from seawall.inference.layers import CANNOT_TELL, NODATA
from seawall.inference.output_buffer import OutputBuffer, byte_rows
from seawall.inference.products import SceneResult
from seawall.inference.scene import OpenScene
from seawall.uncertainty.area import AreaCalibration, AreaSums, describe_area, estimate_area
from seawall.uncertainty.calibration import Calibration
from seawall.uncertainty.conformal import ClassSets, RiskControl, class_sets, control_risk, parse_risk
from seawall.uncertainty.covariate_shift import CovariateShift
from seawall.uncertainty.distance import distance_pixels
from seawall.uncertainty.scene_scores import ROUNDING
from seawall.uncertainty.scene_statistics import (
    Familiarity,
    SceneStatistics,
    describe_windows,
    window_slices,
)
from seawall.uncertainty.smoothed_votes import seen_bands

SCENE_WINDOWS = 64
"""Windows of a scene that are looked at, evenly spread: each decodes blocks of the file, which takes long in a JPEG 2000 product."""
MOST_UNEVEN = 0.01
"""Share by which one side of a pixel may be longer than the other where sets are by distance."""
UNSURE = (0.2, 0.8)
"""Probabilities between which a map without a controlled risk calls the class unsure; no error is promised."""


@dataclass(frozen=True)
class Guarantee:
    """What maps promise by a calibration; without one, thresholds that nobody has checked.

    Args:
        calibration: Digest of the calibration file; "" without one.
        klass: The class that the calibration is of.
        controls: The risks that were asked for, and how they are controlled.
        unsure: Probabilities between which the class cannot be told.
        outer_m: See `ClassSets`; with this or the next, the sets are by distance.
        inner_m: See `ClassSets`.
        area: Areas of held-out scenes.
        level: How often the interval of the area holds it.
        statistics: How the scenes look that the network knows.

    Raises:
        UsageError: The probabilities are not in order.
    """

    calibration: str = ""
    klass: str = ""
    controls: tuple[RiskControl, ...] = ()
    unsure: tuple[float, float] = UNSURE
    outer_m: float | None = None
    inner_m: float | None = None
    area: AreaCalibration | None = None
    level: float = 0.9
    statistics: SceneStatistics | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.unsure[0] <= self.unsure[1] <= 1:
            raise UsageError(f"unsure: expected two probabilities in order, got {self.unsure}; swap them")

    @property
    def by_distance(self) -> bool:
        """Whether the sets are by distance from the map instead of by probability."""
        return self.outer_m is not None or self.inner_m is not None

    def check_class(self, klass: str) -> None:
        """Raise a UsageError where the calibration is of another class than the one that is mapped."""
        if self.klass not in ("", klass):
            raise UsageError(
                f"klass: expected {self.klass}, which the calibration is of, got {klass}; map it with --calibration none, or calibrate with "
                f"--klass {klass}, which takes the place of the other"
            )

    def identity(self) -> dict[str, object]:
        """Return what changes a map, in plain values."""
        return {
            "calibration": self.calibration, "risks": [str(control.risk) for control in self.controls], "unsure": self.unsure, "outer_m": self.outer_m, "inner_m": self.inner_m,
            "level": self.level, "area": None if self.area is None else self.area.plain(),
        }  # fmt: skip

    def plain(self) -> dict[str, object]:
        """Return what a map's JSON says of it: the risks, and the areas of held-out scenes, by which areas of zones are estimated."""
        return {
            "digest": self.calibration, "level": self.level, "risks": [control.plain() for control in self.controls],
            "area": None if self.area is None else self.area.plain(),
        }  # fmt: skip


def guarantee_of(
    calibration: Calibration, digest: str, risks: Sequence[str], shift: CovariateShift | None, level: float
) -> Guarantee:
    """Return what maps promise by a calibration.

    Args:
        calibration: The calibration of the predictor.
        digest: Digest of its file.
        risks: Such as "miss 5%" or "false-alarm 1% by distance".
        shift: A stated covariate shift between the held-out scenes and those that are mapped.
        level: How often the interval of the area shall hold it.

    Raises:
        UsageError: A text is no risk, two are of one side, or some are by distance and some not.
        DataError: A risk cannot be controlled; the message says how many scenes are missing.
    """
    asked = [parse_risk(text) for text in risks]
    if len({risk.by_distance for risk in asked}) > 1:
        raise UsageError(
            f"risk: expected all risks by distance or none, got {', '.join(map(str, asked))}; the two make other sets"
        )
    weights = None if shift is None else shift.weights(calibration.scores)
    controls = tuple(control_risk(risk, calibration.scores, calibration.gsd_m, weights) for risk in asked)
    sets = class_sets(controls) if asked else ClassSets(*UNSURE)
    return Guarantee(
        digest, calibration.klass, controls, (sets.lower, sets.upper), sets.outer_m, sets.inner_m,
        calibration.area(weights), level, calibration.statistics,
    )  # fmt: skip


def judge_scene(scene: OpenScene, statistics: SceneStatistics) -> Familiarity | None:
    """Return whether a scene looks like those that the network knows; None where no window of it is seen."""
    grid, spec = scene.source.grid, scene.spec
    found = []
    for rows, columns in window_slices(grid.height, grid.width, statistics.window, SCENE_WINDOWS):
        image, seen = scene.fetch(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        if len(channels_of_sources(spec.bands)) > 1:  # where one of the sources is not seen, its bands hold fill
            seen = seen & seen_bands(torch.from_numpy(image[None]), spec)[0].numpy()
        found.append(describe_windows(image, seen, spec.bands, spec.unit, statistics.window))
    windows = np.concatenate(found)
    return statistics.judge(windows) if len(windows) else None


def distance_sets(
    rows: Callable[[int, int], ByteArray], height: int, klass: int, guarantee: Guarantee, gsd_m: float, step: int = 512
) -> Iterator[tuple[int, ByteArray]]:
    """Yield the sets of a class by distance from the map, strip by strip, as (first row, (step, width) indices).

    Mapped pixels deeper inside than `inner_m` surely are of the class, all pixels within `outer_m` of one may be.

    Args:
        rows: From a first row up to another to the class layer there.
        height: Rows of the map.
        klass: Index of the class.
        guarantee: With the distances; a side without one is the border of the map itself.
        gsd_m: Meters per pixel.
        step: Rows per strip.
    """
    outer, inner = ((0.0 if m is None else m) / gsd_m for m in (guarantee.outer_m, guarantee.inner_m))
    halo = math.ceil(max(outer, inner)) + 1
    for first in range(0, height, step):
        last = min(first + step, height)
        top = max(0, first - halo)
        classes = rows(top, min(last + halo, height))
        mapped, seen = classes == klass, classes != NODATA
        surely = mapped & (distance_pixels(~mapped & seen) > inner + ROUNDING)
        possible = distance_pixels(mapped) <= outer + ROUNDING
        found = np.where(surely, 1, np.where(possible, CANNOT_TELL, 0)).astype(np.uint8)
        found[~seen] = NODATA
        yield first, found[first - top : last - top]


def with_guarantee(result: SceneResult, scene: OpenScene, buffer: OutputBuffer, guarantee: Guarantee) -> SceneResult:
    """Return the result of a map with what it promises: its sets, its area with an interval, and whether the scene looks familiar."""
    if guarantee.by_distance:
        result = _with_distance_areas(result, scene, buffer, guarantee)
    result = replace(result, unsure=guarantee.unsure)
    if result.area_km2 is not None and result.expected_km2 is not None and result.doubt_km2 is not None:
        seen = sum(area for area in result.class_km2.values() if area is not None)
        sums = AreaSums(result.area_km2, result.expected_km2, result.doubt_km2, seen)
        estimate = estimate_area(sums, guarantee.area, guarantee.level)
        unsure = result.unsure_km2 if guarantee.controls else None  # without a controlled risk nothing is promised
        result = replace(result, interval=estimate, statement=describe_area(estimate, result.klass, unsure))
    if guarantee.statistics is None or (found := judge_scene(scene, guarantee.statistics)) is None:
        return result
    flags = result.flags
    if found.unusual:
        causes = "; ".join(found.causes)
        flags = (
            *flags,
            f"unlike-training: p = {found.p_value:.3f} among {len(guarantee.statistics.scores)} scenes; {causes}",
        )
    return replace(result, familiarity=found, flags=flags)


def check_guarantee(guarantee: Guarantee, scene: OpenScene) -> None:
    """Check before a scene is mapped that its grid allows what is promised.

    Raises:
        ImageryError: Sets by distance need square pixels of a known size.
    """
    if not guarantee.by_distance:
        return
    size = scene.source.grid.pixel_size_m()
    if size is None:
        raise ImageryError(
            f"{scene.name}: expected a georeference for sets by distance, got none; ask for a risk by probability"
        )
    if max(size) > (1 + MOST_UNEVEN) * min(size):
        raise ImageryError(
            f"{scene.name}: expected square pixels for sets by distance, got {size[0]:.3g} m by {size[1]:.3g} m; warp the scene to a projected "
            "grid, or ask for a risk by probability"
        )


def set_rows(
    scene: OpenScene, buffer: OutputBuffer, guarantee: Guarantee, klass: int
) -> Iterator[tuple[int, ByteArray]]:
    """Yield the rows of the layer of sets, as (first row, indices)."""
    if not guarantee.by_distance:
        yield from byte_rows(buffer, "sets")
        return
    gsd_m = scene.source.grid.gsd_m()
    assert gsd_m is not None, "check_guarantee was not called"

    def read_class(first: int, last: int) -> ByteArray:
        return cast(ByteArray, buffer.read("class", (first, 0, last - first, buffer.width)))

    yield from distance_sets(read_class, buffer.height, klass, guarantee, gsd_m)


def _with_distance_areas(
    result: SceneResult, scene: OpenScene, buffer: OutputBuffer, guarantee: Guarantee
) -> SceneResult:
    """Return the result with the areas of sets by distance in place of those by probability."""
    areas = scene.source.grid.row_areas_m2()
    surely_m2 = possible_m2 = 0.0
    unsure = seen = 0
    for first, found in set_rows(scene, buffer, guarantee, result.classes.index(result.klass)):
        told, open_ = found == 1, found == CANNOT_TELL
        row_m2 = np.zeros(len(found)) if areas is None else areas[first : first + len(found)]
        surely_m2 += float(told.sum(1) @ row_m2)
        possible_m2 += float((told | open_).sum(1) @ row_m2)
        unsure, seen = unsure + int(open_.sum()), seen + int((found != NODATA).sum())
    return replace(
        result, low_km2=surely_m2 / 1e6, high_km2=possible_m2 / 1e6, unsure_km2=(possible_m2 - surely_m2) / 1e6,
        unsure_share=unsure / seen if seen else None,
    )  # fmt: skip
